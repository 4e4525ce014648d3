"""The ways to multiply that `kernels.py` compares within its own process.

Every contender computes x @ W.T for the same x (tokens, cols) and pruned W (rows, cols), in the orientation in which it
is at its best: the dense ones and ours take x and give (tokens, rows); the CSR ones take a contiguous x.T, prepared
beforehand, and give (rows, tokens), which is not turned around. MKL writes to memory that it is given, the others
allocate their result. The tool imports this file; it is not a program.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import click
import ml_dtypes
import numpy as np
import scipy.sparse
import torch

from sparsefmt import SparseTensor, linear
from sparsefmt.layouts import LAYOUTS
from tools.bench.kernels_timing import timed_turn
from tools.bench.mkl import find_mkl

EXACT, ROUNDED = 1e-4, 2e-2
"""Tolerances, over the largest result: sums of float32 in another order; products of values that were rounded."""

VALUE_DTYPES = {"f32": np.dtype(np.float32), "bf16": np.dtype(ml_dtypes.bfloat16)}


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
