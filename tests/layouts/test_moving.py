"""Passes that move elements between dense rows and layouts, against what Python's own loops give."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit

from sparsefmt.bits_of_words import deposited_bits, extracted_bits, highest_bit, word_at
from sparsefmt.dtypes import DTYPES
from sparsefmt.layouts import FORMS, negative_zeros
from sparsefmt.layouts.in_rows import RowsChanged, in_rows
from sparsefmt.layouts.jitted.compared import equal, nonzero
from sparsefmt.layouts.jitted.registers import (
    address_of,
    compress,
    compress_columns,
    compressing,
    expand,
    expanding,
    places,
    turn,
)
from sparsefmt.layouts.memory import frozen
from sparsefmt.layouts.tile import Tile

WIDTHS = (1, 2, 4, 8)
SHAPES = [(1, 1), (5, 64), (16, 64), (17, 63), (37, 203), (8, 130), (3, 1500), (2, 0), (64, 128)]
SHARES = [0.0, 0.5, 0.9, 0.998, 1.0]


def bits_of(seed: int, shape: tuple[int, int], zeros: float, dtype) -> np.ndarray:
    """Random bits, NaNs among them, with so many zeros, half of which are -0.0."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 256, (*shape, dtype.bits_dtype.itemsize), np.uint8).view(dtype.bits_dtype)[..., 0]
    pruned, negative = rng.random(shape) < zeros, rng.random(shape) < 0.5
    bits[pruned] = 0
    bits[pruned & negative] = dtype.negative_zero
    return np.ascontiguousarray(bits)


def fillers_of(present: np.ndarray) -> int:
    """Fillers of a row, step by step as SPEC.md says it."""
    last, found = 0, 0
    for column in np.flatnonzero(present):
        while column - last > 255:
            last += 255
            found += 1
        last = column
    return found


@pytest.mark.parametrize("name", ["U8", "F8_E4M3", "F16", "I16", "F32", "U32", "F64", "I64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_in_rows(name, shape):
    dtype = DTYPES[name]
    for seed, zeros in enumerate(SHARES):
        bits = bits_of(seed, shape, zeros, dtype)
        is_negative = (bits == dtype.negative_zero) & bool(dtype.negative_zero)
        present = (bits != 0) & ~is_negative
        found = in_rows(bits, dtype)
        assert found.counts.tolist() == present.sum(axis=1).tolist()
        assert found.fillers.tolist() == [fillers_of(row) for row in present]
        assert found.negative_zeros == is_negative.sum()


@pytest.mark.parametrize("name", ["U8", "F8_E4M3", "BF16", "I16", "F32", "F64", "U64"])
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[1]])
def test_tiles_of_every_width_come_back(name, shape):
    dtype = DTYPES[name]
    for form, layout in FORMS.items():
        for seed, zeros in enumerate(SHARES):
            bits = bits_of(seed, shape, zeros, dtype)
            tile = Tile.from_dense(layout, bits, dtype)
            tile.check()
            for begin, end in {(0, shape[0]), (shape[0] // 3, shape[0]), (shape[0] // 2, shape[0] // 2 + 1)}:
                assert np.array_equal(tile.to_dense(begin, end), bits[begin:end]), (form, zeros, begin, end)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "dense"])
@pytest.mark.parametrize("zeros", [(0.9, 0.0), (0.0, 0.9), (0.5, 0.5), (0.998, 1.0)])
def test_rows_that_were_changed_are_refused(form, zeros):
    """Whoever laid them out by what was found before would write beyond the arrays, or a file that nobody can read."""
    for shape in [(37, 203), (3, 1500), (64, 128)]:
        for name in ("U8", "BF16", "F32", "F64"):
            before, now = (bits_of(seed, shape, share, DTYPES[name]) for seed, share in enumerate(zeros))
            with pytest.raises(RowsChanged):
                Tile.from_dense(FORMS[form], now, DTYPES[name], found=in_rows(before, DTYPES[name]))
            if DTYPES[name].negative_zero:
                with pytest.raises(RowsChanged):
                    negative_zeros.from_dense(
                        now, DTYPES[name], now.size - int(in_rows(before, DTYPES[name]).counts.sum())
                    )


@pytest.mark.parametrize("name", ["F8_E5M2", "F16", "F32", "F64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_signs_lie_side_by_side(name, shape):
    dtype = DTYPES[name]
    for seed, zeros in enumerate(SHARES):
        bits = bits_of(seed, shape, zeros, dtype)
        is_pruned = (bits == 0) | (bits == dtype.negative_zero)
        signs = bits[is_pruned] == dtype.negative_zero
        array = negative_zeros.from_dense(bits, dtype, int(is_pruned.sum()))
        assert array.tolist() == np.packbits(signs, bitorder="little").tolist()
        # from any row on
        for row in {0, shape[0] // 2, shape[0] - 1}:
            restored = np.where(is_pruned, 0, bits).astype(bits.dtype)[row:]
            negative_zeros.restore(restored, array, dtype, int(is_pruned[:row].sum()))
            assert np.array_equal(restored, bits[row:])


@pytest.mark.parametrize("form", FORMS)
def test_behind_the_values_there_are_zeros(form):
    """Kernels read some bytes beyond the end of an array, and passes write there while they fill it."""
    for shape in (shape for shape in SHAPES if shape[1]):
        for name in ("U8", "BF16", "F32", "F64"):
            tile = Tile.from_dense(FORMS[form], bits_of(1, shape, 0.5, DTYPES[name]), DTYPES[name])
            for array in (*tile.arrays.values(), *([] if tile.negative_zeros is None else [tile.negative_zeros])):
                behind = np.lib.stride_tricks.as_strided(array.view(np.uint8)[-1:], (65,), (1,))[1:]
                assert not array.size or not behind.any()


@njit
def extracted_and_deposited(word, mask):
    return extracted_bits(word, mask), deposited_bits(word, mask)


@njit
def bits_from(array, bit):
    return word_at(address_of(array), bit)


@njit
def highest(word):
    return highest_bit(word)


def test_bits_of_words():
    rng = np.random.default_rng(5)
    for _ in range(200):
        word, mask = (int(number) & int(rng.integers(0, 1 << 64, dtype=np.uint64)) for number in (-1, -1))
        mask = rng.choice(np.array([mask, 0, (1 << 64) - 1, 1, 1 << 63, mask & 0xFF00FF], np.uint64))
        where = [bit for bit in range(64) if int(mask) >> bit & 1]
        extracted = sum((word >> bit & 1) << number for number, bit in enumerate(where))
        deposited = sum((word >> number & 1) << bit for number, bit in enumerate(where))
        assert extracted_and_deposited(np.uint64(word), np.uint64(mask)) == (extracted, deposited)
        if word:
            assert highest(np.uint64(word)) == word.bit_length() - 1
    array = rng.integers(0, 256, 32, np.uint8)
    number = int.from_bytes(array.tobytes(), "little")
    for bit in range(150):
        assert bits_from(frozen(array), bit) == number >> bit & ((1 << 64) - 1)


@njit
def moved(elements, bits, count16, out, back, tables):
    """Compress 8 or 16 elements, and expand them again; how many there were both times."""
    start, source = address_of(out), address_of(elements)
    if count16:
        end = compress(source, bits, 16, start, address_of(tables[0]), elements)
        read = expand(start, bits, 16, address_of(back), address_of(tables[1]), elements)
    else:
        end = compress(source, bits, 8, start, address_of(tables[0]), elements)
        read = expand(start, bits, 8, address_of(back), address_of(tables[1]), elements)
    return (end - start) // elements.itemsize, (read - start) // elements.itemsize


@njit
def column_numbers(bits, first, out, table):
    return (compress_columns(bits, first, address_of(out), address_of(table)) - address_of(out)) // 4


@njit
def compared(elements, kept, number):
    return nonzero(address_of(elements), 64, kept, elements), equal(address_of(elements), 64, number, elements)


@njit
def turned(square, out):
    turn(address_of(square), square.shape[1] * square.itemsize, address_of(out), out.shape[1] * out.itemsize, square)


@pytest.mark.parametrize("width", WIDTHS)
def test_elements_in_registers(width):
    rng = np.random.default_rng(width)
    elements = rng.integers(0, 256, 64 * width, np.uint8).view(f"<u{width}")
    elements[rng.random(64) < 0.4] = 0
    tables = (compressing(elements), expanding(elements))
    for count in (8, 16):
        for bits in [0, (1 << count) - 1, *rng.integers(0, 1 << count, 300).tolist()]:
            out, back = np.zeros(40, elements.dtype), np.zeros(40, elements.dtype)
            kept = [bool(bits >> number & 1) for number in range(count)]
            found = moved(elements, bits, count == 16, out, back, tables)
            assert found == (sum(kept), sum(kept))
            assert out[: sum(kept)].tolist() == elements[:count][kept].tolist()
            assert back[:count].tolist() == np.where(kept, elements[:count], 0).tolist()
            assert not back[count:].any()
    number = np.int64(elements[3])
    bits, same = compared(elements, -1, number)
    assert [bits >> place & 1 for place in range(64)] == (elements != 0).astype(int).tolist()
    assert [same >> place & 1 for place in range(64)] == (elements == elements[3]).astype(int).tolist()
    lanes = 16 // width
    square = rng.integers(0, 256, (lanes, 24 * width), np.uint8).view(f"<u{width}")
    out = np.zeros((lanes, lanes + 3), square.dtype)
    turned(square, out)
    assert np.array_equal(out[:, :lanes], square[:, :lanes].T)
    assert not out[:, lanes:].any()


def test_column_numbers():
    for bits in range(256):
        out = np.zeros(16, np.uint32)
        kept = [70_000 + column for column in range(8) if bits >> column & 1]
        assert column_numbers(bits, 70_000, out, places()) == len(kept)
        assert out[: len(kept)].tolist() == kept


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["F8_E4M3", "BF16", "F32", "I64"])
def test_parts_of_rows(form, name):
    """Any columns of any rows, with and without signs of zeros before them."""
    dtype, shape = DTYPES[name], (35, 300)
    rng = np.random.default_rng(4)
    for zeros in (0.0, 0.5, 0.97):
        bits = bits_of(7, shape, zeros, dtype)
        tile = Tile.from_dense(FORMS[form], bits, dtype)
        assert zeros == 0.0 or (tile.negative_zeros is None) == (not dtype.negative_zero or form == "dense")
        for _ in range(20):
            begin, first_col = int(rng.integers(35)), int(rng.integers(300))
            part = np.zeros((int(rng.integers(1, 36 - begin)), int(rng.integers(1, 301 - first_col))), bits.dtype)
            tile.fill(begin, first_col, part)
            assert np.array_equal(part, bits[begin:, first_col:][: part.shape[0], : part.shape[1]])
