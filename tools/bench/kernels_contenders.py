"""The ways to multiply that `kernels.py` compares within its own process, and how one of them is timed.

Every contender computes x @ W.T for the same x (tokens, cols) and pruned W (rows, cols), in the orientation in which it
is at its best: the dense ones and ours take x and give (tokens, rows); the CSR ones take a contiguous x.T, prepared
beforehand, and give (rows, tokens), which is not turned around. MKL writes to memory that it is given, the others
allocate their result. Imported by the tool, not a program.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import math
import os
import statistics
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import click
import ml_dtypes
import numpy as np
import scipy.sparse
import torch
from numba import njit

from sparsefmt import SparseTensor, linear
from sparsefmt.layouts import LAYOUTS

TURN_SECONDS = 0.002
"""A product is called for this long to warm up, and again to be timed, but once at least. At first it finds its weights
out of cache and its threads asleep, and if two threads wake up on one core, it takes until the scheduler notices."""

EXACT, ROUNDED = 1e-4, 2e-2
"""Tolerances, over the largest result: sums of float32 in another order; products of values that were rounded."""

VALUE_DTYPES = {"f32": np.dtype(np.float32), "bf16": np.dtype(ml_dtypes.bfloat16)}

COLD_CALLS = 3
"""Calls of a turn that are timed, each after its weights were evicted from the caches."""

MB = 1 << 20
STREAM_BYTES = 256 * MB
EVICTING_BYTES = 96 * MB
"""What is read to evict all else from the caches: more than the last level of most processors."""


@dataclass(frozen=True)
class Contender:
    """One way to multiply one x by one matrix.

    Attributes:
        result: the product, (tokens, rows) float32.
        expected: what numpy makes of the same values.
        tolerance: how far they may be apart, over the largest element of `expected`.
        turn: seconds of one call, in a process that is otherwise quiet.
        weight_bytes: the weights, as they are read.
    """

    name: str
    result: Callable[[], np.ndarray]
    expected: np.ndarray
    tolerance: float
    turn: Callable[[], float]
    weight_bytes: int

    def verify(self) -> None:
        """Fail if the product is wrong."""
        got = self.result()
        if got.shape != self.expected.shape:
            raise click.ClickException(f"{self.name} gives shape {got.shape}, not {self.expected.shape}")
        error = np.abs(got - self.expected).max() / np.abs(self.expected).max()
        if not error <= self.tolerance:
            raise click.ClickException(f"{self.name} is wrong: off by {error:.1e} of the largest result")


def at_work(process: int) -> bool:
    """Whether a thread of the process other than the calling one is running, by Linux's word; elsewhere, never.

    CPU time would not tell: the kernel adds to it some 4 ms at a time.
    """
    own = str(threading.get_native_id())
    for task in Path(f"/proc/{process}/task").glob("*"):
        try:
            state = (task / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:  # it has just ended
            continue
        if state == "R" and task.name != own:
            return True
    return False


def settle(process: int | None = None) -> None:
    """Wait until a process's threads sleep (by default, this one's): OpenBLAS's, for one, spin for 25 ms after each
    product, on a core that the next contender needs."""
    deadline = time.perf_counter() + 0.1
    while at_work(process or os.getpid()) and time.perf_counter() < deadline:
        time.sleep(0.0005)


def seconds_of_calls(run: Callable[[], object]) -> list[float]:
    """Seconds of each call in TURN_SECONDS."""
    calls = []
    begin = start = time.perf_counter()
    while start - begin < TURN_SECONDS:
        run()
        end = time.perf_counter()
        calls.append(end - start)
        start = end
    return calls


@cache
def _evicting() -> np.ndarray:
    return np.ones(EVICTING_BYTES // 8, np.int64)


def timed_turn(run: Callable[[], object], before: Callable[[], object] | None) -> float:
    """Seconds of one call, the median of a few.

    before: the same product with other weights in the same form. All else is evicted from the caches and this one is
    called before each of COLD_CALLS, so that code, activations and threads are where they are in the middle of a large
    model, and the weights in memory. If None, as many calls as fit into TURN_SECONDS, warm.
    """
    settle()
    if before is None:
        seconds_of_calls(run)
        return statistics.median(seconds_of_calls(run))
    run()
    calls = []
    for _ in range(COLD_CALLS):
        _evicting().sum()
        before()
        start = time.perf_counter()
        run()
        calls.append(time.perf_counter() - start)
    return statistics.median(calls)


class Mkl:
    """MKL's sparse products (int32 indices, inspector and executor), from the shared library of the package `mkl`.

    PyTorch has another MKL inside, whose symbols are its own; both run on the one OpenMP library that PyTorch has
    loaded, so that only one set of threads is there to spin.
    """

    OPERATION_NON_TRANSPOSE, INDEX_BASE_ZERO, LAYOUT_ROW_MAJOR = 10, 0, 101
    GNU_THREADING = 3
    CALLS = 1000
    """How many products the hints promise."""

    class Description(ctypes.Structure):
        _fields_ = [("type", ctypes.c_int), ("mode", ctypes.c_int), ("diag", ctypes.c_int)]

    GENERAL = Description(20, 40, 50)

    def __init__(self, path: str) -> None:
        # its own symbols first, whatever other MKL is in the process
        self.library = ctypes.CDLL(path, mode=os.RTLD_LOCAL | getattr(os, "RTLD_DEEPBIND", 0))
        self.library.MKL_Set_Threading_Layer(self.GNU_THREADING)

    def set_threads(self, threads: int) -> None:
        self.library.MKL_Set_Num_Threads(ctypes.c_int(threads))

    def version(self) -> str:
        text = ctypes.create_string_buffer(200)
        self.library.MKL_Get_Version_String(text, 200)
        return text.value.decode().strip()

    def call(self, function: str, *arguments: object) -> None:
        status = getattr(self.library, f"mkl_sparse_{function}")(*arguments)
        if status:
            raise click.ClickException(f"MKL's {function} failed with status {status}")

    def product(self, csr: scipy.sparse.csr_array, x: np.ndarray) -> Callable[[], np.ndarray]:
        """A function that gives csr @ x, (rows, tokens), always in the same memory.

        The analysis is for the number of threads set at the time. x: (cols, tokens), contiguous.
        """
        (rows, cols), tokens = csr.shape, x.shape[1]
        y = np.empty((rows, tokens), np.float32)
        starts = csr.indptr.ctypes.data
        handle = ctypes.c_void_p()
        self.call(
            "s_create_csr",
            ctypes.byref(handle),
            ctypes.c_int(self.INDEX_BASE_ZERO),
            ctypes.c_int(rows),
            ctypes.c_int(cols),
            ctypes.c_void_p(starts),
            ctypes.c_void_p(starts + csr.indptr.itemsize),
            ctypes.c_void_p(csr.indices.ctypes.data),
            ctypes.c_void_p(csr.data.ctypes.data),
        )
        operation, calls = ctypes.c_int(self.OPERATION_NON_TRANSPOSE), ctypes.c_int(self.CALLS)
        layout, width = ctypes.c_int(self.LAYOUT_ROW_MAJOR), ctypes.c_int(tokens)
        if tokens == 1:
            self.call("set_mv_hint", handle, operation, self.GENERAL, calls)
        else:
            self.call("set_mm_hint", handle, operation, self.GENERAL, layout, width, calls)
        self.call("optimize", handle)

        one, zero = ctypes.c_float(1), ctypes.c_float(0)
        x_data, y_data = ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(y.ctypes.data)
        if tokens == 1:
            function = self.library.mkl_sparse_s_mv
            arguments: tuple[Any, ...] = (operation, one, handle, self.GENERAL, x_data, zero, y_data)
        else:
            function = self.library.mkl_sparse_s_mm
            arguments = (operation, one, handle, self.GENERAL, layout, x_data, width, width, zero, y_data, width)

        def multiply(alive: tuple[object, ...] = (csr, x)) -> np.ndarray:
            if function(*arguments):
                raise click.ClickException("MKL's product failed")
            return y

        weakref.finalize(multiply, self.library.mkl_sparse_destroy, handle)
        return multiply


@cache
def find_mkl() -> Mkl | None:
    """The library of the package `mkl`, if that is installed."""
    try:
        files = importlib.metadata.files("mkl") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name.startswith("libmkl_rt.so"):
            return Mkl(str(file.locate()))
    return None


def set_threads(threads: int) -> None:
    """The number of threads of all the libraries in this process that have one."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        raise click.ClickException("numpy's threads are set with threadpoolctl: pip install threadpoolctl") from None
    mkl = find_mkl()
    threadpool_limits(limits=threads)
    torch.set_num_threads(threads)
    if mkl is not None:
        mkl.set_threads(threads)


class Weights:
    """A pruned matrix in every form that a contender wants, each made once, on first use."""

    def __init__(self, array: np.ndarray) -> None:
        """array: (rows, cols) float32, contiguous."""
        self.array = array
        self.halves = array.astype(VALUE_DTYPES["bf16"])
        self.torch = torch.from_numpy(array)
        self.tensors = {
            (layout, values): SparseTensor.from_dense(self.halves if values == "bf16" else array, layout)
            for values in VALUE_DTYPES
            for layout in LAYOUTS
        }

    @cached_property
    def rounded(self) -> np.ndarray:
        """The bfloat16 values as float32."""
        return self.halves.astype(np.float32)

    @cached_property
    def torch_halves(self) -> torch.Tensor:
        return self.torch.bfloat16()

    @cached_property
    def csr(self) -> scipy.sparse.csr_array:
        csr = scipy.sparse.csr_array(self.array)
        assert csr.indptr.dtype == csr.indices.dtype == np.int32
        return csr

    @cached_property
    def torch_csr(self) -> torch.Tensor:
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        parts = (torch.from_numpy(part) for part in (self.csr.indptr, self.csr.indices, self.csr.data))
        return torch.sparse_csr_tensor(*parts, size=self.array.shape, check_invariants=True)

    def csr_bytes(self) -> int:
        return self.csr.indptr.nbytes + self.csr.indices.nbytes + self.csr.data.nbytes


@dataclass(frozen=True)
class Product:
    """One way to multiply, with its weights: a `Contender` but for its turn."""

    name: str
    run: Callable[[], Any]
    to_numpy: Callable[[Any], np.ndarray]
    weight_bytes: int
    rounded: bool = False
    """Whether its values were rounded to bfloat16."""
    tolerance: float = EXACT


def products(weights: Weights, x: np.ndarray, threads: int) -> list[Product]:
    """All of this process. x: (tokens, cols) float32."""
    array, size, tokens, shape = weights.array, weights.array.size, len(x), (len(x), len(weights.array))
    torch_linear, torch_x, halves_x = torch.nn.functional.linear, torch.from_numpy(x), torch.from_numpy(x).bfloat16()
    torch_bf16 = partial(torch_linear, halves_x, weights.torch_halves)
    found = [
        Product("numpy f32", lambda: x @ array.T, np.asarray, 4 * size),
        Product("torch f32", partial(torch_linear, torch_x, weights.torch), torch.Tensor.numpy, 4 * size),
        Product("torch bf16", torch_bf16, lambda y: y.float().numpy(), 2 * size, True, ROUNDED),
    ]

    turned = np.ascontiguousarray(x.T)
    if tokens == 1:
        turned = turned[:, 0]
    csr, csr_bytes, torch_multiply = weights.csr, weights.csr_bytes(), torch.mv if tokens == 1 else torch.mm
    torch_csr = partial(torch_multiply, weights.torch_csr, torch.from_numpy(turned))
    found += [
        Product("scipy CSR", lambda: csr @ turned, lambda y: y.T.reshape(shape), csr_bytes),
        Product("torch CSR", torch_csr, lambda y: y.numpy().T.reshape(shape), csr_bytes),
    ]
    mkl = find_mkl()
    if mkl is not None:
        found.append(Product("MKL CSR", mkl.product(csr, turned.reshape(-1, tokens)), np.transpose, csr_bytes))

    for (layout, values), tensor in weights.tensors.items():
        ours = partial(linear, x, tensor, threads=threads)
        found.append(Product(f"sparsefmt {layout} {values}", ours, np.asarray, tensor.nbytes, values == "bf16"))
    return found


def contenders(weights: Weights, x: np.ndarray, threads: int, before: Weights | None) -> list[Contender]:
    """All of this process. `set_threads(threads)` comes before, and lasts until the last turn.

    x: (tokens, cols) float32. before: see `timed_turn`.
    """
    exact, of_rounded = x @ weights.array.T, x @ weights.rounded.T
    found = products(weights, x, threads)
    runs_before = [None] * len(found) if before is None else [other.run for other in products(before, x, threads)]
    return [
        Contender(
            product.name,
            lambda product=product: product.to_numpy(product.run()),
            of_rounded if product.rounded else exact,
            product.tolerance,
            partial(timed_turn, product.run, run_before),
            product.weight_bytes,
        )
        for product, run_before in zip(found, runs_before, strict=True)
    ]


@njit(nogil=True)
def _sum_in_four_streams(words: np.ndarray, passes: int) -> int:
    quarter = words.size // 4
    total = np.uint64(0)
    for _ in range(passes):
        sum0, sum1, sum2, sum3 = np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(0)
        for i in range(quarter):
            sum0 += words[i]
            sum1 += words[i + quarter]
            sum2 += words[i + 2 * quarter]
            sum3 += words[i + 3 * quarter]
        total += sum0 + sum1 + sum2 + sum3
    return total


class ReadBandwidth:
    """How fast memory, or the cache that it fits into, can be read: the best of a few sums of as many bytes.

    The bytes are read over and over, so that what fits into a cache comes from there, as with warm products. Sizes
    are measured once, to the nearest half power of two, and no more than STREAM_BYTES.
    """

    def __init__(self) -> None:
        self._words = np.arange(STREAM_BYTES // 8, dtype=np.uint64)
        self._measured: dict[tuple[int, int], float] = {}

    def __call__(self, threads: int, size: int = STREAM_BYTES) -> float:
        """Bytes a second."""
        rounded = min(STREAM_BYTES, int(2 ** (round(2 * math.log2(size)) / 2)))
        key = threads, rounded
        if key not in self._measured:
            self._measured[key] = self._measure(threads, self._words[: rounded // 8])
        return self._measured[key]

    def _measure(self, threads: int, words: np.ndarray) -> float:
        passes = max(1, 64 * MB // words.nbytes)
        parts = np.array_split(words, threads)
        best = math.inf
        settle()
        with ThreadPoolExecutor(threads) as pool:
            for _ in range(11):  # the first one compiles
                start = time.perf_counter()
                list(pool.map(lambda part: _sum_in_four_streams(part, passes), parts))
                best = min(best, time.perf_counter() - start)
        return passes * words.nbytes / best
