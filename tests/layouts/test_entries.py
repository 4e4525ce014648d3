"""Tiles made of entries are those that are made of dense rows; very sparse matrices, which are never made dense."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from helpers import (
    CODECS,
    PRUNABLE,
    SPARSE,
    SPARSE_FORMS,
    check_same_tiles,
    examples,
    first_always,
    pruned,
    same_bits,
    succeed,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsefmt
from sparsefmt import SparseTensor
from sparsefmt.adapters import ArrayRows, rows_of
from sparsefmt.dtypes import as_bits
from sparsefmt.layouts import FORMS, heights
from sparsefmt.layouts.entries import entries_of
from sparsefmt.layouts.negative_zeros import NEGATIVE_ZEROS
from sparsefmt.layouts.tile import Tile


@pytest.mark.parametrize("layout", SPARSE_FORMS)
@settings(max_examples=examples(100), deadline=None)
@given(
    dtype=st.sampled_from(PRUNABLE),
    rows=st.integers(1, 20),
    cols=st.sampled_from([1, 7, 8, 63, 64, 65, 200, 600]),
    sparsity=st.sampled_from([0.0, 0.3, 0.9, 0.995, 1.0]),
    signs=st.booleans(),
    seed=st.integers(0, 1 << 20),
)
def test_entries_make_the_tile_that_dense_rows_make(layout, dtype, rows, cols, sparsity, signs, seed):
    rng = np.random.default_rng(seed)
    bits = as_bits(pruned(rng, (rows, cols), dtype, sparsity, signs and bool(dtype.negative_zero)), dtype)
    # explicit zeros are as good as none
    stored = (bits != 0) | (rng.random(bits.shape) < 0.1)
    places = np.nonzero(stored)
    tile = Tile.from_entries(FORMS[layout], entries_of(*places, bits[stored], rows), dtype, (rows, cols))
    check_same_tiles(tile, Tile.from_dense(FORMS[layout], bits, dtype))
    tile.check()
    found = tile.entries()
    values = (bits != 0) & (bits != dtype.negative_zero if dtype.negative_zero else True)
    for part, known in zip((found.rows, *found[1:]), (*np.nonzero(values), bits[values]), strict=True):
        assert np.array_equal(part, known)


def very_sparse(rng: np.random.Generator, shape: tuple[int, int], count: int, signs: bool = False) -> np.ndarray:
    array = np.zeros(shape, np.float32)
    places = tuple(rng.integers(0, size, count) for size in shape)
    array[places] = rng.standard_normal(count)
    if signs:
        array[tuple(rng.integers(0, size, count // 3) for size in shape)] = -0.0
    return array


@pytest.mark.parametrize("signs", [False, True])
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shape", first_always([(1500, 4000), (140_000, 20), (20, 100_000), (70_000, 40)]))
def test_very_sparse_matrices_come_back(shape, codec, signs, tmp_path: Path):
    """The same file from numpy and from scipy, whichever way it is read and checked."""
    rng = np.random.default_rng(7)
    array = very_sparse(rng, shape, 2000, signs)
    stored = as_bits(array, rows_of(array).dtype) != 0
    matrix = scipy.sparse.csr_array((array[stored], np.nonzero(stored)), shape=shape)
    path = tmp_path / "w.sparsefmt"
    sparsefmt.save_file({"w": array}, path, codec=codec)
    assert sparsefmt.save({"w": matrix}, codec=codec) == path.read_bytes()
    with sparsefmt.open_file(path) as file:
        entry = file.reader.index.entry("w")
        assert entry.layout.name == "permuted"
        assert entry.tile_rows > heights.sparse_tile_rows(*shape) or entry.tile_rows == min(shape[0], 1 << 16)
        assert (NEGATIVE_ZEROS in entry.codecs) == signs
        assert same_bits(file.get_tensor("w"), array)
        rows = slice(shape[0] // 3, shape[0] // 2)
        assert same_bits(file.get_slice("w")[rows], array[rows])
        w = file["w"]
        assert isinstance(w, SparseTensor)
        for layout in SPARSE:
            assert same_bits(w.to_layout(layout).todense(), array)
        x = rng.standard_normal(shape[1]).astype(np.float32)
        assert np.allclose(w @ x, array.astype(np.float64) @ x, atol=1e-4)
        assert (w.to_scipy() != matrix).nnz == 0
    succeed("verify", path, "--strict")
    succeed("export", path, tmp_path / "back.safetensors")
    succeed("verify", path, "--against", tmp_path / "back.safetensors")
    again = tmp_path / "again.sparsefmt"
    succeed("convert", tmp_path / "back.safetensors", again, "--codec", codec)
    assert again.read_bytes() == path.read_bytes()


def test_what_does_not_fit_as_a_dense_matrix():
    """10 GB as a dense matrix: saved, loaded, multiplied, given back to scipy; dense only in part."""
    rng = np.random.default_rng(3)
    count, size = 60_000, 50_000
    places = (rng.integers(0, size, count), rng.integers(0, size, count))
    matrix = scipy.sparse.coo_array((rng.standard_normal(count).astype(np.float32), places), shape=(size, size)).tocsr()
    w = sparsefmt.load(sparsefmt.save({"w": matrix}))["w"]
    assert w.nbytes < 30 * count
    assert (w.to_scipy() != matrix).nnz == 0
    x = rng.standard_normal(size).astype(np.float32)
    assert np.allclose(w @ x, matrix.astype(np.float64) @ x, atol=1e-4)
    assert np.array_equal(w[1000:1010], matrix[1000:1010].toarray())
    with pytest.raises(sparsefmt.LimitError, match="max_decoded_bytes"):
        w.todense()
    again = SparseTensor.from_scipy(matrix)
    assert (again.to_scipy() != matrix).nnz == 0


def test_sparse_input_is_not_made_dense(monkeypatch):
    """In any format of scipy, for both sparse layouts and however many zeros."""
    rng = np.random.default_rng(4)
    array = np.where(rng.random((60, 96)) < 0.2, rng.standard_normal((60, 96)), 0).astype(np.float32)
    array[::4] = 0
    matrices = [getattr(scipy.sparse, f"{kind}_array")(array) for kind in ("coo", "csr", "csc", "lil", "dok")]
    matrices += [scipy.sparse.csr_array(array).tobsr(blocksize) for blocksize in ((1, 1), (4, 8), (3, 1), (60, 2))]
    matrices.append(scipy.sparse.dia_array((array[:3], [7, -2, 0]), shape=array.shape))
    adapted = [rows_of(matrix) for matrix in matrices]
    expected = [sparsefmt.save({"w": matrix.toarray()}, layout=layout) for matrix in matrices for layout in SPARSE]
    for rows in adapted:
        assert rows.is_sparse
        monkeypatch.setattr(type(rows), "bits", lambda *_: pytest.fail("made dense"))
    assert [sparsefmt.save({"w": rows}, layout=layout) for rows in adapted for layout in SPARSE] == expected


@settings(max_examples=examples(100), deadline=None)
@given(
    begin=st.integers(0, 30),
    height=st.integers(0, 30),
    block=st.sampled_from([(1, 1), (4, 2), (6, 1), (1, 8), (12, 4)]),
    seed=st.integers(0, 100),
)
def test_entries_of_any_run_of_rows(begin, height, block, seed):
    rng = np.random.default_rng(seed)
    array = np.where(rng.random((60, 32)) < 0.15, rng.standard_normal((60, 32)), 0).astype(np.float32)
    in_blocks = scipy.sparse.csr_array(array).tobsr(block)
    for matrix in (rows_of(in_blocks), ArrayRows(array), rows_of(scipy.sparse.dia_array(array))):
        entries = matrix.entries(begin, begin + height)
        assert entries.counts.size == height
        assert (np.diff(entries.rows * 32 + entries.columns) > 0).all()
        found = np.zeros((height, 32), np.uint32)
        found[entries.rows, entries.columns] = entries.values
        assert np.array_equal(found, array[begin : begin + height].view(np.uint32))
