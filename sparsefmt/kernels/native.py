"""Machine code of kernels by its address, which native code calls."""

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import intrinsic

from sparsefmt.llvm import I8, I64

_SIGNATURE = (types.int64,) * 4


@cache
def native(kernel: Any) -> int:
    """Address of a kernel's machine code, which numba compiles to int32 (result, error, job, lo, hi, scratch)."""
    # LLVM has a lock of its own, which a child forked meanwhile could not take: no fork while this one is held (jit.py)
    with global_compiler_lock:
        kernel.compile(_SIGNATURE)
        compiled = kernel.overloads[_SIGNATURE]
        return int(compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name))


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
