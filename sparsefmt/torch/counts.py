"""parameter_count: how many elements a model has, where the weights of SparseLinear layers are buffers."""

from __future__ import annotations

from typing import NamedTuple

import torch

from sparsefmt.torch.linear import SparseLinear
from sparsefmt.torch.trainable import TrainableSparseLinear


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
    counted_below = {id(module.values) for module in model.modules() if isinstance(module, TrainableSparseLinear)}
    for name, parameter in model.named_parameters():
        if id(parameter) in counted_below:
            continue
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
