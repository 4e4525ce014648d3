"""Charts as SVG for a page. matplotlib draws them; their colours are those of the page, light or dark."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from itertools import count
from math import log10
from typing import Any

import numpy as np

from sparsefmt.patterns import Magnitudes

BINS = 40
"""Bars of a chart at most."""

FARTHEST, HUGE = 200, 1e30
"""Magnitudes that are so many times the median, or so large or small, are shown by their powers of ten."""

_COLOURS = {"#010101": "var(--quiet)", "#020202": "var(--line)", "#030303": "var(--accent)", "#040404": "var(--mark)"}
"""What matplotlib is told, and what stands in the page instead."""

_TEXT, _LINE, _BAR, _MARK = _COLOURS

_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sparsefmt",
    "font.size": 9.5,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _TEXT,
    "xtick.labelcolor": _TEXT,
    "ytick.labelcolor": _TEXT,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "text.color": _TEXT,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.unicode_minus": False,
}

_SIZE = (3.5, 1.5)
"""Inches of 72 points; the page shows a point as about a pixel."""


@dataclass(frozen=True)
class Bars:
    """What a chart shows.

    Attributes:
        edges: (bins + 1,), ascending.
        heights: (bins,).
        label: of the axis.
        marks: the lowest and the highest of places that are marked; () for none.
    """

    edges: np.ndarray
    heights: np.ndarray
    label: str
    marks: tuple[float, ...] = ()


def shares(counts: np.ndarray, label: str) -> Bars:
    """Rows or columns by their share of nonzeros, in percent.

    Args:
        counts: int64 (length + 1,), how many have so many nonzeros; some have.

    Bars are as wide as a whole number of nonzeros, so that none is higher because it has more of them.
    """
    length = max(counts.size - 1, 1)
    present = np.flatnonzero(counts)
    first, last = int(present[0]), int(present[-1])
    if first == last:  # wide enough to be seen
        return Bars(100 * first / length + np.array([-1.0, 1.0]), counts[[first]], label)
    width = -(-(last - first + 1) // BINS)
    starts = np.arange(first, last + 1, width)
    heights = np.add.reduceat(counts[: last + 1], starts)
    edges = 100 * (np.append(starts, starts[-1] + width) - 0.5) / length
    return Bars(edges, heights, label)


def magnitudes(counted: Magnitudes, thresholds: list[float]) -> Bars:
    """Elements by their magnitude. Zeros are left out; the last bar has all that is larger, too.

    Args:
        thresholds: the smallest magnitudes of tensors that were pruned.
    """
    top = min(1.15 * counted.quantile(0.999), counted.largest)
    marks = (min(thresholds), max(thresholds)) if thresholds else ()
    if top > FARTHEST * counted.quantile(0.5) or not 1 / HUGE < top < HUGE:
        powers = np.linspace(
            log10(max(counted.quantile(0.001), counted.smallest)) - 0.3, log10(counted.largest) + 0.01, BINS + 1
        )
        with np.errstate(over="ignore"):
            heights = counted.histogram(10.0**powers)
        return Bars(powers, heights, "power of ten of a magnitude", tuple(map(log10, marks)))
    edges = np.linspace(0, top, BINS + 1)
    heights = counted.histogram(edges)
    heights[-1] += counted.histogram(np.array([edges[-1], np.inf]))[0]
    return Bars(edges, heights, "magnitude", marks)


class Painter:
    """Draws charts, each as an <svg> element for a page of its own kind."""

    def __init__(self) -> None:
        import matplotlib
        from matplotlib.figure import Figure

        with matplotlib.rc_context(_SETTINGS):
            self._figure = Figure(_SIZE)
        self._numbers = count(1)

    def draw(self, bars: Bars, description: str) -> str:
        """The chart as SVG. description: what it shows, for those who cannot see it; any text."""
        import matplotlib

        with matplotlib.rc_context(_SETTINGS):
            figure = self._figure
            figure.clear()
            axes = figure.add_axes((0.04, 0.29, 0.92, 0.69))
            self._fill(axes, bars)
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        return _for_page(buffer.getvalue(), description, next(self._numbers))

    @staticmethod
    def _fill(axes: Any, bars: Bars) -> None:
        from matplotlib.ticker import MaxNLocator, ScalarFormatter

        if bars.marks:
            low, high = bars.marks
            if high > low:
                axes.axvspan(low, high, color=_MARK, alpha=0.2, linewidth=0, zorder=0)
            axes.axvline(low, color=_MARK, linewidth=1.4, zorder=3)
        axes.stairs(bars.heights, bars.edges, fill=True, color=_BAR, zorder=1)
        low, high = float(bars.edges[0]), float(bars.edges[-1])
        if bars.heights.size == 1:
            low, high = min(low, 0.0), max(high, 100.0)
        axes.set_xlim(low, high)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(ScalarFormatter(useOffset=False))
        axes.set_ylim(0, max(float(bars.heights.max(initial=0)), 1) * 1.05)
        axes.set_yticks([])
        axes.tick_params(axis="x", length=0, pad=4)
        axes.set_xlabel(bars.label, labelpad=2)


def _for_page(svg: str, description: str, number: int) -> str:
    """What matplotlib has written, as a part of a page: without what concerns all of the page, in its colours."""
    from markupsafe import escape

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\1c{number}-", svg)
    svg = re.sub(r"font:[^;\"]*;?|font-family:[^;\"]*;?", lambda match: _font_size(match[0]), svg)
    for colour, in_page in _COLOURS.items():
        svg = svg.replace(colour, in_page)
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    head = f'<svg {box[0]} class="chart" role="img" aria-label="{escape(description)}">'
    return re.sub(r"\s*\n\s*", "\n", re.sub(r"<svg[^>]*>", lambda _: head, svg, count=1)).strip()


def _font_size(style: str) -> str:
    """What is left of the style of a text: the size, if it has one. The font is that of the page."""
    found = re.search(r"[\d.]+px", style)
    return f"font-size: {found[0]};" if found else ""
