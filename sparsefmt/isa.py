"""The instruction set that this process compiles for, of those for which jitted code has instructions of their own.

Only jitted code imports this file, since numba takes a second to load.
"""

from __future__ import annotations

import os
from pathlib import Path

from llvmlite import binding
from numba.core import config
from numba.core.codegen import get_host_cpu_features

ISAS = ("portable", "avx2", "avx512")
"""Instruction sets, each including the ones before."""

ENVIRONMENT_VARIABLE = "SPARSEFMT_ISA"
DOTS_VARIABLE = "SPARSEFMT_DOTS"

_NEEDED = {
    "avx2": {"avx2", "fma", "f16c", "popcnt", "bmi2"},
    "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512vbmi2"},
}

NO_DOTS = "none"
_DOTS = {"avx512": "avx512vnni", "avx2": "avxvnni", "neon": "dotprod"}
"""LLVM's names of features: instructions that multiply four integers of eight bits by four and add up the products, in
vectors of an instruction set."""

_SUM_OF_PRODUCTS = """
define i32 @sum(<16 x i8> %a, <16 x i8> %b) {
  %c = sext <16 x i8> %a to <16 x i32>
  %d = sext <16 x i8> %b to <16 x i32>
  %products = mul <16 x i32> %c, %d
  %total = call i32 @llvm.vector.reduce.add.v16i32(<16 x i32> %products)
  ret i32 %total
}
declare i32 @llvm.vector.reduce.add.v16i32(<16 x i32>)
"""


def _target_features() -> set[str]:
    """Features of the processor that numba compiles for. An instruction that it lacks would end the process.

    Empty if the user chose another processor by name (NUMBA_CPU_NAME): portable code is right everywhere.
    """
    if config.CPU_FEATURES is not None:
        features = config.CPU_FEATURES
    elif config.CPU_NAME is None:
        features = get_host_cpu_features()
    else:
        features = ""
    return {feature.strip().removeprefix("+") for feature in features.split(",") if feature.strip().startswith("+")}


def isa_of(features: set[str], wanted: str | None) -> str:
    """The best instruction set within `features`, or the lesser one that is `wanted`.

    Raises:
        ValueError: `wanted` is not in ISAS, or needs more than the features.
    """
    best = "portable"
    for isa in ISAS[1:]:
        if not _NEEDED[isa] <= features:
            break
        best = isa
    if not wanted:
        return best
    if wanted not in ISAS:
        raise ValueError(f"{ENVIRONMENT_VARIABLE} must be one of {', '.join(ISAS)}, not {wanted!r}")
    if ISAS.index(wanted) > ISAS.index(best):
        raise ValueError(f"{ENVIRONMENT_VARIABLE} is {wanted!r}, which this processor does not have; it has {best!r}")
    return wanted


ISA = isa_of(_target_features(), os.environ.get(ENVIRONMENT_VARIABLE))
"""The instruction set of this process, found out once."""

MOVES_BYTES = ISA == "avx512" and "avx512vbmi" in _target_features()
"""Whether one instruction puts 64 bytes into any order."""

NEON = ISA == "portable" and binding.get_process_triple().startswith(("aarch64", "arm64"))
"""Whether portable code may use what every ARM processor of 64 bits has."""


def multiplies_bytes(machine: binding.TargetMachine) -> bool:
    """Whether LLVM has `sdot` for an ARM processor. It would end the process if it were asked for it and had not."""
    return "sdot" in machine.emit_assembly(binding.parse_assembly(_SUM_OF_PRODUCTS))


def _arm_dots(features: set[str], cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """`features`, and `dotprod` if this ARM processor has it: LLVM often knows that by the processor's name alone.

    A system may hide what a processor of that name has: Linux says what it does not.
    """
    if config.CPU_NAME is not None or config.CPU_FEATURES is not None:
        return features
    if cpuinfo.exists() and "asimddp" not in cpuinfo.read_text().split():
        return features - {"dotprod"}
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=get_host_cpu_features()
    )
    return features | {"dotprod"} if multiplies_bytes(machine) else features


def dots_of(isa: str, features: set[str], wanted: str | None) -> str | None:
    """The instruction for dot products of bytes that an instruction set ("neon" is one here) has within `features`.

    Args:
        wanted: the name of it, NO_DOTS for none, or nothing for what there is.

    Raises:
        ValueError: another instruction is wanted than there is.
    """
    has = _DOTS.get(isa)
    if has not in features:
        has = None
    if not wanted or wanted == has:
        return has
    if wanted == NO_DOTS:
        return None
    names = (*_DOTS.values(), NO_DOTS)
    if wanted not in names:
        raise ValueError(f"{DOTS_VARIABLE} must be one of {', '.join(names)}, not {wanted!r}")
    raise ValueError(
        f"{DOTS_VARIABLE} is {wanted!r}, which this processor does not have with the instructions {isa!r}; "
        f"it has {has or NO_DOTS!r}"
    )


def _dots() -> str | None:
    features = _target_features()
    if NEON:
        return dots_of("neon", _arm_dots(features), os.environ.get(DOTS_VARIABLE))
    return dots_of(ISA, features, os.environ.get(DOTS_VARIABLE))


DOTS = _dots()
"""The instruction that multiplies four integers of eight bits by four and adds up the products, by the name of LLVM's
feature; None if there is none."""
