"""Magnitudes are counted as numpy counts them."""

from __future__ import annotations

import numpy as np
import pytest

from sparsefmt.dtypes import DTYPES, as_bits
from sparsefmt.patterns import Magnitudes, have_magnitudes

NUMBERS = [name for name, dtype in DTYPES.items() if have_magnitudes(dtype)]


def numbers(name: str, size: int = 5000, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    found = np.where(rng.random(size) < 0.6, 0, rng.normal(0, 3, size))
    return (np.abs(found) if DTYPES[name].numpy.kind == "u" else found).astype(DTYPES[name].numpy)


def counted(array: np.ndarray, name: str) -> Magnitudes:
    made = Magnitudes(DTYPES[name])
    made.add(as_bits(array, DTYPES[name]), DTYPES[name])
    return made


def magnitudes(array: np.ndarray) -> np.ndarray:
    """Of what is finite and not 0."""
    wide = np.abs(array.astype(np.float64))
    return wide[np.isfinite(wide) & (wide > 0)]


@pytest.mark.parametrize("name", NUMBERS)
def test_ends_and_totals_of_all_dtypes(name: str) -> None:
    array = numbers(name)
    expected, found = magnitudes(array), counted(array, name)
    assert (found.smallest, found.largest) == (expected.min(), expected.max())
    assert found.histogram(np.array([0, np.inf]))[0] == expected.size
    for share in (0.1, 0.5, 0.999):
        # as finely as elements of 16 bits tell, or as those of the dtype
        assert found.quantile(share) == pytest.approx(np.quantile(expected, share, method="inverted_cdf"), rel=0.13)


@pytest.mark.parametrize("name", ["F32", "F64", "BF16", "F16"])
def test_histograms_are_those_of_numpy(name: str) -> None:
    array = numbers(name, 200_000)
    expected = magnitudes(array)
    edges = np.linspace(0, expected.max() * 1.07, 21)  # float64 has 16 steps from a power of two to the next
    found = counted(array, name).histogram(edges)
    assert found.sum() == pytest.approx(expected.size)
    # elements at an edge that are counted as one are shared out
    assert np.abs(found - np.histogram(expected, edges)[0]).max() < 0.015 * expected.size


def test_what_is_no_number_is_left_out() -> None:
    for name in ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F16", "BF16", "F32", "F64"):
        dtype = DTYPES[name].numpy
        array = np.array([0, -0.0, np.nan, -np.nan, np.inf, -np.inf, 2, -4], np.float32).astype(dtype)
        found, expected = counted(array, name), magnitudes(array)
        assert (found.smallest, found.largest) == (expected.min(), expected.max())
        assert found.histogram(np.array([0, 1e9]))[0] == expected.size
        nothing = counted(np.array([0, np.nan], dtype), name)
        assert (nothing.smallest, nothing.largest, nothing.quantile(0.5)) == (0, 0, 0)
        assert nothing.histogram(np.linspace(0, 1, 5)).sum() == 0


def test_parts_are_merged() -> None:
    one, two = numbers("BF16", 3000, 1), numbers("BF16", 3000, 2)
    merged, whole = counted(one, "BF16"), counted(np.concatenate([one, two]), "BF16")
    merged.merge(counted(two, "BF16"))
    edges = np.linspace(0, 9, 30)
    assert np.array_equal(merged.histogram(edges), whole.histogram(edges))
    assert (merged.smallest, merged.largest) == (whole.smallest, whole.largest)


def test_a_cut_is_seen() -> None:
    """Magnitude pruning leaves nothing below its threshold, and the histogram neither."""
    array = np.random.default_rng(3).normal(0, 1, 100_000).astype(np.float32)
    array[np.abs(array) < 0.7] = 0
    found = counted(array, "F32")
    assert found.smallest == np.abs(array[array != 0]).min()
    assert found.histogram(np.linspace(0, 0.69, 10)).sum() == 0
