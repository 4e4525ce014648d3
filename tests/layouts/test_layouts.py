"""Layouts: every tile comes back to the bit, has the one form that SPEC.md gives, and nothing else passes `check`."""

from __future__ import annotations

from collections.abc import Callable

import naive
import numpy as np
import pytest
from helpers import (
    PRUNABLE,
    SPARSE_FORMS,
    WIDTHS,
    arrays,
    check_layout_round_trip,
    examples,
    far_apart,
    pruned,
    random_bits,
)
from hypothesis import given, settings

from sparsefmt.dtypes import DTYPES, DType, as_bits, dtype_of
from sparsefmt.errors import FormatError
from sparsefmt.layouts import FORMS
from sparsefmt.layouts.memory import OVERREAD, frozen
from sparsefmt.layouts.tile import Tile


@pytest.mark.parametrize(
    ("dtype", "layout"),
    [(dtype, layout) for dtype in DTYPES.values() for layout in FORMS if layout == "dense" or dtype.prunable],
    ids=lambda value: getattr(value, "name", value),
)
def test_every_dtype(dtype, layout):
    rng = np.random.default_rng(1)
    for sparsity in (0.0, 0.6, 1.0):
        array = pruned(rng, (13, 70), dtype, sparsity, True) if dtype.prunable else random_bits(rng, (13, 70), dtype)
        check_layout_round_trip(array, dtype, layout)


@pytest.mark.parametrize("layout", SPARSE_FORMS)
@pytest.mark.parametrize("cols", [*WIDTHS, 65535, 65536, 65537])
def test_every_width(layout, cols):
    rng = np.random.default_rng(cols)
    for rows in (1, 8, 11):
        check_layout_round_trip(pruned(rng, (rows, cols), DTYPES["F16"], 0.9, True), DTYPES["F16"], layout)


@settings(max_examples=examples(150), deadline=None)
@given(arrays(PRUNABLE))
def test_any_tile(array):
    if array.ndim < 2 or not array.size:
        return
    for layout in FORMS:
        check_layout_round_trip(array, dtype_of(array.dtype), layout)


@settings(max_examples=60, deadline=None)
@given(arrays(PRUNABLE))
def test_arrays_are_those_of_the_spec(array):
    if array.ndim < 2 or not array.size:
        return
    dtype = dtype_of(array.dtype)
    bits = as_bits(array, dtype).reshape(array.shape[0], -1)
    check_arrays_of_the_spec(array, bits, dtype)


@settings(max_examples=examples(100), deadline=None)
@given(far_apart())
def test_gaps_and_fillers(array):
    """Distances that need none, one or several fillers, in every layout."""
    dtype = dtype_of(array.dtype)
    for layout in FORMS:
        check_layout_round_trip(array, dtype, layout)
    check_arrays_of_the_spec(array, as_bits(array, dtype), dtype)


@pytest.mark.parametrize(
    ("distance", "fillers"), [(1, 0), (254, 0), (255, 0), (256, 1), (510, 1), (511, 2), (765, 2), (766, 3), (9000, 35)]
)
def test_a_filler_stands_only_where_the_rest_is_over_255(distance, fillers):
    for first in (0, distance):
        array = np.zeros((2, first + distance + 1), np.float32)
        array[1, [first, first + distance]] = 1.5, 2.5
        tile = Tile.from_dense(FORMS["gaps"], array.view(np.uint32), DTYPES["F32"])
        gaps, values = (tile[name].reshape(-1, 16)[:, 0] for name in ("gaps", "values"))
        run = [255] * fillers
        assert gaps.tolist() == [
            *(run if first else []),
            first and distance - 255 * fillers,
            *run,
            distance - 255 * fillers,
        ]
        assert values.view(np.float32).tolist() == [0] * (fillers if first else 0) + [1.5] + [0] * fillers + [2.5]
        assert tile["row_counts"].tolist() == [len(gaps), 0]
        assert (tile.nnz, sorted(tile.counts()), sorted(tile.fillers())) == (2, [0, 2], [0, len(gaps) - 2])
        check_layout_round_trip(array, DTYPES["F32"], "gaps")


def check_arrays_of_the_spec(array: np.ndarray, bits: np.ndarray, dtype: DType) -> None:
    expectations = {
        "bitmask": naive.bitmask_arrays(array),
        "columns": naive.permuted_arrays(array),
        "gaps": naive.permuted_arrays(array, gaps=True),
    }
    for layout, expected in expectations.items():
        tile = Tile.from_dense(FORMS[layout], bits, dtype)
        assert tile.all_arrays().keys() == expected.keys()
        for name, data in expected.items():
            assert tile[name].dtype == data.dtype, name
            assert np.array_equal(tile[name], data), name


@pytest.mark.parametrize("layout", FORMS.values(), ids=FORMS)
def test_what_codecs_are_told_follows_from_arrays_that_come_before(layout):
    """Positions are those of the elements of an array, and arrays that are derived are what the layout makes."""
    rows, cols, dtype = 13, 70, DTYPES["BF16"]
    array = pruned(np.random.default_rng(5), (rows, cols), dtype, 0.6, negative_zeros=True)
    bits = as_bits(array, dtype)
    tile = Tile.from_dense(layout, bits, dtype)
    assert layout.mask is None or layout.mask in layout.arrays
    for name in tile.all_arrays():
        before = Tile(layout, dtype, (rows, cols), {})
        for other, data in tile.all_arrays().items():
            if other < name:
                before.put(other, data)
        positions = before.positions(name)
        if positions is not None:
            assert (positions.rows, positions.cols) == (rows, cols)
            kept = np.ones((rows, cols), bool)
            if positions.mask is not None:
                kept = (positions.mask[0] >> np.arange(16)[:rows, None]) & 1 == 1
            if name != layout.mask:
                assert np.array_equal(positions.by_row(frozen(tile[name]), positions.counts())[0], bits[kept])
        if name in layout.derived:
            derived = np.full_like(tile[name], 7)
            layout.derive(name, before, derived)
            assert np.array_equal(derived, tile[name])
    told = {name for name in tile.all_arrays() if tile.positions(name) is not None}
    assert told == {"dense": {"values"}, "bitmask": {"mask", "values"}, "columns": set(), "gaps": set()}[layout.form]


def test_packed_elements_have_no_positions():
    assert Tile(FORMS["dense"], DTYPES["F4"], (1, 1), {}).positions("values") is None


def test_one_nonzero_anywhere():
    for position in range(9 * 17):
        array = np.zeros((9, 17), np.float32)
        array.flat[position] = -1.5
        for layout in SPARSE_FORMS:
            check_layout_round_trip(array, DTYPES["F32"], layout)


@pytest.mark.parametrize("layout", FORMS)
def test_arrays_are_aligned_and_followed_by_readable_bytes(layout):
    array = pruned(np.random.default_rng(0), (9, 30), DTYPES["F32"], 0.5)
    for data in Tile.from_dense(FORMS[layout], array.view(np.uint32), DTYPES["F32"]).all_arrays().values():
        assert data.ctypes.data % 64 == 0
        block = data.base
        while block.base is not None:
            block = block.base
        assert data.ctypes.data + data.nbytes + OVERREAD <= block.ctypes.data + block.nbytes


def tile_of(layout: str) -> Tile:
    """A tile that can be written to, with counts 2, 5, 0 and so on: 19 rows, 70 columns."""
    array = np.zeros((19, 70), np.float32)
    rng = np.random.default_rng(7)
    for row, count in enumerate((2, 5, 0, 5, 3, 1, 2, 0, 4, 1, 6, 2, 1, 1, 2, 1, 1, 1, 1)):
        array[row, rng.choice(70, count, replace=False)] = rng.random(count) + 1
    array[0, np.flatnonzero(array[0] == 0)[0]] = -0.0
    return Tile.from_dense(FORMS[layout], array.view(np.uint32), DTYPES["F32"]).moved(np.ndarray.copy)


def set_at(name, index, value):
    def change(tile):
        tile[name][index] = value

    return change


def swap(name, first, second):
    def change(tile):
        tile[name][[first, second]] = tile[name][[second, first]]

    return change


def flip_mask_bit(row, col):
    def change(tile):
        # 70 numbers of 16 bits for the first slice, of 8 bits for the second, which has 3 rows
        tile["mask"][2 * col + row // 8 if row < 16 else 140 + col] ^= 1 << (row % 8)

    return change


def resize(name, size):
    def change(tile):
        tile.put(name, np.resize(tile[name], size))

    return change


# sorted counts are 6 5 5 4 3 2 2 2 2 1 1 1 1 1 1 1 | 1 0 0: slices of 6 and of 1 slots
FAULTS = [
    ("bitmask", "mask-padding", flip_mask_bit(19, 5)),
    ("bitmask", "mask-padding", flip_mask_bit(23, 69)),
    ("bitmask", "slice-offsets", flip_mask_bit(3, 69)),
    ("bitmask", "slice-offsets", flip_mask_bit(18, 69)),
    ("bitmask", "slice-offsets", set_at("slice_offsets", 0, 1)),
    ("bitmask", "slice-offsets", set_at("slice_offsets", 1, 0xFFFFFFFF)),
    ("bitmask", "slice-offsets", set_at("slice_offsets", -1, 0)),
    ("bitmask", "slice-offsets", resize("values", 38)),
    ("bitmask", "stored-zero", set_at("values", 3, 0)),
    ("bitmask", "stored-zero", set_at("values", 38, 0x80000000)),
    ("bitmask", "negative-zeros-padding", set_at("negative_zeros", -1, 0x80)),
    ("bitmask", "array-size", resize("negative_zeros", 161)),
    ("columns", "row-permutation", set_at("row_permutation", 0, 3)),
    ("columns", "row-permutation", set_at("row_permutation", 18, 19)),
    ("columns", "row-permutation", swap("row_permutation", 17, 18)),
    ("columns", "row-counts", set_at("row_counts", 0, 71)),
    ("columns", "row-counts", set_at("row_counts", 4, 6)),
    ("columns", "slice-offsets", set_at("slice_offsets", 0, 1)),
    ("columns", "slice-offsets", set_at("slice_offsets", 1, 7)),
    ("columns", "slice-offsets", set_at("slice_offsets", 1, 0xFFFFFFFF)),
    ("columns", "slice-offsets", set_at("slice_offsets", 2, 6)),
    ("columns", "column-range", set_at("columns", 80, 70)),
    ("columns", "column-range", set_at("columns", 80, 0xFFFF)),
    ("columns", "column-order", swap("columns", 0, 16)),
    ("columns", "column-order", lambda tile: tile["columns"].__setitem__(16, tile["columns"][0])),
    ("columns", "stored-zero", set_at("values", 0, 0)),
    ("columns", "stored-zero", set_at("values", 17, 0x80000000)),
    ("columns", "slot-padding", set_at("values", 95, 1)),
    ("columns", "slot-padding", set_at("columns", 95, 1)),
    ("columns", "slot-padding", set_at("columns", 111, 1)),
    ("columns", "negative-zeros-padding", set_at("negative_zeros", -1, 0x80)),
    ("gaps", "row-permutation", set_at("row_permutation", 18, 19)),
    ("gaps", "row-counts", set_at("row_counts", 0, 71)),
    ("gaps", "slice-offsets", set_at("slice_offsets", 1, 7)),
    ("gaps", "column-range", set_at("gaps", 80, 70)),
    ("gaps", "column-range", set_at("gaps", 96, 255)),
    ("gaps", "column-order", set_at("gaps", 16, 0)),
    ("gaps", "column-order", set_at("gaps", 80, 0)),
    ("gaps", "stored-zero", set_at("values", 0, 0)),
    ("gaps", "stored-zero", set_at("values", 17, 0x80000000)),
    ("gaps", "stored-zero", set_at("values", 80, 0)),
    ("gaps", "slot-padding", set_at("values", 95, 1)),
    ("gaps", "slot-padding", set_at("gaps", 95, 1)),
    ("gaps", "slot-padding", set_at("gaps", 111, 1)),
    ("gaps", "negative-zeros-padding", set_at("negative_zeros", -1, 0x80)),
]


@pytest.mark.parametrize(("layout", "code", "change"), FAULTS)
def test_check_refuses(layout, code, change):
    tile = tile_of(layout)
    tile.check()
    change(tile)
    with pytest.raises(FormatError) as caught:
        tile.check()
    assert caught.value.code == code


def changed(gaps: list[int], values: list[int]) -> Callable[[Tile], None]:
    """Other entries of the second row."""

    def change(tile: Tile) -> None:
        tile["gaps"][1::16] = gaps
        tile["values"][1::16] = np.array(values, np.float32).view(np.uint32)

    return change


@pytest.mark.parametrize("rows", [3, 16], ids=["lanes without rows", "all lanes"])
@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("stored-zero", changed([5, 255, 254, 86, 100], [1, 0, 0, 1, 1])),
        ("stored-zero", changed([5, 255, 255, 85, 255], [1, 0, 0, 1, 0])),
        ("stored-zero", changed([5, 255, 255, 85, 100], [1, 0, 0, 1, 0])),
        ("stored-zero", changed([0, 255, 255, 90, 100], [0, 0, 0, 1, 1])),
        ("column-order", changed([5, 255, 255, 0, 185], [1, 0, 0, 1, 1])),
        ("column-order", changed([5, 255, 0, 255, 85], [1, 0, 0, 1, 1])),
        ("column-range", changed([255, 255, 255, 194, 1], [0, 0, 0, 1, 1])),
        ("column-range", changed([255, 255, 255, 255, 1], [0, 0, 0, 0, 1])),
        (None, changed([255, 255, 255, 193, 1], [0, 0, 0, 1, 1])),
        (None, changed([0, 1, 1, 1, 1], [1, 1, 1, 1, 1])),
        (None, changed([5, 255, 1, 255, 1], [1, 0, 1, 0, 1])),
    ],
)
def test_check_of_fillers(rows, code, change):
    array = np.zeros((rows, 960), np.float32)
    array[:, [5, 600, 700]] = 1.5
    tile = Tile.from_dense(FORMS["gaps"], array.view(np.uint32), DTYPES["F32"]).moved(np.ndarray.copy)
    tile.check()
    change(tile)
    if code is None:
        tile.check()
        return
    with pytest.raises(FormatError) as caught:
        tile.check()
    assert caught.value.code == code


@pytest.mark.parametrize("layout", FORMS)
def test_check_sizes_refuses_any_other_size(layout):
    tile = tile_of(layout)
    tile.check_sizes()
    sizes = {name: data.nbytes for name, data in tile.arrays.items()}
    for name in sizes:
        for wrong in (1, -1, 1 << 40):
            with pytest.raises(FormatError) as caught:
                FORMS[layout].check_sizes({**sizes, name: sizes[name] + wrong}, DTYPES["F32"], *tile.shape)
            assert caught.value.code == "array-size"


def test_bool_and_packed_padding():
    with pytest.raises(FormatError) as caught:
        Tile(FORMS["dense"], DTYPES["BOOL"], (2, 1), {"values": np.array([0, 2], np.uint8)}).check()
    assert caught.value.code == "bool-invalid"
    packed = {"values": np.array([0x11, 0x11], np.uint8)}
    with pytest.raises(FormatError) as caught:
        Tile(FORMS["dense"], DTYPES["F4"], (3, 1), packed).check()
    assert caught.value.code == "values-padding"
    Tile(FORMS["dense"], DTYPES["F4"], (4, 1), packed).check()
