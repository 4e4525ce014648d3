"""Threads that take tokens each: the bits of one thread, Inf and NaN, and when it pays."""

from __future__ import annotations

import gc
import weakref

import ml_dtypes
import naive
import numpy as np
import pytest
from helpers import in_form, same_bits, weights

from sparsefmt import linear
from sparsefmt.kernels import by_tokens, multiply, recipe
from sparsefmt.kernels.kinds import F32
from sparsefmt.layouts import FORMS


@pytest.fixture(autouse=True)
def always(monkeypatch):
    monkeypatch.setattr(multiply, "WORTH_IN_SHARES", 1)
    monkeypatch.setattr(multiply, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(by_tokens, "LEAST_TOKENS", 32)


@pytest.fixture
def shared(monkeypatch) -> list:
    """The shares of each product that was shared so."""
    found, right = [], by_tokens.multiply_shares
    monkeypatch.setattr(by_tokens, "multiply_shares", lambda *args: found.append(args[0]) or right(*args))
    return found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float64], ids=lambda dtype: np.dtype(dtype).name)
def test_the_bits_of_one_thread(form, dtype, shared):
    """Tokens left over, fewer shares than threads, several tiles, rows that fill no slice."""
    rng = np.random.default_rng(3)
    array = weights(rng, (40, 90), dtype, 0.7, negative_zeros=True)
    w = in_form(array, form, 48)
    summed = np.float64 if dtype is np.float64 else np.float32
    x = rng.standard_normal((150, 90)).astype(summed)
    expected = naive.product(array, x, summed)
    for tokens, threads, count in ((150, 2, 2), (150, 3, 3), (150, 4, 4), (65, 2, 2), (64, 2, 2)):
        assert same_bits(linear(x[:tokens], w, threads=threads), expected[:tokens])
        assert len(shared.pop().units) - 1 == count
    # results by columns, which not every kernel writes
    assert same_bits(np.ascontiguousarray((w @ x.T).T), expected)
    shared.clear()
    linear(x, w, threads=1)
    linear(x[:63], w, threads=2)
    linear(x, w, threads=5)
    assert not shared


def test_each_token_is_in_one_part():
    w = in_form(weights(np.random.default_rng(4), (40, 50), np.float32, 0.5), "gaps").operand()
    for tokens in (32, 33, 100, 129, 1000):
        for count in (2, 3, 7):
            shares = by_tokens.shares_of(w, F32, tokens, count)
            ends = [part.tokens.stop for part in shares.parts]
            assert [part.tokens.start for part in shares.parts] == [0, *ends[:-1]]
            assert ends[-1] == tokens
            assert 1 < len(shares.units) <= count + 1
            assert shares.units[0] == 0
            assert shares.units[-1] == len(shares.parts)
            assert all(part.base <= part.tokens.start for part in shares.parts)


def test_a_recipe_lives_as_long_as_its_shares():
    """Native code runs it by its address, whatever the cache of recipes has forgotten meanwhile."""
    w = in_form(weights(np.random.default_rng(4), (40, 50), np.float32, 0.5), "gaps").operand()
    shares = by_tokens.shares_of(w, F32, 100, 2)
    held = [weakref.ref(part.recipe._block) for part in shares.parts]
    recipe.recipes.cache_clear()
    gc.collect()
    assert all(block() is not None for block in held)


@pytest.mark.parametrize("odd", [np.inf, np.nan])
@pytest.mark.parametrize("form", ["gaps", "bitmask"])
def test_odd_activations_are_multiplied_again(form, odd, shared):
    """Those of their part alone; the others have their bits."""
    rng = np.random.default_rng(5)
    array = weights(rng, (40, 600), np.float32, 0.99)
    x = rng.standard_normal((96, 600)).astype(np.float32)
    x[70, ::3] = odd
    assert np.array_equal(
        linear(x, in_form(array, form), threads=3), naive.product(array, x, np.float32), equal_nan=True
    )
    assert shared


def test_what_is_left_to_threads_that_take_rows(shared):
    """Few tokens for the size of the matrix, of whose panels each thread would expand all; other orders of axes."""
    rng = np.random.default_rng(6)
    array, x = weights(rng, (600, 64), np.float32, 0.5), rng.standard_normal((64, 64)).astype(np.float32)
    w = in_form(array, "gaps")
    expected = linear(x, w, threads=1)
    assert not by_tokens.pays(w.operand(), 140)
    assert by_tokens.pays(w.operand(), 160)
    for form in ("bitmask", "dense"):
        assert not by_tokens.pays(in_form(array, form).operand(), 900)
        assert by_tokens.pays(in_form(array, form).operand(), 901)
    x = np.concatenate([x, x, x])
    assert same_bits(np.ascontiguousarray((w @ np.asfortranarray(x).T).T[:64]), expected)
    assert not shared
    assert same_bits(linear(x, w, threads=2)[128:], expected)
    assert shared


def test_scales_of_groups(shared):
    """A thread multiplies all groups of columns for its tokens; odd ones are left to who knows the scales."""
    rng = np.random.default_rng(7)
    array = weights(rng, (40, 64), np.float32, 0.97)
    x = rng.standard_normal((64, 64)).astype(np.float32)
    scale = rng.uniform(0.5, 2, (40, 2)).astype(np.float32)
    w = in_form(array, "gaps")
    assert same_bits(linear(x, w, scale=scale, threads=2), linear(x, w, scale=scale, threads=1))
    x[40, 3] = np.nan
    assert np.array_equal(linear(x, w, scale=scale, threads=2), linear(x, w, scale=scale, threads=1), equal_nan=True)
