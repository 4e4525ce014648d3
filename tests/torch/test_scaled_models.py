"""Models whose weights are quantized: sparsify, save_model, load_into, load_model."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from scaled_pairs import BAD, pair_with
from torch_helpers import conv1d, same
from torch_models import SPARSE, TOKENS, Model, meta_model, pruned_model, sparse_layers

import sparsefmt
from sparsefmt import FormatError, SparsefmtError, UnsupportedError
from sparsefmt.torch import SparseLinear, load_into, load_model, make_dense, save_model, sparsify

pytestmark = pytest.mark.usefixtures("small_layers")

HOW = [
    {"values": "int8"},
    {"values": "fp8", "scale": "mse"},
    {"values": "int8", "group_size": 32, "activations": "int8"},
]


def quantized_model(**how: object) -> Model:
    model = pruned_model()
    sparsify(model, **how)  # type: ignore[arg-type]
    return model


def same_results(left: torch.nn.Module, right: torch.nn.Module) -> bool:
    with torch.inference_mode():
        return same(left(TOKENS), right(TOKENS))


@pytest.mark.parametrize("how", HOW)
def test_sparsify_quantizes_what_it_compresses(how):
    model = pruned_model()
    expected = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    result = sparsify(model, **how)
    assert sorted(result.sparse) == SPARSE
    assert sorted({*result.quantizing.losses, "second"}) == SPARSE
    assert not result.quantizing.left_out
    groups = {"up": 2, "down": 4} if "group_size" in how else {"up": 1, "down": 1}
    for name, layer in result.sparse.items():
        weight = expected[f"{'first' if name == 'second' else name}.weight"]
        assert layer.weight.dtype == torch.float32
        assert layer.weight_scale.shape == (layer.out_features, groups.get(name, layer.weight_scale.shape[1]))
        assert layer.activations == how.get("activations")
        error = (layer.weight.to_dense() - weight).abs()
        assert not error[weight == 0].any()
        if name != "second":
            loss = result.quantizing.losses[name]
            assert float(error.max()) == pytest.approx(loss.largest_error, rel=1e-5)
            assert float(error.sum()) / int((weight != 0).sum()) == pytest.approx(loss.mean_error, rel=1e-4)
            assert int(((layer.weight == 0) & (weight != 0)).sum()) == loss.became_zero
    assert model.first.weight_scale is model.second.weight_scale
    assert model.head.weight is model.embedding.weight
    assert same(model.embedding.weight.detach(), expected["embedding.weight"])
    dtype = "float8_e4m3fn" if how["values"] == "fp8" else "int8"
    assert f"6 with values of {dtype} and scales, " in str(result)
    assert "; lossy: errors of " in str(result)
    assert str(result.summary) == str(result)


@pytest.mark.parametrize("how", HOW)
def test_saved_and_loaded_with_the_same_bits(how, tmp_path):
    model, path = quantized_model(**how), tmp_path / "model.sparsefmt"
    save_model(model, path, {"note": "mine"})
    with sparsefmt.open_file(path) as file:
        metadata = file.metadata()
        assert metadata["note"] == "mine"
        pairs = json.loads(metadata["sparsefmt.scales"])
        assert sorted(pairs) == [f"{name}.weight" for name in SPARSE]
        assert pairs["second.weight"] == pairs["first.weight"] == "first.weight_scale"
        assert all(file.get_tensor(scale).dtype == np.float32 for scale in pairs.values())
        assert file["up.weight"].dtype.itemsize == 1
        said = {name: "int8" for name in pairs} if "activations" in how else None
        assert json.loads(metadata.get("sparsefmt.activations", "null")) == said
    for other in (Model().eval(), meta_model(), quantized_model(values="int8")):
        result = load_into(other, path)
        assert (result.sparse, result.missing_keys, result.unexpected_keys) == (SPARSE, [], [])
        other.not_saved = torch.ones(64)
        assert same_results(other, model)
        assert other.first.weight_arrays is other.second.weight_arrays
        assert other.first.weight_scale is other.second.weight_scale
        assert result.summary.quantizing is None
    other = Model().eval()
    with torch.no_grad():
        assert load_model(other, path) == ([], [])
    assert sparse_layers(other) == SPARSE
    assert same_results(other, model)
    # a second time, into layers that are scaled already
    assert load_model(other, path) == ([], [])
    save_model(other, tmp_path / "again.sparsefmt", {"note": "mine"})
    assert (tmp_path / "again.sparsefmt").read_bytes() == path.read_bytes()


def test_a_fixed_scale_of_activations_is_stored(tmp_path):
    model = quantized_model(values="int8", activations="int8")
    model.up.set_activations("int8", 0.25)
    save_model(model, tmp_path / "model.sparsefmt")
    assert float(sparsefmt.load_file(tmp_path / "model.sparsefmt")["up.input_scale"]) == 0.25
    other = Model().eval()
    load_into(other, tmp_path / "model.sparsefmt", activations="int8")
    assert same_results(other, model)
    model.down.set_activations(None)
    save_model(model, tmp_path / "model.sparsefmt")
    load_into(other := Model().eval(), tmp_path / "model.sparsefmt")
    assert (other.up.activations, other.down.activations) == ("int8", None)
    load_model(other := Model().eval(), tmp_path / "model.sparsefmt")
    assert float(other.up.input_scale) == 0.25


def test_what_the_caller_says_of_activations_wins(tmp_path):
    model, path = quantized_model(values="int8"), tmp_path / "model.sparsefmt"
    model.up.set_activations("int8")
    model.down.set_activations("int8", 0.25)
    save_model(model, path)

    def loaded(asked: str | None) -> dict[str, str | None]:
        made = Model().eval()
        load_into(made, path, activations=asked)
        return {name: made.get_submodule(name).activations for name in SPARSE}

    assert loaded(None) == dict.fromkeys(SPARSE) | {"up": "int8", "down": "int8"}
    assert loaded("int8") == dict.fromkeys(SPARSE, "int8")
    assert loaded("float") == dict.fromkeys(SPARSE)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("layout", ["auto", "dense"])
def test_quantized_while_it_is_loaded(how, layout, tmp_path):
    model, path = pruned_model(), tmp_path / "model.sparsefmt"
    save_model(model, path, layout=layout)
    expected = quantized_model(**how)
    other = meta_model()
    result = load_into(other, path, **how)
    assert result.sparse == SPARSE
    assert sorted({*result.summary.quantizing.losses, "second"}) == SPARSE
    assert "; lossy: errors of " in str(result)
    other.not_saved = torch.ones(64)
    assert same_results(other, expected)


def test_scaled_weights_of_layers_that_stay_dense_are_multiplied_out(tmp_path):
    model, path = quantized_model(values="int8", group_size=32), tmp_path / "model.sparsefmt"
    save_model(model, path)
    make_dense(model)
    other = Model().eval()
    result = load_into(other, path, exclude="up")
    assert result.dense["up"] == "it is excluded"
    assert type(other.up) is torch.nn.Linear
    assert same(other.up.weight.detach(), model.up.weight.detach())
    # as an embedding has it
    tensors = sparsefmt.load_file(path)
    lookup = torch.nn.Module()
    lookup.up = torch.nn.Embedding(128, 64)
    names = ("up.weight", "up.weight_scale")
    metadata = {"sparsefmt.scales": json.dumps(dict([names]))}
    sparsefmt.save_file({name: tensors[name] for name in names}, path, metadata)
    for load in (load_into, load_model):
        torch.nn.init.zeros_(lookup.up.weight)
        load(lookup, path)
        assert same(lookup.up.weight.detach(), model.up.weight.detach())


def test_layers_that_are_transposed_in_files_are_compressed_and_not_quantized(tmp_path):
    model = torch.nn.Sequential(conv1d(64, 32), torch.nn.Linear(32, 32)).eval()
    with torch.no_grad():
        model[1].weight[torch.rand(32, 32) < 0.8] = 0
    dense, path = copy.deepcopy(model), tmp_path / "model.sparsefmt"
    result = sparsify(model, values="int8", min_size=0)
    assert list(result.quantizing.losses) == ["1"]
    assert "not quantized: 0 (it is a Conv1D" in str(result)
    assert model[0].weight_scale is None
    save_model(dense, path)
    assert "not quantized: 0 (it is a Conv1D" in str(load_into(copy.deepcopy(dense), path, values="int8", min_size=0))
    # quantized by somebody who did not know
    q = sparsefmt.load_file(path)["0.weight"].todense()
    q = np.rint(q * 20).astype(np.int8)
    tensors = {**sparsefmt.load_file(path), "0.weight": q, "0.weight_scale": np.full(64, 0.05, np.float32)}
    sparsefmt.save_file(tensors, path, {"sparsefmt.scales": '{"0.weight": "0.weight_scale"}'})
    expected = torch.from_numpy(q * np.float32(0.05))
    load_into(other := copy.deepcopy(dense), path)
    assert isinstance(other[0], SparseLinear)
    assert same(other[0].weight.to_dense(), expected)
    load_model(other := copy.deepcopy(dense), path)
    assert same(other[0].weight.detach(), expected)
    load_model(model, path)
    assert same(model[0].weight.to_dense(), expected)


def test_few_zeros_or_elements_do_not_keep_a_layer_from_its_scales(tmp_path):
    q = np.random.default_rng(0).integers(1, 100, (8, 16)).astype(np.int8)
    scale = np.linspace(0, 1, 8, dtype=np.float32)
    path = tmp_path / "model.sparsefmt"
    sparsefmt.save_file({"weight": q, "weight_scale": scale}, path, {"sparsefmt.scales": '{"weight": "weight_scale"}'})
    model = torch.nn.ModuleDict({"layer": torch.nn.Linear(16, 8, bias=False, dtype=torch.bfloat16)})
    tensors = {"layer.weight": q, "layer.weight_scale": scale}
    sparsefmt.save_file(tensors, path, {"sparsefmt.scales": '{"layer.weight": "layer.weight_scale"}'})
    assert load_into(model, path).sparse == ["layer"]
    assert model["layer"].weight.dtype == torch.bfloat16
    assert np.array_equal(model["layer"].weight.tensor.todense(), q)


@pytest.mark.parametrize(("tensors", "metadata", "code", "words"), BAD)
@pytest.mark.parametrize("load", [load_into, load_model])
def test_pairs_that_do_not_fit_name_both(load, tensors, metadata, code, words, tmp_path):
    path = tmp_path / "model.sparsefmt"
    whole, said = pair_with(tensors, metadata)
    sparsefmt.save_file(whole, path, said)
    model = torch.nn.ModuleDict({"l": torch.nn.Linear(16, 8, bias=False)})
    with pytest.raises(SparsefmtError, match=words) as caught:
        load(model, path)
    assert caught.value.code == code
    assert "model.sparsefmt" in str(caught.value)
    assert type(model["l"]) is torch.nn.Linear


def test_a_scaled_weight_of_a_convolution(tmp_path):
    tensors = {"c.weight": np.ones((8, 4, 3), np.int8), "c.weight_scale": np.ones(8, np.float32)}
    path = tmp_path / "model.sparsefmt"
    sparsefmt.save_file(tensors, path, {"sparsefmt.scales": '{"c.weight": "c.weight_scale"}'})
    model = torch.nn.ModuleDict({"c": torch.nn.Conv1d(4, 8, 3, bias=False)})
    for load in load_into, load_model:
        words = r"'c.weight'.*'c.weight_scale', and shape \[8, 4, 3\]: not a matrix"
        with pytest.raises(UnsupportedError, match=words) as caught:
            load(model, path)
        assert caught.value.code == "scaled-not-matrix"


def test_a_fixed_scale_of_activations_that_is_none(tmp_path):
    tensors = {"l.weight": np.ones((8, 16), np.int8), "l.weight_scale": np.ones(8, np.float32)}
    path = tmp_path / "model.sparsefmt"
    sparsefmt.save_file(
        {**tensors, "l.input_scale": np.float32(-1)}, path, {"sparsefmt.scales": '{"l.weight": "l.weight_scale"}'}
    )
    words = r"'l.weight'.*'l.input_scale' of its activations: input_scale must"
    with pytest.raises(FormatError, match=words) as caught:
        load_into(torch.nn.ModuleDict({"l": torch.nn.Linear(16, 8, bias=False)}), path)
    assert caught.value.code == "input-scale"


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"values": "int4"}, "values must be 'int8' or 'fp8', not 'int4'"),
        ({"values": "int8", "group_size": 48}, "group_size must be None, 32, 64 or 128, not 48"),
        ({"values": "int8", "scale": "best"}, "scale must be 'absmax' or 'mse', not 'best'"),
        ({"group_size": 32}, "group_size and scale are for values="),
        ({"scale": "mse"}, "group_size and scale are for values="),
        ({"values": "int8", "activations": "fp8"}, "activations must be None.* 'int8'.*, not 'fp8'"),
        ({"values": "fp8", "activations": "int8"}, "activations='int8' is for values='int8', not for values='fp8'"),
        ({"activations": "int8"}, "activations='int8' is for"),
    ],
)
def test_settings_that_cannot_be(how, words, tmp_path):
    model = pruned_model()
    save_model(model, tmp_path / "model.sparsefmt")
    with pytest.raises(ValueError, match=words):
        load_into(model, tmp_path / "model.sparsefmt", **how)
    with pytest.raises(ValueError, match=words):
        sparsify(model, **how)
    assert not sparse_layers(model)


def test_activations_for_a_file_of_fp8(tmp_path):
    save_model(quantized_model(values="fp8"), tmp_path / "model.sparsefmt")
    words = r"model\.sparsefmt: tensor '.*\.weight'.*these are scaled elements of F8_E4M3"
    with pytest.raises(UnsupportedError, match=words) as caught:
        load_into(Model(), tmp_path / "model.sparsefmt", activations="int8")
    assert caught.value.code == "activations-dtype"


def test_weights_that_cannot_be_quantized_are_named(tmp_path):
    model = pruned_model()
    with torch.no_grad():
        model.up.weight[3, 5] = torch.nan
    save_model(model, tmp_path / "model.sparsefmt")
    with pytest.raises(SparsefmtError, match=r"'up.weight': some of its weights in rows 0 to 127 are NaN or infinite"):
        load_into(Model(), tmp_path / "model.sparsefmt", values="int8")
    with pytest.raises(SparsefmtError, match=r"'up.weight': some of its weights in rows 0 to 127 are NaN or infinite"):
        sparsify(model, values="int8")
    with pytest.raises(SparsefmtError, match=r"'block.linear2.weight': groups of 64 columns do not divide its 96"):
        sparsify(pruned_model(), values="int8", group_size=64)
