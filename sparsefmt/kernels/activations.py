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
from sparsefmt.kernels.simd import WIDTH, fma, load, plus_zero, store, transpose, tree_sum, zeros


@jit
def all_finite(x):
    """Whether x, C-contiguous and of any shape, has neither Inf nor NaN."""
    flat = x.reshape(-1)
    odd = 0
    for index in range(flat.size):
        odd |= flat[index] - flat[index] != 0
    return odd == 0


@cache
def in_columns(kind: int, group: int) -> Callable[..., Any]:
    """Packer for `bitmask_and_dense.many_tokens_kernel`.

    pack(x, tokens, cols, block, packed) fills packed, flat: for each block of `block` columns, for each `group` tokens,
    these columns of each token, with zeros where x ends. x is flat, token by token. Returns whether x is finite.
    """
    size, eight, one = WIDTH[kind], 8, 1
    vector_bytes = eight * size

    @jit
    def pack(x, tokens, cols, block, packed):
        x_begin, to = np.int64(x.ctypes.data), np.int64(packed.ctypes.data)
        poison, zero = zeros(kind, eight, one), zeros(kind, eight, one)
        finite = True
        index = 0
        for first in range(0, cols, block):
            width = min(block, cols - first)
            whole = width // eight * eight
            for token in range((tokens + group - 1) // group * group):
                filled = 0
                if token < tokens:
                    at = x_begin + (token * cols + first) * size
                    for col in range(0, whole, eight):
                        values = load(at + col * size, vector_bytes, kind, eight, one)
                        poison = fma(values, zero, poison)
                        store(to + (index + col) * size, vector_bytes, values)
                    for col in range(whole, width):
                        value = x[token * cols + first + col]
                        finite &= value - value == 0
                        packed[index + col] = value
                    filled = width
                packed[index + filled : index + block] = 0
                index += block
        return finite and tree_sum(poison) == 0

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
        return finite and tree_sum(poison) == 0 and tree_sum(poison1) == 0

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
