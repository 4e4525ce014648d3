"""A file in its parts, to be changed and laid out again."""

from __future__ import annotations

import struct

import msgpack
import numpy as np
import xxhash
import zstandard


class Encoded(bytes):
    """msgpack that is taken as it is."""


def canonical(value) -> bytes:
    if isinstance(value, Encoded):
        return bytes(value)
    packer = msgpack.Packer()
    if isinstance(value, dict):
        return packer.pack_map_header(len(value)) + b"".join(
            canonical(key) + canonical(value[key]) for key in sorted(value, key=lambda key: key.encode())
        )
    if isinstance(value, list):
        return packer.pack_array_header(len(value)) + b"".join(map(canonical, value))
    return packer.pack(value)


class TakenApart:
    """A file as its parts, which can be changed; `bytes(…)` lays them out again, with checksums that are right."""

    def __init__(self, data: bytes):
        offset, size, _, self.end_magic = struct.unpack("<QQQ8s", data[-32:])
        self.preamble = bytearray(data[:64])
        self.index = msgpack.unpackb(data[offset : offset + size])
        records = struct.iter_unpack("<QQQQ", self.index["chunks"])
        self.chunks = [(data[at : at + stored], raw) for at, stored, raw, _ in records]
        self.behind: dict[int, bytes] = {}  # chunk number to what follows the chunk
        self.change_records = self.change_trailer = lambda fields: None
        self.change_index = lambda index: index

    def entry(self, name: str = "w") -> dict:
        return self.index["tensors"][name]

    def number(self, array: str) -> int:
        return self.entry()["first_chunk"] + sorted(self.entry()["arrays"]).index(array)

    def array(self, array: str, dtype: str = "u1") -> np.ndarray:
        stored, raw = self.chunks[self.number(array)]
        width = np.dtype(dtype).itemsize
        if len(stored) < raw:
            stored = np.frombuffer(zstandard.decompress(stored), np.uint8).reshape(width, -1).T.tobytes()
        return np.frombuffer(stored, dtype).copy()

    def put(self, array: str, content: np.ndarray | bytes) -> None:
        content = content if isinstance(content, bytes) else content.tobytes()
        self.chunks[self.number(array)] = (content, len(content))

    def __bytes__(self) -> bytes:
        out, records = bytearray(self.preamble), []
        for number, (stored, raw) in enumerate(self.chunks):
            out += bytes(-len(out) % 64)
            records.append([len(out), len(stored), raw, xxhash.xxh64_intdigest(stored)])
            out += stored + self.behind.get(number, b"")
        out += bytes(-len(out) % 64)
        self.change_records(records)
        self.index["chunks"] = b"".join(struct.pack("<QQQQ", *record) for record in records)
        index = self.change_index(canonical(self.index))
        trailer = [len(out), len(index), xxhash.xxh64_intdigest(bytes(out[:16]) + index)]
        self.change_trailer(trailer)
        return bytes(out) + index + struct.pack("<QQQ", *trailer) + self.end_magic
