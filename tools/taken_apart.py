"""A .sparsefmt file taken apart, to be changed and laid out again with checksums that are right.

Written from SPEC.md, section 2, without the library: what the library makes of such files is what they are for.
"""

from __future__ import annotations

import copy
import struct
from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import msgpack
import numpy as np
import xxhash
import zstandard

MAGIC, END_MAGIC = bytes.fromhex("895350460D0A1A0A"), bytes.fromhex("0A1A0A0D46505389")

RECORD = struct.Struct("<QQQ")
"""A chunk in the chunk table: stored bytes, raw bytes, checksum of the stored bytes."""

KIND_KEYS = "arrays", "dtype", "layout"
"""The keys of a kind. A file that is taken apart has them in its entries."""

TRAILER = struct.Struct("<QQQ8s")
"""The end of a file: offset and bytes of the index, its checksum, the magic."""


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
    offset, size, _, _ = TRAILER.unpack(data[-TRAILER.size :])
    return data[:offset], data[offset : offset + size]


def split_and_decode(data: bytes) -> tuple[bytes, dict[str, Any]]:
    """Everything before the index, and the index as a dict; its key "chunks" has the chunk table."""
    before, index = split(data)
    return before, msgpack.unpackb(index)


def join(before: bytes, index: bytes) -> bytes:
    """A file of these bytes, which begin with a preamble, and of this index, whatever it is."""
    return before + index + TRAILER.pack(len(before), len(index), checksum_of_index(before, index), END_MAGIC)


def checksum_of_index(before: bytes, index: bytes) -> int:
    return xxhash.xxh64_intdigest(before[:16] + index)


def start(end: int, stored: int, raw: int) -> int:
    """Where a chunk of these sizes starts, if the one before ends at `end`."""
    unit = 1 if stored != raw else 64 if raw >= 4096 else 8
    return end + -end % unit


def places(table: bytes) -> Iterator[tuple[int, int, int]]:
    """Offset, stored bytes and raw bytes of each chunk of a chunk table."""
    end = 16
    for stored, raw, _ in RECORD.iter_unpack(table):
        at = start(end, stored, raw)
        yield at, stored, raw
        end = at + stored


def mended(data: bytes) -> bytes:
    """The file with checksums that fit, as far as its trailer and its index can be understood."""
    offset, size, _, magic = TRAILER.unpack(data[-TRAILER.size :])
    before, stored_index = split_as_stored(data)
    try:
        _, index = split(data)
        chunks = msgpack.unpackb(index, strict_map_key=False)["chunks"]
    except Exception:
        index, chunks = stored_index, b""
    if isinstance(chunks, bytes) and chunks and chunks in index:
        whole = len(chunks) // RECORD.size * RECORD.size
        records = [
            RECORD.pack(stored, raw, xxhash.xxh64_intdigest(data[at : at + stored]))
            for at, stored, raw in places(chunks[:whole])
        ]
        right = index.replace(chunks, b"".join(records) + chunks[whole:], 1)
        if right != index:
            stored_index = right if stored_index == index else zstandard.compress(right, 19)
            size = len(stored_index) if offset + size + TRAILER.size == len(data) else size
    return before + stored_index + TRAILER.pack(offset, size, checksum_of_index(before, stored_index), magic)


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


def merged(index: dict[str, Any]) -> dict[str, Any]:
    """An index without kinds: what they say stands in the entries."""
    kinds = index["kinds"]
    tensors = {}
    for name, entry in index["tensors"].items():
        if "kind" in entry:
            entry = copy.deepcopy(kinds[entry["kind"]]) | {key: value for key, value in entry.items() if key != "kind"}
        tensors[name] = entry
    return {key: value for key, value in index.items() if key != "kinds"} | {"tensors": tensors}


def with_kinds(index: dict[str, Any]) -> dict[str, Any]:
    """An index as `merged` gives it, with kinds again, its keys in the order that they had.

    Kinds are named by numbers in the order of the tensors. Entries that have no key of a kind stay as they are.
    """
    tensors, numbers, kinds = index.get("tensors"), {}, {}
    if isinstance(tensors, dict):
        tensors = dict(tensors)
        for name, entry in tensors.items():
            is_alias = not isinstance(entry, dict) or "alias_of" in entry or "copy_of" in entry
            if is_alias or not any(key in entry for key in KIND_KEYS):
                continue
            kind = {key: entry[key] for key in KIND_KEYS if key in entry}
            number = numbers.setdefault(canonical(kind), str(len(numbers)))
            kinds[number] = kind
            rest = {key: value for key, value in entry.items() if key not in KIND_KEYS}
            tensors[name] = dict(sorted({"kind": number, **rest}.items(), key=lambda item: in_bytes(item[0])))
    out: dict[str, Any] = {} if "chunks" in index else {"kinds": kinds}
    for key, value in index.items():
        out[key] = tensors if key == "tensors" else value
        if key == "chunks":
            out.setdefault("kinds", dict(sorted(kinds.items())))
    return out


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
        index: without the chunk table and the kinds: what a kind says stands in the entries. Keys "chunks" and "kinds"
            take the place of those that laying out makes.
        behind: bytes that follow a chunk, by its number, before the padding.
        padding: the byte that fills up to where a chunk starts.
        is_coded: whether the index is laid out coded. It is not, whatever the file had.
        change_records: is given the chunk table, a list of three numbers for each chunk, to change.
        change_index: is given the bytes of the index, and gives others.
        change_trailer: is given offset, size and checksum of the index, a list, to change.
    """

    def __init__(self, data: bytes) -> None:
        """Take a file apart.

        Raises:
            ValueError, KeyError, TypeError, struct.error: there is no trailer, index or chunk table to be understood.
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
        table = b"".join(RECORD.pack(*record) for record in records)
        before, index = bytes(out), self.change_index(canonical(with_kinds({"chunks": table, **self.index})))
        if self.is_coded:
            index = zstandard.compress(index, 19)
        trailer = [len(before), len(index), checksum_of_index(before, index)]
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
