"""numba's compiler, as all jitted code here uses it. Only jitted code imports this file: numba loads in a second."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from numba import types
from numba.core import event
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import CPUDispatcher
from numba.core.sigutils import normalize_signature

from sparsefmt import compiling
from sparsefmt.jit_cache import Cache
from sparsefmt.jit_library import Compiler, Use, callable_in_jitted_code, share_environments

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
    caller, sees the constant anyway. And they are pieces of their callers (`jit_library.py`) until Python calls them.
    Kernels are called by their address; what Python would call them by takes a third of the time.

    What its code depends on are constants of its closure (`simd.constant_of`), never such arguments.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function, targetoptions=dict(_OPTIONS), pipeline_class=Compiler)
        self._use = Use.PYTHON
        self._compiler._customize_flags = self._with_use
        with suppress(RuntimeError):  # no folder for it
            self._cache = Cache(function)

    def get_call_template(self, args: tuple[Any, ...], kws: dict[str, Any]) -> Any:
        """numba asks for the code for a call within jitted code."""
        args = tuple(map(types.unliteral, args))
        kws = {name: types.unliteral(arg) for name, arg in kws.items()}
        with self._used_as(Use.PIECE):
            return super().get_call_template(args, kws)

    def address(self, signature: tuple[Any, ...]) -> int:
        """Of the machine code for types of arguments: int32 (result, error, arguments …), as numba has it."""
        with self._used_as(Use.ADDRESS):
            self.compile(signature)
            code = self.overloads[signature]
            return int(code.library.get_pointer_to_function(code.fndesc.llvm_func_name))

    def compile(self, sig: Any) -> Any:
        """The code for types of arguments, as Python calls it."""
        with _compiling():
            args, _ = normalize_signature(sig)
            known = self.overloads.get(args)
            if known is not None and known.library.use < self._use:
                del self.overloads[args]
            return super().compile(sig)

    def add_overload(self, code: Any) -> None:
        if code.library.use is Use.PIECE and code.entry_point is None:
            code = callable_in_jitted_code(code)
        if code.library.use is not Use.PIECE:
            share_environments(code)
        if code.library.use is Use.PYTHON:
            super().add_overload(code)
        else:
            self.overloads[code.signature.args] = code  # which Python does not find

    @contextmanager
    def _used_as(self, use: Use) -> Iterator[None]:
        """Within the block, what is compiled is for such a use alone."""
        with global_compiler_lock:
            before = self._use
            self._set_use(use)
            try:
                yield
            finally:
                self._set_use(before)

    def _set_use(self, use: Use) -> None:
        self._use = self._cache.use = use

    def _with_use(self, flags: Any) -> Any:
        """The flags for numba's compiler."""
        flags.no_cpython_wrapper, flags.no_compile = self._use is not Use.PYTHON, self._use is Use.PIECE
        return flags


@contextmanager
def _compiling() -> Iterator[None]:
    """Within the block, this thread compiles. Nothing looks for garbage meanwhile: numba makes little of it, of very
    many objects, and a sixth of the time would go into that."""
    with global_compiler_lock:
        looks = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if looks:
                gc.enable()


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile on the first call, without the GIL, and keep the machine code on disk for the next process.

    Where it cannot be kept (`jit_cache.py`), every process compiles what it uses.
    """
    return _Function(function)
