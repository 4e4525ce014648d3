"""The gather instruction for one token of `permuted`: the bits of inserted loads, where it is fast or asked for."""

from __future__ import annotations

import ml_dtypes
import naive
import numpy as np
import pytest
from helpers import first_always, in_form, run_python, same_bits, weights

from sparsefmt import linear
from sparsefmt.kernels import gather, permuted_by_gather, recipe
from sparsefmt.layouts.permuted import MAX_U16_COLS

pytestmark = pytest.mark.skipif(not gather.exists(), reason="portable code has no instruction that gathers")


@pytest.fixture
def used(monkeypatch) -> list[int]:
    """Every product asks for it; kinds of values of the kernels that were taken."""
    kinds, make = [], permuted_by_gather.one_token_kernel

    def counted(kind: int, gaps: bool):
        kinds.append(kind)
        return make(kind, gaps)

    monkeypatch.setattr(gather, "is_fast", lambda: True)
    monkeypatch.setattr(permuted_by_gather, "one_token_kernel", counted)
    recipe.recipes.cache_clear()
    yield kinds
    recipe.recipes.cache_clear()


@pytest.mark.parametrize("form", ["columns", "gaps"])
@pytest.mark.parametrize(
    "dtype",
    first_always([np.float32, ml_dtypes.bfloat16, np.float16, np.float64]),
    ids=lambda dtype: np.dtype(dtype).name,
)
def test_the_bits_of_inserted_loads(form, dtype, used):
    rng = np.random.default_rng(1)
    accumulator = np.float64 if dtype is np.float64 else np.float32
    for rows, cols, zeros in (
        (1, 3, 0.5),
        (16, 700, 0.3),
        (75, 1300, 0.9),
        (200, 5000, 0.99),
        (5, MAX_U16_COLS, 0.999),
    ):
        array = weights(rng, (rows, cols), dtype, zeros, negative_zeros=True)
        x = rng.standard_normal((1, cols)).astype(accumulator)
        w, expected = in_form(array, form), naive.product(array, x, accumulator)
        assert same_bits(linear(x, w), expected)
        x[0, ::3] = np.inf
        assert np.array_equal(linear(x, w), naive.product(array, x, accumulator), equal_nan=True)
    assert used


def test_columns_of_32_bits_are_not_gathered(used):
    """The instruction takes them for signed ones."""
    rng = np.random.default_rng(2)
    array = np.where(rng.random((3, MAX_U16_COLS + 1)) < 0.001, np.float32(1.5), np.float32(0))
    x = rng.standard_normal((1, array.shape[1])).astype(np.float32)
    assert same_bits(linear(x, in_form(array, "columns")), naive.product(array, x, np.float32))
    assert not used


@pytest.mark.parametrize(("setting", "expected"), [("0", "False False"), ("1", "True False"), ("", "False True")])
def test_what_decides(setting, expected):
    """The environment, without timing anything; else which of them is faster."""
    code = """
from sparsefmt.kernels import gather
gather.WORTH = 0
print(gather.is_fast(), gather.share_of_time.cache_info().currsize == 1)
"""
    assert run_python(code, SPARSEFMT_GATHER=setting) == expected


def test_other_settings_are_an_error():
    code = """
import numpy as np
from sparsefmt import SparseTensor, linear
try:
    linear(np.ones((1, 8), np.float32), SparseTensor.from_dense(np.eye(8, dtype=np.float32), "permuted"))
except ValueError as error:
    print(error)
"""
    assert run_python(code, SPARSEFMT_GATHER="yes") == "SPARSEFMT_GATHER must be 0 or 1, not 'yes'"


def test_the_time_is_measured_once():
    assert gather.share_of_time() == gather.share_of_time() > 0
