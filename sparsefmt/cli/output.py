"""Printing for all commands: tables, sizes, progress. Results go to stdout, and progress to stderr."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sparsefmt import compiling
from sparsefmt.cli.failures import printable
from sparsefmt.cli.tables import MOST_LINES, NameTable

WIDTH_OF_PIPES = 160
"""Columns of output that goes to a file or a pipe, unless COLUMNS is set. A table with longer names is wider."""

BAR_WIDTH = 8
"""Characters of a bar."""

WARNING = "yellow"
"""The style of rows that a user may want to act on."""


class _Console(Console):
    """A console that lets the program end itself when the reader of a pipe has hung up."""

    def on_broken_pipe(self) -> None:
        raise  # rich calls it while it handles the BrokenPipeError


def console() -> Console:
    """A console for the present stdout."""
    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else WIDTH_OF_PIPES
    return _Console(width=width, highlight=False, markup=False, soft_wrap=False)


def say(line: str = "") -> None:
    """Print a line of any length on stdout. On a terminal, it is broken between words."""
    console().print(printable(line), soft_wrap=not sys.stdout.isatty())


def table(*columns: str, left: int = 1, most_lines: int = MOST_LINES) -> NameTable:
    """An empty table: names in the first column, texts in the first `left`. most_lines: as of `NameTable`."""
    return NameTable(*columns, left=left, most_lines=most_lines)


def add_row(made: NameTable, *cells: str, style: str = "") -> None:
    """Add texts as they are: a name in brackets is not markup, and a control character is shown and not obeyed.

    The style shows on terminals with colours. The output says the same in words.
    """
    made.add(*map(printable, cells), style=style)


def print_table(made: NameTable) -> None:
    made.print(console(), whole_names=not sys.stdout.isatty() and not os.environ.get("COLUMNS"))


def size(nbytes: int) -> str:
    """Bytes in decimal units, three digits: "1.23 GB"."""
    if nbytes < 1000:
        return f"{nbytes} B"
    value = float(nbytes)
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if value < 999.5 or unit == "TB":
            break
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"


def ratio(before: int, after: int) -> str:
    """How many times smaller `after` is: "2.50x"."""
    return f"{before / after:.2f}x" if after else "-"


def percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "-"


def share(part: int, whole: int) -> str:
    """A percentage that says all or nothing only if it is that. "" of nothing at all."""
    if part in (0, whole) or not whole:
        return "" if not whole else "100%" if part else "0%"
    rounded = round(100 * part / whole, 1)
    return "<0.1%" if rounded <= 0 else ">99.9%" if rounded >= 100 else f"{rounded:.1f}%"


def bar(part: int, whole: int, width: int = BAR_WIDTH) -> str:
    """A bar for a share: full for all, and empty for nothing, only. "" of nothing at all."""
    if not whole:
        return ""
    if not _has_blocks():
        steps = _steps(part, whole, width)
        return "#" * steps + "." * (width - steps)
    steps = _steps(part, whole, 8 * width)
    return ("█" * (steps // 8) + " ▏▎▍▌▋▊▉"[steps % 8]).rstrip().ljust(width, "·")[:width]


def _steps(part: int, whole: int, most: int) -> int:
    """How many of so many steps a share is; none or all only if it is nothing or all."""
    steps = round(most * part / whole)
    return max(min(steps, most - (part < whole)), int(part > 0))


def _has_blocks() -> bool:
    """Whether the output can show parts of a character that is filled."""
    try:
        "█·▏".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def shape(sizes: tuple[int, ...], row_dims: int = 1) -> str:
    """ "4096x1024"; "8x(14336x4096)" for a stack of matrices, and "scalar" for no dimensions."""
    if row_dims > 1:
        return f"{shape(sizes[: row_dims - 1])}x({shape(sizes[row_dims - 1 :])})"
    return "x".join(map(str, sizes)) if sizes else "scalar"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def pattern(name: str) -> str:
    """The name with numbers replaced by *. Tensors with the same role in different layers share it."""
    return re.sub(r"\d+", "*", name)


@contextmanager
def progress_bar(
    what: str, total: int, quiet: bool, *, in_bytes: bool = True, compiling_is_news: bool = True
) -> Iterator[Callable[[int], None] | None]:
    """A bar with bytes or steps and remaining time on stderr, and a function to advance it; None if nobody sees it.

    Where a bar is seen, a line also says that kernels are being compiled, unless compiling is what the command does.
    """
    if quiet or not sys.stderr.isatty():
        yield None
        return
    amount = DownloadColumn() if in_bytes else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
    bar = Progress(*columns, console=_stderr(), transient=True)
    with bar as progress, telling_of_compiling(not compiling_is_news, progress.console):
        task = progress.add_task(what, total=total)
        yield lambda nbytes: progress.advance(task, nbytes)


@contextmanager
def telling_of_compiling(quiet: bool = False, where: Console | None = None) -> Iterator[None]:
    """Within the block, say on a terminal that kernels are being compiled, once compiling has taken a while."""
    if quiet or not sys.stderr.isatty():
        yield
        return
    shown = where or _stderr()
    with compiling.told_by(lambda text: shown.print(f"sparsefmt: {text}", soft_wrap=True)):
        yield


def _stderr() -> Console:
    return Console(stderr=True, markup=False, highlight=False)
