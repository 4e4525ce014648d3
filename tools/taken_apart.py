"""A .sparsefmt file taken apart, to be changed and laid out again with checksums that are right.

Written from SPEC.md, section 2, without the library: what the library makes of such files is what they are for.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import xxhash
import zstandard

MAGIC, END_MAGIC = bytes.fromhex("895350460D0A1A0A"), bytes.fromhex("0A1A0A0D46505389")

RECORD = struct.Struct("<QQQQ")
"""A chunk in the chunk table: offset, stored bytes, raw bytes, checksum of the stored bytes."""

TRAILER = struct.Struct("<QQQ8s")
"""The end of a file: offset and bytes of the index, its checksum, the magic."""


# A file and its index


def preamble(minor: int = 0) -> bytes:
    """The 64 bytes at the start of a file of version 1."""
    return MAGIC + struct.pack("<HHI", 1, minor, 0) + bytes(48)


def split(data: bytes) -> tuple[bytes, bytes]:
    """Everything before the index, and the index, where the trailer says that it lies."""
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


def mended(data: bytes) -> bytes:
    """The file with checksums that fit, as far as its trailer and its index can be understood."""
    offset, size, _, magic = TRAILER.unpack(data[-TRAILER.size :])
    before, index = split(data)
    try:
        chunks = msgpack.unpackb(index, strict_map_key=False)["chunks"]
    except Exception:
        chunks = b""
    if isinstance(chunks, bytes) and chunks and chunks in index:
        whole = len(chunks) // RECORD.size * RECORD.size
        records = [
            RECORD.pack(at, stored, raw, xxhash.xxh64_intdigest(data[at : at + stored]))
            for at, stored, raw, _ in RECORD.iter_unpack(chunks[:whole])
        ]
        index = index.replace(chunks, b"".join(records) + chunks[whole:], 1)
    return before + index + TRAILER.pack(offset, size, checksum_of_index(before, index), magic)


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


class TakenApart:
    """A file as its parts, which can be changed; `bytes(…)` lays them out again, with checksums that are right.

    Attributes:
        preamble: what is before the first chunk.
        chunks: stored bytes and raw size of each, in the order of the chunk table.
        index: without the chunk table. A key "chunks" takes the place of the one that laying out makes.
        behind: bytes that follow a chunk, by its number, before the padding.
        padding: the byte that fills up to the next multiple of 64.
        change_records: is given the chunk table, a list of four numbers for each chunk, to change.
        change_index: is given the bytes of the index, and gives others.
        change_trailer: is given offset, size and checksum of the index, a list, to change.
    """

    def __init__(self, data: bytes) -> None:
        """Take a file apart.

        Raises:
            ValueError, KeyError, TypeError, struct.error: there is no trailer, index or chunk table to be understood.
        """
        _, self.index = split_and_decode(data)
        self.preamble = bytearray(data[:64])
        self.chunks: list[tuple[bytes | bytearray, int]] = [
            (bytearray(data[at : at + stored]), raw)
            for at, stored, raw, _ in RECORD.iter_unpack(self.index.pop("chunks"))
        ]
        self.behind: dict[int, bytes] = {}
        self.padding = 0
        self.change_records: Callable[[list[list[int]]], object] = lambda records: None
        self.change_index: Callable[[bytes], bytes] = lambda index: index
        self.change_trailer: Callable[[list[int]], object] = lambda fields: None

    def __bytes__(self) -> bytes:
        out, records = bytearray(self.preamble), []
        for number, (stored, raw) in enumerate(self.chunks):
            records.append([len(out), len(stored), raw % 2**64, xxhash.xxh64_intdigest(stored)])
            out += stored + self.behind.get(number, b"")
            out += bytes([self.padding]) * (-len(out) % 64)
        self.change_records(records)
        table = b"".join(RECORD.pack(*record) for record in records)
        before, index = bytes(out), self.change_index(canonical({"chunks": table, **self.index}))
        trailer = [len(before), len(index), checksum_of_index(before, index)]
        self.change_trailer(trailer)
        return before + index + TRAILER.pack(*trailer, END_MAGIC)

    def entry(self, name: str = "w") -> dict[str, Any]:
        """The entry of a tensor in the index."""
        return self.index["tensors"][name]

    def number(self, array: str) -> int:
        """The number of the chunk of an array of tensor "w", of its first tile."""
        return self.entry()["first_chunk"] + sorted(self.entry()["arrays"]).index(array)

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
