"""The tensors of a checkpoint of any format, as `sparsefmt inspect` lists them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.contract import TensorFile
from sparsefmt.checkpoints.scales import scales_in
from sparsefmt.checkpoints.sparsefmt_file import SparsefmtFile
from sparsefmt.cli import output
from sparsefmt.cli.tables import NameTable
from sparsefmt.container.entry import TensorEntry
from sparsefmt.dtypes import DTYPES
from sparsefmt.errors import FormatError, UnsupportedError
from sparsefmt.grouped_rows import MOST_ROWS, common, grouped
from sparsefmt.patterns import Pattern, is_looked_at

ORDERS = ("name", "bytes", "zeros")

MOST_PATTERNS = 2
"""The most patterns that a row of several tensors names."""


@dataclass
class Listed:
    """A tensor of a checkpoint.

    Attributes:
        file: where it is.
        entry: its entry in a .sparsefmt file.
        same_as: name of the tensor that it is, or has the same elements as; "" if none.
        is_copy: whether only the elements are the same.
        stored_nbytes: in a .sparsefmt file.
        scale_nbytes: of the scales of a scaled weight, beside it.
        pattern: once `Listing.find_patterns` has read it, unless its dtype cannot be pruned.
    """

    name: str
    file: TensorFile
    dtype: str = ""
    shape: tuple[int, ...] = ()
    row_dims: int = 1
    dense_nbytes: int = 0
    elements: int = 0
    entry: TensorEntry | None = None
    same_as: str = ""
    is_copy: bool = False
    stored_nbytes: int | None = None
    scale_nbytes: int = 0
    pattern: Pattern | None = None

    @property
    def zeros(self) -> int | None:
        """How many elements are zero, if that is known."""
        if self.pattern is not None:
            return self.pattern.zeros
        if self.entry is not None and self.entry.nnz is not None:
            return self.elements - self.entry.nnz
        return None

    @property
    def nbytes(self) -> int:
        """What it takes in its file."""
        return self.dense_nbytes if self.stored_nbytes is None else self.stored_nbytes

    @property
    def stored_bits(self) -> float | None:
        """Bits that an element takes in a .sparsefmt file, with its scales if it has some; None without elements."""
        if self.stored_nbytes is None or not self.elements:
            return None
        return 8 * (self.stored_nbytes + self.scale_nbytes) / self.elements


class Listing:
    """The tensors of a checkpoint.

    Args:
        globs: patterns as of file names, one of which a name has to match; all names if there is none.

    Attributes:
        tensors: sorted by name.

    Raises:
        SparsefmtError: a tensor is not such as a file could have; it is named.
    """

    def __init__(self, checkpoint: Checkpoint, globs: Sequence[str] = ()) -> None:
        self.tensors = [
            _listed(name, checkpoint.holder[name])
            for name in checkpoint.names
            if not globs or any(fnmatchcase(name, glob) for glob in globs)
        ]
        self._faults: list[str] = []
        scales = {id(file): self._scales_of(file) for file in checkpoint.files}
        for listed in self.tensors:
            listed.scale_nbytes = scales[id(listed.file)].get(listed.name, 0)

    def _scales_of(self, file: TensorFile) -> dict[str, int]:
        """Bytes of the scales of scaled weights, by name of the weight. A file is good without them."""
        if not isinstance(file, SparsefmtFile):
            return {}
        index = file.reader.index
        try:
            pairs = scales_in(file.metadata, index.names)
        except (FormatError, UnsupportedError) as error:
            self._faults.append(f"No product can use the scales of {file.path}: {error}.")
            return {}
        return {weight: index.stored_nbytes(index.entry(scale)) for weight, scale in pairs.items()}

    def of_file(self, file: TensorFile) -> list[Listed]:
        return [listed for listed in self.tensors if listed.file is file]

    @property
    def _readable(self) -> list[Listed]:
        return [listed for listed in self.tensors if not listed.same_as and is_looked_at(DTYPES[listed.dtype])]

    @property
    def nbytes_to_read(self) -> int:
        """Bytes of what `find_patterns` reads, when dense."""
        return sum(listed.dense_nbytes for listed in self._readable)

    def find_patterns(self, find: Callable[[Sequence[tuple[TensorFile, str]]], Sequence[Pattern]]) -> None:
        """Have the patterns of all tensors found, and keep them. find: gives those of files and names, in order."""
        readable = self._readable
        found = find([(listed.file, listed.name) for listed in readable])
        for listed, pattern in zip(readable, found, strict=True):
            listed.pattern = pattern

    def table(self, show_all: bool, order: str) -> NameTable:
        """The tensors, a row for each; if they are many, a row for each pattern of names, unless `show_all`."""
        if show_all or len(self.tensors) <= MOST_ROWS:
            rows = [(listed.name, [listed]) for listed in self.tensors]
        else:
            rows = grouped(
                [listed for listed in self.tensors if not listed.same_as],
                lambda listed: (listed.name, (listed.dtype, listed.shape)),
                lambda listed: listed.nbytes,
            )
        if order == "bytes":
            rows.sort(key=lambda row: -sum(listed.nbytes for listed in row[1]))
        elif order == "zeros":
            rows.sort(key=lambda row: -_share(*_zeros(row[1])))
        columns = self._columns(is_grouped=any(len(tensors) > 1 for _, tensors in rows))
        texts = ("tensor", "shape", "dtype", "layout", "codecs", "pattern")
        made = output.table("tensor", *columns, left=1 + sum(column in texts for column in columns), most_lines=1)
        for label, tensors in rows:
            if tensors[0].same_as:
                what = "a copy of " if tensors[0].is_copy else ""
                output.add_row(made, f"{label} = {what}{tensors[0].same_as}")
            else:
                output.add_row(made, label, *(_cell(column, tensors) for column in columns))
        return made

    def _columns(self, is_grouped: bool) -> list[str]:
        stored = any(listed.entry is not None for listed in self.tensors)
        known = any(listed.zeros is not None for listed in self.tensors)
        return [
            *("shape", "dtype"),
            *(("layout", "codecs") if stored else ()),
            *(("pattern",) if any(listed.pattern for listed in self.tensors) else ()),
            *(("n",) if is_grouped else ()),
            *(("zeros", "") if known else ()),
            "dense",
            *(("stored", "ratio", "bits") if stored else ()),
        ]

    def notes(self) -> Iterator[str]:
        """Sentences on what was found in the elements, and on scales that do not fit."""
        yield from self._faults
        patterns = [(listed.name, listed.pattern) for listed in self.tensors if listed.pattern]
        for what, counted in (
            ("-0.0", lambda pattern: pattern.negative_zeros),
            ("NaN", lambda pattern: pattern.nans),
            ("infinite", lambda pattern: pattern.infinities),
        ):
            found = [(name, counted(pattern)) for name, pattern in patterns if counted(pattern)]
            if found:
                where = found[0][0] if len(found) == 1 else output.plural(len(found), "tensor")
                number = sum(count for _, count in found)
                yield f"{output.plural(number, 'element')} of {where} {'is' if number == 1 else 'are'} {what}."


def _listed(name: str, file: TensorFile) -> Listed:
    if isinstance(file, SparsefmtFile):
        index = file.reader.index
        if name in index.aliases:
            return Listed(name, file, same_as=index.aliases[name], is_copy=name in index.copies)
        entry = index.tensors[name]
        return Listed(
            name,
            file,
            entry.dtype.name,
            entry.shape,
            entry.row_dims,
            entry.dense_nbytes,
            entry.elements,
            entry,
            stored_nbytes=index.stored_nbytes(entry),
        )
    if name in file.aliases:
        return Listed(name, file, same_as=file.aliases[name])
    rows = file.rows_of(name)
    elements = rows.rows * rows.cols
    return Listed(name, file, rows.dtype.name, rows.shape, rows.row_dims, rows.dense_nbytes, elements)


def _zeros(tensors: Sequence[Listed]) -> tuple[int, int]:
    """Zeros and elements of those tensors of which they are known."""
    known = [(listed.zeros, listed.elements) for listed in tensors if listed.zeros is not None]
    return sum(zeros or 0 for zeros, _ in known), sum(elements for _, elements in known)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else -1.0


def _cell(column: str, tensors: Sequence[Listed]) -> str:
    """What a row for these tensors has in a column."""
    dense, stored = (sum(sizes) for sizes in zip(*((each.dense_nbytes, each.nbytes) for each in tensors), strict=True))
    zeros, elements = _zeros(tensors)
    entries = [listed.entry for listed in tensors if listed.entry is not None]
    makers: dict[str, Callable[[], str]] = {
        "shape": lambda: common(output.shape(each.shape, each.row_dims) for each in tensors),
        "dtype": lambda: common(each.dtype for each in tensors),
        "layout": lambda: common(map(_layout, entries)),
        "codecs": lambda: common(map(_codecs, entries)),
        "pattern": lambda: _patterns([each.pattern for each in tensors if each.pattern]),
        "n": lambda: f"{len(tensors):,}",
        "zeros": lambda: output.percent(zeros, elements),
        "": lambda: output.bar(zeros, elements),
        "dense": lambda: output.size(dense),
        "stored": lambda: output.size(stored),
        "ratio": lambda: output.ratio(dense, stored),
        "bits": lambda: _bits(tensors),
    }
    return makers[column]()


def _bits(tensors: Sequence[Listed]) -> str:
    """Bits that an element of these tensors takes in the mean."""
    elements = sum(each.elements for each in tensors)
    stored = sum(each.nbytes + each.scale_nbytes for each in tensors)
    return f"{8 * stored / elements:.2f}" if elements else "-"


def _layout(entry: TensorEntry) -> str:
    """The layout, and the form of one that has several."""
    layout = entry.layout
    return layout.name if layout.form == layout.name else f"{layout.name}, {layout.form}"


def _codecs(entry: TensorEntry) -> str:
    """The codecs of the arrays, the most frequent first. The JSON says which array has which."""
    return ", ".join(codec for codec, _ in Counter(entry.codecs.values()).most_common())


def _patterns(patterns: Sequence[Pattern]) -> str:
    """The patterns of some tensors, the most frequent first; of one that all have, the least share."""
    if not patterns:
        return "-"
    labels = Counter(pattern.label for pattern in patterns)
    if len(labels) == 1:
        return str(min(patterns, key=lambda pattern: pattern.share))
    named = [f"{count:,} {label}" for label, count in labels.most_common(MOST_PATTERNS)]
    others = len(patterns) - sum(count for _, count in labels.most_common(MOST_PATTERNS))
    return "; ".join([*named, *([f"{others:,} others"] if others else [])])
