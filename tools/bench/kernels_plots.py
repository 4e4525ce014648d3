"""The plots that `kernels.py` draws of what it has measured: speed-up by sparsity.

The tool imports this file; it is not a program.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sparsefmt.isa import ISA
from sparsefmt.layouts.auto import PERMUTED_FROM
from tools.bench.kernels_rows import MKL, OURS, Row
from tools.bench.kernels_tables import names_of

CSR_COLOURS = {MKL: "tab:green", "torch CSR": "tab:olive"}

VALUE_BYTES = {"f32": 4, "bf16": 2}

LAYOUT_CURVES = {
    "f32": {f"{OURS}bitmask f32": "tab:blue", f"{OURS}permuted f32": "tab:red", **CSR_COLOURS},
    "bf16": {
        f"{OURS}bitmask bf16": "tab:blue",
        f"{OURS}permuted bf16": "tab:red",
        **CSR_COLOURS,
        "torch bf16": "tab:gray",
    },
}
"""Contenders that --plot-layouts draws, by the values in our layouts. Dense float32 is the line at 1."""


def import_pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise click.ClickException("plots are drawn with matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def plot(rows: list[Row], path: Path) -> None:
    """Speed-up by sparsity: a panel for each batch, a line of panels for each shape and number of threads."""
    pyplot = import_pyplot()
    names = names_of(rows)
    batches = list(dict.fromkeys(row.batch for row in rows))
    lines = list(dict.fromkeys((row.rows, row.cols, row.threads) for row in rows))
    curves: dict[tuple[Any, ...], list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.sparsity):
        curves.setdefault((row.rows, row.cols, row.threads, row.batch, row.contender), []).append(row)
    size = (4.2 * len(batches) + 2, 3.4 * len(lines) + 1)
    figure, panels = pyplot.subplots(len(lines), len(batches), figsize=size, squeeze=False, layout="constrained")
    for line, (height, width, threads) in enumerate(lines):
        for column, batch in enumerate(batches):
            panel = panels[line, column]
            panel.set_title(f"{height} x {width}, batch {batch}, threads {threads}", fontsize=9)
            panel.set(xlabel="share of zeros", ylabel="times faster than dense float32", yscale="log")
            panel.axhline(1, color="grey", linewidth=0.8)
            panel.grid(alpha=0.3, which="both")
            for number, name in enumerate(names):
                draw_curve(
                    panel, curves.get((height, width, threads, batch, name), []), pyplot.colormaps["tab20"](number % 20)
                )
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.suptitle("dotted: if it took as long as reading the weights", fontsize=9)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def plot_layouts(rows: list[Row], path: Path) -> None:
    """What `auto` chooses between, for the first shape and its fewest threads: float32 above, bfloat16 below."""
    pyplot = import_pyplot()
    threads = min(row.threads for row in rows if (row.rows, row.cols) == (rows[0].rows, rows[0].cols))
    shown = [row for row in rows if (row.rows, row.cols, row.threads) == (rows[0].rows, rows[0].cols, threads)]
    shown.sort(key=lambda row: row.sparsity)
    batches = sorted({row.batch for row in shown})
    figure, panels = pyplot.subplots(
        2, len(batches), figsize=(2.6 * len(batches), 5.4), squeeze=False, sharey=True, layout="constrained"
    )
    for line, (values, colours) in zip(panels, LAYOUT_CURVES.items(), strict=True):
        for panel, batch in zip(line, batches, strict=True):
            panel.set_title(f"{values}, batch {batch}", fontsize=9)
            panel.tick_params(labelsize=8)
            panel.set_yscale("log")
            panel.set_yticks(ticks := (0.5, 1, 2, 5, 10, 20, 50), map(str, ticks), minor=False)
            panel.set_yticks((), minor=True)
            panel.grid(alpha=0.3)
            panel.axhline(1, color="black", linewidth=0.8, label="dense float32, the faster of numpy and PyTorch")
            panel.axvline(
                PERMUTED_FROM[ISA][VALUE_BYTES[values]],
                color="black",
                linewidth=0.8,
                linestyle="-.",
                label="where auto switches",
            )
            for name, colour in colours.items():
                label = name.removesuffix(f" {values}") if name.startswith(OURS) else name
                curve = [row for row in shown if (row.batch, row.contender) == (batch, name)]
                draw_curve(panel, curve, colour, label)
        line[0].set_ylabel("times faster than dense float32", fontsize=8)
    for panel in panels[1]:
        panel.set_xlabel("share of zeros", fontsize=8)
    figure.legend(*panels[1, 0].get_legend_handles_labels(), loc="outside lower center", fontsize=8, ncols=4)
    title = f"{rows[0].rows} x {rows[0].cols}, {threads} thread(s). Dotted curves: as long as reading the weights takes"
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def draw_curve(panel: Any, rows: list[Row], colour: Any, label: str | None = None) -> None:
    """One contender's speed-up; for the compressed layouts and a single token, also that of reading alone, dotted."""
    if not rows:
        return
    name = rows[0].contender
    sparsities = [row.sparsity for row in rows]
    style = "-" if name.startswith(OURS) else "--"
    panel.plot(sparsities, [row.over_dense for row in rows], style, marker=".", color=colour, label=label or name)
    if name.startswith(OURS) and "dense" not in name and rows[0].batch == 1:
        panel.plot(sparsities, [row.roof_over_dense for row in rows], ":", color=colour, linewidth=1)
