"""Many tokens with layout `permuted`, one block of columns after the other: the same bits as everything else."""

from __future__ import annotations

import naive
import numpy as np
import pytest
from helpers import first_always, in_form, weights
from kernels.test_kernels import FLOATS, accumulator, assert_same_bits

from sparsefmt import linear
from sparsefmt.kernels import permuted_in_blocks, plans, recipe
from sparsefmt.kernels.kinds import WIDTH
from sparsefmt.kernels.permuted_in_blocks import BLOCK_BYTES, MOST_BLOCK_BYTES, block_columns
from sparsefmt.kernels.simd import VECTOR_BYTES

LANES = VECTOR_BYTES // 4


@pytest.fixture
def always(monkeypatch):
    """Blocks of columns, whatever else would be faster on this processor."""
    monkeypatch.setattr(plans.permuted, "blocks_pay", lambda cols, kind: True)
    recipe.recipes.cache_clear()
    yield
    recipe.recipes.cache_clear()


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("form", ["columns", "gaps"])
@pytest.mark.parametrize("dtype", first_always(FLOATS), ids=lambda dtype: np.dtype(dtype).name)
def test_rows_go_on_from_block_to_block(form, dtype):
    """Several blocks, more slices than a panel has, tiles that end within a slice; rows without entries, rows whose
    first entry is in a late block, full rows, distances with fillers."""
    rng = np.random.default_rng(11)
    rows, cols, tokens = 16 * permuted_in_blocks.PANEL + 40, 1100, 11 * LANES
    array = weights(rng, (rows, cols), dtype, 0.7, negative_zeros=True)
    array[3] = 0
    array[20, :900] = 0
    array[21, 1:] = 0
    array[22] = 1
    array[30:40, ::2] = 0
    array[50] = np.where(np.arange(cols) % 300 == 299, array[22], 0)
    x = rng.standard_normal((tokens, cols)).astype(accumulator(array))
    expected = naive.product(array, x, accumulator(array))
    for tile_rows in (rows, 48):
        assert_same_bits(linear(x, in_form(array, form, tile_rows)), expected)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("form", ["columns", "gaps"])
@pytest.mark.parametrize("density", [0.01, 0.1, 0.5])
def test_every_number_of_tokens(form, density):
    """Groups that are full or not, followed by others; entries that are asked for in advance, or not."""
    rng = np.random.default_rng(12)
    array = weights(rng, (40, 500), np.float32, 1 - density)
    x = rng.standard_normal((20 * LANES, 500)).astype(np.float32)
    expected = naive.product(array, x, np.float32)
    w = in_form(array, form)
    for tokens in (3 * LANES + 1, 4 * LANES, 5 * LANES + 1, 8 * LANES, 9 * LANES + 3, 13 * LANES + 1, 20 * LANES):
        assert_same_bits(linear(x[:tokens], w), expected[:tokens])
        assert_same_bits(w @ np.ascontiguousarray(x[:tokens].T), expected[:tokens].T)


@pytest.mark.usefixtures("always")
def test_wide_columns():
    rng = np.random.default_rng(13)
    array = np.zeros((20, 70_000), np.float32)
    for row in array:
        row[rng.choice(row.size, 300, replace=False)] = rng.standard_normal(300)
    x = rng.standard_normal((4 * LANES, 70_000)).astype(np.float32)
    expected = naive.product(array, x, np.float32)
    for form in ("columns", "gaps"):
        assert_same_bits(linear(x, in_form(array, form)), expected)


@pytest.mark.usefixtures("always")
def test_infinite_activations_skip_fillers():
    rng = np.random.default_rng(14)
    array = weights(rng, (20, 600), np.float32, 0.99)
    x = rng.standard_normal((8 * LANES, 600)).astype(np.float32)
    x[3, ::7], x[5, 10], x[9, 599] = np.inf, np.nan, -np.inf
    assert_same_bits(linear(x, in_form(array, "gaps")), naive.product(array, x, np.float32))


def test_blocks_fit_the_caches():
    for count in plans.permuted.BLOCKED:
        for density in (0.0, 0.001, 0.05, 0.2, 0.5, 1.0):
            for cols in (1, 100, 4096, 1 << 20):
                step, typical = block_columns(cols, count, density)
                assert 1 <= step <= cols
                assert step == cols or (step + 1) * VECTOR_BYTES * count > BLOCK_BYTES
                assert step * VECTOR_BYTES * count <= MOST_BLOCK_BYTES
                assert typical in (0, int(step * density))


def test_few_tokens_are_not_multiplied_in_blocks():
    """Groups that would be mostly empty cost more than several small ones."""
    for kind, size in WIDTH.items():
        lanes = VECTOR_BYTES // (8 if size == 8 else 4)
        assert not any(group.in_blocks for group in plans.permuted.token_groups(3 * lanes, kind))
        assert all(group.in_blocks for group in plans.permuted.token_groups(8 * lanes, kind))


def test_rows_side_by_side_where_registers_hold_them():
    """Two vectors of tokens for each of eight rows: that needs AVX-512, and activations that stay in a cache."""
    for kind, size in WIDTH.items():
        most = plans.permuted.MOST_ACTIVATION_BYTES // (2 * LANES * 4 if size < 8 else LANES * 8)
        assert plans.permuted.blocks_pay(most, kind) == (VECTOR_BYTES < 64)
        assert plans.permuted.blocks_pay(most + 1, kind)
        side_by_side = plans.permuted.token_groups(9 * LANES, kind, in_blocks=False)
        assert not any(group.in_blocks for group in side_by_side)
