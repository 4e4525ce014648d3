"""How commands fail: every error is one line on stderr, with an exit code. The head of the package has the codes."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click

from sparsefmt.errors import SparsefmtError
from sparsefmt.in_words import printable

HUNG_UP = 141
"""The code by which shells report a program that SIGPIPE has ended, which is how other programs end in this case."""


class Failure(click.ClickException):
    """Ends the program with one line on stderr."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(printable(message))
        self.exit_code = exit_code  # type: ignore[misc]

    def show(self, file: Any = None) -> None:
        with suppress(OSError):  # nobody reads errors: the exit code remains
            click.echo(f"sparsefmt: error: {self.message}", file=file, err=file is None)


@contextmanager
def as_exit_codes() -> Iterator[None]:
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
            forget_output()
            raise click.exceptions.Exit(HUNG_UP) from error
        raise Failure(description_of(error), 2) from error
    except MemoryError as error:
        raise Failure("out of memory", 2) from error
    except KeyboardInterrupt as error:
        raise Failure("interrupted", 130) from error


def forget_output() -> None:
    """Drop the output that could not be printed, so that the interpreter does not try again when it ends."""
    with suppress(OSError, ValueError):  # in tests, there is no such file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def description_of(error: OSError) -> str:
    """What the system says, and of which file."""
    if error.strerror is None:
        return str(error)
    hint = "; --force replaces it" if isinstance(error, FileExistsError) else ""
    where = f"{error.filename}: " if error.filename is not None else ""
    return f"{where}{error.strerror}{hint}"
