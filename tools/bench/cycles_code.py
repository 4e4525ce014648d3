"""Prints as JSON the assembly of kernels for a processor that need not be this machine's, nor of its family.

    python -m tools.bench.cycles_code neoverse-v1 bitmask_one_token/F32 permuted_one_token/BF16

A process compiles for one processor: numba gets a code generator that writes code for it and runs none. All passes of
LLVM see that processor, as they would on such a machine.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

AVX2 = "+avx,+avx2,+fma,+f16c,+popcnt,+bmi,+bmi2,+lzcnt,+ssse3,+sse4.1,+sse4.2"
AARCH64, X86 = "aarch64-unknown-linux-gnu", "x86_64-unknown-linux-gnu"


class Processor(NamedTuple):
    """What LLVM has to know of it. `model`: the processor by whose model llvm-mca counts cycles."""

    triple: str
    features: str
    model: str


PROCESSORS = {
    # the same core; LLVM's own model of the A76 is that of the A57, of half its width
    "cortex-a76": Processor(AARCH64, "", "neoverse-n1"),
    "neoverse-v1": Processor(AARCH64, "", "neoverse-v1"),
    # the model is that of Cyclone, of half its width
    "apple-m1": Processor(AARCH64, "", "apple-m1"),
    "znver3": Processor(X86, AVX2, "znver3"),
}


class Kernel(NamedTuple):
    """A function of which a loop is looked at.

    Attributes:
        make: the jitted function and the types of its arguments, for a kind of values.
        unit: what its loop counts: multiply-adds, or elements that it writes.
        kinds: kinds of values that its loop depends on.
    """

    make: Callable[[int], tuple[Any, tuple[Any, ...]]]
    unit: str
    kinds: tuple[str, ...]


MULTIPLY_ADD, ELEMENT = "multiply-add", "element"


def compile_for(name: str) -> None:
    """Let numba write code for a processor of PROCESSORS, from now on. Before the package's kernels are imported."""
    triple, features, _ = PROCESSORS[name]
    os.environ["NUMBA_CPU_NAME"] = name
    if features:
        os.environ["NUMBA_CPU_FEATURES"] = features
    os.environ.pop("SPARSEFMT_ISA", None)
    from llvmlite import binding
    from numba.core import codegen, config, cpu

    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    machine = binding.Target.from_triple(triple).create_target_machine(
        cpu=name, features=features, opt=config.OPT, reloc="static"
    )

    class Codegen(codegen.AOTCPUCodegen):  # type: ignore[misc]
        def _init(self, module: Any) -> None:
            self._tm, self._tm_features, self._data_layout = machine, features, str(machine.target_data)
            self._target_data = machine.target_data
            # as numba's own has them
            self._loopvect, self._opt_level = False, 0

        def _create_empty_module(self, module_name: str) -> Any:
            module = super()._create_empty_module(module_name)
            module.triple = triple
            return module

    def get_executable(context: Any, library: Any, fndesc: Any, env: Any) -> Any:
        library._ensure_finalized()
        # numba knows compiled functions by what it calls, and that must be a built-in; this one is never called
        return [].append

    codegen.JITCPUCodegen = Codegen
    cpu.CPUContext.get_executable = get_executable
    from sparsefmt import isa, jit

    isa.NEON = triple == AARCH64
    # every ARM processor of PROCESSORS has it, by its name
    isa.DOTS = "dotprod" if isa.NEON else None

    def no_cache(function: Any) -> Any:
        raise RuntimeError("nothing is kept of code for other processors")

    jit.Cache = no_cache  # type: ignore[assignment, misc]


def kernels() -> dict[str, Kernel]:
    """By name. Their hot loops are what products spend their time in."""
    from numba import types

    from sparsefmt.jit import jit
    from sparsefmt.kernels import activations, bitmask, dense, dots, expand, kinds, panel, permuted, transposed
    from sparsefmt.kernels import permuted_in_blocks as blocks

    number = types.int64
    f32 = kinds.F32
    lanes, vectors = permuted.token_shapes(f32)[0]
    pitch, ahead, mask_ahead = 64, 2048, 512

    def fill_bitmask(kind: int) -> tuple[Any, tuple[Any, ...]]:
        vectorised = int(expand.in_registers(kind))

        @jit
        def fill(tables, values, mask, columns, to):
            return bitmask.expand_columns(vectorised, kind, tables, values, mask, columns, ahead, mask_ahead, to, pitch)

        return fill, (number,) * 5

    def fill_dense(kind: int) -> tuple[Any, tuple[Any, ...]]:
        @jit
        def fill(values, stride, columns, to, scratch):
            return transposed.transpose_columns(kind, values, stride, 16, columns, to, pitch, scratch)

        return fill, (number,) * 5

    def microkernel(kind: int) -> tuple[Any, tuple[Any, ...]]:
        wide = panel.WIDE if panel.dots_way() != dots.SIGNS or kind != kinds.DOTS else panel.NARROW
        how = panel._how(kind, False, panel.dots_way() or 0)

        @jit
        def multiply(weights, columns, x, sums):
            panel._multiply(how, wide, 1, weights, columns, x, 0, sums, True, 0, 0)

        return multiply, (number,) * 4

    def one_token(kind: int) -> Any:
        return bitmask.one_token_of_dots(panel.dots_way()) if kind == kinds.DOTS else bitmask.few_tokens_kernel(kind, 1)

    def of_job(make: Callable[[int], Any]) -> Callable[[int], tuple[Any, tuple[Any, ...]]]:
        return lambda kind: (make(kind), (number,) * 4)

    every, singles, wide = ("F32", "BF16", "F16"), ("F32",), (int(lanes), int(vectors))
    eight_bits = "DOTS", "INT8"
    return {
        "bitmask_one_token": Kernel(of_job(lambda kind: bitmask.few_tokens_kernel(kind, 1)), MULTIPLY_ADD, every),
        "bitmask_six_tokens": Kernel(of_job(lambda kind: bitmask.few_tokens_kernel(kind, 6)), MULTIPLY_ADD, every),
        "bitmask_panel": Kernel(fill_bitmask, ELEMENT, every),
        "dense_one_token": Kernel(of_job(lambda kind: dense.few_tokens_kernel(kind, 1)), MULTIPLY_ADD, every),
        "dense_panel": Kernel(fill_dense, ELEMENT, every),
        "panel_many_tokens": Kernel(
            of_job(lambda kind: panel.many_tokens_kernel(False, kind)), MULTIPLY_ADD, singles
        ),
        "panel_one_token": Kernel(
            of_job(lambda kind: panel.many_tokens_kernel(False, kind, True)), MULTIPLY_ADD, singles
        ),
        # W8A8: integers, by sdot on ARM, beside what is done without it, which are sums of float32
        "w8a8_one_token": Kernel(of_job(one_token), MULTIPLY_ADD, eight_bits),
        "w8a8_many_tokens": Kernel(microkernel, MULTIPLY_ADD, eight_bits),
        "permuted_one_token": Kernel(
            of_job(lambda kind: permuted.one_token_kernel(kind, False)), MULTIPLY_ADD, every
        ),
        "gaps_one_token": Kernel(
            of_job(lambda kind: permuted.one_token_kernel_of_gaps(kind, False)), MULTIPLY_ADD, every
        ),
        "permuted_eight_tokens": Kernel(
            of_job(lambda kind: permuted.many_tokens_kernel(kind, False, False, *wide)), MULTIPLY_ADD, every
        ),
        "permuted_in_blocks": Kernel(
            of_job(lambda kind: blocks.blocked_kernel(kind, False, False, 8)), MULTIPLY_ADD, every
        ),
        "gaps_in_blocks": Kernel(of_job(lambda kind: blocks.blocked_kernel(kind, False, True, 8)), MULTIPLY_ADD, every),
        "arrange_groups": Kernel(
            of_job(lambda kind: activations.in_groups(kind, panel.WIDE, panel.NARROW)), ELEMENT, singles
        ),
        "arrange_tokens": Kernel(of_job(lambda kind: activations.in_tokens(kind, *wide, False)), ELEMENT, singles),
        "put_tokens_back": Kernel(of_job(lambda kind: activations.from_tokens(kind, *wide, False)), ELEMENT, singles),
    }  # fmt: skip


def library_of(function: Any, arguments: tuple[Any, ...]) -> tuple[str, Any]:
    """The symbol of a jitted function, and its numba library, optimised for the processor of `compile_for`."""
    from numba import njit

    fresh = njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)(function.py_func)
    fresh.compile(arguments)
    (result,) = fresh.overloads.values()
    return result.fndesc.llvm_func_name, result.library


def library_of_job(function: Any) -> tuple[str, Any]:
    """The same of a kernel (`job.py`)."""
    from numba import types

    return library_of(function, (types.int64,) * 4)


def assembly(kernel: Kernel, kind: str) -> str:
    """What LLVM makes of a kernel."""
    from sparsefmt.kernels import kinds

    _, library = library_of(*kernel.make(getattr(kinds, kind)))
    return str(library._codegen._tm.emit_assembly(library._final_module))


def main() -> None:
    compile_for(sys.argv[1])
    table = kernels()
    found = {}
    for name in sys.argv[2:]:
        kernel, kind = name.split("/")
        found[name] = assembly(table[kernel], kind)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
