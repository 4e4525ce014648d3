"""Products of scaled weights, and of activations in eight bits: equal to the naive reference to the bit."""

from __future__ import annotations

import ml_dtypes
import naive
import numpy as np
import pytest
from helpers import assert_same_bits, in_form
from hypothesis import given, settings
from hypothesis import strategies as st
from llvmlite import binding

import sparsefmt
from sparsefmt import Scales, SparseTensor, UnsupportedError, isa, linear
from sparsefmt.kernels import dots, operand, panel, recipe, scaled
from sparsefmt.layouts import FORMS

ids = {"ids": lambda dtype: np.dtype(dtype).name}


def quantized(rng: np.random.Generator, shape: tuple[int, int], dtype: type, sparsity: float = 0.6) -> np.ndarray:
    """Random values of a type, some of them zero."""
    numbers = rng.integers(0 if dtype is np.uint8 else -128, 128, shape)
    return np.where(rng.random(shape) < sparsity, 0, numbers).astype(dtype)


@pytest.mark.parametrize(("layout", "dtype"), [*((form, np.int8) for form in FORMS), ("columns", np.float64)])
@settings(max_examples=30, deadline=None)
@given(
    rows=st.sampled_from([1, 3, 8, 9, 16, 33]),
    cols=st.sampled_from([1, 4, 32, 60, 128]),
    divisor=st.sampled_from([None, 1, 2, 4]),
    tokens=st.sampled_from([1, 5, 40]),
    special=st.sampled_from([None, np.nan, -np.inf]),
    kind=st.sampled_from([np.float32, ml_dtypes.bfloat16, np.float16]),
    seed=st.integers(0, 1 << 32),
)
def test_scales_multiply_sums(layout, dtype, rows, cols, divisor, tokens, special, kind, seed):
    rng = np.random.default_rng(seed)
    q = quantized(rng, (rows, cols), dtype)
    groups = 1 if divisor is None or cols % divisor else divisor
    scale = np.exp(rng.standard_normal((rows, groups))).astype(kind)
    scale[rng.random(scale.shape) < 0.1] = 0
    if divisor is None:
        scale = scale[:, 0]
    x = rng.standard_normal((tokens, cols)).astype(np.float64 if dtype is np.float64 else np.float32)
    if special is not None:
        x[rng.integers(tokens), rng.integers(cols)] = special
    expected = naive.scaled_linear_oracle(q, scale, x)
    assert_same_bits(linear(x, in_form(q, layout), scale=scale), expected)


@pytest.mark.parametrize("layout", FORMS)
@settings(max_examples=40, deadline=None)
@given(
    rows=st.sampled_from([1, 3, 8, 9, 16, 33]),
    cols=st.sampled_from([1, 4, 7, 32, 60, 128, 300]),
    divisor=st.sampled_from([None, 1, 2, 4]),
    tokens=st.sampled_from([1, 3, 6, 13, 40]),
    special=st.sampled_from([None, 0.0, np.nan, np.inf, -np.inf, 1e-44, 3e38]),
    static=st.booleans(),
    seed=st.integers(0, 1 << 32),
)
def test_activations_in_eight_bits(layout, rows, cols, divisor, tokens, special, static, seed):
    rng = np.random.default_rng(seed)
    q = quantized(rng, (rows, cols), np.int8)
    groups = 1 if divisor is None or cols % divisor else divisor
    scale = np.exp(rng.standard_normal((rows, groups))).astype(np.float32)
    x = rng.standard_normal((tokens, cols)).astype(np.float32)
    if special == 0 or special == 1e-44:
        x[rng.integers(tokens)] = special
    elif special is not None:
        x[rng.integers(tokens), rng.integers(cols)] = special
    input_scale = 0.02 if static else None
    expected = naive.scaled_linear_oracle(q, scale, x, activations="int8", input_scale=input_scale)
    actual = linear(x, in_form(q, layout), scale=scale, activations="int8", input_scale=input_scale)
    assert_same_bits(actual, expected)


@pytest.mark.parametrize("layout", FORMS)
@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e5m2, ml_dtypes.bfloat16, np.float64], **ids)
def test_infinite_weights_are_in_one_group(layout, dtype):
    """Another group of their row has nothing of them, not even a product with a zero."""
    rng = np.random.default_rng(4)
    q, x = quantized(rng, (40, 64), dtype), rng.standard_normal((3, 64)).astype(np.float32)
    q[[2, 17, 33, 33], [5, 40, 63, 62]] = np.inf, -np.inf, np.inf, np.nan
    x[1, 5] = 0
    scale = rng.random((40, 4)).astype(np.float32)
    y = linear(x, in_form(q, layout), scale=scale)
    assert np.isinf(y[0, [2, 17]]).all()
    assert_same_bits(y, naive.scaled_linear_oracle(q, scale, x))


@pytest.mark.parametrize("layout", FORMS)
def test_sums_beyond_what_float32_holds(layout):
    """As large as they can be, with an odd last product: rounded once, at the end."""
    cols = 5003
    q = np.full((17, cols), -128, np.int8)
    q[:, -1] = np.arange(17)
    x = np.full((3, cols), 127, np.float32)
    x[:, -1] = 1, -1, 127
    expected = naive.scaled_linear_oracle(q, np.float32(1), x, activations="int8")
    assert_same_bits(linear(x, in_form(q, layout), scale=np.float32(1), activations="int8"), expected)


@pytest.mark.parametrize("x_dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64], **ids)
def test_result_and_bias(x_dtype):
    rng = np.random.default_rng(2)
    q, scale = quantized(rng, (20, 40), np.int8), rng.random(20).astype(np.float32)
    x, bias = rng.standard_normal((4, 40)).astype(x_dtype), rng.standard_normal(20).astype(np.float32)
    w = SparseTensor.from_dense(q)
    for activations in (None, "int8"):
        y = linear(x, w, bias, scale=scale, activations=activations)
        wide = x_dtype is np.float64 and activations is None
        assert y.dtype == (np.float64 if wide else np.float32 if x_dtype is np.float64 else x_dtype)
        expected = naive.scaled_linear_oracle(q, scale, x, bias=bias, activations=activations, result=y.dtype)
        assert_same_bits(y, expected)
        out = np.empty_like(y)
        assert linear(x, w, bias, out, 2, scale=Scales(scale, 20, 40), activations=activations) is out
        assert_same_bits(out, y)
        assert_same_bits(linear(x[2], w, bias, scale=scale, activations=activations), y[2])


class TestBadInput:
    q = SparseTensor.from_dense(np.eye(6, 8, dtype=np.int8))
    x = np.ones((2, 8), np.float32)

    @pytest.mark.parametrize(
        ("scale", "message"),
        [
            (np.ones(5, np.float32), r"shape \(5,\)"),
            (np.ones((6, 3), np.float32), "3 groups do not divide 8 columns"),
            (np.ones((8, 6), np.float32), r"shape \(8, 6\)"),
            (np.ones(6), "float64"),
            (np.ones(6, np.int8), "int8"),
            (np.full(6, np.nan, np.float32), "NaN"),
            (np.full(6, np.inf, np.float16), "NaN or Inf"),
            (np.full(6, -1, np.float32), "negative"),
            (Scales(np.ones(5, np.float32), 5, 8), "5 rows"),
        ],
    )
    def test_scale(self, scale, message):
        with pytest.raises(ValueError, match=message):
            linear(self.x, self.q, scale=scale)

    @pytest.mark.parametrize("input_scale", [0, -1, np.nan, np.inf, 1e300, 1e-300])
    def test_input_scale(self, input_scale):
        with pytest.raises(ValueError, match="positive and finite"):
            linear(self.x, self.q, activations="int8", input_scale=input_scale)

    def test_several_input_scales(self):
        with pytest.raises(ValueError, match=r"one number, and has shape \(2,\)"):
            linear(self.x, self.q, activations="int8", input_scale=np.ones(2, np.float32))

    def test_arguments_that_do_not_go_together(self):
        with pytest.raises(ValueError, match="is for activations"):
            linear(self.x, self.q, input_scale=0.1)
        with pytest.raises(ValueError, match="'int4'"):
            linear(self.x, self.q, activations="int4")

    @pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, ml_dtypes.float8_e4m3fn], **ids)
    def test_activations_need_weights_in_eight_bits(self, dtype):
        w = SparseTensor.from_dense(np.eye(6, 8).astype(dtype))
        with pytest.raises(UnsupportedError, match="needs weights of int8") as caught:
            linear(self.x, w, activations="int8")
        assert caught.value.code == "activations-dtype"


@pytest.fixture
def biased(monkeypatch):
    """As where an instruction multiplies bytes that are 128 too large, but without the instruction."""
    monkeypatch.setattr(panel, "dots_way", lambda: dots.BIASED_BY_PARTS)
    recipe.recipes.cache_clear()
    yield
    recipe.recipes.cache_clear()


@pytest.mark.skipif(isa.ISA == "portable", reason="integers are multiplied with AVX2 and AVX-512")
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("shape", [(33, 2600), (9, 64), (16, 8), (3, 70_000), (57, 134), (152, 1030)])
def test_activations_that_are_128_too_large(biased, groups, shape):
    rng = np.random.default_rng(4)
    q, scale = quantized(rng, shape, np.int8), rng.random((shape[0], groups)).astype(np.float32)
    q[0] = -128
    x = rng.standard_normal((13, shape[1])).astype(np.float32)
    # with the row of -128, the largest sums, before 128 times the weights are taken away and after
    x[1:3] = [[1], [-1]]
    w, expected = SparseTensor.from_dense(q, "bitmask"), naive.scaled_linear_oracle(q, scale, x, activations="int8")
    for tokens in (1, 3, 13):
        assert_same_bits(linear(x[:tokens], w, scale=scale, activations="int8"), expected[:tokens])


@pytest.mark.parametrize(("bits", "processor"), [(256, "alderlake"), (512, "icelake-server")])
def test_llvm_has_the_instruction(bits, processor):
    """By words of 32 bits, which some versions of LLVM take it by, and others make bytes of."""
    words = f"<{bits // 32} x i32>"
    name = f"@llvm.x86.avx512.vpdpbusd.{bits}"
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    module = binding.parse_assembly(
        f"define {words} @f({words} %a, {words} %b, {words} %c) {{\n"
        f"  %d = call {words} {name}({words} %a, {words} %b, {words} %c)\n  ret {words} %d\n}}\n"
        f"declare {words} {name}({words}, {words}, {words})\n"
    )
    machine = binding.Target.from_triple("x86_64-unknown-linux-gnu").create_target_machine(cpu=processor)
    assert "vpdpbusd" in machine.emit_assembly(module)


@pytest.mark.parametrize("layout", FORMS)
def test_wide_groups(layout):
    """Of more columns than a panel has, with sums beyond what float32 holds, too."""
    rng = np.random.default_rng(3)
    q, scale = quantized(rng, (20, 3200), np.int8, 0.1), rng.random((20, 2)).astype(np.float32)
    x = rng.standard_normal((3, 3200)).astype(np.float32)
    w = in_form(q, layout)
    for activations in (None, "int8"):
        expected = naive.scaled_linear_oracle(q, scale, x, activations=activations)
        assert_same_bits(linear(x, w, scale=scale, activations=activations), expected)


def test_exactness_is_known():
    q = np.zeros((2, 2000), np.int8)
    q[1, :1040] = 127
    w = SparseTensor.from_dense(q).operand()
    assert scaled.sums_are_exact(w)
    q[1, :1041] = 127
    assert not scaled.sums_are_exact(SparseTensor.from_dense(q).operand())


def test_scales_are_checked_once():
    scales = Scales(np.ones((6, 4), ml_dtypes.bfloat16), 6, 8)
    assert scales.groups == 4
    assert scales.values.shape == (4, 6)
    assert not scales.values.flags.writeable
    assert sparsefmt.Scales is Scales
    np.testing.assert_array_equal(scales.as_rows(), np.ones((6, 4), np.float32))


@pytest.mark.parametrize("layout", FORMS)
@pytest.mark.parametrize("tokens", [1, 9])
def test_activations_that_are_int8_already(layout, tokens):
    """They are numbers like any other: not what activations are rounded to."""
    rng = np.random.default_rng(6)
    q, x = quantized(rng, (20, 43), np.int8), rng.integers(-128, 128, (tokens, 43)).astype(np.int8)
    expected = q.astype(np.int64) @ x.T
    assert np.array_equal(linear(x, in_form(q, layout)), expected.T)
    scale = np.full(20, 0.5, np.float32)
    assert np.array_equal(linear(x, in_form(q, layout), scale=scale), expected.T / 2)
    rounded = naive.scaled_linear_oracle(q, scale, x.astype(np.float32), activations="int8")
    assert_same_bits(linear(x, in_form(q, layout), scale=scale, activations="int8"), rounded)


def test_scales_live_as_long_as_their_addresses():
    """Also once other scales were asked for, as another thread may that has a layer with the same elements."""
    w = SparseTensor.from_dense(np.eye(20, 8, dtype=np.int8)).operand()
    ones, twos = (Scales(np.full((20, 2), value, np.float32), 20, 8) for value in (1, 2))
    first = w.with_groups(ones, np.dtype(np.float32))
    assert w.with_groups(ones, np.dtype(np.float32)) is first
    assert w.with_groups(twos, np.dtype(np.float32)) is not first
    assert first.scales is not None
    assert first.table[0, operand.SCALES] == first.scales.ctypes.data
    assert (first.scales[:40] == 1).all()
