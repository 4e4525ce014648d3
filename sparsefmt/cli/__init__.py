"""The command `sparsefmt`: one file per command here, imported when that command runs.

Exit codes, of every command:

    0    success
    1    the data is bad, or differs: a file that is damaged or cannot be stored, a failed verification
    2    wrong usage, or the system refuses: no such file, a file of another format, no permission, disk full,
         destination exists
    130  interrupted with Ctrl-C

An error is one line on stderr that starts with "sparsefmt: error: ". What was being written is then either whole or
not there.
"""

from __future__ import annotations

import errno
import importlib
import sys
from typing import Any

import click

from sparsefmt import __version__
from sparsefmt.container import budget
from sparsefmt.errors import SparsefmtError

_COMMANDS = ("convert", "inspect", "verify", "diff", "export", "bench", "warmup", "demo")


def printable(text: str) -> str:
    """One line without control characters: those that a name or a path may have are spelled out."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


class Failure(click.ClickException):
    """Ends the program with one line on stderr."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(printable(message))
        self.exit_code = exit_code  # type: ignore[misc]

    def show(self, file: Any = None) -> None:
        click.echo(f"sparsefmt: error: {self.message}", file=file, err=file is None)


class _Program(click.Group):
    """A group that imports a command when it is called for, and turns exceptions into exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        return importlib.import_module(f"sparsefmt.cli.{name}").command

    def invoke(self, ctx: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):
            # a name that the terminal cannot show must not end the program
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        try:
            with budget.calling_it("--max-decoded-bytes"):
                return super().invoke(ctx)
        except SparsefmtError as error:
            # nothing is wrong with a file of another format: it is the wrong argument
            raise Failure(_in_file(error, str(error)), 2 if error.code == "file-foreign" else 1) from error
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # `sparsefmt inspect … | head`: click ends the program quietly
            raise Failure(_describe(error), 2) from error
        except MemoryError as error:
            raise Failure("out of memory", 2) from error
        except KeyboardInterrupt as error:
            raise Failure("interrupted", 130) from error


def _in_file(error: BaseException, message: str) -> str:
    """The message after the name of the file that a note (see `interchange.contract.naming`) gives."""
    return ": ".join([*getattr(error, "__notes__", []), message])


def _describe(error: OSError) -> str:
    if error.strerror is None:
        return str(error)
    hint = "; --force replaces it" if isinstance(error, FileExistsError) else ""
    where = f"{error.filename}: " if error.filename is not None else ""
    return f"{where}{error.strerror}{hint}"


@click.group(
    cls=_Program,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  sparsefmt demo
  sparsefmt convert model.safetensors
  sparsefmt inspect model.sparsefmt
  sparsefmt verify model.sparsefmt --against model.safetensors

\b
Exit codes:
  0    success
  1    the data is bad or differs: a damaged file, a failed verification
  2    wrong usage or a system error: no such file, no permission, disk full
  130  interrupted
""",
)
@click.version_option(__version__, message="sparsefmt %(version)s")
def main() -> None:
    """Files for pruned neural networks: smaller on disk, smaller in memory, multiplied as stored."""
