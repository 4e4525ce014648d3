"""SparsefmtConfig: the quantization_config in config.json of a model whose weights are .sparsefmt files."""

from __future__ import annotations

from typing import Any

from transformers.quantizers import register_quantization_config
from transformers.utils.quantization_config import QuantizationConfigMixin

from sparsefmt.interchange.huggingface import METHOD
from sparsefmt.torch.layers import Patterns, matcher
from sparsefmt.torch.models import MIN_SPARSITY

_LAYOUTS = ("auto", "bitmask", "permuted")


@register_quantization_config(METHOD)
class SparsefmtConfig(QuantizationConfigMixin):
    """How `from_pretrained` holds the weights of linear layers.

    config.json of a folder that `sparsefmt convert` or `save_pretrained` wrote has one. Given to `from_pretrained` with
    a folder of dense weights, it makes the layers that are pruned SparseLinear while they are loaded, one by one.

    Args:
        layout: "auto" (see README, "Choosing a layout"), "bitmask" or "permuted".
        min_sparsity: part of a dense weight that must be zero for its layer to become a SparseLinear, 0.0 to 1.0. What
            is stored sparse is one in any case.
        include: patterns of module names, such as "*.mlp.*", in which `*` stands for anything: other layers are loaded
            dense. None for all.
        quant_method: as config.json has it: "sparsefmt".

    Raises:
        ValueError: another layout or method, a sparsity out of range, or a name that is none of these.
        TypeError: patterns that are no text.

    Example:
        >>> from transformers import AutoModel
        >>> from sparsefmt.transformers import SparsefmtConfig
        >>> model = AutoModel.from_pretrained("pruned-model", quantization_config=SparsefmtConfig())
    """

    def __init__(
        self,
        layout: str = "auto",
        min_sparsity: float = MIN_SPARSITY,
        include: Patterns = None,
        *,
        quant_method: str = METHOD,
        **others: Any,
    ) -> None:
        if layout not in _LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(map(repr, _LAYOUTS))}, not {layout!r}")
        if not 0 <= min_sparsity <= 1:
            raise ValueError(f"min_sparsity must be between 0 and 1, not {min_sparsity!r}")
        if quant_method != METHOD:
            raise ValueError(f"quant_method of a SparsefmtConfig is {METHOD!r}, not {quant_method!r}")
        if others:
            names = ", ".join(map(repr, others))
            raise ValueError(f"the quantization_config has {names}, which this version of sparsefmt does not know")
        self.quant_method = METHOD  # type: ignore[assignment]
        self.layout = layout
        self.min_sparsity = min_sparsity
        self.include = None if include is None else matcher(include)

    def to_dict(self) -> dict[str, Any]:
        """What config.json gets: only what differs from the defaults."""
        chosen: dict[str, Any] = {"quant_method": METHOD}
        if self.layout != "auto":
            chosen["layout"] = self.layout
        if self.min_sparsity != MIN_SPARSITY:
            chosen["min_sparsity"] = self.min_sparsity
        if self.include is not None:
            chosen["include"] = list(self.include)
        return chosen
