"""The house plan: imports point downward, nothing slow is imported early, nothing speaks of this machine."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
from helpers import ROOT

import sparsefmt

PACKAGE = ROOT / "sparsefmt"

STOREYS = [
    {"__main__"},
    {"cli"},
    {"dask"},
    {"report"},
    {"transformers", "peft"},
    {"checkpoints", "numpy", "torch"},
    {"safe_open", "safe_slice", "framework_file", "serialization"},
    {"dense_files"},
    {"api"},
    {"writing"},
    {"tensor_writer", "save_options", "sparse_file", "tensor_slice", "pickled_file", "cost_of_signs", "made_on_demand"},
    {"equal_tensors"},
    {"tensor"},
    {"quantizing", "patterns", "notebooks"},
    {"adapters"},
    {"slicing", "indexing", "file_tensor", "as_array"},
    {"container"},
    {"kernels"},
    {"layouts", "codecs"},
    {"shapes", "scales"},
    {
        *("lazily", "threads", "dtypes", "positions", "bits_of_words", "llvm", "isa", "compiling"),
        *("jit", "jit_cache", "jit_helpers", "jit_library"),
    },
    {"errors", "limits", "urls", "in_words", "grouped_rows"},
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


PUBLIC = {
    *("api.linear", "api.save", "api.save_file", "api.load_file"),
    *("safe_open.safe_open.__init__", "tensor_writer.TensorWriter.__init__", "numpy.save_file", "torch.files.save"),
    "serialization.serialize_file",
    *(
        "torch.files.save_file",
        "torch.model_files.save_model",
        "torch.model_files.load_model",
        "torch.linear.SparseLinear.__init__",
    ),
    *(
        "torch.linear.SparseLinear.from_tensor",
        "torch.loading.load_into",
        "torch.models.sparsify",
        "transformers.config.SparsefmtConfig.__init__",
    ),
    "transformers.saving.save_pretrained",
    *("dask.conversion.convert", "dask.verification.verify", "dask.reporting.report"),
}
"""What users call with keywords; and what torch calls: an operator of torch takes tensors and numbers alone."""

CALLED_BY_TORCH = {
    "torch.relative_attention.SparseRelativeAttention.forward",
    *("torch.operator.product", "torch.operator._linear_fake", "torch.linear.SparseLinear._load_from_state_dict"),
    *("torch.scaled_operator.scaled_product", "torch.scaled_operator._scaled_linear_fake"),
    *("torch.scaled_operator._scaled_linear_backward", "torch.scaled_operator._scaled_linear_backward_fake"),
    *("torch.convolution_operator.convolution", "torch.convolution_operator._fake"),
    *("torch.trainable_operator._product", "torch.trainable_operator._product_fake"),
    *("torch.trainable_operator._gradient_of_values", "torch.trainable_operator._gradient_of_values_fake"),
    *(
        "torch.trainable.TrainableSparseLinear._load_from_state_dict",
        "torch.attention.SparseMultiheadAttention.forward",
    ),
    *("torch.scaled_operator._scaled_dense", "torch.scaled_operator._scaled_dense_fake"),
}

CALLED_BY_PEFT = {"peft.dora.SparseDoraLayer.forward"}

COMPILED = {
    "adapters.jitted",
    "kernels",
    "layouts.jitted",
    "codecs.rans.jitted",
    "positions.jitted",
    "quantizing.jitted",
    "patterns.jitted",
}
"""Rooms of jitted code, which takes numbers and arrays one by one."""

MOST_PARAMETERS = 5


def test_values_that_belong_together_are_one_object():
    """No function takes more than a few parameters, except those that people call with keywords, and commands."""
    assert functions_of_many_parameters(PACKAGE, COMPILED) == PUBLIC | CALLED_BY_TORCH | CALLED_BY_PEFT


def test_so_they_are_in_programs_and_in_the_reader_of_the_specification():
    assert functions_of_many_parameters(ROOT / "tools") == set()
    assert functions_of_many_parameters(ROOT / "spec" / "python") == set()


def functions_of_many_parameters(folder: Path, without: Collection[str] = ()) -> set[str]:
    """Full names of the functions and methods below a folder that take more than MOST_PARAMETERS, commands aside.

    Args:
        without: beginnings of the names of modules that are left out.
    """
    many = set()
    for source in folder.rglob("*.py"):
        module = ".".join(source.relative_to(folder).with_suffix("").parts)
        if any(module.startswith(room) for room in without):
            continue
        for name, function in all_functions(ast.parse(source.read_text()), module):
            arguments = function.args
            names = [given.arg for given in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
            is_command = any("click.command" in ast.unparse(decorator) for decorator in function.decorator_list)
            if len(names) - (names[:1] in (["self"], ["cls"])) > MOST_PARAMETERS and not is_command:
                many.add(name)
    return many


def all_functions(node: ast.AST, place: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    """The functions and methods below a node, with their full names."""
    for child in ast.iter_child_nodes(node):
        name = f"{place}.{child.name}" if isinstance(child, (ast.FunctionDef, ast.ClassDef)) else place
        if isinstance(child, ast.FunctionDef):
            yield name, child
        yield from all_functions(child, name)


def functions(source: Path, within: str | None = None) -> list[str]:
    """Names of the public functions of a file, or of the methods of one of its classes, in order."""
    body = ast.parse(source.read_text()).body
    if within is not None:
        (body,) = [node.body for node in body if isinstance(node, ast.ClassDef) and node.name == within]
    return [node.name for node in body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]


def test_who_knows_one_adapter_knows_all():
    folder = PACKAGE / "adapters"
    both_ways = functions(folder / "contract.py", "Adapter")
    assert {"rows_of", "tensor_of", "part_of"} <= set(both_ways)
    for library in ("numpy", "torch"):
        assert functions(folder / f"{library}.py")[: len(both_ways)] == both_ways
    assert functions(folder / "pydata.py") == ["rows_of"]
    assert functions(folder / "scipy.py") == ["rows_of", "csr_array_of_dense", "csr_array_of"]


def test_jitted_code_stands_in_rooms_of_its_own():
    jitted = [source for source in PACKAGE.rglob("*.py") if "@jit" in source.read_text()]
    assert {source.parent.relative_to(PACKAGE).as_posix() for source in jitted} == {
        "adapters/jitted",
        "kernels",
        "layouts/jitted",
        "patterns/jitted",
        "quantizing/jitted",
        "positions/jitted",
        "codecs/rans/jitted",
    }


WORDS = {
    "pack": ("kernels", "patterns", "positions", "bits_of_words", "peft", "layouts.jitted", "codecs.rans.jitted"),
    "conver": ("layouts", "kernels", "codecs", "positions", "patterns", "quantizing", "tensor", "peft"),
    "choos|choice|chosen": ("isa", "bits_of_words", "positions", "codecs", "kernels", "layouts.jitted", "patterns"),
}
"""Parts of names that mean one thing (docs/architecture.md, "Words"), and rooms that do something else."""

OF_OTHERS = {"packbits", "unpackbits", "pack", "unpack", "packed", "convert"}
"""Names of numpy, struct and Pillow; and of `DType`: kernels are told of elements that are packed."""


@pytest.mark.parametrize("word", WORDS)
def test_a_word_means_one_thing(word):
    sources = 0
    for source in PACKAGE.rglob("*.py"):
        module = ".".join(source.relative_to(PACKAGE).with_suffix("").parts)
        if any(f"{module}.".startswith(f"{room}.") for room in WORDS[word]):
            found = {name for name in names_in(source) if re.search(word, name, re.IGNORECASE)} - OF_OTHERS
            assert not found, f"{module}: {found} use a word that means something else"
            sources += 1
    assert sources > 3


def names_in(source: Path) -> set[str]:
    """The names of variables, arguments, attributes, functions and classes in a file."""
    names = set()
    for node in ast.walk(ast.parse(source.read_text())):
        names |= {getattr(node, field) for field in ("id", "arg", "attr", "name") if hasattr(node, field)}
    return {name for name in names if isinstance(name, str)}


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


def test_tests_lie_where_their_rooms_lie():
    """tests/ has the folders of the package, and one for the specification and one for the tools."""
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} | {"spec", "tools"}
    folders = {path.parent.relative_to(ROOT / "tests").as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
    assert {folder.split("/")[0] for folder in folders} - {"."} == rooms
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert len(names) == len(set(names)), "pytest imports test files by their names alone"


def test_slow_files_are_there():
    """Those that tests/conftest.py has run first."""
    (names,) = re.findall(r"(?s)^SLOW_FILES = \[(.*?)^\]", (ROOT / "tests" / "conftest.py").read_text(), re.MULTILINE)
    files = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert {f"test_{name}.py" for name in re.findall(r"\w+", names)} <= files


def test_nothing_is_computed_once_under_a_lock_of_a_class():
    """functools.cached_property has one up to Python 3.11, which a forked child may wait for forever."""
    for source in PACKAGE.rglob("*.py"):
        assert "import cached_property" not in source.read_text(), source
        assert "functools.cached_property(" not in source.read_text(), source


class _Climbs:
    """Which functions of the package call one of a storey above theirs, as a profiler sees it: pairs of their names.

    Attributes that `lazily` computes do not count: who reads them stays in one class. Nor does a generator, which goes
    on wherever its next value is asked for.
    """

    def __init__(self) -> None:
        self.found: set[tuple[str, str]] = set()

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        callee = self._module(frame)
        if event != "call" or not callee or frame.f_code.co_flags & inspect.CO_GENERATOR:
            return
        caller = frame.f_back
        while caller is not None and not self._module(caller):
            caller = caller.f_back
        above = self._module(caller) if caller else ""
        if above and above != "lazily" and storey(callee) < storey(above):
            assert caller is not None
            self.found.add((f"{above}.{caller.f_code.co_qualname}", f"{callee}.{frame.f_code.co_qualname}"))

    @staticmethod
    def _module(frame: FrameType) -> str:
        path = Path(frame.f_code.co_filename)
        if not path.is_relative_to(PACKAGE) or (path.parent == PACKAGE and path.name == "__init__.py"):
            return ""
        return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


@pytest.mark.slow
def test_saving_climbs_in_five_places(tmp_path):
    """Threads call what they were given, three times; who writes a tensor asks for its tiles, and a codec that makes a
    model for its chunks. All else of the walk goes down, or stays."""
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((2000, 2000), np.float32)  # several tiles
    weight[rng.random(weight.shape) < 0.8] = 0
    sparsefmt.save({"w": weight[:64]})  # modules are imported, and jitted code is compiled
    climbs, before = _Climbs(), sys.getprofile()
    sys.setprofile(climbs)
    try:
        sparsefmt.save_file({"w": weight}, tmp_path / "w.sparsefmt", threads=1)
    finally:
        sys.setprofile(before)
    assert {(caller.split(".<")[0], callee.split(".<")[0]) for caller, callee in climbs.found} == {
        ("threads.in_order", "adapters.rows.Rows.survey"),
        ("threads.in_order", "codecs.contract.Each.__call__"),
        ("threads.in_order", "container.in_progress.TensorInProgress._encoded"),
        ("container.in_progress.TensorInProgress._completed", "adapters.rows.Rows.tile_maker"),
        ("codecs.contract.Each.__call__", "container.tensor_encoder._EachOfArray.chunk"),
    }


def test_nothing_else_lies_at_the_top():
    """What a command writes by default belongs to whoever runs it there, and to no commit."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode or not listed.stdout:
        pytest.skip("this is no clone")
    folders = {".ci", "docs", "sparsefmt", "spec", "tests", "tools"}
    texts = {"CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md", "SECURITY.md"}
    building = {".gitignore", "MANIFEST.in", "pyproject.toml", "setup.py", "sparsefmt_plugin.py"}
    assert {name.split("/")[0] for name in listed.stdout.splitlines()} <= folders | texts | building
