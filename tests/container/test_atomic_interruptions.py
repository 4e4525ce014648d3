"""Saving that is interrupted, by errors and by Ctrl-C at any step, or done by several at once."""

from __future__ import annotations

import contextlib
import dis
import errno
import os
import re
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import numpy as np
import pytest
from helpers import in_threads, names_in, open_below, same_bits
from saving_helpers import DEAD, LARGE, SMALL, Lazy, holds, raising

import sparsefmt
from sparsefmt.container import atomic


def interrupted_at(step: int, work: Callable[[], object]) -> bool:
    """Do work(), with Ctrl-C at the `step`th place in atomic.py or contextlib at which CPython looks for signals.

    It does so as a function begins, after a call and as a loop goes back: not within other instructions.

    Returns whether it got so far; if it did not, work() was done as a whole.
    """
    files = (atomic.__file__, contextlib.__file__)
    left = step
    last: dict[FrameType, int] = {}

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes = True
        looked = event == "call"
        if event == "opcode":
            if frame in last:
                instruction = dis.opname[frame.f_code.co_code[last[frame]]]
                looked = instruction.startswith(("CALL", "JUMP_BACKWARD"))
            last[frame] = frame.f_lasti
        if looked:
            left -= 1
            if left == -1:
                last.clear()
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    try:
        sys.settrace(trace)
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
        last.clear()
    return False


class TestInterruptions:
    @pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, MemoryError, RuntimeError, GeneratorExit])
    def test_errors_of_a_lazy_mapping_come_out_as_they_are(self, kind, path):
        error = kind("mine")
        with pytest.raises(kind) as caught:
            sparsefmt.save_file(Lazy({"a": lambda: LARGE["w"], "b": raising(error)}), path)
        assert caught.value is error

    def test_those_of_reading_do_not_name_the_file_that_is_written(self, path):
        for error in (OSError(errno.EIO, "Input/output error"), ConnectionResetError(errno.ECONNRESET, "reset")):
            with pytest.raises(OSError, match=re.escape(error.strerror)) as caught:
                sparsefmt.save_file(Lazy({"a": lambda: LARGE["w"], "b": raising(error)}), path)
            assert caught.value.filename is None
        with pytest.raises(FileNotFoundError) as caught:
            sparsefmt.save_file(Lazy({"a": path.with_name("missing").read_bytes}), path)
        assert caught.value.filename == str(path.with_name("missing"))

    def test_what_is_refused_or_fails_on_the_way(self, path):
        """A tensor that cannot be stored, behind one that can; whoever is told of the progress."""
        with pytest.raises(sparsefmt.SparsefmtError):
            sparsefmt.save_file({**LARGE, "~": np.zeros(2, np.complex128)}, path)
        with pytest.raises(RuntimeError, match="stop"):
            sparsefmt.save_file(LARGE, path, progress=lambda done, total: raising(RuntimeError("stop"))())

    def test_they_are_not_hidden_by_a_full_disk(self, path):
        """What is left in the buffer is not written any more."""
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)

        def fail() -> Any:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
            raise RuntimeError("mine")

        try:
            with pytest.raises(RuntimeError, match="mine"):
                sparsefmt.save_file(Lazy({"a": lambda: np.float32(1), "b": fail}), path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    def test_ctrl_c_at_any_moment(self, tmp_path):
        path = tmp_path / "w.sparsefmt"
        sparsefmt.save_file(SMALL, path)
        sparsefmt.save(LARGE)  # compiled

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGALRM, interrupt)
        interrupted = 0
        try:
            for microseconds in range(200, 40_000, 1_000):
                signal.setitimer(signal.ITIMER_REAL, microseconds / 1e6)
                try:
                    sparsefmt.save_file(LARGE, path)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except KeyboardInterrupt:
                    interrupted += 1
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                assert holds(path, LARGE, SMALL)
        finally:
            signal.signal(signal.SIGALRM, before)
        assert interrupted
        sparsefmt.save_file(SMALL, path)
        assert names_in(tmp_path) == ["w.sparsefmt"]

    def test_ctrl_c_at_each_step_of_replacing_a_file(self, path):
        """Nothing is left as soon as the exception is let go, neither a file nor a descriptor."""

        def replace() -> None:
            with atomic.replacing(path) as file:
                file.write(before)

        before = path.read_bytes()
        steps = 0
        while interrupted_at(steps, replace):
            assert (names_in(path.parent), open_below(path.parent)) == (["w.sparsefmt"], []), f"step {steps}"
            assert path.read_bytes() == before
            steps += 1
        assert steps > 100

    def test_ctrl_c_at_each_step_of_giving_up(self, path):
        """Ctrl-C a second time, while the temporary file is being removed: then the next save does it."""

        def fail() -> None:
            with suppress(RuntimeError), atomic.replacing(path) as file:
                file.write(b"half")
                raise RuntimeError

        before = path.read_bytes()
        steps = 0
        while interrupted_at(steps, fail):
            assert path.read_bytes() == before
            sparsefmt.save_file(SMALL, path)
            assert (names_in(path.parent), open_below(path.parent)) == (["w.sparsefmt"], []), f"step {steps}"
            steps += 1
        assert steps > 100

    def test_ctrl_c_at_each_step_of_removing_what_dead_writers_have_left(self, path):
        dead = path.with_name(DEAD)
        steps = 0
        dead.write_bytes(b"half")
        while interrupted_at(steps, lambda: atomic._remove_abandoned(str(path))):
            assert set(names_in(path.parent)) <= {"w.sparsefmt", DEAD}
            assert not open_below(path.parent), f"step {steps}"
            dead.write_bytes(b"half")
            steps += 1
        assert steps > 20


class TestSeveralWriters:
    def test_threads_that_save_to_one_name_at_once(self, tmp_path):
        path = tmp_path / "w.sparsefmt"
        arrays = [np.full((50, 50), number + 1, np.float32) for number in range(4)]

        def write(array):
            for _ in range(10):
                sparsefmt.save_file({"w": array}, path)
                loaded = sparsefmt.load_file(path)["w"]
                assert any(same_bits(loaded, other) for other in arrays)

        in_threads(write, arrays)
        assert names_in(tmp_path) == ["w.sparsefmt"]

    def test_processes_that_save_to_one_name_at_once(self, tmp_path):
        path = tmp_path / "w.sparsefmt"
        models = [{"w": np.full((300, 300), number + 1, np.float32)} for number in range(3)]
        sparsefmt.save_file(models[0], path)
        children = []
        for model in models:
            child = os.fork()
            if not child:
                signal.alarm(60)
                try:
                    for _ in range(15):
                        sparsefmt.save_file(model, path)
                except BaseException:
                    os._exit(1)
                os._exit(0)
            children.append(child)
        for _ in range(30):
            assert holds(path, *models)
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
        assert holds(path, *models)
        assert names_in(tmp_path) == ["w.sparsefmt"]
