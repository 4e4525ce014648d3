"""`sparsefmt convert` and `export` on the folder of a Hugging Face model: what is copied, and what config.json says."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from helpers import fail, run_command, succeed
from model_folders import CONFIG, COPIED, LEFT_OUT, files_of, save_config, write
from safetensors_files import ONE, SHARDS, TWO, read_back, save_shards

from sparsefmt.checkpoints import cards, huggingface
from sparsefmt.checkpoints.checkpoint import Checkpoint

QUANTIZED = {"quant_method": "sparsefmt", "how_to_load": cards.HOW_TO_LOAD}


def test_there_and_back(model: Path, tmp_path: Path) -> None:
    out = succeed("convert", model)
    sparse = tmp_path / "model-sparsefmt"
    shards = {name.replace("safetensors", "sparsefmt") for name in (ONE, TWO)}
    assert files_of(sparse) == {"config.json", "model.sparsefmt.index.json", *shards, *COPIED}
    for name, content in COPIED.items():
        copied = (sparse / name).read_bytes()
        assert (cards.without_section(copied) if name == "README.md" else copied) == content
    assert cards.has_section((sparse / "README.md").read_bytes())
    config = json.loads((sparse / "config.json").read_text())
    assert list(config.items()) == [*CONFIG.items(), ("quantization_config", QUANTIZED)]
    assert f"Copied: config.json, with a quantization_config, and {len(COPIED)} other files." in out
    [line] = [line for line in out.splitlines() if line.startswith("Weights of other formats, not copied: ")]
    assert set(line.partition(": ")[2].split(", ")) == set(LEFT_OUT)
    succeed("export", sparse)
    back = tmp_path / "model-safetensors"
    assert files_of(back) == {"config.json", "model.safetensors.index.json", ONE, TWO, *COPIED}
    assert (back / "config.json").read_bytes() == (model / "config.json").read_bytes()
    for shard in (ONE, TWO):
        assert (back / shard).read_bytes() == (model / shard).read_bytes()


def test_index_or_file_stands_for_the_weights_alone(model: Path, tmp_path: Path) -> None:
    succeed("convert", model / "model.safetensors.index.json", tmp_path / "out")
    assert "config.json" not in files_of(tmp_path / "out")
    succeed("convert", model / ONE, tmp_path / "one.sparsefmt")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "out", "one.sparsefmt"}


def test_folder_without_config_is_no_model(model: Path, tmp_path: Path) -> None:
    (model / "config.json").unlink()
    out = succeed("convert", model)
    assert "Copied" not in out
    assert all(
        name.endswith((".sparsefmt", ".sparsefmt.index.json")) for name in files_of(tmp_path / "model-sparsefmt")
    )


def test_one_whole_file_is_the_model(tmp_path: Path) -> None:
    """Beside it lie other forms of the same weights, which transformers would not load either."""
    names = ["model.safetensors", "model.fp16.safetensors", "consolidated.safetensors"]
    folder = save_shards(tmp_path / "in", dict.fromkeys(names, SHARDS[ONE]), index=False)
    (folder / "consolidated.safetensors").write_bytes(b"not looked at")
    assert run_command("convert", folder, tmp_path / "no").exit_code == 1
    save_config(folder, CONFIG)
    out = succeed("convert", folder, tmp_path / "out")
    assert files_of(tmp_path / "out") == {"config.json", "model.sparsefmt", "README.md"}
    assert "not converted: consolidated.safetensors, model.fp16.safetensors" in out


def test_modules_of_sentence_transformers_keep_their_weights(model: Path, tmp_path: Path) -> None:
    modules = [{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}]
    write(
        model,
        {
            "modules.json": json.dumps(modules).encode(),
            "2_Dense/model.safetensors": b"dense",
            "2_Dense/pytorch_model.bin": b"bin",
        },
    )
    out = succeed("convert", model, tmp_path / "out")
    assert (tmp_path / "out" / "2_Dense" / "model.safetensors").read_bytes() == b"dense"
    assert "2_Dense" not in out.partition("not copied: ")[2]
    for broken in (b"[1]", b"{", b'[{"path": 1}]', b'{"a": 1}'):
        (model / "modules.json").write_bytes(broken)
        succeed("convert", model, tmp_path / "out", "--force")


def test_links_to_files_are_followed_and_links_to_folders_are_not(tmp_path: Path) -> None:
    """The cache of the hub has a folder of links to blobs."""
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshots"
    save_shards(blobs, {"0": SHARDS[ONE]}, index=False)
    write(blobs, {"1": json.dumps(CONFIG).encode(), "2": b"tokens"})
    folder.mkdir()
    for name, blob in (("model.safetensors", "0"), ("config.json", "1"), ("tokenizer.json", "2")):
        (folder / name).symlink_to(Path("..") / "blobs" / blob)
    (folder / "all").symlink_to(tmp_path, target_is_directory=True)
    (folder / "self").symlink_to(folder, target_is_directory=True)
    os.mkfifo(folder / "pipe")
    succeed("convert", folder, tmp_path / "out")
    assert files_of(tmp_path / "out") == {"model.sparsefmt", "config.json", "tokenizer.json", "README.md"}
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == b"tokens"
    assert json.loads((blobs / "1").read_text()) == CONFIG


def test_destination_within_the_source(model: Path) -> None:
    for _ in range(2):
        succeed("convert", model, model / "sparse", "--force")
        assert "sparse" not in {name.partition("/")[0] for name in files_of(model / "sparse")}


@pytest.mark.parametrize("text", ["", "{", "[]", '"text"', "[" * 100_000, "\xff"])
def test_config_that_is_none(model: Path, tmp_path: Path, text: str) -> None:
    (model / "config.json").write_bytes(text.encode("latin-1"))
    assert "config.json: it " in fail(1, "convert", model)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    "found",
    [
        {"quant_method": "sparsefmt", "min_sparsity": 0.3},
        {"quant_method": "compressed-tensors", "sparsity_config": {"format": "dense", "global_sparsity": 0.5}},
        {"quant_method": "compressed-tensors", "config_groups": {}, "sparsity_config": {}},
    ],
)
def test_quantization_config_that_says_nothing_of_the_bits_is_replaced(
    model: Path, tmp_path: Path, found: dict[str, Any]
) -> None:
    save_config(model, {"a": 1, "quantization_config": found, "b": 2})
    succeed("convert", model, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert list(config.items()) == [("a", 1), ("quantization_config", QUANTIZED), ("b", 2)]


@pytest.mark.parametrize(
    "found",
    [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "compressed-tensors", "config_groups": {"group_0": {}}},
        {"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-bitmask"}},
        {},
        "gptq",
    ],
)
def test_weights_quantized_otherwise_are_refused(model: Path, tmp_path: Path, found: object) -> None:
    save_config(model, CONFIG | {"quantization_config": found})
    message = fail(1, "convert", model)
    assert f"{model / 'config.json'}: the weights are quantized by" in message
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    # the weights alone are no matter
    succeed("convert", model / "model.safetensors.index.json", tmp_path / "out")
    succeed("convert", model / ONE, tmp_path / "one.sparsefmt")


def test_export_leaves_the_config_of_others_alone(model: Path, tmp_path: Path) -> None:
    succeed("convert", model)
    config = CONFIG | {"quantization_config": {"quant_method": "gptq"}}
    save_config(tmp_path / "model-sparsefmt", config)
    succeed("export", tmp_path / "model-sparsefmt")
    assert json.loads((tmp_path / "model-safetensors" / "config.json").read_text()) == config


def test_names_are_those_that_transformers_looks_for(tmp_path: Path) -> None:
    folder = save_shards(tmp_path / "one", {"model.safetensors": SHARDS[ONE]}, index=False)
    save_config(folder, CONFIG)
    succeed("convert", folder)
    assert files_of(tmp_path / "one-sparsefmt") == {"config.json", "model.sparsefmt", "README.md"}
    folder = save_shards(tmp_path / "two", SHARDS, index=False)
    save_config(folder, CONFIG)
    succeed("convert", folder)
    with Checkpoint(tmp_path / "two-sparsefmt", ["sparsefmt"]) as checkpoint:
        assert checkpoint.index is not None
        assert checkpoint.index.path.name == "model.sparsefmt.index.json"
    succeed("export", tmp_path / "two-sparsefmt")
    assert read_back(tmp_path / "two-safetensors" / ONE) == read_back(folder / ONE)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("model-00001-of-00002.safetensors", True),
        ("model.safetensors.index.json", True),
        ("model.sparsefmt", True),
        ("adapter_model.bin", True),
        ("rng_state.pth", True),
        ("model.onnx_data", True),
        ("index.json", False),
        ("tokenizer.model", False),
        ("vocab.bin.txt", False),
        ("bin", False),
    ],
)
def test_what_is_a_weight_file(name: str, weights: bool) -> None:
    assert huggingface.is_weights(name) is weights
