"""A model with layers of all kinds, pruned, and whether another has its weights."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.utils.prune
from torch_helpers import same

from sparsefmt import SparseTensor
from sparsefmt.torch import SparseLinear, tensors_of


class OwnAttention(torch.nn.MultiheadAttention):
    """A subclass, which might compute something else: its weights stay dense."""


class Model(torch.nn.Module):
    """Layers of all kinds: plain, without bias, tied to an embedding, tied to each other, used without being called."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(50, 64)
        self.up = torch.nn.Linear(64, 128)
        self.down = torch.nn.Linear(128, 64, bias=False)
        self.block = torch.nn.TransformerEncoderLayer(64, 4, 96, batch_first=True)
        self.block.self_attn.__class__ = OwnAttention
        self.first = torch.nn.Linear(64, 64)
        self.second = torch.nn.Linear(64, 64)
        self.second.weight = self.first.weight
        self.norm = torch.nn.BatchNorm1d(64)
        self.register_buffer("scale", torch.full((64,), 2.0))
        self.register_buffer("not_saved", torch.ones(64), persistent=False)
        self.head = torch.nn.Linear(64, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        x = self.block(x + self.down(torch.relu(self.up(x))))
        x = self.norm(self.second(self.first(x)).transpose(1, 2)).transpose(1, 2)
        return self.head(x * self.scale)


SPARSE = ["block.linear1", "block.linear2", "down", "first", "second", "up"]
TOKENS = torch.arange(21).reshape(3, 7)


def pruned_model(seed: int = 0, sparsity: float = 0.8) -> Model:
    torch.manual_seed(seed)
    model = Model().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter[torch.rand_like(parameter) < sparsity] = 0
        model.norm.running_mean.normal_()
    return model


def meta_model(kind: type[torch.nn.Module] = Model) -> torch.nn.Module:
    with torch.device("meta"):
        return kind().eval()


def check_equal(loaded: torch.nn.Module, model: torch.nn.Module) -> None:
    """The weights are the same to the bit, and results nearly."""
    expected = model.state_dict()
    found = tensors_of(loaded)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        if isinstance(tensor, SparseTensor):
            assert np.array_equal(tensor.todense().view(np.uint32), expected[name].numpy().view(np.uint32)), name
        else:
            assert same(tensor, expected[name]), name
    with torch.no_grad():
        torch.testing.assert_close(loaded(TOKENS), model(TOKENS), rtol=1e-4, atol=1e-4)


def sparse_layers(model: torch.nn.Module) -> list[str]:
    return sorted(
        name for name, module in model.named_modules(remove_duplicate=False) if isinstance(module, SparseLinear)
    )
