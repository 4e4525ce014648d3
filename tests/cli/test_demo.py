"""`sparsefmt demo`: honest when all is well, and when it is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import sparsefmt
from sparsefmt.cli import demo, main


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "WIDTHS", (96, 256, 160, 64))
    monkeypatch.setattr(demo, "ROUNDS", 2)


def run() -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(main, ["demo"])


def test_demo_shows_every_way(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run()
    assert (result.exit_code, result.stderr) == (0, "")
    for label in ("safetensors", "codec raw", "codec auto", "numpy, dense", "scipy, CSR", "bitmask", "permuted"):
        assert len([line for line in result.stdout.splitlines() if label in line]) == 2, label
    assert "came back bit for bit" in result.stdout
    weights = demo._pruned_weights()
    for name, array in weights.items():
        if array.ndim == 2:
            assert np.count_nonzero(array) == array.size - int(array.size * 0.8), name


def test_demo_fails_on_one_wrong_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    load_file = sparsefmt.load_file

    def damaged(path: Any, **options: Any) -> dict[str, Any]:
        tensors = load_file(path, **options)
        bias = np.array(tensors["layer1.bias"])
        bias.view(np.uint8)[0] ^= 1
        return {**tensors, "layer1.bias": bias}

    monkeypatch.setattr(sparsefmt, "load_file", damaged)
    result = run()
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert len(lines) == 6
    assert all(line.endswith("tensor 'layer1.bias' is not what was saved") for line in lines)
    assert "bit for bit" not in result.stdout


@pytest.mark.parametrize("wrong", [1e-2, np.nan])
def test_demo_fails_on_a_wrong_product(monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    linear = sparsefmt.linear

    def inexact(x: np.ndarray, *rest: Any) -> np.ndarray:
        y = linear(x, *rest)
        y[0, 3] += wrong * np.abs(y).max()
        return y

    monkeypatch.setattr(sparsefmt, "linear", inexact)
    result = run()
    assert result.exit_code == 1
    assert "sparsefmt: error: bfloat16, sparsefmt, permuted, batch 16: the output is not numpy's" in result.stderr
    assert "scipy" not in result.stderr
