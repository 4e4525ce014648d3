"""LoRA and DoRA on a SparseLinear, as PEFT has them on a torch.nn.Linear."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.config import LoraConfig
from peft.tuners.lora.layer import Linear

from sparsefmt.peft.dora import DoraOnSparse
from sparsefmt.peft.merging import MergedIntoSparse
from sparsefmt.torch.convolution import SparseConvolution
from sparsefmt.torch.linear import SparseLinear

_INITS = (True, False, "gaussian", "orthogonal", "eva")
"""Ways to begin that leave the base weight alone."""


class SparseLoraLinear(MergedIntoSparse, Linear):
    """A SparseLinear with adapters: y = base(x) + scaling * B(A(x)). The weight stays compressed and is not trained.

    Made by PEFT for the target modules of a LoraConfig. Gradients flow to the adapters and to x. `use_dora=True` makes
    it DoRA (`dora.py`). Weights of eight bits and scales are base weights like others.

    Raises:
        ValueError: other variants of LoRA, and ways to begin that change the base weight, such as "pissa".
    """

    def __init__(self, base_layer: torch.nn.Module, adapter_name: str, config: LoraConfig, **options: Any) -> None:
        super().__init__(base_layer, adapter_name, config=config, **options)
        self._follow_orientation()

    def _follow_orientation(self) -> None:
        """Deltas have the shape that the weight has to code, which is (in_features, out_features) for a Conv1D."""
        self.fan_in_fan_out = self.unmerged_layer.transposed
        self.is_target_conv_1d_layer = self.fan_in_fan_out

    def _get_in_out_features(self, module: torch.nn.Module) -> Any:
        return module.in_features, module.out_features

    @property
    def lora_variants(self) -> dict[tuple[str, ...], Any]:
        return {(): None, ("use_dora",): DoraOnSparse}

    def resolve_lora_variant(self, *, config: LoraConfig, **options: Any) -> Any:
        try:
            return super().resolve_lora_variant(config=config, **options)
        except ValueError as error:
            raise ValueError(f"on a SparseLinear, there are LoRA and DoRA, and no other variants: {error}") from None

    def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: LoraConfig, **options: Any) -> None:
        if config.init_lora_weights not in _INITS:
            raise ValueError(
                f"init_lora_weights={config.init_lora_weights!r} computes with the base weight or changes it, and"
                f" that of a SparseLinear stays compressed as it is: use one of {', '.join(map(repr, _INITS))}, or make"
                " the model dense first, with sparsefmt.torch.make_dense(model)"
            )
        super().update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config, **options)

    def adapters_here(self) -> Any:
        return self.lora_A

    def merged_with(self, weight: torch.Tensor, bias: Any, names: list[str]) -> tuple[torch.Tensor, Any]:
        """The weight and the bias plus what adapters add, summed up in float32 or more."""
        dtype = weight.dtype
        weight = weight.to(torch.promote_types(dtype, torch.float32))
        for name in names:
            delta = self.get_delta_weight(name).to(weight.dtype)
            variant: Any = self.lora_variant.get(name)
            weight = weight + delta if variant is None else variant.merged(self, name, weight + delta)
            if self.lora_bias[name]:
                bias = self._plus_bias(bias, name)
        return weight.to(dtype), bias

    def _plus_bias(self, bias: torch.Tensor | None, name: str) -> torch.Tensor:
        if bias is None:
            raise RuntimeError("Impossible to merge LoRA with `lora_bias=True` because the base layer has no bias.")
        return (bias + self.lora_B[name].bias * self.scaling[name]).to(bias.dtype)


def is_sparse_target(target: Any) -> bool:
    """Whether a module, below what other adapters there are on it, is a SparseLinear, and no convolution."""
    while hasattr(target, "base_layer"):
        target = target.base_layer
    return isinstance(target, SparseLinear) and not isinstance(target, SparseConvolution)
