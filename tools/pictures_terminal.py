"""What a terminal shows of a command, as a picture."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from unittest import mock

from click.testing import CliRunner
from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME

from sparsefmt.cli import main as sparsefmt_command
from sparsefmt.cli import output
from sparsefmt.in_words import printable


def picture(arguments: Sequence[str], width: int) -> str:
    """What a terminal of so many columns shows of a command, as SVG that loads nothing from elsewhere.

    Raises:
        RuntimeError: the command fails, or warns.
    """
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, highlight=False, markup=False)
    shown = " ".join(argument if re.fullmatch(r"[\w./-]+", argument) else f"'{argument}'" for argument in arguments)
    console.print(f"$ sparsefmt {shown}", style="bold")

    def say(line: str = "") -> None:
        # as on a terminal, where lines are broken between words
        console.print(printable(line))

    with (
        mock.patch.object(output, "console", return_value=console),
        mock.patch.object(output, "say", say),
        mock.patch.dict(os.environ, {"COLUMNS": str(width)}),
    ):
        result = CliRunner().invoke(sparsefmt_command, list(arguments))
    if result.exit_code not in (0, 1) or result.stderr:
        raise RuntimeError(result.output)
    svg = console.export_svg(title="", theme=SVG_EXPORT_THEME, unique_id="sparsefmt")
    return re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL).replace("Fira Code, monospace", "monospace")
