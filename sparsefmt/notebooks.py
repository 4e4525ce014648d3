"""What notebooks show: a box of lines and a picture, and tables of tensors, as HTML in the colours of its page."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

MOST_ROWS = 30
"""The most rows of a table. If there are more tensors, the largest are shown."""

MOST_NAMED = 4
"""The most names that are listed for one reason."""

MOST_DRAWN = 1 << 26
"""Elements of which pictures are drawn, of one tensor or of all of a table: more would take too long."""

PIXELS, SMALL_PIXELS = 128, 32
"""Width and height of a picture, and of one in a table."""

_COLUMNS = ("", "tensor", "shape", "dtype", "layout", "zeros", "", "bytes", "dense")
_NUMBERS = _COLUMNS.index("zeros")

_CELL = "padding:2px 8px;vertical-align:middle"


class Row(NamedTuple):
    """A tensor in a table.

    Attributes:
        zeros: share of its elements, 0.0 to 1.0; None if nobody knows.
        nbytes: what it takes; dense_nbytes: what it would if it were dense.
        picture: an <img>, or "".
    """

    name: str
    shape: Sequence[int]
    dtype: str
    layout: str
    zeros: float | None
    nbytes: int
    dense_nbytes: int
    picture: str = ""


def text(words: object) -> str:
    """Words as HTML that says them and does nothing else: no markup, and control characters are spelled out."""
    return html.escape("".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(words)))


def box(lines: Iterable[object], picture: str = "", below: str = "") -> str:
    """Lines under a picture, which is an <img> or "", and what is HTML already below them."""
    return (
        '<div style="color:inherit;overflow-wrap:anywhere">'
        f"{picture}<div>{'<br>'.join(map(text, lines))}</div>{below}</div>"
    )


def largest(tensors: Sequence[tuple[str, int]]) -> list[str]:
    """Of names and bytes, the names of those that a table has, in their order."""
    if len(tensors) <= MOST_ROWS:
        return [name for name, _ in tensors]
    chosen = {name for name, _ in sorted(tensors, key=lambda tensor: -tensor[1])[:MOST_ROWS]}
    return [name for name, _ in tensors if name in chosen]


def table(rows: Sequence[Row], others: int = 0) -> str:
    """A table of tensors, and how many others there are."""
    drawn = any(row.picture for row in rows)
    heads = [
        f'<th style="{_CELL};text-align:{_align(number)}">{column}</th>'
        for number, column in enumerate(_COLUMNS)
        if number or drawn
    ]
    more = f"<div>and {others:,} smaller</div>" if others else ""
    return _framed("".join(heads), ["".join(_cells(row, drawn)) for row in rows]) + more


def names(head: str, by_reason: Mapping[str, Sequence[str]]) -> str:
    """A table of names by what is said of them: for each reason how many names it has, some of them, and the reason.

    Args:
        head: of the column of names.
    """
    heads = "".join(f'<th style="{_CELL};text-align:left">{text(column)}</th>' for column in ("", head, "why"))
    lines = []
    for why, named in list(by_reason.items())[:MOST_ROWS]:
        others = [f"and {len(named) - MOST_NAMED:,} more"] if len(named) > MOST_NAMED else []
        cells = (f"{len(named):,}", "<br>".join(map(text, [*named[:MOST_NAMED], *others])), text(why))
        lines.append("".join(f'<td style="{_CELL};text-align:left">{cell}</td>' for cell in cells))
    left_out = sum(map(len, list(by_reason.values())[MOST_ROWS:]))
    return _framed(heads, lines) + (f"<div>and {left_out:,} more for other reasons</div>" if left_out else "")


_FRAME = (
    '<div style="overflow-x:auto;margin-top:8px"><table style="color:inherit;font:inherit;border-collapse:collapse">'
)


def _framed(heads: str, lines: Sequence[str]) -> str:
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"{_FRAME}<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"


def _cells(row: Row, drawn: bool) -> list[str]:
    known = row.zeros is not None
    bar = (
        '<div style="width:64px;height:8px;border:1px solid gray">'
        f'<div style="width:{100 * (row.zeros or 0):.1f}%;height:100%;background:gray"></div></div>'
    )
    cells = [
        *([row.picture] if drawn else []),
        text(row.name),
        text("x".join(map(str, row.shape)) or "scalar"),
        text(row.dtype),
        text(row.layout),
        percent(row.zeros) if row.zeros is not None else "",
        bar if known else "",
        f"{row.nbytes:,}",
        f"{row.dense_nbytes:,}",
    ]
    first = len(_COLUMNS) - len(cells)
    return [f'<td style="{_CELL};text-align:{_align(number)}">{cell}</td>' for number, cell in enumerate(cells, first)]


def _align(column: int) -> str:
    return "right" if column >= _NUMBERS else "left"


def percent(share: float) -> str:
    """A share that is rounded to all or nothing only if it is that."""
    if share in (0, 1):
        return f"{share:.1%}"
    return f"{min(max(share, 0.001), 0.999):.1%}"
