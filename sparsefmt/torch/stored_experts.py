"""Tensors of a checkpoint under the names that a model of transformers has: renamed, and experts merged.

Checkpoints of such models have other names than the models, and a tensor for each expert where the model has one for
all. transformers has a mapping for that, which is followed here as far as it renames and merges experts.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from sparsefmt.checkpoints.experts import expect_whole
from sparsefmt.dtypes import DType
from sparsefmt.errors import in_file
from sparsefmt.layouts.sizes import Filling
from sparsefmt.tensor import SparseTensor
from sparsefmt.torch.derived import cast
from sparsefmt.torch.expert_kinds import count_of_experts
from sparsefmt.torch.stacking import above_each_other, stacked
from sparsefmt.torch.stored_tensors import Stored


class StoredExperts(Stored):
    """The weights of experts, (experts, out_features, in_features), in a tensor for each expert and projection.

    Args:
        parts: for each projection, the tensors of all experts; the rows of one projection come above those of the next.
    """

    def __init__(self, name: str, parts: Sequence[Sequence[Stored]]) -> None:
        self.name = name
        self.path = parts[0][0].path
        self._parts = parts
        self._all = [stored for part in parts for stored in part]
        self.is_stored_sparse = any(stored.is_stored_sparse for stored in self._all)
        self.is_scaled = any(stored.is_scaled for stored in self._all)

    @property
    def dtype(self) -> DType:
        return self._all[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self._parts[0]), sum(part[0].shape[0] for part in self._parts), self._all[0].shape[1]

    def filling(self) -> Filling:
        return Filling.together([stored.filling() for stored in self._all])

    def compressed(self, layout: str) -> SparseTensor:
        return stacked(self.matrices(self.shape[0], layout), layout)

    def matrices(self, count: int, layout: str) -> list[SparseTensor]:
        """Of scaled weights, elements times scales, in float32."""
        made = []
        for expert in zip(*self._parts, strict=True):
            found = []
            for stored in expert:
                with in_file(stored.path):
                    matrix = stored.multiplied_out(layout)
                found.append(cast(matrix, torch.float32) if self.is_scaled else matrix)
            made.append(above_each_other(found, layout))
        return made

    def elements(self) -> torch.Tensor:
        return torch.cat([torch.stack([stored.dense() for stored in part]) for part in self._parts], 1)


def under_names_of(model: torch.nn.Module, names: Collection[str], stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors of files under the names of a model, if that is one of transformers. Others keep their names.

    names: those that the model has.

    Raises:
        FormatError: an expert is missing, or has another shape than the others.
    """
    unknown = [name for name in stored if name not in names]
    if not unknown or not hasattr(model, "base_model_prefix") or not hasattr(model, "config"):
        return dict(stored)
    from transformers import core_model_loading
    from transformers.conversion_mapping import get_model_conversion_mapping

    mapping = get_model_conversion_mapping(model)  # type: ignore[arg-type]
    renamings = [each for each in mapping if isinstance(each, core_model_loading.WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, core_model_loading.WeightConverter)]
    found = {name: tensor for name, tensor in stored.items() if name in names}
    merged: dict[str, dict[str, list[Stored]]] = {}
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    prefix, known = str(model.base_model_prefix), dict.fromkeys(names, True)
    for name in sorted(unknown, key=_by_number):
        renamed, pattern = core_model_loading.rename_source_key(name, renamings, converters, prefix, known)
        if renamed not in names or renamed in found or (pattern is not None and not _merges(by_pattern[pattern])):
            found[name] = stored[name]
        elif pattern is None:
            found[renamed] = stored[name]
        else:
            merged.setdefault(renamed, {}).setdefault(pattern, []).append(stored[name])
    if merged:
        expect_whole({tensor.name: tensor.shape for tensor in stored.values()}, count_of_experts(model))
    for name, parts in merged.items():
        patterns = by_pattern[next(iter(parts))].source_patterns
        found[name] = StoredExperts(name, [parts[pattern] for pattern in patterns if pattern in parts])
    return found


def _merges(converter: Any) -> bool:
    """Whether a conversion merges experts, and the rows of their projections, and does nothing else."""
    steps = [(type(step).__name__, getattr(step, "dim", None)) for step in converter.operations]
    return steps in ([("MergeModulelist", 0)], [("MergeModulelist", 0), ("Concatenate", 1)])


def _by_number(name: str) -> list[Any]:
    """A key that puts expert 10 behind expert 9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
