"""The table of zeros by layer and projection."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from sparsefmt.in_words import pattern
from sparsefmt.report.tensors import Tensor

MOST_LAYERS = 128
"""Columns of a table. If there are more layers, these are the first."""

MOST_PROJECTIONS = 40
MOST_TABLES = 6


@dataclass
class Cell:
    """All tensors of one projection in one layer."""

    zeros: int = 0
    elements: int = 0

    @property
    def share(self) -> float:
        return self.zeros / self.elements


@dataclass
class Layers:
    """The matrices of a stack of layers.

    Attributes:
        prefix: what their names have before the number of the layer.
        numbers: of the layers, ascending.
        rows: by projection, what names have behind that number, the cell of each layer that has it.
        left_out: layers and projections that the table would be too large for.
    """

    prefix: str
    numbers: list[int] = field(default_factory=list)
    rows: dict[str, dict[int, Cell]] = field(default_factory=dict)
    left_out: tuple[int, int] = (0, 0)


def layers_of(tensors: Iterable[Tensor]) -> list[Layers]:
    """A table for each stack of layers, for instance of an encoder and a decoder, the largest first.

    The first number in a name is that of the layer. Tensors without one, vectors, and what cannot be pruned are left
    out, and names that differ in a later number, such as that of an expert, share a cell.
    """
    found: dict[str, Layers] = {}
    sizes: dict[str, int] = {}
    for tensor in tensors:
        number = re.search(r"(?<![A-Za-z0-9])\d+(?![A-Za-z0-9])", tensor.name[:1000])
        # a number of very many digits is no number of a layer
        if number is None or len(number[0]) > 9 or not tensor.pattern or len(tensor.shape) < 2 or not tensor.elements:
            continue
        prefix, projection = tensor.name[: number.start()], pattern(tensor.name[number.end() :])
        layers = found.setdefault(prefix, Layers(prefix))
        cell = layers.rows.setdefault(projection, {}).setdefault(int(number[0]), Cell())
        cell.zeros += tensor.pattern.zeros
        cell.elements += tensor.elements
        sizes[prefix] = sizes.get(prefix, 0) + tensor.elements
    tables = sorted(found.values(), key=lambda layers: -sizes[layers.prefix])[:MOST_TABLES]
    for layers in tables:
        numbers = sorted({number for row in layers.rows.values() for number in row})
        layers.left_out = max(len(numbers) - MOST_LAYERS, 0), max(len(layers.rows) - MOST_PROJECTIONS, 0)
        layers.numbers = numbers[:MOST_LAYERS]
        layers.rows = _without_common_end(dict(list(layers.rows.items())[:MOST_PROJECTIONS]))
    return [layers for layers in tables if len(layers.numbers) > 1 or len(layers.rows) > 1]


def _without_common_end(rows: dict[str, dict[int, Cell]]) -> dict[str, dict[int, Cell]]:
    """With names of projections without the dot before them, and without the .weight that all have."""
    ends = all(name.endswith(".weight") and len(name) > len(".weight") for name in rows)
    return {(name.removesuffix(".weight") if ends else name).lstrip("._") or name: row for name, row in rows.items()}
