"""Reads an array of a tile from its chunk: the bytes verified, then decoded by the codec of the array."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from sparsefmt.codecs import CODECS
from sparsefmt.codecs.contract import ArrayInfo, Coder
from sparsefmt.container import envelope
from sparsefmt.container.entry import TensorEntry
from sparsefmt.container.sources import Source
from sparsefmt.errors import ChecksumError, FormatError
from sparsefmt.layouts.memory import Arena, empty, frozen
from sparsefmt.layouts.tile import Tile

MOST_CODERS = 16
"""Coders with models that an open file keeps, those used last: the arrays of a few tensors, each some 100 KB."""

Record = tuple[int, int, int, int, int]
"""A record of the chunk table: offset, stored size, raw size, checksum, zeros behind it. Four times as fast as numpy's
records."""


class _Stored(NamedTuple):
    """The bytes of a chunk, and where in the file they are."""

    offset: int
    data: np.ndarray


class ArrayReader:
    """Reads the arrays of tiles from a source. Safe to use from many threads.

    Args:
        most_coders: how many coders with models are kept, so that tiles to come need not read them again.
    """

    def __init__(self, source: Source, most_coders: int = MOST_CODERS) -> None:
        self._source = source
        self._coder = lru_cache(maxsize=most_coders)(_coder)

    def read(self, record: Record, entry: TensorEntry, tile: Tile, array: str, arena: Arena | None) -> np.ndarray:
        """One array of a tile, its layout not yet checked. Mapped, not copied, if it is stored raw.

        Args:
            tile: has the arrays that come before this one by name, if the layout needs them.
            arena: where to put it, if given.
        """
        stored, raw_size = self._stored(record, array), record[2]
        dtype = tile.array_dtype(array)
        if stored.size == raw_size:
            return _kept(stored.view(dtype), arena)
        decoded = (empty if arena is None else arena.empty)(raw_size // dtype.itemsize, dtype)
        self._decode(_Stored(record[0], stored), entry, tile, array, decoded)
        return frozen(decoded)

    def read_again(self, record: Record, entry: TensorEntry, tile: Tile, array: str, arena: Arena | None) -> np.ndarray:
        """The same of an array that is stored raw, was verified before, and is the same memory."""
        return _kept(self._source.read(record[0], record[1]).view(tile.array_dtype(array)), arena)

    def read_dense(self, record: Record, entry: TensorEntry, tile: Tile) -> None:
        """Fill the flat array `values` of a tile of layout `dense`."""
        stored, out = self._stored(record, "values"), tile.arrays["values"]
        if stored.size == out.nbytes:
            out.view(np.uint8)[:] = stored
        else:
            self._decode(_Stored(record[0], stored), entry, tile, "values", out)

    def expect(self, records: np.ndarray, times: int = 1) -> None:
        """Hint that the chunks of these records will be read soon, each so many times."""
        sizes = records["stored"] + records["padding"]
        self._source.expect(zip(records["offset"].tolist(), sizes.tolist(), strict=True), times)

    def forget_coders(self) -> None:
        """Let go of the coders. They are made again when they are needed."""
        self._coder.cache_clear()

    def _stored(self, record: Record, array: str) -> np.ndarray:
        """The bytes of a chunk, its checksum and padding verified."""
        offset, size, _, checksum, padding = record
        padded = self._source.read(offset, size + padding)
        stored = padded[:size]
        if envelope.checksum(stored.data) != checksum:
            self._source.expect_unchanged()
            raise ChecksumError(
                "chunk-checksum", f"array {array!r} is damaged: its checksum does not match", offset=offset
            )
        if padding:
            expect_zeros(padded[size:], offset + size)
        return stored

    def _decode(self, stored: _Stored, entry: TensorEntry, tile: Tile, array: str, out: np.ndarray) -> None:
        """Decode a chunk into flat `out`."""
        layout, codec = entry.layout, CODECS[entry.codecs[array]]
        info = ArrayInfo(out.itemsize, entry.rows, entry.cols, array == layout.mask)
        try:
            if not codec.has_models:
                positions = tile.positions(array) if info.is_mask else None
                codec.coder(b"", info).decode(stored.data, positions, out.view(np.uint8))
            elif entry.is_left_out(array):
                layout.derive(array, tile, out)
            else:
                coder = self._coder(codec.name, entry.models[array], info)
                coder.decode(stored.data, tile.positions(array), out.view(np.uint8))
        except FormatError as error:
            raise FormatError(error.code, f"array {array!r}: {error.message}", offset=stored.offset) from None
        self._source.forget(stored.offset, stored.data.size)


def _kept(stored: np.ndarray, arena: Arena | None) -> np.ndarray:
    """An array that is stored as it is, in an arena if there is one."""
    return frozen(stored) if arena is None else arena.moved(stored)


def _coder(codec: str, model: bytes, info: ArrayInfo) -> Coder:
    return CODECS[codec].coder(model, info)


def expect_zeros(padding: np.ndarray, offset: int) -> None:
    """Refuse padding that is not zero."""
    # a check of every array: this is faster than .any()
    if padding.tobytes().strip(b"\0"):
        raise FormatError("padding-not-zero", "padding is not zero", offset=offset + int(np.flatnonzero(padding)[0]))
