"""Which linear layers become a SparseLinear: one rule, wherever their weights come from.

`sparsify`, `load_into`, and `from_pretrained` of .sparsefmt folders and of others, all ask here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch

from sparsefmt.layouts import auto
from sparsefmt.layouts.sizes import Filling
from sparsefmt.quantizing.quantization import Quantization
from sparsefmt.torch import convolution_kinds
from sparsefmt.torch.expert_kinds import is_attention, projection_of
from sparsefmt.torch.layers import Holder, is_convolution, is_layer, why_not_replaceable
from sparsefmt.torch.scales import activations_to_load

MIN_SPARSITY = 0.4
"""Sparsity from which a layer is replaced. At 50 %, both layouts were faster than dense float32 products with 1 to 128
tokens (docs/benchmarks.md), and `bitmask` takes about as long at every sparsity."""

MIN_SIZE = 1 << 17
"""Elements that a weight must have for its layer to be replaced by default: 131,072, a little less than 384 x 384. A
call of a SparseLinear costs some tens of microseconds more than one of a Linear, beside the product. At 80 % in
float32, with 1 and 8 tokens, that is more than a smaller layer gains (tools/bench/small_layers.py)."""

LAYOUTS_TO_CHOOSE = ("auto", "bitmask", "permuted")


_EXCLUDED = "it is excluded"

Patterns = str | Iterable[str] | None
"""Names of modules, in which `*` stands for anything; None where there are none."""


@dataclass(frozen=True)
class Selection:
    """What a caller asked for: the layout of compressed weights, and which layers shall have such.

    Attributes:
        layout: "auto", "bitmask" or "permuted".
        min_sparsity: part of a weight that must be zero, 0.0 to 1.0.
        include, exclude: patterns of names of layers; None for all, and for none.
        min_size: elements that a weight must have; None for MIN_SIZE, and for 0 if layout or `include` are given.
        quantization: how to quantize weights that are not scaled; None to leave them as they are.
        activations: "int8" to round activations to eight bits where weights are scaled elements of int8, "float" to
            leave them as they are, or None for what files say.

    Raises:
        ValueError: another layout, or a sparsity or size out of range; activations that fp8 cannot have.
    """

    layout: str = "auto"
    min_sparsity: float = MIN_SPARSITY
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None
    min_size: int | None = None
    quantization: Quantization | None = None
    activations: str | None = None

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS_TO_CHOOSE:
            raise ValueError(f"layout must be 'auto', 'bitmask' or 'permuted', not {self.layout!r}")
        if not 0 <= self.min_sparsity <= 1:
            raise ValueError(f"min_sparsity must be between 0 and 1, not {self.min_sparsity!r}")
        if self.min_size is not None and self.min_size < 0:
            raise ValueError(f"min_size must be 0 or more, not {self.min_size!r}")
        activations_to_load(self.activations)
        if self.rounds_activations and self.quantization is not None and self.quantization.values != "int8":
            raise ValueError(f"activations='int8' is for values='int8', not for values={self.quantization.values!r}")

    @classmethod
    def of(
        cls, layout: str, min_sparsity: float, include: Patterns, exclude: Patterns, min_size: int | None = None
    ) -> Selection:
        """The selection that arguments of public functions make. Raises TypeError for patterns that are not text."""
        return cls(layout, min_sparsity, _as_tuple("include", include), _as_tuple("exclude", exclude), min_size)

    def quantizing(self, values: str | None, group_size: int | None, scale: str, activations: str | None) -> Selection:
        """The same with what public functions are told of values and activations. Raises ValueError."""
        quantization = Quantization.of(values, group_size, scale)
        return replace(self, quantization=quantization, activations=activations_to_load(activations))

    @property
    def rounds_activations(self) -> bool:
        """Whether activations were asked for in eight bits."""
        return self.activations == "int8"

    @property
    def least_size(self) -> int:
        """Elements that a weight must have."""
        if self.min_size is not None:
            return self.min_size
        return MIN_SIZE if self.layout == "auto" and self.include is None else 0

    def why_not_named(self, name: str) -> str | None:
        """What the patterns have against a layer; None if nothing."""
        if self.include is not None and not any(fnmatchcase(name, pattern) for pattern in self.include):
            return "it is not included"
        if self.exclude is not None and any(fnmatchcase(name, pattern) for pattern in self.exclude):
            return _EXCLUDED
        return None

    def why_not_held_by_name(self, holder: Holder) -> str | None:
        """What the patterns have against a tensor, by the name of its layer; of experts, by its own name too."""
        if projection_of(holder.module, holder.attribute) is None:
            return self.why_not_named(holder.layer)
        reasons = [self.why_not_named(name) for name in (holder.layer, holder.key)]
        # either may be included, and neither excluded
        return next((reason for reason in reasons if reason == _EXCLUDED), None if None in reasons else reasons[0])

    def why_not_held(self, holder: Holder) -> str | None:
        """What one module that holds a tensor has against compressing it; None if nothing."""
        if projection_of(holder.module, holder.attribute) is not None:
            return self.why_not_held_by_name(holder)
        if holder.attribute != "weight":
            return "it is not the weight of a linear layer"
        reason = self.why_not_named(holder.layer) or why_not_replaceable(holder.module)
        if reason is None and not holder.layer:
            return "it is the model itself: use SparseLinear.from_linear"
        return reason

    def least_size_of(self, module: torch.nn.Module) -> int:
        """Elements that the weight of a module must have."""
        if is_convolution(module) and self.min_size is None:
            return min(self.least_size, convolution_kinds.MIN_SIZE)
        return self.least_size

    def why_not_worth_of(self, module: torch.nn.Module, filling: Filling, *, trainable: bool) -> str | None:
        """What is against compressing the weight of a layer that is filled so; None if nothing. See `why_not_worth`.

        A convolution that would be slower stays dense, unless small layers are wanted, too.
        """
        if not is_convolution(module):
            return self.why_not_worth(filling, trainable=trainable)
        reason = replace(self, min_size=self.least_size_of(module), quantization=None).why_not_worth(
            filling, trainable=trainable
        )
        if reason is None and self.least_size:
            size = filling.rows * filling.cols
            shape = shape_of_weight(module)
            reason = convolution_kinds.why_slower(shape, 1 - filling.nnz / size if size else 0.0)
        return reason

    def why_not_worth_of_stack(self, holder: Holder, filling: Filling, *, trainable: bool) -> str | None:
        """What is against compressing a weight of experts or attention. See `why_not_worth`."""
        projection, of = projection_of(holder.module, holder.attribute), "expert"
        assert projection is not None
        if is_attention(holder.module):
            of = "projection"
        whole = replace(self, quantization=None)
        return whole.why_not_worth(filling, trainable=trainable, experts=projection.experts, of=of)

    def why_not_worth(self, filling: Filling, *, trainable: bool, experts: int = 1, of: str = "expert") -> str | None:
        """What is against compressing a weight that is filled so; None if nothing.

        Args:
            experts: how many matrices it consists of, if it is a stack.
            of: what each of them belongs to, for messages.
            trainable: whether an optimizer may change the weight. One of zeros alone, such as `lora_B` before training,
                is not pruned then, but at its start.
        """
        rows, cols = filling.rows, filling.cols
        size = rows * cols
        sparsity = 1 - filling.nnz / size if size else 0.0
        if sparsity < self.min_sparsity:
            return f"{sparsity:.1%} of its weight is zero, which is less than {self.min_sparsity:.1%}"
        if trainable and not filling.nnz:
            return "all of its weight is zero and requires_grad is True: it may be about to be trained"
        if size < self.least_size * experts:
            of_each = "" if experts == 1 else f" for each {of}"
            return (
                f"its weight has {size // experts:,} elements{of_each}: below {self.least_size:,}, zeros save less than"
                " a call costs"
            )
        if self.quantization is not None and self.layout == "auto" and experts == 1:
            # a byte for each element is less in any layout
            return None
        if not auto.can_be_sparse(filling.dtype, (rows, cols), cols):
            return "no sparse layout can hold its weight"
        if not auto.for_computing(filling).sparse:
            return "no sparse layout makes it 10 % smaller"
        return None


def why_dense(holders: list[Holder], selection: Selection) -> dict[str, str]:
    """What is against compressing a tensor, its elements aside, by the names of the modules that hold it.

    Empty if nothing is against it in any of them: they share it, so it is compressed for all or for none. Tensors of
    modules that are not linear layers have their own names.
    """
    reasons = {holder.key: selection.why_not_held(holder) for holder in holders}
    experts = [holder for holder in holders if projection_of(holder.module, holder.attribute) is not None]
    if experts and len({id(holder.module) for holder in holders}) > 1:
        reasons[experts[0].key] = reasons[experts[0].key] or "it belongs to several modules"
    against = next((key for key, reason in reasons.items() if reason is not None), None)
    if against is None:
        return {}
    return {name_of(holder): reasons[holder.key] or f"its weight is also {against}" for holder in holders}


def name_of(holder: Holder) -> str:
    """Under which name a tensor that stays dense is reported: that of its linear layer, or its own."""
    return holder.layer if holder.attribute == "weight" and is_layer(holder.module) else holder.key


def shape_of_weight(module: torch.nn.Module) -> tuple[int, ...]:
    """The shape of the weight of a convolution, whatever holds it."""
    sizes = module.out_channels, module.in_channels, *module.kernel_size  # type: ignore[misc]
    return sizes


def _as_tuple(what: str, patterns: Patterns) -> tuple[str, ...] | None:
    """The patterns as a tuple. Raises TypeError, with the name of the argument, if one is not text."""
    if patterns is None:
        return None
    made = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    if not all(isinstance(pattern, str) for pattern in made):
        raise TypeError(f"{what} must be a pattern of module names, or several, not {patterns!r}")
    return made
