"""Masks in slices of 16 rows, against a boolean matrix."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefmt.positions import Positions
from sparsefmt.positions import masks as numpy_masks
from sparsefmt.positions.jitted import masks as jitted

SHAPES = [(1, 1), (1, 7), (8, 64), (9, 64), (16, 3), (17, 4), (33, 100), (40, 5), (64, 66)]


def naive_slices(kept: np.ndarray) -> np.ndarray:
    """uint16 (slices, cols), bit by bit."""
    rows, cols = kept.shape
    mask = np.zeros((-(-rows // 16), cols), np.uint16)
    for row, col in zip(*np.nonzero(kept), strict=True):
        mask[row // 16, col] |= np.uint16(1 << row % 16)
    return read_only(mask)


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def in_slice_order(kept: np.ndarray) -> list[tuple[int, int]]:
    """Row and column of each kept position, slice by slice, column by column."""
    return sorted(
        zip(*map(list, np.nonzero(kept)), strict=True), key=lambda place: (place[0] // 16, place[1], place[0])
    )


def kept_of(shape: tuple[int, int], share: float = 0.4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < share


@pytest.mark.parametrize("shape", SHAPES)
def test_bytes_of_a_mask_and_back(shape):
    rows, _ = shape
    mask = naive_slices(kept_of(shape))
    raw = np.full(numpy_masks.mask_bytes(*shape), 0xAA, np.uint8)
    numpy_masks.put_slices(mask, rows, raw)
    expected = b"".join(
        line.astype("<u2" if rows - 16 * number > 8 else "u1").tobytes() for number, line in enumerate(mask)
    )
    assert raw.tobytes() == expected
    seen = numpy_masks.in_slices(raw, *shape)
    assert np.array_equal(seen, mask)
    assert not seen.flags.writeable


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0, 0.02, 0.4, 1])
def test_rows_of_a_mask_and_back(shape, share):
    kept = kept_of(shape, share)
    mask = naive_slices(kept)
    of_rows = numpy_masks.row_bytes(mask, shape[0])
    assert np.array_equal(of_rows, np.packbits(kept, axis=1, bitorder="little"))
    assert numpy_masks.row_bytes(mask, shape[0], multiple=8).shape == (shape[0], -(-shape[1] // 64) * 8)
    back = np.full_like(mask, 0xFFFF)
    assert jitted.from_row_bytes(read_only(of_rows), back)
    assert np.array_equal(back, mask)


def test_a_bit_beyond_the_columns_is_noticed():
    of_rows = np.zeros((20, 2), np.uint8)
    for row in (0, 7, 8, 15, 16, 19):
        of_rows[:] = 0
        of_rows[row, 1] = 1 << 4
        assert not jitted.from_row_bytes(of_rows, np.zeros((2, 12), np.uint16))
        assert jitted.from_row_bytes(of_rows, np.zeros((2, 13), np.uint16))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0, 0.02, 0.4, 1])
def test_positions(shape, share):
    kept = kept_of(shape, share)
    positions = Positions(*shape, naive_slices(kept))
    counts = positions.counts()
    assert np.array_equal(counts, kept.sum(1))
    assert positions.elements() == kept.sum()
    numbers = np.arange(kept.size, dtype=np.uint32).reshape(shape)
    in_order = read_only(np.array([numbers[place] for place in in_slice_order(kept)], np.uint32))
    elements, columns = positions.by_row(in_order, counts)
    assert np.array_equal(elements, numbers[kept])
    assert np.array_equal(columns, np.nonzero(kept)[1])


def test_positions_of_everything():
    positions, elements = Positions(3, 5, None), np.arange(15)
    assert positions.counts().tolist() == [5, 5, 5]
    assert positions.elements() == 15
    same, columns = positions.by_row(elements, positions.counts())
    assert same is elements
    assert columns.tolist() == 3 * [0, 1, 2, 3, 4]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 50), st.integers(1, 80), st.floats(0, 1), st.sampled_from([1, 16]), st.integers(0, 9))
def test_elements_where_their_rows_are(rows, cols, share, stride, seed):
    """What `to_rows` does, `from_rows` and `set_bits` undo."""
    kept = kept_of((rows, cols), share, seed)
    mask, counts = naive_slices(kept), read_only(kept.sum(1))
    # side by side, or in slots of sixteen rows: no two rows share a place
    begins = np.cumsum(counts) - counts if stride == 1 else np.arange(rows) // 16 * 16 * cols + np.arange(rows) % 16
    begins = read_only(begins)
    room = kept.size * 16 + 16
    numbers = np.arange(1, kept.size + 1, dtype=np.uint16).reshape(rows, cols)
    elements = read_only(np.array([numbers[place] for place in in_slice_order(kept)], np.uint16))
    by_row, columns = np.zeros(room, np.uint16), np.zeros(room, np.uint16)
    jitted.to_rows(mask, elements, begins, stride, by_row, columns)
    for row in range(rows):
        places = begins[row] + stride * np.arange(counts[row])
        assert np.array_equal(by_row[places], numbers[row][kept[row]])
        assert np.array_equal(columns[places], np.nonzero(kept[row])[0])
    back, again = np.zeros_like(mask), np.zeros_like(elements)
    jitted.set_bits(read_only(columns), begins, counts, stride, back)
    assert np.array_equal(back, mask)
    jitted.from_rows(mask, read_only(by_row), begins, stride, again)
    assert np.array_equal(again, elements)


@pytest.mark.parametrize("shape", SHAPES)
def test_offsets(shape):
    kept = kept_of(shape)
    offsets = np.zeros(-(-shape[0] // 16) + 1, np.uint32)
    jitted.offsets(naive_slices(kept), offsets)
    sums = [kept[first : first + 16].sum() for first in range(0, shape[0], 16)]
    assert offsets.tolist() == [0, *np.cumsum(sums)]


def test_transposed():
    bits = np.random.default_rng(3).integers(0, 2, (8, 8))
    word = sum(int(bit) << 8 * row + col for (row, col), bit in np.ndenumerate(bits))
    turned = int(jitted.transposed(np.uint64(word)))
    assert turned == sum(int(bit) << 8 * col + row for (row, col), bit in np.ndenumerate(bits))
