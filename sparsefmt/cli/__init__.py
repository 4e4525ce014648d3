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
from typing import Any

import click

from sparsefmt import __version__
from sparsefmt.cli.failures import HUNG_UP, Failure, as_exit_codes, description_of, forget_output
from sparsefmt.container import budget

_COMMANDS = {
    "convert": "Turn safetensors, or .bin, .pt, .pth, into .sparsefmt.",
    "inspect": "List the tensors of a model, and what was pruned.",
    "report": "Make a page on a model: what was pruned, and what it brings.",
    "view": "Show a file in the browser: its tensors and their patterns.",
    "verify": "Check every byte of a file; compare it with its source.",
    "diff": "Say which tensors differ between two models, and how much.",
    "export": "Turn .sparsefmt back into safetensors.",
    "bench": "Time the products of a file's tensors, next to dense ones.",
    "warmup": "Compile the kernels ahead of their first use.",
    "demo": "Prune, convert, load and multiply a small network.",
}
"""What each command says of itself (`short_help`), so that a list of them need not import all."""

_OTHER_WORDS = {
    "compress": "convert",
    "pack": "convert",
    "decompress": "export",
    "unpack": "export",
    "info": "inspect",
    "show": "inspect",
    "list": "inspect",
    "browse": "view",
    "open": "view",
    "check": "verify",
    "validate": "verify",
    "compare": "diff",
    "benchmark": "bench",
    "compile": "warmup",
}
"""Other names that people may try for a command."""


class _Program(click.Group):
    """A group that imports a command when it is called, and turns exceptions into exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        return importlib.import_module(f"sparsefmt.cli.{name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

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
            forget_output()
            if error.errno == errno.EPIPE:
                sys.exit(HUNG_UP)
            Failure(f"standard output: {description_of(error)}", 2).show()
            sys.exit(2)

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        with as_exit_codes():
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        with as_exit_codes(), budget.calling_it("--max-decoded-bytes"):
            return super().invoke(ctx)


def _not_a_command(word: str) -> str:
    suffix = os.path.splitext(word)[1]
    if suffix == ".sparsefmt" or os.path.exists(word):
        verb = "inspect" if suffix == ".sparsefmt" else "convert"
        return f"{word!r} is a file, and a command is missing: sparsefmt {verb} {word}"
    close = difflib.get_close_matches(word.lower(), [*_COMMANDS, *_OTHER_WORDS], 1)
    hint = f"did you mean {_OTHER_WORDS.get(close[0], close[0])!r}?" if close else f"there are {', '.join(_COMMANDS)}"
    return f"no such command {word!r}; {hint}"


@click.group(
    "sparsefmt",
    cls=_Program,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  sparsefmt demo
  sparsefmt convert model.safetensors
  sparsefmt inspect model.sparsefmt
  sparsefmt view model.sparsefmt
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
