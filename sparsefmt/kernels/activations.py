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
from sparsefmt.kernels.simd import WIDTH, all_zero, fma, fma_all, load, load_rows, plus_zero, store, transpose, zeros

OVERFLOW = 16
"""Elements that are written behind packed activations."""


@jit
def all_finite(x):
    """Whether x, C-contiguous and of any shape, has neither Inf nor NaN."""
    flat = x.reshape(-1)
    odd = 0
    for index in range(flat.size):
        odd |= flat[index] - flat[index] != 0
    return odd == 0


@cache
def in_groups(kind: int, count: int) -> Callable[..., Any]:
    """Packer for kernels with rows in the lanes (`panel.py`, `bitmask.py`, `dense.py`).

    pack(x, first, groups, padded_cols, packed, begin) fills packed, flat, from element `begin` on with groups of
    `count` tokens, from token `first` on: column by column, the tokens of a group side by side; with zeros where
    columns end. Where tokens end, the last one stands again. Returns whether all are finite. Behind the last group, up
    to OVERFLOW elements are written, too.
    """
    size, lanes, one = WIDTH[kind], max(8, 1 << (count - 1).bit_length()), 1
    row_bytes = count * size

    @jit
    def pack(x, first, groups, padded_cols, packed, begin):
        tokens, cols = x.shape
        x_begin, to = np.int64(x.ctypes.data), np.int64(packed.ctypes.data) + begin * size
        poison, zero = zeros(kind, lanes, one), zeros(kind, lanes, one)
        whole_cols = cols // lanes * lanes
        finite = True
        for group in range(groups):
            token, at = first + group * count, to + group * padded_cols * row_bytes
            rows = x_begin + token * cols * size
            for col in range(0, whole_cols, lanes):
                values = load_rows(rows + col * size, cols * size, tokens - 1 - token, kind, lanes, count)
                poison = fma_all(values, zero, poison)
                # each is stored with more lanes than there are tokens: what follows comes later
                store(at + col * row_bytes, row_bytes, transpose(values))
            index = begin + (group * padded_cols + whole_cols) * count
            for col in range(whole_cols, padded_cols):
                for lane in range(count):
                    value = packed.dtype.type(0)
                    if col < cols:
                        value = x[min(token + lane, tokens - 1), col]
                    finite &= value - value == 0
                    packed[index] = value
                    index += 1
        return finite and all_zero(poison)

    return pack


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
