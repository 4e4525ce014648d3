"""Compressed weights and layers, as torch and numpy have them."""

from __future__ import annotations

import numpy as np
import torch
import torch._dynamo
import torch.nn.utils.prune
from helpers import weights

from sparsefmt import SparseTensor
from sparsefmt.dtypes import DTYPES
from sparsefmt.torch import SparseLinear

LAYOUTS = ["dense", "bitmask", "permuted"]
FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}


def sparse_tensor(
    rows: int = 60, cols: int = 80, dtype: str = "F32", layout: str = "auto", sparsity: float = 0.8, seed: int = 0
) -> SparseTensor:
    array = weights(np.random.default_rng(seed), (rows, cols), DTYPES[dtype].numpy, sparsity, True)
    return SparseTensor.from_dense(array, layout)


def layer_of(*args: object, bias: bool = True, **keywords: object) -> SparseLinear:
    weight = sparse_tensor(*args, **keywords)  # type: ignore[arg-type]
    return SparseLinear.from_tensor(weight, torch.randn(weight.shape[0]) if bias else None)


def dense_twin(layer: SparseLinear) -> torch.nn.Linear:
    """A torch.nn.Linear with the same weights in float64, and gradients for them."""
    twin = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, dtype=torch.float64)
    with torch.no_grad():
        twin.weight.copy_(torch.from_numpy(layer.weight.tensor.todense().astype(np.float64)))
        if layer.bias is not None:
            twin.bias.copy_(layer.bias)
    return twin
