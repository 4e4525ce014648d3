"""Rows taken out of a mask for many tokens: the bits of all other kernels, and when they are taken out."""

from __future__ import annotations

import ml_dtypes
import naive
import numpy as np
import pytest
from helpers import first_always, in_form, same_bits, weights

from sparsefmt import linear
from sparsefmt.kernels import bitmask_by_rows, multiply, plans, recipe
from sparsefmt.kernels.kinds import F32
from sparsefmt.kernels.operand import Matrix


@pytest.fixture(params=[True, False], ids=["in blocks", "side by side"])
def always(request, monkeypatch):
    """They are taken out for any matrix, if there are enough tokens."""
    monkeypatch.setattr(plans.bitmask_and_dense, "PANEL_COST", 1e9)
    monkeypatch.setattr(plans.permuted, "blocks_pay", lambda cols, kind: request.param)
    recipe.recipes.cache_clear()
    yield
    recipe.recipes.cache_clear()


@pytest.mark.parametrize(
    "dtype",
    first_always([np.float32, ml_dtypes.bfloat16, np.float16, np.float64]),
    ids=lambda dtype: np.dtype(dtype).name,
)
@pytest.mark.parametrize("zeros", [0.0, 0.6, 0.97])
def test_the_bits_of_other_kernels(dtype, zeros, always):
    """Rows that no slice is full of, masks of eight rows, columns beyond a word, several tiles, tokens left over."""
    rng = np.random.default_rng(int(100 * zeros))
    accumulator = np.float64 if dtype is np.float64 else np.float32
    for rows, cols, tile_rows in ((150, 61, 0), (24, 130, 16), (5, 8, 0), (200, 3, 80)):
        array = weights(rng, (rows, cols), dtype, zeros, negative_zeros=True)
        array[rows // 2] = 0
        w = in_form(array, "bitmask", tile_rows or -(-rows // 16) * 16)
        x = rng.standard_normal((150, cols)).astype(accumulator)
        assert any(step.plan.kernel in by_rows(kind_of(w)) for step in recipes_of(w, 150))
        expected = naive.product(array, x, accumulator)
        for tokens in (24, 64, 65, 150):
            assert same_bits(linear(x[:tokens], w), expected[:tokens])
        assert same_bits(np.ascontiguousarray((w @ x.T).T), expected)
        x[70, ::2], x[3, 1] = np.nan, -np.inf
        assert np.array_equal(linear(x, w), naive.product(array, x, accumulator), equal_nan=True)


def test_threads_have_a_scratch_each(always, monkeypatch):
    monkeypatch.setattr(multiply, "WORTH_A_THREAD", 1)
    rng = np.random.default_rng(5)
    array, x = weights(rng, (700, 300), np.float32, 0.7), rng.standard_normal((100, 300)).astype(np.float32)
    w = in_form(array, "bitmask", 400)
    expected = linear(x, w, threads=1)
    for threads in (2, 3, 5):
        for _ in range(10):
            assert same_bits(linear(x, w, threads=threads), expected)


def test_where_they_are_faster():
    """For few zeros and few tokens, panels are; a scratch for very many columns would be large."""
    faster = plans.bitmask_and_dense.rows_are_faster
    matrix = Matrix("bitmask", "bitmask", "F32", 4096, 4096, 0.3)
    assert faster(matrix, 64)
    assert not faster(matrix._replace(density=0.5), 64)
    assert not faster(matrix._replace(density=0.7), 1000)
    assert not faster(matrix._replace(cols=bitmask_by_rows.MOST_COLS + 1), 64)
    assert not faster(matrix._replace(layout="dense"), 64)
    of_a_few = plans.PLANS["bitmask"](matrix, F32, 6, plans.contract.NOT_ACROSS)
    assert all(plan.kernel not in by_rows(F32) for plan in of_a_few)


def by_rows(kind: int) -> list:
    """The kernels for blocks of columns, and for rows side by side."""
    return [bitmask_by_rows.many_tokens_kernel(kind, side_by_side) for side_by_side in (False, True)]


def kind_of(w) -> int:
    summed = recipe.F64 if w.operand().dtype.name == "F64" else F32
    return recipe.kind_of(w.operand().dtype.name, summed).values


def recipes_of(w, tokens: int):
    summed = recipe.F64 if w.operand().dtype.name == "F64" else F32
    return recipe.recipes(w.operand().matrix, summed, tokens, plans.contract.NOT_ACROSS)


def test_groups_with_scales_are_blocks_of_columns(always):
    """Rows side by side know no scales."""
    matrix = Matrix("bitmask", "bitmask", "F32", 64, 96, 0.3, 3)
    kernels = [plan.kernel for plan in plans.PLANS["bitmask"](matrix, F32, 150, plans.contract.NOT_ACROSS)]
    assert by_rows(F32)[0] in kernels
    assert by_rows(F32)[1] not in kernels
