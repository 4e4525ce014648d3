"""Verifies the tensors of a .sparsefmt file, alone or against those that they were made of, a tile at a time.

A strict check also writes again what was read, and compares: the format has one form for each content, and a file must
have that one. Reading checks as much by rules, one by one. This asks the writing side instead, which shares no code
with those rules: an array or an index that passes all of them and is not what writing would make shows here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsefmt import slicing
from sparsefmt.adapters import Rows
from sparsefmt.checkpoints.comparison import Difference, Progress, compare_bits
from sparsefmt.container import index
from sparsefmt.container.entry import TensorEntry
from sparsefmt.container.envelope import MINOR
from sparsefmt.container.reader import Reader
from sparsefmt.errors import FormatError
from sparsefmt.layouts import heights
from sparsefmt.layouts.tile import Tile


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
        dropped = entry.dtype if entry.negative_zeros_dropped else None

        def visit(tile: Tile, number: int) -> Difference:
            begin, end = entry.tile_range(number)
            found = Difference()
            if self.strict:
                check_tile(entry.name, tile, number)
            if against is not None:
                for first, last in slicing.runs(begin, end, entry.cols):
                    bits = tile.to_dense(first - begin, last - begin)
                    run = compare_bits(bits, against.bits(first, last), first * entry.cols, dropped)
                    found = found.followed_by(run)
            if self.progress:
                self.progress(entry.dtype.nbytes((end - begin) * entry.cols))
            return found

        total = Difference()
        for found in reader.each_tile(entry, visit, self.threads):
            total = total.followed_by(found)
        return total


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
