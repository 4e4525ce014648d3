"""Faults of preamble, trailer, and index as msgpack (SPEC.md, section 2), and files that look faulty and are not."""

from __future__ import annotations

import msgpack

from tools.taken_apart import Encoded, TakenApart, records_of
from tools.vectors.faults.changes import (
    ALIAS,
    COPY,
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
    top,
    trailer,
    whole,
)

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
