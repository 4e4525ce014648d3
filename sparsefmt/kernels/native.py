"""Machine code of kernels by its address, which native code calls."""

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from sparsefmt.llvm import I8, I64


@cache
def native(kernel: Any) -> int:
    """Address of a kernel's machine code, which numba compiles to int32 (result, error, job, lo, hi, scratch)."""
    return int(kernel.address((types.int64,) * 4))


@intrinsic
def call_kernel(typingctx, kernel, job, lo, hi, scratch):
    """Call the machine code of a kernel, which raises nothing."""

    def codegen(context, builder, signature, args):
        pointer = I8.as_pointer()
        function = ir.FunctionType(ir.IntType(32), [pointer.as_pointer(), pointer.as_pointer(), *[I64] * 4])
        result, error = cgutils.alloca_once(builder, pointer), cgutils.alloca_once(builder, pointer)
        builder.call(builder.inttoptr(args[0], function.as_pointer()), [result, error, *args[1:]])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), codegen
