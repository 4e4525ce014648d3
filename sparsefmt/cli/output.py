"""Printing for all commands: tables, sizes, progress. Results go to stdout, and progress to stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from sparsefmt import compiling
from sparsefmt.cli.tables import MOST_LINES, NameTable
from sparsefmt.in_words import pattern as pattern
from sparsefmt.in_words import percent as percent
from sparsefmt.in_words import plural as plural
from sparsefmt.in_words import printable
from sparsefmt.in_words import ratio as ratio
from sparsefmt.in_words import shape as shape
from sparsefmt.in_words import share as share
from sparsefmt.in_words import size as size
from sparsefmt.limits import MAX_NAME_BYTES

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

    The style shows on terminals with colours. The output says the same in words. A first cell that is longer than two
    names in a .sparsefmt file is cut, and says so: safetensors may have names of megabytes.
    """
    made.add(*map(printable, (_cut(cells[0]), *cells[1:])), style=style)


def _cut(name: str) -> str:
    if len(name) <= 2 * MAX_NAME_BYTES + 32:  # "NAME = a copy of NAME"
        return name
    return f"{name[: MAX_NAME_BYTES // 4]}… (a name of {len(name):,} characters)"


def print_table(made: NameTable) -> None:
    made.print(console(), whole_names=not sys.stdout.isatty() and not os.environ.get("COLUMNS"))


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
    # takes as long to import as all else of rich
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

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
