"""The house plan: imports point downward, nothing slow is imported early, nothing speaks of this machine."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from helpers import ROOT

import sparsefmt

PACKAGE = ROOT / "sparsefmt"

STOREYS = [
    {"__main__"},
    {"cli"},
    {"transformers"},
    {"interchange", "numpy", "torch"},
    {"handle"},
    {"api", "frameworks"},
    {"saving", "opened", "again", "signs"},
    {"tensor"},
    {"intake", "slicing"},
    {"container"},
    {"kernels"},
    {"layouts", "codecs"},
    {"threads", "dtypes", "jit", "isa", "compiling"},
    {"errors", "limits"},
]
"""From the roof to the ground. A module may import from its own storey and from those below."""


def storey(module: str) -> int:
    """Number of the storey of a module name below the package, the roof being 0."""
    top = module.split(".")[0]
    (number,) = [number for number, names in enumerate(STOREYS) if top in names]
    return number


def imported_modules(source: Path) -> set[str]:
    """Modules of the package that a file imports, wherever in the file, without the package's name."""
    found = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{source}: relative import"
            found.add(node.module)
            if node.module == "sparsefmt":
                found |= {f"sparsefmt.{alias.name}" for alias in node.names}
    return {name.removeprefix("sparsefmt.") for name in found if name.startswith("sparsefmt.")}


def test_imports_point_downward():
    seen = 0
    for source in PACKAGE.rglob("*.py"):
        module = ".".join(source.relative_to(PACKAGE).with_suffix("").parts)
        if module == "__init__":
            continue
        for imported in imported_modules(source):
            if imported in ("__version__", *sparsefmt.__all__):
                continue
            assert storey(imported) >= storey(module), f"{module} imports {imported}, which is above it"
            seen += 1
    assert seen > 100


def test_layouts_and_codecs_do_not_know_each_other():
    for folder, other in (("layouts", "codecs"), ("codecs", "layouts")):
        for source in (PACKAGE / folder).rglob("*.py"):
            assert not any(name.split(".")[0] == other for name in imported_modules(source)), source


def test_passes_call_no_jitted_code_of_other_files():
    """numba's cache would not notice an edit there."""
    jitted = [source for source in PACKAGE.rglob("*.py") if "@jit" in source.read_text()]
    assert {source.parent.relative_to(PACKAGE).as_posix() for source in jitted} == {
        "kernels",
        "layouts/passes",
        "codecs/passes",
    }
    for source in jitted:
        if source.parent.name == "passes":
            assert imported_modules(source) <= {"jit", "isa"}, source


def test_kernels_are_compiled_anew_when_a_source_changes():
    """Each has a constant in its closure, and so in the key of numba's cache, that has the sources' digest."""
    from sparsefmt.kernels import activations, partial_sums, permuted
    from sparsefmt.kernels.simd import F32, TARGET

    made = [
        partial_sums.of_few(True, F32, 1),
        partial_sums.of_few(False, F32, 1),
        partial_sums.of_many(True, F32),
        partial_sums.of_any_x(F32),
        permuted.of_one(F32, False),
        permuted.of_many(F32, False, 8, 1),
        permuted.of_any_x(F32, False),
        activations.in_columns(F32, 4),
        activations.in_tokens(F32, 8, 1, False),
        activations.from_tokens(F32, 8, 1, False),
    ]
    for kernel in made:
        assert TARGET in [cell.cell_contents for cell in kernel.py_func.__closure__], kernel


def test_import_is_light():
    code = """
import sys, sparsefmt
print([name for name in ("numba", "llvmlite", "scipy", "torch", "rich", "click", "safetensors") if name in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_public_names_are_documented():
    for name in sparsefmt.__all__:
        assert getattr(sparsefmt, name).__doc__, name
    assert list(sparsefmt.__all__) == sorted(sparsefmt.__all__)
