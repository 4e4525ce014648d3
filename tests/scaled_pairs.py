"""A scaled weight of a file, and what can be wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

FIT = r"'l.weight'.*'l.weight_scale' do not fit"
OBJECT = "metadata 'sparsefmt.scales' is not a JSON object"
BAD: list[tuple[dict[str, Any], dict[str, str], str, str]] = [
    ({"weight_scale": np.ones(9, np.float32)}, {}, "scales-shape", FIT),
    ({"weight_scale": np.ones((8, 5), np.float32)}, {}, "scales-shape", FIT),
    ({"weight_scale": np.full(8, np.nan, np.float32)}, {}, "scales-value", FIT),
    ({"weight_scale": np.full(8, -1, np.float32)}, {}, "scales-value", FIT),
    ({"weight_scale": np.ones(8, np.float64)}, {}, "scales-dtype", FIT),
    ({"weight_scale": np.ones(8, np.int8)}, {}, "scales-dtype", FIT),
    (
        {"weight_scale": None},
        {},
        "scales-missing",
        r"'l.weight'.*its scales are 'l.weight_scale', which is not among the tensors",
    ),
    (
        {"weight": None},
        {},
        "scales-missing",
        r"'l.weight_scale'.*it has the scales of 'l.weight', which is not among the tensors",
    ),
    ({}, {"sparsefmt.scales": "[]"}, "scales-metadata", OBJECT),
    ({}, {"sparsefmt.scales": "{"}, "scales-metadata", OBJECT),
    ({}, {"sparsefmt.scales": '{"l.weight": 1}'}, "scales-metadata", OBJECT),
    ({}, {"sparsefmt.scales": '[["l.weight", "l.weight_scale"]]'}, "scales-metadata", OBJECT),
    (
        {},
        {"sparsefmt.scales": '{"l.weight": "l.weight_scale", "l.weight": "l.weight_scale"}'},
        "scales-metadata",
        r"'l.weight'.*'sparsefmt.scales' names its scales twice",
    ),
    *(
        ({}, {"sparsefmt.activations": text}, "activations-metadata", words)
        for text, words in (
            ("[]", "metadata 'sparsefmt.activations' is not a JSON object"),
            ('{"l.weight": "int4"}', r"'l.weight'.*'sparsefmt.activations' has 'int4', not 'int8'"),
            ('{"l.bias": "int8"}', r"'l.bias'.*'sparsefmt.activations' names it, and 'sparsefmt.scales' does not"),
            ('{"l.weight": "int8", "l.weight": "int8"}', r"'l.weight'.*'sparsefmt.activations' names it twice"),
        )
    ),
    (
        {"weight_zero_point": np.zeros(8, np.int8)},
        {},
        "quantized-otherwise",
        r"'l.weight'.*'l.weight_zero_point' is there.*'l.weight_scale' have no zero points",
    ),
    ({"weight_g_idx": np.arange(16)}, {}, "quantized-otherwise", r"'l.weight'.*'l.weight_g_idx' is there.*actorder"),
    (
        {"input_scale": np.full((), -1, np.float32)},
        {},
        "input-scale",
        r"'l.weight'.*'l.input_scale' of its activations: input_scale must",
    ),
]
"""Tensors and metadata that differ from those of a good pair, the code of the error, and words in it."""


def pair_with(tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors and the metadata of a file with a scaled weight, changed; None leaves a tensor out."""
    good = {"weight": np.ones((8, 16), np.int8), "weight_scale": np.ones(8, np.float32)}
    whole = {f"l.{name}": tensor for name, tensor in {**good, **tensors}.items() if tensor is not None}
    return whole, {"sparsefmt.scales": '{"l.weight": "l.weight_scale"}', **metadata}
