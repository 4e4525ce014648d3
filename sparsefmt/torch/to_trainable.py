"""make_trainable: SparseLinear layers of a model are trained, with their zeros kept. make_sparse is the way back."""

from __future__ import annotations

import warnings

import torch

from sparsefmt.torch.convolution import SparseConvolution
from sparsefmt.torch.layers import modules_with_names, replace
from sparsefmt.torch.linear import SparseLinear
from sparsefmt.torch.selection import Patterns, Selection
from sparsefmt.torch.trainable import TrainableSparseLinear

_NAMED = 3
"""Names in a warning."""


def make_trainable(
    model: torch.nn.Module, *, include: Patterns = None, exclude: Patterns = None
) -> dict[str, TrainableSparseLinear]:
    """Replace the SparseLinear layers of a model by TrainableSparseLinear, in place, to train on with the zeros kept.

    Other parameters are as trainable as they were. Layers with scales, layers that share their weights, and
    convolutions stay as they are, and are not in the result. A warning names those with scales.

    Args:
        include, exclude: patterns of module names, as in `sparsify`.

    Returns:
        the layers that are trainable now, by name.

    Raises:
        TypeError: the model is a SparseLinear itself: use `TrainableSparseLinear.from_sparse_linear`.

    Example:
        >>> import torch
        >>> from sparsefmt.torch import make_trainable, sparsify
        >>> model = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.ReLU())
        >>> _ = torch.nn.utils.prune.l1_unstructured(model[0], "weight", amount=0.9)
        >>> _ = sparsify(model)
        >>> optimizer = torch.optim.AdamW(make_trainable(model)["0"].parameters())
    """
    if isinstance(model, SparseLinear):
        raise TypeError("the model is a SparseLinear itself, which cannot be replaced in itself")
    selection = Selection.of("auto", 0.0, include, exclude, None)
    made, scaled = {}, []
    for name, layer in list(modules_with_names(model)):
        if not isinstance(layer, SparseLinear) or isinstance(layer, (TrainableSparseLinear, SparseConvolution)):
            continue
        if layer.is_tied or selection.why_not_named(name) is not None:
            continue
        if layer.weight_scale is not None:
            scaled.append(name)
            continue
        made[name] = TrainableSparseLinear.from_sparse_linear(layer)
        replace(model, layer, made[name])
    if scaled:
        warnings.warn(_why_not_trained(scaled), UserWarning, stacklevel=2)
    return made


def _why_not_trained(scaled: list[str]) -> str:
    names = ", ".join(map(repr, scaled[:_NAMED])) + (", …" if len(scaled) > _NAMED else "")
    count = "1 layer has scales and is" if len(scaled) == 1 else f"{len(scaled):,} layers have scales and are"
    return (
        f"{count} not trained: {names}. Call make_dense(model) and sparsify(model) first, which multiply the scales"
        " out, and quantize again after training; or train adapters (LoRA) on such layers; or exclude= them"
    )


def make_sparse(model: torch.nn.Module) -> None:
    """Replace the TrainableSparseLinear layers of a model by SparseLinear again, in place, with the same zeros.

    Raises:
        TypeError: the model is one itself: use its `to_sparse_linear()`.
    """
    if isinstance(model, TrainableSparseLinear):
        raise TypeError("the model is a TrainableSparseLinear itself: use its to_sparse_linear()")
    for layer in [module for module in model.modules() if isinstance(module, TrainableSparseLinear)]:
        replace(model, layer, layer.to_sparse_linear())
