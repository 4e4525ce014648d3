"""Products: equal to the naive reference to the bit, whatever the threads, the batch, the storage."""

from __future__ import annotations

import multiprocessing
from functools import cache, cached_property
from itertools import pairwise

import ml_dtypes
import naive
import numpy as np
import pytest
from helpers import (
    PRUNABLE,
    THOROUGH,
    WIDTHS,
    assert_same_bits,
    far_apart,
    first_always,
    in_form,
    in_threads,
    random_bits,
    run_python,
    weights,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsefmt
from sparsefmt import SparseTensor, UnsupportedError, isa, linear
from sparsefmt.dtypes import DTYPES
from sparsefmt.kernels import kinds, multiply, panel, permuted, plans
from sparsefmt.kernels.operand import cut
from sparsefmt.layouts import FORMS

FLOATS = [np.float32, ml_dtypes.bfloat16, np.float16, np.float64]

OFTEN = ("F32", "BF16", "I8")
"""Types whose every kernel is looked at each time; kernels of the others are in thorough runs."""

OFTEN_FIRST = first_always(sorted(PRUNABLE, key=lambda dtype: dtype.name not in OFTEN), len(OFTEN))


def accumulator(array: np.ndarray) -> type:
    return np.float64 if array.dtype in (np.float64, np.int32, np.uint32, np.int64, np.uint64) else np.float32


@pytest.mark.parametrize("layout", FORMS)
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)
@settings(max_examples=25, deadline=None)
@given(
    rows=st.sampled_from([1, 2, 3, 7, 8, 9, 16, 20, 33]),
    cols=st.sampled_from([*WIDTHS, 200]),
    sparsity=st.sampled_from([0.0, 0.5, 0.8, 0.95, 1.0]),
    seed=st.integers(0, 1 << 32),
)
def test_equal_to_the_naive_order(layout, dtype, rows, cols, sparsity, seed):
    rng = np.random.default_rng(seed)
    array = weights(rng, (rows, cols), dtype, sparsity, negative_zeros=True)
    x = rng.standard_normal(cols).astype(accumulator(array))
    w = in_form(array, layout)
    assert_same_bits(w @ x, naive.product(array, x, accumulator(array)))


@pytest.mark.parametrize("layout", FORMS)
@pytest.mark.parametrize("dtype", [dtype for dtype in PRUNABLE if dtype.numpy.type not in FLOATS], ids=lambda d: d.name)
def test_other_dtypes_by_their_cast(layout, dtype):
    rng = np.random.default_rng(5)
    array = weights(rng, (19, 75), dtype.numpy, 0.5)
    x = rng.standard_normal(75).astype(accumulator(array))
    w = in_form(array, layout)
    assert_same_bits(w @ x, naive.product(array, x, accumulator(array)))


@pytest.mark.parametrize("name", ["BOOL", "F4", "F6_E2M3", "F6_E3M2", "F8_E8M0"])
def test_dense_only_dtypes(name):
    rng = np.random.default_rng(6)
    array = random_bits(rng, (9, 24), DTYPES[name])
    if name == "F8_E8M0":
        array = (2.0 ** rng.integers(-8, 8, (9, 24))).astype(array.dtype)
    x = rng.standard_normal(24).astype(np.float32)
    assert_same_bits(SparseTensor.from_dense(array) @ x, naive.product(array, x, np.float32))


def test_complex_weights_have_no_product():
    with pytest.raises(UnsupportedError) as caught:
        linear(np.ones(4, np.float32), np.ones((3, 4), np.complex64))
    assert caught.value.code == "dtype-product"


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_every_finite_pattern_widens_exactly(dtype):
    """A diagonal of all patterns times ones: the products are the values."""
    width = np.dtype(dtype).itemsize
    patterns = np.arange(1 << (8 * width), dtype=f"u{width}").view(dtype)
    patterns = patterns[np.isfinite(patterns.astype(np.float32))].reshape(-1, 1)
    array = np.hstack([patterns, np.zeros_like(patterns), np.zeros_like(patterns)])
    for layout in FORMS:
        y = in_form(array, layout) @ np.ones(3, np.float32)
        assert_same_bits(y, patterns[:, 0].astype(np.float32) + np.float32(0))


@pytest.mark.parametrize("layout", FORMS)
def test_weights_with_inf_and_nan(layout):
    array = weights(np.random.default_rng(1), (17, 40), np.float16, 0.6)
    array[3, 5], array[4, 6], array[5, 7] = np.inf, np.nan, -np.inf
    x = np.random.default_rng(2).standard_normal(40).astype(np.float32)
    y = in_form(array, layout) @ x
    assert_same_bits(y, naive.product(array, x, np.float32))
    assert np.isinf(y[3])
    assert np.isnan(y[4])
    assert np.isfinite(np.delete(y, [3, 4, 5])).all()


@pytest.mark.parametrize("layout", FORMS)
@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan])
def test_pruned_positions_are_skipped_whatever_x_is(layout, special):
    array = weights(np.random.default_rng(1), (21, 40), np.float32, 0.6, negative_zeros=True)
    array[:, 0] = 0
    array[:, 13] = 0
    array[5, 13] = 2
    x = np.random.default_rng(2).standard_normal(40).astype(np.float32)
    x[[0, 13]] = special
    y = in_form(array, layout) @ x
    assert_same_bits(y, naive.product(array, x, np.float32))
    assert np.isfinite(np.delete(y, 5)).all()
    assert not np.isfinite(y[5])


@pytest.mark.parametrize("layout", FORMS)
def test_zero_results_are_positive(layout):
    """Sums that cancel, underflow to -0.0, or have no term."""
    array = np.zeros((4, 3), np.float32)
    array[0] = 1, -1, 0
    array[1] = -1e-40, 0, 0
    x = np.array([1e-40, 1e-40, -5], np.float32)
    y = in_form(array, layout) @ x
    assert_same_bits(y, np.zeros(4, np.float32))


@pytest.mark.parametrize("layout", FORMS)
def test_subnormals_are_not_flushed(layout):
    array = np.array([[1e-40, 0, 3e-41]], np.float32)
    y = in_form(array, layout) @ np.array([0.5, 1, 1], np.float32)
    assert_same_bits(y, naive.product(array, np.array([0.5, 1, 1]), np.float32))
    assert y[0] > 0


@pytest.mark.parametrize("layout", FORMS)
@pytest.mark.parametrize("dtype", first_always(FLOATS[:3]), ids=lambda dtype: np.dtype(dtype).name)
def test_threads_batch_and_storage_change_no_bit(layout, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(multiply, "WORTH_A_THREAD", 1)
    rng = np.random.default_rng(8)
    array = weights(rng, (900, 1300), dtype, 0.7, negative_zeros=True)
    x = rng.standard_normal((5, 1300)).astype(np.float32)
    w = in_form(array, layout)
    expected = np.stack([w @ row for row in x])
    for threads in (1, 2, 3, 7):
        assert_same_bits(linear(x, w, threads=threads), expected)
    assert_same_bits(np.ascontiguousarray((w @ x.T).T), expected)
    for codec in ("raw", "zstd"):
        path = tmp_path / f"{codec}.sparsefmt"
        sparsefmt.save_file({"w": w}, path, layout=w.layout, codec=codec)
        for backend in ("mmap", "pread"):
            with sparsefmt.open_file(path, backend=backend) as file:
                loaded = file.load("w", layout=w.layout)
            assert_same_bits(linear(x, loaded), expected)


@pytest.mark.parametrize("layout", FORMS)
@pytest.mark.parametrize("dtype", first_always(FLOATS, 2), ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("special", [False, True], ids=["finite", "with Inf and NaN"])
def test_every_batch_size_gives_the_same_bits(layout, dtype, special):
    """All kernels, all shapes of their blocks, partly filled ones too; results by row and by column."""
    rng = np.random.default_rng(8)
    array = weights(rng, (27, 141), dtype, 0.7, negative_zeros=True)
    w = in_form(array, layout)
    x = rng.standard_normal((150, 141)).astype(accumulator(array))
    if special:
        x[rng.random(x.shape) < 0.01] = np.inf
        x[rng.random(x.shape) < 0.01] = np.nan
    expected = naive.product(array, x, accumulator(array))
    for tokens in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 41, 100, 128, 129, 150):
        assert_same_bits(linear(x[:tokens], w), expected[:tokens])
        assert_same_bits(w @ np.ascontiguousarray(x[:tokens].T), np.ascontiguousarray(expected[:tokens].T))


@pytest.mark.parametrize(
    "dtype",
    first_always(sorted(PRUNABLE, key=lambda dtype: dtype.name not in OFTEN), len(OFTEN)),
    ids=lambda dtype: dtype.name,
)
@pytest.mark.parametrize("rows", [*range(1, 9), 9, 16, 17, 24, 25, 40])
@pytest.mark.parametrize("special", [False, True], ids=["finite", "with Inf and NaN"])
def test_the_same_bits_in_every_layout(dtype, rows, special):
    """Whatever the tiles and the tokens: one chain for each row, zeros of either sign skipped."""
    rng = np.random.default_rng(rows)
    array = weights(rng, (rows, 75), dtype.numpy, 0.6, negative_zeros=True)
    x = rng.standard_normal((33, 75)).astype(accumulator(array))
    if special:
        x[rng.random(x.shape) < 0.02] = np.inf
        x[rng.random(x.shape) < 0.02] = np.nan
    expected = naive.product(array, x, accumulator(array))
    for layout in FORMS:
        w = in_form(array, layout, 16 if rows > 16 else rows)
        for tokens in (1, 2, 3, 6, 7, 33):
            assert_same_bits(linear(x[:tokens], w), expected[:tokens])


@pytest.mark.parametrize("layout", FORMS)
@pytest.mark.parametrize("tokens", [1, 2, 9, 70])
def test_activations_lie_as_they_like(layout, tokens):
    """By rows, by columns, every other one, one for all, backwards, where nobody may write."""
    rng = np.random.default_rng(tokens)
    array = weights(rng, (40, 80), np.float32, 0.6)
    w, x = in_form(array, layout), rng.standard_normal((tokens, 160)).astype(np.float32)
    views = [x[:, :80], np.asfortranarray(x[:, :80]), x[:, ::2], np.broadcast_to(x[:1, :80], (tokens, 80))]
    views += [x[::-1, 79::-1], np.frombuffer(x[:, :80].tobytes(), np.float32).reshape(tokens, 80)]
    # one byte off
    views.append(np.frombuffer(b"\0" + x[:, :80].tobytes(), np.uint8)[1:].view(np.float32).reshape(tokens, 80))
    for view in views:
        expected = np.stack([linear(row, w) for row in np.array(view)])
        assert_same_bits(linear(view, w), expected)
        assert_same_bits(np.ascontiguousarray((w @ view.T).T), expected)


@settings(max_examples=60, deadline=None)
@given(far_apart(), st.booleans(), st.integers(0, 1 << 32))
def test_fillers_change_no_bit(array, special, seed):
    """Rows with none, one and several fillers between elements; at fillers, x may be anything."""
    rng = np.random.default_rng(seed)
    array = weights(rng, array.shape, array.dtype, 0.0) * (array.astype(np.float64) != 0).astype(array.dtype)
    x = rng.standard_normal((9, array.shape[1])).astype(accumulator(array))
    if special:
        x[:, ~array.astype(np.float64).any(axis=0)] = np.inf
        x[5:, rng.integers(0, array.shape[1])] = np.nan
    kept = np.flatnonzero(array.astype(np.float64).any(axis=0))
    expected = naive.product(array[:, kept], x[:, kept], accumulator(array))
    for form in FORMS:
        w = in_form(array, form)
        for tokens in (1, 2, 9):
            assert_same_bits(linear(x[:tokens], w), expected[:tokens])


@pytest.mark.parametrize("tokens", [1, 8, 40])
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)
def test_rows_of_any_number_of_slots(dtype, tokens):
    """Gaps become columns some slots ahead, and 64 at once: every rest of both, and slices without a slot."""
    rng = np.random.default_rng(4)
    cols = 300
    array = np.zeros((16 * 40, cols), np.float32)
    for slice_ in range(40):
        slots = [*range(12), *range(60, 70), *range(124, 134), 190, 191, 192, 193, 256, 257, 258, 300][slice_]
        for row in range(16 * slice_, 16 * slice_ + 16):
            array[row, rng.choice(cols, max(slots - row % 3, 0), replace=False)] = rng.standard_normal()
    array = array.astype(dtype)
    x = rng.standard_normal((tokens, cols)).astype(accumulator(array))
    expected = naive.product(array, x, accumulator(array))
    for form in ("columns", "gaps"):
        # tiles of a slice each keep the rows where they are
        for tile_rows in (16, 640):
            assert_same_bits(linear(x, in_form(array, form, tile_rows)), expected)


@pytest.mark.parametrize("layout", ["bitmask", "dense"])
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("rows", [3, 12, 83, 300])
def test_sums_carried_from_block_to_block_of_columns(layout, dtype, rows):
    """More columns than a panel has, more slices than a panel's sums are kept of, tiles that end in each kind of slice;
    tokens that fill every number of groups, and those that are multiplied in two parts."""
    rng = np.random.default_rng(8)
    cols = 2 * panel.BLOCK + 77
    array = weights(rng, (rows, cols), dtype, 0.6)
    x = rng.standard_normal((20, cols)).astype(accumulator(array))
    expected = naive.product(array, x, accumulator(array))
    w = in_form(array, layout, min(rows, 160))
    for tokens in range(1, 21):
        assert_same_bits(linear(x[:tokens], w), expected[:tokens])
    many = np.resize(x, (plans.bitmask_and_dense.MAX_TOKENS + 10, cols))
    assert_same_bits(linear(many, w), np.resize(expected, (len(many), rows)))


def test_groups_make_up_few_tokens():
    unit = panel.WIDE - panel.NARROW
    for tokens in range(1, 300):
        groups = panel.groups_of(tokens)
        assert groups.tokens == panel.WIDE * groups.wide + panel.NARROW * groups.narrow
        assert 0 <= groups.narrow <= 2
        assert groups.wide >= 0
        assert tokens <= groups.tokens <= max(tokens + unit - 1, panel.NARROW)


def test_many_tokens_are_arranged_in_parts(monkeypatch):
    monkeypatch.setattr(plans.permuted, "MAX_ARRANGED_TOKENS", 64)
    rng = np.random.default_rng(8)
    array = weights(rng, (20, 50), np.float32, 0.6)
    x = rng.standard_normal((200, 50)).astype(np.float32)
    expected = naive.product(array, x, np.float32)
    assert_same_bits(linear(x, SparseTensor.from_dense(array, "permuted")), expected)


@pytest.mark.parametrize("kind", [kinds.F32, kinds.F64])
def test_blocks_of_tokens_hold_each_once(kind):
    for tokens in [*range(1, 140), 1000, 1023, 1024, 1025, 5000]:
        first = 0
        for group in plans.permuted.token_groups(tokens, kind):
            assert group.first == first
            assert group.tokens > 0
            assert group.in_blocks or (group.lanes, group.vectors) in permuted.token_shapes(kind)
            first += group.tokens
        assert first == tokens


_DIGESTS = """
import hashlib, ml_dtypes, sys, numpy as np
from sparsefmt import SparseTensor, linear
rng = np.random.default_rng(3)
values = rng.standard_normal((100, 300)) * (rng.random((100, 300)) > 0.6)
x = rng.standard_normal((40, 300)).astype(np.float32)
kinds = [(np.float32, (1, 40)), (ml_dtypes.bfloat16, (40,))]
if sys.argv[1] == "thorough":
    kinds = [(np.float32, (1, 6, 12, 40)), (np.float64, (1, 40)), (np.float16, (1,)), (ml_dtypes.bfloat16, (40,))]
for dtype, sizes in kinds:
    for layout in ("dense", "bitmask", "permuted"):
        w = SparseTensor.from_dense(values.astype(dtype), layout)
        print(*(hashlib.sha256(linear(x[:tokens], w).tobytes()).hexdigest() for tokens in sizes))
"""
"""A line for each dtype and layout. In thorough runs: every kernel of float32, and of the others those in which their
arithmetic, or how they are widened, meets few tokens or many; else those for one token, and for many: each takes half a
second to compile. The tests of this file compare all kernels with the naive reference, and CI runs them with each
instruction set."""


@cache
def _digests_here() -> str:
    return run_python(_DIGESTS, "thorough" if THOROUGH else "some")


_PROCESSORS = {
    "AVX2, no AVX-512": {
        "NUMBA_CPU_NAME": "znver3",
        "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+f16c,+popcnt,+bmi,+bmi2,+lzcnt,+ssse3,+sse4.1,+sse4.2",
    },
    "of 2003": {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""},
}
"""Ways to compile for less than this processor has. On that of 2003, code is portable and every fma is a call into
libm. AVX2 and portable code for this processor are what CI runs all tests of this file with."""


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize("processor", _PROCESSORS)
def test_the_processor_changes_no_bit(processor):
    if "AVX2" in processor and isa.isa_of(isa._target_features(), None) == "portable":
        pytest.skip("this processor has no AVX2")
    if processor == "AVX2, no AVX-512" and "avx512f" not in isa._target_features():
        pytest.skip("this processor has no AVX-512: code for it is of this kind anyway")
    here = _digests_here()
    there = run_python(
        _DIGESTS, "thorough" if THOROUGH else "some", **{isa.ENVIRONMENT_VARIABLE: "", **_PROCESSORS[processor]}
    )
    lines = here.splitlines()
    assert len(lines) == (4 if THOROUGH else 2) * 3
    assert there == here
    for first in range(0, len(lines), 3):
        assert len(set(lines[first : first + 3])) == 1  # the same in every layout


@pytest.mark.parametrize("cols", [65536, 65537, 70000])
@pytest.mark.parametrize("layout", ["bitmask", "columns", "gaps"])
def test_columns_of_16_and_of_32_bits(layout, cols):
    rng = np.random.default_rng(cols)
    array = weights(rng, (9, cols), ml_dtypes.bfloat16, 0.99)
    array[4, -1] = 3
    narrow = array[:, np.sort(rng.choice(cols, 300, replace=False))]
    x = rng.standard_normal((2, cols)).astype(np.float32)
    reference = x.astype(np.float64) @ array.astype(np.float64).T
    w = in_form(array, layout)
    np.testing.assert_allclose(linear(x, w), reference, rtol=1e-4, atol=1e-4)
    assert_same_bits(linear(x, w)[1], linear(x[1], w))
    # few columns moved far to the right: the columns differ, the order of additions does not
    wide = np.zeros((9, cols), array.dtype)
    wide[:, -304:-4] = narrow
    x = rng.standard_normal(cols).astype(np.float32)
    assert_same_bits(in_form(wide, layout) @ x, naive.product(narrow, x[-304:-4], np.float32))


@pytest.mark.parametrize("layout", FORMS)
def test_close_to_float64_on_a_large_matrix(layout):
    rng = np.random.default_rng(4)
    array = weights(rng, (1000, 2000), np.float32, 0.8)
    x = rng.standard_normal((3, 2000)).astype(np.float32)
    reference = x.astype(np.float64) @ array.astype(np.float64).T
    scale = np.abs(x).astype(np.float64) @ np.abs(array).astype(np.float64).T
    error = np.abs(linear(x, in_form(array, layout)) - reference)
    # the bound of a sum of n products: n rounding errors
    assert (error <= 2000 * 2.0**-24 * scale).all()


class TestFrontEnd:
    @cached_property
    def w(self) -> SparseTensor:
        return SparseTensor.from_dense(np.eye(6, 10, dtype=np.float32) * 2, "bitmask")

    def test_shapes(self):
        for shape in ((10,), (1, 10), (4, 10), (2, 3, 10), (0, 10), (2, 0, 10)):
            y = linear(np.ones(shape, np.float32), self.w)
            assert y.shape == (*shape[:-1], 6)
            assert (y == 2).all()
        assert (self.w @ np.ones((10, 4), np.float32)).shape == (6, 4)

    def test_bias(self):
        bias = np.arange(6, dtype=np.float32)
        assert np.array_equal(linear(np.ones((2, 10), np.float32), self.w, bias), np.tile(2 + bias, (2, 1)))

    def test_weights_of_more_dimensions_multiply_as_their_matrix_view(self):
        conv = np.arange(2 * 3 * 2 * 2, dtype=np.float32).reshape(2, 3, 2, 2)
        x = np.ones(12, np.float32)
        assert np.array_equal(linear(x, SparseTensor.from_dense(conv, "permuted")), conv.reshape(2, 12).sum(axis=1))

    def test_dense_arrays_as_weights(self):
        assert np.array_equal(linear(np.ones(3, np.float32), np.full((2, 3), 4, np.float32)), [12, 12])

    def test_no_rows_no_columns(self):
        assert linear(np.ones((2, 3), np.float32), np.zeros((0, 3), np.float32)).shape == (2, 0)
        assert np.array_equal(linear(np.ones((2, 0), np.float32), np.zeros((4, 0), np.float32)), np.zeros((2, 4)))

    @pytest.mark.parametrize(
        ("weight", "x", "result"),
        [
            ("f4", "f4", "f4"),
            ("f4", "f8", "f8"),
            ("f8", "f4", "f8"),
            ("f4", "f2", "f4"),
            ("f2", "f2", "f2"),
            ("f2", "f4", "f4"),
            ("bfloat16", "bfloat16", "bfloat16"),
            ("bfloat16", "f2", "f4"),
            ("f2", "bfloat16", "f4"),
            ("i1", "f2", "f2"),
            ("i4", "f4", "f8"),
            ("f4", "i8", "f8"),
            ("f4", "i1", "f4"),
            ("f4", "?", "f4"),
            ("float8_e4m3fn", "bfloat16", "bfloat16"),
            ("float8_e4m3fn", "f4", "f4"),
        ],
    )
    def test_result_dtype(self, weight, x, result):
        def numpy_dtype(name):
            return np.dtype(getattr(ml_dtypes, name, name))

        array = np.eye(4, dtype=np.float32).astype(numpy_dtype(weight))
        y = linear(np.ones(4).astype(numpy_dtype(x)), SparseTensor.from_dense(array, "dense"))
        assert y.dtype == numpy_dtype(result)
        assert (y.astype(np.float64) == 1).all()

    def test_odd_x_is_read_right(self):
        x = np.arange(20, dtype=np.float32).reshape(2, 10)
        expected = linear(x, self.w)
        for odd in (np.asfortranarray(x), x[:, ::-1].copy()[:, ::-1], x.astype(">f4"), np.repeat(x, 2, axis=1)[:, ::2]):
            assert np.array_equal(linear(odd, self.w), expected)
        assert np.array_equal(linear(x.tolist(), self.w), expected)
        frozen = x.copy()
        frozen.flags.writeable = False
        assert np.array_equal(linear(frozen, self.w), expected)
        unaligned = np.empty(81, np.uint8)[1:].view(np.float32).reshape(2, 10)
        unaligned[...] = x
        for layout in FORMS:
            w = in_form(self.w.todense(), layout)
            for odd in (unaligned, frozen):
                assert np.array_equal(linear(odd, w), expected)
                assert np.array_equal(linear(odd[0], w), expected[0])
                assert np.array_equal((w @ odd.T).T, expected)

    def test_out(self):
        x = np.ones((2, 10), np.float32)
        out = np.empty((2, 6), np.float32)
        assert linear(x, self.w, out=out) is out
        assert (out == 2).all()

    def test_bad_out(self):
        x = np.ones((6, 10), np.float32)
        square = SparseTensor.from_dense(np.eye(10, dtype=np.float32))
        good = np.zeros((6, 10), np.float32)
        read_only = good.copy()
        read_only.flags.writeable = False
        unaligned = np.empty(241, np.uint8)[1:].view(np.float32).reshape(6, 10)
        transposed = np.empty((10, 6), np.float32).T
        for out in (good[:5], good.astype(np.float64), transposed, read_only, unaligned, x, good.tolist()):
            with pytest.raises(ValueError, match="out must"):
                linear(x, square, out=out)
        with pytest.raises(ValueError, match="out must not share"):
            linear(x, square, bias=good[2], out=good)

    @pytest.mark.parametrize(
        "call",
        [
            lambda w: linear(np.ones(9, np.float32), w),
            lambda w: linear(np.float32(1), w),
            lambda w: linear(np.ones(10, np.complex64), w),
            lambda w: linear(np.array(["a"] * 10), w),
            lambda w: linear(np.array([None] * 10), w),
            lambda w: linear(np.ones(10, np.float32), w, np.ones(5)),
            lambda w: linear(np.ones(10, np.float32), w, threads=0),
            lambda w: linear(np.ones(10, np.float32), w, threads=-1),
            lambda w: w @ np.ones((10, 2, 2), np.float32),
            lambda w: w @ np.ones((9, 2), np.float32),
            lambda w: w @ np.float32(2),
        ],
    )
    def test_bad_arguments(self, call):
        with pytest.raises(ValueError):  # noqa: PT011
            call(self.w)

    def test_x_is_not_changed(self):
        x = np.random.default_rng(0).standard_normal((3, 10)).astype(np.float32)
        before = x.copy()
        linear(x, self.w, np.ones(6))
        assert np.array_equal(x, before)


def test_units_of_work_cover_every_row_once():
    rng = np.random.default_rng(0)
    for _ in range(300):
        ends = [np.cumsum(rng.integers(1, 50, rng.integers(1, 40))) for _ in range(rng.integers(1, 5))]
        count = int(rng.integers(1, 20))
        together = int(rng.integers(1, 3))
        work = cut(ends, count, together)
        assert not (work.pieces[:, 1] % together).any()
        assert work.units[0] == 0
        assert work.units[-1] == len(work.pieces)
        assert len(work.units) - 1 <= count
        assert all(begin < end for begin, end in pairwise(work.units))
        for number, tile_ends in enumerate(ends):
            mine = work.pieces[work.pieces[:, 0] == number]
            assert mine[0, 1] == 0
            assert mine[-1, 2] == tile_ends.size
            assert (mine[1:, 1] == mine[:-1, 2]).all()
            assert (mine[:, 1] < mine[:, 2]).all()
        total, heaviest = (
            sum(int(tile_ends[-1]) for tile_ends in ends),
            max(int(max(np.diff(e, prepend=0))) for e in ends),
        )
        for begin, end in pairwise(work.units):
            sizes = [int(ends[t][e - 1]) - (int(ends[t][b - 1]) if b else 0) for t, b, e in work.pieces[begin:end]]
            assert sum(sizes) <= total / count + 1 + together * heaviest


def test_many_threads_at_once(monkeypatch):
    monkeypatch.setattr(multiply, "WORTH_A_THREAD", 1)
    array = weights(np.random.default_rng(8), (300, 500), np.float32, 0.7)
    x = np.random.default_rng(9).standard_normal((4, 500)).astype(np.float32)
    tensors = [in_form(array, layout) for layout in FORMS]
    expected = [linear(x, w, threads=1) for w in tensors]

    def work(_: int) -> None:
        for _ in range(10):
            for w, right in zip(tensors, expected, strict=True):
                assert np.array_equal(linear(x, w, threads=3), right), w.layout

    in_threads(work, range(8))


def _product_in_child(connection, w, x):
    connection.send(linear(x, w, threads=2).tobytes())


def test_after_fork(monkeypatch):
    monkeypatch.setattr(multiply, "WORTH_A_THREAD", 1)
    w = SparseTensor.from_dense(weights(np.random.default_rng(8), (300, 500), np.float32, 0.7))
    x = np.ones((2, 500), np.float32)
    expected = linear(x, w, threads=2).tobytes()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_product_in_child, args=(sender, w, x))
    child.start()
    assert receiver.poll(60), "the forked child hangs"
    assert receiver.recv() == expected
    child.join()
