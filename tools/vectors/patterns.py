"""Elements of vectors: they follow from formulas, not from a random generator of any library."""

from __future__ import annotations

import numpy as np

from sparsefmt.dtypes import DType


def splitmix64(seed: int, count: int) -> np.ndarray:
    """`count` well mixed uint64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014)."""
    state = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def tensor(dtype: DType, shape: tuple[int, ...], seed: int, zeros_of_16: int) -> np.ndarray:
    """Any bit patterns, of which `zeros_of_16` in 16 are zero, one in three of those negative."""
    count = int(np.prod(shape, dtype=np.int64))
    patterns, choice = splitmix64(seed, count), splitmix64(seed + 1000, count)
    bits = patterns % np.uint64(2) if dtype.name == "BOOL" else patterns & np.uint64((1 << dtype.nbits) - 1)
    zero = choice % np.uint64(16) < zeros_of_16
    bits[zero] = 0
    bits[zero & (choice // np.uint64(16) % np.uint64(3) == 0)] = dtype.negative_zero
    return bits.astype(dtype.bits_dtype).view(dtype.numpy).reshape(shape)
