"""sparsify: which layers become sparse, what stays tied, and what stays dense."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
import torch.nn.utils.prune
from torch_models import SPARSE, TOKENS, check_equal, pruned_model, sparse_layers

from sparsefmt.torch import SparseLinear, load_into, save_model, sparsify
from sparsefmt.torch.selection import MIN_SPARSITY

pytestmark = pytest.mark.usefixtures("small_layers")


def test_sparsify_replaces_what_is_pruned():
    model = pruned_model()
    expected = copy.deepcopy(model)
    result = sparsify(model)
    assert sorted(result.sparse) == SPARSE == sparse_layers(model)
    assert result.sparse["up"] is model.up
    assert set(result.dense) == {"block.self_attn.out_proj", "head"}
    assert "NonDynamicallyQuantizableLinear" in result.dense["block.self_attn.out_proj"]
    assert "embedding.weight" in result.dense["head"]
    assert model.first.weight_arrays is model.second.weight_arrays
    assert model.first.bias is not model.second.bias
    check_equal(model, expected)
    # once more: nothing is left
    again = sparsify(model)
    assert not again.sparse
    assert set(again.dense) == set(result.dense)


def test_sparsify_by_sparsity_and_name():
    def model() -> torch.nn.Sequential:
        made = torch.nn.Sequential(*[torch.nn.Linear(64, 64) for _ in range(4)])
        for number, sparsity in enumerate((0.0, 0.3, 0.5, 0.9)):
            torch.nn.utils.prune.random_unstructured(made[number], "weight", sparsity)
        return made

    assert 0.3 < MIN_SPARSITY < 0.5
    assert sorted(sparsify(model()).sparse) == ["2", "3"]
    assert sorted(sparsify(model(), min_sparsity=0.6).sparse) == ["3"]
    assert sorted(sparsify(model(), include="[02]").sparse) == ["2"]
    result = sparsify(model(), min_sparsity=0.0)
    assert sorted(result.sparse) == ["1", "2", "3"]
    assert result.dense == {"0": "no sparse layout makes it 10 % smaller"}
    layers = sparsify(model(), layout="permuted").sparse
    assert {layer.weight.tensor.layout for layer in layers.values()} == {"permuted"}
    assert sparsify(model()).dense["1"] == "30.0% of its weight is zero, which is less than 40.0%"
    with pytest.raises(ValueError, match="layout must be"):
        sparsify(model(), layout="dense")


def test_sparsify_keeps_what_cannot_be_replaced():
    layer = torch.nn.Linear(8, 8)
    with torch.no_grad():
        layer.weight.zero_()
    assert sparsify(layer).dense == {"": "it is the model itself: use SparseLinear.from_linear"}
    model = torch.nn.Sequential(torch.nn.Linear(8, 8, device="meta"), layer)
    with pytest.raises(RuntimeError, match=r"0\.weight is on meta"):
        sparsify(model)
    assert model[1] is layer


class Adapter(torch.nn.Module):
    """A layer with an adapter of low rank beside it, as LoRA starts: the second factor is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = torch.nn.Linear(64, 64)
        self.base_layer.requires_grad_(False)
        self.lora_A = torch.nn.Linear(64, 8, bias=False)
        self.lora_B = torch.nn.Linear(8, 64, bias=False)
        with torch.no_grad():
            self.base_layer.weight[torch.rand(64, 64) < 0.8] = 0
            self.lora_B.weight.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


def test_layers_that_start_from_zero_are_left_to_be_trained(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(Adapter(), torch.nn.ReLU(), Adapter())
    result = sparsify(model)
    assert set(result.sparse) == {"0.base_layer", "2.base_layer"}
    for name in ("0.lora_B", "2.lora_B"):
        assert (
            result.dense[name] == "all of its weight is zero and requires_grad is True: it may be about to be trained"
        )
    x = torch.randn(16, 64)
    optimizer = torch.optim.Adam([parameter for parameter in model.parameters() if parameter.requires_grad], 0.01)
    losses = []
    for _ in range(5):
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]
    assert model[0].lora_B.weight.count_nonzero()
    # the same, loaded into a model that is to be trained; one that is frozen has nothing to wait for
    save_model(torch.nn.Sequential(Adapter()), tmp_path / "model.sparsefmt")
    other = torch.nn.Sequential(Adapter())
    loaded = load_into(other, tmp_path / "model.sparsefmt")
    assert loaded.sparse == ["0.base_layer"]
    assert "about to be trained" in loaded.dense["0.lora_B"]
    frozen = torch.nn.Sequential(Adapter()).requires_grad_(False)
    assert load_into(frozen, tmp_path / "model.sparsefmt").sparse == ["0.base_layer", "0.lora_B"]
    assert sorted(sparsify(torch.nn.Sequential(Adapter()).requires_grad_(False)).sparse) == ["0.base_layer", "0.lora_B"]


@pytest.mark.parametrize("masked", [False, True])
def test_one_dense_weight_at_a_time_is_there_beside_its_compressed_form(monkeypatch, masked):
    model = torch.nn.Sequential(*[torch.nn.Linear(64, 64) for _ in range(8)])
    model[3].weight = model[2].weight
    model.append(model[1])
    for layer in model[:7]:
        if layer is not model[3]:
            torch.nn.utils.prune.random_unstructured(layer, "weight", 0.8)
            if not masked:
                torch.nn.utils.prune.remove(layer, "weight")
    model[3].weight = model[2].weight_orig if masked else model[2].weight
    weights = [weakref.ref(parameter) for name, parameter in model.named_parameters() if "weight" in name]
    assert len(weights) == 7
    del layer
    alive = []
    original = SparseLinear.from_linear.__func__

    def from_linear(cls, *arguments):
        alive.append(sum(weight() is not None for weight in weights))
        return original(cls, *arguments)

    monkeypatch.setattr(SparseLinear, "from_linear", classmethod(from_linear))
    gc.disable()
    try:
        result = sparsify(model)
    finally:
        gc.enable()
    # the last layer is not pruned; a weight that is masked in one layer and plain in another stays for the latter
    assert alive == [7, 6, 5, 5, 4, 3] if masked else [7, 6, 5, 4, 3, 2]
    assert len(alive) == len({id(layer.weight_arrays) for layer in result.sparse.values()}) == 6
    assert sum(weight() is not None for weight in weights) == (2 if masked else 1)


def test_layers_that_share_a_weight_are_sparse_together_or_not_at_all():
    model = pruned_model()
    result = sparsify(model, exclude="second")
    assert sorted(result.sparse) == [name for name in SPARSE if name not in ("first", "second")]
    assert result.dense["first"] == "its weight is also second.weight"
    assert result.dense["second"] == "it is excluded"
    assert model.first.weight is model.second.weight


def test_tensors_that_a_sparse_layer_has_not_are_not_lost():
    model = torch.nn.Sequential(*[torch.nn.Linear(64, 64) for _ in range(4)])
    for layer in model:
        torch.nn.utils.prune.random_unstructured(layer, "weight", 0.8)
        torch.nn.utils.prune.remove(layer, "weight")
    torch.nn.utils.weight_norm(model[0])
    torch.nn.utils.parametrizations.weight_norm(model[1])
    model[2].register_buffer("scale", torch.ones(64))
    result = sparsify(model)
    assert list(result.sparse) == ["3"]
    assert result.dense["0"] == "it has weight_g, weight_v beside its weight and bias"
    assert result.dense["2"] == "it has scale beside its weight and bias"
    assert "ParametrizedLinear" in result.dense["1"]


def test_layers_pruned_alike_or_differently_and_shared():
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
    model[1].weight = model[0].weight
    model[2].weight = model[0].weight
    torch.nn.utils.prune.random_unstructured(model[0], "weight", 0.8)
    torch.nn.utils.prune.random_unstructured(model[1], "weight", 0.9)
    expected = [(layer.weight_orig * layer.weight_mask).detach() for layer in model[:2]]
    result = sparsify(model)
    assert list(result.sparse) == ["0", "1"]
    for layer, weight in zip(model[:2], expected, strict=True):
        assert torch.equal(layer.weight.to_dense(), weight)


def test_a_model_trains_what_is_not_sparse():
    model = pruned_model()
    sparsify(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = model(TOKENS).detach()
    loss = model(TOKENS).square().mean()
    loss.backward()
    optimizer.step()
    assert model(TOKENS).square().mean() < loss
    assert not torch.equal(model(TOKENS), before)
