"""What differs between two checkpoints, as `sparsefmt diff` lists it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import Any, Literal

from sparsefmt.adapters import Rows
from sparsefmt.checkpoints import comparison
from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.comparison import Difference, Progress
from sparsefmt.cli import output
from sparsefmt.cli.tables import NameTable
from sparsefmt.dtypes import DTYPES
from sparsefmt.grouped_rows import MOST_ROWS, common, grouped
from sparsefmt.patterns import Change

ORDERS = ("name", "equal", "max", "overlap")

JSON_VERSION = 1
"""Raised when a key of the --json output changes its meaning or is removed. New keys do not count."""

What = Literal["equal", "signs", "values", "mask", "dtype", "shape", "only in A", "only in B"]


@dataclass(frozen=True)
class Side:
    """A tensor of one of the checkpoints.

    Attributes:
        scale: name of its scales, if they are taken with it; "" otherwise.
    """

    rows: Rows
    scale: str = ""

    @property
    def dtype(self) -> str:
        return f"{self.rows.dtype.name}{' scaled' if self.scale else ''}"

    @property
    def shape(self) -> str:
        return output.shape(self.rows.shape, self.rows.row_dims)

    def as_object(self) -> dict[str, Any]:
        scaled = {"scale": self.scale} if self.scale else {}
        return {"dtype": self.rows.dtype.name, "shape": list(self.rows.shape), **scaled}


@dataclass
class Compared:
    """A tensor of A, of B or of both.

    Attributes:
        bits: how they differ bit for bit; None unless both have one dtype and shape and were compared.
        change: how they differ as numbers; None unless both have one shape and were compared.
    """

    name: str
    ours: Side | None
    theirs: Side | None
    bits: Difference | None = None
    change: Change | None = None

    @property
    def sides(self) -> list[Side]:
        return [side for side in (self.ours, self.theirs) if side is not None]

    @property
    def in_both(self) -> bool:
        return len(self.sides) == 2

    @property
    def is_scaled(self) -> bool:
        """Whether it is elements and scales in one, and floats in the other."""
        return any(side.scale for side in self.sides)

    @property
    def nbytes(self) -> int:
        return max(side.rows.dense_nbytes for side in self.sides)

    @property
    def equal(self) -> int:
        """Elements that are the same: bit for bit, or as numbers where dtypes differ."""
        if self.change is None:
            return 0
        return self.change.equal if self.bits is None else self.change.elements - self.bits.elements

    @property
    def what(self) -> What:
        """What differs, in a word: the first that holds of what it is one of."""
        if self.ours is None:
            return "only in B"
        if self.theirs is None:
            return "only in A"
        if self.ours.rows.shape != self.theirs.rows.shape:
            return "shape"
        if self.ours.dtype != self.theirs.dtype and not self.is_scaled:
            return "dtype"
        assert self.change is not None
        if self.change.pruned or self.change.regrown:
            return "mask"
        if self.change.equal < self.change.elements:
            return "values"
        return "signs" if self.bits is not None and self.bits.elements else "equal"


class Comparison:
    """The tensors of two checkpoints, and what differs.

    Args:
        globs: patterns as of file names, one of which a name has to match; metadata is left out then.

    Attributes:
        tensors: sorted by name. Scales that are taken with their weights are none.
        metadata: sentences on what differs there.

    Raises:
        SparsefmtError: a tensor is not such as a file could have, or does not fit its scales.
    """

    def __init__(self, ours: Checkpoint, theirs: Checkpoint, globs: Sequence[str] = ()) -> None:
        self._checkpoints = ours, theirs
        self.metadata = [] if globs else comparison.compare_metadata(ours, theirs)
        scaled = comparison.scaled_in_one(ours, theirs)
        scales = {scale for scale, _ in scaled.values()}
        self.tensors: list[Compared] = []
        for name in sorted({*ours.holder, *theirs.holder} - scales):
            if matches(name, globs):
                scale, is_theirs = scaled.get(name, ("", False))
                sides = _side(ours, name, "" if is_theirs else scale), _side(theirs, name, scale if is_theirs else "")
                self.tensors.append(Compared(name, *sides))

    @property
    def _readable(self) -> list[Compared]:
        """Those that both have in one shape."""
        return [each for each in self.tensors if each.in_both and len({side.rows.shape for side in each.sides}) == 1]

    @property
    def nbytes_to_read(self) -> int:
        """Bytes of those of A that `compare` reads, when dense and multiplied out."""
        sides = [each.sides[0] for each in self._readable]
        return sum(
            DTYPES["F32"].nbytes(prod(side.rows.shape)) if side.scale else side.rows.dense_nbytes for side in sides
        )

    def compare(self, progress: Progress | None, threads: int | None) -> None:
        """Read the tensors that both have, one after another.

        Raises:
            as reading the files.
        """
        for checkpoint in self._checkpoints:
            if len(self._readable) == len(checkpoint.holder):  # a few are asked for one by one
                checkpoint.expect()
        for each in self._readable:
            ours, theirs = (
                comparison.multiplied_out(checkpoint, each.name, side.scale) if side.scale else side.rows
                for checkpoint, side in zip(self._checkpoints, each.sides, strict=True)
            )
            each.bits, each.change = comparison.compare_numbers(ours, theirs, progress=progress, threads=threads)

    @property
    def in_both(self) -> int:
        """How many tensors both have, shapes and dtypes aside."""
        return sum(each.in_both for each in self.tensors)

    @property
    def differing(self) -> list[Compared]:
        return [each for each in self.tensors if each.what != "equal"]

    @property
    def differences(self) -> int:
        return len(self.differing) + len(self.metadata)

    @property
    def total(self) -> Change:
        """Of all tensors that were compared."""
        return _summed(self.tensors)

    def table(self, show_all: bool, order: str) -> NameTable:
        """The tensors that differ, a row for each; if they are many, for each pattern of names. With `show_all`, all
        tensors, a row for each."""
        tensors = self.tensors if show_all else self.differing
        if show_all or len(tensors) <= MOST_ROWS:
            rows = [(each.name, [each]) for each in tensors]
        else:
            rows = grouped(tensors, lambda each: (each.name, _kind(each)), lambda each: each.nbytes)
        if order != "name":
            rows.sort(key=lambda row: _KEYS[order](row[1]))
        counts = ("n",) if any(len(row[1]) > 1 for row in rows) else ()
        numbers: tuple[str, ...] = ("equal", "max |a-b|", "zeros A", "zeros B", "lost", "overlap")
        if not any(each.change for each in tensors):
            numbers = ()
        columns = ("shape", "dtype", "differs", *counts, *numbers)
        made = output.table("tensor", *columns, left=4, most_lines=1)
        for label, together in rows:
            lost = any(each.change is not None and each.change.regrown for each in together)
            cells = (_cell(column, together) for column in columns)
            output.add_row(made, label, *cells, style=output.WARNING if lost else "")
        return made

    def notes(self) -> Iterator[str]:
        """Sentences on all tensors that both have."""
        total, compared = self.total, [each for each in self.tensors if each.change is not None]
        if total.elements:
            equal = sum(each.equal for each in compared)
            yield (
                f"Elements of both: {output.share(equal, total.elements)} equal, |a - b| {total.largest:.3g} at most,"
                f" {total.mean:.3g} in the mean."
            )
        if total.zeros_before or total.zeros_after:
            zeros = (output.percent(count, total.elements) for count in (total.zeros_before, total.zeros_after))
            yield (
                f"Zeros: {' in A, '.join(zeros)} in B. {output.plural(total.regrown, 'zero')} of A lost in B,"
                f" {total.pruned:,} new. Masks overlap by {output.share(total.kept, _union(total))}."
            )
        for what, count in (
            ("Only signs of zeros or bits of NaNs differ in", sum(each.what == "signs" for each in compared)),
            ("Differences are NaN or infinite, and not counted in |a - b|, in", sum(map(_not_finite, compared))),
        ):
            if count:
                yield f"{what} {output.plural(count, 'tensor')}."
        if total.elements:
            yield "lost: share of A's zeros that are not zero in B."
            yield "overlap: of the elements that are not zero in A or in B, the share that is not zero in both."

    def as_object(self) -> dict[str, Any]:
        """For --json. The help of the command describes it."""
        total = self.total
        return {
            "json_version": JSON_VERSION,
            **{
                side: {"path": str(checkpoint.path), "format": checkpoint.file_format, "nbytes": checkpoint.nbytes}
                for side, checkpoint in zip("ab", self._checkpoints, strict=True)
            },
            "differences": self.differences,
            "metadata": self.metadata,
            "tensors": [_as_object(each) for each in self.tensors],
            "total": {"tensors": self.in_both, "differing": len(self.differing), **_numbers(total)},
        }


def _side(checkpoint: Checkpoint, name: str, scale: str) -> Side | None:
    return Side(checkpoint.rows_of(name), scale) if name in checkpoint.holder else None


def matches(name: str, globs: Sequence[str]) -> bool:
    return not globs or any(fnmatchcase(name, glob) for glob in globs)


def _kind(each: Compared) -> object:
    return each.what, tuple((side.dtype, side.rows.shape) for side in each.sides)


def _summed(tensors: Sequence[Compared]) -> Change:
    return sum((each.change for each in tensors if each.change is not None), Change())


def _union(change: Change) -> int:
    """Elements that are not zero in one or the other."""
    return change.kept + change.pruned + change.regrown


def _not_finite(each: Compared) -> bool:
    return each.change is not None and each.change.not_finite > 0


_KEYS: dict[str, Callable[[Sequence[Compared]], float]] = {
    "equal": lambda tensors: sum(each.equal for each in tensors) / max(_summed(tensors).elements, 1),
    "max": lambda tensors: -_summed(tensors).largest,
    "overlap": lambda tensors: _summed(tensors).overlap,
}
"""By what rows are sorted, the lowest first: those that differ most."""


def _cell(column: str, tensors: Sequence[Compared]) -> str:
    """What a row for these tensors has in a column."""
    change = _summed(tensors)
    if column not in ("shape", "dtype", "differs", "n") and all(each.change is None for each in tensors):
        return ""
    makers: dict[str, Callable[[], str]] = {
        "shape": lambda: common(_from_to(each, "shape") for each in tensors),
        "dtype": lambda: common(_from_to(each, "dtype") for each in tensors),
        "differs": lambda: common("-" if each.what == "equal" else each.what for each in tensors),
        "n": lambda: f"{len(tensors):,}",
        "equal": lambda: output.share(sum(each.equal for each in tensors), change.elements),
        "max |a-b|": lambda: f"{change.largest:.3g}",
        "zeros A": lambda: output.share(change.zeros_before, change.elements),
        "zeros B": lambda: output.share(change.zeros_after, change.elements),
        "lost": lambda: output.share(change.regrown, change.zeros_before),
        "overlap": lambda: output.share(change.kept, _union(change)),
    }
    return makers[column]()


def _from_to(each: Compared, attribute: str) -> str:
    """ "F32", or "F32>BF16"."""
    return ">".join(dict.fromkeys(getattr(side, attribute) for side in each.sides))


def _numbers(change: Change) -> dict[str, Any]:
    return {
        "elements": change.elements,
        "equal_numbers": change.equal,
        "largest": change.largest,
        "mean": change.mean,
        "not_finite": change.not_finite,
        "zeros": [change.zeros_before, change.zeros_after],
        "kept": change.kept,
        "pruned": change.pruned,
        "zeros_lost": change.regrown,
        "overlap": change.overlap,
    }


def _as_object(each: Compared) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": each.name,
        "differs": None if each.what == "equal" else each.what,
        "a": None if each.ours is None else each.ours.as_object(),
        "b": None if each.theirs is None else each.theirs.as_object(),
    }
    if each.change is not None:
        found |= {"equal": each.equal, **_numbers(each.change)}
    return found
