"""Models of transformers whose values are trained on, and what is saved of them."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers_models import TOKENS, output, sparse_layers

import sparsefmt.transformers  # noqa: F401
from sparsefmt.torch import SparseLinear, TrainableSparseLinear, keep_zeros, make_trainable


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_loaded_model_is_trained_on_and_saved_with_its_zeros(folders, tmp_path, name):
    model = AutoModelForCausalLM.from_pretrained(folders[name][1])
    zeros = {layer: model.get_submodule(layer).weight == 0 for layer in sparse_layers(model)}
    assert make_trainable(model).keys() == zeros.keys()
    model.gradient_checkpointing_enable()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    losses = []
    for _ in range(4):
        loss = model(TOKENS, labels=TOKENS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert all(after < before for before, after in itertools.pairwise(losses))
    model.eval()
    model.save_pretrained(tmp_path / "trained")
    assert all(isinstance(model.get_submodule(layer), TrainableSparseLinear) for layer in zeros)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "trained")
    assert torch.equal(output(loaded), output(model))
    for layer, expected in zeros.items():
        assert type(loaded.get_submodule(layer)) is SparseLinear
        assert torch.equal(loaded.get_submodule(layer).weight == 0, expected)


def test_a_dense_model_keeps_its_zeros(folders):
    model = AutoModelForCausalLM.from_pretrained(folders["llama"][0])
    zeros = {name: parameter == 0 for name, parameter in model.named_parameters() if "_proj" in name}
    with keep_zeros(model):
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        model(TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        if name in zeros:
            assert torch.equal(parameter == 0, zeros[name])
