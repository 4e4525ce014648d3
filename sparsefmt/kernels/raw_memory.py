"""Single numbers at addresses, memory on the stack, and what is asked for in advance, for jitted code.

Addresses are plain int64, and nothing is checked: a kernel sees arrays of checked tiles only.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from sparsefmt.llvm import I8, I32, I64, call, constant_of, integer, load_as, store_at


def _scalar_reader(nbits):
    @intrinsic
    def read(typingctx, address):
        def codegen(context, builder, signature, args):
            value = load_as(builder, args[0], ir.IntType(nbits), nbits // 8)
            return value if nbits == 64 else builder.zext(value, I64)

        return types.int64(types.int64), codegen

    return read


load_u8, load_u16, load_u32, load_u64 = (_scalar_reader(nbits) for nbits in (8, 16, 32, 64))
"""load_u16(address): an unsigned integer as int64 (of 64 bits: its bits)."""


@intrinsic(prefer_literal=True)
def memory(typingctx, nbytes):
    """The address of so many bytes on the stack, for as long as the function runs that asks for them."""
    size = constant_of(nbytes)

    def codegen(context, builder, signature, args):
        block = cgutils.alloca_once(builder, ir.ArrayType(I8, size))
        block.align = 64
        return builder.ptrtoint(block, I64)

    return types.int64(nbytes), codegen


@intrinsic
def store_scalar(typingctx, address, value):
    """Write an int64, a float32 or a float64."""

    def codegen(context, builder, signature, args):
        store_at(builder, args[0], args[1], value.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(types.int64, value), codegen


@intrinsic
def load_scalar(typingctx, address, like):
    """A float32 or float64, of the type of `like`."""

    def codegen(context, builder, signature, args):
        return load_as(builder, args[0], args[1].type, like.bitwidth // 8)

    return like(types.int64, like), codegen


@intrinsic(prefer_literal=True)
def prefetch(typingctx, address, lines, level):
    """Ask for `lines` lines of the cache of a level, 1 or 2, from an address on, which need not be readable."""

    def codegen(context, builder, signature, args):
        for line in range(constant_of(lines)):
            pointer = builder.inttoptr(builder.add(args[0], integer(64 * line)), I8.as_pointer())
            # for reading; locality 3 is the nearest level; the data cache
            hints = [ir.Constant(I32, hint) for hint in (0, 4 - constant_of(level), 1)]
            call(builder, "llvm.prefetch.p0", ir.VoidType(), [pointer, *hints])
        return context.get_dummy_value()

    return types.void(types.int64, lines, level), codegen
