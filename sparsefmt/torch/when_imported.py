"""Something to be done once another library is imported, without importing it.

A finder in front of all others answers for that one name: what the others find, with one more step behind the
execution of the module. It leaves with that step, and nothing of it remains. `sparsefmt_plugin.py`, which may
not import this package, has a finder of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def when_imported(name: str, then: Callable[[], object]) -> None:
    """Call a function as soon as a top-level module has been imported: now, if it has been."""
    if name in sys.modules:
        then()
    else:
        sys.meta_path.insert(0, _Finder(name, then))


class _Finder(MetaPathFinder):
    def __init__(self, name: str, then: Callable[[], object]) -> None:
        self._name = name
        self._then = then

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        # who asks may only want to know whether the module is there, so this has no effect by itself
        if fullname != self._name:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                self._add_a_step(spec)
                return spec
        return None

    def _add_a_step(self, spec: ModuleSpec) -> None:
        loader = spec.loader
        if loader is None or not hasattr(loader, "exec_module"):
            return
        execute = loader.exec_module

        def executed(module: ModuleType) -> None:
            del loader.exec_module
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                self._then()

        # loaders whose attributes cannot be set stay as they are
        with suppress(AttributeError, TypeError):
            loader.exec_module = executed  # type: ignore[method-assign]
