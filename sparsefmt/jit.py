"""numba's compiler as all jitted code here is compiled. Imported by jitted code only: numba takes a second to load."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile on the first call, without the GIL, and keep the machine code on disk for the next process.

    It is kept beside the source, else in the user's cache folder or in NUMBA_CACHE_DIR; where none of them can be
    written, every process compiles what it uses.
    """
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba found no place for the cache
        return njit(nogil=True)(function)
