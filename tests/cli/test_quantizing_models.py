"""convert --values, export of what it wrote, and what inspect, diff and bench say of it."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from helpers import run_command, succeed

import sparsefmt
from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.conversion import convert_checkpoint
from sparsefmt.quantizing import Quantization
from sparsefmt.save_options import SaveOptions


def weights(rows: int, cols: int, seed: int = 0, sparsity: float = 0.8) -> np.ndarray:
    rng = np.random.default_rng(seed)
    made = rng.standard_normal((rows, cols)).astype(np.float32) / 20
    made[rng.random((rows, cols)) < sparsity] = 0
    made[0, :5] = -0.0
    return made


TENSORS = {
    "a.q_proj.weight": weights(96, 128),
    "a.q_proj.bias": np.ones(96, np.float32),
    "b.up.weight": weights(64, 128, 1).astype(ml_dtypes.bfloat16),
    "c.weight": weights(64, 64, 2, 0.1),
    "model.embed_tokens.weight": weights(100, 64, 3),
    "transformer.wte.weight": weights(100, 64, 4),
    "x.proj": weights(64, 64, 5),
    "norm.weight": np.zeros(64, np.float32),
    "conv.weight": np.zeros((8, 4, 3, 3), np.float32),
}
QUANTIZED = ["a.q_proj.weight", "b.up.weight"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    safetensors.numpy.save_file(TENSORS, tmp_path / "model.safetensors", {"format": "pt"})
    return tmp_path / "model.safetensors"


def multiplied_out(file: sparsefmt.sparse_file.SparseFile, name: str) -> np.ndarray:
    q, scale = file.get_tensor(name).astype(np.float32), file.get_tensor(f"{name}_scale")
    return q * np.repeat(scale, q.shape[1] // scale.shape[1], axis=1)


@pytest.mark.parametrize(
    ("options", "dtype", "groups"),
    [
        (["--values", "int8"], np.int8, 1),
        (["--values", "fp8", "--group-size", "64", "--scale", "mse"], ml_dtypes.float8_e4m3fn, 2),
    ],
)
def test_pruned_weights_are_quantized_and_nothing_else(options, dtype, groups, model):
    printed = succeed("convert", model, *options)
    with sparsefmt.open_file(model.with_suffix(".sparsefmt")) as file:
        metadata = file.metadata()
        assert metadata["format"] == "pt"
        assert json.loads(metadata["sparsefmt.scales"]) == {name: f"{name}_scale" for name in QUANTIZED}
        assert sorted(file) == sorted([*TENSORS, *(f"{name}_scale" for name in QUANTIZED)])
        errors, nonzeros, became_zero = [], 0, 0
        for name, tensor in TENSORS.items():
            if name not in QUANTIZED:
                assert file.get_tensor(name).tobytes() == tensor.tobytes()
                continue
            assert file.get_tensor(name).dtype == dtype
            assert file.get_tensor(f"{name}_scale").shape == (len(tensor), groups)
            made = multiplied_out(file, name)
            wanted = tensor.astype(np.float32)
            assert not made[wanted == 0].any()
            errors.append(np.abs(made - wanted)[wanted != 0])
            nonzeros += np.count_nonzero(wanted)
            became_zero += np.count_nonzero(wanted) - np.count_nonzero(made)
        said = json.loads(metadata["sparsefmt.values"])
        together = np.concatenate(errors)
        assert said["largest_error"] == pytest.approx(together.max(), rel=1e-4)
        assert said["mean_error"] == pytest.approx(together.mean(), rel=1e-4)
        assert said["became_zero"] == became_zero
        assert (said["type"], said["scale"]) == (options[1], "absmax" if len(options) == 2 else "mse")
        assert said.get("group_size") == (None if groups == 1 else 64)
    assert "largest error  mean error" in printed
    assert f"2 weights, {nonzeros:,} nonzeros. This is lossy: errors of {together.max():.3g} at most" in printed
    assert "Pruned, and not quantized" in printed
    assert "conv.weight, model.embed_tokens.weight, transformer.wte.weight and 1 more" in printed
    assert "lossy" not in succeed("convert", model, "--force")


def test_said_where_nothing_was_quantized(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"c.weight": TENSORS["c.weight"]}, path)
    assert "Nothing was quantized: no matrix of floats called X.weight" in succeed("convert", path, "--values", "int8")
    with sparsefmt.open_file(path.with_suffix(".sparsefmt")) as file:
        assert not file.metadata()


def test_shards_have_weights_and_their_scales_together(tmp_path):
    source, target = tmp_path / "model", tmp_path / "quantized"
    source.mkdir()
    first = {name: TENSORS[name] for name in ("a.q_proj.weight", "a.q_proj.bias")}
    second = {name: TENSORS[name] for name in ("b.up.weight", "c.weight")}
    weight_map = {}
    for number, tensors in enumerate((first, second), 1):
        name = f"model-0000{number}-of-00002.safetensors"
        safetensors.numpy.save_file(tensors, source / name)
        weight_map |= dict.fromkeys(tensors, name)
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    succeed("convert", source, target, "--values", "int8")
    index = json.loads((target / "model.sparsefmt.index.json").read_text())["weight_map"]
    for name in QUANTIZED:
        assert index[f"{name}_scale"] == index[name]
    succeed("verify", target)
    succeed("export", target, tmp_path / "back")
    index = json.loads((tmp_path / "back" / "model.safetensors.index.json").read_text())["weight_map"]
    assert "a.q_proj.weight_scale" in index
    succeed("export", target, tmp_path / "dense", "--dequantize")
    index = json.loads((tmp_path / "dense" / "model.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() == weight_map.keys()


def test_export_writes_elements_and_scales_or_their_products(model):
    succeed("convert", model, "--values", "int8", "--group-size", "32")
    path = model.with_suffix(".sparsefmt")
    assert "2 scaled weights: written as elements and scales." in succeed(
        "export", path, model.with_name("q.safetensors")
    )
    with sparsefmt.open_file(path) as file:
        exported = safetensors.numpy.load_file(model.with_name("q.safetensors"))
        assert exported.keys() == set(file)
        assert all(exported[name].tobytes() == file.get_tensor(name).tobytes() for name in file)
        # and a second time, as anything else
        succeed("convert", model.with_name("q.safetensors"), model.with_name("q.sparsefmt"))
        with sparsefmt.open_file(model.with_name("q.sparsefmt")) as again:
            assert again.metadata() == file.metadata()
        dense = model.with_name("d.safetensors")
        assert "2 scaled weights: written as elements times scales." in succeed("export", path, dense, "--dequantize")
        exported = safetensors.numpy.load_file(dense)
        assert exported.keys() == TENSORS.keys()
        for name in QUANTIZED:
            assert exported[name].dtype == np.float32
            assert np.array_equal(exported[name], multiplied_out(file, name))
        with safetensors.safe_open(dense, "np") as opened:
            assert opened.metadata() == {"format": "pt"}


def test_diff_says_the_errors(model):
    succeed("convert", model, "--values", "int8")
    path = model.with_suffix(".sparsefmt")
    said = json.loads(sparsefmt.open_file(path).metadata()["sparsefmt.values"])
    for pair in ((model, path), (path, model)):
        printed = run_command("diff", *pair, "--bits")
        assert printed.exit_code == 1
        lines = [line for line in printed.output.splitlines() if line.startswith("tensor")]
        assert len(lines) == 2
        assert (
            f"tensor 'a.q_proj.weight': I8 times 'a.q_proj.weight_scale' in {path}, F32 in {model}: errors of"
            in lines[0]
        )
        assert any(f"errors of {said['largest_error']:.3g} at most" in line for line in lines)
    # against what it stands for, nothing but the metadata differs
    dense = model.with_name("d.safetensors")
    succeed("export", path, dense, "--dequantize")
    printed = run_command("diff", dense, path, "--bits")
    assert not [line for line in printed.output.splitlines() if line.startswith("tensor")]


def test_inspect_and_bench_say_bits(model):
    succeed("convert", model, "--values", "int8", "--codec", "raw")
    path = model.with_suffix(".sparsefmt")
    assert " bits " in succeed("inspect", path)
    tensors = {
        tensor["name"]: tensor for tensor in json.loads(succeed("inspect", path, "--json"))["files"][0]["tensors"]
    }
    stored = [tensors[name]["stored_nbytes"] for name in ("a.q_proj.weight", "a.q_proj.weight_scale")]
    assert tensors["a.q_proj.weight"]["stored_bits"] == 8 * sum(stored) / (96 * 128)
    assert tensors["a.q_proj.weight_scale"]["stored_bits"] == 8 * stored[1] / 96
    assert " bits " in succeed("bench", path, "--repeats", "3", "--batch", "1", "--name", "a.*", "--threads", "1")


@pytest.mark.parametrize(
    ("tensors", "options", "words"),
    [
        (
            {"a.weight": weights(64, 96)},
            ["--values", "int8", "--group-size", "64"],
            "groups of 64 columns do not divide",
        ),
        (
            {"a.weight": np.where(weights(64, 96) > 0.1, np.nan, np.float32(0))},
            ["--values", "int8"],
            "are NaN or infinite",
        ),
        (
            {"a.weight": weights(64, 96), "a.weight_scale": np.ones(64, np.float32)},
            ["--values", "int8"],
            "its scales would be called 'a.weight_scale'",
        ),
    ],
)
def test_what_cannot_be_quantized_is_named(tensors, options, words, tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(tensors, path)
    printed = run_command("convert", path, *options)
    assert printed.exit_code == 1
    assert "'a.weight'" in printed.output + printed.stderr
    assert words in printed.output + printed.stderr
    assert not path.with_suffix(".sparsefmt").exists()


def test_settings_without_values(model):
    for option in (["--group-size", "64"], ["--scale", "mse"]):
        printed = run_command("convert", model, *option)
        assert printed.exit_code == 2
        assert "--group-size and --scale are for --values" in printed.output + printed.stderr


def test_equal_weights_are_stored_once_and_progress_ends_at_the_end(tmp_path):
    path = tmp_path / "model.safetensors"
    twice = {"a.weight": weights(512, 128), "b.weight": weights(512, 128)}
    safetensors.numpy.save_file(twice, path)
    done = []
    with Checkpoint(path, ["safetensors"]) as source:
        source.quantization = Quantization()
        target = path.with_suffix(".sparsefmt")
        converted = convert_checkpoint(source, target, SaveOptions(), progress=done.append)
        assert sum(done) == source.dense_nbytes
    assert {tensor.name for tensor in converted if tensor.is_copy} == {"b.weight", "b.weight_scale"}
    with sparsefmt.open_file(target) as file:
        assert np.array_equal(file.get_tensor("b.weight"), file.get_tensor("a.weight"))
