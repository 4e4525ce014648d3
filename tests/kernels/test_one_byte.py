"""Values of one byte: each of the 256 widens exactly, in every kernel."""

from __future__ import annotations

import ml_dtypes
import naive
import numpy as np
import pytest
from helpers import in_form

from sparsefmt import linear
from sparsefmt.kernels import simd
from sparsefmt.kernels.kinds import E4M3, E5M2, INT8, UINT8
from sparsefmt.layouts import FORMS

DTYPES = [np.int8, np.uint8, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]
KINDS = {INT8: np.int8, UINT8: np.uint8, E4M3: ml_dtypes.float8_e4m3fn, E5M2: ml_dtypes.float8_e5m2}
EVERY = np.arange(256, dtype=np.uint8)


@pytest.mark.parametrize("layout", FORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("tokens", [1, 7, 40])
def test_each_value_widens_exactly(layout, dtype, tokens):
    """A row for each, with nothing else in it: 0, NaN and Inf too, in memory as few and as many tokens read it."""
    array = np.zeros((256, 256), np.uint8)
    np.fill_diagonal(array, EVERY)
    y = linear(np.ones((tokens, 256), np.float32), in_form(array.view(dtype), layout))
    expected = EVERY.view(dtype).astype(np.float32) + np.float32(0)
    np.testing.assert_array_equal(y, np.broadcast_to(expected, y.shape))
    assert not np.signbit(y[y == 0]).any()


@pytest.mark.parametrize("layout", FORMS)
@pytest.mark.parametrize("shape", [(33, 70), (5, 9), (128, 600)])
def test_every_kernel(layout, shape):
    """All bits of products by int8, for numbers of tokens that different kernels multiply."""
    rng = np.random.default_rng(0)
    array = np.where(rng.random(shape) < 0.6, 0, rng.integers(-128, 128, shape)).astype(np.int8)
    x = rng.standard_normal((130, shape[1])).astype(np.float32)
    w, expected = in_form(array, layout), naive.product(array, x, np.float32)
    for tokens in (1, 2, 5, 13, 130):
        np.testing.assert_array_equal(linear(x[:tokens], w).view(np.uint32), expected[:tokens].view(np.uint32))


@pytest.mark.parametrize("kind", KINDS)
def test_table_of_values(kind):
    values = np.array(simd.every_value(kind), np.float32)
    np.testing.assert_array_equal(values, EVERY.view(KINDS[kind]).astype(np.float32))
