"""The tensors that `sizes.py` stores: those of files, and synthetic ones.

The tool imports this file; it is not a program.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np

from sparsefmt.checkpoints.safetensors_file import SafetensorsFile
from sparsefmt.dtypes import dtype_of
from tools.bench.sizes_contenders import WORTH_PRUNING, Tensors, bits_of
from tools.pruning import Array, apply_mask, block_mask, magnitude_mask, nm_mask, wanda_mask

VALUE_DTYPES = {"bf16": np.dtype(ml_dtypes.bfloat16), "f32": np.dtype(np.float32)}

METHODS: dict[str, Callable[[Array], Array]] = {
    "dense": lambda weight: np.ones(weight.shape, np.bool_),
    **{f"magnitude-{percent}": partial(magnitude_mask, sparsity=percent / 100) for percent in (50, 70, 80, 90, 95)},
    "wanda-50": lambda weight: wanda_mask(weight, np.random.default_rng(1).lognormal(0, 0.7, weight.shape[1:]), 0.5),
    "2of4": partial(nm_mask, n=2, m=4),
    "4x4-50": partial(block_mask, block=(4, 4), sparsity=0.5),
    "16x1-80": partial(block_mask, block=(16, 1), sparsity=0.8),
}

CASES = [f"{dtype}-{method}" for dtype in VALUE_DTYPES for method in METHODS]


def read_tensors(path: Path, everything: bool) -> Tensors:
    found = {}
    with SafetensorsFile(path) as file:
        for name in file.names:
            matrix = file.rows_of(name)
            if matrix.dtype.packed or 0 in matrix.shape:
                continue
            array = matrix.bits(0, matrix.rows).view(matrix.dtype.numpy).reshape(matrix.shape)
            if everything or (array.ndim > 1 and np.mean(zeros_of(array)) >= WORTH_PRUNING):
                found[name] = np.ascontiguousarray(array).reshape(array.shape)
    return found


def synthetic_tensors(case: str, side: int) -> Tensors:
    dtype, method = case.split("-", 1)
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((side, side), np.float32)
    weight *= rng.lognormal(0, 0.2, (side, 1)).astype(np.float32)
    weight *= rng.lognormal(0, 0.2, side).astype(np.float32)
    weight = weight.astype(VALUE_DTYPES[dtype])
    return {"weight": apply_mask(weight, METHODS[method](weight), multiply=False)}


def zeros_of(array: np.ndarray) -> np.ndarray:
    """Where 0 or -0.0 is; nowhere in types without a zero to prune."""
    bits, dtype = bits_of(array), dtype_of(array.dtype)
    return ((bits == 0) | (bits == dtype.negative_zero)) & dtype.prunable
