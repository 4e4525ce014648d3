"""A .sparsefmt file taken apart, to be changed and laid out again with checksums that are right.

This was written from SPEC.md, section 2, without the library, which such files are made to test.
"""

from __future__ import annotations

import copy
import struct
from collections.abc import Callable, Iterator, Sequence
from math import gcd, prod
from typing import Any

import msgpack
import numpy as np
import xxhash
import zstandard

MAGIC, END_MAGIC = bytes.fromhex("895350460D0A1A0A"), bytes.fromhex("0A1A0A0D46505389")

KIND_KEYS = "arrays", "dtype", "layout"
"""What a kind says. A file that is taken apart has it in its entries."""

USUAL = {"arrays": {"values": "raw"}, "layout": "dense"}
"""What a kind need not say."""

TRAILER = struct.Struct("<IQ8s")
"""The end of a file: bytes of the index, its checksum, the magic."""

Record = list[int]
"""Of a chunk: stored bytes, raw bytes, checksum of the stored bytes."""


# A file and its index


def preamble(minor: int = 0) -> bytes:
    """The 16 bytes at the start of a file of version 1."""
    return MAGIC + struct.pack("<HHI", 1, minor, 0)


def split(data: bytes) -> tuple[bytes, bytes]:
    """Everything before the index, and the index, where the trailer says that it lies; decoded if it is coded."""
    before, index = split_as_stored(data)
    return before, zstandard.decompress(index) if index.startswith(zstandard.FRAME_HEADER) else index


def split_as_stored(data: bytes) -> tuple[bytes, bytes]:
    """Everything before the index, and the index as it stands in the file."""
    end = len(data) - TRAILER.size
    size, _, _ = TRAILER.unpack(data[end:])
    if size > end:
        raise ValueError(f"an index of {size:,} bytes in a file of {len(data):,}")
    return data[: end - size], data[end - size : end]


def split_and_decode(data: bytes) -> tuple[bytes, dict[str, Any]]:
    """Everything before the index, and the index as `decoded` gives it."""
    before, index = split(data)
    return before, decoded(index)


def join(before: bytes, index: bytes) -> bytes:
    """A file of these bytes, which begin with a preamble, and of this index, whatever it is."""
    return before + index + TRAILER.pack(len(index), checksum_of_index(before, index), END_MAGIC)


def checksum_of_index(before: bytes, index: bytes) -> int:
    return xxhash.xxh64_intdigest(before[:16] + index)


def start(end: int, stored: int, raw: int) -> int:
    """Where a chunk of these sizes starts, if the one before ends at `end`."""
    unit = 1 if stored != raw else max(gcd(raw, 64), 8) if raw >= 32768 else 8
    return end + -end % unit


def records_of(table: bytes) -> list[Record]:
    """The records of a chunk table."""
    if not table:
        return []
    raw_width, stored_width = table[0] % 16, table[0] // 16
    count = (len(table) - 1) // (raw_width + stored_width + 8)
    numbers, at = [], 1
    for width in (raw_width, stored_width, 8):
        column = table[at : at + width * count]
        numbers.append([int.from_bytes(column[i : i + width], "little") for i in range(0, len(column), width or 1)])
        at += width * count
    raw, stored, checksums = numbers
    return [list(record) for record in zip(stored or raw, raw, checksums, strict=True)]


def table_of(records: Sequence[Sequence[int]]) -> bytes:
    """The chunk table of some records."""
    if not records:
        return b""
    stored, raw, checksums = zip(*records, strict=True)
    columns = [raw, () if stored == raw else stored]
    widths = [
        next(width for width in (1, 2, 4, 8) if max(column) < 1 << 8 * width) if column else 0 for column in columns
    ]
    out = bytes([widths[0] + 16 * widths[1]])
    for column, width in zip([*columns, checksums], [*widths, 8], strict=True):
        out += b"".join(number.to_bytes(width, "little") for number in column)
    return out


def places(table: bytes) -> Iterator[tuple[int, int, int]]:
    """Offset, stored bytes and raw bytes of each chunk of a chunk table."""
    end = 16
    for stored, raw, _ in records_of(table):
        at = start(end, stored, raw)
        yield at, stored, raw
        end = at + stored


def mended(data: bytes) -> bytes:
    """The file with checksums that fit, as far as its trailer and its index can be understood."""
    before, stored_index = split_as_stored(data)
    try:
        _, index = split(data)
        chunks = msgpack.unpackb(index, strict_map_key=False)[0]
        found = list(places(chunks))
    except Exception:
        index, chunks, found = stored_index, b"", []
    if found:
        at = 1 + len(found) * (chunks[0] % 16 + chunks[0] // 16)
        checksums = b"".join(xxhash.xxh64_digest(data[begin : begin + stored])[::-1] for begin, stored, _ in found)
        right = index.replace(chunks, chunks[:at] + checksums + chunks[at + len(checksums) :], 1)
        if right != index:
            stored_index = right if stored_index == index else zstandard.compress(right, 19)
    magic = data[-8:]
    return before + stored_index + TRAILER.pack(len(stored_index), checksum_of_index(before, stored_index), magic)


# A file in its parts


class Encoded(bytes):
    """msgpack that is taken as it is."""


def canonical(value: Any, packer: msgpack.Packer | None = None) -> bytes:
    """The value as msgpack in canonical form: keys sorted, everything as short as it can be."""
    if isinstance(value, Encoded):
        return bytes(value)
    packer = packer or msgpack.Packer()
    if isinstance(value, dict):
        pairs = [packer.pack(key) + canonical(value[key], packer) for key in sorted(value, key=in_bytes)]
        return packer.pack_map_header(len(value)) + b"".join(pairs)
    if isinstance(value, list):
        return packer.pack_array_header(len(value)) + b"".join([canonical(element, packer) for element in value])
    return packer.pack(value)


def in_bytes(key: str | bytes) -> bytes:
    return key.encode() if isinstance(key, str) else key


def decoded(index: bytes) -> dict[str, Any]:
    """An index as maps: `{"chunks", "kinds", "metadata", "tensors"}`, and whatever keys it has besides.

    Kinds are `{"arrays", "dtype", "layout"}`, entries `{"kind", "shape"}`, and what else they say. A kind has all three
    keys, and an index its metadata, also where the file does not say so.

    Raises:
        ValueError, KeyError, TypeError, IndexError: it is not as an index should be.
    """
    chunks, kinds, tensors, *fields = msgpack.unpackb(index)
    return {
        "chunks": chunks,
        "kinds": [copy.deepcopy(USUAL) | {"dtype": kind[0]} | (kind[1] if kind[1:] else {}) for kind in kinds],
        "metadata": {},
        "tensors": {
            name: {"kind": entry[0], "shape": entry[1], **(entry[2] if entry[2:] else {})}
            if isinstance(entry, list)
            else entry
            for name, entry in tensors.items()
        },
    } | (fields[0] if fields else {})


def encoded(index: dict[str, Any], pack: Callable[[Any], bytes] | None = None) -> bytes:
    """What `decoded` gives, as an index again. What need not be said is not said.

    Args:
        pack: makes msgpack of it, if not `canonical`.
    """

    def elements(fields: Any, always: Sequence[str], usual: dict[str, Any]) -> Any:
        """An array for a map; values that are usual are left out."""
        if not isinstance(fields, dict):
            return fields
        rest = {key: value for key, value in fields.items() if key not in always and not is_usual(key, value, usual)}
        return [fields[key] for key in always if key in fields] + ([rest] if rest else [])

    def is_usual(key: str, value: Any, usual: dict[str, Any]) -> bool:
        return (
            key in usual and not isinstance(value, Encoded) and type(value) is type(usual[key]) and value == usual[key]
        )

    def kind(fields: Any) -> Any:
        is_dense = isinstance(fields, dict) and fields.get("layout") == USUAL["layout"]
        return elements(fields, ["dtype"], USUAL if is_dense else {"layout": USUAL["layout"]})

    def entry(fields: Any) -> Any:
        is_alias = isinstance(fields, dict) and ("alias_of" in fields or "copy_of" in fields)
        return fields if is_alias else elements(fields, ["kind", "shape"], {})

    shaped = dict(index)
    if isinstance(shaped.get("kinds"), list):
        shaped["kinds"] = [kind(fields) for fields in shaped["kinds"]]
    if isinstance(shaped.get("tensors"), dict):
        shaped["tensors"] = {name: entry(fields) for name, fields in shaped["tensors"].items()}
    return (pack or canonical)(elements(shaped, ["chunks", "kinds", "tensors"], {"metadata": {}}))


def merged(index: dict[str, Any]) -> dict[str, Any]:
    """An index without kinds: what they say stands in the entries, and `first_chunk` in those that have tiles."""
    kinds, following = index["kinds"], 0
    tensors = {}
    for name, entry in index["tensors"].items():
        if "kind" in entry:
            entry = copy.deepcopy(kinds[entry["kind"]]) | {key: value for key, value in entry.items() if key != "kind"}
            entry.setdefault("first_chunk", following)
            chunks = chunks_of(entry)
            if chunks.stop > chunks.start:
                following = chunks.stop
            else:
                del entry["first_chunk"]
            entry = dict(sorted(entry.items()))
        tensors[name] = entry
    return {key: value for key, value in index.items() if key != "kinds"} | {"tensors": tensors}


def with_kinds(index: dict[str, Any]) -> dict[str, Any]:
    """An index as `merged` gives it, with kinds again, numbered in the order of the tensors.

    Entries that have no key of a kind stay as they are. `first_chunk` is left out where it must be, if it can be told.
    """
    tensors, numbers, kinds, following = index.get("tensors"), {}, [], 0
    if isinstance(tensors, dict):
        tensors = dict(tensors)
        for name in sorted(tensors, key=in_bytes):
            entry = tensors[name]
            is_alias = not isinstance(entry, dict) or "alias_of" in entry or "copy_of" in entry
            if is_alias or not any(key in entry for key in KIND_KEYS):
                continue
            kind = {key: entry[key] for key in KIND_KEYS if key in entry}
            number = numbers.setdefault(canonical(kind), len(numbers))
            kinds[number:] = kinds[number:] or [kind]
            rest = {key: value for key, value in entry.items() if key not in KIND_KEYS}
            try:
                chunks = chunks_of({"first_chunk": following, **entry})
            except (KeyError, TypeError, IndexError, ValueError, ArithmeticError):
                chunks = slice(following, following)
                if rest.get("first_chunk") == following:
                    del rest["first_chunk"]
            if chunks.stop > chunks.start:
                if chunks.start == following:
                    rest.pop("first_chunk", None)
                following = chunks.stop
            tensors[name] = {"kind": number, **rest}
    return {"kinds": kinds} | index | ({"tensors": tensors} if "tensors" in index else {})


def chunks_of(entry: dict[str, Any]) -> slice:
    """Which chunks are those of a tensor, by its entry as `merged` gives it."""
    shape, row_dims = entry["shape"] or [1], entry.get("row_dims", 1)
    rows, height = prod(shape[:row_dims]), entry.get("tile_rows", shape[row_dims - 1])
    tiles = -(-rows // height) if prod(shape) else 0
    first = entry.get("first_chunk", 0)
    return slice(first, first + tiles * len(entry["arrays"]))


class TakenApart:
    """A file as its parts, which can be changed; `bytes(…)` lays them out again, with checksums that are right.

    Attributes:
        preamble: the first 16 bytes.
        chunks: stored bytes and raw size of each, in the order of the chunk table.
        index: as `decoded` gives it, without the chunk table and the kinds: what a kind says stands in the entries.
            Keys "chunks" and "kinds" take the place of those that laying out makes. Every entry with tiles has its
            `first_chunk`, which is left out where it must be.
        behind: bytes that follow a chunk, by its number, before the padding.
        padding: the byte that fills up to where a chunk starts.
        is_coded: whether the index is laid out coded. It is not, whatever the file had.
        change_records: is given the chunk table, a list of three numbers for each chunk, to change.
        change_index: is given the bytes of the index, and gives others.
        change_trailer: is given size and checksum of the index, a list, to change.
    """

    def __init__(self, data: bytes) -> None:
        """Take a file apart.

        Raises:
            ValueError, KeyError, TypeError, IndexError, struct.error: there is no trailer, index or chunk table to be
                understood.
        """
        _, self.index = split_and_decode(data)
        self.preamble = bytearray(data[:16])
        self.chunks: list[tuple[bytes | bytearray, int]] = [
            (bytearray(data[at : at + stored]), raw) for at, stored, raw in places(self.index.pop("chunks"))
        ]
        self.index = merged(self.index)
        self.behind: dict[int, bytes] = {}
        self.padding = 0
        self.is_coded = False
        self.change_records: Callable[[list[list[int]]], object] = lambda records: None
        self.change_index: Callable[[bytes], bytes] = lambda index: index
        self.change_trailer: Callable[[list[int]], object] = lambda fields: None

    def __bytes__(self) -> bytes:
        out, records = bytearray(self.preamble), []
        for number, (stored, raw) in enumerate(self.chunks):
            out += bytes([self.padding]) * (start(len(out), len(stored), raw) - len(out))
            records.append([len(stored), raw % 2**64, xxhash.xxh64_intdigest(stored)])
            out += stored + self.behind.get(number, b"")
        self.change_records(records)
        before = bytes(out)
        index = self.change_index(encoded(with_kinds({"chunks": table_of(records), **self.index})))
        if self.is_coded:
            index = zstandard.compress(index, 19)
        trailer = [len(index), checksum_of_index(before, index)]
        self.change_trailer(trailer)
        return before + index + TRAILER.pack(*trailer, END_MAGIC)

    def entry(self, name: str = "w") -> dict[str, Any]:
        """The entry of a tensor in the index."""
        return self.index["tensors"][name]

    def number(self, array: str) -> int:
        """The number of the chunk of an array of tensor "w", of its first tile."""
        return self.entry().get("first_chunk", 0) + sorted(self.entry()["arrays"]).index(array)

    def array(self, array: str, dtype: str = "u1") -> np.ndarray:
        """An array of the first tile of tensor "w", of codec `raw` or `zstd`; of a mask that `zstd` coded, its rows."""
        stored, raw = self.chunks[self.number(array)]
        width = np.dtype(dtype).itemsize
        if len(stored) < raw:
            stored = np.frombuffer(zstandard.decompress(stored), np.uint8).reshape(width, -1).T.tobytes()
        return np.frombuffer(stored, dtype).copy()

    def put(self, array: str, content: np.ndarray | bytes) -> None:
        """Put other content, as it is, in the place of that array."""
        content = content if isinstance(content, bytes) else content.tobytes()
        self.chunks[self.number(array)] = (content, len(content))
