"""That kernels are being compiled is said: while it happens, once, where somebody is waiting, and nowhere else."""

from __future__ import annotations

import logging
import os
import pty
import subprocess
import sys
import threading
import time
from pathlib import Path

import numba
import pytest

from sparsefmt import compiling
from sparsefmt.compiling import Watch


@pytest.fixture(autouse=True)
def new_watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch = Watch(logging.getLogger("sparsefmt").info)
    monkeypatch.setattr(compiling, "watch", watch)
    monkeypatch.setattr(compiling, "PATIENCE", 0.5)
    return watch


def told_while(watch: Watch, seconds: list[float]) -> list[str]:
    """What is told before the last of several functions, which take so long to compile, is compiled."""
    told: list[str] = []
    with compiling.told_by(told.append):
        for taken in seconds:
            watch.started()
            watch.started()  # calls another one
            watch.ended()
            time.sleep(taken)
            seen = list(told)
            watch.ended()
    return seen


def test_it_is_told_while_it_happens_and_once(new_watch: Watch) -> None:
    assert told_while(new_watch, [1.0]) == [compiling.MESSAGE]
    assert "`sparsefmt warmup`" in compiling.MESSAGE
    assert told_while(new_watch, [1.0]) == []


def test_many_short_ones_add_up(new_watch: Watch) -> None:
    assert told_while(new_watch, [0.3, 0.3, 0.8]) == [compiling.MESSAGE]


def test_patience(new_watch: Watch) -> None:
    assert told_while(new_watch, [0.01, 0.01]) == []
    time.sleep(0.7)  # that nothing is compiled meanwhile does not count
    assert told_while(new_watch, [0.01]) == []
    assert threading.active_count() < 50


def test_a_program_gets_a_message_of_the_logger(
    new_watch: Watch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For compiling kernels: not when they come from the cache, and not for functions of others."""
    import sparsefmt.jit  # noqa: F401

    monkeypatch.setattr(compiling, "PATIENCE", 0)
    caplog.set_level(logging.INFO, "sparsefmt")

    def function(x: int) -> int:
        return x + 1

    numba.njit(function)(1)
    assert not caplog.records
    function.__module__ = "sparsefmt.kernels.example"
    numba.njit(function)(1)
    assert [(record.name, record.message) for record in caplog.records] == [("sparsefmt", compiling.MESSAGE)]


_PROGRAM = """
import sys, time
import numba, numpy
import sparsefmt.jit
from sparsefmt import compiling
from sparsefmt.cli import cluster, main

compiling.PATIENCE = 0

def slow(*arguments, **options):
    function = lambda x: x + 1
    function.__module__ = "sparsefmt.kernels.example"
    numba.njit(function)(1)
    time.sleep(0.1)
    return original(*arguments, **options)

original, cluster.convert_checkpoint = cluster.convert_checkpoint, slow
main(sys.argv[1:])
"""


@pytest.mark.parametrize("arguments", [[], ["--quiet"]])
@pytest.mark.parametrize("terminal", [True, False])
def test_a_command_says_it_on_a_terminal(arguments: list[str], terminal: bool, tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"w": np.eye(64, dtype=np.float32)}, tmp_path / "a.safetensors")
    command = [sys.executable, "-c", _PROGRAM, "convert", str(tmp_path / "a.safetensors"), *arguments]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs if terminal else subprocess.PIPE)
    os.close(theirs)
    written = b""
    if terminal:
        try:
            while piece := os.read(ours, 4096):
                written += piece
        except OSError:  # its end is closed
            pass
    out, err = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0
    text = (written or err or b"").decode()
    assert text.count(f"sparsefmt: {compiling.MESSAGE}") == (1 if terminal and not arguments else 0)
    assert b"compiling" not in out
