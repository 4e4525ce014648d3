"""Sixteen rows on their way to columns side by side, and back, in the vectors of 64 bytes that AVX-512 has.

What `registers.py` does in several steps through memory is done in registers here: sixteen rows of a vector each are
turned over, so that their columns follow one another, and are compressed or expanded by instructions that take a mask.
Addresses are plain int64, and nothing is checked.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sparsefmt.isa import ISA
from sparsefmt.llvm import I1, I32, I64, call, everywhere, integer, lanes_of, load_as, store_at

BYTES = 64
"""Bytes of a vector: a row of a block, and what may be read or written beyond the elements of one."""

WIDE = ISA == "avx512"
"""Whether there are such instructions. Elsewhere what is here does nothing."""

_ROWS = 16


def _vector_of(like) -> ir.VectorType:
    nbits = like.dtype.bitwidth
    return ir.VectorType(ir.IntType(nbits), 8 * BYTES // nbits)


def _by_columns(builder, rows: list) -> list:
    """Sixteen rows as sixteen vectors with their columns behind each other, of sixteen elements each.

    Interleaving vector i with vector i + 8, four times, moves the number of a row to the lowest bits of a place.
    """
    count = rows[0].type.count
    lanes = [lane for pair in zip(range(count), range(count, 2 * count), strict=True) for lane in pair]
    for _ in range(4):
        pairs = zip(rows[: _ROWS // 2], rows[_ROWS // 2 :], strict=True)
        rows = [
            builder.shuffle_vector(low, high, lanes_of(lanes[begin : begin + count]))
            for low, high in pairs
            for begin in (0, count)
        ]
    return rows


def _by_rows(builder, columns: list) -> list:
    """Undo `_by_columns`."""
    count = columns[0].type.count
    for _ in range(4):
        parts = [
            [
                builder.shuffle_vector(columns[number], columns[number + 1], lanes_of(list(range(odd, 2 * count, 2))))
                for number in range(0, _ROWS, 2)
            ]
            for odd in (0, 1)
        ]
        columns = parts[0] + parts[1]
    return columns


def _suffix(vector: ir.VectorType) -> str:
    return f"v{vector.count}i{vector.element.width}"


def _stored(builder, mask, nbytes: int):
    """Bytes that the elements of a mask take."""
    word = mask if mask.type == I64 else builder.zext(mask, I64)
    return builder.mul(builder.ctpop(word), integer(nbytes))


@intrinsic
def compress_block(typingctx, address, stride, kept, masks, out, like):
    """Take sixteen rows of 64 bytes from `address` on, `stride` bytes apart, each read once.

    What is not zero, which has a bit of those in `kept`, goes to `out`, column by column, and to `masks` 16 bits for
    each column, which say where it was. Returns the address behind what was written, where up to 64 bytes become 0.
    """
    nbytes = like.dtype.bitwidth // 8

    def codegen(context, builder, signature, args):
        source, stride, kept, masks, out, _ = args
        if not WIDE:
            return out
        vector = _vector_of(like)
        word, flags = ir.IntType(vector.count), ir.VectorType(I1, vector.count)
        nothing = ir.Constant(vector, None)
        rows = []
        for _ in range(_ROWS):
            rows.append(load_as(builder, source, vector, nbytes))
            source = builder.add(source, stride)
        wanted = everywhere(builder, kept, vector.element, vector.count)
        for columns in _by_columns(builder, rows):
            present = builder.icmp_unsigned("!=", builder.and_(columns, wanted), nothing)
            mask = builder.bitcast(present, word)
            store_at(builder, masks, mask, 1)
            masks = builder.add(masks, integer(vector.count // 8))
            arguments = [columns, nothing, builder.bitcast(mask, flags)]
            name = f"llvm.x86.avx512.mask.compress.{_suffix(vector)}"
            store_at(builder, out, call(builder, name, vector, arguments), nbytes)
            out = builder.add(out, _stored(builder, mask, nbytes))
        return out

    int64 = types.int64
    return int64(int64, int64, int64, int64, int64, like), codegen


@intrinsic
def compress_part(typingctx, address, kept, out, out_columns, first, like):
    """Take 64 bytes of a row, read once: what is not zero goes to `out`, and its columns, uint32, to `out_columns`.

    first: the column of the first element. Returns how many elements there were. Writes 64 bytes, whatever they are, to
    `out`, and a uint32 for each element that was read to `out_columns`.
    """
    nbytes = like.dtype.bitwidth // 8

    def codegen(context, builder, signature, args):
        source, kept, out, out_columns, first, _ = args
        if not WIDE:
            return integer(0)
        vector = _vector_of(like)
        nothing = ir.Constant(vector, None)
        elements = load_as(builder, source, vector, nbytes)
        wanted = everywhere(builder, kept, vector.element, vector.count)
        present = builder.icmp_unsigned("!=", builder.and_(elements, wanted), nothing)
        name = f"llvm.x86.avx512.mask.compress.{_suffix(vector)}"
        store_at(builder, out, call(builder, name, vector, [elements, nothing, present]), nbytes)
        word = builder.bitcast(present, ir.IntType(vector.count))
        word = word if word.type == I64 else builder.zext(word, I64)
        lanes = min(vector.count, _ROWS)
        columns = ir.VectorType(I32, lanes)
        for group in range(0, vector.count, lanes):
            flags = builder.trunc(builder.lshr(word, integer(group)), ir.IntType(lanes))
            numbers = builder.add(everywhere(builder, first, I32, lanes), lanes_of(list(range(group, group + lanes))))
            arguments = [numbers, ir.Constant(columns, None), builder.bitcast(flags, ir.VectorType(I1, lanes))]
            found = call(builder, f"llvm.x86.avx512.mask.compress.{_suffix(columns)}", columns, arguments)
            store_at(builder, out_columns, found, 4)
            out_columns = builder.add(out_columns, _stored(builder, flags, 4))
        return builder.ctpop(word)

    int64 = types.int64
    return int64(int64, int64, int64, int64, int64, like), codegen


@intrinsic
def turn_block(typingctx, address, stride, out, like):
    """Turn sixteen rows of 64 bytes over, `stride` bytes apart: column by column, sixteen elements each, to `out`."""
    nbytes = like.dtype.bitwidth // 8

    def codegen(context, builder, signature, args):
        source, stride, out, _ = args
        if WIDE:
            rows = []
            for _ in range(_ROWS):
                rows.append(load_as(builder, source, _vector_of(like), nbytes))
                source = builder.add(source, stride)
            for columns in _by_columns(builder, rows):
                store_at(builder, out, columns, nbytes)
                out = builder.add(out, integer(BYTES))
        return context.get_dummy_value()

    int64 = types.int64
    return types.void(int64, int64, int64, like), codegen


@intrinsic
def expand_block(typingctx, address, masks, out, stride, like):
    """Undo `compress_block`: from `address` and `masks` to sixteen rows of 64 bytes at `out`, `stride` bytes apart.

    Returns the address behind what was read. Reads 64 bytes more.
    """
    nbytes = like.dtype.bitwidth // 8

    def codegen(context, builder, signature, args):
        source, masks, out, stride, _ = args
        if not WIDE:
            return source
        vector = _vector_of(like)
        word, flags = ir.IntType(vector.count), ir.VectorType(I1, vector.count)
        columns = []
        for _ in range(_ROWS):
            mask = load_as(builder, masks, word, 1)
            masks = builder.add(masks, integer(vector.count // 8))
            arguments = [
                load_as(builder, source, vector, nbytes),
                ir.Constant(vector, None),
                builder.bitcast(mask, flags),
            ]
            columns.append(call(builder, f"llvm.x86.avx512.mask.expand.{_suffix(vector)}", vector, arguments))
            source = builder.add(source, _stored(builder, mask, nbytes))
        for row in _by_rows(builder, columns):
            store_at(builder, out, row, nbytes)
            out = builder.add(out, stride)
        return source

    int64 = types.int64
    return int64(int64, int64, int64, int64, like), codegen
