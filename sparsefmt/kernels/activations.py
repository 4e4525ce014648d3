"""Activations laid out for kernels that multiply many tokens at once, and their results put back.

What is packed is found by a kernel in the order in which it reads it, one line of the cache after the other. x is
(tokens, cols) and y (tokens, rows). With `across` they lie the other way round, as `w @ x` has them: x is (cols,
tokens) and y (rows, tokens). Both are C-contiguous.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from sparsefmt.jit import jit
from sparsefmt.kernels.simd import WIDTH, all_zero, fma, load, plus_zero, store, transpose, zeros


@jit
def all_finite(x):
    """Whether x, C-contiguous and of any shape, has neither Inf nor NaN."""
    flat = x.reshape(-1)
    odd = 0
    for index in range(flat.size):
        odd |= flat[index] - flat[index] != 0
    return odd == 0


@jit
def in_groups(x, padded_cols, wide, wides, narrow, narrows, packed):
    """Pack x for kernels with rows in the lanes (`panel.py`, `bitmask.py`, `dense.py`). Returns whether it is finite.

    Fills packed, flat, with `wides` groups of `wide` tokens, then `narrows` groups of `narrow` ones: column by column,
    the tokens of the group side by side; with zeros where tokens or columns end.
    """
    tokens, cols = x.shape
    nothing = packed.dtype.type(0)
    first, index, odd = 0, 0, 0
    for group in range(wides + narrows):
        count = wide if group < wides else narrow
        for lane in range(count):
            at = index + lane
            token = first + lane
            done = 0
            if token < tokens:
                for col in range(cols):
                    value = x[token, col]
                    odd |= value - value != 0
                    packed[at + col * count] = value
                done = cols
            for col in range(done, padded_cols):
                packed[at + col * count] = nothing
        first += count
        index += count * padded_cols
    return odd == 0


@cache
def in_tokens(kind: int, lanes: int, count: int, across: bool) -> Callable[..., Any]:
    """Packer for `permuted.many_tokens_kernel`.

    pack(x, first, tokens, packed) fills packed, flat, with tokens `first` to `first + tokens`: for each `lanes * count`
    tokens, for each column, these tokens' activations, with zeros where x ends. Returns whether they are finite.
    """
    size, one = WIDTH[kind], 1
    width, square, vector_bytes = lanes * count, lanes, lanes * size
    row_bytes = width * size

    @jit
    def pack(x, first, tokens, packed):
        x_begin, to = np.int64(x.ctypes.data), np.int64(packed.ctypes.data)
        cols, pitch = x.shape[0 if across else 1], x.shape[1]
        nothing = packed.dtype.type(0)
        poison, zero = zeros(kind, lanes, square), zeros(kind, lanes, square)
        poison1, zero1 = zeros(kind, lanes, one), zeros(kind, lanes, one)
        finite = True
        for part in range((tokens + width - 1) // width * count):
            # `lanes` tokens, a part of those of a block
            token = part * lanes
            present = max(0, min(lanes, tokens - token))
            base = part // count * cols * width + part % count * lanes
            done = 0
            if present == lanes and across:
                for col in range(cols):
                    values = load(x_begin + (col * pitch + first + token) * size, vector_bytes, kind, lanes, one)
                    poison1 = fma(values, zero1, poison1)
                    store(to + (base + col * width) * size, vector_bytes, values)
                done = cols
            elif present == lanes:
                for col in range(0, cols - lanes + 1, lanes):
                    at = x_begin + ((first + token) * pitch + col) * size
                    values = load(at, pitch * size, kind, lanes, square)
                    poison = fma(values, zero, poison)
                    store(to + (base + col * width) * size, row_bytes, transpose(values))
                done = cols // lanes * lanes
            for col in range(done, cols):
                for lane in range(lanes):
                    value = nothing
                    if lane < present:
                        at = first + token + lane
                        value = x[col, at] if across else x[at, col]
                        finite &= value - value == 0
                    packed[base + col * width + lane] = value
        return finite and all_zero(poison) and all_zero(poison1)

    return pack


@cache
def from_tokens(kind: int, lanes: int, count: int, across: bool) -> Callable[..., Any]:
    """The way back, for results of `permuted.many_tokens_kernel`.

    unpack(packed, y, first, tokens) writes tokens `first` to `first + tokens` of y; + 0.0, which makes zero results
    positive.
    """
    size, one = WIDTH[kind], 1
    width, square, vector_bytes = lanes * count, lanes, lanes * size
    row_bytes = width * size

    @jit
    def unpack(packed, y, first, tokens):
        at, y_begin = np.int64(packed.ctypes.data), np.int64(y.ctypes.data)
        rows, pitch = y.shape[0 if across else 1], y.shape[1]
        for part in range((tokens + width - 1) // width * count):
            token = part * lanes
            present = max(0, min(lanes, tokens - token))
            base = part // count * rows * width + part % count * lanes
            done = 0
            if present == lanes and across:
                for row in range(rows):
                    values = plus_zero(load(at + (base + row * width) * size, vector_bytes, kind, lanes, one))
                    store(y_begin + (row * pitch + first + token) * size, vector_bytes, values)
                done = rows
            elif present == lanes:
                for row in range(0, rows - lanes + 1, lanes):
                    values = plus_zero(load(at + (base + row * width) * size, row_bytes, kind, lanes, square))
                    store(y_begin + ((first + token) * pitch + row) * size, pitch * size, transpose(values))
                done = rows // lanes * lanes
            for row in range(done, rows):
                for lane in range(present):
                    value = packed[base + row * width + lane] + 0
                    to = first + token + lane
                    if across:
                        y[row, to] = value
                    else:
                        y[to, row] = value

    return unpack
