"""Which layer and which projection a tensor belongs to, by its name."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsefmt.adapters import rows_of
from sparsefmt.dtypes import DTYPES
from sparsefmt.patterns import mask_of_rows, pattern_of
from sparsefmt.report.layers import MOST_LAYERS, MOST_PROJECTIONS, MOST_TABLES, Layers, layers_of
from sparsefmt.report.tensors import Tensor


def tensor(name: str, zeros: int = 0, shape: tuple[int, ...] = (4, 5)) -> Tensor:
    array = np.ones(shape, np.float32)
    array.reshape(-1)[:zeros] = 0
    rows = rows_of(array)
    pattern = pattern_of(mask_of_rows(rows))
    return Tensor(name, DTYPES["F32"], shape, 1, array.nbytes, array.size, lambda: rows, pattern)


def shown(layers: Layers) -> dict[str, dict[int, float]]:
    return {name: {number: cell.share for number, cell in row.items()} for name, row in layers.rows.items()}


def test_a_row_for_each_projection() -> None:
    names = {"encoder.layer.0.q.weight": 5, "encoder.layer.10.q.weight": 10, "encoder.layer.2.mlp.up.weight": 20}
    [layers] = layers_of(tensor(name, zeros) for name, zeros in names.items())
    assert (layers.prefix, layers.numbers) == ("encoder.layer.", [0, 2, 10])
    assert shown(layers) == {"q": {0: 0.25, 10: 0.5}, "mlp.up": {2: 1.0}}


def test_experts_of_a_layer_are_one() -> None:
    tensors = [tensor(f"layers.{layer}.experts.{e}.up.weight", 4 * e) for layer in range(2) for e in range(6)]
    [layers] = layers_of(tensors)
    assert shown(layers) == {"experts.*.up": {0: 0.5, 1: 0.5}}


def test_stacks_of_layers_have_a_table_each() -> None:
    tensors = [tensor(f"{part}.block.{layer}.wi") for part in ("decoder", "encoder") for layer in range(3)]
    tensors.append(tensor("encoder.block.3.wi"))
    assert [layers.prefix for layers in layers_of(tensors)] == ["encoder.block.", "decoder.block."]


def test_what_has_no_place_is_left_out() -> None:
    without: Any = tensor("layers.0.packed")
    without.pattern = None
    tensors = [
        *(tensor(f"layers.{layer}.w") for layer in range(2)),
        tensor("layers.0.bias", 0, (7,)),
        tensor("layers.0.empty", 0, (0, 7)),
        tensor("embed.weight"),
        tensor("conv1d.weight"),
        tensor("layers." + "9" * 4000 + ".w"),
        without,
    ]
    [layers] = layers_of(tensors)
    assert shown(layers) == {"w": {0: 0.0, 1: 0.0}}


def test_large_tables_are_cut() -> None:
    many = [tensor(f"layers.{layer}.w") for layer in range(MOST_LAYERS + 7)]
    many += [tensor(f"layers.0.{chr(97 + n % 26)}{chr(97 + n // 26)}") for n in range(MOST_PROJECTIONS + 2)]
    [layers] = layers_of(many)
    assert (len(layers.numbers), len(layers.rows), layers.left_out) == (MOST_LAYERS, MOST_PROJECTIONS, (7, 3))
    stacks = [tensor(f"{chr(97 + n)}.{layer}.w") for n in range(MOST_TABLES + 3) for layer in range(2)]
    assert len(layers_of(stacks)) == MOST_TABLES
