"""The index as it stands in a file: as it is, or coded as one zstd frame. No I/O.

An index of many small tensors takes more bytes than they do, and most of them are names and sizes that repeat. A zstd
frame begins with a byte that no index begins with, so a reader sees which of both it has.
"""

from __future__ import annotations

import zstandard

from sparsefmt.codecs.zstd import decompressed
from sparsefmt.errors import FormatError, LimitError
from sparsefmt.limits import MAX_CODED_INDEX_BYTES, MAX_INDEX_RATIO

LEVEL = 9
"""Higher levels take far longer, and make an index hardly smaller: most of what is left of it is checksums."""

SMALLEST = 32
"""Bytes that a coded index has, at least. With the trailer, at least 44 can be read behind every chunk, whether the
index is coded or not."""


def is_coded(stored: bytes) -> bool:
    """Whether an index that begins so is coded."""
    return stored.startswith(zstandard.FRAME_HEADER)


def encode(index: bytes) -> bytes:
    """The index coded, or as it is if that is no larger, or if readers would refuse the coded one as impossible."""
    if len(index) > MAX_CODED_INDEX_BYTES:
        return index
    coded = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True).compress(index)
    fits = SMALLEST <= len(coded) < len(index) <= len(coded) * MAX_INDEX_RATIO
    return coded if fits else index


def decode(stored: bytes) -> bytes:
    """The index, decoded if it is coded. How large it becomes is known, and limited, before it is decoded."""
    if not is_coded(stored):
        return stored
    if len(stored) < SMALLEST:
        raise FormatError("index-frame", f"a coded index has at least {SMALLEST} bytes, not {len(stored)}")
    try:
        size = zstandard.frame_content_size(stored)
    except zstandard.ZstdError as error:
        raise FormatError("index-frame", f"the coded index is not a zstd frame: {error}") from None
    if size > MAX_CODED_INDEX_BYTES:
        limit = f"the limit of a coded one is {MAX_CODED_INDEX_BYTES:,}"
        raise LimitError("index-size", f"the coded index decodes to {size:,} bytes; {limit}")
    if not 0 <= size <= len(stored) * MAX_INDEX_RATIO:
        raise FormatError("index-frame", f"a coded index of {len(stored):,} bytes cannot decode to {size:,}")
    try:
        return decompressed(stored, size)
    except FormatError as error:
        raise FormatError("index-frame", f"the coded index: {error.message}") from None
