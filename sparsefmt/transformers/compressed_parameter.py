"""StandIn: a compressed weight on its way through transformers, which moves nothing but tensors.

transformers reads a checkpoint, renames, casts and checks its tensors and puts them into the model as Parameters. A
StandIn has shape, dtype and device of the dense weight, and a SparseTensor in place of its elements. It survives what
is done to every tensor; in any other operation the dense tensor takes its place, so that models whose checkpoints are
split or merged while they are loaded come out right, if not compressed there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_map

from sparsefmt.adapters.torch import as_torch
from sparsefmt.tensor import SparseTensor
from sparsefmt.torch.derived import cast, torch_dtype_of

_aten = torch.ops.aten
_SAME = (_aten.detach.default, _aten.alias.default, _aten.clone.default)


class StandIn(torch.Tensor):
    """A tensor on the CPU whose elements are those of a SparseTensor.

    Attributes:
        compressed: the SparseTensor.
    """

    compressed: SparseTensor

    @staticmethod
    def __new__(cls, compressed: SparseTensor) -> StandIn:
        made = torch.Tensor._make_wrapper_subclass(
            cls, compressed.shape, dtype=torch_dtype_of(compressed), device=torch.device("cpu")
        )
        made.compressed = compressed
        return made

    def __init__(self, compressed: SparseTensor) -> None:
        super().__init__()

    def dense(self) -> torch.Tensor:
        """The elements, bit for bit, in memory of their own."""
        dtype = self.compressed.operand().dtype
        return as_torch(self.compressed.todense(), dtype).reshape(self.shape)

    def _like(self, compressed: SparseTensor) -> StandIn:
        made = StandIn(compressed)
        # transformers' mark of what needs no random weights; some versions ask a copy for it
        if hasattr(self, "_is_hf_initialized"):
            made._is_hf_initialized = self._is_hf_initialized  # type: ignore[attr-defined]
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"StandIn({self.compressed!r})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        if isinstance(first, StandIn):
            if function in _SAME:
                return first._like(first.compressed)
            if function is _aten._to_copy.default and torch.device(kwargs.get("device") or "cpu").type == "cpu":
                return first._like(cast(first.compressed, kwargs.get("dtype") or first.dtype))
        return function(*tree_map(_dense, args), **tree_map(_dense, kwargs))


def _dense(value: Any) -> Any:
    return value.dense() if isinstance(value, StandIn) else value
