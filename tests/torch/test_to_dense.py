"""A model becomes dense again as it was."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from torch_models import SPARSE, TOKENS, pruned_model, sparse_layers

import sparsefmt
from sparsefmt.torch import SparseLinear, load_into, make_dense, save_model, sparsify

pytestmark = pytest.mark.usefixtures("small_layers")


def test_a_model_is_made_dense_as_it_was(tmp_path):
    model = pruned_model()
    model.up.weight.requires_grad_(False)
    model.block.linear1.train()
    expected = copy.deepcopy(model)
    for dtype in (None, torch.float64):
        for load in (False, True):
            other = copy.deepcopy(expected)
            if load:
                save_model(other, tmp_path / "model.sparsefmt")
                load_into(other, tmp_path / "model.sparsefmt")
            else:
                sparsify(other)
            biases = {name: parameter for name, parameter in other.named_parameters() if name.endswith("bias")}
            # copied, and cast, whatever is shared stays so
            again = copy.deepcopy(other).to(torch.float64).to(torch.float32)
            assert sparse_layers(other) == sparse_layers(again) == SPARSE
            for changed in (other, again):
                make_dense(changed, dtype)
                assert not sparse_layers(changed)
                assert changed.first.weight is changed.second.weight
                assert [name for name, _ in changed.named_parameters()] == [
                    name for name, _ in expected.named_parameters()
                ]
                for (name, parameter), (_, before) in zip(
                    changed.named_parameters(), expected.named_parameters(), strict=True
                ):
                    assert parameter.requires_grad == before.requires_grad == (name != "up.weight")
                    assert parameter.device == before.device
                    assert torch.equal(parameter.float(), before)
                assert changed.up.weight.dtype == dtype or torch.float32
                assert [module.training for module in changed.modules()] == [
                    module.training for module in expected.modules()
                ]
            assert all(dict(other.named_parameters())[name] is bias for name, bias in biases.items())
    again.float()(TOKENS).square().mean().backward()
    assert again.down.weight.grad.count_nonzero()
    assert again.up.weight.grad is None


def test_layers_that_only_happen_to_share_memory_are_not_tied(tmp_path):
    """Tied in a file, or copies of one layer: they would have been trained apart."""
    weight = np.diag(np.arange(1, 65, dtype=np.float32))
    sparsefmt.save_file({"0.weight": weight, "1.weight": weight}, tmp_path / "model.sparsefmt")
    model = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False), torch.nn.Linear(64, 64, bias=False))
    load_into(model, tmp_path / "model.sparsefmt")
    model.append(copy.deepcopy(model[0]))
    assert model[0].weight_arrays is model[1].weight_arrays is model[2].weight_arrays
    make_dense(model)
    assert len({layer.weight.data_ptr() for layer in model}) == 3
    assert all(layer.weight.detach().equal(torch.from_numpy(weight)) for layer in model)


def test_what_cannot_be_made_dense():
    with pytest.raises(TypeError, match="replaced in itself"):
        make_dense(SparseLinear(2, 2))
    with pytest.raises(RuntimeError, match="no weights yet"):
        make_dense(torch.nn.Sequential(SparseLinear(2, 2)))
