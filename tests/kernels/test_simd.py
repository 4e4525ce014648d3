"""What the vectors compile to, and which instruction set is chosen."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from functools import cache
from typing import Any

import pytest
from helpers import ROOT, THOROUGH, first_always
from llvmlite import binding, ir

from sparsefmt import isa
from sparsefmt.kernels import dots, expand
from sparsefmt.kernels.kinds import BF16, F64

AVX2 = "+avx,+avx2,+fma,+f16c,+popcnt,+bmi,+bmi2,+lzcnt,+ssse3,+sse4.1,+sse4.2"
AVX512 = f"{AVX2},+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512vbmi,+avx512vbmi2"
PROCESSORS = {"haswell": AVX2, "alderlake": AVX2, "znver3": AVX2, "icelake-server": AVX512, "znver4": AVX512}
"""What LLVM calls them, and their features. Which instructions it takes and how it orders them depends on the processor
that it compiles for. Therefore kernels are compiled for these, and not for the one that the tests happen to run on."""

KINDS = ["F32", "BF16", "F16"]
KERNELS = [
    "bitmask_one_token",
    "bitmask_many_tokens",
    "dense_one_token",
    "dense_many_tokens",
    "permuted_one_token",
    "permuted_one_token_wide",
    "permuted_many_tokens",
    "gaps_one_token",
    "gaps_one_token_wide",
    "gaps_many_tokens",
    "permuted_in_blocks",
    "gaps_in_blocks",
]
SPILLING = ["bitmask_one_token", "permuted_one_token", "permuted_many_tokens"]
"""Those whose registers are counted, too."""

COMPILED = [
    *(f"{kernel}/F32" for kernel in KERNELS),
    *("bitmask_one_token/F16", "bitmask_one_token/BF16"),
    *("permuted_gathered/F32", "gaps_gathered/BF16"),
]
if THOROUGH:
    in_f16 = [kernel for kernel in KERNELS if kernel != "permuted_one_token_wide"]
    more = [f"{kernel}/F16" for kernel in in_f16] + [f"{kernel}/BF16" for kernel in SPILLING]
    COMPILED += [name for name in more if name not in COMPILED]
"""BF16 is widened by a shift, in all kernels alike, and wide columns have nothing to do with the kind of values. Kinds
differ in how they are widened alone, and that is the same in all kernels but `bitmask_one_token`, which moves them
first: the others are compiled for F32, and for more kinds in thorough runs."""

LOOKED_INTO = ["znver3", "icelake-server"]
"""Processors for which all of them are compiled; for the others, one. All but the first one in thorough runs."""

needs_x86 = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="LLVM has other registers and instructions here"
)


@cache
def compiled(processor: str) -> dict[str, Any]:
    """Loops of kernels as tests/machine_code.py finds them, and the instruction set that was chosen."""
    kernels = COMPILED if processor in LOOKED_INTO else ["bitmask_many_tokens/F32"]
    target = {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": PROCESSORS[processor]}
    environment = {name: value for name, value in os.environ.items() if name != isa.ENVIRONMENT_VARIABLE}
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "machine_code.py", *kernels],
        env={**environment, **target},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["isa"] == ("avx512" if "avx512" in PROCESSORS[processor] else "avx2")
    return found


@pytest.mark.slow
@needs_x86
@pytest.mark.parametrize("processor", first_always(LOOKED_INTO))
class TestInstructions:
    @pytest.fixture
    def code(self, processor):
        return compiled(processor)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.thorough
    def test_values_are_expanded_by_one(self, kind, code):
        expected = {
            "avx512": {"F32": "v(p?)expand(ps|d)", "BF16": "vpexpandw", "F16": "vpexpandw"},
            "avx2": {"F32": "vpermps", "BF16": "vpshufb", "F16": "vpshufb"},
        }[code["isa"]][kind]
        (hot,) = code[f"bitmask_one_token/{kind}"]
        shuffles = [line for line in hot if re.match(expected, line)]
        # four columns of two slices, 8 rows at a time; of four with AVX-512, 16 rows, or two columns of BF16
        assert len(shuffles) == (8 if code["isa"] == "avx512" and kind == "BF16" else 16)
        if code["isa"] == "avx512":
            assert not any("(" in line for line in shuffles), "load and expansion in one are slow on some processors"

    def test_permuted_inserts_scalars(self, code):
        longest = max(code["permuted_one_token/F32"], key=len)
        # four slots of two halves: of eight loads each, six or seven are inserts from memory
        assert sum(line.startswith("vinsertps") and "(" in line for line in longest) == 2 * 4 * 6

    @pytest.mark.parametrize("kernel", ["permuted_gathered/F32", "gaps_gathered/BF16"])
    def test_one_instruction_gathers(self, kernel, code):
        """What lies at sixteen columns, or at eight; nothing is inserted, stored or added up in other registers."""
        loop = max(code[kernel], key=len)
        vectors = 1 if code["isa"] == "avx512" else 2
        slots = sum("fmadd" in line for line in loop) // vectors
        assert sum(line.startswith("vgatherdps") for line in loop) == vectors * slots > 0
        assert not any(line.startswith(("vinsertps", "vpextr")) for line in loop)
        assert not any(re.match(r"v?mov\S+\s+%\w+,.*\(", line) for line in loop)

    def test_no_gather_and_no_call_in_loops(self, code):
        blocks = [(kernel, block) for kernel in COMPILED for block in code[kernel]]
        assert len(blocks) >= len(COMPILED)
        for kernel, block in blocks:
            for line in block:
                assert ("gather" in line) <= ("gathered" in kernel)
                assert not line.startswith("call"), line


@pytest.mark.slow
@needs_x86
@pytest.mark.parametrize("processor", first_always(sorted(PROCESSORS, key=lambda name: name != LOOKED_INTO[0])))
def test_the_microkernel_stays_in_registers(processor):
    """A column of a panel: its rows are loaded once, each token's activation once, and nothing is stored."""
    code = compiled(processor)
    found = set()
    for loop in code["bitmask_many_tokens/F32"]:
        products = sum("fmadd" in line for line in loop)
        loads = sum(bool(re.match(r"v?mov\S+\s+-?\d*\(", line)) for line in loop)
        broadcasts = sum(line.startswith("vbroadcastss") for line in loop)
        tokens = 2 * broadcasts // loads
        # two vectors of rows
        assert loads == 2 * (products // (2 * tokens))
        assert broadcasts == products // 2
        assert not any("fmadd" in line and "(" in line for line in loop)
        assert not any("(%rsp)" in line for line in loop)
        assert not any(re.match(r"v?mov\S+\s+%[xyz]mm\d+,.*\(", line) for line in loop)
        found.add(tokens)
    assert found == set(code["tokens"])


@pytest.mark.slow
@needs_x86
@pytest.mark.parametrize("processor", first_always(LOOKED_INTO))
@pytest.mark.parametrize("kernel", ["permuted_in_blocks", "gaps_in_blocks"])
@pytest.mark.parametrize("kind", ["F32", pytest.param("F16", marks=pytest.mark.thorough)])
def test_sums_of_a_row_stay_in_registers(processor, kernel, kind):
    """An entry costs eight fused multiply-adds with what lies at its column, its weight, its position, and no store."""
    (loop,) = compiled(processor)[f"{kernel}/{kind}"]
    assert sum("fmadd" in line and "(" in line for line in loop) == 8
    assert sum("(" in line and not line.startswith("lea") for line in loop) <= 10
    assert not any(re.match(r"v?mov\S+\s+%\w+,.*\(", line) for line in loop)
    assert len(loop) <= 24


@pytest.mark.slow
@needs_x86
@pytest.mark.parametrize("processor", first_always(LOOKED_INTO))
@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        pytest.param(kernel, kind, marks=() if f"{kernel}/{kind}" in COMPILED else pytest.mark.thorough)
        for kernel in SPILLING
        for kind in KINDS
    ],
)
def test_few_vectors_are_spilled(processor, kernel, kind):
    """LLVM loads ahead of their use more vectors of the table than 16 registers hold."""
    for loop in compiled(processor)[f"{kernel}/{kind}"]:
        spilled = sum(bool(re.match(r"v?mov\S+\s+%[xyz]mm\d+,.*\(%rsp\)", line)) for line in loop)
        assert spilled <= 4


class TestChoice:
    full = isa._NEEDED["avx2"] | isa._NEEDED["avx512"]

    def test_best_of_the_features(self):
        assert isa.isa_of(self.full, None) == "avx512"
        assert isa.isa_of(isa._NEEDED["avx2"], "") == "avx2"
        assert isa.isa_of(self.full - {"bmi2"}, None) == "portable"
        assert isa.isa_of(self.full - {"avx512vbmi2"}, None) == "avx2"
        assert isa.isa_of(set(), None) == "portable"

    @pytest.mark.parametrize("wanted", isa.ISAS)
    def test_less_may_be_wanted(self, wanted):
        assert isa.isa_of(self.full, wanted) == wanted

    def test_more_or_nonsense_is_an_error(self):
        with pytest.raises(ValueError, match="has 'avx2'"):
            isa.isa_of(isa._NEEDED["avx2"], "avx512")
        with pytest.raises(ValueError, match="must be one of portable, avx2, avx512, not 'sse'"):
            isa.isa_of(self.full, "sse")

    def test_the_environment_chooses(self):
        code = "from sparsefmt.kernels import expand, kinds; print(expand.ISA, expand.in_registers(kinds.F32))"
        found = subprocess.run(
            [sys.executable, "-c", code],
            env={"SPARSEFMT_ISA": "portable", "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        )
        assert found.stdout == f"portable {isa.NEON}\n"


class TestDots:
    @pytest.mark.parametrize(
        ("instructions", "features", "wanted", "found"),
        [
            ("avx512", {"avx512vnni"}, None, "avx512vnni"),
            ("avx512", {"avxvnni"}, "", None),
            ("avx2", {"avxvnni", "avx512vnni"}, "avxvnni", "avxvnni"),
            ("neon", {"dotprod"}, None, "dotprod"),
            ("neon", {"dotprod"}, "none", None),
            ("neon", set(), "none", None),
            ("portable", {"avxvnni"}, None, None),
        ],
    )
    def test_choice(self, instructions, features, wanted, found):
        assert isa.dots_of(instructions, features, wanted) == found

    def test_more_or_nonsense_is_an_error(self):
        with pytest.raises(
            ValueError, match=r"'dotprod', which this processor does not have with .* 'neon'; it has 'none'"
        ):
            isa.dots_of("neon", set(), "dotprod")
        with pytest.raises(ValueError, match="it has 'avxvnni'"):
            isa.dots_of("avx2", {"avxvnni", "avx512vnni"}, "avx512vnni")
        with pytest.raises(ValueError, match="must be one of avx512vnni, avxvnni, dotprod, none, not 'sdot'"):
            isa.dots_of("neon", {"dotprod"}, "sdot")

    def test_the_environment_chooses(self, monkeypatch):
        monkeypatch.setenv("SPARSEFMT_DOTS", "none")
        assert isa._dots() is None
        monkeypatch.setenv("SPARSEFMT_DOTS", "some")
        with pytest.raises(ValueError, match="SPARSEFMT_DOTS must be one of"):
            isa._dots()

    @pytest.mark.parametrize(
        ("instruction", "instructions", "way"),
        [
            ("dotprod", "portable", dots.SIGNED),
            ("avx512vnni", "avx512", dots.BIASED),
            ("avxvnni", "avx2", dots.BIASED),
            (None, "avx2", dots.SIGNS),
            (None, "avx512", None),
            (None, "portable", None),
        ],
    )
    def test_way(self, instruction, instructions, way):
        assert dots.way_of(instruction, instructions) == way

    @pytest.mark.parametrize(
        ("name", "features", "has"),
        [
            ("cortex-a72", "", False),
            ("cortex-a72", "+dotprod", True),
            ("cortex-a76", "", True),
            ("neoverse-n1", "-dotprod", False),
            ("apple-m1", "", True),
        ],
    )
    def test_llvm_is_asked_for_what_it_has(self, name, features, has):
        assert isa.multiplies_bytes(arm(name, features)) == has

    def test_linux_may_hide_the_instruction(self, tmp_path, monkeypatch):
        monkeypatch.setattr(isa, "multiplies_bytes", lambda machine: True)
        cpuinfo = tmp_path / "cpuinfo"
        cpuinfo.write_text("Features\t: fp asimd asimddp\n")
        assert isa._arm_dots({"neon"}, cpuinfo) == {"neon", "dotprod"}
        assert isa._arm_dots({"neon"}, tmp_path / "none") == {"neon", "dotprod"}
        cpuinfo.write_text("Features\t: fp asimd\n")
        assert isa._arm_dots({"neon", "dotprod"}, cpuinfo) == {"neon"}
        # for another processor, or other features: as they are named
        monkeypatch.setattr(isa.config, "CPU_FEATURES", "+neon")
        assert isa._arm_dots({"neon"}, tmp_path / "none") == {"neon"}


def arm(name: str, features: str = "") -> binding.TargetMachine:
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    return binding.Target.from_triple("aarch64-unknown-linux-gnu").create_target_machine(cpu=name, features=features)


def test_dots_of_arm():
    """Four rows of four columns for four tokens: an instruction each, whose activations are in one register."""
    module, of_bytes, of_sums = ir.Module(), ir.VectorType(ir.IntType(8), 16), ir.VectorType(ir.FloatType(), 4)
    sums = ir.ArrayType(of_sums, 4)
    function = ir.Function(module, ir.FunctionType(sums, [of_bytes, ir.IntType(64), sums]), "f")
    builder = ir.IRBuilder(function.append_basic_block())
    weights, x, before = function.args
    totals = [builder.extract_value(before, number) for number in range(4)]
    totals = dots.dots_of_tokens(builder, [weights], x, dots.SIGNED, totals)
    for number, total in enumerate(totals):
        before = builder.insert_value(before, total, number)
    builder.ret(before)
    assembly = arm("cortex-a76").emit_assembly(binding.parse_assembly(str(module)))
    lines = [line.split("//")[0].split() for line in assembly.splitlines() if re.match(r"\t[a-z]", line)]
    taken = [line[-1] for line in lines if line[0] == "sdot"]
    assert [of.partition(".")[2] for of in taken] == [f"4b[{token}]" for token in range(4)]
    assert [line[0] for line in lines if line[0] not in ("sdot", "mov")] == ["ldr", "ret"]


def test_in_registers():
    assert not expand.in_registers(F64)
    assert expand.in_registers(BF16) == (isa.ISA != "portable" or isa.NEON)
