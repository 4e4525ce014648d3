"""The command line as a person meets it: narrow terminals, pipes that close, full disks, slips of the fingers."""

from __future__ import annotations

import errno
import importlib.util
import io
import os
import pty
import re
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import fail, run_command, succeed, weights
from hypothesis import given
from hypothesis import strategies as st
from numba.core import caching
from rich.cells import cell_len
from rich.console import Console

import sparsefmt
from sparsefmt.cli import demo
from sparsefmt.cli.benchmark import reporting
from sparsefmt.cli.tables import NameTable, broken

LAYER = "model.language_model.layers.{}.{}.weight"
NAMES = [
    LAYER.format(layer, part)
    for layer in range(2)
    for part in ("mlp.down_proj", "self_attn.q_proj", "post_attention_layernorm")
]


def process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sparsefmt", *map(str, arguments)]
    return subprocess.run(command, text=True, timeout=120, **{"stderr": subprocess.PIPE, **options})


def on_a_terminal(*arguments: object, **environment: str) -> str:
    """What a command shows on a terminal, and ends with success."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "sparsefmt", *map(str, arguments)]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", **environment}
    child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert child.wait(60) == 0, shown
    return shown.decode().replace("\r\n", "\n")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    tensors = {name: weights(rng, (64, 96), np.float32, 0.8) for name in NAMES}
    sparsefmt.save_file({**tensors, "lm_head.weight": tensors[NAMES[0]]}, tmp_path / "model.sparsefmt")
    return tmp_path / "model.sparsefmt"


# tables


@given(st.text(st.sampled_from("ab.._é名"), max_size=60), st.integers(4, 40))
def test_broken_names_are_whole_and_fit(name: str, room: int) -> None:
    lines = broken(name, room).split("\n")
    assert "".join(lines) == name
    assert max(map(cell_len, lines)) <= room
    for line, following in pairwise(lines):
        # within a part only if that part alone is longer than a line
        part = re.split(r"[._]", line)[-1] + re.split(r"(?<=[._])", following)[0]
        assert line[-1] in "._" or cell_len(part) > room // 2


@pytest.mark.parametrize("width", [40, 60, 80, 100, 125, 160])
@pytest.mark.parametrize("whole_names", [False, True])
def test_tables_at_every_width(width: int, whole_names: bool) -> None:
    table = NameTable("tensor", "shape", "layout", "zeros", "dense", "stored", "ratio", left=3)
    cells = ("4096x14336", "permuted", "80.0%", "1.05 MB", "197 kB", "5.31x")
    for name in [*NAMES, "[red]x", "tied = name"]:
        table.add(name, *cells)
    table.add("alias = other")
    table.add_total("total", *cells)
    file = io.StringIO()
    table.print(Console(file=file, width=width, markup=False, highlight=False), whole_names)
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    assert whole_names or max(map(cell_len, lines)) <= width
    text = file.getvalue()
    # each cell is in one piece, and each name in pieces that end at dots
    for cell in cells:
        assert text.count(cell) == len(NAMES) + 3
    for name in NAMES:
        if whole_names or width >= 125:
            assert sum(line.startswith(f"{name} ") for line in lines) == 1
        pieces = [piece for piece in name.split(".") if piece != "0"]
        assert all(piece in text for piece in pieces)
    assert "[red]x" in text
    # no blank table: names stand in the order of the rows
    assert text.index("down_proj") < text.index("[red]x") < text.index("total")


@pytest.mark.parametrize("columns", ["60", "80", "100"])
def test_commands_on_narrow_terminals(model: Path, columns: str) -> None:
    shown = re.sub(r"\x1b\[[0-9;]*m", "", on_a_terminal("inspect", model, COLUMNS=columns))
    assert max(map(cell_len, shown.split("\n"))) <= int(columns)
    for part in ("down_proj", "q_proj", "post_attention_layernorm", "weight", "bitmask"):
        assert part in shown
    # sentences, too, break between words
    assert re.search(r"\b6\s+tensors\b|\b7\s+tensors\b", shown)


def test_names_in_a_pipe_are_whole(tmp_path: Path) -> None:
    name = ".".join(f"part{n}" for n in range(60))
    sparsefmt.save_file({name: np.ones(3)}, tmp_path / "a.sparsefmt")
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    result = process("inspect", tmp_path / "a.sparsefmt", stdout=subprocess.PIPE, env=environment)
    assert f"{name} " in result.stdout


def test_colours(tmp_path: Path) -> None:
    """A terminal has them, NO_COLOR and pipes do not; the words say it all the same."""
    from safetensors.numpy import save_file

    pruned = weights(np.random.default_rng(0), (64, 96), np.float32, 0.8)
    save_file({"pruned.weight": pruned, "bias": np.zeros(9, np.float32)}, tmp_path / "a.safetensors")
    words = "Stored dense, though 40% or more of it is zero"
    options = ("convert", tmp_path / "a.safetensors", "--force", "--layout", "dense")
    shown = on_a_terminal(*options)
    [row] = [line for line in shown.splitlines() if "pruned.weight" in line and "64x96" in line]
    assert "\x1b[33m" in row
    assert [line for line in shown.splitlines() if line.startswith("bias") and "\x1b" in line] == []
    for plain in (on_a_terminal(*options, NO_COLOR="1"), succeed(*options)):
        assert "\x1b[33m" not in plain
        assert words in " ".join(plain.split())
    assert words not in succeed(*options[:3])


def test_rows_slower_than_dense_are_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The times do not matter here: products are told to be slower, or faster."""
    from sparsefmt.cli.benchmark.groups import Timing

    styles: list[str] = []
    add_row = reporting.output.add_row
    monkeypatch.setattr(
        reporting.output, "add_row", lambda *row, style="": (styles.append(style), add_row(*row, style=style))
    )
    for ours, words in (
        (2.0, "6 of 6 tensors are slower than dense: "),
        (0.5, "none of 6 tensors is slower than dense."),
    ):
        monkeypatch.setattr(Timing, "seconds", property(lambda _, ours=ours: ours))
        monkeypatch.setattr(Timing, "dense_seconds", property(lambda _: 1.0))
        styles.clear()
        out = succeed("bench", model, "--repeats", "3", "--batch", "1")
        assert f"With batch 1, {words}" in out
        assert ("yellow" in styles) is (ours > 1)


# slips


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("inpsect", "did you mean 'inspect'?"),
        ("Convert", "did you mean 'convert'?"),
        ("info", "did you mean 'inspect'?"),
        ("unpack", "did you mean 'export'?"),
        ("xyzzy", "there are convert, inspect, "),
        ("m.sparsefmt", "is a file, and a command is missing: sparsefmt inspect m.sparsefmt"),
    ],
)
def test_did_you_mean(word: str, hint: str) -> None:
    assert hint in fail(2, word)


def test_wrong_usage_is_one_line(model: Path) -> None:
    assert "Did you mean '--json'?; see `sparsefmt inspect --help`" in fail(2, "inspect", model, "--jsn")
    assert "Missing argument 'MODEL'; see `sparsefmt inspect --help`" in fail(2, "inspect")
    assert "'zip' is not one of" in fail(2, "convert", model, "--codec", "zip")
    assert fail(2, "--nothing").endswith("see `sparsefmt --help`")
    assert "Usage: sparsefmt" in run_command().output


# pipes and disks


@pytest.mark.parametrize(
    "arguments", [("inspect",), ("inspect", "--json"), ("verify",), ("diff",), ("export", "--force"), ("--help",)]
)
def test_reader_that_hangs_up(arguments: tuple[str, ...], model: Path) -> None:
    command, *options = arguments
    files = {"--help": [], "diff": [model, model]}.get(command, [model])
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "w") as closed:
        result = process(command, *files, *options, stdout=closed)
    assert (result.returncode, result.stderr) == (141, "")


def test_output_that_cannot_be_written_is_an_error(model: Path) -> None:
    for arguments in (("inspect", model), ("inspect", model, "--json"), ("--help",), ("verify", model)):
        with open("/dev/full", "w") as full:
            result = process(*arguments, stdout=full)
            assert (result.returncode, result.stderr.count("\n")) == (2, 1)
            assert "No space left on device" in result.stderr
            # and where nobody reads errors either, the exit code remains
            assert process(*arguments, stdout=full, stderr=full).returncode == 2


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams(closed: str, model: Path) -> None:
    line = f'"{sys.executable}" -m sparsefmt inspect "{model}" {closed}'
    result = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_demo_where_there_is_no_room(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "WIDTHS", (96, 256, 160, 64))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if len(list(tmp_path.glob("*/*.sparsefmt"))) == room[0]:
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    room = [0]
    monkeypatch.setattr(os, "fsync", refuse)
    for room[0] in (0, 1):
        message = fail(2, "demo")
        assert f"{os.strerror(code)}: the demo needs 300 MB for temporary files; TMPDIR names" in message
        assert list(tmp_path.iterdir()) == []


def test_demo_without_a_folder_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(demo, "WIDTHS", (96, 256, 160, 64))
    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    assert "TMPDIR names another folder" in fail(2, "demo")


def test_full_disk_below_the_cache_of_compiled_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept then, and everything works."""
    (tmp_path / "kernels.py").write_text("from sparsefmt.jit import jit\n\n@jit\ndef added(x):\n    return x + 1\n")
    found = importlib.util.spec_from_file_location("kernels_of_a_test", tmp_path / "kernels.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    asked = []

    def refuse(*arguments: object) -> None:
        asked.append(arguments)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(caching.IndexDataCacheFile, "_save_data", refuse)
    assert module.added(2) == 3
    assert asked
