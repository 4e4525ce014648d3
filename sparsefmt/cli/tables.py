"""Tables whose first column has names. Names stay whole where there is room, and break at dots where there is not.

On a terminal that is too narrow for names and numbers side by side, each name is on a separate line above its numbers.
"""

from __future__ import annotations

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

LEAST_NAME = 24
"""The fewest columns of the terminal for names beside numbers."""

MOST_LINES = 2
"""The most lines of a name beside numbers. If one name needs more, all names are above their numbers."""


class NameTable:
    """Rows to be printed: a name, then cells that never break.

    Args:
        columns: headings.
        left: how many columns, from the first on, are texts. The others are numbers.
        most_lines: of a name beside numbers; with 1, names break only where the terminal is narrower than they are.
    """

    def __init__(self, *columns: str, left: int = 1, most_lines: int = MOST_LINES) -> None:
        self._columns = columns
        self._left = left
        self._most_lines = most_lines
        self._rows: list[tuple[tuple[str, ...], str]] = []
        self._total: tuple[str, ...] = ()

    def add(self, *cells: str, style: str = "") -> None:
        """Add a row, in a style of rich, such as "yellow". Missing cells stay empty."""
        self._rows.append((cells, style))

    def add_total(self, *cells: str) -> None:
        """Add the last row, which is set apart."""
        self._total = cells

    def print(self, console: Console, whole_names: bool = False) -> None:
        """Print the table in the width of the console, or in its full width if the output is not a terminal."""
        rows = [cells for cells, _ in self._rows] + [self._total]
        widths = [max(cell_len(text) for text in column) for column in zip(*map(self._filled, rows), strict=True)]
        widths = [max(width, cell_len(column)) for width, column in zip(widths, self._columns, strict=True)]
        room = {gap: console.width - sum(width + gap for width in widths[1:]) - (gap - 1) for gap in (2, 1)}
        lines = max(broken(cells[0], max(room[1], LEAST_NAME)).count("\n") + 1 for cells in rows if cells)
        if whole_names or room[2] >= widths[0]:
            self._print_beside(console, widths[0], 2, sum(widths) + 2 * len(widths))
        elif room[1] >= LEAST_NAME and lines <= self._most_lines:
            self._print_beside(console, min(room[1], widths[0]), 1, console.width)
        else:
            self._print_below(console, widths[1:])

    def _filled(self, cells: tuple[str, ...]) -> tuple[str, ...]:
        return (*cells, *[""] * (len(self._columns) - len(cells)))

    def _print_beside(self, console: Console, room: int, gap: int, width: int) -> None:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, gap - 1, 0, 0), show_edge=False)
        for number, column in enumerate(self._columns):
            justify = "left" if number < self._left else "right"
            table.add_column(column, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        for cells, style in self._rows:
            self._add(table, cells, room, style)
        if self._total:
            table.add_section()
            self._add(table, self._total, room, "")
        if width > console.width:  # only if it is not a terminal
            console.width = width
        console.print(table)

    def _add(self, table: Table, cells: tuple[str, ...], room: int, style: str) -> None:
        name, *others = cells
        # Text, not str: a name in brackets is not markup
        table.add_row(Text(broken(name, room)), *map(Text, others), style=style)

    def _print_below(self, console: Console, widths: list[int]) -> None:
        """Print names above their numbers. Numbers that do not fit on a line continue on the next."""
        indent = " " * 2
        heading, *others = self._columns
        lines = [Text(heading), *self._numbers(others, widths, console.width - 2)]
        lines.append(Text("─" * console.width))
        rows = [*self._rows, *([(self._total, "")] if self._total else [])]
        for cells, style in rows:
            name, *numbers = cells
            lines += [Text(line, style) for line in broken(name, console.width).split("\n")]
            lines += [Text(line.plain, style) for line in self._numbers(numbers, widths, console.width - 2)]
        for line in lines:
            console.print(line if line.plain[:1] != "\t" else Text(indent + line.plain[1:], line.style))

    def _numbers(self, cells: list[str], widths: list[int], room: int) -> list[Text]:
        lines, line = [], ""
        for number, (text, width) in enumerate(zip(cells, widths, strict=False), 1):
            blanks = " " * (width - cell_len(text))
            cell = text + blanks if number < self._left else blanks + text
            if line and cell_len(line) + 1 + width > room:
                lines.append(line)
                line = ""
            line = f"{line} {cell}" if line else cell
        return [Text("\t" + text.rstrip()) for text in (*lines, line) if text.strip()]


def broken(name: str, room: int) -> str:
    """A name in lines of at most `room` columns, broken after dots. A long part is broken after _ or anywhere."""
    if cell_len(name) <= room:
        return name
    lines, line = [], ""
    for part in _parts(name, ".", room):
        if line and cell_len(line) + cell_len(part) > room:
            lines.append(line)
            line = ""
        line += part
    return "\n".join([*lines, line])


def _parts(text: str, sign: str, room: int) -> list[str]:
    """The pieces between which a name may be broken, none longer than `room`."""
    parts = [part + sign for part in text.split(sign)]
    parts[-1] = parts[-1].removesuffix(sign)
    pieces: list[str] = []
    for part in parts:
        if cell_len(part) <= room:
            pieces.append(part)
        elif sign == ".":
            pieces += _parts(part, "_", room)
        else:
            pieces += [part[begin : begin + room // 2] for begin in range(0, len(part), room // 2)]
    return [piece for piece in pieces if piece]
