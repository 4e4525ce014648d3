"""A tensor while it is written: tiles and not tensors are held, and what changes meanwhile is noticed."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
from helpers import names_in, same_bits

import sparsefmt


def test_writing_holds_tiles_not_tensors(tmp_path):
    """A tensor of 160 MB in another byte order is saved with a few tiles of memory beside it."""
    code = textwrap.dedent(
        f"""
        import numpy as np, resource, sparsefmt
        # several tiles of the same kind, so that what is loaded on the first use is not measured
        small = np.zeros((1200, 2000), ">f4"); small[::3] = 1.5; small[0, 0] = 3
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
