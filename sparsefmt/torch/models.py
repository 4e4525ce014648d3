"""sparsify compresses the pruned layers of a model in memory. tensors_of gives such a model as tensors to save."""

from __future__ import annotations

from typing import NamedTuple

import torch

from sparsefmt.adapters.torch import rows_of
from sparsefmt.errors import in_tensor
from sparsefmt.layouts.memory import give_back
from sparsefmt.tensor import SparseTensor
from sparsefmt.torch.derived import transposed
from sparsefmt.torch.layers import (
    Holder,
    Patterns,
    expect_cpu,
    holders_of_parameters,
    is_linear,
    joined,
    modules_with_names,
    replace,
)
from sparsefmt.torch.linear import SparseLinear, dense_layer, dense_weight, leaving_signs, parameter_of_weight
from sparsefmt.torch.mapped_files import MappedFiles
from sparsefmt.torch.selection import MIN_SIZE, MIN_SPARSITY, Selection
from sparsefmt.torch.summary import Summary, summary_of

__all__ = [
    "MIN_SIZE",
    "MIN_SPARSITY",
    "ParameterCount",
    "SparsifyResult",
    "make_dense",
    "parameter_count",
    "sparsify",
    "sparsify_by",
    "tensors_of",
]


class SparsifyResult(NamedTuple):
    """What `sparsify` did. Its text is a line: how much is compressed, and what is not and why.

    Attributes:
        sparse: layers that are SparseLinear now, by name.
        dense: names of the linear layers that stay as they were, and why.
        summary: of the whole model.
    """

    sparse: dict[str, SparseLinear]
    dense: dict[str, str]
    summary: Summary | None = None

    def __str__(self) -> str:
        return repr(self) if self.summary is None else str(self.summary)


def sparsify(
    model: torch.nn.Module,
    *,
    layout: str = "auto",
    min_sparsity: float = MIN_SPARSITY,
    include: Patterns = None,
    exclude: Patterns = None,
    min_size: int | None = None,
) -> SparsifyResult:
    """Replace the pruned linear layers of a model by SparseLinear, in place.

    Replaced is each torch.nn.Linear, pruned by torch.nn.utils.prune or otherwise, and each Conv1D of transformers, of
    whose weight `min_sparsity` or more is zero, and which a sparse layout makes at least 10 % smaller. The rest stays:
    layers that are so small that they would be slower (`min_size`); subclasses of Linear, since others use their
    weights; layers that share theirs with something that stays, as an
    output layer does that is tied to an embedding; and layers with requires_grad whose weight has no nonzero at all, as
    the `lora_B` of an adapter before training. Layers that share a weight share the compressed one.

    Biases stay the Parameters that they are. Hooks of replaced layers are left behind.

    Args:
        model: a model on the CPU.
        layout: "auto" (see docs/guide.md, "Choosing a layout"), "bitmask" or "permuted".
        min_sparsity: part of the weights that must be zero, 0.0 to 1.0.
        include: patterns of module names, such as "*.mlp.*": other layers stay. None for all.
        exclude: patterns of module names: these layers stay.
        min_size: elements that a weight must have; 0 for layers of any size. By default 131,072 (`MIN_SIZE`), since
            smaller ones are slower than dense, or 0 if `layout` or `include` are given.

    Returns:
        which layers are sparse, and why others are not; `print` it for a line.

    Raises:
        ValueError: another layout, or a sparsity or size out of range.
        TypeError: patterns that are not text.
        RuntimeError: a layer is on another device. The model has not been changed then.

    Cost: reads each weight up to three times. Each dense weight is freed before the next layer is compressed, unless
    somebody else keeps it: at most one is there beside its compressed form. Tensors that stay dense and are views of a
    file, as those of safetensors are, are copied if most of the file is compressed: all of it would stay in memory.

    Example:
        >>> import torch
        >>> from sparsefmt.torch import sparsify
        >>> model = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.ReLU(), torch.nn.Linear(512, 512))
        >>> _ = torch.nn.utils.prune.l1_unstructured(model[0], "weight", amount=0.9)
        >>> sorted(sparsify(model).sparse)
        ['0']
    """
    selection = Selection.of(layout, min_sparsity, include, exclude, min_size)
    groups, dense = _groups(model, selection)
    _expect_cpu(groups)
    result = _compressed(model, selection, groups, dense)
    return result._replace(summary=summary_of(model, selection, result.dense))


def sparsify_by(model: torch.nn.Module, selection: Selection) -> SparsifyResult:
    """What `sparsify` does, for a model that has been loaded. Layers on other devices stay as they are."""
    groups, dense = _groups(model, selection)
    return _compressed(model, selection, _without_other_devices(groups, dense), dense)


def make_dense(model: torch.nn.Module, dtype: torch.dtype | None = None) -> None:
    """Replace every SparseLinear in a model by a torch.nn.Linear, or the Conv1D that it was, in place.

    The weights are Parameters with the elements of the compressed ones, bit for bit, and require gradients if the
    weights did that the layers were made of, so that the model trains as before. Layers that share their weights share
    one Parameter. Biases stay the Parameters that they are.

    Args:
        model: any model. A SparseLinear that is the model itself cannot be replaced.
        dtype: of the weights; by default the one that each has.

    Raises:
        TypeError: the model is a SparseLinear itself.
        RuntimeError: a layer has no weights yet.

    Cost: the dense weights. Each compressed one is freed as its layer is replaced, unless somebody else keeps it.
    """
    if isinstance(model, SparseLinear):
        raise TypeError("the model is a SparseLinear itself, which cannot be replaced in itself: use weight.to_dense()")
    layers = [module for module in model.modules() if isinstance(module, SparseLinear)][::-1]
    made: dict[tuple[int, bool], torch.nn.Parameter] = {}
    while layers:
        _replace_by_dense(model, layers.pop(), dtype, made)


def _replace_by_dense(
    model: torch.nn.Module,
    layer: SparseLinear,
    dtype: torch.dtype | None,
    made: dict[tuple[int, bool], torch.nn.Parameter],
) -> None:
    """Replace one layer. made: the weights of layers that others are tied to."""
    key = id(layer._tie), layer.transposed
    weight = made.get(key)
    if weight is None:
        dense = layer.weight.to_dense().to(layer.weight.dtype if dtype is None else dtype)
        trained = layer.weight_requires_grad and dense.is_floating_point()
        weight = torch.nn.Parameter(dense, requires_grad=trained)
    if layer._tie is not None:
        made[key] = weight
    replace(model, layer, dense_layer(layer, weight))


class ParameterCount(NamedTuple):
    """How many elements the parameters of a model have, as those of the dense model.

    Attributes:
        total: all of them.
        nonzero: those that are neither 0 nor -0.0.
    """

    total: int
    nonzero: int

    @property
    def sparsity(self) -> float:
        """Part of them that is zero, 0.0 to 1.0. 0.0 for a model without parameters."""
        return 1 - self.nonzero / self.total if self.total else 0.0


def parameter_count(model: torch.nn.Module) -> ParameterCount:
    """Count the elements of a model's parameters, the weights of its SparseLinear layers among them.

    Those are buffers, so that `model.parameters()`, and what counts with it, such as `num_parameters()` in
    transformers, leave them out. Parameters and weights that several layers share count once.

    Raises:
        RuntimeError: a SparseLinear has no weights yet, or a parameter is on device "meta".

    Cost: one read of the dense parameters.

    Example:
        >>> import torch
        >>> from sparsefmt.torch import parameter_count
        >>> parameter_count(torch.nn.Sequential(torch.nn.Linear(4, 2))).total
        10
    """
    total = nonzero = 0
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise RuntimeError(f'{name} is on device "meta": its elements cannot be counted before it is loaded')
        total += parameter.numel()
        nonzero += int(parameter.count_nonzero())
    seen = set()
    for module in model.modules():
        if isinstance(module, SparseLinear):
            # layers that share their weights on purpose have a tie
            tie = module if module._tie is None else module._tie
            if id(tie) not in seen:
                seen.add(id(tie))
                tensor = module.sparse_tensor()
                total += tensor.size
                nonzero += tensor.nnz
    return ParameterCount(total, nonzero)


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
    with leaving_signs():
        state = model.state_dict()
    for name, tensor in state.items():
        if name not in held:
            tensors[name] = tensor
        elif name.endswith("weight_arrays"):
            layer = sparse[held[name]]
            key = id(layer.weight_arrays), layer.transposed
            if key not in once:
                weight = layer.sparse_tensor()
                once[key] = transposed(weight, "auto") if layer.transposed else weight
            tensors[joined(held[name], "weight")] = once[key]
    return tensors


def layers_by_memory(model: torch.nn.Module) -> list[list[tuple[str, SparseLinear]]]:
    """The SparseLinear layers of a model under all of their names, those that have the same memory together."""
    groups: dict[tuple[int, bool], list[tuple[str, SparseLinear]]] = {}
    for name, module in modules_with_names(model):
        if isinstance(module, SparseLinear):
            groups.setdefault((id(module.weight_arrays), module.transposed), []).append((name, module))
    return list(groups.values())


def _groups(model: torch.nn.Module, selection: Selection) -> tuple[list[list[Holder]], dict[str, str]]:
    """The linear layers that can be replaced, their elements aside, those that share a weight together; and why not.

    A layer that has several names is there under each of them.
    """
    groups: dict[tuple[int, ...], list[Holder]] = {}
    dense: dict[str, str] = {}
    holders = holders_of_parameters(model)
    for name, module in modules_with_names(model):
        if not is_linear(module) or isinstance(module, SparseLinear):
            continue
        reason = _why_not(Holder(name, module, "weight"), selection, holders)
        if reason is None:
            groups.setdefault(_identity(module), []).append(Holder(name, module, "weight"))
        else:
            dense[name] = reason
    return list(groups.values()), dense


def _why_not(layer: Holder, selection: Selection, holders: dict[int, list[Holder]]) -> str | None:
    """What is against replacing a linear layer, its elements aside."""
    reason = selection.why_not_held(layer)
    if reason is not None:
        return reason
    for attribute in ("weight", "weight_orig"):
        for holder in holders.get(id(layer.module._parameters.get(attribute)), []):
            # torch.nn.utils.prune calls a weight that it masks weight_orig
            masked = holder.attribute == "weight_orig" and is_linear(holder.module)
            if selection.why_not_held(holder._replace(attribute="weight") if masked else holder) is not None:
                return f"its weight is also {holder.key}"
    weight = dense_weight(layer.module)[0]
    return None if weight.dtype.is_floating_point else f"its weight has dtype {weight.dtype}"


def _expect_cpu(groups: list[list[Holder]]) -> None:
    for group in groups:
        for holder in group:
            expect_cpu(holder.key, dense_weight(holder.module)[0])


def _without_other_devices(groups: list[list[Holder]], dense: dict[str, str]) -> list[list[Holder]]:
    """Those on the CPU. Of others, `dense` gets the reason."""
    on_cpu = []
    for group in groups:
        device = dense_weight(group[0].module)[0].device
        if device.type == "cpu":
            on_cpu.append(group)
        else:
            dense.update((holder.layer, f"its weight is on {device}") for holder in group)
    groups.clear()
    return on_cpu


def _identity(module: torch.nn.Module) -> tuple[int, ...]:
    """The same for layers that have the same weight."""
    tensors = [getattr(module, name, None) for name in ("weight_orig", "weight_mask")]
    if any(tensor is None for tensor in tensors):
        tensors = [module.weight]
    return tuple(map(id, tensors))


def _compressed(
    model: torch.nn.Module, selection: Selection, groups: list[list[Holder]], dense: dict[str, str]
) -> SparsifyResult:
    """Replace the layers that are worth it. Empties `groups`, so that nothing here keeps a weight after its turn."""
    result, files = SparsifyResult({}, dense), MappedFiles()
    groups.reverse()
    while groups:
        _compress(model, selection, groups.pop(), result, files)
    files.release(model)
    if result.sparse:
        give_back()
    return result


def _compress(
    model: torch.nn.Module, selection: Selection, group: list[Holder], result: SparsifyResult, files: MappedFiles
) -> None:
    """Replace the layers that share one weight, if that is worth it."""
    reason = _why_not_worth(group[0].module, selection)
    if reason is not None:
        result.dense.update((holder.layer, reason) for holder in group)
        return
    files.compressed(parameter_of_weight(group[0].module))
    first = SparseLinear.from_linear(group[0].module, selection.layout)
    layers = {id(group[0].module): first}
    for holder in group:
        layer = layers.get(id(holder.module))
        if layer is None:
            layer = layers[id(holder.module)] = _sharing(first, holder.module)
        replace(model, holder.module, layer)
        layer.name = holder.layer
        result.sparse[holder.layer] = layer


def _why_not_worth(module: torch.nn.Module, selection: Selection) -> str | None:
    weight, _ = dense_weight(module)
    with in_tensor("weight"):
        matrix = rows_of(weight)
    trainable = parameter_of_weight(module).requires_grad
    return selection.why_not_worth(matrix.filling(matrix.survey()), trainable=trainable)


def _sharing(layer: SparseLinear, module: torch.nn.Module) -> SparseLinear:
    """A SparseLinear for a layer that has the same weight as another, with its own bias."""
    made = SparseLinear(layer.in_features, layer.out_features, bias=False, device="cpu", transposed=layer.transposed)
    made.share_weight(layer)
    made.bias = getattr(module, "bias", None)
    return made.train(module.training)
