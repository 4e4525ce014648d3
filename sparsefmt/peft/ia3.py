"""IA3 on a SparseLinear, as PEFT has it on a torch.nn.Linear: factors for inputs or for results."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.ia3.config import IA3Config
from peft.tuners.ia3.layer import Linear

from sparsefmt.peft.merging import MergedIntoSparse


class SparseIA3Linear(MergedIntoSparse, Linear):
    """A SparseLinear whose results, or inputs of a feed-forward layer, are multiplied by factors that are trained.

    Made by PEFT for the target modules of an IA3Config. Merged, the factors multiply rows or columns of the weight,
    whose zeros stay zeros: the layer stays compressed, unless `sparsefmt.peft.merging` says otherwise.
    """

    keeps_zeros = True

    def __init__(
        self,
        base_layer: torch.nn.Module,
        adapter_name: str,
        config: IA3Config,
        is_feedforward: bool = False,
        **options: Any,
    ) -> None:
        # not by IA3Layer, which takes no layers but those that it knows
        torch.nn.Module.__init__(self)
        self.base_layer = base_layer
        self.ia3_l = torch.nn.ParameterDict({})
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.is_feedforward = is_feedforward
        layer = self.unmerged_layer
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.fan_in_fan_out = self.is_target_conv_1d_layer = layer.transposed
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config=config)

    def adapters_here(self) -> Any:
        return self.ia3_l

    def merged_with(self, weight: torch.Tensor, bias: Any, names: list[str]) -> tuple[torch.Tensor, Any]:
        """The weight, and the bias where results are multiplied, times the factors of adapters."""
        for name in names:
            factors = self.ia3_l[name].t() if self.fan_in_fan_out else self.ia3_l[name]
            weight = (weight * factors).to(weight.dtype)
            if bias is not None and not self.is_feedforward:
                bias = (bias * self.ia3_l[name].reshape(-1)).to(bias.dtype)
        return weight, bias
