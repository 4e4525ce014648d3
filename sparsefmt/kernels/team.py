"""A product on several threads: those of PyTorch's OpenMP runtime where it is loaded, else those of the shared pool.

PyTorch's threads wait for its next operator by spinning, so threads of our own would compete with them for the cores.
GOMP_parallel, which every OpenMP runtime offers, calls a function on these threads instead. The function is `team`
below, a few instructions of LLVM: each thread takes a place in the memory, then for one step after the other, one unit
after the other, and calls the step's native code for it.

Activations that take little room are arranged by every thread for itself. That is faster than to share that work: a
thread finds them in its own cache, and waits for nobody. Otherwise, all threads wait for each other between two steps.

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
from typing import Any, NamedTuple, Protocol

import numpy as np
from llvmlite import binding, ir
from numba.core.compiler_lock import global_compiler_lock

from sparsefmt import threads
from sparsefmt.kernels import scratch
from sparsefmt.kernels.job import BYTES, ODD, X
from sparsefmt.kernels.operand import Work
from sparsefmt.kernels.plans.contract import Kernel, Plan

ENVIRONMENT_VARIABLE = "SPARSEFMT_OPENMP"
"""0 keeps products off the threads of an OpenMP runtime."""

_NEXT_PLACE, _SCRATCH, _STRIDE, _JOB, _JOB_STRIDE, _BARRIER, _STEPS, _FIRST_STEP = range(8)
"""What `team` gets, as integers of 64 bits: a counter of places; the scratch of the first one, and bytes from one to
the next; the same for the job; the address of GOMP_barrier; the number of steps; then these, each as below."""

_NEXT_UNIT, _UNITS, _BOUNDS, _KERNEL, _ALONE, _WAITS, _STEP = range(7)
"""A counter of units, their number, the address of their bounds, the code, whether each thread does all units for
itself, and whether the next step has to wait for all threads; how many integers that are."""

_MOST_ARRANGED = 1 << 20
"""Bytes of arranged activations that every thread makes for itself: those that stay in its second-level cache."""

_forked = False

_kept: list[Any] = []
"""What must live as long as the machine code of `team` is called."""

_found: dict[str, Runtime | None] = {}
"""PyTorch's runtime, once it was looked for."""


class Runtime(NamedTuple):
    """An OpenMP runtime: GOMP_parallel, to be called, and the address of GOMP_barrier."""

    parallel: Callable[..., None]
    barrier: int


class Steps(Protocol):
    """What is run: a `recipe.Recipe`, or parts of a product (`by_tokens.py`)."""

    @property
    def plan(self) -> Plan: ...

    @property
    def steps(self) -> list[tuple[Kernel, int, np.ndarray | None]]: ...

    @property
    def scratch_at(self) -> int: ...


def run_on_threads(recipe: Steps, job: array[int], work: Work, count: int, room: int) -> None:
    """Run all steps of a recipe on up to `count` threads, this one included.

    Args:
        work: what the kernel does, in the units that threads take.
        room: `nbytes_of` memory, which the job names already.
    """
    runtime = _openmp() if has_team() else None
    if runtime is not None:
        _run_on_team(runtime, recipe, job, work, (count, room))
        return
    address, _ = job.buffer_info()
    for kernel, _, bounds in recipe.steps:
        if bounds is not None:
            # handing it over takes longer
            kernel(address, 0, len(bounds) - 1, 0)
        else:
            units = work.units.tolist()

            def run_unit(unit: int, kernel: Kernel = kernel, units: list[int] = units) -> None:
                kernel(address, units[unit], units[unit + 1], scratch.room("scratch", recipe.plan.scratch).address)

            threads.share(run_unit, len(units) - 1, count)


def nbytes_of(recipe: Steps, count: int) -> int:
    """Bytes of memory of a recipe for so many threads: arranged activations, sums, a scratch for each thread; then
    arranged activations for every further thread."""
    of_its_own = count - 1 if _arranges_alone(recipe) else 0
    return recipe.scratch_at + count * _scratch_bytes(recipe) + of_its_own * _arranged_bytes(recipe)


def _arranges_alone(recipe: Steps) -> bool:
    return recipe.plan.arranged <= _MOST_ARRANGED


def _scratch_bytes(recipe: Steps) -> int:
    """For each thread, with a line of the cache between two."""
    return (recipe.plan.scratch + 127) // 64 * 64


def _arranged_bytes(recipe: Steps) -> int:
    return (recipe.plan.arranged + 127) // 64 * 64


def has_team() -> bool:
    """Whether a product of this thread would run on the threads of an OpenMP runtime."""
    return not _forked and _openmp() is not None and not threads.is_worker()


def _run_on_team(runtime: Runtime, recipe: Steps, job: array[int], work: Work, where: tuple[int, int]) -> None:
    """On (threads, room). The first job has the answer whether an activation is odd."""
    count, room = where
    alone = _arranges_alone(recipe)
    jobs, further = job, room + recipe.scratch_at + count * _scratch_bytes(recipe)
    if alone and recipe.plan.arranged:
        jobs = job * count
        for number in range(1, count):
            jobs[(BYTES * number + X) // 8] = further + (number - 1) * _arranged_bytes(recipe)
    address, _ = jobs.buffer_info()
    stride = 0 if jobs is job else BYTES
    scratch_at, last = room + recipe.scratch_at, len(recipe.steps) - 1
    numbers = [0, scratch_at, _scratch_bytes(recipe), address, stride, runtime.barrier, len(recipe.steps)]
    for number, (_, code, bounds) in enumerate(recipe.steps):
        by_itself = alone and number == 0 < last
        bounds = work.units if bounds is None else bounds
        waits = number < last and not by_itself
        numbers += [0, len(bounds) - 1, bounds.ctypes.data, code, int(by_itself), int(waits)]
    shared = array("q", numbers)
    runtime.parallel(_team(), shared.buffer_info()[0], count, 0)
    job[ODD // 8] = jobs[ODD // 8]


@cache
def _team() -> int:
    """Address of the function that each thread calls, void (shared)."""
    word, byte_pointer = ir.IntType(64), ir.IntType(8).as_pointer()
    module = ir.Module("sparsefmt_team")
    module.triple = binding.get_process_triple()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [word]), "team")
    kernel_type = ir.FunctionType(ir.IntType(32), [byte_pointer.as_pointer(), byte_pointer.as_pointer(), *[word] * 4])
    names = ("start", "step", "alone", "take", "work", "taken", "wait", "next", "done")
    start, step, alone, take, work, taken, wait, following, done = map(function.append_basic_block, names)
    shared, builder = function.args[0], ir.IRBuilder(start)

    def constant(number: int) -> Any:
        return ir.Constant(word, number)

    def pointer(base: Any, number: int) -> Any:
        return builder.inttoptr(builder.add(base, constant(8 * number)), word.as_pointer())

    def load(base: Any, number: int) -> Any:
        return builder.load(pointer(base, number), typ=word)

    def count_up(base: Any, number: int) -> Any:
        return builder.atomic_rmw("add", pointer(base, number), constant(1), "seq_cst")

    def call(lo: Any, hi: Any) -> None:
        kernel = builder.inttoptr(load(at, _KERNEL), kernel_type.as_pointer())
        builder.call(kernel, [result, error, job, lo, hi, scratch])

    result, error = builder.alloca(byte_pointer), builder.alloca(byte_pointer)
    place = count_up(shared, _NEXT_PLACE)
    scratch = builder.add(load(shared, _SCRATCH), builder.mul(place, load(shared, _STRIDE)))
    job = builder.add(load(shared, _JOB), builder.mul(place, load(shared, _JOB_STRIDE)))
    first = builder.add(shared, constant(8 * _FIRST_STEP))
    end = builder.add(first, builder.mul(load(shared, _STEPS), constant(8 * _STEP)))
    builder.branch(step)

    builder.position_at_end(step)
    at = builder.phi(word)
    at.add_incoming(first, start)
    builder.cbranch(builder.icmp_signed("!=", load(at, _ALONE), constant(0)), alone, take)

    builder.position_at_end(alone)
    call(constant(0), load(at, _UNITS))
    builder.branch(taken)

    builder.position_at_end(take)
    unit = count_up(at, _NEXT_UNIT)
    builder.cbranch(builder.icmp_signed("<", unit, load(at, _UNITS)), work, taken)

    builder.position_at_end(work)
    bound = builder.add(load(at, _BOUNDS), builder.mul(unit, constant(8)))
    call(load(bound, 0), load(bound, 1))
    builder.branch(take)

    builder.position_at_end(taken)
    builder.cbranch(builder.icmp_signed("!=", load(at, _WAITS), constant(0)), wait, following)

    builder.position_at_end(wait)
    barrier = builder.inttoptr(load(shared, _BARRIER), ir.FunctionType(ir.VoidType(), []).as_pointer())
    builder.call(barrier, [])
    builder.branch(following)

    builder.position_at_end(following)
    after = builder.add(at, constant(8 * _STEP))
    at.add_incoming(after, following)
    # once an activation was odd, all that comes is done for nothing; all threads know that, or none waits any more
    odd = load(job, ODD // 8)
    goes_on = builder.and_(builder.icmp_signed("<", after, end), builder.icmp_signed("==", odd, constant(0)))
    builder.cbranch(goes_on, step, done)

    builder.position_at_end(done)
    builder.ret_void()
    with global_compiler_lock:  # no fork meanwhile (`native.py`)
        target = binding.Target.from_default_triple().create_target_machine()
        engine = binding.create_mcjit_compiler(binding.parse_assembly(str(module)), target)
        engine.finalize_object()
        _kept.append(engine)
        return int(engine.get_function_address("team"))


def _openmp() -> Runtime | None:
    """The runtime that PyTorch has loaded, if it has, and nobody forbids it."""
    if "torch" not in sys.modules:
        return None
    if "torch" not in _found:
        _found["torch"] = None if os.environ.get(ENVIRONMENT_VARIABLE) == "0" else _look_for_openmp()
    return _found["torch"]


def _look_for_openmp() -> Runtime | None:
    for path in _loaded_runtimes():
        try:
            # only if it is loaded already: another copy would have other threads
            library = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
            parallel, barrier = library.GOMP_parallel, library.GOMP_barrier
        except (OSError, AttributeError):
            continue
        parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        parallel.restype = None
        return Runtime(parallel, ctypes.cast(barrier, ctypes.c_void_p).value or 0)
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
