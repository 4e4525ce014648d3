"""sparsify: the pruned layers of a model in memory, compressed. tensors_of: such a model as tensors to save."""

from __future__ import annotations

from typing import NamedTuple

import torch

from sparsefmt.dtypes import DType
from sparsefmt.frameworks.pytorch import dtype_of, intake_of
from sparsefmt.layouts import choose
from sparsefmt.tensor import SparseTensor
from sparsefmt.torch.derived import transposed
from sparsefmt.torch.layers import (
    Patterns,
    expect_cpu,
    is_linear,
    is_replaceable,
    joined,
    matcher,
    matches,
    modules_with_names,
    replace,
    users_of_parameters,
)
from sparsefmt.torch.linear import SparseLinear, dense_weight

MIN_SPARSITY = 0.4
"""Sparsity from which `sparsify` replaces a layer. At 50 %, both layouts were faster than dense float32 products with
1 to 128 tokens (docs/speed.md), and `bitmask` takes about as long at every sparsity."""


class SparsifyResult(NamedTuple):
    """What `sparsify` did.

    Attributes:
        sparse: layers that are SparseLinear now, by name.
        dense: names of the linear layers that stay as they were, and why.
    """

    sparse: dict[str, SparseLinear]
    dense: dict[str, str]


def sparsify(
    model: torch.nn.Module, *, layout: str = "auto", min_sparsity: float = MIN_SPARSITY, include: Patterns = None
) -> SparsifyResult:
    """Replace the pruned linear layers of a model by SparseLinear, in place.

    Replaced is each torch.nn.Linear, pruned by torch.nn.utils.prune or otherwise, and each Conv1D of transformers, of
    whose weight `min_sparsity` or more is zero, and which a sparse layout makes at least 10 % smaller. The rest stays:
    subclasses of Linear, since others use their weights; and layers that share theirs with something else than such a
    layer, as an output layer does that is tied to an embedding. Layers that share a weight share the compressed one.

    Biases stay the Parameters that they are. Hooks of replaced layers are left behind.

    Args:
        model: a model on the CPU.
        layout: "auto" (see README, "Choosing a layout"), "bitmask" or "permuted".
        min_sparsity: part of the weights that must be zero, 0.0 to 1.0.
        include: patterns of module names, such as "*.mlp.*": other layers stay.

    Returns:
        which layers are sparse, and why others are not.

    Raises:
        ValueError: another layout.
        RuntimeError: a layer is on another device. The model has not been changed then.

    Cost: reads each weight up to three times. A dense weight is let go as its layer is replaced.

    Example:
        >>> import torch
        >>> from sparsefmt.torch import sparsify
        >>> model = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.ReLU(), torch.nn.Linear(256, 256))
        >>> _ = torch.nn.utils.prune.l1_unstructured(model[0], "weight", amount=0.9)
        >>> sorted(sparsify(model).sparse)
        ['0']
    """
    if layout not in ("auto", "bitmask", "permuted"):
        raise ValueError(f"layout must be 'auto', 'bitmask' or 'permuted', not {layout!r}")
    patterns = matcher(include)
    result = SparsifyResult({}, {})
    wanted: dict[torch.nn.Module, list[str]] = {}
    users = users_of_parameters(model)
    for name, module in modules_with_names(model):
        if not is_linear(module) or isinstance(module, SparseLinear):
            continue
        reason = _why_not(name, module, patterns, users)
        if reason is None:
            wanted.setdefault(module, []).append(name)
        else:
            result.dense[name] = reason
    made: dict[tuple[int, ...], SparseLinear | str] = {}
    for module, names in wanted.items():
        key = _identity(module)
        if key not in made:
            made[key] = _made(module, layout, min_sparsity)
        found = made[key]
        if isinstance(found, str):
            result.dense.update(dict.fromkeys(names, found))
            continue
        layer = found
        if any(layer is other for other in result.sparse.values()):
            layer = _sharing(found, module)
        replace(model, module, layer)
        result.sparse.update(dict.fromkeys(names, layer))
    return result


def tensors_of(model: torch.nn.Module) -> dict[str, torch.Tensor | SparseTensor]:
    """The state of a model under the names of the dense model: a SparseTensor for the weight of each SparseLinear.

    Layers that share their weights give the same SparseTensor. Weights of what was a Conv1D are transposed back.
    """
    held: dict[str, str] = {}
    tensors: dict[str, torch.Tensor | SparseTensor] = {}
    once: dict[tuple[int, bool], SparseTensor] = {}
    sparse = {name: module for name, module in modules_with_names(model) if isinstance(module, SparseLinear)}
    for prefix in sparse:
        held |= {joined(prefix, buffer): prefix for buffer in ("weight_arrays", "weight_table")}
    for name, tensor in model.state_dict().items():
        if name not in held:
            tensors[name] = tensor
        elif name.endswith("weight_arrays"):
            layer = sparse[held[name]]
            key = id(layer.weight_arrays), layer.transposed
            if key not in once:
                weight = layer.sparse_tensor()
                once[key] = transposed(weight, weight.layout) if layer.transposed else weight
            tensors[joined(held[name], "weight")] = once[key]
    return tensors


def _why_not(
    name: str,
    module: torch.nn.Module,
    patterns: list[str],
    users: dict[int, list[tuple[str, torch.nn.Module]]],
) -> str | None:
    """What stands against replacing a linear layer, its zeros aside."""
    if not matches(name, patterns):
        return "it is not included"
    if not is_replaceable(module):
        return f"it is a {type(module).__name__}, whose weight may be used without calling it"
    if not name:
        return "it is the model itself: use SparseLinear.from_linear"
    for attribute in ("weight", "weight_orig"):
        for other, user in users.get(id(module._parameters.get(attribute)), []):
            if not is_replaceable(user):
                return f"its weight is also {other}"
    weight = dense_weight(module)[0]
    if not weight.dtype.is_floating_point:
        return f"its weight has dtype {weight.dtype}"
    expect_cpu(joined(name, "weight"), weight)
    return None


def _identity(module: torch.nn.Module) -> tuple[int, ...]:
    """The same for layers that have the same weight."""
    tensors = [getattr(module, name, None) for name in ("weight_orig", "weight_mask")]
    if any(tensor is None for tensor in tensors):
        tensors = [module.weight]
    return tuple(map(id, tensors))


def _made(module: torch.nn.Module, layout: str, min_sparsity: float) -> SparseLinear | str:
    """The layer, or why it is not worth it."""
    weight, _ = dense_weight(module)
    intake = intake_of("weight", weight)
    nnz = intake.survey().nnz
    dtype: DType = dtype_of("weight", weight)
    sparsity = 1 - nnz / weight.numel() if weight.numel() else 0.0
    if sparsity < min_sparsity:
        return f"{sparsity:.1%} of its weight is zero, which is less than {min_sparsity:.1%}"
    if not choose.can_be_sparse(dtype, intake.shape, intake.cols):
        return "no sparse layout can hold its weight"
    if choose.for_computing(dtype, intake.rows, intake.cols, nnz) == "dense":
        return "no sparse layout makes it 10 % smaller"
    return SparseLinear.from_linear(module, layout)


def _sharing(layer: SparseLinear, module: torch.nn.Module) -> SparseLinear:
    """A SparseLinear for a layer that has the same weight as another, with its own bias."""
    made = SparseLinear(layer.in_features, layer.out_features, bias=False, device="cpu", transposed=layer.transposed)
    made.share_weight(layer)
    made.bias = getattr(module, "bias", None)
    return made.train(module.training)
