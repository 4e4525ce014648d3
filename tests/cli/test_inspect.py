"""`sparsefmt inspect` of every kind of checkpoint, with and without patterns."""

from __future__ import annotations

import json
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from helpers import fail, succeed

import sparsefmt
from sparsefmt.cli import output

BF16 = np.dtype(ml_dtypes.bfloat16)


def pruned(kind: str, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "2:4":
        kept = (rng.random((64, 32, 4)).argsort(2).argsort(2) < 2).reshape(64, 128)
    elif kind == "blocks":
        kept = np.kron(rng.random((16, 32)) < 0.2, np.ones((4, 4))) > 0
    else:
        kept = rng.random((64, 128)) < 0.2
    return np.where(kept, rng.integers(1, 9, kept.shape), 0).astype(BF16)


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    norm = np.ones(64, np.float32)
    norm[:3] = np.nan, -0.0, np.inf
    return {
        "layers.0.mlp.weight": pruned("2:4"),
        "layers.1.mlp.weight": pruned("2:4", 2),
        "layers.0.attn.weight": pruned("blocks"),
        "layers.0.out.weight": pruned("magnitude"),
        "norm": norm,
    }


def row(listing: str, name: str) -> str:
    [line] = [line for line in listing.splitlines() if line.startswith(f"{name} ")]
    return line


@pytest.mark.parametrize("file_format", ["sparsefmt", "safetensors", "torch", "folder"])
def test_patterns_of_every_kind_of_checkpoint(tensors: dict[str, np.ndarray], file_format: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{file_format}"
    if file_format == "sparsefmt":
        sparsefmt.save_file(tensors, path)
    elif file_format == "safetensors":
        safetensors.numpy.save_file(tensors, path)
    elif file_format == "folder":
        path.mkdir()
        for number, (name, tensor) in enumerate(tensors.items(), 1):
            safetensors.numpy.save_file({name: tensor}, path / f"model-{number:05d}-of-00005.safetensors")
    else:
        torch = pytest.importorskip("torch")
        path = tmp_path / "a.pt"
        as_torch = {name: torch.tensor(tensor.astype(np.float32)) for name, tensor in tensors.items()}
        torch.save({name: tensor.bfloat16() if "w" in name else tensor for name, tensor in as_torch.items()}, path)
    listing = succeed("inspect", path, "--patterns")
    assert " 2:4 " in row(listing, "layers.0.mlp.weight")
    assert re.search(r" 50\.0% +████···· ", row(listing, "layers.1.mlp.weight"))
    assert " 4x4 blocks " in row(listing, "layers.0.attn.weight")
    assert " unstructured " in row(listing, "layers.0.out.weight")
    assert "1 element of norm is NaN." in listing
    assert "1 element of norm is -0.0." in listing
    assert "1 element of norm is infinite." in listing
    files = json.loads(succeed("inspect", path, "--patterns", "--json"))["files"]
    found = {tensor["name"]: tensor for file in files for tensor in file["tensors"]}
    assert found["layers.0.mlp.weight"]["pattern"]["label"] == "2:4"
    assert found["layers.0.attn.weight"]["pattern"]["zeros"] == np.count_nonzero(
        tensors["layers.0.attn.weight"].astype(np.float32) == 0
    )
    assert (found["norm"]["dtype"], found["norm"]["shape"], found["norm"]["dense_nbytes"]) == ("F32", [64], 256)
    if file_format != "sparsefmt":
        assert "%" not in succeed("inspect", path)  # nothing was read


@pytest.mark.parametrize(
    ("scales", "fault"),
    [("not JSON", "scales-metadata"), ('{"a": "b"}', "scales-missing"), ('{"b": "a"}', "scales-missing")],
)
def test_scales_that_no_product_can_use_are_told(scales: str, fault: str, tmp_path: Path) -> None:
    """The file can be read: it is listed and compared. `verify` says it, too."""
    place = tmp_path / "model.sparsefmt"
    sparsefmt.save_file({"a": np.eye(64, dtype=np.int8)}, place, {"sparsefmt.scales": scales})
    listing = succeed("inspect", place)
    assert row(listing, "a")
    assert re.search(rf"No product can use the scales of .*model.sparsefmt: .*\[{fault}\]", listing)
    assert f"[{fault}]" in fail(1, "verify", place)
    succeed("diff", place, place)


def test_a_model_of_many_tensors_is_one_screen(tmp_path: Path) -> None:
    experts = {
        f"model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight": np.eye(8, 16, dtype=np.float32)
        for layer in range(25)
        for expert in range(80)
        for part in ("gate", "up", "down")
    }
    safetensors.numpy.save_file(experts, tmp_path / "moe.safetensors")
    listing = succeed("inspect", tmp_path / "moe.safetensors")
    assert len(listing.splitlines()) < 10
    assert row(listing, "model.layers.*.mlp.experts.*.up_proj.weight").split()[1:4] == ["8x16", "F32", "2,000"]
    assert "6,000 tensors" in listing
    listing = succeed("inspect", tmp_path / "moe.safetensors", "--all", "--name", "*.layers.7.*.up_proj.*")
    assert len([line for line in listing.splitlines() if line.startswith("model.layers.7.mlp")]) == 80
    assert "no tensor has a name like x*" in fail(2, "inspect", tmp_path / "moe.safetensors", "--name", "x*")


def test_rows_are_sorted(tensors: dict[str, np.ndarray], tmp_path: Path) -> None:
    sparsefmt.save_file({"a": np.ones((64, 64), np.float32), **tensors}, tmp_path / "a.sparsefmt", codec="raw")

    def names(*options: str) -> list[str]:
        listing = succeed("inspect", tmp_path / "a.sparsefmt", *options).splitlines()
        return [line.split()[0] for line in listing[2:8]]

    assert names() == sorted({"a", *tensors})
    assert names("--sort", "bytes")[0] == "a"
    emptiest = sorted(("layers.0.attn.weight", "layers.0.out.weight"), key=lambda name: np.count_nonzero(tensors[name]))
    assert names("--sort", "zeros")[:2] == emptiest
    assert set(names("--sort", "zeros")[-2:]) == {"a", "norm"}


def test_fold_shows_what_is_spelled_in_several_tensors(tmp_path: Path) -> None:
    mask = np.random.default_rng(4).random((64, 128)) < 0.3
    weights = {"w_orig": np.ones((64, 128), np.float32), "w_mask": mask.astype(np.float32)}
    safetensors.numpy.save_file(weights, tmp_path / "a.safetensors")
    assert "--fold" in succeed("inspect", tmp_path / "a.safetensors")
    listing = succeed("inspect", tmp_path / "a.safetensors", "--fold", "--patterns")
    assert f"{100 - 100 * mask.mean():.1f}%" in row(listing, "w")
    sparsefmt.save_file(weights, tmp_path / "a.sparsefmt")
    assert "not converted yet" in fail(2, "inspect", tmp_path / "a.sparsefmt", "--fold")


def test_a_bar_is_full_or_empty_only_if_the_share_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "_has_blocks", lambda: True)
    assert output.bar(0, 0) == ""
    assert output.bar(0, 10) == "········"
    assert output.bar(10, 10) == "████████"
    assert output.bar(1, 10**9) == "▏·······"
    assert output.bar(10**9 - 1, 10**9) == "███████▉"
    monkeypatch.setattr(output, "_has_blocks", lambda: False)
    assert (output.bar(1, 1000), output.bar(999, 1000)) == ("#.......", "#######.")
