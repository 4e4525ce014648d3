"""The chunk table: how long the bytes of each array of each tile are, where they lie, and whether that can be. No I/O.

In the file a table by columns, in file order: raw sizes, stored sizes unless all are the raw ones, and XXH64 of the
stored bytes. Sizes have as many bytes as the largest takes. The chunks lie one after the other; where each starts
follows from its sizes, and padding goes before those that are stored as they are. A tensor owns the run of records that
starts at its `first_chunk`: tile by tile, and within a tile one for each of its arrays in order of their names.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from operator import attrgetter

import numpy as np

from sparsefmt.codecs import CODECS
from sparsefmt.container.entry import FOLLOWS, TensorEntry
from sparsefmt.container.envelope import PREAMBLE_SIZE
from sparsefmt.errors import FormatError, LimitError
from sparsefmt.layouts.memory import ALIGNMENT, SMALL_ALIGNMENT
from sparsefmt.limits import MAX_CHUNK_BYTES

STORED_RECORD = np.dtype([("stored", "<u8"), ("raw", "<u8"), ("checksum", "<u8")])
"""What the file says of a chunk."""

CHUNK_RECORD = np.dtype([("offset", "<u8"), *STORED_RECORD.descr, ("padding", "<u8")])
"""A record with what follows from it: where the chunk starts, and how many zeros are behind it."""

_WIDTHS = (1, 2, 4, 8)
"""Bytes that a size may take."""

LARGE = 1 << 15
"""Bytes from which on a chunk that is stored raw starts at a multiple of ALIGNMENT, a cache line and the widest vector
register, or of what of that divides its size. Smaller ones start at multiples of SMALL_ALIGNMENT, and coded ones
anywhere. So padding is never more than a small part of a file."""

_DERIVED = 0
"""In place of a ratio: the array follows from others, and is not stored, or is stored as it is."""


def start(end: int, stored: int, raw: int) -> int:
    """Where a chunk of these sizes starts, if the one before ends at `end`."""
    if stored != raw:
        return end
    unit = max(math.gcd(raw, ALIGNMENT), SMALL_ALIGNMENT) if raw >= LARGE else SMALL_ALIGNMENT
    return (end + unit - 1) & -unit


def encode_chunks(chunks: np.ndarray) -> bytes:
    """The chunk table, of CHUNK_RECORD or STORED_RECORD, as it stands in the file."""
    if not len(chunks):
        return b""
    sizes = [chunks["raw"]]
    if (chunks["stored"] != chunks["raw"]).any():
        sizes.append(chunks["stored"])
    widths = [_width(column) for column in sizes]
    columns = [column.astype(f"<u{width}").tobytes() for column, width in zip(sizes, widths, strict=True)]
    return b"".join((bytes([sum(widths[:1]) + 16 * sum(widths[1:])]), *columns, chunks["checksum"].tobytes()))


def _width(column: np.ndarray) -> int:
    """Bytes that each of some sizes takes."""
    largest = int(column.max())
    return next(width for width in _WIDTHS if largest < 1 << 8 * width)


def decode_chunks(table: bytes, index_offset: int) -> np.ndarray:
    """Where the chunks lie, CHUNK_RECORD. Checks that they end where the index starts."""
    return place_chunks(_decode_records(table), index_offset)


def _decode_records(table: bytes) -> np.ndarray:
    """The records of a chunk table, STORED_RECORD."""
    if not table:
        return np.empty(0, STORED_RECORD)
    raw_width, stored_width = table[0] % 16, table[0] // 16
    if raw_width not in _WIDTHS or stored_width not in (0, *_WIDTHS):
        raise FormatError("index-type", f"the chunk table begins with {table[0]}, which are not widths of sizes")
    size = raw_width + stored_width + 8
    count, rest = divmod(len(table) - 1, size)
    if rest:
        raise FormatError("index-type", f"the chunk table has {len(table):,} bytes, not 1 and a multiple of {size}")
    records = np.empty(count, STORED_RECORD)
    raw = np.frombuffer(table, f"<u{raw_width}", count, 1)
    stored = np.frombuffer(table, f"<u{stored_width}", count, 1 + count * raw_width) if stored_width else raw
    records["raw"], records["stored"] = raw, stored
    records["checksum"] = np.frombuffer(table, "<u8", count, 1 + count * (raw_width + stored_width))
    is_shortest = count > 0 and raw_width == _width(raw)
    if is_shortest and stored_width:
        is_shortest = stored_width == _width(stored) and not (stored == raw).all()
    if not is_shortest:
        raise FormatError("index-not-canonical", "the chunk table is longer than it need be")
    return records


def place_chunks(records: np.ndarray, index_offset: int) -> np.ndarray:
    """Where chunks of these STORED_RECORD lie, CHUNK_RECORD. Checks that they end where the index starts."""
    stored, raw = records["stored"], records["raw"]
    too_large = np.maximum(stored, raw) > MAX_CHUNK_BYTES
    if too_large.any():
        raise LimitError("chunk-limit", f"chunk {int(too_large.argmax())} is over {MAX_CHUNK_BYTES:,} bytes")
    # sizes are at most 2**36 and records fewer than 2**25: offsets fit
    ends, starts, end = [PREAMBLE_SIZE], [], PREAMBLE_SIZE
    for stored_size, raw_size in zip(stored.tolist(), raw.tolist(), strict=True):
        begin = start(end, stored_size, raw_size)
        starts.append(begin)
        end = begin + stored_size
        ends.append(end)
    if end > index_offset:
        number = int(np.searchsorted(ends, index_offset, "right")) - 1
        raise FormatError(
            "chunk-out-of-bounds", f"chunk {number} ends at {ends[number + 1]:,}, beyond the start of the index"
        )
    if end < index_offset:
        raise FormatError(
            "chunk-gap", f"the index starts at {index_offset:,}, and the chunks end at {end:,}", offset=end
        )
    chunks = np.empty(len(starts), CHUNK_RECORD)
    chunks["offset"], chunks["stored"], chunks["raw"] = starts, stored, raw
    chunks["checksum"] = records["checksum"]
    chunks["padding"] = np.array([*starts[1:], end], np.uint64) - np.array(ends[1:], np.uint64) if starts else 0
    return chunks


def put_first_chunks(entries: Iterable[TensorEntry]) -> bool:
    """Give those entries their `first_chunk` whose chunks follow on those of the entry before.

    Args:
        entries: those with tiles, in the order of the index.

    Returns:
        whether the chunks of all of them lie in that order.
    """
    end, in_order = 0, True
    for entry in entries:
        if entry.first_chunk == FOLLOWS:
            entry.first_chunk = end
        elif entry.first_chunk == end:
            raise FormatError(
                "index-not-canonical",
                f"first_chunk is {end:,}, as if it were left out: so it must be",
                tensor=entry.name,
            )
        else:
            in_order = False
        end = entry.first_chunk + entry.chunk_count
    return in_order


def check_owners(entries: Iterable[TensorEntry], chunks: np.ndarray) -> None:
    """Check that every chunk belongs to exactly one tensor, and that sizes are possible for its layout and codec."""
    entries = [entry for entry in entries if entry.tile_rows]
    owners = entries if put_first_chunks(entries) else sorted(entries, key=attrgetter("first_chunk"))
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
