"""numba's compiler, as all jitted code here uses it. Only jitted code imports this file: numba loads in a second."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from numba import njit
from numba.core import event
from numba.core.compiler_lock import global_compiler_lock

from sparsefmt import compiling
from sparsefmt.jit_cache import Cache

if hasattr(os, "register_at_fork"):
    # a child forked while another thread compiles would wait for that thread, which it does not have, forever
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )


class _Reporter(event.Listener):
    """Reports when a function of this package is compiled, and not when it comes from the cache, or runs."""

    def on_start(self, event: Any) -> None:
        if _is_ours(event):
            compiling.watch.started()

    def on_end(self, event: Any) -> None:
        if _is_ours(event):
            compiling.watch.ended()


def _is_ours(event: Any) -> bool:
    return event.data["dispatcher"].py_func.__module__.split(".")[0] == "sparsefmt"


event.register("numba:compile", _Reporter())


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile on the first call, without the GIL, and keep the machine code on disk for the next process.

    Where it cannot be kept (`jit_cache.py`), every process compiles what it uses.
    """
    compiled = njit(nogil=True, no_cfunc_wrapper=True)(function)  # nothing takes it for a function of C
    with suppress(RuntimeError):  # no folder for it
        compiled._cache = Cache(function)
    return compiled
