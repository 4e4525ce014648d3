"""The results, as tables with notes, or as an object for --json."""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from sparsefmt.cli import output
from sparsefmt.cli.benchmark.groups import Contender, Group, fastest_first
from sparsefmt.cli.benchmark.libraries import Library
from sparsefmt.cli.benchmark.measuring import Results, quartile_spread
from sparsefmt.container.entry import TensorEntry
from sparsefmt.grouped_rows import common, grouped

JSON_VERSION = 1
"""Raised when a key of the --json output changes its meaning or is removed. New keys do not count."""


def print_tables(groups: list[Group]) -> None:
    """Print two tables: the memory that the tensors take, and the time that their products take."""
    rows = _rows(groups)
    total = _Row("total", [member for row in rows for member in row.members])
    columns = "shape", "dtype", "layout", "n", "zeros", "dense", "bytes", "ratio", "bits"
    memory = output.table("in memory", *columns, left=4)
    headings = [
        heading
        for timing in groups[0].timings
        for heading in (
            f"batch {timing.batch}",
            "dense",
            "speed",
            *(["bf16"] if timing.rounded else []),
            "spread",
        )
    ]
    products = output.table("products", "layout", "n", *headings, left=2)
    for row in rows:
        output.add_row(memory, *row.memory_cells())
        output.add_row(products, *row.product_cells(), style=output.WARNING if row.slower_than_dense() else "")
    for table, cells in ((memory, total.memory_cells()), (products, total.product_cells())):
        table.add_total(*cells)
        output.print_table(table)
        output.say()


def _rows(groups: list[Group]) -> list[_Row]:
    """Tensors whose names differ in numbers only, and that have one dtype, shape and layout."""
    members = [(entry, group) for group in groups for entry in group.entries]
    found = grouped(members, _name_and_kind, lambda member: member[0].dense_nbytes)
    return [_Row(label, together) for label, together in found]


def _name_and_kind(member: tuple[TensorEntry, Group]) -> tuple[str, object]:
    entry, group = member
    return entry.name, (entry.dtype, entry.shape, group.layout)


class _Products(NamedTuple):
    """All products of a row with one batch size.

    Attributes:
        seconds, dense_seconds, rounded_seconds: ours, dense, and dense in bfloat16, if there is that.
        spread: the largest of ours.
    """

    batch: int
    seconds: float
    dense_seconds: float
    rounded_seconds: float | None
    spread: float


@dataclass
class _Row:
    """Tensors of one row of the tables, each with its group, whose numbers hold for it."""

    label: str
    members: list[tuple[TensorEntry, Group]]

    @property
    def nbytes(self) -> int:
        return sum(group.nbytes for _, group in self.members)

    @property
    def dense_nbytes(self) -> int:
        return sum(entry.dense_nbytes for entry, _ in self.members)

    def products(self) -> list[_Products]:
        """For each batch size."""
        columns = zip(*(group.timings for _, group in self.members), strict=True)
        return [
            _Products(
                timings[0].batch,
                sum(timing.seconds for timing in timings),
                sum(timing.dense_seconds for timing in timings),
                _sum_of([timing.rounded_seconds for timing in timings]),
                max(quartile_spread(timing.ours) for timing in timings),
            )
            for timings in columns
        ]

    def slower_than_dense(self) -> bool:
        """Whether it is slower with any of the batch sizes."""
        return any(product.seconds > product.dense_seconds for product in self.products())

    def _layout(self) -> str:
        return common(group.layout for _, group in self.members)

    def _count(self) -> str:
        return f"x {len(self.members):,}"

    def memory_cells(self) -> list[str]:
        entries = [entry for entry, _ in self.members]
        elements = sum(entry.elements for entry in entries)
        return [
            self.label,
            common(output.shape(entry.shape) for entry in entries),
            common(entry.dtype.name for entry in entries),
            self._layout(),
            self._count(),
            output.percent(elements - sum(entry.nnz or 0 for entry in entries), elements),
            output.size(self.dense_nbytes),
            output.size(self.nbytes),
            output.ratio(self.dense_nbytes, self.nbytes),
            f"{8 * self.nbytes / elements:.2f}" if elements else "-",
        ]

    def product_cells(self) -> list[str]:
        cells = [self.label, self._layout(), self._count()]
        for product in self.products():
            cells += [_milliseconds(product.seconds), _milliseconds(product.dense_seconds)]
            for other in (product.dense_seconds, product.rounded_seconds):
                if other is not None:
                    cells.append(f"{other / product.seconds:.2f}x" if product.seconds else "-")
            cells.append(f"{100 * product.spread:.0f}%")
        return cells


def _sum_of(seconds: list[float | None]) -> float | None:
    known = [each for each in seconds if each is not None]
    return sum(known) if known else None


def _milliseconds(seconds: float) -> str:
    value = 1000 * seconds
    return f"{value:,.{3 if value < 1 else 2 if value < 100 else 0}f} ms"


def notes(results: Results) -> Iterator[str]:
    """Sentences that explain the columns, and that tell a user what he might not expect."""
    groups, libraries = results.groups, [library for library in results.libraries if not library.rounds]
    yield from _verdicts(groups)
    repeats = [len(timing.ours) for group in groups for timing in group.timings]
    times = f"{min(repeats)}" if min(repeats) == max(repeats) else f"{min(repeats)} to {max(repeats)}"
    yield (
        f"Bytes and times of a row are those of its n tensors together. Medians of {times} products, in turns, on "
        f"{output.plural(results.threads, 'thread')}."
    )
    yield (
        "speed: times faster than dense, below 1.00x slower. spread: quartile distance over median, the largest of the "
        "row."
    )
    if any(library.rounds for library in results.libraries):
        yield "bf16: times faster than torch's dense product in bfloat16, which rounds weights and activations."
    names = " and ".join(f"{library.name} {library.version} ({_on(library)})" for library in libraries)
    missing = "" if len(libraries) > 1 else "; torch is not installed"
    yield f"dense: the fastest of {names}, in float32{missing}. Dense bytes: in the tensor's own dtype."
    yield "bits: what an element takes in memory; the scales of scaled weights are tensors of their own."
    yield from _instructions()
    if results.given and libraries[0].set_threads is None:
        yield "numpy can be given another number of threads where threadpoolctl is installed and knows its BLAS."
    tensors = sum(len(group.entries) for group in groups)
    yield (
        f"Measured: {len(groups):,} of {output.plural(tensors, 'tensor')}; those alike in shape, dtype, layout and "
        "percent of zeros are measured once."
    )
    not_finite = sum(group.not_finite for group in groups)
    if not_finite:
        yield f"Inf or NaN is among the outputs of {not_finite:,} of those measured; it was not compared."


MOST_NAMED = 3
"""The most names, or patterns of names, in a verdict."""


def _verdicts(groups: list[Group]) -> Iterator[str]:
    """For each batch size, how many tensors are slower than dense, and which; then the same of bfloat16."""
    members = [(entry, group) for group in groups for entry in group.entries]
    all_of_them = output.plural(len(members), "tensor")
    faster = []
    for number, timing in enumerate(groups[0].timings):
        slower = [
            (entry, group)
            for entry, group in members
            if group.timings[number].seconds > group.timings[number].dense_seconds
        ]
        if slower:
            are = f"{len(slower):,} of {all_of_them} {'is' if len(slower) == 1 else 'are'}"
            yield f"With batch {timing.batch}, {are} slower than dense: {_names(slower)}."
        else:
            faster.append(f"{timing.batch}")
    if faster:
        yield f"With batch {' and '.join(faster)}, none of {all_of_them} is slower than dense."
    for number, timing in enumerate(groups[0].timings):
        if timing.rounded:
            beaten = sum(
                (group.timings[number].rounded_seconds or 0) < group.timings[number].seconds for _, group in members
            )
            yield f"With batch {timing.batch}, dense bfloat16 is faster than sparsefmt for {beaten:,} of {all_of_them}."


def _names(members: list[tuple[TensorEntry, Group]]) -> str:
    """Names, one for all that differ in numbers only, those that stand for most first."""
    rows = grouped(members, _name_and_kind, lambda member: member[0].dense_nbytes)
    counts: Counter[str] = Counter()
    for label, together in rows:
        counts[label] += len(together)
    named = [f"{label} ({count:,})" if count > 1 else label for label, count in counts.most_common(MOST_NAMED)]
    others = len(members) - sum(count for _, count in counts.most_common(MOST_NAMED))
    return ", ".join(named) + (f" and {others:,} more" if others else "")


def _instructions() -> Iterator[str]:
    """What of the processor the products used."""
    from sparsefmt.isa import ISA
    from sparsefmt.kernels import gather

    if not gather.exists():
        yield f"Instructions: {ISA}."
        return
    used = "used" if gather.is_fast() else "not used"
    if os.environ.get(gather.ENVIRONMENT_VARIABLE):
        yield f"Instructions: {ISA}; gather {used}, as {gather.ENVIRONMENT_VARIABLE} says."
    else:
        share = f"{gather.share_of_time():.2f} of the time of inserted loads"
        yield f"Instructions: {ISA}; gather {used} with permuted for one token: it takes {share}."


def _on(library: Library) -> str:
    counts = [count for count in library.threads if count is not None]
    if not counts:
        return "on its own number of threads"
    return f"on {output.plural(counts[0], 'thread')}{' and on 1' if len(counts) > 1 else ''}"


def notes_on_left_out(results: Results) -> Iterator[str]:
    """A sentence on the tensors that the tables do not have, if there are any."""
    tensors = output.plural(results.left_out, "tensor")
    if results.groups and results.left_out:
        yield f"Left out: {tensors} stored dense, which a dense product multiplies just as well."
    elif not results.groups:
        yield f"{results.path}: nothing to measure: no sparse tensors, {tensors} stored dense"


def as_object(results: Results) -> dict[str, Any]:
    """The object that --json prints. The help of the command describes it."""
    everything = _Row("total", [(entry, group) for group in results.groups for entry in group.entries])
    return {
        "json_version": JSON_VERSION,
        "path": str(results.path),
        "threads": results.threads,
        "libraries": {library.name: library.version for library in results.libraries if not library.rounds},
        "left_out": results.left_out,
        "groups": [_group_as_object(group) for group in results.groups],
        "total": {
            "tensors": len(everything.members),
            "nbytes": everything.nbytes,
            "dense_nbytes": everything.dense_nbytes,
            "products": [
                {
                    "batch": product.batch,
                    "seconds": product.seconds,
                    "dense_seconds": product.dense_seconds,
                    "speed": product.dense_seconds / product.seconds if product.seconds else None,
                    "bfloat16_seconds": product.rounded_seconds,
                }
                for product in everything.products()
            ],
        },
        "faults": results.faults,
    }


def _group_as_object(group: Group) -> dict[str, Any]:
    return {
        "shape": list(group.first.shape),
        "dtype": group.first.dtype.name,
        "layout": group.layout,
        "zeros": group.zeros,
        "count": len(group.entries),
        "tensors": [entry.name for entry in group.entries],
        "nbytes": group.nbytes,
        "dense_nbytes": group.dense_nbytes,
        "not_finite": group.not_finite,
        "products": [
            {
                "batch": timing.batch,
                "repeats": len(timing.ours),
                "seconds": timing.seconds,
                "spread": quartile_spread(timing.ours),
                "dense_seconds": timing.dense_seconds,
                "speed": timing.dense_seconds / timing.seconds if timing.seconds else None,
                "dense": _as_objects(timing.dense),
                "bfloat16": _as_objects(timing.rounded),
            }
            for timing in group.timings
        ],
    }


def _as_objects(times: dict[Contender, list[float]]) -> list[dict[str, Any]]:
    """The products of libraries, the fastest first."""
    return [
        {
            "library": who.library,
            "threads": who.threads,
            "seconds": statistics.median(times[who]),
            "spread": quartile_spread(times[who]),
        }
        for who in fastest_first(times)
    ]
