"""Parts of tensors: what numpy gives on the dense array, reading only the tiles that hold it."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import examples, same_bits, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy

import sparsefmt
from sparsefmt.container.sources import MappedFile
from sparsefmt.layouts import LAYOUTS
from sparsefmt.sparse_file import SparseFile

ARRAY = weights(np.random.default_rng(0), (40, 17), np.float32, 0.6, negative_zeros=True)
CUBE = weights(np.random.default_rng(0), (7, 5, 4), np.float16, 0.6, negative_zeros=True)

KEYS = [
    3,
    -1,
    np.int64(5),
    slice(None),
    slice(3, 9),
    slice(30, 5, -3),
    slice(9, 9),
    slice(-5, None),
    [1, 5, 2, 2],
    [],
    np.array([39, 0, 39]),
    np.arange(40) % 3 == 0,
    [True] * 40,
    Ellipsis,
    (),
    None,
    (3, 4),
    (slice(3, 9), slice(2, 5)),
    (slice(None), slice(None, None, -2)),
    (slice(None), 3),
    (slice(0, 0), slice(2, 5)),
    (3, slice(2, 5)),
    ([1, 2], slice(2, 5)),
    ([1, 2], 3),
    ([1, 2], [3, 4]),
    (slice(2, 6), [3, 4]),
    (slice(None), None),
    (Ellipsis, 3),
    (3, Ellipsis),
    (slice(2, 4), Ellipsis, slice(1, 2)),
    (2, None, slice(3)),
]
BAD_KEYS = [40, -41, [40], [0, -41], (0, 17), (0, 0, 0), 1.5, "a", [0.5], [True] * 39, (slice(None), 17)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("slices")


def sliceables(array, folder):
    """The array in memory in each layout, and in files."""
    for layout in LAYOUTS:
        yield sparsefmt.SparseTensor.from_dense(array, layout)
        path = folder / f"{layout}{array.ndim}.sparsefmt"
        sparsefmt.save_file({"w": array}, path, layout=layout)
        with sparsefmt.open_file(path) as file:
            yield file.get_slice("w")


@pytest.mark.parametrize("key", KEYS, ids=repr)
def test_keys(key, folder):
    for sliceable in sliceables(ARRAY, folder):
        assert same_bits(np.asarray(sliceable[key]), np.asarray(ARRAY[key]))


@pytest.mark.parametrize("key", BAD_KEYS, ids=repr)
def test_bad_keys(key, folder):
    with pytest.raises(IndexError):
        ARRAY[key]
    for sliceable in sliceables(ARRAY, folder):
        with pytest.raises(IndexError):
            sliceable[key]


@settings(max_examples=examples(300), deadline=None)
@given(
    key=hypothesis_numpy.basic_indices(CUBE.shape, allow_newaxis=True) | st.lists(st.integers(-7, 6)),
    layout=st.sampled_from(list(LAYOUTS)),
)
def test_any_key_of_three_dimensions(key, layout):
    w = sparsefmt.SparseTensor.from_dense(CUBE, layout)
    assert same_bits(np.asarray(w[key]), np.asarray(CUBE[key]))


@pytest.mark.parametrize("shape", [(), (0,), (5,), (0, 3), (3, 0)])
def test_shapes_without_a_matrix(shape, folder):
    array = np.ones(shape, np.float32)
    for sliceable in [sparsefmt.SparseTensor.from_dense(array)]:
        assert same_bits(np.asarray(sliceable[...]), array)
        assert same_bits(np.asarray(sliceable[()]), array)
        if shape:
            assert same_bits(sliceable[1:], array[1:])
            assert same_bits(sliceable[:0], array[:0])
        else:
            with pytest.raises(IndexError):
                sliceable[0]


class CountingSource(MappedFile):
    """Counts the bytes that are asked for."""

    def __init__(self, path):
        super().__init__(path)
        self.count = 0

    def read(self, offset, size):
        self.count += size
        return super().read(offset, size)


@pytest.mark.parametrize("codec", ["raw", "zstd"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_the_tiles_that_are_needed_are_read(layout, codec, folder):
    """10 tiles: a slice of rows reads those that hold them, and columns are cut without holding the whole tensor."""
    array = weights(np.random.default_rng(0), (5000, 2048), np.float32, 0.8)
    path = folder / f"tiles-{layout}-{codec}.sparsefmt"
    sparsefmt.save_file({"w": array, "other": array + 1}, path, layout=layout, codec=codec)
    source = CountingSource(path)
    file = SparseFile(source)
    opening = source.count
    assert opening < 8192
    entry = file.reader.index.tensors["w"]
    assert entry.tiles == 10
    part = file.get_slice("w")
    assert source.count == opening

    def bytes_for(key) -> int:
        before = source.count
        assert same_bits(part[key], np.ascontiguousarray(array[key]))
        return source.count - before

    tile = file.reader.index.stored_nbytes(entry) / entry.tiles
    rows = entry.tile_rows
    assert bytes_for(slice(0, 0)) == 0
    assert bytes_for(slice(8, 16)) < 1.2 * tile
    assert bytes_for(5) < 1.2 * tile
    assert 1.5 * tile < bytes_for(slice(rows - 1, rows + 1)) < 2.4 * tile
    assert bytes_for([3, 2, rows + 5, 1]) < 2.4 * tile
    assert bytes_for((slice(8, 16), slice(100, 200))) < 1.2 * tile
    assert bytes_for((slice(None), slice(100, 200))) < 10.3 * tile


def test_slices_say_shape_and_dtype(folder):
    sparsefmt.save_file({"w": CUBE}, folder / "cube.sparsefmt")
    with sparsefmt.open_file(folder / "cube.sparsefmt") as file:
        part = file.get_slice("w")
        assert part.get_shape() == [7, 5, 4]
        assert part.get_dtype() == "F16"
        assert (part.shape, part.dtype) == (CUBE.shape, CUBE.dtype)


def test_closed_files_keep_their_tensors_and_refuse_more(folder):
    sparsefmt.save_file({"w": ARRAY}, folder / "closed.sparsefmt", layout="bitmask", codec="raw")
    for backend in ("mmap", "pread"):
        with sparsefmt.open_file(folder / "closed.sparsefmt", backend=backend) as file:
            w = file["w"]
        assert same_bits(sparsefmt.SparseTensor.todense(w), ARRAY)
        with pytest.raises(ValueError, match="closed"):
            file.get_tensor("w")


def test_more_rows_without_columns_than_memory_has_numbers_for(tmp_path):
    shape = (1 << 37, 0, 3)
    sparsefmt.save_file({"w": np.empty(shape, np.float32)}, tmp_path / "w.sparsefmt")
    with sparsefmt.open_file(tmp_path / "w.sparsefmt") as file:
        part = file.get_slice("w")
        assert file["w"].shape == part[:].shape == part[...].shape == shape
        assert part[5:8].shape == part[[1, 2, 3]].shape == (3, 0, 3)
        assert part[1 << 36].shape == (0, 3)
        assert part[:].dtype == np.float32
        with pytest.raises(IndexError):
            part[1 << 37]
