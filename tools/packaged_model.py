"""The model that an installed package holds: what benchmarks and tests take real weights from."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def find_packaged_model(package: str) -> Path:
    """The one model.safetensors inside an installed package, found without running the package's code."""
    module = package.replace("-", "_")
    # A dotted name would make find_spec import the parent package.
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None:
        raise ValueError(f"no installed package {package!r}")
    found = [path for root in spec.submodule_search_locations or () for path in Path(root).rglob("model.safetensors")]
    if len(found) != 1:
        raise ValueError(f"package {package!r} holds {len(found)} files named model.safetensors, not one")
    return found[0]
