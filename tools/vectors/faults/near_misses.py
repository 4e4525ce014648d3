"""Files one step from what a check allows, on one side or the other: what readers whose checks are off by one miss.

`tools/vectors/mutants.py` finds such readers.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import zstandard

import sparsefmt
from tools.taken_apart import END_MAGIC, TRAILER, TakenApart, checksum_of_index, decoded, encoded, join, split
from tools.taken_apart import preamble as empty_preamble
from tools.vectors.faults import rans_files
from tools.vectors.faults.changes import (
    BASES,
    array,
    changed,
    faults,
    fields,
    index,
    preamble,
    record,
    saved,
    top,
    trailer,
    whole,
)
from tools.vectors.faults.rans import (
    CLASSES,
    ELEMENTS,
    EVERY_BYTE,
    HEAD,
    NUMBER_OF_128,
    POSITIONS,
    TWO_BINS,
    TWO_ROW_SYMBOLS,
    bits_of,
    coded,
    elements,
    elements_changed,
    number,
    positions,
)

tall = np.zeros((1 << 16, 1), np.uint8)
tall[::999] = 7
BASES["65,536 rows zstd"] = saved("bitmask", "zstd", w=tall)
BASES["1 x 1"] = saved("bitmask", "raw", w=np.ones((1, 1), np.float32))
BASES["stack of 1 x 1"] = partial(
    sparsefmt.save, {"w": np.ones((1, 1, 1), np.float32)}, layout="bitmask", codec="raw", row_dims=2
)
BASES["scalar"] = saved("dense", "raw", w=np.array(1.5, np.float32))


def sevens(*sizes: int):
    """Vectors of so many bytes."""
    return saved("dense", "raw", **{f"v{number}": np.full(size, 7, np.uint8) for number, size in enumerate(sizes)})


BASES["about 32 KiB"] = sevens(3, 32768, 1, 32704, 1, 32769)
BASES["multiples of 8 and 16"] = sevens(1, 32776, 9, 32784)
BASES["multiples of 32 and 64"] = sevens(17, 32800, 33, 32832)
for _size in 255, 256, 65535, 65536:
    BASES[f"{_size} bytes"] = sevens(1, _size)
BASES["scalars"] = saved("dense", "raw", w=np.array(2, np.uint8), v=np.array(1, np.uint8))
BASES["two vectors"] = saved("dense", "raw", v=np.arange(8, dtype=np.uint8), w=np.arange(8, 16, dtype=np.uint8))

# 2.1, 2.3


def with_index_at(offset: int):
    """The trailer says that the index begins there."""

    def change(data: bytes) -> bytes:
        before = data[: -TRAILER.size]
        index = before[offset:]
        return before + TRAILER.pack(len(index), checksum_of_index(before, index), END_MAGIC)

    return whole(change)


faults("not-sparsefmt", "bitmask raw", {"greater magic": preamble(0, 0x8A)})
faults(
    "index-malformed", "bitmask raw", {"preamble and trailer alone": whole(lambda data: join(empty_preamble(), b""))}
)
faults("index-size", "bitmask raw", {"over the limit by 1": trailer(0, lambda size: 2**28 + 1)})
faults(
    "index-out-of-bounds",
    "bitmask raw",
    {
        "as large as it may be": trailer(0, lambda size: 2**28),
        "at 0": with_index_at(0),
        "at 15": with_index_at(15),
    },
)
faults(
    "chunk-gap",
    "bitmask raw",
    {"zeros before the index": whole(lambda data: join(split(data)[0] + bytes(32), split(data)[1]))},
)
faults(
    "index-checksum",
    "bitmask raw",
    {"greater": trailer(1, lambda checksum: checksum + 1), "less": trailer(1, lambda checksum: checksum - 1)},
)

# 2.4
faults("ok", "bitmask raw", {"1025 texts of metadata": top(metadata={str(n): "" for n in range(1025)})})
faults("ok", "empty", {"ones beside a large dimension": fields(shape=[1, 1, 1, 1, 1, 0, 2**55])})
faults("ok", "1 x 1", {"a single element": lambda file: None})
faults("ok", "about 32 KiB", {"chunks of 32,704, 32,768 and 32,769 bytes": lambda file: None})
for _base in "multiples of 8 and 16", "multiples of 32 and 64":
    faults("ok", _base, {"where large chunks start": lambda file: None})
for _size in 255, 256, 65535, 65536:
    faults("ok", f"{_size} bytes", {"the largest chunk": lambda file: None})
faults("ok", "scalars", {"not in order": lambda file: None})
faults("ok", "stack of 1 x 1", {"a stack of one element": lambda file: None})
faults("tile-rows", "scalar", {"tiles of no dimension": fields(tile_rows=1)})
faults(
    "index-frame",
    "bitmask raw",
    {"31 bytes that decode": index(zstandard.compress(bytes(range(130, 152))))},
)
faults(
    "index-malformed",
    "bitmask raw",
    {"coded index of 32 bytes": index(zstandard.compress(bytes(range(130, 153))))},
)
faults(
    "index-malformed",
    "bitmask raw",
    {"coded index of nothing": index(zstandard.FRAME_HEADER + b"\x20\0" + bytes(24) + b"\1\0\0")},
)


def as_large_as_coded_may_become(more: int):
    """A text of the metadata is so long that the index has 32 times the bytes of its frame, and some more."""

    def change(content: bytes) -> bytes:
        for length in range(1 << 16):
            longer = encoded(decoded(content) | {"metadata": {"a": "a" * length}})
            coded = zstandard.ZstdCompressor(level=19).compress(longer)
            if len(longer) == 32 * len(coded) + more:
                return coded
        raise AssertionError("there is no such length")

    return lambda file: setattr(file, "change_index", change)


faults("ok", "1 x 1", {"coded index of 32 times its bytes": as_large_as_coded_may_become(0)})
faults("index-frame", "1 x 1", {"coded index of 32 times its bytes and one": as_large_as_coded_may_become(1)})
faults("ok", "65,536 rows zstd", {"the highest tile": lambda file: None})
faults("nnz", "bitmask raw", {"of the largest tile": fields(shape=[1, 2**31 - 1], nnz=2**31)})
faults(
    "layout-invalid",
    "empty",
    {"bitmask": fields(layout="bitmask", nnz=0, arrays={"mask": "raw", "slice_offsets": "raw", "values": "raw"})},
)
faults(
    "layout-invalid",
    "integers",
    {dtype: fields(dtype=dtype) for dtype in ("BOOL", "F6_E2M3", "F6_E3M2", "F8_E8M0")},
)
faults("chunk-assignment", "two vectors", {"shared": fields(first_chunk=0)})
faults(
    "chunk-size",
    "bitmask raw",
    {"as large as chunks may be": lambda file: file.chunks.__setitem__(1, (file.chunks[1][0], 2**36))},
)
faults(
    "chunk-checksum",
    "bitmask raw",
    {"greater": record(2, 2, lambda checksum: checksum + 1), "less": record(2, 2, lambda checksum: checksum - 1)},
)


def ratio(most: int, more: int):
    """The chunk of `values` has so many raw bytes for each stored one, and some more."""

    def change(file: TakenApart):
        values = file.number("values")

        def set_raw(records):
            records[values][1] = records[values][0] * most + more

        file.change_records = set_raw

    return change


for _base, _most in ("big dense", 1 << 15), ("dense rans", 1 << 18):
    faults("array-size", _base, {"greatest ratio": ratio(_most, 0)})
    faults("chunk-size", _base, {"ratio over the limit by 1 byte": ratio(_most, 1)})

# 4


def lengthened(**more: tuple[str, int]):
    """Zeros at the end of arrays: their dtype, and how many."""

    def change(file: TakenApart):
        for name, (dtype, count) in more.items():
            array(name, dtype, lambda content, count=count: np.append(content, np.zeros(count, content.dtype)))(file)

    return change


def one_slot_less(file: TakenApart) -> None:
    for name, dtype in ("columns", "u2"), ("values", "u4"):
        array(name, dtype, lambda content: content[:-16])(file)


def only_the_row_behind_the_last(file: TakenApart) -> None:
    """The second slice has 4 rows."""
    mask = file.array("mask")
    mask[2 * 70 :] = 0
    mask[2 * 70] = 1 << 4
    file.put("mask", mask)


def all_slots_and_one(file: TakenApart) -> None:
    """Two slices of 70 columns have at most 140 slots."""
    missing = 16 * 141 - file.array("columns", "u2").size
    lengthened(columns=("u2", missing), values=("u4", missing))(file)


faults("array-size", "full", {"a value more than positions": lengthened(values=("u4", 1))})
faults(
    "array-size",
    "permuted raw",
    {
        "a slot more than columns": all_slots_and_one,
        "a part of a slot": lengthened(values=("u4", 1)),
        "a byte less of negative zeros": array("negative_zeros", "u1", lambda signs: signs[:-1]),
    },
)
faults("slice-offsets", "permuted raw", {"one slot less": one_slot_less})
faults("mask-padding", "positive bitmask", {"only the row behind the last": only_the_row_behind_the_last})

# 5.3

BASES["1024 of u16"] = saved("auto", "raw", w=np.arange(1024, dtype=np.uint16))
BASES["10 x 10"] = saved("dense", "raw", w=np.arange(100, dtype=np.uint16).reshape(10, 10))
for _cols in 1 << 20, (1 << 20) + 1:
    BASES[f"{_cols:,} columns"] = saved("bitmask", "zstd", w=np.zeros((1, _cols), np.uint8))
EVEN = (8, [128, 128])


def with_states_missing() -> bytes:
    """A chunk of 1024 elements whose stream ends within its 8 states."""
    chunk = rans_files.encode_elements([0] * 1024, [0] * 1024, [1, 1], [EVEN] * 1024)
    return chunk[: 8 + 1024 // 8 + 28]


def beginning_below_2_16() -> tuple[bytes, bytes]:
    """A model, and a chunk that decodes well, but its first state is just too small: a word was taken out too soon."""
    frequencies = [200, 56]
    for ones in range(100):
        bins = [0] * (100 - ones) + [1] * ones
        chunk = rans_files.encode_elements(bins, [0] * 100, [1, 1], [(8, frequencies)] * 100)
        before, stream = chunk[: 8 + 16], chunk[8 + 16 :]
        state = int.from_bytes(stream[:4], "little")
        # before the first element, which is in bin 0, was encoded
        high, low = divmod(200 * (state >> 8) + state % 256, 1 << 16)
        first = (high // 200 << 8) + high % 200
        if 1 << 15 <= first < 1 << 16:
            break
    return (
        bits_of(HEAD, TWO_BINS, number(2 * (200 - 128), 6)),
        before + first.to_bytes(4, "little") + low.to_bytes(2, "little") + stream[4:],
    )


def with_a_frequency_of_0() -> tuple[bytes, bytes]:
    """A model of 16 bits and of three bins, the second of which has frequency 0 and does not occur; and a chunk."""
    tree = "1" * 15 + "01" + "01" + "1" + "01" + "00" + "00" * 13  # keys 0, 1 and 2
    out = rans_files.BitsOut("00" + "0" + "000000" + "000" + CLASSES + tree)
    rans_files.put_bins(out, [100, 0, 156], [0, 0, 0], 8)
    chunk = rans_files.encode_elements([0, 2, 2, 0, 2] * 20, [0] * 100, [0, 0, 0], [(8, [100, 0, 156])] * 100)
    return out.done(), chunk


def popcounts(f: list[int]) -> str:
    out = rans_files.BitsOut("1")
    rans_files.put_popcounts(out, f)
    return "".join(map(str, out.bits))


def of_two_classes_of_columns(bits: int):
    """And of one class of rows: 100 elements of so many bits in 10 columns."""

    def change(file: TakenApart) -> None:
        tables, classes = [EVEN, (8, [200, 56])], [0, 1] * 5
        head = "00" + "0" + "000000" + "000" + "00000" + "10000" + "1"
        out = rans_files.BitsOut(head + "1" * (bits - 1) + "01" * 2 + "00" * (bits - 2))
        for precision, frequencies in tables:
            rans_files.put_used_bins(out, frequencies, [1, 1], precision)
        rans_files.put_symbols(out, [2048, 2048], 12)
        model = out.done() + rans_files.encode_stream(classes, [(12, [2048, 2048])] * 10)
        bins, offsets = [element // 2 for element in ELEMENTS], [element % 2 for element in ELEMENTS]
        chunk = rans_files.encode_elements(bins, offsets, [1, 1], [tables[c] for c in classes * 10])
        coded("values", 100 * bits // 8, chunk, model)(file)

    return change


def classes_of_columns(array: str, c: int):
    """A model of bytes, of one bin and two classes of columns, and a chunk that is too short."""
    out = rans_files.BitsOut("00" + "0" + "000000" + "000" + "00000" + "10000" + "0" + "01" + TWO_ROW_SYMBOLS)
    model = out.done() + rans_files.encode_stream([0] * c, [(12, [2048, 2048])] * c)

    def change(file: TakenApart) -> None:
        _, raw = file.chunks[file.number(array)]
        coded(array, raw, bytes(16), model)(file)

    return change


def of_one_column(file: TakenApart) -> None:
    """100 rows of one column, which is of class 1."""
    tables = [EVEN, (8, [200, 56])]
    out = rans_files.BitsOut("00" + "0" + "000000" + "000" + "00000" + "10000" + "1" + TWO_BINS)
    for _, frequencies in tables:
        rans_files.put_used_bins(out, frequencies, [1, 1], 8)
    rans_files.put_symbols(out, [2048, 2048], 12)
    model = out.done() + rans_files.encode_stream([1], [(12, [2048, 2048])])
    bins, offsets = [element // 2 for element in ELEMENTS], [element % 2 for element in ELEMENTS]
    coded("values", 200, rans_files.encode_elements(bins, offsets, [1, 1], [tables[1]] * 100), model)(file)


def a_group_of_one_column(file: TakenApart) -> None:
    """A mask of 5 x 65, whose last column is of class 0."""
    every, few = [1] * 256, [100, 100, 0, 56, *[0] * 252]  # frequencies of groups of class 0, and of class 1
    out = rans_files.BitsOut("000" + "00000" + "0" + "10000" + "1" + EVERY_BYTE + "0")
    rans_files.put_symbols(out, few, 8)
    out.bits += rans_files.BitsOut(TWO_ROW_SYMBOLS).bits
    classes = rans_files.encode_stream([0, 1] * 32 + [0], [(12, [2048, 2048])] * 65)
    coded_bytes = [0, 3, 1, 0, 1] * 4 + [0, 0x81, 0, 0, 2] * 4 + [1, 0, 0, 1, 0]
    tables = [(8, few)] * 20 + [(8, every)] * 25  # group by group, of five rows each
    nnz = sum(byte.bit_count() for byte in coded_bytes)
    coded("mask", 65, rans_files.encode_stream(coded_bytes, tables), out.done() + classes, nnz=nnz)(file)
    file.put("slice_offsets", np.array([0, nnz], "<u4"))
    file.put("values", b"\1" * nnz)


def with_a_bit_less() -> bytes:
    """A chunk whose last offset bit is 0, and does not count."""
    chunk = rans_files.encode_elements([0] * 100, [1] * 99 + [0], [1, 1], [EVEN] * 100)
    return (99).to_bytes(8, "little") + chunk[8:]


def of_wide_masks(cols: int):
    """All columns of class 0 of two, and a chunk that is too short."""
    out = rans_files.BitsOut("000" + "00000" + "0" + "10000" + "0")
    out.bits += rans_files.BitsOut(popcounts([1] * 9)).bits
    rans_files.put_symbols(out, [4096, 0], 12)
    model = out.done() + (1 << 16).to_bytes(4, "little") * 32
    return coded("mask", cols, bytes(10), model, arrays={"mask": "rans", "slice_offsets": "zstd", "values": "zstd"})


faults(
    "rans-stream",
    "1024 of u16",
    {"end within states": coded("values", 2048, with_states_missing(), bits_of(HEAD, TWO_BINS, NUMBER_OF_128))},
)
faults(
    "rans-stream",
    "u16",
    {"right but for its first state": elements(*beginning_below_2_16())},
)
faults("rans-model", "u16", {"second frequency 0": elements(*with_a_frequency_of_0())})
faults(
    "rans-model",
    "5 x 70",
    {"popcounts over by 1": positions(model=bits_of(POSITIONS, popcounts([0] + [1] * 7 + [3]) * 2, TWO_ROW_SYMBOLS))},
)
faults(
    "rans-stream", "u16", {"an offset bit less": elements(bits_of(HEAD, TWO_BINS, NUMBER_OF_128), with_a_bit_less())}
)
faults("rans-stream", "u16", {"2^56 offset bits more": elements_changed(lambda chunk: changed(chunk, 7, 1))})
faults("rans-stream", "5 x 70", {"2^24 bytes of rows more": positions(value=lambda chunk: changed(chunk, 3, 1))})
faults("ok", "u16", {"one column of class 1": of_one_column})
BASES["5 x 65"] = saved("bitmask", "raw", w=np.zeros((5, 65), np.uint8))
faults("ok", "5 x 65", {"a group of one column": a_group_of_one_column})
faults("ok", "10 x 10", {"two classes of columns": of_two_classes_of_columns(16)})
BASES["10 x 10 of u8"] = saved("dense", "raw", w=np.arange(100, dtype=np.uint8).reshape(10, 10))
faults("ok", "10 x 10 of u8", {"two classes of columns": of_two_classes_of_columns(8)})
faults("rans-model", "bitmask raw", {"classes of negative zeros": classes_of_columns("negative_zeros", 70)})
faults("rans-model", "packed", {"classes of packed values": classes_of_columns("values", 3)})

# 5.2

BASES["600 sevens zstd"] = saved("dense", "raw", w=np.full(600, 7, np.uint8))


def in_a_window_of_1024(file: TakenApart) -> None:
    """One block of a byte that is repeated, in a frame that says its content size and the least window possible."""
    head = bytes.fromhex("28B52FFD 40 00") + (600 - 256).to_bytes(2, "little")
    file.entry()["arrays"]["values"] = "zstd"
    file.chunks[0] = (head + (600 << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\7", 600)


faults("ok", "600 sevens zstd", {"window of 1024": in_a_window_of_1024})
faults("rans-model", "1,048,577 columns", {"classes of columns": of_wide_masks(2**20 + 1)})
faults("rans-stream", "1,048,576 columns", {"classes of columns": of_wide_masks(2**20)})
