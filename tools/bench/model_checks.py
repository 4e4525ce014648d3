"""Whether a model with compressed layers computes what the dense one does. Imported by `model.py`, not a program."""

from __future__ import annotations

from typing import Any

import click
import torch

from sparsefmt.torch import SparseLinear
from tools.bench.model_cases import Contender, pruned_layers

EMBEDDING_TOLERANCE = 1e-4
"""Largest difference of a sentence embedding from that of the dense model, in float32."""

LOGIT_TOLERANCE = 2.0
"""How far logits of bfloat16 layers may be from those of float32 layers, over how far torch's own are."""


def verify_layers(contender: Contender, model: torch.nn.Module, dense: torch.nn.Module) -> None:
    """Fail unless the pruned layers of `dense` are SparseLinear in `model`, with the same weights."""
    for name in pruned_layers(dense):
        layer, expected = model.get_submodule(name), dense.get_parameter(f"{name}.weight")
        if not isinstance(layer, SparseLinear):
            raise click.ClickException(f"{contender.name}: layer {name} is pruned, and a {type(layer).__name__}")
        if not torch.equal(layer.weight.to_dense(), expected.to(layer.weight.dtype)):
            raise click.ClickException(f"{contender.name}: layer {name} has other weights than the dense model")


def largest_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """NaN if there is one."""
    return (found.double() - expected.double()).abs().max().item()


def verify_embeddings(name: str, found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference. Fails if it is beyond the tolerance."""
    difference = largest_difference(found, expected)
    if not difference <= EMBEDDING_TOLERANCE:
        raise click.ClickException(
            f"{name} is wrong: an embedding is off by {difference:.1e}, more than {EMBEDDING_TOLERANCE:.0e}"
        )
    return difference


def logits_of(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    return model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits.float()


def verify_logits(name: str, found: torch.Tensor, rounded: torch.Tensor, exact: torch.Tensor) -> tuple[float, float]:
    """Largest differences from the dense model in float32, over the standard deviation of its logits.

    Args:
        found: ours, in bfloat16.
        rounded: those of the dense model in bfloat16.
        exact: those of the dense model in float32.

    Returns:
        of `found`, and of `rounded`. Fails if the former is much larger.
    """
    spread = exact.std().item()
    ours, theirs = (largest_difference(logits, exact) / spread for logits in (found, rounded))
    if not ours <= LOGIT_TOLERANCE * theirs:
        raise click.ClickException(
            f"{name} is wrong: a logit is off by {ours:.1e} of their spread; torch in bfloat16 is off by {theirs:.1e}"
        )
    return ours, theirs


def verify_rows(name: str, model: torch.nn.Module, tokens: torch.Tensor) -> int:
    """Fail unless each SparseLinear gives a text of a batch the bits that it gives it alone.

    Args:
        tokens: (batch, count), which the model is run with; what its layers take and give is caught on the way.

    Returns:
        the number of layers.
    """
    caught: list[tuple[str, torch.nn.Module, torch.Tensor, torch.Tensor]] = []
    hooks = [
        module.register_forward_hook(
            lambda module, args, output, name=name: caught.append((name, module, args[0], output))
        )
        for name, module in model.named_modules()
        if isinstance(module, SparseLinear)
    ]
    model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    for hook in hooks:
        hook.remove()
    for layer_name, layer, x, y in caught:
        alone = torch.cat([layer(part) for part in x.split(1)])
        first_x, first_y = (part.reshape(len(tokens), -1, part.shape[-1])[:, 0] for part in (x, y))
        one_token = torch.cat([layer(row[None]) for row in first_x])
        if not (same_bits(alone, y) and same_bits(one_token, first_y)):
            raise click.ClickException(f"{name}: layer {layer_name} gives a text other bits in a batch than alone")
    return len(caught)


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[left.element_size()]
    return left.dtype == right.dtype and torch.equal(left.view(whole), right.view(whole))
