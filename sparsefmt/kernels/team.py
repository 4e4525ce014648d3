"""A kernel on several threads: those of PyTorch's OpenMP runtime where it is loaded, else those of the shared pool.

PyTorch's threads wait for its next operator by spinning, so threads of our own would compete with them for the cores.
GOMP_parallel, which every OpenMP runtime offers, calls a function on these threads instead. The function is `team`
below, a few instructions of LLVM: each thread takes a place in the scratch, then one unit of work after the other, and
calls the kernel's native code for it.

After a fork, the runtime's threads are gone, and it would wait for them: then the pool serves.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from array import array
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types

from sparsefmt import threads
from sparsefmt.dtypes import DOUBLE
from sparsefmt.kernels.plans.contract import Kernel
from sparsefmt.kernels.scratch import room

ENVIRONMENT_VARIABLE = "SPARSEFMT_OPENMP"
"""0 keeps products off the threads of an OpenMP runtime."""

_SIGNATURE = (types.int64,) * 4

_NEXT_UNIT, _NEXT_PLACE, _UNITS, _BOUNDS, _JOB, _KERNEL, _SCRATCH, _STRIDE = range(8)
"""What `team` gets, as integers of 64 bits: two counters, then the number of units, the address of their bounds, the
job, the kernel, the scratch of the first place, and bytes from one place to the next."""

_forked = False

_kept: list[Any] = []
"""What must live as long as the machine code of `team` is called."""

_found: dict[str, Callable[..., None] | None] = {}
"""GOMP_parallel of PyTorch's runtime, once it was looked for."""


def run_on_threads(kernel: Kernel, job: int, units: np.ndarray, count: int, words: int) -> None:
    """Call the kernel for each unit, on up to `count` threads, this one included.

    Args:
        units: int64 bounds, as `Work` has them.
        words: elements of 8 bytes that each thread needs as scratch.
    """
    number = len(units) - 1
    count = min(count, number)
    parallel = _openmp() if count > 1 and has_team() else None
    if parallel is not None:
        # a line of the cache between two places
        stride = (words + 15) // 8 * 8
        memory = room("weights", stride * count, DOUBLE)
        shared = array("q", (0, 0, number, units.ctypes.data, job, _native(kernel), memory.address, 8 * stride))
        parallel(_team(), shared.buffer_info()[0], count, 0)
        return
    bounds = units.tolist()

    def run_unit(unit: int) -> None:
        kernel(job, bounds[unit], bounds[unit + 1], room("weights", words, DOUBLE).address)

    threads.share(run_unit, number, count)


def has_team() -> bool:
    """Whether a product of this thread would run on the threads of an OpenMP runtime."""
    return not _forked and _openmp() is not None and not threads.is_worker()


@cache
def _native(kernel: Any) -> int:
    """Address of a kernel's machine code, which numba compiles to int32 (result, error, job, lo, hi, scratch)."""
    kernel.compile(_SIGNATURE)
    compiled = kernel.overloads[_SIGNATURE]
    return int(compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name))


@cache
def _team() -> int:
    """Address of the function that each thread calls, void (shared)."""
    word, byte_pointer = ir.IntType(64), ir.IntType(8).as_pointer()
    module = ir.Module("sparsefmt_team")
    module.triple = binding.get_process_triple()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [word]), "team")
    kernel_type = ir.FunctionType(ir.IntType(32), [byte_pointer.as_pointer(), byte_pointer.as_pointer(), *[word] * 4])
    start, take, work, done = (function.append_basic_block(name) for name in ("start", "take", "work", "done"))
    builder = ir.IRBuilder(start)

    def pointer(number: int) -> Any:
        at = builder.add(function.args[0], ir.Constant(word, 8 * number))
        return builder.inttoptr(at, word.as_pointer())

    def load(number: int) -> Any:
        return builder.load(pointer(number), typ=word)

    def count_up(number: int) -> Any:
        return builder.atomic_rmw("add", pointer(number), ir.Constant(word, 1), "seq_cst")

    result, error = builder.alloca(byte_pointer), builder.alloca(byte_pointer)
    scratch = builder.add(load(_SCRATCH), builder.mul(count_up(_NEXT_PLACE), load(_STRIDE)))
    kernel = builder.inttoptr(load(_KERNEL), kernel_type.as_pointer())
    builder.branch(take)
    builder.position_at_end(take)
    unit = count_up(_NEXT_UNIT)
    builder.cbranch(builder.icmp_signed("<", unit, load(_UNITS)), work, done)
    builder.position_at_end(work)
    at = builder.add(load(_BOUNDS), builder.mul(unit, ir.Constant(word, 8)))
    lo = builder.load(builder.inttoptr(at, word.as_pointer()), typ=word)
    hi_at = builder.add(at, ir.Constant(word, 8))
    hi = builder.load(builder.inttoptr(hi_at, word.as_pointer()), typ=word)
    builder.call(kernel, [result, error, load(_JOB), lo, hi, scratch])
    builder.branch(take)
    builder.position_at_end(done)
    builder.ret_void()
    target = binding.Target.from_default_triple().create_target_machine()
    engine = binding.create_mcjit_compiler(binding.parse_assembly(str(module)), target)
    engine.finalize_object()
    _kept.append(engine)
    return int(engine.get_function_address("team"))


def _openmp() -> Callable[..., None] | None:
    """GOMP_parallel of the runtime that PyTorch has loaded, if it has, and nobody forbids it."""
    if "torch" not in sys.modules:
        return None
    if "torch" not in _found:
        _found["torch"] = None if os.environ.get(ENVIRONMENT_VARIABLE) == "0" else _look_for_openmp()
    return _found["torch"]


def _look_for_openmp() -> Callable[..., None] | None:
    for path in _loaded_runtimes():
        try:
            # only if it is loaded already: another copy would have other threads
            library = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
            parallel = library.GOMP_parallel
        except (OSError, AttributeError):
            continue
        parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        parallel.restype = None
        return parallel
    return None


def _loaded_runtimes() -> list[str]:
    """Paths of OpenMP runtimes that this process may have loaded, PyTorch's first."""
    folder = Path(sys.modules["torch"].__file__ or "").parent / "lib"
    named = re.compile(r"lib(gomp|iomp5|omp)\b[^/]*$")
    paths = [str(path) for path in sorted(folder.glob("lib*omp*")) if named.search(path.name)]
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return paths
    loaded = {line.split(maxsplit=5)[5] for line in maps.splitlines() if line.count("/") and named.search(line)}
    return [path for path in paths if path in loaded] + sorted(loaded - set(paths))


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)
