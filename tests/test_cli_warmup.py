"""`sparsefmt warmup` compiles all that a product or a load needs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from sparsefmt.cli import main

_USE = """
import numpy as np, sparsefmt
from numba.core import dispatcher

compiled = []
original = dispatcher._FunctionCompiler.compile
dispatcher._FunctionCompiler.compile = lambda self, *a: (compiled.append(self.py_func), original(self, *a))[1]
rng = np.random.default_rng(1)
for zeros in (0, 0.5, 0.9, 0.99):
    array = rng.standard_normal((700, 900)) * np.exp2(rng.standard_normal((700, 1)) + rng.standard_normal(900))
    sparsefmt.load(sparsefmt.save({"w": np.where(rng.random(array.shape) < zeros, 0, array).astype(np.float32)}))
array = np.eye(64, dtype=np.float32)
for layout in ("dense", "bitmask", "permuted"):
    w = sparsefmt.load(sparsefmt.save({"w": array}, layout=layout), layout=layout)["w"]
    for tokens in (1, 3, 16, 50):
        x = np.ones((tokens, 64), np.float32)
        assert (sparsefmt.linear(x, w) == 1).all()
        assert (w @ np.ones((64, tokens), np.float32) == 1).all() if layout != "dense" else True
print([function.__qualname__ for function in compiled])
"""


def test_nothing_is_left_to_compile(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "sparsefmt", "warmup", "--dtype", "f32"]
    warmup = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert warmup.stdout.startswith("Kernels for F32 are ready (")
    use = subprocess.run([sys.executable, "-c", _USE], env=environment, capture_output=True, text=True, check=True)
    assert use.stdout == "[]\n"


@pytest.mark.parametrize("arguments", [["--dtype", "I8"], ["--dtype"], ["now"]])
def test_wrong_usage(arguments):
    assert CliRunner().invoke(main, ["warmup", *arguments]).exit_code == 2
