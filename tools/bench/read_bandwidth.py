"""How fast memory and caches are read: what products cannot be faster than. Imported by `kernels.py`, not a program."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import njit

from tools.bench.kernels_timing import settle

MB = 1 << 20
STREAM_BYTES = 256 * MB


@njit(nogil=True)
def _sum_in_four_streams(words: np.ndarray, passes: int) -> int:
    quarter = words.size // 4
    total = np.uint64(0)
    for _ in range(passes):
        sum0, sum1, sum2, sum3 = np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(0)
        for i in range(quarter):
            sum0 += words[i]
            sum1 += words[i + quarter]
            sum2 += words[i + 2 * quarter]
            sum3 += words[i + 3 * quarter]
        total += sum0 + sum1 + sum2 + sum3
    return total


class ReadBandwidth:
    """How fast memory, or the cache that it fits into, can be read: the best of a few sums of as many bytes.

    The bytes are read over and over, so that what fits into a cache comes from there, as with warm products. Sizes
    are measured once, to the nearest half power of two, and no more than STREAM_BYTES.
    """

    def __init__(self) -> None:
        self._words = np.arange(STREAM_BYTES // 8, dtype=np.uint64)
        self._measured: dict[tuple[int, int], float] = {}

    def __call__(self, threads: int, size: int = STREAM_BYTES) -> float:
        """Bytes a second."""
        rounded = min(STREAM_BYTES, int(2 ** (round(2 * math.log2(size)) / 2)))
        key = threads, rounded
        if key not in self._measured:
            self._measured[key] = self._measure(threads, self._words[: rounded // 8])
        return self._measured[key]

    def _measure(self, threads: int, words: np.ndarray) -> float:
        passes = max(1, 64 * MB // words.nbytes)
        parts = np.array_split(words, threads)
        best = math.inf
        settle()
        with ThreadPoolExecutor(threads) as pool:
            for _ in range(11):  # the first one compiles
                start = time.perf_counter()
                list(pool.map(lambda part: _sum_in_four_streams(part, passes), parts))
                best = min(best, time.perf_counter() - start)
        return passes * words.nbytes / best
