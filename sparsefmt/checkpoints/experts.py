"""Whether a checkpoint has all experts of each layer, where it has a tensor for each of them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sparsefmt.errors import FormatError

_EXPERT = re.compile(r"(?P<before>.*\bexperts\.)(?P<number>\d+)(?P<behind>\..+)")


def expect_whole(shapes: Mapping[str, tuple[int, ...]], experts: int | None = None) -> None:
    """Refuse a checkpoint that lacks a tensor of an expert, or whose experts differ in shape.

    Args:
        shapes: of all tensors of all files, by name. Names such as `experts.3.up_proj.weight` belong to experts.
        experts: how many the model has in each layer, if that is known.

    Raises:
        FormatError: `experts`, with the name of the tensor.
    """
    layers: dict[str, dict[str, dict[int, tuple[int, ...]]]] = {}
    for name, shape in shapes.items():
        found = _EXPERT.fullmatch(name)
        if found is not None:
            before, number, behind = found.groups()
            layers.setdefault(before, {}).setdefault(behind, {})[int(number)] = shape
    for before, projections in layers.items():
        count = max(1 + max(max(found) for found in projections.values()), experts or 0)
        for behind, shapes_by_number in projections.items():
            _expect_equal(before, behind, shapes_by_number, count)


def _expect_equal(before: str, behind: str, experts: dict[int, tuple[int, ...]], count: int) -> None:
    """Refuse one projection of a layer that lacks an expert, or whose experts differ in shape."""
    first = min(experts)
    for number in range(count):
        name = f"{before}{number}{behind}"
        if number not in experts:
            raise FormatError("experts", f"it is missing: the layer has {count:,} experts", tensor=name)
        if experts[number] != experts[first]:
            raise FormatError(
                "experts",
                f"it has shape {list(experts[number])}, and expert {first} has {list(experts[first])}",
                tensor=name,
            )
