"""IA3 on a SparseLinear, as PEFT has it on a torch.nn.Linear: factors for inputs or for results."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft.tuners.ia3.config import IA3Config
from peft.tuners.ia3.layer import Linear
from peft.tuners.tuners_utils import check_adapters_to_merge

from sparsefmt.peft.merging import MergedIntoSparse, expect_decision, expect_finite


class SparseIA3Linear(MergedIntoSparse, Linear):
    """A SparseLinear whose results, or inputs of a feed-forward layer, are multiplied by factors that are trained.

    Made by PEFT for the target modules of an IA3Config. Merged, the factors multiply rows or columns of the weight,
    whose zeros stay zeros: the layer stays compressed, unless `sparsefmt.peft.merging` says otherwise.
    """

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

    def _get_base_layer_device_and_dtype(self, base_layer: torch.nn.Module) -> Any:
        # SparseLinear has another `compute_dtype` than layers of bitsandbytes
        return base_layer.weight.device, base_layer.weight.dtype

    def merge(
        self, safe_merge: bool = False, adapter_names: list[str] | None = None, *, keep_zeros: bool | None = None
    ) -> None:
        """Multiply the weight, and the bias where results are multiplied, by the factors of adapters.

        Args:
            safe_merge: raise ValueError if a product has NaN or Inf.
            adapter_names: by default, all that are active.
            keep_zeros: False for a dense layer; otherwise it stays sparse.

        Raises:
            RuntimeError: the layer shall stay sparse, and its weight has scales.

        Cost: two dense weights meanwhile.
        """
        if not self.is_sparse:
            super().merge(safe_merge, adapter_names)
            return
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.ia3_l]
        if not names:
            return
        keep = expect_decision([self.unmerged_layer], keep_zeros, by_itself=True)
        with torch.no_grad():
            weight = self.current_weight()
            bias: Any = self.get_base_layer().bias
            for name in names:
                factors = self.ia3_l[name].t() if self.fan_in_fan_out else self.ia3_l[name]
                weight = (weight * factors).to(weight.dtype)
                if bias is not None and not self.is_feedforward:
                    bias = (bias * self.ia3_l[name].reshape(-1)).to(bias.dtype)
            if safe_merge:
                expect_finite(weight, bias, names)
            self.put_merged(weight, bias, keep)
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Put the base layer back that was there before anything was merged: the same bits."""
        if self.merged and not self._before:
            super().unmerge()
        elif not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        else:
            self.put_unmerged()
