"""A tile holds what belongs together: its arrays, what they are arrays of, and the signs of its zeros."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import SPARSE_FORMS, check_same_tiles, pruned, same_bits

from sparsefmt.dtypes import DTYPES
from sparsefmt.errors import FormatError
from sparsefmt.layouts import FORMS
from sparsefmt.layouts.negative_zeros import NEGATIVE_ZEROS
from sparsefmt.layouts.tile import Tile
from sparsefmt.layouts.tiling import Tiling

ROWS, COLS, F32 = 21, 70, DTYPES["F32"]
NEGATIVE_ZERO = np.uint32(F32.negative_zero)


def bits_of(signs: bool = True) -> np.ndarray:
    return pruned(np.random.default_rng(3), (ROWS, COLS), F32, 0.7, signs).view(np.uint32)


def tile_of(layout: str, signs: bool = True) -> Tile:
    return Tile.from_dense(FORMS[layout], bits_of(signs), F32)


@pytest.mark.parametrize("layout", SPARSE_FORMS)
def test_numbers(layout):
    bits, tile = bits_of(), tile_of(layout)
    stored = (bits != 0) & (bits != NEGATIVE_ZERO)
    assert (tile.rows, tile.cols, tile.shape) == (ROWS, COLS, (ROWS, COLS))
    assert (tile.nnz, tile.pruned) == (stored.sum(), (~stored).sum())
    assert sorted(tile.counts()) == sorted(stored.sum(axis=1))
    assert tile.nbytes == sum(data.nbytes for data in tile.all_arrays().values())
    assert tile.sign_nbytes == tile[NEGATIVE_ZEROS].nbytes == -(-tile.pruned // 8)
    for row in range(ROWS + 1):
        assert FORMS[layout].nnz_before(tile, row) == stored[:row].sum()


def test_a_dense_tile_has_no_signs_beside_it():
    tile = tile_of("dense")
    assert tile.negative_zeros is None
    assert tile.nnz == 0
    assert tile.all_arrays().keys() == {"values"}
    assert same_bits(tile.to_dense(3, 9), bits_of()[3:9])


@pytest.mark.parametrize("layout", SPARSE_FORMS)
def test_signs_lie_beside_the_arrays_of_the_layout(layout):
    """The layout's own arrays are the same with and without."""
    signed, bits = tile_of(layout), bits_of()
    assert tuple(signed.arrays) == FORMS[layout].arrays
    assert [*signed.all_arrays()] == [*FORMS[layout].arrays, NEGATIVE_ZEROS]
    assert signed.has_negative_zeros
    assert signed[NEGATIVE_ZEROS] is signed.negative_zeros
    assert signed.array_dtype(NEGATIVE_ZEROS) == np.uint8
    assert signed.positions(NEGATIVE_ZEROS) is None
    plain = Tile.from_dense(FORMS[layout], np.where(bits == NEGATIVE_ZERO, np.uint32(0), bits), F32)
    assert plain.negative_zeros is None
    with pytest.raises(KeyError):
        plain[NEGATIVE_ZEROS]
    check_same_tiles(signed.with_negative_zeros(None), plain)
    check_same_tiles(plain.with_negative_zeros(signed.negative_zeros), signed)


@pytest.mark.parametrize("layout", SPARSE_FORMS)
def test_signs_of_some_rows(layout):
    """Any run of rows gets its own signs, and no others."""
    bits, tile = bits_of(), tile_of(layout)
    for begin in range(0, ROWS, 3):
        for end in range(begin, ROWS + 1, 4):
            assert same_bits(tile.to_dense(begin, end), bits[begin:end])
    without = tile.with_negative_zeros(None).to_dense(0, ROWS)
    assert same_bits(without, np.where(bits == NEGATIVE_ZERO, np.uint32(0), bits))


@pytest.mark.parametrize("layout", SPARSE_FORMS)
def test_an_array_that_marks_none(layout):
    signed, plain = tile_of(layout), tile_of(layout, signs=False)
    assert signed.with_sign_array() is signed
    with_array = plain.with_sign_array()
    with_array.check()
    assert with_array[NEGATIVE_ZEROS].size == plain.sign_nbytes
    assert not with_array.has_negative_zeros
    assert same_bits(with_array.to_dense(0, ROWS), plain.to_dense(0, ROWS))


@pytest.mark.parametrize("layout", SPARSE_FORMS)
def test_checks_of_signs_alone(layout):
    tile = tile_of(layout)
    tile.check_negative_zeros()
    for wrong in (tile[NEGATIVE_ZEROS][:-1], np.append(tile[NEGATIVE_ZEROS], np.uint8(0))):
        with pytest.raises(FormatError) as caught:
            tile.with_negative_zeros(wrong).check_negative_zeros()
        assert caught.value.code == "array-size"
    assert tile.pruned % 8
    with pytest.raises(FormatError) as caught:
        tile.with_negative_zeros(np.full(tile.sign_nbytes, 0xFF, np.uint8)).check()
    assert caught.value.code == "negative-zeros-padding"


@pytest.mark.parametrize("layout", FORMS)
@pytest.mark.parametrize("target", FORMS)
def test_conversions(layout, target):
    tile = tile_of(layout)
    laid_out = tile.to_layout(FORMS[target])
    assert (laid_out is tile) == (layout == target)
    check_same_tiles(laid_out, tile_of(target))
    if layout != target and "dense" not in (layout, target):
        assert np.may_share_memory(laid_out[NEGATIVE_ZEROS], tile[NEGATIVE_ZEROS])


@pytest.mark.parametrize("layout", SPARSE_FORMS)
def test_conversions_take_memory_from_the_caller(layout):
    taken = []

    def zeros(length: int, dtype: np.dtype) -> np.ndarray:
        taken.append(np.zeros(length, dtype))
        return taken[-1]

    for other in set(SPARSE_FORMS) - {layout}:
        laid_out = tile_of(layout).to_layout(FORMS[other], zeros)
        for data in laid_out.arrays.values():
            assert any(np.may_share_memory(data, part) for part in taken if part.size)


@pytest.mark.parametrize("layout", FORMS)
def test_filled_array_by_array(layout):
    tile = tile_of(layout)
    tiling = Tiling(F32, (2 * ROWS - 1, COLS), FORMS[layout], ROWS)
    filled = tiling.tile(0, {})
    for array, data in tile.all_arrays().items():
        assert filled.array_dtype(array) == data.dtype
        filled.put(array, data)
    check_same_tiles(filled, tile)
    check_same_tiles(tiling.tile(0, tile.all_arrays()), tile)
    assert tiling.tile(1, {}).shape == (ROWS - 1, COLS)


def test_moved_arrays():
    tile = tile_of("bitmask")
    copied = tile.moved(np.ndarray.copy)
    for array, data in copied.all_arrays().items():
        assert data.flags.writeable
        assert not np.may_share_memory(data, tile[array])
    check_same_tiles(copied.frozen(), tile)
