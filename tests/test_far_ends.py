"""Right at the far end: tensors of more positions, and arrays of more elements, than 32 bits can number.

The memory is that of pages that nobody has written to, all zero: what counts here is that addresses are right.
"""

from __future__ import annotations

import mmap
import sys
from array import array
from collections.abc import Callable
from pathlib import Path

import naive
import numpy as np
import pytest
from helpers import same_bits
from naive import fma32

import sparsefmt
from sparsefmt import SparseTensor
from sparsefmt.container.in_progress import Contents
from sparsefmt.container.writer import Writer
from sparsefmt.dtypes import DTYPES
from sparsefmt.kernels import permuted
from sparsefmt.kernels.kinds import F32
from sparsefmt.kernels.operand import Work
from sparsefmt.layouts import FORMS, layout_of
from sparsefmt.layouts.contract import Arrays
from sparsefmt.layouts.memory import OVERREAD
from sparsefmt.layouts.tiling import Tiling
from sparsefmt.limits import MAX_SPARSE_TILE_POSITIONS
from sparsefmt.positions.masks import SLICE_ROWS, mask_bytes, slices_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory that is never written to may cost something")

NO_RESERVE = 0x4000
"""MAP_NORESERVE of Linux, which the module mmap has from Python 3.13 on."""


def untouched(length: int, dtype: str) -> np.ndarray:
    """Zeros that take no memory until they are written to."""
    nbytes = length * np.dtype(dtype).itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
    return np.frombuffer(mmap.mmap(-1, nbytes + OVERREAD, flags=flags), dtype, length)


def bitmask_arrays(rows: int, cols: int, places: list[tuple[int, int, int]]) -> Arrays:
    """Of (row, column, bits of the value), ascending."""
    mask, offsets = untouched(mask_bytes(rows, cols), "<u1"), np.zeros(slices_of(rows) + 1, "<u4")
    in_order = sorted(places, key=lambda place: (place[0] // SLICE_ROWS, place[1], place[0]))
    for row, col, _ in in_order:
        slice_, lane = divmod(row, SLICE_ROWS)
        width = 2 if rows - SLICE_ROWS * slice_ > 8 else 1
        mask[2 * slice_ * cols + width * col + lane // 8] |= 1 << (lane % 8)
        offsets[slice_ + 1 :] += np.uint32(1)
    values = np.zeros(len(places) + 16, "<u4")[: len(places)]
    values[:] = [bits for _, _, bits in in_order]
    return {"mask": mask, "slice_offsets": offsets, "values": values}


def permuted_arrays(rows: int, cols: int, places: list[tuple[int, int, int]]) -> Arrays:
    counts = np.bincount([row for row, _, _ in places], minlength=rows)
    arrays = FORMS["columns"].allocate(counts, DTYPES["F32"], cols)  # type: ignore[attr-defined]
    done: dict[int, int] = {}
    position_of = np.argsort(arrays["row_permutation"])
    for row, col, bits in places:
        position = int(position_of[row])
        slot = int(arrays["slice_offsets"][position // SLICE_ROWS]) + done.get(row, 0)
        done[row] = done.get(row, 0) + 1
        (
            arrays["values"][slot * SLICE_ROWS + position % SLICE_ROWS],
            arrays["columns"][slot * SLICE_ROWS + position % SLICE_ROWS],
        ) = bits, col
    return arrays


FORM = {"bitmask": "bitmask", "permuted": "columns"}
"""Which form has so few elements so far apart."""

MAKERS: dict[str, Callable[[int, int, list[tuple[int, int, int]]], Arrays]] = {
    "bitmask": bitmask_arrays,
    "permuted": permuted_arrays,
}


def tensor(layout: str, shape: tuple[int, int], tile_rows: int, places: list[tuple[int, int, float]]) -> SparseTensor:
    """Checked tiles, as a reader would have them."""
    rows, cols = shape
    tiles = []
    tiling = Tiling(DTYPES["F32"], shape, FORMS[FORM[layout]], tile_rows)
    for first in range(0, rows, tile_rows):
        height = min(tile_rows, rows - first)
        here = [
            (row - first, col, int(np.float32(value).view(np.uint32)))
            for row, col, value in places
            if first <= row < first + height
        ]
        tile = tiling.tile(len(tiles), MAKERS[layout](height, cols, here)).frozen()
        tile.check_sizes()
        tile.check()
        tiles.append(tile)
    return SparseTensor(tiling, tiles)


ROWS = COLS = 1 << 16
"""2^32 positions, in three tiles, two of them of nearly 2^31 each."""
TILE_ROWS = MAX_SPARSE_TILE_POSITIONS // COLS // 16 * 16
FAR = [
    (0, 0, 1.5),
    (TILE_ROWS - 1, COLS - 1, 2.5),
    (TILE_ROWS, 0, -3.0),
    (ROWS // 2, COLS // 2, 7.0),
    (ROWS - 2, COLS - 1, 0.25),
    (ROWS - 1, 0, 1.25),
    (ROWS - 1, COLS - 1, -4.5),
]


@pytest.mark.parametrize("layout", MAKERS)
def test_more_positions_than_32_bits_can_number(layout):
    w = tensor(layout, (ROWS, COLS), TILE_ROWS, FAR)
    assert w.nnz == len(FAR)
    assert w.size == 1 << 32
    expected = {row: np.zeros(COLS, np.float32) for row, _, _ in FAR}
    for row, col, value in FAR:
        expected[row][col] = value
    for row, dense in expected.items():
        assert same_bits(w[row], dense)
        assert same_bits(w[row : row + 1, COLS - 3 :], dense[None, COLS - 3 :])
    assert same_bits(w[[ROWS - 1, 0, -2]], np.stack([expected[row] for row in (ROWS - 1, 0, ROWS - 2)]))
    for tokens in (1, 2, 5):  # kernels for one, for few, and for many
        x = np.random.default_rng(tokens).standard_normal((tokens, COLS)).astype(np.float32)
        y = sparsefmt.linear(x, w)
        others = np.ones(ROWS, bool)
        others[list(expected)] = False
        assert not y[:, others].any()
        for row in expected:
            sums = np.zeros(tokens, np.float32)
            for at, col, value in FAR:
                if at == row:
                    sums = fma32(np.full(tokens, value, np.float32), x[:, col], sums)
            assert same_bits(y[:, row], sums + np.float32(0))


@pytest.mark.parametrize("layout", MAKERS)
def test_other_layouts_of_it(layout):
    """From one sparse layout to the other, without being dense; of the last tile, which is the cheapest."""
    rows = ROWS - 2 * TILE_ROWS + TILE_ROWS // 2
    last = [(row - ROWS + rows, col, value) for row, col, value in FAR if row >= ROWS - 2]
    w = tensor(layout, (rows, COLS), rows, last)
    (other,) = set(MAKERS) - {layout}
    laid_out = w.to_layout(other)
    assert laid_out.nnz == len(last)
    for row in (0, rows - 2, rows - 1):
        assert same_bits(laid_out[row], w[row])
    for name, data in tensor(other, (rows, COLS), rows, last).operand().tiles[0].all_arrays().items():
        assert np.array_equal(laid_out.operand().tiles[0][name], data)


@pytest.mark.parametrize("layout", MAKERS)
def test_the_widest_row(layout):
    """A tile of one row of nearly 2^31 columns, whose dense bytes are beyond 2^32."""
    cols = MAX_SPARSE_TILE_POSITIONS
    places = [(0, 0, 1.5), (0, 1 << 16, 2.0), (0, (1 << 30) + 1, -3.0), (0, cols - 1, 0.5)]
    w = tensor(layout, (1, cols), 1, places)
    assert w[:, cols - 2 :].tolist() == [[0.0, 0.5]]
    assert w[:, (1 << 30) - 1 : (1 << 30) + 3].tolist() == [[0.0, 0.0, -3.0, 0.0]]
    # a product would look through all of x for Inf and NaN; the kernels read what they need
    if layout == "permuted":
        x = untouched(cols, "<f4")
        for weight, (_, col, value) in zip((1.0, 10.0, 100.0, 1000.0), places, strict=True):
            x[col] = weight / value
        operand, y = w.operand(), np.empty((1, 1), np.float32)
        pieces, scratch = np.array([[0, 0, 1]]), np.empty(1)
        addresses = (part.ctypes.data for part in (operand.table, pieces, x, y))
        job = array("q", (*addresses, cols, 1, 1))
        for kernel in (permuted.one_token_kernel(F32, True), permuted.skipping_kernel(F32, True, False)):
            y[...] = 0
            kernel(job.buffer_info()[0], 0, 1, scratch.ctypes.data)
            assert y.tolist() == [[1111.0]]


def only(w: SparseTensor, begin: int, end: int) -> SparseTensor:
    """Products do some rows (in `permuted`, slices) of the first tile and leave all others as they are."""
    pieces = np.array([[0, begin, end]], np.int64)
    w.operand().whole = Work(1, pieces, pieces.ctypes.data, np.array([0, 1]))
    return w


def frozen_tensor(layout: str, shape: tuple[int, int], arrays: Arrays) -> SparseTensor:
    """Of one tile, of which no more is right than what is looked at."""
    found = layout_of(layout, arrays)
    assert found is not None
    tiling = Tiling(DTYPES["F32"], shape, found, shape[0])
    return SparseTensor(tiling, [tiling.tile(0, arrays).frozen()])


COUNTS = [3, 3, 2, 2, 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]
"""Of the rows of a slice that lies far behind."""


@pytest.mark.parametrize("where", ["columns", "gaps"])
@pytest.mark.parametrize("cols", [40, (1 << 16) + 8])
@pytest.mark.thorough
def test_more_elements_than_32_bits_can_number(cols, where):
    """The second slice of a tile begins at slot 2^28 + 1, and so at element 2^32 + 16."""
    first = (1 << 28) + 1
    values, columns = (
        untouched(16 * (first + 3), "<u4"),
        untouched(16 * (first + 3), "<u1" if where == "gaps" else "<u2" if cols < 1 << 16 else "<u4"),
    )
    rng = np.random.default_rng(0)
    dense = np.zeros((16, cols), np.float32)
    for lane, count in enumerate(COUNTS):
        chosen = np.sort(rng.choice(cols if where == "columns" else 40, count, replace=False))
        for slot, col in enumerate(chosen):
            dense[lane, col] = rng.standard_normal()
            values[16 * (first + slot) + lane] = dense[lane, col].view(np.uint32)
            columns[16 * (first + slot) + lane] = col if where == "columns" or not slot else col - chosen[slot - 1]
    arrays = {
        where: columns,
        "row_counts": np.array([cols] * 16 + COUNTS, "<u4"),
        "row_permutation": np.arange(32, dtype="<u2"),
        "slice_offsets": np.array([0, first, first + 3], "<u4"),
        "values": values,
    }
    w = only(frozen_tensor("permuted", (32, cols), arrays), 1, 2)
    some = np.flatnonzero(dense.any(axis=0))
    for tokens in (1, 2, 5, 40):
        x = rng.standard_normal((tokens, cols)).astype(np.float32)
        expected = naive.product(dense[:, some], x[:, some], np.float32)
        assert same_bits(sparsefmt.linear(x, w)[:, 16:], expected)
    x[:, 0] = np.inf  # the kernel for any x
    assert np.array_equal(
        sparsefmt.linear(x, w)[:, 16:], sparsefmt.linear(x, SparseTensor.from_dense(dense, "permuted")), equal_nan=True
    )
    assert same_bits(w[16:], dense)


def test_more_values_than_31_bits_can_number():
    """The second slice of a bitmask tile, of one row, begins at value 2^31 + 5."""
    first, cols = (1 << 31) + 5, 200
    rng = np.random.default_rng(0)
    kept = rng.random(cols) < 0.5
    dense = np.where(kept, rng.standard_normal(cols), 0).astype(np.float32)[None]
    values = untouched(first + int(kept.sum()), "<u4")
    values[first:] = dense[0, kept].view(np.uint32)
    mask = np.zeros(mask_bytes(17, cols), np.uint8)
    mask[-cols:] = kept
    arrays = {
        "mask": mask,
        "slice_offsets": np.array([0, first, values.size], "<u4"),
        "values": values,
    }
    w = only(frozen_tensor("bitmask", (17, cols), arrays), 1, 2)
    for tokens in (1, 2, 5, 40):
        x = rng.standard_normal((tokens, cols)).astype(np.float32)
        expected = naive.product(dense, x, np.float32)
        assert same_bits(sparsefmt.linear(x, w)[:, 16:], expected)
    x[:, 0] = np.inf  # the kernel for any x
    assert np.array_equal(
        sparsefmt.linear(x, w)[:, 16:], sparsefmt.linear(x, SparseTensor.from_dense(dense, "bitmask")), equal_nan=True
    )
    assert same_bits(w[16:], dense)


@pytest.mark.parametrize("codec", ["raw", "zstd", "rans"])
def test_through_a_file(codec, tmp_path: Path):
    """2^32 positions in a file of kilobytes: written, loaded, and multiplied without being dense."""
    made = tensor("permuted", (ROWS, COLS), TILE_ROWS, FAR).operand()
    path = tmp_path / "far.sparsefmt"
    with open(path, "wb") as sink:
        writer = Writer(sink, codec=codec)
        writer.add("w", made.tiling, Contents(made.tiles.__getitem__, nnz=len(FAR)))
        writer.finish()
    assert path.stat().st_size < 1 << 20
    x = np.random.default_rng(0).standard_normal(COLS).astype(np.float32)
    expected = tensor("permuted", (ROWS, COLS), TILE_ROWS, FAR) @ x
    for backend in ("mmap", "pread"):
        with sparsefmt.open_file(path, backend=backend) as file:
            w = file["w"]
            assert isinstance(w, SparseTensor)
            assert w.layout == "permuted"
            assert same_bits(w @ x, expected)
            assert file.get_slice("w")[ROWS - 1, COLS - 1] == -4.5
            assert file.get_slice("w")[-2:, -2:].tolist() == [[0.0, 0.25], [0.0, -4.5]]
    with pytest.raises(sparsefmt.LimitError):
        sparsefmt.load_file(path, layout="dense")
