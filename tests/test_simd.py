"""What the vectors compile to, which instruction set is chosen, and that a missing cache folder is no obstacle."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT
from numba import njit

from sparsefmt import isa
from sparsefmt.kernels import expand, partial_sums, permuted, simd
from sparsefmt.kernels.simd import BF16, F16, F32, F64

TABLE, PIECES = np.zeros((1, 7), np.int64), np.zeros((0, 3), np.int64)
FLOATS = np.zeros((1, 64), np.float32)


def loops(kernel, *arguments) -> list[list[str]]:
    """Instructions of each block of machine code with a fused multiply-add, compiled afresh, not from the cache."""
    fresh = njit(nogil=True)(kernel.py_func)
    fresh(*arguments)
    (assembly,) = fresh.inspect_asm().values()
    blocks = re.split(r"\n(?=\.LBB)", assembly)
    lines = [[line.strip() for line in block.splitlines() if line.startswith("\t")] for block in blocks]
    return [block for block in lines if any("fmadd" in line or "fma." in line for line in block)]


def of_few(kind: int, tokens: int = 1) -> list[list[str]]:
    x = np.zeros((tokens, 128), np.float32)
    kernel = partial_sums.of_few(True, kind, tokens)
    return loops(kernel, TABLE, PIECES, 0, 0, x, 64, 0, np.zeros(128, np.float32), FLOATS)


needs_avx2 = pytest.mark.skipif(simd.ISA == "portable", reason="needs AVX2")


@needs_avx2
@pytest.mark.parametrize("kind", [F32, BF16, F16])
def test_values_are_expanded_by_one_instruction(kind):
    expected = {
        "avx512": {F32: "v(p?)expand(ps|d)", BF16: "vpexpandw", F16: "vpexpandw"},
        "avx2": {F32: "vpermps", BF16: "vpshufb", F16: "vpshufb"},
    }[simd.ISA][kind]
    (hot,) = [block for block in of_few(kind) if any(re.match(expected, line) for line in block)]
    shuffles = [line for line in hot if re.match(expected, line)]
    # 64 columns of two rows, 16 or 8 at a time
    assert len(shuffles) == (8 if simd.ISA == "avx512" else 16)
    if simd.ISA == "avx512":
        assert not any("(" in line for line in shuffles), "load and expansion in one are slow on some processors"


@needs_avx2
def test_permuted_inserts_scalars():
    hot = loops(permuted.of_one(F32, False), TABLE, PIECES, 0, 0, FLOATS, FLOATS)
    longest = max(hot, key=len)
    # two slices, four slots: of eight loads each, six or seven are inserts from memory
    assert sum(line.startswith("vinsertps") and "(" in line for line in longest) == 2 * 4 * 6


@needs_avx2
@pytest.mark.parametrize("kind", [F32, BF16, F16])
def test_no_gather_and_no_call_in_loops(kind):
    lanes, count = permuted.token_shapes(kind)[0]
    flat = FLOATS.reshape(-1)
    made = [
        *of_few(kind),
        *loops(permuted.of_one(kind, False), TABLE, PIECES, 0, 0, FLOATS, FLOATS),
        *loops(permuted.of_one(kind, True), TABLE, PIECES, 0, 0, FLOATS, FLOATS),
        *loops(permuted.of_many(kind, False, lanes, count), TABLE, PIECES, 0, 0, flat, 64, 8, 1, flat),
        *loops(partial_sums.of_many(True, kind), TABLE, PIECES, 0, 0, flat, 64, 64, 0, np.zeros(8192), FLOATS),
    ]
    assert len(made) >= 5
    for block in made:
        for line in block:
            assert "gather" not in line
            assert not line.startswith("call"), line


@needs_avx2
def test_sums_stay_in_registers():
    """The block of rows times tokens: one load for each operand, none for sums, no store."""
    flat = FLOATS.reshape(-1)
    kernel = partial_sums.of_many(True, F32)
    hot = loops(kernel, TABLE, PIECES, 0, 0, flat, 64, 64, 0, np.zeros(8192), FLOATS)
    blocks = [block for block in hot if sum("fmadd" in line for line in block) == partial_sums.ROWS * 4]
    assert blocks, [sum("fmadd" in line for line in block) for block in hot]
    for block in blocks:
        assert not any(re.match(r"v?mov\S+\s+%[xyz]mm\d+,.*\(", line) for line in block), "a sum is stored"


class TestChoice:
    full = isa._NEEDED["avx2"] | isa._NEEDED["avx512"]

    def test_best_of_the_features(self):
        assert isa.choose_isa(self.full, None) == "avx512"
        assert isa.choose_isa(isa._NEEDED["avx2"], "") == "avx2"
        assert isa.choose_isa(self.full - {"bmi2"}, None) == "portable"
        assert isa.choose_isa(self.full - {"avx512vbmi2"}, None) == "avx2"
        assert isa.choose_isa(set(), None) == "portable"

    @pytest.mark.parametrize("wanted", isa.ISAS)
    def test_less_may_be_wanted(self, wanted):
        assert isa.choose_isa(self.full, wanted) == wanted

    def test_more_or_nonsense_is_an_error(self):
        with pytest.raises(ValueError, match="has 'avx2'"):
            isa.choose_isa(isa._NEEDED["avx2"], "avx512")
        with pytest.raises(ValueError, match="must be one of portable, avx2, avx512, not 'sse'"):
            isa.choose_isa(self.full, "sse")

    def test_the_environment_chooses(self):
        code = "from sparsefmt.kernels import simd, expand; print(simd.ISA, expand.in_registers(simd.F32))"
        found = subprocess.run(
            [sys.executable, "-c", code],
            env={"SPARSEFMT_ISA": "portable", "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        )
        assert found.stdout == "portable False\n"


def test_in_registers():
    assert not expand.in_registers(F64)
    assert expand.in_registers(BF16) == (simd.ISA != "portable")


def test_no_folder_for_the_cache(tmp_path):
    """A read-only installation and no home: kernels are compiled and not kept. Files where folders should be stand for
    what cannot be written, since tests may run as a user who can write everywhere."""
    shutil.copytree(ROOT / "sparsefmt", tmp_path / "sparsefmt", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("kernels", "layouts/passes"):
        (tmp_path / "sparsefmt" / folder / "__pycache__").write_text("")
    (tmp_path / "home").write_text("")
    code = (
        "import numpy as np, sparsefmt\n"
        "w = sparsefmt.SparseTensor.from_dense(np.eye(16, dtype=np.float32), 'permuted')\n"
        "print(sparsefmt.__file__, (w @ np.ones(16, np.float32)).sum())\n"
    )
    environment = {"PYTHONPATH": str(tmp_path), "HOME": str(tmp_path / "home"), "PYTHONDONTWRITEBYTECODE": "1"}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert found.stderr == ""
    assert found.stdout.split() == [str(tmp_path / "sparsefmt" / "__init__.py"), "16.0"]
