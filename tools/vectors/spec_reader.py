"""The reader in spec/python, written from SPEC.md alone, as a module. Imported by tools and tests."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from types import ModuleType

from tools import ROOT

PATH = ROOT / "spec" / "python" / "reader.py"


@cache
def spec_reader() -> ModuleType:
    found = importlib.util.spec_from_file_location("reader_of_the_specification", PATH)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module  # dataclasses look their module up
    found.loader.exec_module(module)
    return module
