"""The command `sparsefmt`. There is one file per command here, which is imported when that command runs.

Exit codes of all commands:

    0    success
    1    the data is bad, or differs: a file that is damaged or cannot be stored, a failed verification
    2    wrong usage, or the system refuses: no such file, a file of another format, no permission, disk full,
         destination exists
    130  interrupted with Ctrl-C
    141  the reader of a pipe has hung up, as in `sparsefmt inspect … | head`; nothing is printed then

Every error, wrong usage included, is one line on stderr that starts with "sparsefmt: error: ". A file that was being
written is then either whole or not there.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click

from sparsefmt import __version__
from sparsefmt.container import budget
from sparsefmt.errors import SparsefmtError

_COMMANDS = ("convert", "inspect", "verify", "diff", "export", "bench", "warmup", "demo")

_OTHER_WORDS = {
    "compress": "convert",
    "pack": "convert",
    "decompress": "export",
    "unpack": "export",
    "info": "inspect",
    "show": "inspect",
    "list": "inspect",
    "check": "verify",
    "validate": "verify",
    "compare": "diff",
    "benchmark": "bench",
    "compile": "warmup",
}
"""Other names that people may try for a command."""

_HUNG_UP = 141
"""The code by which shells report a program that SIGPIPE has ended, which is how other programs end in this case."""


def printable(text: str) -> str:
    """One line without control characters. Those in a name or a path are spelled out."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


class Failure(click.ClickException):
    """Ends the program with one line on stderr."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(printable(message))
        self.exit_code = exit_code  # type: ignore[misc]

    def show(self, file: Any = None) -> None:
        with suppress(OSError):  # nobody reads errors: the exit code remains
            click.echo(f"sparsefmt: error: {self.message}", file=file, err=file is None)


class _Program(click.Group):
    """A group that imports a command when it is called, and turns exceptions into exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        return importlib.import_module(f"sparsefmt.cli.{name}").command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            raise Failure(_not_a_command(args[0]), 2)
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **options: Any) -> Any:
        """Like click's `main`. If output could not be written, the exit code says so."""
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is None:  # closed by the program that started this one
                setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
            elif hasattr(stream, "reconfigure"):
                # a name that the terminal cannot show must not end the program
                stream.reconfigure(errors="backslashreplace")
        try:
            try:
                return super().main(*args, **options)
            finally:
                sys.stdout.flush()
        except OSError as error:
            _forget_output()
            if error.errno == errno.EPIPE:
                sys.exit(_HUNG_UP)
            Failure(f"standard output: {_describe(error)}", 2).show()
            sys.exit(2)

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        with _as_exit_codes():
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        with _as_exit_codes(), budget.calling_it("--max-decoded-bytes"):
            return super().invoke(ctx)


@contextmanager
def _as_exit_codes() -> Iterator[None]:
    """Turn exceptions into those by which click ends the program."""
    try:
        yield
    except click.UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # shows the help
            raise
        where = error.ctx.command_path if error.ctx else "sparsefmt"
        raise Failure(f"{error.format_message().rstrip('.')}; see `{where} --help`", error.exit_code) from error
    except SparsefmtError as error:
        # a file of another format may be in order; it is the wrong argument
        raise Failure(str(error), 2 if error.code == "file-foreign" else 1) from error
    except OSError as error:
        if error.errno == errno.EPIPE:
            _forget_output()
            raise click.exceptions.Exit(_HUNG_UP) from error
        raise Failure(_describe(error), 2) from error
    except MemoryError as error:
        raise Failure("out of memory", 2) from error
    except KeyboardInterrupt as error:
        raise Failure("interrupted", 130) from error


def _forget_output() -> None:
    """Drop the output that could not be printed, so that the interpreter does not try again when it ends."""
    with suppress(OSError, ValueError):  # in tests, there is no such file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _not_a_command(word: str) -> str:
    suffix = os.path.splitext(word)[1]
    if suffix == ".sparsefmt" or os.path.exists(word):
        verb = "inspect" if suffix == ".sparsefmt" else "convert"
        return f"{word!r} is a file, and a command is missing: sparsefmt {verb} {word}"
    close = difflib.get_close_matches(word.lower(), [*_COMMANDS, *_OTHER_WORDS], 1)
    hint = f"did you mean {_OTHER_WORDS.get(close[0], close[0])!r}?" if close else f"there are {', '.join(_COMMANDS)}"
    return f"no such command {word!r}; {hint}"


def _describe(error: OSError) -> str:
    if error.strerror is None:
        return str(error)
    hint = "; --force replaces it" if isinstance(error, FileExistsError) else ""
    where = f"{error.filename}: " if error.filename is not None else ""
    return f"{where}{error.strerror}{hint}"


@click.group(
    "sparsefmt",
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
  141  the reader of a pipe has hung up
""",
)
@click.version_option(__version__, message="sparsefmt %(version)s")
def main() -> None:
    """Files for pruned neural networks: smaller on disk, smaller in memory, multiplied as stored."""
