"""What becomes of a SparseLinear that an adapter is merged into: a dense layer, or a sparse one with the same zeros.

The sum of a pruned weight and an adapter of low rank has no zeros, so nobody but the caller can say which of the two is
meant. PEFT's functions for merging have no argument for it: `merging` says it to all that run within it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge

from sparsefmt.torch.dense_layers import dense_layer
from sparsefmt.torch.linear import SparseLinear
from sparsefmt.torch.trainable import TrainableSparseLinear

_HOW = (
    "sparsefmt.peft.merge_and_unload(model, keep_zeros=True) merges it where the weight is not zero, and the layers"
    " stay compressed; keep_zeros=False makes dense layers of them, which compute what they compute now. `with"
    " sparsefmt.peft.merging(keep_zeros=...)` does the same for merge_adapter and other functions of PEFT"
)

_keep_zeros: ContextVar[bool | None] = ContextVar("keep_zeros", default=None)


@contextmanager
def merging(*, keep_zeros: bool) -> Iterator[None]:
    """Say what becomes of SparseLinear layers that PEFT merges adapters into meanwhile.

    Args:
        keep_zeros: True to add the adapter to the elements that are not zero, and to leave zeros zero: layers stay
            compressed, and compute something else than with the adapter. False to add it to all of them: layers become
            dense.

    Example:
        >>> import sparsefmt.peft
        >>> with sparsefmt.peft.merging(keep_zeros=True):
        ...     pass  # adapted.merge_adapter()
    """
    token = _keep_zeros.set(keep_zeros)
    try:
        yield
    finally:
        _keep_zeros.reset(token)


def merge_and_unload(model: Any, *, keep_zeros: bool, **options: Any) -> Any:
    """`model.merge_and_unload(**options)` of PEFT, which merges adapters and returns the model without them.

    Args:
        model: a PeftModel, or what has the method.
        keep_zeros: what becomes of SparseLinear layers that have an adapter: see `merging`.
        options: `progressbar`, `safe_merge`, `adapter_names`.

    Returns:
        the model that had the adapters, changed in place. Layers that have become dense have frozen weights, as all of
        it has.

    Raises:
        RuntimeError: `keep_zeros=True`, and a weight is elements times scales, which would have to be rounded again.
            Nothing is merged then.

    Cost: a dense weight at a time, with its sum; all of them, if they become dense.
    """
    with merging(keep_zeros=keep_zeros):
        return model.merge_and_unload(**options)


def expect_decision(layers: Iterable[torch.nn.Module], keep_zeros: bool | None, by_itself: bool) -> bool:
    """Whether zeros stay when something is merged into these base layers; others than SparseLinear do not count.

    Args:
        keep_zeros: what the caller says; None for what `merging` says.
        by_itself: whether it keeps zeros by its nature, and needs no decision.

    Raises:
        RuntimeError: nobody has decided; or zeros shall stay, and a weight has scales.
    """
    decided = _keep_zeros.get() if keep_zeros is None else keep_zeros
    for layer in layers:
        if not isinstance(layer, SparseLinear):
            continue
        called = "the weight of a SparseLinear" if layer.name is None else f"the weight of SparseLinear {layer.name!r}"
        if decided is None and not by_itself:
            raise RuntimeError(
                f"{called} is pruned and compressed, and its sum with an adapter has no zeros. Say which you"
                f" want: {_HOW}"
            )
        if decided is not False and layer.weight_scale is not None:
            raise RuntimeError(
                f"{called} is {layer.sparse_tensor().dtype} times scales, and would have to be rounded again to stay"
                " compressed with an adapter merged into it: sparsefmt.peft.merge_and_unload(model, keep_zeros=False)"
                " makes dense layers"
            )
    return decided is not False


class MergedIntoSparse:
    """What adapters on a SparseLinear have in common: a merged layer takes the place of the base layer, and goes again.

    So the weights are the same bits as before once it is unmerged. Meanwhile both are there. A class of PEFT's, which
    does the same for dense layers, comes behind this one in the order of its subclass.
    """

    base_layer: torch.nn.Module
    merged_adapters: list[str]

    keeps_zeros = False
    """Whether merging keeps zeros by its nature, and needs no decision."""

    _before: tuple[SparseLinear, ...] = ()
    """The base layer without what is merged into it, if something is. In a tuple, so that it is not a submodule."""

    def adapters_here(self) -> Container[str]:
        """The names of the adapters that this layer has."""
        raise NotImplementedError

    def merged_with(self, weight: torch.Tensor, bias: Any, names: list[str]) -> tuple[torch.Tensor, Any]:
        """A dense weight, as the base layer has it, and its bias or None, with adapters merged into them."""
        raise NotImplementedError

    def merge(
        self, safe_merge: bool = False, adapter_names: list[str] | None = None, *, keep_zeros: bool | None = None
    ) -> None:
        """Merge adapters into the base layer, which becomes another one until `unmerge`.

        Args:
            safe_merge: raise ValueError if the result has NaN or Inf.
            adapter_names: by default, all that are active.
            keep_zeros: as in `merging`, which says it if this is None. IA3 keeps them unless this is False.

        Raises:
            RuntimeError: nobody says what becomes of the zeros; or they shall stay, and the weight has scales.

        Cost: two dense weights meanwhile.
        """
        if not self.is_sparse:
            super().merge(safe_merge, adapter_names)  # type: ignore[misc]
            return
        here = self.adapters_here()
        names = [name for name in check_adapters_to_merge(cast(Any, self), adapter_names) if name in here]
        if not names:
            return
        keep = expect_decision([self.unmerged_layer], keep_zeros, by_itself=self.keeps_zeros)
        with torch.no_grad():
            weight, bias = self.merged_with(self.current_weight(), cast(Any, self).get_base_layer().bias, names)
            if safe_merge:
                expect_finite(weight, bias, names)
            self.put_merged(weight, bias, keep)
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Put the base layer back that was there before anything was merged: the same bits."""
        if self._before:
            self._innermost().base_layer = self._before[0]
            self._before = ()
            self.merged_adapters.clear()
        elif self.merged_adapters:
            super().unmerge()  # type: ignore[misc]
        else:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)

    def _get_base_layer_device_and_dtype(self, base_layer: torch.nn.Module) -> Any:
        # SparseLinear has another `compute_dtype` than layers of bitsandbytes
        return base_layer.weight.device, base_layer.weight.dtype

    @property
    def is_sparse(self) -> bool:
        """Whether this was put on a SparseLinear that still is one, or was one before something was merged into it."""
        return bool(self._before) or isinstance(self._innermost().base_layer, SparseLinear)

    @property
    def unmerged_layer(self) -> Any:
        """The base layer without what is merged into it."""
        return self._before[0] if self._before else self._innermost().base_layer

    def put_merged(self, weight: torch.Tensor, bias: torch.Tensor | None, keep_zeros: bool) -> None:
        """Take a layer with this weight, as the base layer has it, and this bias in place of the base layer."""
        before = self.unmerged_layer
        made = _with_zeros(before, weight) if keep_zeros else _without(before, weight)
        if bias is not None:
            made.bias = torch.nn.Parameter(bias.detach(), requires_grad=before.bias.requires_grad)
        self._innermost().base_layer = made
        self._before = (before,)

    def current_weight(self) -> torch.Tensor:
        """The weight of the base layer, dense, in memory of its own: with what is merged already."""
        layer = self._innermost().base_layer
        weight: Any = layer.weight
        return weight.to_dense() if isinstance(layer, SparseLinear) else weight.detach().clone()

    def _innermost(self) -> Any:
        """This adapter, or the one below it that holds the base layer."""
        holder: Any = self
        while hasattr(holder.base_layer, "base_layer"):
            holder = holder.base_layer
        return holder


def expect_finite(weight: torch.Tensor, bias: torch.Tensor | None, adapters: list[str]) -> None:
    """Raise ValueError, as PEFT does for `safe_merge`."""
    if not all(bool(torch.isfinite(tensor).all()) for tensor in (weight, bias) if tensor is not None):
        raise ValueError(f"NaNs detected in the merged weights. The adapters {', '.join(adapters)} seem to be broken")


def _with_zeros(layer: SparseLinear, weight: torch.Tensor) -> SparseLinear:
    """A copy of a layer with another weight, whose zeros are those of its own."""
    zeros = layer.weight.to_dense()
    weight = torch.where(zeros == 0, zeros, weight)
    made = layer.to_sparse_linear() if isinstance(layer, TrainableSparseLinear) else copy.deepcopy(layer)
    made.compress(weight.t() if layer.transposed else weight)
    return made


def _without(layer: SparseLinear, weight: torch.Tensor) -> torch.nn.Module:
    """A dense layer with a weight, in place of a sparse one."""
    made = dense_layer(layer, torch.nn.Parameter(weight.contiguous(), requires_grad=False))
    if layer.bias is not None:
        made.bias = torch.nn.Parameter(layer.bias.detach().clone(), requires_grad=layer.bias.requires_grad)
    return made
