"""The results, as tables with notes, or as an object for --json."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sparsefmt.cli import output
from sparsefmt.cli.benchmark.groups import Group
from sparsefmt.cli.benchmark.libraries import Library
from sparsefmt.cli.benchmark.measuring import Results, quartile_spread
from sparsefmt.cli.grouped_rows import common, grouped
from sparsefmt.container.entry import TensorEntry

JSON_VERSION = 1
"""Raised when a key of the --json output changes its meaning or is removed. New keys do not count."""


def print_tables(groups: list[Group]) -> None:
    """Print two tables: the memory that the tensors take, and the time that their products take."""
    rows = _rows(groups)
    total = _Row("total", [member for row in rows for member in row.members])
    columns = "shape", "dtype", "layout", "n", "zeros", "dense", "bytes", "ratio", "bits"
    memory = output.table("in memory", *columns, left=4)
    headings = [
        heading for timing in groups[0].timings for heading in (f"batch {timing.batch}", "dense", "speed", "spread")
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

    def products(self) -> list[tuple[int, float, float, float]]:
        """For each batch size: it, seconds of all products, ours and dense, and the largest spread of ours."""
        columns = zip(*(group.timings for _, group in self.members), strict=True)
        return [
            (
                timings[0].batch,
                sum(timing.seconds for timing in timings),
                sum(timing.dense_seconds for timing in timings),
                max(quartile_spread(timing.ours) for timing in timings),
            )
            for timings in columns
        ]

    def slower_than_dense(self) -> bool:
        """Whether it is slower with any of the batch sizes."""
        return any(ours > dense for _, ours, dense, _ in self.products())

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
        for _, ours, dense, spread in self.products():
            cells += [_milliseconds(ours), _milliseconds(dense)]
            cells += [f"{dense / ours:.2f}x" if ours else "-", f"{100 * spread:.0f}%"]
        return cells


def _milliseconds(seconds: float) -> str:
    value = 1000 * seconds
    return f"{value:,.{3 if value < 1 else 2 if value < 100 else 0}f} ms"


def notes(results: Results) -> Iterator[str]:
    """Sentences that explain the columns, and that tell a user what he might not expect."""
    groups, libraries = results.groups, results.libraries
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
    yield from _verdicts(groups)
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


def _verdicts(groups: list[Group]) -> Iterator[str]:
    """For each batch size, how many tensors are slower than dense, if any."""
    tensors = sum(len(group.entries) for group in groups)
    for number, timing in enumerate(groups[0].timings):
        timings = [(group.timings[number], len(group.entries)) for group in groups]
        slower = sum(count for other, count in timings if other.seconds > other.dense_seconds)
        if slower:
            yield f"With batch {timing.batch}, {slower:,} of {output.plural(tensors, 'tensor')} are slower than dense."


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
        "libraries": {library.name: library.version for library in results.libraries},
        "left_out": results.left_out,
        "groups": [_group_as_object(group) for group in results.groups],
        "total": {
            "tensors": len(everything.members),
            "nbytes": everything.nbytes,
            "dense_nbytes": everything.dense_nbytes,
            "products": [
                {"batch": batch, "seconds": ours, "dense_seconds": dense, "speed": dense / ours if ours else None}
                for batch, ours, dense, _ in everything.products()
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
                "dense": [
                    {
                        "library": who.library,
                        "threads": who.threads,
                        "seconds": statistics.median(timing.dense[who]),
                        "spread": quartile_spread(timing.dense[who]),
                    }
                    for who in timing.ranking
                ],
            }
            for timing in group.timings
        ],
    }
