"""From Parameters of experts to stacks of compressed matrices, by the rule of selection.py, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sparsefmt.adapters import Rows
from sparsefmt.adapters.torch import rows_of
from sparsefmt.errors import in_tensor
from sparsefmt.layouts.sizes import Filling
from sparsefmt.tensor import SparseTensor
from sparsefmt.torch import derived
from sparsefmt.torch.derived import torch_dtype_of, transposed
from sparsefmt.torch.expert_kinds import Projection, is_attention, projection_of, projections_of, what_of
from sparsefmt.torch.experts import put_parameter, put_stack
from sparsefmt.torch.layers import Holder, holders_of_parameters, joined, modules_with_names
from sparsefmt.torch.mapped_files import MappedFiles
from sparsefmt.torch.matrix_views import as_matrix
from sparsefmt.torch.selection import Selection, why_dense
from sparsefmt.torch.stack import SparseStack
from sparsefmt.torch.stored_experts import StoredExperts
from sparsefmt.torch.stored_tensors import Stored
from sparsefmt.torch.widened import note


def stacks_to_compress(
    model: torch.nn.Module, selection: Selection, dense: dict[str, str], *, others: bool = False
) -> list[Holder]:
    """The Parameters of experts that can be compressed, their elements aside. Of others, `dense` gets the reason.

    others: leave those on other devices than the CPU as they are.
    """
    found = []
    for holders in holders_of_parameters(model).values():
        holder = next((each for each in holders if projection_of(each.module, each.attribute) is not None), None)
        if holder is None:
            continue
        weight = holder.module._parameters[holder.attribute]
        assert weight is not None
        reasons = why_dense(holders, selection)
        if not weight.dtype.is_floating_point:
            reasons = {holder.key: f"its weight has dtype {weight.dtype}"}
        elif others and weight.device.type != "cpu":
            reasons = {holder.key: f"its weight is on {weight.device}"}
        if reasons:
            dense.update(reasons)
        else:
            found.append(holder)
    masked = [
        joined(name, projection.attribute)
        for name, module in modules_with_names(model)
        for projection in projections_of(module)
        if f"{projection.attribute}_orig" in module._parameters
    ]
    dense.update(dict.fromkeys(masked, "torch.nn.utils.prune masks it: call its remove() first"))
    return found


def compress_stack(holder: Holder, selection: Selection, files: MappedFiles) -> SparseStack | str:
    """Compress the weights of experts, or return why they stay dense."""
    module, projection = holder.module, _projection(holder)
    weight = module._parameters[holder.attribute]
    assert weight is not None
    with in_tensor(holder.key):
        rows = rows_of_stack(projection, weight.detach())
    matrices = compressed_matrices(rows, holder, selection, trainable=weight.requires_grad)
    if isinstance(matrices, str):
        return matrices
    files.compressed(weight)
    return put_matrices(holder, matrices, weight)


def compressed_matrices(
    rows: Rows, holder: Holder, selection: Selection, *, trainable: bool, filled: bool = False
) -> list[SparseTensor] | str:
    """The matrices of a stack, compressed, or why they stay dense. filled: as in `read_stack`."""
    count = rows.shape[0]
    reason = selection.why_not_worth_of_stack(holder, rows.filling(rows.survey()), trainable=trainable)
    if reason is not None and not filled:
        return reason
    tensor = SparseTensor._from_rows(rows, selection.layout)
    return [tensor[number] for number in range(count)]


def read_stack(
    stored: Stored, holder: Holder, selection: Selection, stack: SparseStack | None
) -> list[SparseTensor] | str:
    """The weights of experts in a file as compressed matrices (out_features, in_features), or why they stay dense.

    stack: what they are for, if there is one, which takes them however few zeros they have.
    """
    projection, filled = _projection(holder), stack is not None
    parameter = holder.module._parameters.get(holder.attribute)
    trainable = parameter is not None and parameter.requires_grad
    if stored.is_scaled:
        if not isinstance(stored, StoredExperts):
            return f"it has scales, which {what_of(holder.module)} cannot have"
        like = parameter if stack is None else stack
        assert like is not None
        matrices = turned(projection, stored.matrices(projection.experts, selection.layout), selection.layout)
        matrices = [derived.cast(matrix, like.dtype) for matrix in matrices]
        reason = selection.why_not_worth_of_stack(holder, filling_of(matrices), trainable=trainable)
        return matrices if reason is None or filled else reason
    if not stored.is_stored_sparse:
        dense = stored.dense()
        if not dense.is_floating_point():
            return f"its weight has dtype {dense.dtype}"
        rows = rows_of_stack(projection, dense)
        return compressed_matrices(rows, holder, selection, trainable=trainable, filled=filled)
    reason = selection.why_not_worth_of_stack(holder, stored.filling(), trainable=trainable)
    if reason is not None and not filled:
        return reason
    if projection.by_heads:
        return turned(projection, [as_matrix(stored.compressed(selection.layout))], selection.layout)
    return turned(projection, stored.matrices(projection.experts, selection.layout), selection.layout)


def turned(projection: Projection, matrices: list[SparseTensor], layout: str) -> list[SparseTensor]:
    """Matrices as files have them as (out_features, in_features)."""
    return [transposed(matrix, layout) for matrix in matrices] if projection.swapped else matrices


def filling_of(matrices: Sequence[SparseTensor]) -> Filling:
    """How full compressed matrices of one shape are together, as `auto` judges it."""
    found = []
    for matrix in matrices:
        if matrix.layout == "dense":
            rows = derived.rows_of(matrix)
            found.append(rows.filling(rows.survey()))
        else:
            found.append(matrix.filling())
    return Filling.together(found)


def rows_of_stack(projection: Projection, weight: torch.Tensor) -> Rows:
    """The rows of all matrices (out_features, in_features) of a Parameter, as a stack."""
    rows = rows_of(projection.matrices(weight))
    rows.stack(2)
    return rows


def put_matrices(holder: Holder, matrices: Sequence[SparseTensor], like: torch.Tensor) -> SparseStack:
    """Give a module of experts compressed weights, (out_features, in_features) each, in place of a Parameter.

    like: the Parameter, or what stands for it.
    """
    module, attribute = holder.module, holder.attribute
    stack = SparseStack.from_matrices(matrices, like.shape, _projection(holder).swapped)
    stack.name, stack.weight_requires_grad = holder.key, like.requires_grad
    stack.holds = "projections" if is_attention(module) else "experts"
    for number, layer in enumerate(stack.layers):
        layer.name = f"{holder.key}.{number}"
    put_stack(module, attribute, stack)
    return stack.train(module.training)


def make_stack_dense(module: torch.nn.Module, attribute: str, dtype: torch.dtype | None) -> None:
    """Give a module of experts its Parameter again. dtype: as in `make_dense`."""
    stack = module._modules[attribute]
    assert isinstance(stack, SparseStack)
    dense = stack.to_dense()
    dense = dense if dtype is None else dense.to(dtype)
    parameter = torch.nn.Parameter(dense, requires_grad=stack.weight_requires_grad and dense.is_floating_point())
    held = torch_dtype_of(stack.layers[0].sparse_tensor())
    if stack.dtype != held:
        note(module, attribute, held)
    put_parameter(module, attribute, parameter)


def _projection(holder: Holder) -> Projection:
    found = projection_of(holder.module, holder.attribute)
    assert found is not None
    return found
