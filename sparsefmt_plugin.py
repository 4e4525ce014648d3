"""What torch calls when it is imported, for programs that do not import sparsefmt.

torch calls the entry points of installed packages (group "torch.backends", since torch 2.5; not where
TORCH_DEVICE_BACKEND_AUTOLOAD=0), and this is ours. It is called wherever torch is imported, so it imports nothing, and
waits for what it is for:

- a program of torch.export that has products of compressed weights: when their operators are looked up,
  `sparsefmt.torch` is imported, which defines them.
- models of transformers, if the environment variable SPARSEFMT_TRANSFORMERS is 1: `sparsefmt.transformers` is imported
  after the part of transformers that loads models.

It lies outside of the package `sparsefmt`, which would be imported with it. Therefore it waits for a module by itself,
as `sparsefmt/torch/when_imported.py` does for those who have imported the package.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

VARIABLE = "SPARSEFMT_TRANSFORMERS"

_LOADS_MODELS = "transformers.modeling_utils"


def torch_is_imported() -> None:
    """What torch calls."""
    import torch

    if "sparsefmt.torch" not in sys.modules:
        setattr(torch.ops, "sparsefmt", _Operators("torch.ops.sparsefmt"))  # noqa: B010
    if os.environ.get(VARIABLE) == "1" and _LOADS_MODELS not in sys.modules:
        sys.meta_path.insert(0, _WaitsForTransformers())


class _Operators(ModuleType):
    """Stands for torch.ops.sparsefmt until somebody looks an operator up, and then makes way for it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        import torch

        if torch.ops.__dict__.get("sparsefmt") is self:
            del torch.ops.__dict__["sparsefmt"]
        import sparsefmt.torch  # noqa: F401

        return getattr(torch.ops.sparsefmt, name)


class _WaitsForTransformers:
    """A finder of modules that finds one alone, as others do, with a step behind its execution: ours is imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != _LOADS_MODELS:
            return None
        spec = PathFinder.find_spec(name, path)
        loader = None if spec is None else spec.loader
        if loader is None:
            return spec
        execute = loader.exec_module

        def executed(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                import sparsefmt.transformers  # noqa: F401

        # whoever asks may want to know only whether it is there: nothing has happened yet
        loader.exec_module = executed  # type: ignore[method-assign]
        return spec
