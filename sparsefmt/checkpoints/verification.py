"""Verifies tensors, and compares models: names, dtypes, shapes, and every bit, a tile at a time.

A strict check also writes again what was read, and compares: the format has one form for each content, and a file must
have that one. Reading checks as much by rules, one by one. This asks the writing side instead, which shares no code
with those rules: an array or an index that passes all of them and is not what writing would make shows here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np

from sparsefmt import slicing
from sparsefmt.adapters import Rows
from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.container import index
from sparsefmt.container.entry import TensorEntry
from sparsefmt.container.envelope import MINOR
from sparsefmt.container.reader import Reader
from sparsefmt.dtypes import DType
from sparsefmt.errors import FormatError
from sparsefmt.layouts import auto
from sparsefmt.layouts.tile import Tile
from sparsefmt.threads import in_order

Progress = Callable[[int], object]
"""Called with the dense bytes of each tile done."""


class Difference(NamedTuple):
    """How a tensor differs from another of the same dtype and shape.

    Attributes:
        elements: how many differ.
        first: row-major number of the first that does; -1 if none does.
        bits: of that element, in this tensor and in the other.
        signs: elements that are 0 here and -0.0 there, where that is not counted as a difference.
    """

    elements: int = 0
    first: int = -1
    bits: tuple[int, int] = (0, 0)
    signs: int = 0

    def followed_by(self, later: Difference) -> Difference:
        """The difference of two runs of elements together, `later` having its numbers in the same tensor."""
        first = later if self.first < 0 else self
        return Difference(self.elements + later.elements, first.first, first.bits, self.signs + later.signs)


def compare_tensors(
    ours: Rows, theirs: Rows, *, progress: Progress | None = None, threads: int | None = None
) -> Difference:
    """Compare two tensors of the same dtype and shape bit for bit, holding a few tiles of each."""
    height = ours.tile_rows("dense")

    def compare(begin: int) -> Difference:
        end = min(begin + height, ours.rows)
        found = compare_bits(ours.bits(begin, end), theirs.bits(begin, end), begin * ours.cols)
        if progress:
            progress(ours.dtype.nbytes((end - begin) * ours.cols))
        return found

    total = Difference()
    for found in in_order(compare, range(0, ours.rows if height else 0, height or 1), threads):
        total = total.followed_by(found)
    return total


def compare_bits(ours: np.ndarray, theirs: np.ndarray, begin: int, dropped: DType | None = None) -> Difference:
    """Compare bits of one shape, whose first element has number `begin` in its tensor.

    Args:
        dropped: the dtype, if negative zeros of `theirs` have become zeros in `ours`: that is counted in `signs` then.
    """
    if np.array_equal(ours, theirs):
        return Difference()
    unequal = ours != theirs
    signs = 0
    if dropped is not None and dropped.negative_zero:
        cleared = unequal & (ours == 0) & (theirs == ours.dtype.type(dropped.negative_zero))
        signs = int(np.count_nonzero(cleared))
        unequal &= ~cleared
    elements = int(np.count_nonzero(unequal))
    if not elements:
        return Difference(signs=signs)
    first = int(unequal.argmax())
    bits = int(ours.reshape(-1)[first]), int(theirs.reshape(-1)[first])
    return Difference(elements, begin + first, bits, signs)


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


def compare_names(ours: Checkpoint, theirs: Checkpoint) -> tuple[list[str], set[str]]:
    """Sentences on tensors that only one has or whose dtype or shape differ, and the names of all other tensors."""
    differences = []
    comparable = set()
    for name in sorted({*ours.holder, *theirs.holder}):
        if name not in theirs.holder or name not in ours.holder:
            holder, other = (ours, theirs) if name in ours.holder else (theirs, ours)
            differences.append(f"tensor {name!r}: only in {holder.path}, not in {other.path}")
            continue
        one, two = ours.rows_of(name), theirs.rows_of(name)
        if one.dtype != two.dtype or one.shape != two.shape:
            differences.append(
                f"tensor {name!r}: {one.dtype.name} {list(one.shape)} in {ours.path}, "
                f"{two.dtype.name} {list(two.shape)} in {theirs.path}"
            )
        else:
            comparable.add(name)
    return differences, comparable


def compare_metadata(ours: Checkpoint, theirs: Checkpoint) -> list[str]:
    """Sentences on metadata that differs; that of several files is taken together."""
    one, two = _metadata(ours), _metadata(theirs)
    return [
        f"metadata {key!r}: {sorted(one.get(key, ()))} in {ours.path}, {sorted(two.get(key, ()))} in {theirs.path}"
        for key in sorted({*one, *two})
        if one.get(key) != two.get(key)
    ]


def _metadata(checkpoint: Checkpoint) -> dict[str, set[str]]:
    values: dict[str, set[str]] = {}
    for file in checkpoint.files:
        for key, value in file.metadata.items():
            values.setdefault(key, set()).add(value)
    return values


def describe(name: str, dtype: DType, shape: tuple[int, ...], difference: Difference) -> str:
    """A sentence on a tensor whose elements differ."""
    position = [int(place) for place in np.unravel_index(difference.first, shape)] if shape else []
    ours, theirs = (f"0x{bits:0{max(dtype.nbits, 8) // 4}x}" for bits in difference.bits)
    return (
        f"tensor {name!r}: {difference.elements:,} of {prod(shape):,} elements differ, first at {position}: "
        f"bits {ours}, not {theirs}"
    )


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
    if tile.layout.sparse and auto.is_very_sparse(tile.rows, tile.cols, tile.nnz) and not signs:
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
