"""Saving: order of system calls, two writers, memory, data that changes meanwhile. More in test_atomic.py."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
from helpers import names_in, same_bits, weights

import sparsefmt
from sparsefmt.container import atomic

ARRAY = weights(np.random.default_rng(0), (100, 200), np.float32, 0.7)


def test_a_failing_save_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "w.sparsefmt"
    sparsefmt.save_file({"w": ARRAY}, path)
    before = path.read_bytes()
    with pytest.raises(sparsefmt.SparsefmtError):
        sparsefmt.save_file({"a": ARRAY, "b": np.zeros(2, np.complex128)}, path)
    with pytest.raises(RuntimeError, match="stop"):
        sparsefmt.save_file(
            {"a": ARRAY}, path, progress=lambda done, total: (_ for _ in ()).throw(RuntimeError("stop"))
        )
    assert path.read_bytes() == before
    assert names_in(tmp_path) == ["w.sparsefmt"]


def test_relative_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sparsefmt.save_file({"w": ARRAY}, "w.sparsefmt")
    assert same_bits(sparsefmt.load_file("w.sparsefmt")["w"].todense(), ARRAY)


def test_order_of_system_calls(tmp_path, monkeypatch):
    """Durable: data synced before the rename, folder synced after it."""
    calls = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor):
        calls.append("sync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")
        real_fsync(descriptor)

    def replace(source, target):
        assert os.path.dirname(source) == os.path.dirname(target)
        calls.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    sparsefmt.save_file({"w": ARRAY}, tmp_path / "w.sparsefmt")
    assert calls == ["sync file", "rename", "sync folder"]


def test_leftovers_are_recognisable_and_no_obstacle(tmp_path):
    with atomic.replacing(tmp_path / "w.sparsefmt") as file:
        file.write(b"half")
        (leftover,) = names_in(tmp_path)
    assert leftover.startswith(".w.sparsefmt.")
    assert leftover.endswith(atomic.TEMPORARY_SUFFIX)


def test_two_writers_to_one_name(tmp_path):
    path = tmp_path / "w.sparsefmt"
    arrays = [np.full((50, 50), number + 1, np.float32) for number in range(4)]
    failures = []

    def write(array):
        try:
            for _ in range(10):
                sparsefmt.save_file({"w": array}, path)
                loaded = sparsefmt.load_file(path)["w"]
                assert any(same_bits(loaded, other) for other in arrays)
        except BaseException as error:
            failures.append(error)

    writers = [threading.Thread(target=write, args=(array,)) for array in arrays]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not failures
    assert names_in(tmp_path) == ["w.sparsefmt"]


def test_writing_holds_tiles_not_tensors(tmp_path):
    """A tensor of 160 MB in another byte order is saved with a few tiles of memory beside it."""
    code = textwrap.dedent(
        f"""
        import numpy as np, resource, sparsefmt
        small = np.zeros((64, 64), ">f4"); small[::3] = 1
        sparsefmt.save_file({{"w": small}}, {str(tmp_path / "small")!r}, threads=2)
        array = np.zeros((20_000, 2_000), ">f4"); array[::3] = 1.5; array[0, 0] = 3
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        sparsefmt.save_file({{"w": array}}, {str(tmp_path / "large")!r}, threads=2)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
        """
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 60


@pytest.mark.parametrize("layout", ["bitmask", "permuted", "dense"])
def test_a_tensor_that_changes_while_it_is_saved(layout, tmp_path):
    """Training goes on in another thread: a whole file or a clear error, never a crash or a file that does not load."""
    array = np.zeros((2000, 1000), np.float32)
    stop = threading.Event()

    def train():
        rng = np.random.default_rng(0)
        while not stop.is_set():
            array[rng.integers(0, 2000, 5000), rng.integers(0, 1000, 5000)] = rng.choice([0.0, -0.0, 1.5], 5000)

    trainer = threading.Thread(target=train)
    trainer.start()
    outcomes = set()
    try:
        for _ in range(8):
            try:
                sparsefmt.save_file({"w": array}, tmp_path / "w.sparsefmt", layout=layout)
                outcomes.add("saved")
            except sparsefmt.FormatError as error:
                outcomes.add(error.code)
            if (tmp_path / "w.sparsefmt").exists():
                sparsefmt.load_file(tmp_path / "w.sparsefmt", layout="dense")
    finally:
        stop.set()
        trainer.join()
    assert outcomes <= {"saved", "tensor-changed"}
    assert names_in(tmp_path) in ([], ["w.sparsefmt"])
    sparsefmt.save_file({"w": array}, tmp_path / "w.sparsefmt", layout=layout)
    assert same_bits(sparsefmt.load_file(tmp_path / "w.sparsefmt", layout="dense")["w"], array)
