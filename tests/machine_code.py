"""Prints as JSON what the vector kernels compile to, loop by loop, for the processor that NUMBA_CPU_NAME names.

Nothing is run, so the processor need not be the one of this machine; it only has to be of the same family.

    NUMBA_CPU_NAME=znver3 NUMBA_CPU_FEATURES=+avx2,… python tests/machine_code.py bitmask_many_tokens/F32
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from typing import Any

from numba import njit, types

from sparsefmt import isa
from sparsefmt.kernels import bitmask, dense, kinds, panel, permuted, permuted_by_gather
from sparsefmt.kernels import permuted_in_blocks as blocks

KINDS = {"F32": kinds.F32, "BF16": kinds.BF16, "F16": kinds.F16}


def bitmask_one_token(kind: int) -> Any:
    return bitmask.few_tokens_kernel(kind, 1)


def dense_one_token(kind: int) -> Any:
    return dense.few_tokens_kernel(kind, 1)


def bitmask_many_tokens(kind: int) -> Any:
    return panel.many_tokens_kernel(True, kind)


def dense_many_tokens(kind: int) -> Any:
    return panel.many_tokens_kernel(False, kind)


def permuted_one_token(kind: int) -> Any:
    return permuted.one_token_kernel(kind, False)


def permuted_one_token_wide(kind: int) -> Any:
    return permuted.one_token_kernel(kind, True)


def gaps_one_token(kind: int) -> Any:
    return permuted.one_token_kernel_of_gaps(kind, False)


def gaps_one_token_wide(kind: int) -> Any:
    return permuted.one_token_kernel_of_gaps(kind, True)


def permuted_many_tokens(kind: int) -> Any:
    return permuted.many_tokens_kernel(kind, False, False, *permuted.token_shapes(kind)[0])


def gaps_many_tokens(kind: int) -> Any:
    return permuted.many_tokens_kernel(kind, False, True, *permuted.token_shapes(kind)[0])


def permuted_in_blocks(kind: int) -> Any:
    return blocks.blocked_kernel(kind, False, False, 8)


def gaps_in_blocks(kind: int) -> Any:
    return blocks.blocked_kernel(kind, False, True, 8)


def permuted_gathered(kind: int) -> Any:
    return permuted_by_gather.one_token_kernel(kind, False)


def gaps_gathered(kind: int) -> Any:
    return permuted_by_gather.one_token_kernel(kind, True)


KERNELS: dict[str, Callable[[int], Any]] = {
    made.__name__: made
    for made in (
        bitmask_one_token,
        bitmask_many_tokens,
        dense_one_token,
        dense_many_tokens,
        permuted_one_token,
        permuted_one_token_wide,
        permuted_many_tokens,
        gaps_one_token,
        gaps_one_token_wide,
        gaps_many_tokens,
        permuted_in_blocks,
        gaps_in_blocks,
        permuted_gathered,
        gaps_gathered,
    )
}


def loops(kernel: Any) -> list[list[str]]:
    """Instructions of each innermost loop with a fused multiply-add, compiled afresh, not from the cache."""
    # without what Python or C would call it by
    fresh = njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)(kernel.py_func)
    fresh.compile((types.int64,) * 4)
    (assembly,) = fresh.inspect_asm().values()
    found = []
    for block in re.split(r"\n(?=\.LBB)", assembly):
        label = block.partition(":")[0]
        lines = [line.strip() for line in block.splitlines() if line.startswith("\t")]
        ends = [number for number, line in enumerate(lines) if re.fullmatch(rf"j\w+\s+{re.escape(label)}", line)]
        if ends and any("fmadd" in line or "fma." in line for line in lines[: ends[-1]]):
            found.append(lines[: ends[-1] + 1])
    return found


def main() -> None:
    found: dict[str, Any] = {"isa": isa.ISA, "tokens": [panel.WIDE, panel.NARROW]}
    for name in sys.argv[1:]:
        kernel, kind = name.split("/")
        found[name] = loops(KERNELS[kernel](KINDS[kind]))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
