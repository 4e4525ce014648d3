"""LLVM pieces that know nothing of kinds of values, for those who define intrinsics.

Memory is addressed by plain int64 addresses: nothing is checked here.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils

I1, I8, I16, I32, I64 = (ir.IntType(nbits) for nbits in (1, 8, 16, 32, 64))


def integer(value: int) -> ir.Constant:
    return ir.Constant(I64, value)


def lanes_of(indices: list[int]) -> ir.Constant:
    """A shuffle."""
    return ir.Constant(ir.VectorType(I32, len(indices)), indices)


def load_as(builder, address, llvm_type, align: int):
    """What lies at an int64 address."""
    return builder.load(builder.inttoptr(address, llvm_type.as_pointer()), align=align, typ=llvm_type)


def store_at(builder, address, value, align: int) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=align)


def call(builder, name: str, result, arguments: list):
    """An LLVM intrinsic by its name."""
    function_type = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), arguments)


def constant_of(literal) -> int:
    """Value of an argument that must be a constant."""
    if not isinstance(literal, types.Literal):
        raise TypeError(f"{literal} must be a constant, such as a variable of the kernel's closure")
    return literal.literal_value


def everywhere(builder, number, element, lanes: int):
    """An int64, cut to an element, in all lanes."""
    vector = ir.VectorType(element, lanes)
    number = number if element == I64 else builder.trunc(number, element)
    alone = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.Constant(I32, 0))
    return builder.shuffle_vector(alone, alone, lanes_of([0] * lanes))


def concatenated(builder, vectors: list):
    """One LLVM vector of the lanes of several."""
    while len(vectors) > 1:
        lanes = vectors[0].type.count
        halves = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [builder.shuffle_vector(low, high, lanes_of(list(range(2 * lanes)))) for low, high in halves]
    return vectors[0]
