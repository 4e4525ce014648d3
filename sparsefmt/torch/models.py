"""sparsify: compresses the pruned linear layers and convolutions of a model in memory."""

from __future__ import annotations

from typing import NamedTuple

import torch

from sparsefmt.adapters.torch import rows_of
from sparsefmt.errors import in_tensor
from sparsefmt.layouts.memory import give_back
from sparsefmt.quantizing import quantized
from sparsefmt.tensor import SparseTensor
from sparsefmt.torch import notebook
from sparsefmt.torch.attention import note_output_projections
from sparsefmt.torch.compress_experts import compress_stack, stacks_to_compress
from sparsefmt.torch.compute_dtype import ComputeDtype, checked, widen
from sparsefmt.torch.convolution import empty_convolution
from sparsefmt.torch.dense_layers import dense_weight, effective, is_conv1d, parameter_of_weight
from sparsefmt.torch.expert_kinds import what_of
from sparsefmt.torch.layers import (
    Holder,
    compressed_layer,
    expect_cpu,
    holders_of_parameters,
    is_convolution,
    is_layer,
    modules_with_names,
    replace,
)
from sparsefmt.torch.linear import SparseLinear
from sparsefmt.torch.mapped_files import MappedFiles
from sparsefmt.torch.scales import checked_activations
from sparsefmt.torch.selection import MIN_SPARSITY, Patterns, Selection
from sparsefmt.torch.stack import SparseStack
from sparsefmt.torch.summary import Quantizing, Summary, summary_of
from sparsefmt.torch.widened import pass_on

CONVOLUTION_NOT_QUANTIZED = "it is a convolution"
NOT_QUANTIZED = "it is a Conv1D, whose weight has columns for rows in files"


class SparsifyResult(NamedTuple):
    """What `sparsify` did. Its text is a line: how much is compressed, and what is not and why.

    Attributes:
        sparse: layers that are SparseLinear, SparseConv1d or SparseConv2d now, by name; and each SparseStack that has
            taken the place of the weights of experts or attention, by the name of these.
        dense: names of the linear layers, convolutions, and weights of experts, that stay as they were, and why.
        summary: of the whole model.
        quantizing: what quantizing has lost, by name of the layer, and why others were not quantized; None if nothing
            was to be quantized.
    """

    sparse: dict[str, SparseLinear | SparseStack]
    dense: dict[str, str]
    summary: Summary | None = None
    quantizing: Quantizing | None = None

    def __str__(self) -> str:
        return repr(self) if self.summary is None else str(self.summary)

    def _repr_html_(self) -> str:
        """What notebooks show: the line, a table of the layers with pictures of their weights, and what is dense."""
        return notebook.of_model(self.summary, self.sparse, self.dense)


def sparsify(
    model: torch.nn.Module,
    *,
    layout: str = "auto",
    min_sparsity: float = MIN_SPARSITY,
    include: Patterns = None,
    exclude: Patterns = None,
    min_size: int | None = None,
    compute_dtype: ComputeDtype = None,
    values: str | None = None,
    group_size: int | None = None,
    scale: str = "absmax",
    activations: str | None = None,
) -> SparsifyResult:
    """Replace the pruned linear layers of a model by SparseLinear, in place.

    Replaced is each torch.nn.Linear, pruned by torch.nn.utils.prune or otherwise, and each Conv1D of transformers, of
    whose weight `min_sparsity` or more is zero, and which a sparse layout makes at least 10 % smaller. The rest stays:
    layers that are so small that they would be slower (`min_size`); subclasses of Linear, since others use their
    weights; layers that share theirs with something that stays, as an
    output layer does that is tied to an embedding; and layers with requires_grad whose weight has no nonzero at all, as
    the `lora_B` of an adapter before training. Layers that share a weight share the compressed one.

    Convolutions of one or two dimensions, in one group, become SparseConv1d and SparseConv2d where that is faster: see
    docs/pytorch.md, "Convolutions".

    Weights of experts, which transformers keeps in Parameters of three dimensions, are compressed by the same rule,
    each Parameter as a whole: see docs/pytorch.md, "Mixtures of experts". Their modules stay the objects that they are.

    A torch.nn.MultiheadAttention stays the object that it was, with its projections compressed: see docs/pytorch.md,
    "MultiheadAttention".

    Biases stay the Parameters that they are. Hooks of replaced layers are left behind.

    Args:
        model: a model on the CPU.
        layout: "auto" (see docs/guide.md, "Choosing a layout"), "bitmask" or "permuted".
        min_sparsity: part of the weights that must be zero, 0.0 to 1.0.
        include: patterns of module names, such as "*.mlp.*", in which `*` stands for anything: other layers stay. None
            for all.
        exclude: patterns of module names: these layers stay.
        min_size: elements that a weight must have; 0 for layers of any size. By default 131,072 (`MIN_SIZE`), since
            smaller ones are slower than dense, or 0 if `layout` or `include` are given. Of experts, each must have so
            many.
        compute_dtype: "float32" or torch.float32 for a bfloat16 or float16 model that shall compute in float32: the
            compressed weights keep their 16 bits, and all other parameters and buffers of 16 bits become float32, in
            place. See docs/pytorch.md, "Weights in 16 bits, activations in float32". None changes no dtype.
        values: "int8" or "fp8" (F8_E4M3) to round the weights of replaced layers to elements of one byte and scales,
            which loses something: the result says how much. See docs/pytorch.md, "Values in eight bits". None keeps
            every bit. Layers that stay dense are not rounded, nor is a Conv1D, whose rows are columns in files, nor
            experts.
        group_size: columns that share a scale: 32, 64 or 128, which must divide the columns of every replaced layer.
            None for a scale for each row.
        scale: "absmax", or "mse" for scales with the least squared error that was found.
        activations: "int8" to round activations to eight bits too, for values="int8".

    Returns:
        which layers are sparse, and why others are not; `print` it for a line.

    Raises:
        ValueError: another layout, `compute_dtype`, `values` or the like, or a sparsity or size out of range.
        TypeError: patterns that are not text.
        RuntimeError: a layer is on another device. The model has not been changed then.
        SparsefmtError: a weight cannot be quantized, since it has NaN, Inf or columns that groups do not divide.
            Layers before it have been replaced then.

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
    selection, computing = Selection.of(layout, min_sparsity, include, exclude, min_size), checked(compute_dtype)
    selection = selection.quantizing(values, group_size, scale, checked_activations(activations))
    if activations is not None and values is None:
        raise ValueError("activations='int8' is for values='int8'")
    groups, dense = _groups(model, selection)
    stacks = stacks_to_compress(model, selection, dense)
    _expect_cpu(groups)
    for holder in stacks:
        expect_cpu(holder.key, getattr(holder.module, holder.attribute))
    result = _compressed(model, selection, (groups, stacks), dense)
    if computing is not None:
        widen(model)
    return result._replace(summary=summary_of(model, selection, result.dense, result.quantizing))


def sparsify_by(model: torch.nn.Module, selection: Selection) -> SparsifyResult:
    """What `sparsify` does, for a model that has been loaded. Layers on other devices stay as they are."""
    groups, dense = _groups(model, selection)
    stacks = stacks_to_compress(model, selection, dense, others=True)
    return _compressed(model, selection, (_without_other_devices(groups, dense), stacks), dense)


def _groups(model: torch.nn.Module, selection: Selection) -> tuple[list[list[Holder]], dict[str, str]]:
    """The linear layers that can be replaced, their elements aside, those that share a weight together; and why not.

    A layer that has several names is there under each of them.
    """
    note_output_projections(model)
    groups: dict[tuple[int, ...], list[Holder]] = {}
    dense: dict[str, str] = {}
    holders = holders_of_parameters(model)
    for name, module in modules_with_names(model):
        if not is_layer(module) or isinstance(module, SparseLinear):
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
            masked = holder.attribute == "weight_orig" and is_layer(holder.module)
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
    model: torch.nn.Module,
    selection: Selection,
    found: tuple[list[list[Holder]], list[Holder]],
    dense: dict[str, str],
) -> SparsifyResult:
    """Replace what is worth it of layers, in groups that share a weight, and of weights of experts.

    Empties the groups, so that nothing here keeps a weight after its turn.
    """
    groups, stacks = found
    quantizing = None if selection.quantization is None else Quantizing({}, {})
    result, files = SparsifyResult({}, dense, None, quantizing), MappedFiles()
    groups.reverse()
    while groups:
        _compress(model, selection, groups.pop(), result, files)
    for holder in stacks:
        made = compress_stack(holder, selection, files)
        if isinstance(made, str):
            result.dense[holder.key] = made
        else:
            result.sparse[holder.key] = made
            if quantizing is not None:
                quantizing.left_out[holder.key] = why_stack_not_quantized(holder.module)
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
    first = _layer_of(group[0], selection, result)
    layers = {id(group[0].module): first}
    for holder in group:
        layer = layers.get(id(holder.module))
        if layer is None:
            layer = layers[id(holder.module)] = _sharing(first, holder.module)
        replace(model, holder.module, layer)
        layer.name = holder.layer
        result.sparse[holder.layer] = layer


def _layer_of(holder: Holder, selection: Selection, result: SparsifyResult) -> SparseLinear:
    """The SparseLinear for a layer, quantized if that is asked for. `result` gets what that loses, or why it is not."""
    how, linear = selection.quantization, holder.module
    if how is None or result.quantizing is None:
        return compressed_layer(linear, selection.layout)
    if is_conv1d(linear) or is_convolution(linear):
        result.quantizing.left_out[holder.layer] = why_not_quantized(linear)
        return compressed_layer(linear, selection.layout)
    weight, _ = dense_weight(linear)
    with in_tensor(holder.key):
        made = quantized(rows_of(weight), how)
    result.quantizing.losses[holder.layer] = made.loss
    return SparseLinear.from_tensor(
        SparseTensor._from_rows(made.rows, selection.layout),
        effective(linear, "bias"),
        scale=made.scale,
        activations=selection.activations,
        dtype=weight.dtype,
    ).like(linear)


def _why_not_worth(module: torch.nn.Module, selection: Selection) -> str | None:
    weight, _ = dense_weight(module)
    with in_tensor("weight"):
        matrix = rows_of(weight)
    trainable = parameter_of_weight(module).requires_grad
    return selection.why_not_worth_of(module, matrix.filling(matrix.survey()), trainable=trainable)


def why_not_quantized(module: torch.nn.Module) -> str:
    """Why the weight of a layer cannot be quantized that is a Conv1D or a convolution."""
    return CONVOLUTION_NOT_QUANTIZED if is_convolution(module) else NOT_QUANTIZED


def why_stack_not_quantized(module: torch.nn.Module) -> str:
    """Why weights in a stack cannot be quantized."""
    return f"it holds the weights of {what_of(module)}"


def why_multiplied_out(module: torch.nn.Module) -> str:
    """Why weights in a stack have no scales where they have some in their file."""
    return f"the scales of its elements are multiplied into it, since {what_of(module)} cannot have any"


def _sharing(layer: SparseLinear, module: torch.nn.Module) -> SparseLinear:
    """A SparseLinear for a layer that has the same weight as another, with its own bias."""
    made = empty_convolution(module) if is_convolution(module) else layer.without_weight()
    made.share_weight(layer)
    made.bias = getattr(module, "bias", None)
    pass_on(module, made, ["bias"])
    return made.train(module.training)
