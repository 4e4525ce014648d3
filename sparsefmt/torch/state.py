"""The state of a model with SparseLinear layers, as tensors to save, and which of the layers share memory."""

from __future__ import annotations

import torch

from sparsefmt.tensor import SparseTensor
from sparsefmt.torch.layers import joined, modules_with_names
from sparsefmt.torch.linear import SparseLinear
from sparsefmt.torch.signs import leaving_signs
from sparsefmt.torch.stack import SparseStack


def tensors_of(model: torch.nn.Module) -> dict[str, torch.Tensor | SparseTensor]:
    """The state of a model under the names of the dense model: a SparseTensor for the weight of each SparseLinear.

    Layers that share their weights give the same SparseTensor. Weights of what was a Conv1D are transposed back. The
    weights of experts in a SparseStack are one SparseTensor, in the shape of the Parameter that they were.

    Cost: nothing is copied but what is transposed, and experts whose tiles do not fit together.

    Example:
        >>> sparsefmt.save_file(sparsefmt.torch.tensors_of(model), "model.sparsefmt")
    """
    return {
        name: tensor.tensor() if isinstance(tensor, SparseStack) else tensor
        for name, tensor in tensors_and_stacks_of(model).items()
    }


def tensors_and_stacks_of(model: torch.nn.Module) -> dict[str, torch.Tensor | SparseTensor | SparseStack]:
    """As `tensors_of`, with each SparseStack as it is."""
    held: dict[str, str] = {}
    tensors: dict[str, torch.Tensor | SparseTensor | SparseStack] = {}
    stacks = {name: module for name, module in modules_with_names(model) if isinstance(module, SparseStack)}
    once: dict[tuple[int, bool], SparseTensor] = {}
    sparse = {name: module for name, module in modules_with_names(model) if isinstance(module, SparseLinear)}
    for prefix in sparse:
        held |= {joined(prefix, buffer): prefix for buffer in ("weight_arrays", "weight_table")}
    with leaving_signs():
        state = model.state_dict()
    for name, tensor in state.items():
        if name not in held:
            tensors[name] = tensor
        elif held[name].rpartition(".")[0] in stacks:
            stack = held[name].rpartition(".")[0]
            tensors[stack] = stacks[stack]
        elif name.endswith("weight_arrays"):
            layer = sparse[held[name]]
            key = id(layer.weight_arrays), layer.transposed
            if key not in once:
                once[key] = layer.stored_tensor()
            tensors[joined(held[name], "weight")] = once[key]
    return tensors


def layers_by_memory(model: torch.nn.Module) -> list[list[tuple[str, SparseLinear]]]:
    """The SparseLinear layers of a model under all of their names, those that have the same memory together."""
    groups: dict[tuple[int, bool], list[tuple[str, SparseLinear]]] = {}
    for name, module in modules_with_names(model):
        if isinstance(module, SparseLinear):
            groups.setdefault((id(module.weight_arrays), module.transposed), []).append((name, module))
    return list(groups.values())
