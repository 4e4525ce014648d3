"""How many tokens a process expects: what can be said, and what "auto" makes of it in memory."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import pretend, run_python

import sparsefmt
from sparsefmt import SparseTensor
from sparsefmt.layouts import expected_tokens
from sparsefmt.layouts.expected_tokens import ENVIRONMENT_VARIABLE, expected_use


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.setattr(expected_tokens, "_expected", None)
    monkeypatch.setattr(expected_tokens, "_is_set", False)
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)


@pytest.mark.parametrize(
    ("tokens", "use"),
    [(None, None), ("decode", "decode"), ("prompts", "prompts"), (1, "decode"), (6, "decode"), (7, "prompts")],
)
def test_what_can_be_said(tokens, use, monkeypatch):
    assert expected_use() is None
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "" if tokens is None else str(tokens))
    assert expected_use() == use
    # what a program says goes before what the environment says
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "prompts")
    sparsefmt.set_expected_tokens(tokens)
    assert expected_use() == use


@pytest.mark.parametrize("tokens", [0, -1, "both", 1.5, True])
def test_what_cannot(tokens):
    with pytest.raises(
        ValueError, match=f"tokens must be 'decode', 'prompts' or a number of tokens above 0, not {tokens!r}"
    ):
        sparsefmt.set_expected_tokens(tokens)
    assert expected_use() is None


@pytest.mark.parametrize("setting", ["0", "both", "1.5"])
def test_nor_in_the_environment(setting, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, setting)
    with pytest.raises(ValueError, match=f"{ENVIRONMENT_VARIABLE} must be 'decode'"):
        expected_use()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(
    ("zeros", "by_use"),
    [
        (0.42, {"decode": "bitmask", None: "bitmask", "prompts": "permuted"}),
        (0.66, {"decode": "bitmask", None: "permuted", "prompts": "permuted"}),
        (0.70, {"decode": "permuted", None: "permuted", "prompts": "permuted"}),
    ],
)
def test_the_layout_in_memory(dtype, zeros, by_use, monkeypatch):
    """In a file it stays the same: whoever loads it may expect something else."""
    pretend(monkeypatch, ISA="avx2")
    array = np.random.default_rng(0).standard_normal((1024, 1024)).astype(dtype)
    array.ravel()[np.argsort(np.abs(array), axis=None)[: int(zeros * array.size)]] = 0
    files = set()
    for use, layout in by_use.items():
        sparsefmt.set_expected_tokens(use)
        assert SparseTensor.from_dense(array).layout == layout
        coded = sparsefmt.save({"w": array})
        assert sparsefmt.load(coded)["w"].layout == layout
        files |= {coded, sparsefmt.save({"w": array}, codec="raw")}
    assert len(files) == 2


@pytest.mark.thorough
def test_the_environment_of_a_process():
    code = """
import numpy as np, sparsefmt, sparsefmt.isa
array = np.ones((512, 512), np.float32)
array[:, : 512 * 6 // 10] = 0
sparsefmt.SparseTensor.from_dense(array)  # what is compiled is compiled for this processor
sparsefmt.isa.ISA = "avx2"
print(sparsefmt.SparseTensor.from_dense(array).layout)
"""
    assert run_python(code, SPARSEFMT_TOKENS="decode") == "bitmask"
    assert run_python(code, SPARSEFMT_TOKENS="100") == "permuted"
