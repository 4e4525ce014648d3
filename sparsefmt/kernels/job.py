"""What a kernel gets: addresses and numbers, in one block of integers.

Every kernel is a function (job, lo, hi, scratch) of four integers of 64 bits: it multiplies by the rows `pieces[lo:hi]`
of `operand.Work`. `job` is the address of a block of integers, `scratch` that of memory of its own. So one piece of
native code can call any kernel on any thread (`team.py`), and a call from Python costs little. What lays out
activations before a kernel, or its results behind it (`activations.py`), is such a function, too.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sparsefmt.jit import jit
from sparsefmt.kernels.operand import LINE
from sparsefmt.kernels.raw_memory import load_u64, store_scalar

TABLE, PIECES, X, Y, COLS, TOKENS, ROWS = (8 * number for number in range(7))
"""Where numbers stand in a block: addresses of `Operand.table`, of `Work.pieces`, of the activations and of the result
as the kernel reads and writes them; columns of the weights, tokens and rows of the result."""

SOURCE, SOURCE_PITCH, RESULT, RESULT_PITCH, FIRST, ODD = (8 * number for number in range(7, 13))
"""Addresses of the caller's activations and result, with the elements from one of their rows to the next; the first
token that is meant; 1 once an activation was found that is Inf or NaN, till then 0."""

OWN = 104
"""Where a kernel's own numbers begin."""

MOST_OWN = 4
"""A kernel has so many at most."""

BYTES = OWN + 8 * MOST_OWN
"""Of a block."""

PIECE = 24
"""Bytes of a piece: tile, first slice, one past the last."""


class Piece(NamedTuple):
    """Some slices of a tile. `line`: address of its line of `Operand.table`."""

    line: int
    begin: int
    end: int


@jit
def piece(job, number):
    """The piece of a number."""
    at = load_u64(job + PIECES) + PIECE * number
    return Piece(load_u64(job + TABLE) + LINE * load_u64(at), load_u64(at + 8), load_u64(at + 16))


@jit
def own(job, number):
    """A kernel's own number."""
    return load_u64(job + OWN + 8 * number)


@jit
def field(line, number):
    """A number of a line of `Operand.table`."""
    return load_u64(line + 8 * number)


@jit
def note_odd(job):
    """An activation is Inf or NaN."""
    store_scalar(job + ODD, np.int64(1))
