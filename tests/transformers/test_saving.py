"""save_pretrained of a model with sparse layers: shards, variants, signs, and what it refuses."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
)
from transformers_models import CONFIGS, output, sparse_layers, tensors_in

from sparsefmt.torch import sparsify

pytestmark = pytest.mark.usefixtures("small_layers")


def test_signs_that_cost_much_are_named_once(tmp_path: Path, messages: list[str]) -> None:
    """By transformers' logger, for all shards together."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data *= torch.rand(module.weight.shape) < 0.001
    sparsify(model, min_sparsity=0.5)
    for module in (module for module in model.modules() if isinstance(module, torch.nn.Embedding)):
        module.weight.data.zero_()
    messages.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save_pretrained(tmp_path, max_shard_size="20KB")
    said = [message for message in messages if "signs of pruned zeros" in message]
    assert len(said) == 1
    assert 'save_pretrained(..., negative_zeros="drop") leaves them out' in said[0]
    assert len(list(tmp_path.glob("*.sparsefmt"))) > 1
    before = sum(path.stat().st_size for path in tmp_path.glob("*.sparsefmt"))
    messages.clear()
    model.save_pretrained(tmp_path, max_shard_size="20KB", negative_zeros="drop")
    assert not [message for message in messages if "signs of pruned zeros" in message]
    assert sum(path.stat().st_size for path in tmp_path.glob("*.sparsefmt")) < 2 / 3 * before
    weight = next(iter(tensors_in(tmp_path).values()))
    assert not np.signbit(weight[weight == 0]).any()


def test_shards(folders: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders["llama"][1])
    model.save_pretrained(tmp_path, max_shard_size="20kB")
    index = json.loads((tmp_path / "model.sparsefmt.index.json").read_text())
    shards = set(index["weight_map"].values())
    assert len(shards) > 2
    assert {path.name for path in tmp_path.glob("*.sparsefmt")} == shards
    assert output(AutoModelForCausalLM.from_pretrained(tmp_path)).equal(output(model))
    # what an earlier save left would be loaded too, or first
    model.save_pretrained(tmp_path, max_shard_size="40kB")
    fewer = set(json.loads((tmp_path / "model.sparsefmt.index.json").read_text())["weight_map"].values())
    assert {path.name for path in tmp_path.glob("*.sparsefmt*")} == {*fewer, "model.sparsefmt.index.json"}
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.glob("*.sparsefmt*")} == {"model.sparsefmt"}
    assert output(AutoModelForCausalLM.from_pretrained(tmp_path)).equal(output(model))


def test_variant_and_subfolder(folders: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders["llama"][1])
    model.save_pretrained(tmp_path / "sub", variant="one")
    model.save_pretrained(tmp_path / "sub", variant="more", max_shard_size="20kB")
    for variant in ("one", "more"):
        again = AutoModelForCausalLM.from_pretrained(tmp_path, subfolder="sub", variant=variant)
        assert output(again).equal(output(model))
    with pytest.raises(OSError, match=r"no model\.none\.sparsefmt"):
        AutoModelForCausalLM.from_pretrained(tmp_path, subfolder="sub", variant="none")


def test_model_made_sparse_in_memory_is_saved_and_loaded(models: dict[str, Any], tmp_path: Path) -> None:
    model = copy.deepcopy(models["gpt2"])
    sparsify(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert sparse_layers(loaded) == sparse_layers(model)
    assert output(loaded).equal(output(model))


def test_saving_takes_the_place_of_dense_weights(
    models: dict[str, Any], folders: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    """A folder that has both, and says that it is sparse, is loaded as sparse."""
    models["bert"].save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folders["llama"][1])
    model.save_pretrained(tmp_path)
    assert output(AutoModelForCausalLM.from_pretrained(tmp_path)).equal(output(model))


def test_what_saving_refuses(folders: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders["llama"][1])
    with pytest.raises(ValueError, match="push_to_hub"):
        model.save_pretrained(tmp_path / "out", push_to_hub=True)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        model.save_pretrained(tmp_path / "file")
    model.save_pretrained(tmp_path / "none", is_main_process=False)
    assert not list((tmp_path / "none").glob("*"))
