"""`sparsefmt warmup` compiles all that a product or a load needs."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from helpers import run_python

from sparsefmt.cli import main

_USE = """
import numpy as np, sparsefmt
from click.testing import CliRunner
from numba.core.caching import NullCache
from numba.core.dispatcher import Dispatcher
from sparsefmt.cli import main

asked, kept, within, texts, original = [], [], [], [], Dispatcher.compile

def compile(self, signature):
    if self.py_func.__module__ == "numba.cpython.unicode":
        texts.append(within[0].py_func.__qualname__)
    # whether it is compiled now or was in an earlier process, it was not there in this one
    if self.py_func.__module__.startswith("sparsefmt") and self.overloads.get(tuple(signature)) is None:
        if not within:  # what is compiled for a function is kept with it
            asked.append(self.py_func.__qualname__)
            kept.append(not isinstance(self._cache, NullCache))
    within.append(self)
    try:
        return original(self, signature)
    finally:
        within.pop()

Dispatcher.compile = compile
warmup = CliRunner().invoke(main, ["warmup", "--dtype", "f32"])
assert warmup.exit_code == 0, warmup.output
assert warmup.stdout.startswith("Kernels for F32 are ready ("), warmup.stdout
assert len(asked) > 30 and all(kept), [name for name, found in zip(asked, kept) if not found]
assert not texts, f"these make texts of errors, which takes a second to compile: {set(texts)}"
asked.clear()

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
        if layout != "dense":  # that is an array, which numpy multiplies
            assert (w @ np.ones((64, tokens), np.float32) == 1).all()
print(asked)
"""


@pytest.mark.thorough
@pytest.mark.slow
def test_nothing_is_left_to_compile():
    """All that is asked for later was asked for by warmup, and numba keeps it on the disk for the next process."""
    assert run_python(_USE) == "[]"


@pytest.mark.parametrize("arguments", [["--dtype", "I8"], ["--dtype"], ["now"]])
def test_wrong_usage(arguments):
    assert CliRunner().invoke(main, ["warmup", *arguments]).exit_code == 2
