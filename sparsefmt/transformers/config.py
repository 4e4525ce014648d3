"""SparsefmtConfig: the quantization_config in config.json of a model whose weights are .sparsefmt files."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.quantizers import register_quantization_config
from transformers.utils.quantization_config import QuantizationConfigMixin

from sparsefmt.checkpoints import compressed_tensors as schemes
from sparsefmt.checkpoints.cards import HOW_TO_LOAD
from sparsefmt.checkpoints.compressed_tensors import Quantization
from sparsefmt.checkpoints.huggingface import CONFIG, HINT, METHOD, SCHEMES
from sparsefmt.container.sources import BACKENDS, Backend
from sparsefmt.torch.compute_dtype import ComputeDtype, checked
from sparsefmt.torch.selection import MIN_SPARSITY, Patterns, Selection

_OF_THE_CALL = ("compute_dtype", "backend", "max_decoded_bytes", "values", "group_size", "scale")
"""What depends on the machine, on whom its user trusts, and on what he wants to lose: not written to a config.json, nor
taken from one."""


def replace_dtype(config: PreTrainedConfig, old: torch.dtype | None, new: torch.dtype) -> None:
    """Write another dtype into the config of a model, and into those of its parts, where they have the old one."""
    if str(config.dtype).removeprefix("torch.") == str(old).removeprefix("torch."):
        config.dtype = new
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if part is not None:
            replace_dtype(part, old, new)


@register_quantization_config(METHOD)
class SparsefmtConfig(QuantizationConfigMixin):
    """How `from_pretrained` holds the weights of linear layers.

    config.json of a folder that `sparsefmt convert` or `save_pretrained` wrote has one. Given to `from_pretrained` with
    a folder of dense weights, it makes the layers that are pruned SparseLinear while they are loaded, one by one.

    Args:
        layout, min_sparsity, include, exclude, min_size: as in `sparsefmt.torch.sparsify`; layers that do not become a
            SparseLinear are loaded dense.
        values, group_size, scale: as in `sparsefmt.torch.sparsify`: weights of layers that become a SparseLinear are
            rounded to elements of a byte and scales. `save_pretrained` writes these. config.json never has the three.
        activations: None for what the files say of each layer, as `save_pretrained` writes it; "int8" to round
            activations to eight bits in all layers with scaled elements of int8; "float" to round none.
        compute_dtype: as in `sparsefmt.torch.sparsify`. `save_pretrained` writes what it would write without.
            config.json never has it.
        quant_method: as config.json has it: "sparsefmt".
        how_to_load: the text for people that config.json has; whatever it is, it changes nothing.
        compressed_tensors: the quantization_config of a checkpoint that compressed-tensors has quantized, as the
            config.json of its converted folder has it. Nobody has to give it: `from_pretrained` finds it, in folders
            that were not converted too.
        backend: how .sparsefmt files are read, as in `sparsefmt.open_file`. config.json never has it.
        max_decoded_bytes: of all tensors of each .sparsefmt file together, as in `sparsefmt.load_file`. config.json
            never has it.

    Raises:
        ValueError: another layout, method, `compute_dtype`, `values` or the like, a sparsity out of range, or a name
            that is none of these.
        FormatError, UnsupportedError: weights that are quantized otherwise than is known.
        TypeError: patterns that are not text.

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
        exclude: Patterns = None,
        min_size: int | None = None,
        *,
        compute_dtype: ComputeDtype = None,
        values: str | None = None,
        group_size: int | None = None,
        scale: str = "absmax",
        activations: str | None = None,
        quant_method: str = METHOD,
        how_to_load: object = None,
        compressed_tensors: dict[str, Any] | None = None,
        backend: Backend = "mmap",
        max_decoded_bytes: int | None = None,
        **others: Any,
    ) -> None:
        selection = Selection.of(layout, min_sparsity, include, exclude, min_size)
        selection = selection.quantizing(values, group_size, scale, activations)
        if quant_method != METHOD:
            raise ValueError(f"quant_method of a SparsefmtConfig is {METHOD!r}, not {quant_method!r}")
        if backend not in BACKENDS:
            raise ValueError(f"backend must be 'mmap' or 'pread', not {backend!r}")
        if others:
            names = ", ".join(map(repr, others))
            raise ValueError(f"the quantization_config has {names}, which this version of sparsefmt does not know")
        if compressed_tensors is not None:
            schemes.parse(compressed_tensors, CONFIG)
        self.quant_method = METHOD  # type: ignore[assignment]
        self.layout = selection.layout
        self.min_sparsity = selection.min_sparsity
        self.include = selection.include
        self.exclude = selection.exclude
        self.min_size = selection.min_size
        self.values, self.group_size, self.scale = values, group_size, scale
        self.activations = selection.activations
        self.compute_dtype = None if checked(compute_dtype) is None else "float32"
        self.compressed_tensors = compressed_tensors
        self.backend: Backend = backend
        self.max_decoded_bytes = max_decoded_bytes

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """The config that a config.json has.

        Raises:
            ValueError: it has what is not for a file to decide, or what `SparsefmtConfig` refuses.
        """
        if found := [name for name in _OF_THE_CALL if name in config_dict]:
            raise ValueError(
                f"the quantization_config has {', '.join(map(repr, found))}, which is not for a file to decide: give"
                f" from_pretrained quantization_config=SparsefmtConfig({found[0]}=...)"
            )
        return super().from_dict(config_dict, return_unused_kwargs, **kwargs)

    @property
    def selection(self) -> Selection:
        """The same, as the rest of the library takes it."""
        selection = Selection(self.layout, self.min_sparsity, self.include, self.exclude, self.min_size)
        return selection.quantizing(self.values, self.group_size, self.scale, self.activations)

    def with_schemes(self, found: dict[str, Any] | None) -> SparsefmtConfig:
        """The same for a model whose config.json says that its weights are quantized so.

        Raises:
            FormatError, UnsupportedError: otherwise than is known.
        """
        if found == self.compressed_tensors:
            return self
        made = copy.copy(self)
        made.compressed_tensors = found
        if found is not None:
            schemes.parse(found, CONFIG)
        return made

    def hold_by_rows(self) -> None:
        """Say how weights are quantized once they have been loaded, which is how they are saved again."""
        found, quantization = self.compressed_tensors, self.quantization
        if found is not None and quantization is not None:
            self.compressed_tensors = schemes.by_rows(found) if quantization.targets else None

    @property
    def quantization(self) -> Quantization | None:
        """Which weights of the files are quantized, and how; None if none are."""
        return None if self.compressed_tensors is None else schemes.parse(self.compressed_tensors, CONFIG)

    def to_dict(self) -> dict[str, Any]:
        """What config.json gets: what differs from the defaults, and a text for those who print it."""
        settings: dict[str, Any] = {"quant_method": METHOD, HINT: HOW_TO_LOAD}
        if self.layout != "auto":
            settings["layout"] = self.layout
        if self.min_sparsity != MIN_SPARSITY:
            settings["min_sparsity"] = self.min_sparsity
        if self.include is not None:
            settings["include"] = list(self.include)
        if self.exclude is not None:
            settings["exclude"] = list(self.exclude)
        if self.min_size is not None:
            settings["min_size"] = self.min_size
        if self.activations is not None:
            settings["activations"] = self.activations
        if self.compressed_tensors is not None:
            settings[SCHEMES] = self.compressed_tensors
        return settings
