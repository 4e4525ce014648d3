"""Verifies the tensors of a .sparsefmt file, alone or against those that they were made of, a tile at a time.

A strict check also writes again what was read, and compares: the format has one form for each content, and a file must
have that one. Reading checks as much by rules, one by one. This asks the writing side instead, which shares no code
with those rules: an array or an index that passes all of them and is not what writing would make shows here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np

from sparsefmt import slicing
from sparsefmt.adapters import Rows
from sparsefmt.checkpoints.comparison import Difference, Progress, compare_bits
from sparsefmt.checkpoints.sparsefmt_file import EntryRows
from sparsefmt.container import index
from sparsefmt.container.entry import TensorEntry
from sparsefmt.container.envelope import MINOR
from sparsefmt.container.reader import Reader
from sparsefmt.errors import FormatError, SparsefmtError
from sparsefmt.layouts import heights
from sparsefmt.layouts.tile import Tile
from sparsefmt.threads import in_batches


class Verified(NamedTuple):
    """A tensor to be verified.

    Attributes:
        reader, entry: of the file that it is in, and of the tensor.
        against: one of the same dtype and shape to be compared with it.
    """

    reader: Reader
    entry: TensorEntry
    against: Rows | None = None

    def cut_alike(self) -> None:
        """Let the other one have rows like these, where it has no cut of its own, as tensors of .sparsefmt files do."""
        other, row_dims = self.against, self.entry.row_dims
        if other is not None and other.row_dims != row_dims and not isinstance(other, EntryRows):
            other.stack(row_dims)


class _Place(NamedTuple):
    """A tile of a tensor."""

    tensor: Verified
    number: int

    def nbytes(self) -> int:
        entry = self.tensor.entry
        return entry.dtype.nbytes(entry.tile_elements(self.number))


class _Found(NamedTuple):
    """What is in a tile, and how it differs from what it is compared with."""

    nnz: int
    has_negative_zeros: bool
    difference: Difference


@dataclass(frozen=True)
class Verifier:
    """How tensors of a file are verified.

    Attributes:
        strict: also lay every tile out again, and compare its arrays with those in the file.
        threads: the number of threads; by default all usable cores.
    """

    strict: bool = False
    progress: Progress | None = None
    threads: int | None = None

    def verify(self, reader: Reader, entry: TensorEntry, against: Rows | None = None) -> Difference:
        """Check all checksums and invariants of a tensor, and compare it with another of its dtype and shape.

        Where negative zeros were dropped when the file was written, 0 here and -0.0 there are equal, and `signs` of the
        result counts them. Each chunk is read and decoded once; a few tiles are held.

        Raises:
            FormatError, ChecksumError: the file is damaged or forged.
        """
        (found,) = self.verify_all([Verified(reader, entry, against)])
        if isinstance(found, SparsefmtError):
            raise found
        return found

    def verify_all(self, tensors: Sequence[Verified]) -> Iterator[Difference | SparsefmtError]:
        """What `verify` finds of each tensor, in order, or the error that it would raise: one does not stop the others.

        Tiles of several tensors are worked on at a time, so that all threads have work where tensors are small.
        """
        for tensor in tensors:
            tensor.cut_alike()
        if len(tensors) > 1:
            for reader in {id(tensor.reader): tensor.reader for tensor in tensors}.values():
                reader.expect_all()
        places = (_Place(tensor, number) for tensor in tensors for number in range(tensor.entry.tiles))
        found = in_batches(self._visit, places, _Place.nbytes, self.threads)
        for tensor in tensors:
            yield self._summed(tensor, list(islice(found, tensor.entry.tiles)))

    def _visit(self, place: _Place) -> _Found | SparsefmtError:
        """What is found in a tile."""
        (reader, entry, against), number = place
        dropped = entry.dtype if entry.negative_zeros_dropped else None
        begin, end = entry.tile_range(number)
        difference = Difference()
        try:
            tile = reader.tile(entry, number)
            totals = tile.nnz, tile.has_negative_zeros
            if self.strict:
                check_tile(entry.name, tile, number)
            if against is not None:
                for first, last in slicing.runs(begin, end, entry.cols):
                    bits = tile.to_dense(first - begin, last - begin)
                    theirs = _elements(against, first * entry.cols, last * entry.cols).reshape(bits.shape)
                    run = compare_bits(bits, theirs, first * entry.cols, dropped)
                    difference = difference.followed_by(run)
        except SparsefmtError as error:
            return error
        if self.progress:
            self.progress(place.nbytes())
        return _Found(*totals, difference)

    @staticmethod
    def _summed(tensor: Verified, tiles: Sequence[_Found | SparsefmtError]) -> Difference | SparsefmtError:
        nnz, has_negative_zeros, total = 0, False, Difference()
        for found in tiles:
            if isinstance(found, SparsefmtError):
                return found
            nnz += found.nnz
            has_negative_zeros |= found.has_negative_zeros
            total = total.followed_by(found.difference)
        try:
            tensor.reader.check_totals(tensor.entry, nnz, has_negative_zeros)
        except SparsefmtError as error:
            return error
        return total


def _elements(rows: Rows, begin: int, end: int) -> np.ndarray:
    """Bits of the elements number `begin` to `end` of a tensor in row-major order, flat."""
    first, last = begin // rows.cols, -(-end // rows.cols)
    return rows.bits(first, last).reshape(-1)[begin - first * rows.cols : end - first * rows.cols]


def check_index(reader: Reader) -> None:
    """Encode the index again, and compare what it says with the one in the file.

    Raises:
        FormatError: they differ (`not-canonical`). An index of a later minor version does if it says what this version
            does not know.
    """
    stored, again = (index.content(encoded) for encoded in (reader.encoded_index(), reader.index.encode()))
    if stored != again and reader.minor > MINOR:
        raise FormatError("not-canonical", f"the index has keys of format 1.{reader.minor}, which this version ignores")
    if stored != again:
        raise FormatError(
            "not-canonical",
            "the index says other things when it is written again by this version",
        )


def check_tile(name: str, tile: Tile, number: int) -> None:
    """Lay the content of a tile out again, and compare all arrays. Large tiles that are nearly empty stay sparse.

    Args:
        name: of the tensor, for errors.

    Raises:
        FormatError: an array differs (`not-canonical`).
    """
    signs = tile.negative_zeros is not None
    if tile.layout.sparse and heights.is_very_sparse(tile.rows, tile.cols, tile.nnz) and not signs:
        again = Tile.from_entries(tile.layout, tile.entries(), tile.dtype, tile.shape)
    else:
        again = Tile.from_dense(tile.layout, tile.to_dense(0, tile.rows), tile.dtype)
    if signs:
        again = again.with_sign_array()
    stored, made = tile.all_arrays(), again.all_arrays()
    for array in sorted(stored.keys() | made.keys()):
        if array not in stored or array not in made or not np.array_equal(stored[array], made[array]):
            raise FormatError(
                "not-canonical",
                f"array {array!r} of tile {number} is not what the tile's elements give when they are laid out again",
                tensor=name,
            )
