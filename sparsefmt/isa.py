"""The instruction set that this process compiles for, of those for which jitted code has instructions of their own.

Only jitted code imports this file, since numba takes a second to load.
"""

from __future__ import annotations

import os

from llvmlite import binding
from numba.core import config
from numba.core.codegen import get_host_cpu_features

ISAS = ("portable", "avx2", "avx512")
"""Instruction sets, each including the ones before."""

ENVIRONMENT_VARIABLE = "SPARSEFMT_ISA"

_NEEDED = {
    "avx2": {"avx2", "fma", "f16c", "popcnt", "bmi2"},
    "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512vbmi2"},
}


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

DOTS = {"avx512": "avx512vnni", "avx2": "avxvnni"}.get(ISA) in _target_features()
"""Whether there is an instruction that multiplies four integers of eight bits by four and adds up the products."""

MOVES_BYTES = ISA == "avx512" and "avx512vbmi" in _target_features()
"""Whether one instruction puts 64 bytes into any order."""

NEON = ISA == "portable" and binding.get_process_triple().startswith(("aarch64", "arm64"))
"""Whether portable code may use what every ARM processor of 64 bits has."""
