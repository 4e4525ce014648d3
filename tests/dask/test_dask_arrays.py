"""Tensors of files as dask arrays: blocks are tiles, and products have the bits of `linear`."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from safetensors_files import sparse_array

import sparsefmt

da = pytest.importorskip("dask.array", reason="arrays of dask need dask")
pytest.importorskip("distributed", reason="sparsefmt.dask needs distributed")

import sparsefmt.dask  # noqa: E402


@pytest.fixture(autouse=True)
def here():
    """One thread does all of it: no cluster is needed."""
    import dask

    with dask.config.set(scheduler="synchronous"):
        yield


TENSORS = {
    "tall": np.tile(sparse_array(1), (320, 1)),
    "half": sparse_array(2).astype(np.float16),
    "stack": np.stack([np.tile(sparse_array(number), (4, 2)) for number in range(3)]),
    "deep": sparse_array(3).reshape(16, 4, 96),
    "vector": np.arange(5.0),
    "scalar": np.array(3.0),
    "empty": np.empty((0, 7), np.float32),
    "dense": np.random.default_rng(0).standard_normal((48, 40)).astype(np.float32),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    place = tmp_path_factory.mktemp("arrays") / "model.sparsefmt"
    sparsefmt.save_file(TENSORS, place)
    return place


@pytest.mark.parametrize("name", TENSORS)
def test_blocks_are_tiles(path, name):
    made = sparsefmt.dask.from_file(path, name)
    assert (made.shape, made.dtype) == (TENSORS[name].shape, TENSORS[name].dtype)
    assert np.array_equal(made.compute(), TENSORS[name])
    with sparsefmt.open_file(path) as file:
        entry = file.reader.index.entry(name)
        assert made.npartitions == len(made.tiles) == max(entry.tiles, 1)
        assert np.array_equal(sparsefmt.dask.from_file(file, name).compute(), TENSORS[name])
    tiles = [np.asarray(tile.compute()) for tile in made.tiles]
    if made.ndim:
        assert np.array_equal(np.concatenate([tile.reshape(-1) for tile in tiles]), TENSORS[name].reshape(-1))


def test_tall_tensors_have_several_blocks(path):
    assert len(sparsefmt.dask.from_file(path, "tall").chunks[0]) > 1
    assert isinstance(sparsefmt.dask.from_file(path, "tall").tiles[0].compute(), sparsefmt.SparseTensor)
    assert sparsefmt.dask.from_file(path, "stack").numblocks[0] == 3


@pytest.mark.parametrize("name", ["tall", "half", "dense"])
@pytest.mark.parametrize("tokens", [(), (1,), (7,), (2, 3)], ids=str)
def test_products_have_the_bits_of_linear(path, name, tokens):
    w, stored = sparsefmt.dask.from_file(path, name), sparsefmt.load_file(path)[name]
    x = np.random.default_rng(1).standard_normal((*tokens, w.shape[1])).astype(np.float32)
    bias = np.arange(w.shape[0], dtype=np.float32)
    expected = sparsefmt.linear(x, stored)
    for given in (x, da.from_array(x, chunks=(*(2 for _ in tokens), 30))):
        product = given @ w.T
        assert product.dtype == expected.dtype
        assert np.array_equal(product.compute(), expected)
    assert np.array_equal(w.linear(x, bias).compute(), sparsefmt.linear(x, stored, bias))


def test_all_else_is_plain(path):
    w = sparsefmt.dask.from_file(path, "tall")
    dense = TENSORS["tall"]
    assert w.T.T is w
    assert np.array_equal(w.T.compute(), dense.T)
    assert type(w[8:16]) is type(w + 1) is type(w.T + 1) is type(pickle.loads(pickle.dumps(w))) is da.Array
    assert np.array_equal((w[8:16].T + 1).compute(), dense[8:16].T + 1)
    assert np.array_equal(pickle.loads(pickle.dumps(w)).compute(), dense)
    assert (w != 0).sum().compute() == np.count_nonzero(dense)
    assert np.array_equal(np.abs(w).compute(), np.abs(dense))


def test_what_does_not_fit_is_named(path, tmp_path):
    with pytest.raises(KeyError, match="no tensor 'nothing' in this file"):
        sparsefmt.dask.from_file(path, "nothing")
    w = sparsefmt.dask.from_file(path, "half")
    with pytest.raises(ValueError, match="last dimension must be 96"):
        np.ones((2, 95), np.float32) @ w.T
    with pytest.raises(ValueError, match=r"must have \(64,\)"):
        w.linear(np.ones(96, np.float32), np.ones(3))
    with pytest.raises(ValueError, match="3 dimensions"):
        sparsefmt.dask.from_file(path, "stack").linear(np.ones(192, np.float32))


def test_behind_a_url():
    fsspec = pytest.importorskip("fsspec", reason="URLs need fsspec")
    url = "memory://arrays/model.sparsefmt"
    sparsefmt.save_file(TENSORS, url)
    w = sparsefmt.dask.from_file(url, "tall", storage_options={"use_listings_cache": False})
    assert np.array_equal(w[100:200].compute(), TENSORS["tall"][100:200])
    x = np.ones((2, 96), np.float32)
    assert np.array_equal((x @ w.T).compute(), sparsefmt.linear(x, sparsefmt.load_file(url)["tall"]))
    fsspec.filesystem("memory").store.clear()


def test_a_file_that_is_replaced(tmp_path):
    place = tmp_path / "w.sparsefmt"
    sparsefmt.save_file({"w": sparse_array(1)}, place)
    w = sparsefmt.dask.from_file(place, "w")
    sparsefmt.save_file({"w": sparse_array(2)}, place)
    with pytest.raises(sparsefmt.FormatError, match="file-changed"):
        w.compute()
