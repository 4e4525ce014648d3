"""keep_zeros: dense training that leaves the zeros of pruned layers zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from sparsefmt.torch.layers import is_layer, joined, modules_with_names
from sparsefmt.torch.linear import SparseLinear
from sparsefmt.torch.selection import MIN_SPARSITY, Patterns, Selection


class KeptZeros:
    """Masks of the weights of a model, applied again after each step of an optimizer of torch until it is closed.

    A context manager, which applies them a last time at its end. `keep_zeros` makes it.

    Attributes:
        names: of the weights that have a mask.
    """

    def __init__(self, masks: dict[int, tuple[str, torch.Tensor, torch.Tensor]]) -> None:
        self._masks = masks
        self.names = [name for name, _, _ in masks.values()]
        self._handle: Any = register_optimizer_step_post_hook(self._after_step)
        self.apply()

    def apply(self) -> None:
        """Make zero what was zero. For optimizers that are not torch's, whose steps nobody hears of."""
        with torch.no_grad():
            for _, parameter, zeros in self._masks.values():
                parameter.masked_fill_(zeros, 0)

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        with torch.no_grad():
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    found = self._masks.get(id(parameter))
                    if found is not None and found[1] is parameter:
                        parameter.masked_fill_(found[2], 0)

    def close(self) -> None:
        """Apply the masks, and no more from now on. A second call does nothing."""
        if self._handle is not None:
            self.apply()
            self._handle.remove()
            self._handle = None

    def __enter__(self) -> KeptZeros:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def keep_zeros(
    model: torch.nn.Module,
    *,
    masks: Mapping[str, torch.Tensor] | None = None,
    min_sparsity: float = MIN_SPARSITY,
    include: Patterns = None,
    exclude: Patterns = None,
) -> KeptZeros:
    """Leave what is zero in the linear layers of a dense model zero while it is trained.

    From the call on, each step of an optimizer of torch is followed by the masks of the weights that it has changed.
    Use it with `with`, or call `close()`. `TrainableSparseLinear` needs no masks, and trains less.

    Args:
        model: with dense layers: torch.nn.Linear, subclasses, and Conv1D of transformers.
        masks: by name of a parameter, of any module, what is not zero; of the shape of the parameter. By default, what
            is not zero now, in each linear layer of which `min_sparsity` or more is zero.
        min_sparsity, include, exclude: which layers, as in `sparsify`; not for `masks`.

    Raises:
        ValueError: a mask for a parameter that the model does not have, or of another shape; a sparsity out of range.

    Cost: a byte for each element with a mask, and one pass over these after each step.

    Example:
        >>> import torch
        >>> from sparsefmt.torch import keep_zeros
        >>> linear = torch.nn.Linear(4, 4)
        >>> _ = linear.weight.data.fill_diagonal_(0)
        >>> optimizer = torch.optim.SGD(linear.parameters(), 0.1)
        >>> with keep_zeros(torch.nn.Sequential(linear), min_sparsity=0.25):
        ...     linear(torch.ones(4)).sum().backward()
        ...     optimizer.step()
        >>> linear.weight.diagonal().tolist()
        [0.0, 0.0, 0.0, 0.0]
    """
    if masks is not None:
        return KeptZeros(_given(dict(model.named_parameters(remove_duplicate=False)), masks))
    selection = Selection.of("auto", min_sparsity, include, exclude, None)
    made: dict[int, tuple[str, torch.Tensor, torch.Tensor]] = {}
    for name, module in modules_with_names(model):
        weight = module._parameters.get("weight")
        if not is_layer(module) or isinstance(module, SparseLinear) or weight is None or not weight.numel():
            continue
        if selection.why_not_named(name) is None:
            zeros = weight.detach() == 0
            if int(zeros.sum()) >= selection.min_sparsity * zeros.numel():
                made[id(weight)] = joined(name, "weight"), weight, zeros
    return KeptZeros(made)


def _given(
    parameters: dict[str, torch.nn.Parameter], masks: Mapping[str, torch.Tensor]
) -> dict[int, tuple[str, torch.Tensor, torch.Tensor]]:
    made: dict[int, tuple[str, torch.Tensor, torch.Tensor]] = {}
    for name, mask in masks.items():
        parameter = parameters.get(name)
        if parameter is None:
            raise ValueError(f"there is a mask for {name!r}, and the model has no parameter of this name")
        if mask.shape != parameter.shape:
            raise ValueError(
                f"the mask for {name!r} has shape {tuple(mask.shape)}, and the parameter {tuple(parameter.shape)}"
            )
        made[id(parameter)] = name, parameter, (mask == 0).to(parameter.device)
    return made
