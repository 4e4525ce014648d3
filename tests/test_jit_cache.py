"""Machine code that is kept on disk: it is that of the present sources, and lies where it can do no harm."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT

PROGRAM = """
import sys, numpy, sparsefmt
w = sparsefmt.SparseTensor.from_dense(numpy.eye(16, dtype="f4"), "permuted")
print((w @ numpy.ones(16, "f4")).sum())
from sparsefmt.kernels import kinds, permuted
kernel = permuted.one_token_kernel_of_gaps(kinds.F32, False)
print(sum(kernel.stats.cache_hits.values()), sum(kernel.stats.cache_misses.values()))
"""


UNPACK = """
import sys, numpy
from sparsefmt.kernels import activations, job, kinds
for width in sys.argv[1:] or ["1"]:
    kernel, y = activations.from_tokens(kinds.F32, 8, int(width), False), numpy.zeros((1, 3), "f4")
    sums, numbers = numpy.arange(64, dtype="f4"), numpy.zeros(job.BYTES // 8, "i8")
    numbers[[job.Y // 8, job.RESULT // 8]] = sums.ctypes.data, y.ctypes.data
    numbers[[job.TOKENS // 8, job.ROWS // 8, job.RESULT_PITCH // 8]] = 1, 3, 3
    kernel(numbers.ctypes.data, 0, 1, 0)
    print(int(y.sum()), sum(kernel.stats.cache_hits.values()), sum(kernel.stats.cache_misses.values()))
"""
"""Compiled sooner than a product. Each width makes a kernel of the same function with another constant."""


def run(folder: Path, program: str = PROGRAM, **variables: str) -> list[str]:
    """What a fresh process prints that imports the package from `folder`."""
    environment = {**os.environ, "PYTHONPATH": str(folder), **variables}
    found = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    assert found.stderr == ""
    return found.stdout.split()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with a copy of the package."""
    shutil.copytree(ROOT / "sparsefmt", tmp_path / "copy" / "sparsefmt", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "copy"


@pytest.mark.slow
def test_code_is_kept_for_the_next_process_but_not_beside_the_package(copy, tmp_path):
    """What lay beside it would be left when the package is uninstalled, and be taken for a package."""
    before = sorted(copy.rglob("*"))
    kept = {"NUMBA_CACHE_DIR": str(tmp_path / "kept"), "PYTHONDONTWRITEBYTECODE": "1"}
    assert run(copy, **kept) == ["16.0", "0", "1"]
    assert run(copy, **kept) == ["16.0", "1", "0"]
    assert sorted(copy.rglob("*")) == before
    assert {path.parent for path in (tmp_path / "kept").rglob("*.nbc")} == {tmp_path / "kept" / "sparsefmt"}


@pytest.mark.slow
def test_the_cache_folder_of_the_user(tmp_path):
    home = {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "home" / "caches"), "NUMBA_CACHE_DIR": ""}
    assert run(ROOT, UNPACK, **home) == ["24", "0", "1"]
    assert run(ROOT, UNPACK, **home) == ["24", "1", "0"]
    assert list((tmp_path / "home").rglob("*.nbc"))


@pytest.mark.slow
def test_no_folder_for_the_cache(tmp_path):
    """A read-only installation and no home: kernels are compiled and not kept. A file where the home should be stands
    for what cannot be written, since tests may run as a user who can write everywhere."""
    (tmp_path / "home").write_text("")
    nowhere = {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": "", "NUMBA_CACHE_DIR": ""}
    assert run(ROOT, UNPACK, **nowhere) == ["24", "0", "1"]


@pytest.mark.thorough
@pytest.mark.slow
def test_an_edit_of_another_file_is_noticed(copy, tmp_path):
    """Of an intrinsic that a kernel uses. Sources that nothing changed share their code."""
    kept = {"NUMBA_CACHE_DIR": str(tmp_path / "kept")}
    assert run(copy, UNPACK, **kept) == ["24", "0", "1"]
    other = tmp_path / "other"
    shutil.copytree(copy, other)
    assert run(other, UNPACK, **kept) == ["24", "1", "0"]
    with (other / "sparsefmt" / "kernels" / "simd.py").open("a") as source:
        source.write("# edited\n")
    assert run(other, UNPACK, **kept) == ["24", "0", "1"]
    assert run(copy, UNPACK, **kept) == ["24", "1", "0"]


def test_the_digest_is_of_all_that_is_imported():
    from sparsefmt import jit_cache

    package = ROOT / "sparsefmt"
    imported = set(jit_cache._imported_files((package / "kernels" / "permuted.py").read_text()))
    assert {package / "kernels" / "simd.py", package / "kernels" / "operand.py", package / "jit.py"} <= imported
    assert set(jit_cache._imported_files("from sparsefmt.kernels import (\n    permuted,\n)\n")) == {
        package / "kernels" / "__init__.py",
        package / "kernels" / "permuted.py",
    }
    of_kernels = {jit_cache.digest(package / "kernels" / f"{name}.py") for name in ("permuted", "bitmask")}
    assert len(of_kernels) == 2


def test_a_function_for_jitted_code_is_compiled_once_for_all_constants_and_anew_for_python():
    """Also from the cache, where both are kept."""
    from sparsefmt.jit import jit

    for _ in range(2):

        @jit
        def inner(value, step):
            return value + step

        @jit
        def outer(value):
            return inner(value, 1) + 10 * inner(value, 2)

        assert outer(5) == 76
        assert [str(args) for args in inner.overloads] == ["(int64, int64)"]
        assert (inner(5, 3), outer(6), inner(7, 1)) == (8, 87, 8)
        assert len(inner.overloads) == 1


def test_code_that_nobody_used_for_long_is_removed(tmp_path):
    from sparsefmt import jit_cache

    long_ago = time.time() - (jit_cache.UNUSED_DAYS + 1) * 24 * 3600
    for name in ("old.nbc", "old.nbc.tmp.1", "new.nbc", "notes.txt"):
        (tmp_path / name).write_text("")
        if name != "new.nbc":
            os.utime(tmp_path / name, (long_ago, long_ago))
    jit_cache._remove_unused(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.nbc", "notes.txt"]


@pytest.mark.thorough
@pytest.mark.slow
def test_processes_that_compile_at_the_same_time_keep_all_of_it(tmp_path):
    """Kernels of one function that differ in their constants alone: none is lost, and none is taken for another."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "NUMBA_CACHE_DIR": str(tmp_path / "kept"),
    }
    sums = {"1": "24", "2": "48"}
    orders = [["1", "2"], ["2", "1"], ["1", "2"]]
    together = [
        subprocess.Popen([sys.executable, "-c", UNPACK, *order], env=environment, stdout=subprocess.PIPE, text=True)
        for order in orders
    ]
    for order, process in zip(orders, together, strict=True):
        assert process.communicate()[0].split()[::3] == [sums[width] for width in order]
    after = subprocess.run(
        [sys.executable, "-c", UNPACK, "1", "2"], env=environment, capture_output=True, text=True, check=True
    )
    assert after.stdout.split() == ["24", "1", "0", "48", "1", "0"]


def test_damaged_files_are_as_good_as_none(tmp_path):
    from sparsefmt import jit_cache

    files = jit_cache._Files(str(tmp_path), "kernel", "digest")
    assert files.load(("types", 1)) is None
    files.save(("types", 1), "code")
    files.save(("types", 2), "other code")
    assert (files.load(("types", 1)), files.load(("types", 2))) == ("code", "other code")
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-5])
    assert files.load(("types", 1)) is None
    first, second = sorted(tmp_path.iterdir())
    first.write_bytes(b"")
    second.write_bytes(os.urandom(100))
    assert (files.load(("types", 1)), files.load(("types", 2))) == (None, None)
