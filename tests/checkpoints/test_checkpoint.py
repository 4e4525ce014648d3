"""Checkpoints of several files: their index, and what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from converted_files import convert
from safetensors_files import ONE, SHARDS, TWO, craft, save_shards, sparse_array

from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.errors import SparsefmtError


def check_refused(folder: Path, code: str, *words: str) -> None:
    with pytest.raises(SparsefmtError) as caught:
        Checkpoint(folder, ["safetensors"])
    assert caught.value.code == code
    for word in words:
        assert word in str(caught.value)


def test_index_names_a_tensor_that_its_shard_lacks(tmp_path: Path) -> None:
    check_refused(save_shards(tmp_path / "1", SHARDS, ghost=TWO), "checkpoint-tensor-missing", "'ghost'", TWO)
    check_refused(save_shards(tmp_path / "2", SHARDS, a=TWO), "checkpoint-tensor-missing", "'a'", TWO)


def test_shard_has_a_tensor_that_the_index_lacks(tmp_path: Path) -> None:
    check_refused(save_shards(tmp_path / "1", SHARDS, b=None), "checkpoint-tensor-unlisted", "'b'", ONE)


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    shards = {**SHARDS, TWO: {**SHARDS[TWO], "a": sparse_array(9)}}
    check_refused(save_shards(tmp_path / "1", shards), "checkpoint-tensor-duplicate", "'a'", ONE, TWO)
    check_refused(save_shards(tmp_path / "2", shards, index=False), "checkpoint-tensor-duplicate", "'a'", ONE, TWO)
    folder = save_shards(tmp_path / "3", SHARDS)
    (folder / "model.safetensors.index.json").write_text(f'{{"weight_map": {{"a": "{ONE}", "a": "{TWO}"}}}}')
    check_refused(folder, "checkpoint-index", "'a' is there twice")


@pytest.mark.parametrize("index", [True, False])
def test_missing_shard(tmp_path: Path, index: bool) -> None:
    folder = save_shards(tmp_path / "in", SHARDS, index=index)
    (folder / ONE).unlink()
    check_refused(folder, "checkpoint-shard-missing", ONE)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "sub/x.safetensors", "..", "", "a\\b.safetensors", "c:x.safetensors"]
)
def test_shard_must_lie_beside_the_index(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(craft({}))
    check_refused(save_shards(tmp_path / "in", SHARDS, x=name), "checkpoint-index", "'x'", "plain name")


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "[" * 100_000, "\xff"],
)
def test_index_that_is_none(tmp_path: Path, content: str) -> None:
    folder = save_shards(tmp_path / "in", SHARDS)
    (folder / "model.safetensors.index.json").write_bytes(content.encode("latin-1"))
    check_refused(folder, "checkpoint-index", "index.json")


def test_two_indexes_need_a_choice(tmp_path: Path) -> None:
    folder = save_shards(tmp_path / "in", SHARDS)
    index = folder / "model.safetensors.index.json"
    (folder / "model.fp16.safetensors.index.json").write_bytes(index.read_bytes())
    check_refused(folder, "checkpoint-index", "model.fp16.safetensors.index.json")
    convert(folder / "model.fp16.safetensors.index.json", tmp_path / "out")
    assert (tmp_path / "out" / "model.fp16.sparsefmt.index.json").exists()


def test_index_of_another_format(tmp_path: Path) -> None:
    folder = save_shards(tmp_path / "in", SHARDS, z="pytorch_model.bin")
    check_refused(folder, "checkpoint-index", ".bin")


def test_folder_without_index(tmp_path: Path) -> None:
    folder = save_shards(tmp_path / "one", {"model.safetensors": SHARDS[ONE]}, index=False)
    convert(folder, tmp_path / "1")
    assert [path.name for path in (tmp_path / "1").iterdir()] == ["model.sparsefmt"]
    folder = save_shards(tmp_path / "two", {"x.safetensors": SHARDS[ONE], "y.safetensors": SHARDS[TWO]}, index=False)
    convert(folder, tmp_path / "2")
    assert json.loads((tmp_path / "2" / "model.sparsefmt.index.json").read_text()) == {
        "metadata": {"total_size": 3 * 64 * 96 * 4},
        "weight_map": {"a": "x.sparsefmt", "b": "x.sparsefmt", "c": "y.sparsefmt"},
    }
    with pytest.raises(FileNotFoundError, match=r"no \.sparsefmt file"):
        Checkpoint(folder, ["sparsefmt"])
