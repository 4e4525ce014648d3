"""Several products at once: each token has the bits that its product alone would give it, on however many threads."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from helpers import first_always, in_form, same_bits, weights

from sparsefmt import linear
from sparsefmt.kernels import grouped, multiply
from sparsefmt.kernels.grouped import Product, multiply_grouped
from sparsefmt.layouts import FORMS
from sparsefmt.threads import is_worker, share

TOKENS = [1, 70, 3, 1, 20, 4]
"""Of each product: one of them has most of the work."""


@pytest.fixture(autouse=True)
def always(monkeypatch):
    monkeypatch.setattr(multiply, "WORTH_A_THREAD", 1)


@pytest.fixture
def alone(monkeypatch) -> list[int]:
    """Tokens of each product that was multiplied by itself."""
    found, right = [], grouped.multiply
    monkeypatch.setattr(grouped, "multiply", lambda *args: found.append(len(args[0])) or right(*args))
    return found


@pytest.fixture
def parts(monkeypatch) -> list[tuple[int, int]]:
    """How many parts there were in each call, and for how many threads."""
    found, right = [], grouped.run_parts
    monkeypatch.setattr(grouped, "run_parts", lambda *args: found.append((len(args[1]) - 1, args[2])) or right(*args))
    return found


def matrices(form: str, dtype: object, count: int = len(TOKENS)) -> list:
    """Of one shape, in tiles whose rows fill no slice."""
    rng = np.random.default_rng(3)
    arrays = (weights(rng, (40, 90), dtype, 0.7, negative_zeros=True) for _ in range(count))
    return [in_form(array, form, 48) for array in arrays]


def products_of(tensors: list, tokens: list[int]) -> list[Product]:
    ends = np.cumsum(tokens).tolist()
    return [Product(w.operand(), end - count, end) for w, count, end in zip(tensors, tokens, ends, strict=True)]


def check_bits_alone(products: list[Product], tensors: list, x: np.ndarray, dtype: object) -> None:
    """On one, two and many threads, against one product after the other."""
    expected = np.full((len(x), products[0].w.rows), 7, dtype)
    for (_, begin, end), w in zip(products, tensors, strict=True):
        expected[begin:end] = linear(x[begin:end], w, threads=1)
    for threads in (1, 2, 7):
        y = np.full(expected.shape, 7, dtype)
        multiply_grouped(products, x, y, threads)
        assert same_bits(np.nan_to_num(y), np.nan_to_num(expected))
        assert np.array_equal(np.isnan(y), np.isnan(expected))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", first_always([np.float32, ml_dtypes.bfloat16, np.float64]))
def test_the_bits_of_each_alone(form, dtype):
    tensors, summed = matrices(form, dtype), np.float64 if dtype is np.float64 else np.float32
    products = products_of(tensors, TOKENS)
    x = np.random.default_rng(4).standard_normal((sum(TOKENS), 90)).astype(summed)
    check_bits_alone(products, tensors, x, summed)
    # tokens of none are left as they are; activations that do not lie as kernels read them
    check_bits_alone(products[2:4], tensors[2:4], np.asfortranarray(x), summed)
    check_bits_alone(products[:1], tensors[:1], x, summed)


def test_other_layouts_and_dtypes_among_them(alone):
    """Values of 16 bits that are integers are widened in memory, by a product alone."""
    tensors = [matrices(form, dtype, 1)[0] for form in FORMS for dtype in (np.float32, np.int16)]
    x = np.random.default_rng(4).standard_normal((2 * len(tensors), 90)).astype(np.float32)
    check_bits_alone(products_of(tensors, [2] * len(tensors)), tensors, x, np.float32)
    assert len(alone) >= 3 * len(FORMS)
    empty = in_form(np.zeros((0, 90), np.float32), "bitmask")
    multiply_grouped([Product(empty.operand(), 0, 2)], x, np.empty((len(x), 0), np.float32), 2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("odd", [np.inf, np.nan])
def test_odd_activations(form, odd, alone):
    """Products that have one are multiplied again, whether they were cut or not."""
    tensors = matrices(form, np.float32)
    x = np.random.default_rng(4).standard_normal((sum(TOKENS), 90)).astype(np.float32)
    x[[0, 71], ::3] = odd
    alone.clear()
    check_bits_alone(products_of(tensors, TOKENS), tensors, x, np.float32)
    assert {1, 3} <= set(alone)
    assert 4 not in alone


def test_who_takes_what(alone, parts):
    tensors = matrices("bitmask", np.float32, 4)
    one = in_form(weights(np.random.default_rng(3), (640, 128), np.float32, 0.7), "bitmask")
    x, y = np.ones((80, 128), np.float32), np.empty((80, 640), np.float32)
    # nothing is arranged of a single token: rows are shared
    multiply_grouped([Product(one.operand(), 0, 1)], x, y, 2)
    assert not alone
    assert [(count > 3, threads) for count, threads in parts] == [(True, 2)]
    # many tokens are arranged once, and half of all work is too much for a thread
    multiply_grouped([Product(one.operand(), 0, 40), Product(one.operand(), 40, 80)], x, y, 2)
    assert (alone, parts[1:]) == ([40, 40], [])
    multiply_grouped([Product(one.operand(), number, number + 20) for number in (0, 20, 40, 60)], x, y, 2)
    assert (alone[2:], parts[1:]) == ([], [(4, 2)])
    multiply_grouped([Product(one.operand(), 0, 40), Product(one.operand(), 40, 80)], x, y, 1)
    assert (alone[2:], parts[2:]) == ([], [(2, 1)])
    # too little work
    multiply.WORTH_A_THREAD = 1 << 30
    x, y = x[:, :90], np.empty((80, 40), np.float32)
    multiply_grouped(products_of(tensors, [1, 1, 1, 1]), x, y, 2)
    assert parts[3:] == [(4, 1)]


def test_within_the_pool():
    """No threads of its own, and the same bits."""
    tensors, x = matrices("gaps", np.float32), np.ones((sum(TOKENS), 90), np.float32)
    products = products_of(tensors, TOKENS)
    expected = np.empty((len(x), 40), np.float32)
    multiply_grouped(products, x, expected, 1)
    results = [np.empty_like(expected) for _ in range(4)]
    share(lambda number: multiply_grouped(products, x, results[number], 2), 4, 3)
    assert not is_worker()
    assert all(same_bits(result, expected) for result in results)
