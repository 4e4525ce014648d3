"""A state dict that a caller gives to `save_pretrained`, under the names of the dense model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sparsefmt.tensor import SparseTensor
from sparsefmt.torch.derived import transposed
from sparsefmt.torch.layers import joined, modules_with_names
from sparsefmt.torch.linear import SIGNS, SparseLinear
from sparsefmt.torch.stack import SparseStack
from sparsefmt.torch.trainable import TrainableSparseLinear

_WEIGHTS = ("weight_arrays", "weight_table")
_PARTS = (*_WEIGHTS, "weight_scale", "input_scale", SIGNS)


def compressed_state(
    model: torch.nn.Module, given: Mapping[str, Any]
) -> tuple[dict[str, torch.Tensor | SparseTensor | SparseStack], dict[str, SparseLinear]]:
    """What `tensors_and_stacks_of(model)` is, of a state dict in place of the model's own; and the layers that hold its
    weights.

    Args:
        model: the model of which it is the state. It is not changed.
        given: what `model.state_dict()` or `tensors_of(model)` has, or some of it: the buffers of a SparseLinear, or
            its weight, dense or as a SparseTensor. It is not changed. Other names are taken as they are.

    Raises:
        ValueError: one of the two buffers of a weight without the other, buffers that are not those of such a layer, or
            some experts of a stack without the others.

    Cost: weights that are not the model's own are verified.
    """
    state = dict(given)
    layers: dict[str, SparseLinear] = {}
    made: dict[tuple[int, bool], tuple[SparseLinear, SparseTensor]] = {}
    of_stacks = {id(layer) for module in model.modules() if isinstance(module, SparseStack) for layer in module}
    for name, module in modules_with_names(model):
        if isinstance(module, SparseStack):
            _take_stack(state, name, module)
        elif isinstance(module, TrainableSparseLinear) and joined(name, "values") in state:
            _take_trained(state, name, module)
        elif isinstance(module, SparseLinear) and id(module) not in of_stacks:
            parts = _parts_of(state, name)
            if parts is None:
                continue
            # tied layers have one tensor, as in the model
            first = parts["weight_arrays"].data_ptr() if "weight_arrays" in parts else id(parts["weight"])
            key = first, module.transposed
            if key not in made:
                holder = _holding(module, parts, name)
                made[key] = holder, holder.stored_tensor()
            weight = joined(name, "weight")
            layers[weight], state[weight] = made[key]
    return state, layers


def _parts_of(state: dict[str, Any], name: str) -> dict[str, Any] | None:
    """Take what belongs to the compressed weight of a layer out of a state; None if there is nothing.

    Raises:
        ValueError: a part is missing.
    """
    parts = {part: state.pop(joined(name, part)) for part in _PARTS if joined(name, part) in state}
    if not parts:
        return None
    weight = joined(name, "weight")
    missing = [part for part in _WEIGHTS if part not in parts]
    if missing and weight in state and not set(parts) & set(_WEIGHTS):
        # a weight and its scales, which belong together
        parts["weight"] = state.pop(weight)
    elif missing:
        had, lacked = joined(name, next(iter(parts))), joined(name, missing[0])
        raise ValueError(f"state_dict has {had!r}, and lacks {lacked!r}: a compressed weight is saved with both")
    return parts


def _take_trained(state: dict[str, Any], name: str, layer: TrainableSparseLinear) -> None:
    """Put the weight of a layer that is trained into a state, in place of its values and their positions."""
    values = state.pop(joined(name, "values"))
    state.pop(joined(name, "positions"), None)
    if values.data_ptr() != layer.values.data_ptr():
        raise ValueError(
            f"state_dict has {joined(name, 'values')!r}, which are not those of the model: load them into it, and save"
            " it without a state_dict"
        )
    state[joined(name, "weight")] = layer.sparse_tensor()


def _take_stack(state: dict[str, Any], name: str, stack: SparseStack) -> None:
    """Put a stack into a state, in place of the parts of its experts, or of one tensor of all of them."""
    whole = state.get(name)
    if isinstance(whole, SparseTensor):
        matrices = [matrix for matrix in stack.state_of(whole) if isinstance(matrix, SparseTensor)]
        turned = [transposed(matrix, "auto") for matrix in matrices] if stack.transposed else matrices
        state[name] = SparseStack.from_matrices(turned, stack.shape, stack.transposed)
        return
    parts = [_parts_of(state, joined(name, str(number))) for number in range(len(stack))]
    lacking = [number for number, part in enumerate(parts) if part is None]
    if len(lacking) == len(parts):
        return
    if lacking:
        raise ValueError(f"state_dict has experts of {name!r}, and lacks number {lacking[0]}: they are saved together")
    held = [
        _holding(layer, part, joined(name, str(number)))
        for number, (layer, part) in enumerate(zip(stack.layers, parts, strict=True))
        if part is not None
    ]
    state[name] = SparseStack(held, stack.shape, stack.transposed)


def _holding(layer: SparseLinear, parts: dict[str, Any], name: str) -> SparseLinear:
    """A layer like this one, with the weights of the state."""
    made = layer.without_weight()
    made.compute_dtype = layer.compute_dtype
    try:
        made.load_state_dict(parts, strict=False, assign=True)
    except RuntimeError as error:
        raise ValueError(f"state_dict: {joined(name, 'weight')}: {error}") from None
    made.activations = layer.activations if made.weight_scale is not None else None
    return made
