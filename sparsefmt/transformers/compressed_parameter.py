"""StandIn: a compressed weight on its way through transformers, which moves nothing but tensors.

transformers reads a checkpoint, renames, casts and checks its tensors and puts them into the model as Parameters. A
StandIn has shape, dtype and device of the dense weight, and a SparseTensor in place of its elements, with their scales
if it is a scaled weight: casting that changes neither, only the dtype that it has to code. It survives what is done to
every tensor; in any other operation the dense tensor takes its place, so that models whose checkpoints are split or
merged while they are loaded come out right, if not compressed there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_map

from sparsefmt.adapters.torch import as_torch
from sparsefmt.tensor import SparseTensor
from sparsefmt.torch import derived
from sparsefmt.torch.derived import cast, torch_dtype_of
from sparsefmt.torch.scaled_operator import dequantized

_aten = torch.ops.aten
_SAME = (_aten.detach.default, _aten.alias.default, _aten.clone.default)


class ScalesOf(NamedTuple):
    """What belongs to the elements of a scaled weight.

    Attributes:
        of_weight: float32 (rows, groups).
        of_input: the fixed scale of activations in eight bits, if there is one.
        activations: "int8" where the files say of this weight that activations are rounded so; None elsewhere.
    """

    of_weight: torch.Tensor
    of_input: float | None = None
    activations: str | None = None


class StandIn(torch.Tensor):
    """A tensor on the CPU whose elements are those of a SparseTensor.

    Attributes:
        compressed: the SparseTensor.
        scales: those of a scaled weight, or None.
    """

    compressed: SparseTensor
    scales: ScalesOf | None

    @staticmethod
    def __new__(
        cls, compressed: SparseTensor, scales: ScalesOf | None = None, dtype: torch.dtype | None = None
    ) -> StandIn:
        dtype = torch_dtype_of(compressed) if scales is None or dtype is None else dtype
        made = torch.Tensor._make_wrapper_subclass(cls, compressed.shape, dtype=dtype, device=torch.device("cpu"))
        made.compressed = compressed
        made.scales = scales
        return made

    def __init__(
        self, compressed: SparseTensor, scales: ScalesOf | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()

    def dense(self) -> torch.Tensor:
        """The elements, bit for bit, in memory of their own; of a scaled weight, times their scales."""
        dtype = self.compressed.operand().dtype
        dense = as_torch(self.compressed.todense(), dtype).reshape(self.shape)
        return dense if self.scales is None else dequantized(dense, self.scales.of_weight, self.dtype)

    def without_scales(self) -> SparseTensor:
        """The weight, compressed, in the dtype that it has to code."""
        if self.scales is None:
            return self.compressed
        return cast(derived.dequantized(self.compressed, self.scales.of_weight.numpy()), self.dtype)

    def _like(self, compressed: SparseTensor, dtype: torch.dtype) -> StandIn:
        made = StandIn(compressed, self.scales, dtype)
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
        if function is _aten.stack.default:
            from sparsefmt.transformers.compressed_stack import stack

            made = stack(*args, **kwargs)
            if made is not None:
                return made
        first = args[0] if args else None
        if isinstance(first, StandIn):
            if function.overloadpacket is _aten.to:
                # in inference mode, nobody has taken it apart
                return function.decompose(*args, **kwargs)
            if function in _SAME:
                return first._like(first.compressed, first.dtype)
            if function is _aten._to_copy.default and torch.device(kwargs.get("device") or "cpu").type == "cpu":
                dtype = kwargs.get("dtype") or first.dtype
                return first._like(first.compressed if first.scales else cast(first.compressed, dtype), dtype)
        return function(*tree_map(_dense, args), **tree_map(_dense, kwargs))


def _dense(value: Any) -> Any:
    return value.dense() if isinstance(value, StandIn) else value
