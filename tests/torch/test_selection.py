"""min_size: small layers stay dense by default, wherever their weights come from, and the result says so."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.utils import prune

from sparsefmt.torch import SparseLinear, load_into, save_model, sparsify
from sparsefmt.torch.selection import MIN_SIZE, Selection

WIDE = MIN_SIZE // 64


def pruned_model() -> torch.nn.Sequential:
    """A layer of exactly the least size, and one with a row less."""
    model = torch.nn.Sequential(torch.nn.Linear(WIDE, 64), torch.nn.Linear(64, WIDE - 1))
    for layer in model:
        prune.l1_unstructured(layer, "weight", amount=0.9)
        prune.remove(layer, "weight")
    return model


def expect_small_is_dense(model: torch.nn.Module, sparse: object, dense: dict[str, str]) -> None:
    assert list(sparse) == ["0"]
    assert list(dense) == ["1"]
    assert "elements: below 131,072" in dense["1"]
    assert isinstance(model[0], SparseLinear)
    assert isinstance(model[1], torch.nn.Linear)


def test_sparsify():
    model = pruned_model()
    result = sparsify(model)
    expect_small_is_dense(model, result.sparse, result.dense)


@pytest.mark.parametrize("layout", ["auto", "dense"])
def test_load_into(tmp_path, layout):
    save_model(pruned_model(), tmp_path / "model.sparsefmt", layout=layout)
    model = pruned_model()
    result = load_into(model, tmp_path / "model.sparsefmt")
    expect_small_is_dense(model, result.sparse, result.dense)


def test_a_sparse_linear_of_any_size_is_filled(tmp_path):
    save_model(pruned_model(), tmp_path / "model.sparsefmt")
    model = pruned_model()
    sparsify(model, min_size=0)
    assert load_into(model, tmp_path / "model.sparsefmt").sparse == ["0", "1"]


@pytest.mark.parametrize(
    "asked_for", [{"min_size": 0}, {"min_size": 64 * (WIDE - 1)}, {"include": "*"}, {"layout": "permuted"}]
)
def test_who_asks_for_small_ones_gets_them(tmp_path, asked_for):
    model = pruned_model()
    save_model(model, tmp_path / "model.sparsefmt")
    assert list(sparsify(model, **asked_for).sparse) == ["0", "1"]
    assert load_into(pruned_model(), tmp_path / "model.sparsefmt", **asked_for).sparse == ["0", "1"]


def test_a_size_given_holds_for_layers_that_are_asked_for():
    result = sparsify(pruned_model(), include="*", layout="bitmask", min_size=MIN_SIZE)
    assert (list(result.sparse), list(result.dense)) == (["0"], ["1"])


def test_an_impossible_size():
    for call in (
        lambda: Selection(min_size=-1),
        lambda: sparsify(pruned_model(), min_size=-1),
        lambda: load_into(pruned_model(), "model.sparsefmt", min_size=-1),
    ):
        with pytest.raises(ValueError, match="min_size must be 0 or more, not -1"):
            call()


class TestTransformers:
    """from_pretrained, of safetensors and of .sparsefmt files."""

    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        transformers = pytest.importorskip("transformers")
        pytest.importorskip("sparsefmt.transformers")
        import transformers_models

        config = copy.deepcopy(transformers_models.CONFIGS["llama"])
        config.update({"hidden_size": 128, "intermediate_size": 1024, "head_dim": 32})
        model = transformers_models.prune(transformers.LlamaForCausalLM(config))
        model.save_pretrained(tmp_path / "dense")
        transformers_models.convert(tmp_path / "dense", tmp_path / "sparse")
        return tmp_path

    def load(self, path, **chosen):
        import transformers

        from sparsefmt.transformers import SparsefmtConfig

        config = SparsefmtConfig(**chosen) if chosen else SparsefmtConfig()
        return transformers.AutoModelForCausalLM.from_pretrained(path, quantization_config=config)

    def test_small_layers_stay_dense(self, folder):
        for path in (folder / "dense", folder / "sparse"):
            model = self.load(path)
            assert isinstance(model.model.layers[0].mlp.up_proj, SparseLinear)
            assert isinstance(model.model.layers[0].self_attn.q_proj, torch.nn.Linear)
            model = self.load(path, min_size=0)
            assert isinstance(model.model.layers[0].self_attn.q_proj, SparseLinear)
            assert model.config.quantization_config.to_dict()["min_size"] == 0
