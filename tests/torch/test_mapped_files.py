"""A file of dense weights is not kept in memory for the few of its tensors that stay dense."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sparsefmt.torch import sparsify
from sparsefmt.torch.mapped_files import MappedFiles

pytestmark = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc/self/maps to look into")


def from_file(path: Path, *, pruned: int) -> nn.Sequential:
    """Four linear layers of which the first `pruned` are, as views of a file that is mapped."""
    model = nn.Sequential(*(nn.Linear(512, 512) for _ in range(4)))
    for number in range(pruned):
        with torch.no_grad():
            model[number].weight[:, ::2] = 0
            model[number].weight[:, ::3] = 0
    save_file(model.state_dict(), path)
    model.load_state_dict(load_file(path), assign=True)
    return model


def is_mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


def test_what_stays_dense_is_copied(tmp_path):
    path = tmp_path / "model.safetensors"
    model = from_file(path, pruned=3)
    before, x = {name: id(parameter) for name, parameter in model.named_parameters()}, torch.randn(3, 512)
    with torch.no_grad():
        expected = model(x)
    assert is_mapped(path)
    assert len(sparsify(model).sparse) == 3
    assert not is_mapped(path)
    assert {name: id(parameter) for name, parameter in model.named_parameters()}.items() <= before.items()
    np.testing.assert_allclose(model(x).detach(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pruned", [0, 1])
def test_not_where_more_would_be_copied_than_was_compressed(tmp_path, pruned):
    path = tmp_path / "model.safetensors"
    model = from_file(path, pruned=pruned)
    addresses = [layer.weight.data_ptr() for layer in model[pruned:]]
    assert len(sparsify(model).sparse) == pruned
    assert is_mapped(path)
    assert [layer.weight.data_ptr() for layer in model[pruned:]] == addresses


def test_shared_memory_stays_shared(tmp_path):
    path = tmp_path / "model.safetensors"
    model = from_file(path, pruned=3)
    model.register_buffer("last", model[3].weight.detach())
    sparsify(model)
    assert not is_mapped(path)
    assert model.last.data_ptr() == model[3].weight.data_ptr()
    assert model[3].weight.requires_grad


def test_memory_that_is_no_file_is_left_alone():
    layer = nn.Linear(512, 512)
    address, files = layer.weight.data_ptr(), MappedFiles()
    files.compressed(layer.weight)
    files.release(nn.Sequential(layer))
    assert layer.weight.data_ptr() == address
