"""The plot that `sizes.py` draws of what it has measured: ratios by file.

The tool imports this file; it is not a program.
"""

from __future__ import annotations

from pathlib import Path

import click

from tools.bench.sizes_bounds import BY_DENSITY, INDEPENDENT
from tools.bench.sizes_rows import Row
from tools.bench.sizes_tables import OURS


def plot(rows: list[Row], path: Path) -> None:
    """A group of bars for each file, a bar for each contender but safetensors, which is 1."""
    try:
        import matplotlib
    except ImportError:
        raise click.ClickException("--plot draws with matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    files = list(dict.fromkeys(row.file for row in rows))
    sizes = {(row.file, row.contender): row.over_safetensors for row in rows}
    kinds = {row.contender: row.kind for row in rows if not row.contender.startswith(f"{OURS}, into")}
    kinds.pop("safetensors", None)
    figure, panel = pyplot.subplots(figsize=(3 + 0.18 * len(files) * len(kinds), 5), layout="constrained")
    width = 0.85 / len(kinds)
    for number, (name, kind) in enumerate(kinds.items()):
        places = [place + (number + 0.5) * width - 0.425 for place in range(len(files))]
        panel.bar(
            places,
            [sizes.get((file, name), 0) for file in files],
            width,
            label=name,
            color="white" if kind == "bound" else pyplot.colormaps["tab20"](number % 20),
            edgecolor="black" if kind in ("bound", "ours") else "none",
            linewidth=0.6,
            hatch={INDEPENDENT: "//", BY_DENSITY: "xx"}.get(name),
        )
    panel.set_xticks(range(len(files)), [Path(file).name for file in files], rotation=20, ha="right", fontsize=8)
    panel.set_ylabel("bytes over those of safetensors")
    panel.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
