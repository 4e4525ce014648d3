"""Small arrays, and the smaller and the larger of two integers, for jitted code.

They are written by intrinsics. For `np.zeros`, `min` and `max` numba compiles functions of its own, for each type of
their arguments, in each process that compiles: a tenth of what a first save took.
"""

from __future__ import annotations

import math

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

from sparsefmt.llvm import constant_of, integer


@intrinsic(prefer_literal=True)
def on_stack(typingctx, shape, dtype):
    """Zeros of a constant shape, an integer or a tuple, in the function's own memory: it must not return them."""
    dims = [constant_of(size) for size in (shape if isinstance(shape, types.BaseTuple) else (shape,))]
    array = types.Array(dtype.dtype, len(dims), "C")
    size = array.dtype.bitwidth // 8

    def codegen(context, builder, signature, args):
        element = context.get_data_type(array.dtype)
        # `alloca_once` would store a constant of that size, which LLVM cuts into its elements, for seconds
        with builder.goto_entry_block():
            memory = builder.alloca(ir.ArrayType(element, math.prod(dims)))
        memory.align = 64
        cgutils.memset(builder, memory, integer(size * math.prod(dims)), 0)
        found = make_array(array)(context, builder)
        strides = [size * math.prod(dims[axis + 1 :]) for axis in range(len(dims))]
        populate_array(
            found,
            data=builder.bitcast(memory, element.as_pointer()),
            shape=[integer(dim) for dim in dims],
            strides=[integer(stride) for stride in strides],
            itemsize=integer(size),
            meminfo=None,
        )
        return found._getvalue()

    return array(shape, dtype), codegen


def _chosen(comparison):
    @intrinsic
    def choose(typingctx, a, b):
        kind = _common(types.unliteral(a), types.unliteral(b))

        def codegen(context, builder, signature, args):
            compare = builder.icmp_signed if kind.signed else builder.icmp_unsigned
            return builder.select(compare(comparison, *args), *args)

        return kind(kind, kind), codegen

    return choose


def _common(a, b):
    """uint64 for two of them, int64 for others that fit."""
    if a == b == types.uint64:
        return a
    for kind in (a, b):
        if not isinstance(kind, types.Integer) or kind == types.uint64:
            raise TypeError(f"{a} and {b} are not two int64, nor two uint64")
    return types.int64


smaller, larger = _chosen("<"), _chosen(">")
"""Of two integers, int64 or narrower, or uint64."""
