"""Masks of eight rows or fewer, and so many columns that passes see the bytes as they are."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import peak_of, same_bits, weights

import sparsefmt
from sparsefmt.dtypes import DTYPES
from sparsefmt.layouts import FORMS
from sparsefmt.layouts.tiling import Tiling
from sparsefmt.positions import masks

CODECS = ("raw", "zstd", "rans")

SHAPES = [(1, 1), (1, 300), (3, 67), (8, 1030), (7, 128), (5, 2)]


def everything_of(array: np.ndarray, codec: str) -> list[np.ndarray | bytes]:
    """The file of a tensor in layout `bitmask`, and what is made of it there and in other layouts."""
    data = sparsefmt.save({"w": array}, layout="bitmask", codec=codec)
    w = sparsefmt.load(data, layout="bitmask")["w"]
    x = np.random.default_rng(1).standard_normal((3, array.shape[1])).astype(np.float32)
    found = [data, w.todense(), w[-1], w[:, array.shape[1] // 3 :], w[: array.shape[0] // 2]]
    for form in FORMS.values():
        tile = w.operand().tiles[0].to_layout(form)
        tile.check()
        back = tile.to_layout(FORMS["bitmask"])
        found += [*tile.arrays.values(), *back.arrays.values(), sparsefmt.linear(x, w.to_layout(form.name))]
    return found


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shape", SHAPES)
def test_bytes_give_what_sixteen_bits_give(shape, codec, monkeypatch):
    array = weights(np.random.default_rng(0), shape, np.float32, 0.6, negative_zeros=True)
    array[-1, -1] = 1.5  # no tensor is without elements that are stored
    expected = everything_of(array, codec)
    monkeypatch.setattr(masks, "MOST_WIDENED", 0)
    raw = np.zeros(masks.mask_bytes(*shape), np.uint8)
    assert masks.in_slices(raw, *shape).dtype == np.uint8
    found = everything_of(array, codec)
    assert len(found) == len(expected)
    for left, right in zip(found, expected, strict=True):
        assert left == right if isinstance(left, bytes) else same_bits(left, right)


@pytest.mark.parametrize(
    ("code", "array", "change"),
    [
        ("mask-padding", "mask", lambda mask: np.bitwise_or(mask, 8, out=mask)),
        ("slice-offsets", "mask", lambda mask: np.bitwise_xor(mask[5:6], 1, out=mask[5:6])),
        ("stored-zero", "values", lambda values: values[3:4].fill(0)),
    ],
)
def test_faults_are_found_in_bytes(code, array, change, monkeypatch):
    monkeypatch.setattr(masks, "MOST_WIDENED", 0)
    dense = weights(np.random.default_rng(2), (3, 50), np.float32, 0.5)
    tile = sparsefmt.SparseTensor.from_dense(dense, "bitmask").operand().tiles[0]
    changed = {name: data.copy() for name, data in tile.arrays.items()}
    change(changed[array])
    tiling = Tiling(DTYPES["F32"], dense.shape, FORMS["bitmask"], 3)
    with pytest.raises(sparsefmt.FormatError) as raised:
        tiling.tile(0, changed).check()
    assert raised.value.code == code


COLS = (1 << 22) + 3
"""Four times as many as are widened."""


@pytest.fixture(scope="module")
def wide() -> np.ndarray:
    """int8 (7, COLS), dense enough that every part of a mask has bits, and sparse enough that values take little."""
    array = np.zeros((7, COLS), np.int8)
    array.reshape(-1)[::50] = 3
    return array


@pytest.mark.parametrize("codec", CODECS)
def test_loading_takes_no_second_mask(codec, wide):
    """A widened one would take two bytes for each column, more than the limits here leave."""
    data = sparsefmt.save({"w": wide}, layout="bitmask", codec=codec)
    sparsefmt.load(data, layout="bitmask")  # what is compiled for it
    w, peak = peak_of(lambda: sparsefmt.load(data, layout="bitmask")["w"])
    assert w.nnz == np.count_nonzero(wide)
    # arrays that lie in memory of their own do not count; what decoding takes does: the rows of the mask, 7 bits for
    # each column, and for rans as many bytes that say how they are coded
    limits = {"raw": w.nbytes, "zstd": 7 * COLS // 8, "rans": 2 * 7 * COLS // 8}
    assert peak < limits[codec] + 0.5 * COLS


@pytest.mark.parametrize("work", ["check", "fillers", "counts"])
def test_passes_take_no_second_mask(work, wide):
    tile = sparsefmt.SparseTensor.from_dense(wide, "bitmask").operand().tiles[0]
    getattr(tile, work)()  # what is compiled for it
    assert peak_of(getattr(tile, work))[1] < 0.1 * COLS


@pytest.mark.parametrize("layout", ["bitmask", "permuted"])
def test_the_wide_one_is_what_it_was(layout, wide):
    w = sparsefmt.load(sparsefmt.save({"w": wide}, layout="bitmask", codec="rans"), layout=layout)["w"]
    assert same_bits(w.todense(), wide)
    assert same_bits(w.to_layout("bitmask").todense(), wide)
