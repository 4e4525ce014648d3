"""The tables that `kernels.py` prints: a table for each shape, a line for each case.

The tool imports this file; it is not a program.
"""

from __future__ import annotations

import os
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from tools.bench.kernels_contenders import VALUE_DTYPES
from tools.bench.kernels_rows import DENSE, OURS, Row

COMPRESSED = (f"{OURS}bitmask f32", f"{OURS}permuted f32")

SPREAD_OF = (f"{OURS}dense f32", *COMPRESSED)


def case_of(row: Row) -> tuple[Any, ...]:
    """What makes rows one line of the table, in the table's order."""
    return row.threads, row.batch, row.sparsity, row.matrix, row.rows, row.cols


def names_of(rows: list[Row]) -> list[str]:
    """Of contenders, in their order."""
    return list(dict.fromkeys(row.contender for row in rows))


def print_table(console: Console, rows: list[Row]) -> None:
    """The table of one shape."""
    names = names_of(rows)
    table = Table(
        title=f"{rows[0].rows} x {rows[0].cols}: times faster than dense; dense, bitmask and permuted are ours",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for heading in ("threads", "batch", "zeros", "dense\nms", *(name.removeprefix(OURS) for name in names)):
        table.add_column(heading.replace(" ", "\n"), justify="right")
    for heading in ("auto f32", "auto bf16", "x MKL", "spread", "others"):
        table.add_column(heading, justify="right")
    cases: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        cases.setdefault(case_of(row), {})[row.contender] = row
    threads = None
    for case in sorted(cases):
        if threads not in (None, case[0]):
            table.add_section()
        threads = case[0]
        table.add_row(*table_cells(cases[case], names))
    console.print(table)


def table_cells(case: dict[str, Row], names: list[str]) -> list[str]:
    first = next(iter(case.values()))
    dense = min((case[name] for name in DENSE), key=lambda row: row.median_ms)
    over_mkl = [case[name].over_mkl for name in COMPRESSED]
    return [
        str(first.threads),
        str(first.batch),
        f"{100 * first.sparsity:.3g}%",
        f"{dense.median_ms:.3f}",
        *(f"{case[name].over_dense:.2f}" for name in names),
        *(by_default(case, values) for values in VALUE_DTYPES),
        "" if None in over_mkl else f"{max(over_mkl):.2f}",
        f"{max(row.spread for row in (dense, *(case[name] for name in SPREAD_OF))):.0%}",
        "" if first.others is None else f"{first.others:.2f}",
    ]


def by_default(case: dict[str, Row], values: str) -> str:
    """What a user gets with values of a type: red where it is slower than dense."""
    (ratio,) = [row.over_dense for name, row in case.items() if row.auto and name.endswith(f" {values}")]
    return f"[bold red]{ratio:.2f}[/]" if ratio < 1 else f"[bold]{ratio:.2f}[/]"


def warn_if_crowded(console: Console, rows: list[Row]) -> None:
    """Say so if other processes were in the way."""
    cases = {case_of(row): row for row in rows}.values()
    free = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    crowded = [row for row in cases if row.others is not None and row.others > free - row.threads + 0.2]
    if crowded:
        console.print(
            f"in {len(crowded)} of {len(cases)} cases, others took cores that were needed: measure these again"
        )
