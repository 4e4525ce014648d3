"""The chunk table: where the bytes of each array of each tile lie, and whether that can be. No I/O.

A table of 32-byte records in file order: offset, stored size, raw size and XXH64 of the stored bytes, each u64. A
tensor owns the run of records that starts at its `first_chunk`: tile by tile, and within a tile one for each of its
arrays in order of their names.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

import numpy as np

from sparsefmt.codecs import CODECS
from sparsefmt.container.entry import TensorEntry
from sparsefmt.container.envelope import ALIGNMENT
from sparsefmt.errors import FormatError, LimitError
from sparsefmt.limits import MAX_CHUNK_BYTES

CHUNK_RECORD = np.dtype([("offset", "<u8"), ("stored", "<u8"), ("raw", "<u8"), ("checksum", "<u8")])

_DERIVED = 0
"""In place of a ratio: the array follows from others, and is not stored, or is stored as it is."""


def decode_chunks(table: bytes, index_offset: int) -> np.ndarray:
    """Check that the chunks lie one after the other from the first aligned offset to the index, without a gap."""
    if len(table) % CHUNK_RECORD.itemsize:
        raise FormatError(
            "index-type", f"the chunk table has {len(table):,} bytes, no multiple of {CHUNK_RECORD.itemsize}"
        )
    chunks = np.frombuffer(table, CHUNK_RECORD)
    too_large = np.maximum(chunks["stored"], chunks["raw"]) > MAX_CHUNK_BYTES
    if too_large.any():
        number = int(too_large.argmax())
        raise LimitError(
            "chunk-limit", f"chunk {number} is over {MAX_CHUNK_BYTES:,} bytes", offset=int(chunks["offset"][number])
        )
    # sizes are below 2**36 and a table below 2**23 records: this cannot overflow
    ends = chunks["stored"].astype(np.int64)
    ends = np.cumsum(-(-ends // ALIGNMENT) * ALIGNMENT) + ALIGNMENT
    expected = np.concatenate([[ALIGNMENT], ends]).astype(np.uint64)
    actual = np.concatenate([chunks["offset"], np.array([index_offset], np.uint64)])
    wrong = actual != expected
    if wrong.any():
        number = int(wrong.argmax())
        what = f"chunk {number}" if number < len(chunks) else "the index"
        at, due = int(actual[number]), int(expected[number])
        if at > index_offset:
            raise FormatError("chunk-out-of-bounds", f"{what} starts at {at:,}, beyond the index", offset=at)
        code = "chunk-overlap" if at < due else "chunk-gap"
        raise FormatError(code, f"{what} starts at {at:,}, but the one before makes it start at {due:,}", offset=at)
    return chunks


def check_owners(entries: Iterable[TensorEntry], chunks: np.ndarray) -> None:
    """Check that every chunk belongs to exactly one tensor, and that sizes are possible for its layout and codec."""
    owners = sorted((entry for entry in entries if entry.tile_rows), key=attrgetter("first_chunk"))
    ratios: list[int] = []
    tiles_of: list[int] = []
    ratios_of: dict[int, tuple[int, ...]] = {}  # by the identity of codecs, which most tensors share
    raw = chunks["raw"].tolist()
    for entry in owners:
        tiles, ratios_of_tile = entry.tiles, ratios_of.get(id(entry.codecs))
        if ratios_of_tile is None:
            ratios_of_tile = ratios_of[id(entry.codecs)] = _ratios(entry)
        if entry.first_chunk != len(ratios):
            raise FormatError(
                "chunk-assignment",
                f"its chunks start at number {entry.first_chunk:,}, not {len(ratios):,}",
                tensor=entry.name,
            )
        end = len(ratios) + tiles * len(ratios_of_tile)
        if end > len(raw):
            raise FormatError(
                "chunk-assignment", f"it needs chunks up to number {end:,} of {len(raw):,}", tensor=entry.name
            )
        ratios += ratios_of_tile * tiles
        tiles_of.append(tiles)
    if len(ratios) != len(raw):
        raise FormatError("chunk-assignment", f"{len(raw) - len(ratios):,} chunks belong to no tensor")
    _check_ratios(owners, chunks, np.array(ratios, np.uint64))
    for entry, tiles in zip(owners, tiles_of, strict=True):
        _check_sizes(entry, tiles, raw)


def _ratios(entry: TensorEntry) -> tuple[int, ...]:
    """Of its arrays: how many bytes one stored byte can decode to."""
    return tuple(
        _DERIVED if entry.is_left_out(array) else CODECS[codec].max_ratio for array, codec in entry.codecs.items()
    )


def _check_ratios(owners: list[TensorEntry], chunks: np.ndarray, ratios: np.ndarray) -> None:
    """Refuse chunks of codecs that cannot do as much as is claimed."""
    raw, stored = chunks["raw"], chunks["stored"]
    # sizes are below 2**36 and ratios below 2**19
    possible = (stored <= raw) & (raw <= stored * ratios)
    possible |= (ratios == _DERIVED) & ((stored == raw) | (stored == 0))
    if possible.all():
        return
    number = int(possible.argmin())
    owner = next(entry for entry in owners if number < entry.first_chunk + entry.chunk_count)
    if ratios[number] == _DERIVED:
        message = f"a chunk that can be derived has {stored[number]:,} bytes"
    else:
        message = f"a chunk of {stored[number]:,} bytes cannot decode to {raw[number]:,}"
    raise FormatError("chunk-size", message, tensor=owner.name)


def _check_sizes(entry: TensorEntry, tiles: int, raw: list[int]) -> None:
    """Refuse sizes that the arrays of a tensor cannot have; `raw`: of all chunks of the file."""
    codecs, dtype, cols, check = entry.codecs, entry.dtype, entry.cols, entry.layout.check_sizes
    arrays, full = len(codecs), tiles - 1
    last, last_rows = entry.first_chunk + full * arrays, entry.rows - full * entry.tile_rows
    try:
        check(dict(zip(codecs, raw[last : last + arrays], strict=True)), dtype, last_rows, cols)
        if full:
            # most tiles have the sizes of another
            for sizes in set(zip(*[iter(raw[entry.first_chunk : last])] * arrays, strict=True)):
                check(dict(zip(codecs, sizes, strict=True)), dtype, entry.tile_rows, cols)
    except FormatError as error:
        raise error.within(entry.name) from None
