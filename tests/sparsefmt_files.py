"""A small .sparsefmt file of every kind of tensor."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import cache

import numpy as np
from helpers import weights

from sparsefmt.tensor_writer import TensorWriter


@cache
def small_file(codec: str = "raw") -> bytes:
    rng = np.random.default_rng(3)
    tensors = {
        "bias": rng.standard_normal(5).astype(np.float32),
        "half": weights(rng, (9, 70), np.float16, 0.5, True),
        "most": weights(rng, (17, 40), np.float32, 0.9),
        "none": np.zeros((0, 3), np.int8),
    }
    sink = io.BytesIO()
    writer = TensorWriter(sink, {"k": "v"}, codec=codec)
    options = writer._options
    for name, array in tensors.items():
        # whatever is smaller, small as they are
        writer._options = replace(options, layout={"half": "bitmask", "most": "permuted"}.get(name, "auto"))
        writer.add(name, array)
    writer.add_alias("tied", "half")
    writer.finish()
    return sink.getvalue()
