"""from_pretrained and save_pretrained of models whose weights are quantized."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import first_always
from torch_helpers import same, same_state
from transformers import AutoModel, AutoModelForCausalLM
from transformers_models import SPARSE_LAYERS, edit_config, kind_of, output, sparse_layers

import sparsefmt
from sparsefmt import SparsefmtError
from sparsefmt.torch import SparseLinear, sparsify
from sparsefmt.transformers import SparsefmtConfig

pytestmark = pytest.mark.usefixtures("small_layers")


def scaled_layers(model: torch.nn.Module) -> dict[str, SparseLinear]:
    found = {name: module for name, module in model.named_modules() if isinstance(module, SparseLinear)}
    return {name: layer for name, layer in found.items() if layer.weight_scale is not None}


def metadata_of(folder: Path) -> dict[str, str]:
    with sparsefmt.open_file(folder / "model.sparsefmt") as file:
        return file.metadata()


@pytest.mark.parametrize("form", [0, 1])
def test_quantized_as_sparsify_does_it(form, name, models, folders):
    """Whether the folder has safetensors or .sparsefmt."""
    config = SparsefmtConfig(values="int8", group_size=32, activations="int8")
    model = kind_of(name).from_pretrained(folders[name][form], quantization_config=config)
    expected = kind_of(name).from_pretrained(folders[name][0])
    result = sparsify(expected, values="int8", group_size=32, activations="int8")
    assert len(sparse_layers(model)) == SPARSE_LAYERS[name]
    assert scaled_layers(model).keys() == scaled_layers(expected).keys()
    assert len(scaled_layers(model)) == (0 if name == "gpt2" else SPARSE_LAYERS[name])
    assert same_state(model, expected)
    assert same(output(model), output(expected))
    made = model.hf_quantizer.result
    assert made.quantizing == result.quantizing
    assert ("lossy: errors of" in str(made)) == (name != "gpt2")
    assert ("not quantized: " in str(made)) == (name == "gpt2")


@pytest.mark.parametrize("how", [{"values": "int8", "activations": "int8"}, {"values": "fp8", "scale": "mse"}])
@pytest.mark.parametrize("shards", first_always([True, False]))
def test_saved_and_loaded_with_the_same_bits(how, shards, name, folders, tmp_path):
    model = kind_of(name).from_pretrained(folders[name][1], quantization_config=SparsefmtConfig(**how))
    if name == "gpt2":
        return
    folder = tmp_path / "model"
    model.save_pretrained(folder, max_shard_size="40KB" if shards else "1GB")
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config.get("activations") == how.get("activations")
    assert not {"values", "scale", "group_size"} & config.keys()
    if shards:
        index = json.loads((folder / "model.sparsefmt.index.json").read_text())
        files = set(index["weight_map"].values())
        assert len(files) > 1
        for weight in (name for name in index["weight_map"] if f"{name}_scale" in index["weight_map"]):
            assert index["weight_map"][weight] == index["weight_map"][f"{weight}_scale"]
    else:
        assert len(json.loads(metadata_of(folder)["sparsefmt.scales"])) == SPARSE_LAYERS[name]
    loaded, found = kind_of(name).from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert same_state(loaded, model)
    assert same(output(loaded), output(model))
    loaded.save_pretrained(tmp_path / "again", max_shard_size="40KB" if shards else "1GB")
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name
    dense = loaded.dequantize()
    assert not scaled_layers(dense)
    assert same(dense.state_dict()[some_weight(model)], model.get_submodule(some_layer(model)).weight.to_dense())


def some_layer(model: torch.nn.Module) -> str:
    return next(iter(scaled_layers(model)))


def some_weight(model: torch.nn.Module) -> str:
    return f"{some_layer(model)}.weight"


@pytest.fixture
def quantized(folders: dict[str, tuple[Path, Path]], tmp_path: Path) -> tuple[Any, Path]:
    """A model and its folder, which may be changed."""
    config = SparsefmtConfig(values="int8")
    model = AutoModelForCausalLM.from_pretrained(folders["llama"][1], quantization_config=config)
    model.save_pretrained(tmp_path / "quantized")
    return model, tmp_path / "quantized"


def test_loaded_in_inference_mode(quantized):
    model, folder = quantized
    with torch.inference_mode():
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        assert same_state(loaded, model)
        half = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert scaled_layers(half).keys() == scaled_layers(model).keys()


def test_other_dtypes_change_what_weights_are_to_code_alone(quantized):
    model, folder = quantized
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    for name, layer in scaled_layers(model).items():
        other = loaded.get_submodule(name)
        assert other.weight.dtype == torch.bfloat16
        assert same(other.weight_scale, layer.weight_scale)
        assert np.array_equal(other.weight.tensor.todense(), layer.weight.tensor.todense())
    assert output(loaded).dtype == torch.bfloat16
    # and float32 again, as the rest computes
    config = SparsefmtConfig(compute_dtype="float32")
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=config)
    assert loaded.get_submodule(some_layer(model)).weight.dtype == torch.float32


def test_a_fixed_scale_of_activations_is_stored(quantized, tmp_path):
    model, _ = quantized
    name = some_layer(model)
    model.get_submodule(name).set_activations("int8", 0.125)
    model.save_pretrained(tmp_path / "other")
    assert "activations" not in json.loads((tmp_path / "other" / "config.json").read_text())["quantization_config"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "other")
    assert [float(layer.input_scale or 0) for layer in scaled_layers(loaded).values()][:2] == [0.125, 0]
    assert same(output(loaded), output(model))


def test_activations_that_differ_come_back(quantized, tmp_path):
    model, _ = quantized
    model.get_submodule(some_layer(model)).set_activations("int8")
    folder = tmp_path / "other"
    model.save_pretrained(folder)
    assert "activations" not in json.loads((folder / "config.json").read_text())["quantization_config"]
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    found = {name: layer.activations for name, layer in scaled_layers(loaded).items()}
    assert found == dict.fromkeys(found) | {some_layer(model): "int8"}
    assert same(output(loaded), output(model))
    for asked in "int8", "float":
        config = SparsefmtConfig(activations=asked)
        loaded = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)
        assert {layer.activations for layer in scaled_layers(loaded).values()} == {asked if asked == "int8" else None}


def test_excluded_layers_and_embeddings_get_the_weight_multiplied_out(quantized, tmp_path):
    model, folder = quantized
    name = some_layer(model)
    loaded = AutoModelForCausalLM.from_pretrained(folder, quantization_config=SparsefmtConfig(exclude=name))
    assert type(loaded.get_submodule(name)) is torch.nn.Linear
    assert same(loaded.get_submodule(name).weight.detach(), model.get_submodule(name).weight.to_dense())
    # as somebody may convert it who does not know what an embedding is
    tensors = sparsefmt.load_file(folder / "model.sparsefmt")
    metadata = metadata_of(folder)
    embedding = "model.embed_tokens.weight"
    tensors |= {embedding: np.ones((96, 64), np.int8), f"{embedding}_scale": np.full(96, 0.5, np.float32)}
    pairs = json.loads(metadata["sparsefmt.scales"]) | {embedding: f"{embedding}_scale"}
    sparsefmt.save_file(tensors, folder / "model.sparsefmt", metadata | {"sparsefmt.scales": json.dumps(pairs)})
    loaded = AutoModel.from_pretrained(folder)
    assert torch.equal(loaded.embed_tokens.weight, torch.full((96, 64), 0.5))


def test_pairs_that_do_not_fit_name_both(quantized):
    model, folder = quantized
    tensors, metadata = sparsefmt.load_file(folder / "model.sparsefmt"), metadata_of(folder)
    weight = some_weight(model)
    rows = len(tensors[f"{weight}_scale"])
    for wrong, words in (
        ({"_scale": np.ones(3, np.float32)}, "do not fit"),
        ({"_scale": np.full(rows, np.nan, np.float32)}, "do not fit"),
        ({"_scale": np.ones(rows, np.float64)}, "do not fit"),
        ({"_scale": None}, "is not among the tensors"),
        ({"_zero_point": np.zeros(rows, np.int8)}, "have no zero points"),
    ):
        changed = {**tensors, **{f"{weight}{ending}": tensor for ending, tensor in wrong.items()}}
        changed = {name: tensor for name, tensor in changed.items() if tensor is not None}
        sparsefmt.save_file(changed, folder / "model.sparsefmt", metadata)
        with pytest.raises(SparsefmtError, match=rf"model\.sparsefmt.*'{weight}'.*'{weight}_scale'.*{words}"):
            AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"values": "int4"}, "values must be 'int8' or 'fp8', not 'int4'"),
        ({"group_size": 32}, "are for values="),
        ({"values": "fp8", "activations": "int8"}, "activations='int8' is for values='int8'"),
        ({"activations": "fp8"}, "activations must be None, 'int8' or 'float'"),
    ],
)
def test_settings_that_cannot_be(how, words):
    with pytest.raises(ValueError, match=words):
        SparsefmtConfig(**how)


def test_activations_need_scaled_weights(folders):
    with pytest.raises(ValueError, match="no layer has: give values='int8' too"):
        AutoModel.from_pretrained(folders["llama"][1], quantization_config=SparsefmtConfig(activations="int8"))


def test_a_file_does_not_choose_to_lose_something(llama):
    for name, value in (("values", "int8"), ("group_size", 32), ("scale", "mse")):
        edit_config(llama, quantization_config={"quant_method": "sparsefmt", name: value})
        with pytest.raises(ValueError, match=rf"has '{name}', which is not for a file to decide"):
            AutoModel.from_pretrained(llama)


def test_weights_that_cannot_be_quantized_are_named(folders):
    config = SparsefmtConfig(values="int8", group_size=128)
    with pytest.raises(SparsefmtError, match=r"'.*proj.weight': groups of 128 columns do not divide its 64 columns"):
        AutoModelForCausalLM.from_pretrained(folders["llama"][1], quantization_config=config)
