"""What the command line imports before it works: a second of imports is a second that nobody asked for."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from sparsefmt.cli import _COMMANDS

COMPILERS = ("numba", "llvmlite", "scipy", "torch", "threadpoolctl")
SELDOM_NEEDED = ("rich", "zipfile", "matplotlib", "jinja2", "fsspec", "transformers")
"""What a command needs that has printed something, or found a strange file, if at all."""


def imported_by(*arguments: str) -> set[str]:
    """The modules that are there once the program has run with these arguments."""
    program = (
        "import sys; from sparsefmt.cli import main; main(sys.argv[1:], standalone_mode=False); "
        "print(*sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, *arguments]
    return set(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stderr.split())


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_imports_no_command(option: str) -> None:
    imported = imported_by(option)
    assert not {f"sparsefmt.cli.{name}" for name in _COMMANDS} & imported
    assert not {name for name in imported if name.split(".")[0] in (*COMPILERS, *SELDOM_NEEDED)}
    assert not {name for name in imported if name.startswith("sparsefmt.checkpoints")}


@pytest.mark.parametrize("command", ["convert", "export", "verify", "diff", "inspect"])
def test_a_command_imports_what_it_works_with(command: str) -> None:
    imported = imported_by(command, "--help")
    assert f"sparsefmt.cli.{command}" in imported
    assert not {name for name in imported if name.split(".")[0] in COMPILERS}
    assert not {name for name in imported if name.startswith(("sparsefmt.kernels", "sparsefmt.torch"))}
    assert not {name for name in imported if ".jitted" in name}
    if command in ("convert", "export", "verify"):
        assert not {name for name in imported if name.split(".")[0] in SELDOM_NEEDED}


def test_the_list_says_what_each_command_says_of_itself() -> None:
    own = {name: importlib.import_module(f"sparsefmt.cli.{name}").command.short_help for name in _COMMANDS}
    assert own == _COMMANDS
