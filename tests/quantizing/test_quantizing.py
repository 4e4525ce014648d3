"""Matrices rounded to elements and scales, against numpy and ml_dtypes."""

from __future__ import annotations

import json
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefmt import FormatError, SparseTensor, UnsupportedError
from sparsefmt.adapters import rows_of
from sparsefmt.dtypes import DTYPES
from sparsefmt.quantizing import Loss, Quantization, QuantizedMatrix, quantized

KINDS = {"int8": (np.int8, 127), "fp8": (ml_dtypes.float8_e4m3fn, 448)}


def matrix(rows: int, cols: int, dtype: str = "F32", seed: int = 0, size: float = 0.02) -> np.ndarray:
    rng = np.random.default_rng(seed)
    made = (rng.standard_normal((rows, cols)) * size).astype(DTYPES[dtype].numpy)
    made[rng.random((rows, cols)) < 0.7] = 0
    made[rng.random((rows, cols)) < 0.1] *= -1  # some of them -0.0
    return made


def elements_of(made: QuantizedMatrix) -> np.ndarray:
    return made.rows.bits(0, made.rows.rows).view(made.rows.dtype.numpy)


def expected(w: np.ndarray, scale: np.ndarray, values: str) -> np.ndarray:
    """The elements for given scales."""
    dtype, largest = KINDS[values]
    spread = np.repeat(scale, w.shape[1] // scale.shape[1], axis=1)
    with np.errstate(all="ignore"):
        ratio = np.where(spread == 0, np.float32(0), w.astype(np.float32) / spread)
    if values == "int8":
        ratio = np.rint(ratio)
    made = np.clip(ratio, -largest, largest).astype(dtype)
    return np.where(made == 0, dtype(0), made)


@settings(max_examples=80, deadline=None)
@given(
    values=st.sampled_from(list(KINDS)),
    dtype=st.sampled_from(["F32", "BF16", "F16", "F64"]),
    shape=st.sampled_from([(1, 32), (7, 64), (130, 96), (3, 128), (0, 64), (5, 0)]),
    group_size=st.sampled_from([None, 32]),
    scale=st.sampled_from(["absmax", "mse"]),
    size=st.sampled_from([1e-42, 1e-6, 0.02, 300.0]),
    seed=st.integers(0, 50),
)
def test_elements_scales_and_losses(values, dtype, shape, group_size, scale, size, seed):
    w = matrix(*shape, dtype, seed, size)
    stored = np.count_nonzero(w.astype(np.float32))
    made = quantized(rows_of(w), Quantization(values, group_size, scale))
    elements, groups = elements_of(made), made.scale.shape[1]
    assert made.rows.shape == w.shape
    assert groups == (shape[1] // group_size if group_size and shape[1] else 1)
    assert made.scale.dtype == np.float32
    if scale == "absmax":
        largest = np.abs(w.astype(np.float32)).reshape(shape[0], groups, -1 if w.size else 0).max(2, initial=0)
        assert np.array_equal(made.scale, largest / np.float32(KINDS[values][1]))
    wanted = expected(w, made.scale, values)
    assert elements.tobytes() == wanted.tobytes()
    error = np.abs(
        w.astype(np.float32).astype(np.float64)
        - elements.astype(np.float64) * np.repeat(made.scale, shape[1] // groups, axis=1).astype(np.float64)
    )
    assert made.loss.largest_error == error.max(initial=0)
    assert made.loss.sum_of_errors == pytest.approx(error.sum(), rel=1e-9)
    assert made.loss.stored == stored
    assert made.loss.became_zero == stored - np.count_nonzero(elements)


@pytest.mark.parametrize("values", KINDS)
@pytest.mark.parametrize("group_size", [None, 64])
def test_least_squares_are_never_more_than_those_of_the_largest_magnitude(values, group_size):
    w = matrix(64, 256).astype(np.float32)
    w[0] *= np.random.default_rng(1).standard_t(2, 256)  # a few large ones
    squares = {}
    for scale in ("absmax", "mse"):
        made = quantized(rows_of(w), Quantization(values, group_size, scale))
        spread = np.repeat(made.scale, w.shape[1] // made.scale.shape[1], axis=1).astype(np.float64)
        squares[scale] = ((w - elements_of(made).astype(np.float64) * spread) ** 2).sum(1)
    assert (squares["mse"] <= squares["absmax"] * (1 + 1e-6)).all()
    assert squares["mse"].sum() < 0.995 * squares["absmax"].sum()


@pytest.mark.parametrize("values", KINDS)
def test_every_ratio_of_16_bits_is_rounded_as_ml_dtypes_does_it(values):
    ratios = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    ratios = ratios[np.abs(ratios) <= KINDS[values][1]].astype(np.float32)
    # the largest lets the scale be 1
    w = np.concatenate([ratios, [np.float32(KINDS[values][1])]])[None]
    made = quantized(rows_of(w), Quantization(values))
    assert made.scale == 1
    assert elements_of(made).tobytes() == expected(w, made.scale, values).tobytes()


@pytest.mark.parametrize("layout", ["auto", "dense", "bitmask", "permuted"])
def test_laid_out_as_any_other_tensor(layout):
    w = matrix(300, 640)
    made = quantized(rows_of(w), Quantization("int8", 128))
    tensor = SparseTensor._from_rows(made.rows, layout)
    assert np.array_equal(tensor.todense(), expected(w, made.scale, "int8"))


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["F32", "BF16", "F64"])
def test_weights_that_are_not_finite(odd, dtype):
    w = matrix(40, 64, dtype)
    w[17, 3] = odd
    with pytest.raises(FormatError, match="some of its weights in rows 0 to 39 are NaN or infinite"):
        quantized(rows_of(w), Quantization())


def test_weights_too_large_for_float32():
    with pytest.raises(FormatError, match="NaN or infinite"):
        quantized(rows_of(np.full((1, 1), 1e300)), Quantization())


@pytest.mark.parametrize(
    ("w", "how", "words"),
    [
        (
            np.ones((4, 4), np.int8),
            Quantization(),
            "dtype I8 are not quantized: only F32, BF16, F16, F64 are",
        ),
        (np.ones(4, np.float32), Quantization(), r"shape \[4\] is not a matrix"),
        (np.ones((2, 3, 4), np.float32), Quantization(), r"shape \[2, 3, 4\] is not a matrix"),
        (
            np.ones((4, 96), np.float32),
            Quantization(group_size=64),
            "groups of 64 columns do not divide its 96",
        ),
    ],
)
def test_what_cannot_be_quantized(w, how, words):
    with pytest.raises(UnsupportedError, match=words):
        quantized(rows_of(w), how)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (("int4", None, "absmax"), "values must be 'int8' or 'fp8', not 'int4'"),
        (("int8", 16, "absmax"), "group_size must be None, 32, 64 or 128, not 16"),
        (("int8", None, "max"), "scale must be 'absmax' or 'mse', not 'max'"),
        ((None, 32, "absmax"), "are for values="),
    ],
)
def test_settings_that_cannot_be(how, words):
    with pytest.raises(ValueError, match=words):
        Quantization.of(*how)
    assert Quantization.of(None, None, "absmax") is None


def test_what_is_said_of_a_loss():
    loss = Loss.total([Loss(0.25, 1.0, 10, 2), Loss(0.125, 2.0, 20, 0)])
    assert loss == Loss(0.25, 3.0, 30, 2)
    assert str(loss) == "lossy: errors of 0.25 at most and 0.1 in the mean, 2 became zero"
    assert str(Loss()) == "lossy: errors of 0 at most and 0 in the mean"
    assert json.loads(loss.as_metadata(Quantization("int8", 32, "mse"))) == {
        "type": "int8",
        "scale": "mse",
        "group_size": 32,
        "largest_error": 0.25,
        "mean_error": 0.1,
        "became_zero": 2,
    }


def test_memory_is_bounded():
    w = matrix(2048, 4096).astype(np.float16)
    quantized(rows_of(w[:8]), Quantization())  # compiled
    tracemalloc.start()
    made = quantized(rows_of(w), Quantization(), 1)
    elements = [made.rows.bits(begin, begin + 64) for begin in range(0, 64, 64)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert elements
    assert peak < 12 << 20  # float32 of the whole would be 32 MB
