"""Faults of the container (SPEC.md, section 2), and files that look faulty and are not."""

from __future__ import annotations

import msgpack
import numpy as np
import zstandard

from tools.taken_apart import Encoded, TakenApart, canonical, records_of, with_kinds
from tools.vectors.faults.changes import (
    array,
    arrays,
    both,
    elements,
    entry_named,
    faults,
    fields,
    index,
    kinds,
    later,
    nested,
    preamble,
    raw_index,
    record,
    top,
    trailer,
    whole,
)

ALIAS, COPY = {"alias_of": "w"}, {"copy_of": "w"}


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


faults(
    "ok",
    "bitmask raw",
    {
        "as it was": lambda file: None,
        "a greater minor version": preamble(10, 7),
        "an alias": entry_named("x", ALIAS),
        "a copy": entry_named("x", COPY),
        "an alias of a copy": lambda file: file.index["tensors"].update(x=COPY, y={"alias_of": "x"}),
        "unknown keys of a greater minor version": later({"a": [b"", "", 2**64 - 1, {}]}),
        "unknown key in an entry of a greater minor version": fields(minor=1, later=1),
        "name of 1024 bytes": entry_named("é" * 512, ALIAS),
        "name of 256 emoji": entry_named("\U0001f600" * 256, ALIAS),
        "name that begins with U+FEFF": entry_named("\ufeffw", ALIAS),
        "32 dimensions": fields(shape=[20, 70] + [1] * 30),
        "negative_zeros_dropped": fields(negative_zeros_dropped=1400),
        "metadata at its limit": lambda file: top(metadata={"a": "b" * (2**24 - 1)})(file),
    },
)
faults(
    "ok",
    "bitmask zstd",
    {"negative zeros as they are": lambda file: file.put("negative_zeros", file.array("negative_zeros"))},
)

# 2.1, 2.3
faults("not-sparsefmt", "bitmask raw", {"magic": preamble(0, 0x88), "nothing": whole(lambda data: b"")})
faults(
    "file-too-short",
    "bitmask raw",
    {"magic only": whole(lambda data: data[:8]), "35 bytes": whole(lambda data: data[:35])},
)
faults("version-unsupported", "bitmask raw", {"major 2": preamble(8, 2), "major 0": preamble(8, 0)})
faults("feature-unsupported", "bitmask raw", {"bit 0": preamble(12, 1), "bit 31": preamble(15, 128)})
faults(
    "trailer-missing",
    "bitmask raw",
    {"cut off": whole(lambda data: data[:-1]), "end magic": whole(lambda data: data[:-1] + b"\0")},
)
faults("index-size", "bitmask raw", {"huge": trailer(0, lambda size: 2**32 - 1)})
faults(
    "index-out-of-bounds",
    "bitmask raw",
    {
        "too large": trailer(0, lambda size: size + 2**16),
        "over the file": trailer(0, lambda size: 2**27),
    },
)
faults(
    "index-checksum",
    "bitmask raw",
    {
        "checksum": trailer(1, lambda checksum: checksum ^ 1),
        "minor": whole(lambda data: data[:10] + b"\1" + data[11:]),
        "index": whole(lambda data: data.replace(b"arrays", b"arrayt")),
        "too small": trailer(0, lambda size: size - 1),
        "too large": trailer(0, lambda size: size + 1),
    },
)
faults(
    "padding-not-zero",
    "mapped raw",
    {
        "byte 16": lambda file: file.preamble.extend(b"\1"),
        "byte 63": lambda file: file.preamble.extend(bytes(47) + b"\1"),
        "before a mapped chunk": lambda file: file.behind.update({2: bytes(35) + b"\1"}),
        "before a small chunk": lambda file: file.behind.update({1: b"\1"}),
    },
)
for _n in 1, 2, 3:
    faults(
        "padding-not-zero", "bitmask raw", {f"behind chunk {_n}": lambda file, n=_n: file.behind.update({n: b"\0\1"})}
    )

# 2.4: msgpack
faults(
    "index-malformed",
    "bitmask raw",
    {
        "empty": index(b""),
        "cut": index(lambda index: index[:-1]),
        "reserved byte": index(b"\xc1"),
        "extension": index(b"\xd4\1\1"),
        "trailing byte": index(lambda index: index + b"\0"),
        "nested deeply": index(b"\x91" * 10**5 + b"\0"),
        "extension of no bytes": later(Encoded(b"\xc7\0\1")),
        "timestamp": later(Encoded(b"\xd6\xff\0\0\0\0")),
        "key of type integer": later(Encoded(b"\x81\1\1")),
        "UTF-8": later(Encoded(b"\xa1\xff")),
        "surrogate": later(Encoded(b"\xa3\xed\xa0\x80")),
    },
)
faults(
    "index-malformed",
    "bitmask raw",
    {
        "key of type bin": later(Encoded(b"\x81\xc4\1a\1")),
        "long array": later([0] * 1025),
        "17 levels": later(nested(15)),
        "many levels": later(nested(200)),
        "2,000 levels": later(nested(2000)),
    },
)
faults(
    "ok", "bitmask raw", {"long array": later([0] * 1024), "16 levels": later(nested(14)), "2^64 - 1": later(2**64 - 1)}
)
faults(
    "index-type",
    "bitmask raw",
    {
        "nil": later(None),
        "true": later(True),
        "negative": later(-1),
        "negative of 8 bits": later(-33),
        "negative of 16 bits": later(-(2**7) - 1),
        "negative of 32 bits": later(-(2**15) - 1),
        "negative of 64 bits": later(-(2**31) - 1),
        "float": later([1.5]),
        "float of 32 bits": later(Encoded(b"\xca\x3f\xc0\0\0")),
        "known key, nil": fields(tile_rows=None),
        "known key, float": fields(nnz=1.5),
        "metadata": raw_index(metadata=[]),
        "nil in metadata": top(metadata={"a": None}),
        "true in metadata": top(metadata={"a": True}),
        "negative in metadata": top(metadata={"a": -1}),
        "float in metadata": top(metadata={"a": 1.5}),
    },
)
faults(
    "index-not-canonical",
    "bitmask raw",
    {
        "integer": fields(tile_rows=Encoded(b"\xcc\x14")),
        "later integer": later(Encoded(b"\xcc\5")),
        "later integer of 16 bits": later(Encoded(b"\xcd\0\xff")),
        "later integer of 32 bits": later(Encoded(b"\xce\0\0\xff\xff")),
        "later integer of 64 bits": later(Encoded(b"\xcf\0\0\0\0\xff\xff\xff\xff")),
        "tile_rows of 64 bits": fields(tile_rows=Encoded(b"\xcf" + (20).to_bytes(8, "big"))),
        "signed integer": later(Encoded(b"\xd0\5")),
        "signed integer of 16 bits": later(Encoded(b"\xd1\1\0")),
        "signed integer of 32 bits": later(Encoded(b"\xd2\0\1\0\0")),
        "signed integer of 64 bits": later(Encoded(b"\xd3\0\0\0\1\0\0\0\0")),
        "str": fields(dtype=Encoded(b"\xd9\3F32")),
        "array": fields(shape=Encoded(b"\xdc\0\2\x14\x46")),
        "map": top(metadata=Encoded(b"\xde\0\0")),
        "keys not sorted": top(metadata=Encoded(b"\x82\xa1b\xa1b\xa1a\xa1a")),
        "keys by UTF-16": top(metadata=Encoded(b"\x82\xa4\xf0\x9f\x98\x80\xa1a\xa3\xef\xbf\xae\xa1b")),
        "key twice": top(metadata=Encoded(b"\x82\xa1b\xa1b\xa1b\xa1b")),
        "negative_zeros_dropped of 0": fields(negative_zeros_dropped=0),
        "first_chunk of the first": fields("v", first_chunk=Encoded(b"\0")),
        "no fields in the index": elements(lambda index: [*index[:3], {}]),
        "no metadata": elements(lambda index: index[3].update(metadata={})),
        "no fields in the kind": elements(lambda index: index[1][0].append({})),
        "arrays that need not be there": elements(lambda index: index[1][0].append({"arrays": {"values": "raw"}})),
        "layout that need not be there": elements(lambda index: index[1][0].append({"layout": "dense"})),
        "layout and arrays that need not be there": elements(
            lambda index: index[1][0].append({"arrays": {"values": "raw"}, "layout": "dense"})
        ),
    },
)
faults(
    "index-not-canonical",
    "dense zstd",
    {"layout beside arrays": elements(lambda index: index[1][0][1].update(layout="dense"))},
)


def table(*widths: int):
    """The chunk table with sizes of so many bytes, and stored sizes if two are given."""

    def change(index: list) -> None:
        records = records_of(index[0])
        numbers = [record[1] for record in records], [record[0] for record in records]
        out = bytes([widths[0] + 16 * sum(widths[1:])])
        for width, column in zip(widths, numbers, strict=False):
            out += b"".join(number.to_bytes(width, "little") for number in column)
        index[0] = out + b"".join(record[2].to_bytes(8, "little") for record in records)

    return elements(change)


faults(
    "index-not-canonical",
    "bitmask raw",
    {
        "raw sizes of 4 bytes": table(4),
        "raw sizes of 8 bytes": table(8),
        "stored sizes that are the raw ones": table(2, 2),
        "chunk table of no chunk": elements(lambda index: [b"\1", [], {}]),
    },
)
faults(
    "index-not-canonical",
    "two vectors",
    {
        "raw sizes of 2 bytes": table(2),
        "first_chunk behind the entry before": fields(first_chunk=Encoded(b"\1")),
        "no fields in the entry": elements(lambda index: index[2]["v"].append({})),
    },
)
faults("index-key", "permuted raw", {"no arrays": fields(arrays=...)})
faults("index-type", "two vectors", {"fields of an entry": elements(lambda index: index[2]["v"].append([]))})
faults(
    "index-not-canonical",
    "bitmask zstd",
    {
        "stored sizes of 4 bytes": table(2, 4),
        "stored sizes of 8 bytes": table(2, 8),
        "raw sizes of 4 bytes": table(4, 2),
        "all sizes of 8 bytes": table(8, 8),
    },
)
faults("index-not-canonical", "bitmask raw", {"later keys not sorted": later(Encoded(b"\x82\xa1b\1\xa1a\1"))})
faults("index-key", "dense raw", {"nnz of a dense tensor": fields(nnz=5), "minor 1": fields(minor=1, nnz=5)})

# 2.4: types and keys
faults(
    "index-type",
    "bitmask raw",
    {
        "index": index(b"\x80"),
        "chunks": raw_index(chunks=[]),
        "half a record": elements(lambda index: [index[0][:-1], *index[1:]]),
        "a byte behind the records": elements(lambda index: [index[0] + b"\0", *index[1:]]),
        **{
            f"sizes of {head % 16} and {head // 16} bytes": elements(
                lambda index, head=head: [bytes([head]) + bytes(head % 16 + head // 16 + 8), *index[1:]]
            )
            for head in (0x00, 0x03, 0x05, 0x09, 0x10, 0x31, 0x51, 0x91)
        },
        "fields of the index": elements(lambda index: [*index[:3], 5]),
        "fields of a kind": elements(lambda index: index[1][0].append(5)),
        "tensors": raw_index(tensors=[]),
        "kinds": raw_index(kinds={}),
        "kind": kinds(lambda kinds: kinds.__setitem__(0, 5)),
        "number of a kind": fields(kind="0"),
        "number of a kind of 64 bits": fields(kind=2**63),
        "no dtype": fields(dtype=...),
        "no shape": fields("v", shape=...),
        "entry": entry_named("x", 5),
        "alias": entry_named("x", {"alias_of": []}),
        "copy": entry_named("x", {"copy_of": 0}),
        "dimension": fields(shape=[20, 2**63]),
        "dimension is str": fields(shape=[20, "70"]),
    },
)
for _key in "first_chunk", "nnz", "tile_rows", "row_dims", "negative_zeros_dropped", "shape", "arrays":
    for _value in "x", b"x", [], {}, 2**63:
        if (_key, _value) not in (("arrays", {}), ("shape", [])):
            faults("index-type", "bitmask raw", {f"{_key} = {_value!r}": fields(**{_key: _value})})
for _value in 5, b"x", [], {}:
    faults(
        "index-type",
        "bitmask raw",
        {
            f"dtype = {_value!r}": fields(dtype=_value),
            f"layout = {_value!r}": fields(layout=_value),
            f"codec = {_value!r}": arrays(values=_value),
        },
    )
faults(
    "index-key",
    "bitmask raw",
    {
        "no arrays": fields(arrays=...),
        "no nnz": fields(nnz=...),
        "kind of no element": elements(lambda index: index[1][0].clear()),
        "kind of 3 elements": elements(lambda index: index[1][1].append(1)),
        "kind of 3 elements of a greater minor version": both(
            elements(lambda index: index[1][1].append(1)), preamble(10, 1)
        ),
        "entry of 1 element": elements(lambda index: index[2]["v"].__delitem__(slice(1, 3))),
        "entry of 4 elements": elements(lambda index: index[2]["w"].append(1)),
        "index of 2 elements": elements(lambda index: index[:2]),
        "index of 5 elements": elements(lambda index: index.append(1)),
        "index of 5 elements of a greater minor version": both(
            elements(lambda index: index.append(1)), preamble(10, 1)
        ),
        "unknown": top(later=1),
        "unknown in the entry": fields(later=1),
        "unknown in the kind": kinds(lambda kinds: kinds[0].update(later=1)),
        "no elements": index(b"\x90"),
        "alias without keys": elements(lambda index: index[2].update(x={})),
        "alias and more": entry_named("x", ALIAS | {"dtype": "F32"}),
        "copy and more": entry_named("x", COPY | {"later": 1}),
        "alias and copy": entry_named("x", ALIAS | COPY),
        "alias and copy of a greater minor version": both(entry_named("x", ALIAS | COPY), preamble(10, 1)),
        "empty entry": entry_named("x", {}),
    },
)
faults(
    "metadata-invalid",
    "bitmask raw",
    {
        "int": top(metadata={"a": 1}),
        "bin": top(metadata={"a": b"b"}),
        "map": top(metadata={"a": {}}),
        "array": top(metadata={"a": ["b"]}),
    },
)
faults("metadata-size", "bitmask raw", {"key and value": lambda file: top(metadata={"a": "b" * 2**24})(file)})
faults("metadata-size", "bitmask raw", {"one value": lambda file: top(metadata={"": "b" * (2**24 + 1)})(file)})


def many_short_metadata(file: TakenApart) -> None:
    texts = [b"\xa6%06x\xa0" % n for n in range(2**20 + 1)]
    file.index["metadata"] = Encoded(msgpack.Packer().pack_map_header(len(texts)) + b"".join(texts))


faults("ok", "bitmask raw", {"many short metadata": many_short_metadata}, slow=True)


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
