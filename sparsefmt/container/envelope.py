"""Preamble and trailer: the first 16 and the last 20 bytes of a file. No I/O.

    preamble   0  8  magic 89 53 50 46 0D 0A 1A 0A     trailer   0  4  index size u32
               8  2  major u16                                   4  8  XXH64 of preamble and index u64
              10  2  minor u16                                  12  8  end magic 0A 1A 0A 0D 46 50 53 89
              12  4  incompatible-feature bits u32

The trailer is written last and marks the file as whole: a torn or truncated file has none.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import xxhash

from sparsefmt.container import sniff
from sparsefmt.errors import ChecksumError, FormatError, LimitError, UnsupportedError
from sparsefmt.limits import MAX_INDEX_BYTES

MAGIC = bytes.fromhex("89 53 50 46 0D 0A 1A 0A")
END_MAGIC = bytes.fromhex("0A 1A 0A 0D 46 50 53 89")
MAJOR, MINOR = 1, 0
KNOWN_FEATURES = 0
"""Incompatible-feature bits that this reader understands: version 1.0 defines none."""

_PREAMBLE = struct.Struct("<8sHHI")
_TRAILER = struct.Struct("<IQ8s")
PREAMBLE_SIZE, TRAILER_SIZE = _PREAMBLE.size, _TRAILER.size
TAIL_SIZE = 1 << 16
"""Bytes from the end of a file that `describe_end` wants to see."""

MIN_FILE_SIZE = PREAMBLE_SIZE + TRAILER_SIZE


def checksum(*parts: bytes | memoryview) -> int:
    """XXH64, seed 0, of the parts in a row."""
    if len(parts) == 1:
        return xxhash.xxh64_intdigest(parts[0])
    state = xxhash.xxh64()
    for part in parts:
        state.update(part)
    return state.intdigest()


def encode_preamble() -> bytes:
    """The preamble of a file of this version."""
    return _PREAMBLE.pack(MAGIC, MAJOR, MINOR, 0)


def decode_preamble(data: bytes) -> int:
    """Check the first bytes of a file (sniff.HEAD_SIZE, if it has them) and return its minor version."""
    if data[: len(MAGIC)] != MAGIC:
        raise FormatError("not-sparsefmt", sniff.describe(data), offset=0)
    if len(data) < PREAMBLE_SIZE:
        raise FormatError("file-too-short", f"the file is cut off: it ends after {len(data)} bytes", offset=0)
    _, major, minor, features = _PREAMBLE.unpack_from(data)
    if major != MAJOR:
        raise UnsupportedError(
            "version-unsupported",
            f"the file has format version {major}.{minor}; this library reads version {MAJOR}: upgrade sparsefmt",
            offset=8,
        )
    if features & ~KNOWN_FEATURES:
        raise UnsupportedError(
            "feature-unsupported",
            f"the file needs features {features & ~KNOWN_FEATURES:#x} that this library lacks: upgrade sparsefmt",
            offset=12,
        )
    return minor


@dataclass(frozen=True)
class Trailer:
    """Where the index is, and its checksum."""

    index_offset: int
    index_size: int
    index_checksum: int

    def encode(self) -> bytes:
        return _TRAILER.pack(self.index_size, self.index_checksum, END_MAGIC)

    def check_index(self, preamble: bytes, index: bytes) -> None:
        """Refuse an index, or a preamble, that is not the one written."""
        if checksum(preamble, index) != self.index_checksum:
            raise ChecksumError(
                "index-checksum", "the index is damaged: its checksum does not match", offset=self.index_offset
            )


def has_trailer(data: bytes) -> bool:
    """Whether a file that ends with these bytes was written to its end."""
    return data.endswith(END_MAGIC)


def describe_end(tail: bytes, file_size: int) -> str:
    """One sentence on a file that does not end with a trailer.

    Args:
        tail: its last bytes, TAIL_SIZE of them if it has as many.
    """
    zeros = len(tail) - len(tail.rstrip(b"\0"))
    if zeros > TRAILER_SIZE:
        least = "at least " if zeros == len(tail) else ""
        return (
            f"its last bytes, {least}{zeros:,}, are zeros, as a download or copy leaves them that was not finished: it"
            " has no trailer"
        )
    end = tail.rfind(END_MAGIC) + len(END_MAGIC)
    if end >= TRAILER_SIZE:
        size, _, _ = _TRAILER.unpack(tail[end - TRAILER_SIZE : end])
        whole = file_size - (len(tail) - end)
        if PREAMBLE_SIZE + size + TRAILER_SIZE <= whole:
            return f"the file is too long: it ends after {whole:,} bytes, and {file_size - whole:,} more follow"
    return (
        f"the file is cut off, or was never finished: it has {file_size:,} bytes and no trailer, which alone"
        " would say how many there should be"
    )


def decode_trailer(data: bytes, file_size: int) -> Trailer:
    """Check the last TRAILER_SIZE bytes of a file of `file_size` bytes."""
    start = file_size - TRAILER_SIZE
    size, index_checksum, end_magic = _TRAILER.unpack(data)
    if end_magic != END_MAGIC:
        raise FormatError("trailer-missing", describe_end(data, file_size), offset=start)
    if size > MAX_INDEX_BYTES:
        raise LimitError("index-size", f"the index has {size:,} bytes; the limit is {MAX_INDEX_BYTES:,}", offset=start)
    if size > start - PREAMBLE_SIZE:
        room = f"only {start - PREAMBLE_SIZE:,} lie between preamble and trailer"
        raise FormatError("index-out-of-bounds", f"the index claims {size:,} bytes; {room}", offset=start)
    return Trailer(start - size, size, index_checksum)
