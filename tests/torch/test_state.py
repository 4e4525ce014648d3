"""The state of a model with sparse layers is what a file has."""

from __future__ import annotations

import pytest
import torch
import torch.nn.utils.prune
from torch_models import check_equal, meta_model

import sparsefmt
from sparsefmt import SparseTensor
from sparsefmt.torch import load_into, tensors_of

pytestmark = pytest.mark.usefixtures("small_layers")


def test_tensors_of_a_model_are_what_a_file_has(saved, tmp_path):
    model, path = saved
    load_into(other := meta_model(), path)
    tensors = tensors_of(other)
    load_into(filled := meta_model(), path)
    with torch.no_grad():
        filled.up.bias.zero_()
    filled.up.set_weight(filled.up.weight.tensor.to_layout("bitmask"))
    filled.load_state_dict(tensors)
    filled.not_saved = torch.ones(64)
    check_equal(filled, model)
    assert tensors["first.weight"] is tensors["second.weight"]
    assert tensors["up.weight"] is other.up.weight.tensor
    arrays = {name: tensor if isinstance(tensor, SparseTensor) else tensor.numpy() for name, tensor in tensors.items()}
    sparsefmt.save_file(arrays, tmp_path / "again.sparsefmt")
    load_into(again := meta_model(), tmp_path / "again.sparsefmt")
    again.not_saved = torch.ones(64)
    check_equal(again, model)
