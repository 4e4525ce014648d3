"""tools/bench/cycles.py: what it finds in assembly, and good code for ARM in a loop that is hard to compile."""

from __future__ import annotations

import csv
import re

import pytest
from click.testing import CliRunner

from tools.bench import cycles as bench
from tools.bench.cycles import Found, NoMCA
from tools.bench.cycles_code import ELEMENT, MULTIPLY_ADD

ARM = """
f:
\tcbz x0, .LBB0_4
.LBB0_1:
\tmov x3, x1
.LBB0_2:
\tldr q0, [x3], #16
\tfmla v1.4s, v0.4s, v2.s[0]
\tstr q1, [sp, #16]
\tcmp x3, x9
\tb.ge .LBB0_3
\tfmadd s0, s1, s2, s3
\tsdot v1.4s, v0.16b, v2.4b[1]
\tb.lt .LBB0_2
.LBB0_3:
\tsubs x0, x0, #1
\tb.ne .LBB0_1
.LBB0_4:
\tret
"""

X86 = """
f:
\t.p2align 4
.LBB0_1:                                # %loop
\tvmovups (%rdi), %ymm0
\tvfmadd231ps (%rsi), %ymm0, %ymm1
\tvmovups %ymm1, (%rdx)
\tvmovaps %ymm2, 32(%rsp)
\tdecq %rcx
\tjne .LBB0_1
\tretq
"""


@pytest.fixture
def no_tool(monkeypatch):
    def missing(version: str | None) -> None:
        bench.mca.cache_clear()
        monkeypatch.setenv("LLVM_MCA", "llvm-mca-of-old" if version else "/nowhere/llvm-mca")
        if version:

            class Done:
                stdout = f"Debian LLVM version {version}"

            monkeypatch.setattr(bench.subprocess, "run", lambda *args, **kwargs: Done)

    yield missing
    bench.mca.cache_clear()


def test_the_hottest_loop_is_found():
    outer, inner = sorted(bench.loops_of(ARM), key=lambda loop: loop.depth)
    assert (outer.depth, inner.depth) == (1, 2)
    assert outer.own == ["mov x3, x1", "subs x0, x0, #1", "b.ne .LBB0_1"]
    loop = bench.hottest(ARM, MULTIPLY_ADD, x86=False)
    assert loop == inner.lines == inner.own
    assert loop[0] == "ldr q0, [x3], #16"
    assert loop[-1] == "b.lt .LBB0_2"
    assert bench.units_of(loop, MULTIPLY_ADD, x86=False) == 5 + 16
    assert bench.units_of(loop, ELEMENT, x86=False) == 0
    assert [bench.on_stack(line, x86=False) for line in loop].count(True) == 1


def test_loops_of_x86():
    loop = bench.hottest(X86, ELEMENT, x86=True)
    assert len(loop) == 6
    assert bench.units_of(loop, MULTIPLY_ADD, x86=True) == 8
    assert bench.units_of(loop, ELEMENT, x86=True) == 8
    assert [bench.on_stack(line, x86=True) for line in loop].count(True) == 1


def test_what_is_red():
    good = Found("neoverse-v1", "k", "F32", MULTIPLY_ADD, 64, 90, 0.5, calls=0, spills=0, scalar=0)
    assert good.faults(0.2) == []
    assert good.faults(0.19) == ["slow"]
    bad = Found("neoverse-v1", "k", "F32", MULTIPLY_ADD, 64, 90, 0.1, calls=1, spills=2, scalar=0)
    assert bad.faults(0.2) == ["1 call", "2 spills"]


@pytest.mark.parametrize(("version", "said"), [(None, "llvm-mca is missing"), ("14.0.6", "is of LLVM 14")])
def test_a_missing_or_old_tool_is_named(version, said, no_tool):
    no_tool(version)
    with pytest.raises(NoMCA, match=f"{said}.*llvm-19"):
        bench.mca()


def test_an_unknown_kernel_is_named(monkeypatch):
    monkeypatch.setattr(bench, "mca", lambda: "llvm-mca")
    done = CliRunner().invoke(bench.main, ["--kernel", "nonsense"])
    assert done.exit_code == 2
    assert "nonsense" in done.output
    assert "bitmask_one_token" in done.output


@pytest.mark.slow
@pytest.mark.thorough
def test_integers_of_eight_bits_on_arm():
    """Six tokens of sixteen rows: 24 instructions, whose sums stay in registers. One token expands its weights, too."""
    names = ["w8a8_many_tokens/DOTS", "w8a8_one_token/DOTS"]
    for assembly, dots in zip(bench.assemblies("cortex-a76", names).values(), (24, 8), strict=True):
        loop = bench.hottest(assembly, MULTIPLY_ADD, x86=False)
        assert sum(line.startswith("sdot") for line in loop) == dots
        assert bench.units_of(loop, MULTIPLY_ADD, x86=False) == 16 * dots
        assert not any(re.match(r"blr? ", line) or bench.on_stack(line, x86=False) for line in loop)
        assert len(loop) < (40 if dots == 24 else 160)


@pytest.mark.slow
def test_neon_stays_in_registers(tmp_path):
    """24 sums, four vectors of weights that were looked up, and activations are what 32 registers hold."""
    try:
        bench.mca()
    except NoMCA as error:
        pytest.skip(str(error))
    path = tmp_path / "cycles.csv"
    options = ["--cpu", "cortex-a76", "--kernel", "bitmask_six_tokens", "--kind", "F32", "--csv", str(path)]
    done = CliRunner().invoke(bench.main, options)
    assert done.exit_code == 0, done.output
    assert "0 loops are red" in done.output
    with path.open() as file:
        zen, arm = csv.DictReader(file)
    assert (zen["cpu"], arm["cpu"]) == ("znver3", "cortex-a76")
    # four columns of sixteen rows for six tokens
    assert arm["units"] == zen["units"] == str(4 * 16 * 6)
    assert 0 < float(arm["cycles"]) < 0.25
