"""SparseWeight: what code that asks a layer for its `weight` gets, where there is no dense one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sparsefmt.tensor import SparseTensor
from sparsefmt.torch.derived import as_torch
from sparsefmt.torch.operator import linear_op

if TYPE_CHECKING:
    from sparsefmt.torch.linear import SparseLinear


class SparseWeight:
    """The weights of a SparseLinear, as far as they are known without making them dense. No torch.Tensor.

    It has shape, dtype and device as torch names them, which is what most code asks a weight for. Of torch's functions
    it takes `torch.nn.functional.linear`; others raise TypeError.

    Attributes:
        tensor: the SparseTensor (out_features, in_features).
    """

    requires_grad = False
    grad = None

    def __init__(self, layer: SparseLinear) -> None:
        self._layer = layer

    @property
    def tensor(self) -> SparseTensor:
        return self._layer.sparse_tensor()

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self._layer.out_features, self._layer.in_features))

    @property
    def dtype(self) -> torch.dtype:
        return self._layer._dtype

    @property
    def device(self) -> torch.device:
        return self._layer.weight_arrays.device

    @property
    def ndim(self) -> int:
        return 2

    def dim(self) -> int:
        return 2

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        return self.shape.numel()

    def to_dense(self) -> torch.Tensor:
        """The weights as a dense tensor of torch, bit for bit."""
        return as_torch(self.tensor.todense(), self.tensor.operand().dtype)

    def __repr__(self) -> str:
        return f"SparseWeight({self.tensor!r})" if self._layer.has_weight else "SparseWeight(none yet)"

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> torch.Tensor:
        if function is torch.nn.functional.linear:
            return _linear(*args, **(kwargs or {}))
        raise TypeError(
            f"{function.__name__} does not take the weight of a SparseLinear, which is compressed:"
            " call .to_dense() on it first"
        )


def _linear(input: torch.Tensor, weight: Any, bias: torch.Tensor | None = None) -> torch.Tensor:
    """torch.nn.functional.linear, whose names of arguments these are."""
    if not isinstance(weight, SparseWeight):
        raise TypeError("the weight of a SparseLinear can be the weight of torch.nn.functional.linear, nothing else")
    layer = weight._layer
    return linear_op(input, layer.weight_arrays, layer.weight_table, bias, layer.out_features, layer.in_features)
