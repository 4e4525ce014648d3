"""The memory that a way to store tensors takes, measured in a fresh process by `sizes.py`.

The tool imports this file; it is not a program.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from tools.bench.harness import CLEAR_REFS, reset_peak, status
from tools.bench.sizes_contenders import Contender, Tensors, warm_up


class Peaks(NamedTuple):
    """Most bytes of memory in use at once, over what was in use before."""

    encode: int
    decode: int


def peaks_in_fresh_process(contender: Contender, tensors: Tensors) -> Peaks | None:
    """None where the system does not tell."""
    if not os.access(CLEAR_REFS, os.W_OK):
        return None
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peaks, contender, tensors).result()


def _peaks(contender: Contender, tensors: Tensors) -> Peaks:
    warm_up(contender, tensors)
    encode, stored = _peak(partial(contender.encode, tensors))
    decode, _ = _peak(partial(contender.decode, stored, tensors))
    return Peaks(encode, decode)


def _peak(work: Callable[[], Any]) -> tuple[int, Any]:
    """Peak of the process over its size before, and the result of `work`.

    Linux's high-water mark, set back before: getrusage's cannot be, and starts at that of the parent process. What the
    allocator holds in stock is given back first, since memory that is reused would not count.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    reset_peak()
    before = status()["VmRSS"]
    result = work()
    return max(0, status()["VmHWM"] - before), result
