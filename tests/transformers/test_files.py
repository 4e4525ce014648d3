"""Folders as transformers finds them: which weights are loaded, and what is said of missing and damaged files."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors_files import craft
from torch_helpers import same_state
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
)
from transformers_models import edit_config, output, sparse_layers

import sparsefmt
from sparsefmt.errors import ChecksumError, FormatError, UnsupportedError
from sparsefmt.transformers import SparsefmtConfig

pytestmark = pytest.mark.usefixtures("small_layers")


def test_other_weights_come_first_unless_config_says_sparsefmt(llama: Path, models: dict[str, Any]) -> None:
    edit_config(llama, quantization_config=None)
    # with no other weights in the folder, those of .sparsefmt are loaded, dense
    model = AutoModelForCausalLM.from_pretrained(llama)
    assert not sparse_layers(model)
    assert same_state(model, models["llama"])
    assert len(sparse_layers(AutoModelForCausalLM.from_pretrained(llama, quantization_config=SparsefmtConfig()))) == 15
    other = copy.deepcopy(models["llama"])
    other.lm_head.weight.data += 1
    other.save_pretrained(llama / "other")
    (llama / "other" / "model.safetensors").rename(llama / "model.safetensors")
    assert same_state(AutoModelForCausalLM.from_pretrained(llama), other)
    edit_config(llama, quantization_config={"quant_method": "sparsefmt"})
    assert same_state(AutoModelForCausalLM.from_pretrained(llama).dequantize(), models["llama"])


def test_config_that_names_a_file_of_weights(llama: Path) -> None:
    """What it says of the dense model does not matter any more."""
    edit_config(llama, transformers_weights="consolidated.safetensors")
    assert len(sparse_layers(AutoModelForCausalLM.from_pretrained(llama))) == 15


def test_config_says_sparsefmt_and_weights_are_dense(folders: dict[str, tuple[Path, Path]], llama: Path) -> None:
    (llama / "model.sparsefmt").unlink()
    (llama / "model.safetensors").write_bytes((folders["llama"][0] / "model.safetensors").read_bytes())
    assert len(sparse_layers(AutoModelForCausalLM.from_pretrained(llama))) == 15


def test_models_of_others_are_untouched(models: dict[str, Any], tmp_path: Path) -> None:
    models["bert"].save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert same_state(AutoModel.from_pretrained(tmp_path), models["bert"])
    with pytest.raises(OSError, match="no file named"):
        AutoModel.from_pretrained(tmp_path, variant="none")


@pytest.mark.parametrize("shard_size", ["50GB", "50kB"])
def test_repository_of_the_hub(folders: dict[str, tuple[Path, Path]], tmp_path: Path, shard_size: str) -> None:
    """As it lies in the cache: a folder of links."""
    model = AutoModelForCausalLM.from_pretrained(folders["llama"][1])
    cache = tmp_path / "models--someone--pruned"
    model.save_pretrained(cache / "blobs", max_shard_size=shard_size)
    snapshot = cache / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    for path in (cache / "blobs").iterdir():
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", path.name))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    loaded = AutoModelForCausalLM.from_pretrained("someone/pruned", cache_dir=tmp_path)
    assert output(loaded).equal(output(model))
    assert len(sparse_layers(loaded)) == 15
    last = max(snapshot.glob("*.sparsefmt"))
    last.unlink()
    with pytest.raises(OSError, match="model" if shard_size == "50GB" else last.name):
        AutoModelForCausalLM.from_pretrained("someone/pruned", cache_dir=tmp_path)
    with pytest.raises(OSError, match="connect"):
        AutoModelForCausalLM.from_pretrained("someone/other", cache_dir=tmp_path)


@pytest.fixture
def sharded(llama: Path) -> Path:
    AutoModelForCausalLM.from_pretrained(llama).save_pretrained(llama, max_shard_size="50kB")
    return llama


def test_shard_missing(sharded: Path) -> None:
    [*_, last] = sorted(sharded.glob("*.sparsefmt"))
    last.unlink()
    with pytest.raises(FileNotFoundError, match=last.name):
        AutoModelForCausalLM.from_pretrained(sharded)
    (sharded / "model.sparsefmt.index.json").unlink()
    with pytest.raises(FileNotFoundError, match=last.name):
        AutoModelForCausalLM.from_pretrained(sharded)


def test_extra_shard_is_mentioned(sharded: Path, messages: list[str]) -> None:
    first = min(sharded.glob("*.sparsefmt"))
    (sharded / "model-00009-of-00009.sparsefmt").write_bytes(first.read_bytes())
    AutoModelForCausalLM.from_pretrained(sharded)
    assert any("not loaded: model-00009-of-00009.sparsefmt" in message for message in messages)


def test_index_and_shards_disagree(sharded: Path) -> None:
    path = sharded / "model.sparsefmt.index.json"
    index = json.loads(path.read_text())
    shard = index["weight_map"].pop("lm_head.weight")
    path.write_text(json.dumps(index))
    with pytest.raises(FormatError, match=f"'lm_head.weight'.*{shard}.*{path}"):
        AutoModelForCausalLM.from_pretrained(sharded)
    index["weight_map"]["ghost"] = shard
    path.write_text(json.dumps(index))
    with pytest.raises(FormatError, match="'ghost'"):
        AutoModelForCausalLM.from_pretrained(sharded)


@pytest.mark.parametrize("name", ["../other.sparsefmt", "/etc/passwd", "sub/x.sparsefmt"])
def test_index_that_names_a_file_elsewhere(sharded: Path, name: str) -> None:
    path = sharded / "model.sparsefmt.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["lm_head.weight"] = name
    path.write_text(json.dumps(index))
    with pytest.raises(FormatError, match=r"'lm_head\.weight'.*plain name"):
        AutoModelForCausalLM.from_pretrained(sharded)


def test_dtype_that_torch_does_not_have(llama: Path) -> None:
    tensors = dict(sparsefmt.load_file(llama / "model.sparsefmt"))
    tensors["model.norm.weight"] = np.ones(64, ml_dtypes.float6_e2m3fn)
    sparsefmt.save_file(tensors, llama / "model.sparsefmt")
    for _ in range(2):
        with pytest.raises(UnsupportedError, match=r"'model\.norm\.weight'.* no dtype for F6_E2M3"):
            AutoModelForCausalLM.from_pretrained(llama)
        edit_config(llama, dtype=None)


def test_damage_names_tensor_and_file(llama: Path) -> None:
    path = llama / "model.sparsefmt"
    with sparsefmt.open_file(path) as file:
        index = file.reader.index
        place = int(index.chunk(index.entry("lm_head.weight"), 0, "values")["offset"])
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(ChecksumError, match=r"lm_head\.weight") as caught:
        AutoModelForCausalLM.from_pretrained(llama)
    assert caught.value.path == str(path)
    path.write_bytes(data[:-1])
    with pytest.raises(FormatError) as cut:
        AutoModelForCausalLM.from_pretrained(llama)
    assert cut.value.path == str(path)


def test_file_of_another_kind(llama: Path) -> None:
    (llama / "model.sparsefmt").write_bytes(craft({}))
    with pytest.raises(FormatError, match="sparsefmt convert"):
        AutoModelForCausalLM.from_pretrained(llama)
    (llama / "model.sparsefmt").unlink()
    with pytest.raises(OSError, match=r"there is no model\.sparsefmt"):
        AutoModelForCausalLM.from_pretrained(llama)
