"""DoRA on a SparseLinear: LoRA whose rows get a length that is trained.

y = m / |W + sBA| * (W + sBA) x, where |.| is the length of a row. PEFT makes the sum dense for each product. The length
does not need it: |w + sBa|^2 = |w|^2 + 2s b·(A w) + s^2 b·(A A^T b), with a product of W and the few rows of A.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.lora.variants import DoraLinearVariant

from sparsefmt.torch.linear import SparseLinear
from sparsefmt.torch.operator import linear_op
from sparsefmt.torch.scaled_operator import scaled_linear_op


class DoraOnSparse(DoraLinearVariant):
    """What PEFT asks of the variant. Everything else is in `SparseDoraLayer`."""

    @staticmethod
    def init(module: Any, adapter_name: str, **options: Any) -> None:
        if not module.lora_magnitude_vector:
            # the first one makes the layer's vectors of lengths trainable
            module.adapter_layer_names = (*module.adapter_layer_names, "lora_magnitude_vector")
        made = SparseDoraLayer(fan_in_fan_out=module.unmerged_layer.transposed)
        made.update_layer(
            base_layer=module.unmerged_layer,
            lora_A=module.lora_A[adapter_name].weight,
            lora_B=module.lora_B[adapter_name].weight,
            scaling=module.scaling[adapter_name],
        )
        module.lora_magnitude_vector[adapter_name] = made

    @staticmethod
    def merged(module: Any, adapter_name: str, weight: torch.Tensor) -> torch.Tensor:
        """The weight of the base layer and the delta of the adapter with rows of the lengths that were trained."""
        layer = module.lora_magnitude_vector[adapter_name]
        lora = module.lora_A[adapter_name].weight, module.lora_B[adapter_name].weight
        norm = layer.norm(module.unmerged_layer, *lora, module.scaling[adapter_name])
        factor = (layer.weight / norm).to(weight.dtype)
        return weight * (factor.view(1, -1) if module.fan_in_fan_out else factor.view(-1, 1))


class SparseDoraLayer(DoraLinearLayer):
    """The lengths of rows, as PEFT saves them, and what DoRA adds to the product of the base layer."""

    _squares: tuple[torch.Tensor, torch.Tensor] | None = None
    """The tensor of the weights, and the squares of the lengths of its rows."""

    def update_layer(
        self, *, base_layer: Any, lora_A: Any, lora_B: Any, scaling: float, place_on_cpu: bool = False
    ) -> None:
        self.weight = torch.nn.Parameter(self.norm(base_layer, lora_A, lora_B, scaling).to(lora_A.dtype))

    def norm(self, layer: SparseLinear, lora_A: torch.Tensor, lora_B: torch.Tensor, scaling: float) -> torch.Tensor:
        """Lengths of the rows of W + scaling * B A: (out_features,), float32, without a gradient.

        Cost: a product of W with as many tokens as A has rows; the first time, the dense weight, which is freed.
        """
        with torch.no_grad():
            a, b = lora_A.float(), lora_B.float()
            crossed = (_product(layer, a).t() * b).sum(1)
            squares = self._squares_of(layer) + 2 * scaling * crossed + scaling**2 * ((b @ (a @ a.t())) * b).sum(1)
            return squares.clamp_(min=0).sqrt_()

    def _squares_of(self, layer: SparseLinear) -> torch.Tensor:
        if self._squares is None or self._squares[0] is not layer.weight_arrays:
            weight = layer.weight.to_dense().float()
            self._squares = layer.weight_arrays, weight.square_().sum(0 if layer.transposed else 1)
        return self._squares[1]

    def forward(
        self,
        x: torch.Tensor,
        *,
        lora_A: Any,
        lora_B: Any,
        scaling: float,
        base_layer: Any,
        base_result: torch.Tensor | None = None,
        adapter_name: str = "default",
    ) -> torch.Tensor:
        """What is to be added to the product of the base layer. x: with dropout, and then there is no base_result."""
        if not isinstance(base_layer, SparseLinear):
            given = {"lora_A": lora_A, "lora_B": lora_B, "scaling": scaling, "base_layer": base_layer}
            return super().forward(x, **given, base_result=base_result, adapter_name=adapter_name)
        norm = self.norm(base_layer, lora_A.weight, lora_B.weight, scaling).to(x.dtype)
        factor = (self.weight / norm).view(1, -1)
        if base_result is None:
            base_result = base_layer.product(x, None)
        elif base_layer.bias is not None:
            base_result = base_result - base_layer.bias
        return (factor - 1) * base_result + factor * lora_B(lora_A(x)) * scaling


def _product(layer: SparseLinear, x: torch.Tensor) -> torch.Tensor:
    """x W^T in floats, also where the layer rounds activations to eight bits."""
    weights, features = (layer.weight_arrays, layer.weight_table), (layer.out_features, layer.in_features)
    if layer.weight_scale is None:
        return linear_op(x, *weights, None, *features)
    return scaled_linear_op(x, *weights, None, layer.weight_scale, None, None, *features)
