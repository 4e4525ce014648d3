"""numba's compiler, as all jitted code here uses it. Only jitted code imports this file: numba loads in a second."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from numba import types
from numba.core import event
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import CPUDispatcher
from numba.core.sigutils import normalize_signature

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

_OPTIONS = {
    "nopython": True,
    "nogil": True,
    "boundscheck": None,
    "no_cfunc_wrapper": True,  # nothing takes it for a function of C
}


class _Function(CPUDispatcher):
    """A jitted function. Compiles less than numba's own for functions that other jitted code calls.

    They are compiled for an integer that is constant there as for any integer: LLVM, which compiles them into their
    caller, sees the constant anyway. And they come without what Python would call them by, which takes a third of the
    time, until Python does call them.

    What its code depends on are constants of its closure (`simd.constant_of`), never such arguments.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function, targetoptions=dict(_OPTIONS))
        self._bare = False
        with suppress(RuntimeError):  # no folder for it
            self._cache = Cache(function)

    def get_call_template(self, args: tuple[Any, ...], kws: dict[str, Any]) -> Any:
        """numba asks for the code for a call within jitted code."""
        args = tuple(map(types.unliteral, args))
        kws = {name: types.unliteral(arg) for name, arg in kws.items()}
        with global_compiler_lock:
            before = self._set_bare(True)
            try:
                return super().get_call_template(args, kws)
            finally:
                self._set_bare(before)

    def compile(self, sig: Any) -> Any:
        """The code for types of arguments, as Python calls it."""
        with global_compiler_lock:
            args, _ = normalize_signature(sig)
            known = self.overloads.get(args)
            if known is not None and not self._bare and _is_bare(known):
                del self.overloads[args]
            return super().compile(sig)

    def add_overload(self, code: Any) -> None:
        if _is_bare(code):
            self.overloads[code.signature.args] = code  # which Python does not find
        else:
            super().add_overload(code)

    def _set_bare(self, bare: bool) -> bool:
        """Whether what is compiled from now on comes without what Python would call it by; what it was before."""
        before, self._bare = self._bare, bare
        self.targetoptions["no_cpython_wrapper"] = self._cache.bare = bare
        return before


def _is_bare(code: Any) -> bool:
    # what tools compile for another processor cannot be called, and has no such addresses
    address_of = getattr(code.library, "get_pointer_to_function", None)
    return address_of is not None and not address_of(code.fndesc.llvm_cpython_wrapper_name)


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile on the first call, without the GIL, and keep the machine code on disk for the next process.

    Where it cannot be kept (`jit_cache.py`), every process compiles what it uses.
    """
    return _Function(function)
