"""Groups of tensors that are alike, of which one is measured for all, and what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.sparsefmt_file import SparsefmtFile
from sparsefmt.cli.failures import Failure
from sparsefmt.container.entry import TensorEntry
from sparsefmt.container.remote_path import Place
from sparsefmt.errors import in_file

if TYPE_CHECKING:
    from sparsefmt.sparse_file import SparseFile


class Contender(NamedTuple):
    """OURS or a library, and its number of threads; None if it sets that itself."""

    library: str
    threads: int | None


@dataclass
class Timing:
    """The products of one group with one batch size.

    Attributes:
        ours, dense: seconds of each repeat.
        rounded: of dense products that round weights and activations to bfloat16, if there are any.
    """

    batch: int
    ours: list[float]
    dense: dict[Contender, list[float]]
    rounded: dict[Contender, list[float]] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return statistics.median(self.ours)

    @property
    def ranking(self) -> list[Contender]:
        """The dense products, the fastest first."""
        return fastest_first(self.dense)

    @property
    def dense_seconds(self) -> float:
        return statistics.median(self.dense[self.ranking[0]])

    @property
    def rounded_seconds(self) -> float | None:
        """Those of the fastest product in bfloat16; None without one."""
        return statistics.median(self.rounded[fastest_first(self.rounded)[0]]) if self.rounded else None


def fastest_first(times: dict[Contender, list[float]]) -> list[Contender]:
    return sorted(times, key=lambda who: statistics.median(times[who]))


@dataclass
class Group:
    """Tensors that are alike, of which the first is measured for all.

    Attributes:
        layout: the one in memory. Where it is chosen, that of the first tensor, once it has been loaded.
        asked: the layout that is asked for, perhaps "auto".
        zeros: percent of zeros, rounded.
        file: the open file that has the first tensor.
        path: the path of that file.
        nbytes: bytes of the first tensor in memory.
        not_finite: whether its dense product has Inf or NaN, which cannot be compared.
        faults: a sentence for each product that was wrong.
    """

    layout: str
    asked: str
    zeros: int
    file: SparseFile
    path: Place
    entries: list[TensorEntry] = field(default_factory=list)
    nbytes: int = 0
    timings: list[Timing] = field(default_factory=list)
    not_finite: bool = False
    faults: list[str] = field(default_factory=list)

    @property
    def first(self) -> TensorEntry:
        return self.entries[0]

    @property
    def dense_nbytes(self) -> int:
        """Dense bytes of one tensor, in its own dtype."""
        return self.first.dense_nbytes


def find_groups(
    checkpoint: Checkpoint, patterns: tuple[str, ...], layout: str, open_again: Callable[[Place], SparseFile]
) -> tuple[list[Group], int]:
    """The groups to be measured, in the order of the files, and how many tensors are left out because they are dense.

    Args:
        open_again: opens files in the way that users open them: they are mapped, while the checkpoint reads.
    """
    groups: dict[object, Group] = {}
    left_out = 0
    for part in checkpoint.files:
        assert isinstance(part, SparsefmtFile)
        index = part.reader.index
        wanted = {index.entry(name).name for name in index.names if _matches(name, patterns)}
        with in_file(part.path):
            file = open_again(part.path)
        for entry in index.tensors.values():
            if entry.name not in wanted:
                continue
            if not entry.layout.sparse:
                left_out += 1
                continue
            assert entry.nnz is not None
            # the layout that loading will choose, as far as the index tells
            in_memory = file.layout_to_compute(entry) if layout == "auto" else layout
            zeros = round(100 * (1 - entry.nnz / entry.elements))
            key = (entry.shape, entry.dtype, in_memory, zeros)
            groups.setdefault(key, Group(in_memory, layout, zeros, file, part.path)).entries.append(entry)
    if patterns and not groups and not left_out:
        raise Failure(f"{checkpoint.path}: it has no tensor of a name like {' or '.join(map(repr, patterns))}", 2)
    return list(groups.values()), left_out


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    # a name may have brackets, which mean something else in a pattern
    return not patterns or any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns)
