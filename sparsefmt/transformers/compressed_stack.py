"""StackStandIn: the weights of several experts on their way through transformers, each compressed by itself.

transformers merges the experts of a checkpoint into one tensor while it loads them, and splits them again when it
saves: `stack` of all experts, `cat` of two projections, `transpose`; `split`, `squeeze` and the like. What these do to
compressed matrices is done here, a few rows at a time, so that no expert is ever dense. Any other operation gets the
dense tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_map

from sparsefmt.adapters.torch import as_torch, rows_of
from sparsefmt.tensor import SparseTensor
from sparsefmt.torch import stacking
from sparsefmt.torch.derived import cast, torch_dtype_of, transposed
from sparsefmt.transformers.compressed_parameter import StandIn

_aten = torch.ops.aten


class StackStandIn(torch.Tensor):
    """A tensor (count, rows, cols) on the CPU whose elements are those of so many matrices.

    Attributes:
        matrices: (rows, cols) each, or (cols, rows) if they are swapped.
        swapped: whether its matrices are the transposes of these.
        had_scales: whether any of them is the product of elements and scales.
    """

    matrices: list[SparseTensor]
    swapped: bool
    had_scales: bool

    @staticmethod
    def __new__(cls, matrices: Sequence[SparseTensor], swapped: bool = False, had_scales: bool = False) -> StackStandIn:
        rows, cols = matrices[0].shape
        shape = (len(matrices), cols, rows) if swapped else (len(matrices), rows, cols)
        dtype = torch_dtype_of(matrices[0])
        made = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=torch.device("cpu"))
        made.matrices, made.swapped, made.had_scales = list(matrices), swapped, had_scales
        return made

    def __init__(self, matrices: Sequence[SparseTensor], swapped: bool = False, had_scales: bool = False) -> None:
        super().__init__()

    def dense(self) -> torch.Tensor:
        """The elements, bit for bit, in memory of their own."""
        dense = torch.stack([as_torch(matrix.todense(), matrix.tiling.dtype) for matrix in self.matrices])
        return dense.transpose(1, 2).contiguous() if self.swapped else dense

    def oriented(self, swapped: bool = False) -> list[SparseTensor]:
        """Its matrices as they are in the tensor, or their transposes."""
        if self.swapped == swapped:
            return self.matrices
        return [transposed(matrix, "auto") for matrix in self.matrices]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"StackStandIn({len(self.matrices)} of {self.matrices[0]!r})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function.overloadpacket is _aten.to:
            # in inference mode, nobody has taken it apart
            return function.decompose(*args, **kwargs)
        handler = _HANDLERS.get(function)
        made = None if handler is None else handler(*args, **kwargs)
        if made is not None:
            return made
        return function(*tree_map(_dense, args), **tree_map(_dense, kwargs))


def stack(tensors: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor | None:
    """torch.stack of matrices of which some are compressed; None if that cannot be compressed."""
    matrices = [_matrix(tensor) for tensor in tensors]
    same = len({(tensor.shape, tensor.dtype) for tensor in tensors}) == 1
    if dim != 0 or not same or any(matrix is None for matrix in matrices):
        return None
    had_scales = any(isinstance(tensor, StandIn) and tensor.scales is not None for tensor in tensors)
    return StackStandIn([matrix for matrix in matrices if matrix is not None], had_scales=had_scales)


def _matrix(tensor: torch.Tensor) -> SparseTensor | None:
    """A matrix of an expert, which may be one that was stored dense. Experts cannot have scales: they are multiplied
    into it."""
    if isinstance(tensor, StandIn):
        return tensor.without_scales() if tensor.dim() == 2 else None
    if tensor.dim() != 2 or not tensor.is_floating_point() or tensor.device.type != "cpu":
        return None
    return SparseTensor.from_dense(rows_of(tensor.detach()), "dense")


def _cat(tensors: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor | None:
    """torch.cat of stacks along their rows."""
    if not all(isinstance(tensor, StackStandIn) for tensor in tensors):
        return None
    stacks = [tensor for tensor in tensors if isinstance(tensor, StackStandIn)]
    shapes = {(len(each.matrices), each.shape[2], each.dtype) for each in stacks}
    if len(shapes) > 1 or dim % 3 != 1:
        return None
    experts = zip(*(each.oriented() for each in stacks), strict=True)
    had_scales = any(each.had_scales for each in stacks)
    return StackStandIn([stacking.above_each_other(parts) for parts in experts], had_scales=had_scales)


def _split(whole: StackStandIn, sizes: int | Sequence[int], dim: int = 0) -> list[torch.Tensor] | None:
    """torch.split by experts, or along their rows."""
    length = whole.shape[dim]
    if isinstance(sizes, int):
        sizes = [min(sizes, length - begin) for begin in range(0, length, max(sizes, 1))]
    if dim % 3 == 2 or 0 in sizes or sum(sizes) != length:
        return None
    parts: list[torch.Tensor] = []
    begin = 0
    for size in sizes:
        end = begin + size
        if dim % 3 == 0:
            parts.append(StackStandIn(whole.matrices[begin:end], whole.swapped, whole.had_scales))
        else:
            rows = [stacking.rows_between(each, begin, end) for each in whole.oriented()]
            parts.append(StackStandIn(rows, had_scales=whole.had_scales))
        begin = end
    return parts


def _select(whole: StackStandIn, dim: int, index: int) -> torch.Tensor | None:
    """One expert."""
    if dim % 3:
        return None
    return StandIn(StackStandIn([whole.matrices[index]], whole.swapped).oriented()[0])


def _squeeze(whole: StackStandIn, dim: int) -> torch.Tensor | None:
    return _select(whole, 0, 0) if dim % 3 == 0 and len(whole.matrices) == 1 else None


def _unbind(whole: StackStandIn, dim: int = 0) -> list[torch.Tensor] | None:
    return None if dim % 3 else [StandIn(matrix) for matrix in whole.oriented()]


def _transpose(whole: StackStandIn, first: int, second: int) -> torch.Tensor | None:
    if {first % 3, second % 3} != {1, 2}:
        return None
    return StackStandIn(whole.matrices, not whole.swapped, whole.had_scales)


def _same(whole: StackStandIn, **kwargs: Any) -> torch.Tensor:
    return _like(whole, StackStandIn(whole.matrices, whole.swapped, whole.had_scales))


def _to_copy(whole: StackStandIn, **kwargs: Any) -> torch.Tensor | None:
    if torch.device(kwargs.get("device") or "cpu").type != "cpu":
        return None
    dtype = kwargs.get("dtype") or whole.dtype
    matrices = [cast(matrix, dtype) for matrix in whole.matrices]
    return _like(whole, StackStandIn(matrices, whole.swapped, whole.had_scales))


def _like(old: StackStandIn, made: StackStandIn) -> StackStandIn:
    # transformers' mark of what needs no random weights; some versions ask a copy for it
    if hasattr(old, "_is_hf_initialized"):
        made._is_hf_initialized = old._is_hf_initialized  # type: ignore[attr-defined]
    return made


def _dense(value: Any) -> Any:
    return value.dense() if isinstance(value, (StandIn, StackStandIn)) else value


_HANDLERS: dict[Any, Callable[..., Any]] = {
    _aten.detach.default: _same,
    _aten.alias.default: _same,
    _aten.clone.default: _same,
    _aten._to_copy.default: _to_copy,
    _aten.cat.default: _cat,
    _aten.split.Tensor: _split,
    _aten.split_with_sizes.default: _split,
    _aten.select.int: _select,
    _aten.squeeze.dim: _squeeze,
    _aten.unbind.int: _unbind,
    _aten.transpose.int: _transpose,
}
