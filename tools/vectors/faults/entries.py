"""Faults of tensors and chunks in the index (SPEC.md, section 2.4 on), and files that look faulty and are not."""

from __future__ import annotations

import msgpack
import numpy as np
import zstandard

from tools.taken_apart import Encoded, TakenApart, canonical, with_kinds
from tools.vectors.faults.changes import (
    ALIAS,
    COPY,
    array,
    arrays,
    both,
    entry_named,
    faults,
    fields,
    index,
    kinds,
    preamble,
    record,
)


def swapped_kinds(file: TakenApart) -> None:
    """The numbers of kinds need not be in the order of the tensors."""
    file.index = with_kinds(file.index)
    file.index["kinds"].reverse()
    for entry in file.index["tensors"].values():
        entry["kind"] = 1 - entry["kind"]


def equal_kinds(file: TakenApart) -> None:
    """Each tensor gets a kind of its own, and these are equal."""
    file.index = with_kinds(file.index)
    file.index["kinds"].append(file.index["kinds"][0])
    file.index["tensors"]["x"] = ALIAS
    file.index["tensors"]["v"]["kind"] = 1


FRAME_OF_2_24 = zstandard.FRAME_HEADER + bytes([0xA0]) + (2**24 + 1).to_bytes(4, "little") + bytes(2**9)
"""What begins as a frame of a byte more than an index may have."""


def coded(change):
    """The index as a zstd frame, changed."""
    return index(lambda content: change(zstandard.ZstdCompressor(level=19).compress(content)))


# 2.4: tensors
def too_many_tensors(file: TakenApart) -> None:
    file.index = with_kinds(file.index)
    names = [b"%05x" % n for n in range(2**20)]
    entries = [canonical("w") + canonical(file.entry())]
    entries += [bytes([0xA0 + len(name)]) + name + b"\x81\xa8alias_of\xa1w" for name in names]
    entries.append(entries.pop(0))  # "w" is behind all hexadecimal digits
    file.index["tensors"] = Encoded(msgpack.Packer().pack_map_header(len(entries)) + b"".join(entries))


faults("tensor-count", "full", {"too many": too_many_tensors}, slow=True)
faults("name-invalid", "bitmask raw", {"empty": entry_named("", ALIAS), "NUL": entry_named("a\0b", ALIAS)})
faults("name-length", "bitmask raw", {"1025 bytes": entry_named("é" * 512 + "a", ALIAS)})
faults(
    "alias-invalid",
    "bitmask raw",
    {
        "of nothing": entry_named("x", {"alias_of": "y"}),
        "of itself": entry_named("x", {"alias_of": "x"}),
        "copy of nothing": entry_named("x", {"copy_of": "y"}),
        "copy of a copy": lambda file: file.index["tensors"].update(x=COPY, y={"copy_of": "x"}),
        "copy of an alias": lambda file: file.index["tensors"].update(x=ALIAS, y={"copy_of": "x"}),
        "alias of an alias of a copy": lambda file: file.index["tensors"].update(
            x=COPY, y={"alias_of": "x"}, z={"alias_of": "y"}
        ),
        "of an alias": lambda file: file.index["tensors"].update(x=ALIAS, y={"alias_of": "x"}),
    },
)
faults(
    "kind-invalid",
    "bitmask raw",
    {
        "of none": fields(kind=2),
        "huge": fields(kind=2**63 - 1),
        "of no tensor": kinds(lambda kinds: kinds.append(dict(kinds[0]))),
    },
)
faults(
    "ok",
    "bitmask raw",
    {
        "kinds in another order": swapped_kinds,
        "unknown key in a kind of a greater minor version": both(
            kinds(lambda kinds: kinds[0].update(later=1)), preamble(10, 1)
        ),
    },
)
faults("ok", "dense raw", {"two equal kinds": equal_kinds})
faults(
    "index-frame",
    "bitmask raw",
    {
        "cut": coded(lambda frame: frame[:-1]),
        "byte behind": coded(lambda frame: frame + b"\0"),
        "two frames": coded(lambda frame: frame + zstandard.compress(b"")),
        "no content size": index(lambda index: zstandard.ZstdCompressor(write_content_size=False).compress(index)),
        "31 bytes": index(zstandard.compress(b"\x93" + bytes(17))),
        "magic only": index(zstandard.FRAME_HEADER),
        "over 32 times": index(lambda index: zstandard.compress(index + bytes(2**16))),
        "damaged": coded(lambda frame: frame[:9] + b"\xff\xff\xff" + frame[12:]),
    },
)
faults("index-size", "bitmask raw", {"coded": index(FRAME_OF_2_24)})
faults(
    "index-malformed",
    "bitmask raw",
    {"coded twice": index(lambda index: zstandard.compress(zstandard.compress(index)))},
)
faults("ok", "bitmask raw", {"coded index": coded(lambda frame: frame)})
faults("dtype-unknown", "bitmask raw", {"F33": fields(dtype="F33"), "f32": fields(dtype="f32")})
faults("layout-unknown", "bitmask raw", {"csr": fields(layout="csr")})
faults("codec-unknown", "bitmask raw", {"lz4": arrays(values="lz4")})
faults("shape-ndim", "dense raw", {"33": fields("v", shape=[70] + [1] * 32)})
faults("shape-size", "empty", {"2^63 bits": fields(shape=[0, 2**58]), "product": fields(shape=[2**62, 0, 2**62])})
faults(
    "layout-invalid",
    "positive bitmask",
    {"dtype": fields(dtype="C64"), "packed dtype": fields(dtype="F4"), "1-d": fields(shape=[1400])},
)
faults(
    "tile-rows",
    "dense raw",
    {
        "0": fields(tile_rows=0),
        "all rows": fields(tile_rows=20),
        "over rows": fields(tile_rows=21),
        "huge": fields(tile_rows=2**62),
    },
)
faults(
    "tile-rows",
    "empty",
    {"tile_rows without tiles": fields(tile_rows=1), "first_chunk without tiles": fields(first_chunk=2)},
)


faults(
    "row-dims",
    "stack",
    {
        "0": fields(row_dims=0),
        "1": fields(row_dims=1),
        "all dimensions": fields(row_dims=3),
        "huge": fields(row_dims=2**62),
        "of a matrix": fields(shape=[40, 9], row_dims=2),
        "without elements": fields("e", row_dims=2),
    },
)
faults(
    "tile-rows",
    "stack",
    {
        "rows of two matrices": fields(tile_rows=40),
        "rows of one matrix": fields(tile_rows=20),
        "no divisor": fields(tile_rows=16),
        "more than a matrix": fields(tile_rows=24),
    },
)
faults("tile-rows", "packed stack", {"matrices of 4 rows": fields(shape=[4, 4, 5])})


def split(tile_rows: int):
    """A dense tensor of one tile in tiles of so many rows."""

    def change(file: TakenApart):
        file.entry()["tile_rows"] = tile_rows
        (stored, _), columns = file.chunks[0], file.entry()["shape"][1]
        step = tile_rows * columns // 2
        file.chunks = [(stored[at : at + step], len(stored[at : at + step])) for at in range(0, len(stored), step)]

    return change


faults("ok", "packed", {"tiles of 8 rows": split(8), "tiles of 16 rows": split(16)})
faults("tile-rows", "packed", {"tiles of 4 rows": split(4), "tiles of 10 rows": split(10)})
faults(
    "tile-size",
    "bitmask raw",
    {
        "rows": fields(shape=[65537, 70]),
        "positions": fields(shape=[65536, 32768]),
        "columns": fields(shape=[1, 2**31 + 1]),
        "rows of a matrix": fields(shape=[2, 65537, 70], row_dims=2),
    },
)
faults(
    "array-set",
    "bitmask raw",
    {"one more": arrays(zeros="raw"), "one less": arrays(mask=...), "none": fields(arrays={})},
)
faults(
    "array-set",
    "dense raw",
    {"negative_zeros": arrays(negative_zeros="raw"), "other": fields(arrays={"valuez": "raw"})},
)
faults("array-set", "integers", {"negative_zeros": arrays(negative_zeros="raw")})
for _base in "positive bitmask", "positive permuted", "positive gaps":
    faults(
        "nnz",
        _base,
        {
            "over the elements": fields(nnz=1401),
            "one less": lambda file: file.entry().update(nnz=file.entry()["nnz"] - 1),
        },
    )
faults("negative-zeros-dropped", "bitmask raw", {"over the elements": fields(negative_zeros_dropped=1401)})
faults("negative-zeros-dropped", "integers", {"dtype without": fields(negative_zeros_dropped=1)})


# 2.2
def no_chunks(file: TakenApart) -> None:
    file.chunks, file.index["tensors"] = [], {}
    file.preamble += bytes(64)


def sizes(number: int, change: int):
    """Another size of a chunk that is stored raw, which its bytes do not have."""

    def change_records(records: list[list[int]]) -> None:
        records[number][0] += change
        records[number][1] += change

    return lambda file: setattr(file, "change_records", change_records)


faults(
    "chunk-limit",
    "bitmask raw",
    {"stored": record(1, 0, lambda size: 2**36 + 1), "raw": record(1, 1, lambda size: 2**64 - 1)},
)
faults(
    "chunk-out-of-bounds",
    "bitmask raw",
    {"by little": sizes(2, 64), "far": sizes(2, 2**20), "huge": sizes(2, 2**36 - 2**10), "last": sizes(4, 8)},
)
faults(
    "chunk-gap",
    "bitmask raw",
    {
        "chunk": sizes(0, -8),
        "last": sizes(4, -4),
        "index": lambda file: file.behind.update({4: bytes(64)}),
        "index by a byte": lambda file: file.behind.update({4: bytes(1)}),
        "no chunks": no_chunks,
    },
)
faults(
    "chunk-assignment",
    "bitmask raw",
    {
        "of none": lambda file: file.chunks.append((b"a", 1)),
        "empty, of none": lambda file: file.chunks.append((b"", 0)),
        "does not exist": lambda file: file.chunks.__delitem__(-1),
        "gap": fields("v", first_chunk=5),
        "far": fields("v", first_chunk=2**63 - 1),
    },
)
faults("chunk-assignment", "dense raw", {"of several": lambda file: file.index["tensors"].update(x=dict(file.entry()))})
faults(
    "chunk-size",
    "bitmask raw",
    {
        "stored over raw": lambda file: file.chunks.__setitem__(2, (file.chunks[2][0] + b"\0", file.chunks[2][1])),
        "raw codec": lambda file: file.chunks.__setitem__(2, (file.chunks[2][0], file.chunks[2][1] + 4)),
    },
)
faults("chunk-size", "big dense", {"ratio": lambda file: file.chunks.__setitem__(0, (b"a" * 31, 2**20))})
faults(
    "array-size",
    "bitmask raw",
    {
        "mask": array("mask", "u1", lambda mask: mask[:-1]),
        "mask of a row more": array("mask", "u1", lambda mask: np.append(mask, mask[:70] * 0)),
        "part": array("values", "u1", lambda values: values[:-1]),
        "slice_offsets": array("slice_offsets", "u4", lambda offsets: offsets[:-1]),
        "an offset for each row": array("slice_offsets", "u4", lambda offsets: np.append(offsets, offsets[:18])),
        "negative_zeros": array("negative_zeros", "u1", lambda signs: np.append(signs, signs[:1] * 0)),
    },
)
for _array, _dtype in {
    "row_counts": "u4",
    "row_permutation": "u2",
    "slice_offsets": "u4",
    "values": "u4",
    "columns": "u2",
}.items():
    faults("array-size", "permuted raw", {_array: array(_array, _dtype, lambda content: content[:-1])})
faults(
    "array-size",
    "permuted raw",
    {
        "columns of a slot": array("columns", "u2", lambda columns: columns[:-16]),
        "negative_zeros": array("negative_zeros", "u1", lambda signs: np.append(signs, signs[:1] * 0)),
    },
)
faults(
    "array-size",
    "gaps raw",
    {
        "gaps": array("gaps", "u1", lambda gaps: gaps[:-1]),
        "gaps of a slot": array("gaps", "u1", lambda gaps: gaps[:-16]),
        "gaps of 16 bits": array("gaps", "u1", lambda gaps: np.repeat(gaps, 2)),
        "values": array("values", "u4", lambda values: values[:-16]),
    },
)
faults("array-size", "dense raw", {"values": array("values", "u4", lambda values: values[:-1])})
faults("chunk-checksum", "bitmask raw", {"checksum": record(2, 2, lambda checksum: checksum ^ 1)})
