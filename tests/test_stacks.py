"""Stacks of matrices, such as the weights of experts: no tile has rows of two, and each is had without the others."""

from __future__ import annotations

import pickle

import ml_dtypes
import naive
import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner
from helpers import CODECS, SPARSE, same_bits, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy

import sparsefmt
from sparsefmt import FormatError, SparseTensor, cli
from sparsefmt.container.reader import Reader
from sparsefmt.layouts import heights


def stack(*shape: int, zeros: float = 0.8, dtype: type = np.float32, negative_zeros: bool = False) -> np.ndarray:
    flat = (int(np.prod(shape[:-1])), shape[-1])
    return weights(np.random.default_rng(len(shape)), flat, dtype, zeros, negative_zeros).reshape(shape)


EXPERTS = stack(6, 96, 256)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("layout", ["auto", *SPARSE, "dense"])
def test_matrices_are_those_of_the_stack(codec, layout):
    array = stack(5, 40, 512, negative_zeros=True)
    loaded = sparsefmt.load(sparsefmt.save({"w": array}, codec=codec, layout=layout))["w"]
    if layout == "dense":
        assert same_bits(loaded, array)
        return
    assert loaded.tiling.row_dims == 2
    assert same_bits(loaded.todense(), array)
    x = np.random.default_rng(0).standard_normal(512).astype(np.float32)
    for number, matrix in enumerate(loaded):
        assert isinstance(matrix, SparseTensor)
        assert (matrix.shape, matrix.tiling.row_dims, matrix.layout) == ((40, 512), 1, loaded.layout)
        assert same_bits(matrix.todense(), array[number])
        alone = SparseTensor.from_dense(array[number], layout=matrix.layout)
        assert same_bits(matrix @ x, alone @ x)
        assert matrix.nnz == alone.nnz
    assert sum(matrix.nnz for matrix in loaded) == loaded.nnz


@pytest.mark.parametrize("special", [False, True], ids=["finite", "with Inf and NaN"])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_products_of_all_matrices_at_once(dtype, special):
    """One chain for each row of each matrix, whatever the layout and the tokens."""
    array = stack(3, 9, 75, dtype=dtype, negative_zeros=True)
    x = np.random.default_rng(3).standard_normal((7, 75)).astype(np.float32)
    if special:
        x[1, 5], x[4, 60], x[6, 0] = np.inf, np.nan, -np.inf
    expected = naive.product(array.reshape(27, 75), x, np.float32)
    for layout in SPARSE:
        w = SparseTensor.from_dense(array, layout, row_dims=2)
        for tokens in (1, 2, 7):
            found = sparsefmt.linear(x[:tokens], w)
            assert np.array_equal(found, expected[:tokens], equal_nan=True)
            assert not np.signbit(found[found == 0]).any()


def test_a_matrix_takes_no_memory():
    w = SparseTensor.from_dense(EXPERTS)
    matrix = w[4]
    ours = [array for number in range(w.tiling.tiles) for array in w.tile(number).arrays.values()]
    for array in matrix.tile(0).arrays.values():
        assert any(np.shares_memory(array, other) for other in ours)
    assert w[-2].tile(0).arrays.keys() == matrix.tile(0).arrays.keys()
    for number in (6, -7):
        with pytest.raises(IndexError, match="stack of 6 matrices"):
            w[number]


def test_one_matrix_of_a_file_is_read_alone(tmp_path, monkeypatch):
    sparsefmt.save_file({"w": EXPERTS}, tmp_path / "w.sparsefmt")
    read, tile = [], Reader.tile

    def counted(self, entry, number, *others, **options):
        read.append(number)
        return tile(self, entry, number, *others, **options)

    monkeypatch.setattr(Reader, "tile", counted)
    with sparsefmt.open_file(tmp_path / "w.sparsefmt") as file:
        tiles = file.reader.index.entry("w").tiles // 6
        assert same_bits(file.get_slice("w")[4], EXPERTS[4])
        assert sorted(read) == list(range(4 * tiles, 5 * tiles))
        read.clear()
        assert same_bits(file.get_slice("w")[2, 10:20, 5], EXPERTS[2, 10:20, 5])
        assert set(read) <= set(range(2 * tiles, 3 * tiles))


KEYS = [
    *(0, -1, (1,), (1, 3), (1, slice(3, 9)), (-2, slice(None), slice(2, 9)), (1, 5, slice(2, 9)), (0, [1, 1, 0], 3)),
    *(slice(1, 3), slice(None, None, -2), ([0, 2],), [2, -1, 2], np.array([True, False, True]), slice(2, 2)),
    *(..., (..., 3), (slice(0, 2), slice(1, 5), 7), (None, 1), ([0, 1], [3, 4]), (slice(None), 3, 4)),
]


@pytest.mark.parametrize("key", KEYS, ids=str)
@pytest.mark.parametrize("row_dims", [1, 2])
def test_indexing_is_that_of_numpy(key, row_dims):
    array = stack(3, 9, 40)
    w = SparseTensor.from_dense(array, "bitmask", row_dims=row_dims)
    with sparsefmt.open_file(_file_of(sparsefmt.save({"w": array}, row_dims=row_dims))) as file:
        assert same_bits(file.get_slice("w")[key], array[key])
    part = w[key]
    assert same_bits(part.todense() if isinstance(part, SparseTensor) else part, array[key])


def _file_of(data: bytes):
    import io

    return io.BytesIO(data)


@pytest.mark.parametrize("key", [3, (0, 9), (0, 0, 40), (-4,), (0, -10)])
def test_what_is_out_of_range_is_an_index_error(key):
    w = SparseTensor.from_dense(stack(3, 9, 40), "bitmask", row_dims=2)
    with pytest.raises(IndexError):
        w[key]


@settings(max_examples=60, deadline=None)
@given(
    hypothesis_numpy.arrays(
        st.sampled_from([np.float32, np.int8, np.uint16]),
        hypothesis_numpy.array_shapes(min_dims=3, max_dims=4, max_side=20),
        elements=st.sampled_from([0, 0, 0, 1, 2]),
    ),
    st.integers(1, 3),
    st.sampled_from(SPARSE),
    st.sampled_from(CODECS),
)
def test_every_stack_comes_back(array, row_dims, layout, codec):
    row_dims = min(row_dims, array.ndim - 1)
    data = sparsefmt.save({"w": array}, layout=layout, codec=codec, row_dims={"w": row_dims})
    loaded = sparsefmt.load(data)["w"]
    assert loaded.tiling.row_dims == row_dims
    assert loaded.tiling.matrix_rows % loaded.tiling.tile_rows == 0
    assert same_bits(loaded.todense(), array)
    for other in SPARSE:
        assert same_bits(loaded.to_layout(other).todense(), array)
        assert loaded.to_layout(other).tiling.row_dims == row_dims
    again = sparsefmt.load(sparsefmt.save({"w": loaded}, layout=layout, codec=codec))["w"]
    assert (again.tiling.row_dims, again.shape) == (row_dims, array.shape)
    assert same_bits(pickle.loads(pickle.dumps(loaded)).todense(), array)
    if row_dims > 1:
        matrix = pickle.loads(pickle.dumps(loaded[-1]))
        assert same_bits(matrix.todense(), array[-1])


@pytest.mark.parametrize(
    ("shape", "row_dims"),
    [
        ((8, 14336, 4096), 2),
        ((32, 2880, 5760), 2),
        ((16, 128, 128), 2),
        ((512, 512, 3), 1),  # a convolution of one dimension
        ((768, 48, 128), 1),  # another, of a long kernel: small matrices
        ((1000, 1, 768), 1),
        ((2, 1_000_003, 64), 1),  # rows that only tiles of few rows divide
        ((64, 64, 3, 3), 1),
        ((4096, 4096), 1),
        ((0, 4096, 4096), 1),
    ],
)
def test_which_tensors_are_stacks_by_themselves(shape, row_dims):
    assert heights.row_dims(shape, sparsefmt.dtypes.DTYPES["BF16"]) == row_dims


def test_who_saves_may_say_otherwise(tmp_path):
    small = stack(4, 8, 16)
    tensors = {"experts": EXPERTS, "small": small, "matrix": EXPERTS[0]}
    for asked, expected in (
        (None, [2, 1, 1]),
        (1, [1, 1, 1]),
        (2, [2, 1, 2]),
        ({"small": 2}, [2, 1, 2]),
        ({"experts": 1}, [1, 1, 1]),
    ):
        sparsefmt.save_file(tensors, tmp_path / "w.sparsefmt", row_dims=asked, layout="bitmask")
        with sparsefmt.open_file(tmp_path / "w.sparsefmt") as file:
            entries = [file.reader.index.entry(name) for name in ("experts", "matrix", "small")]
            assert [entry.row_dims for entry in entries] == expected
    with pytest.raises(FormatError, match=r"'matrix'.*row_dims 2") as caught:
        sparsefmt.save(tensors, row_dims={"matrix": 2})
    assert caught.value.code == "row-dims"
    with pytest.raises(FormatError, match="row_dims 3"):
        SparseTensor.from_dense(small, row_dims=3)
    packed = np.ones((4, 9, 16), ml_dtypes.float4_e2m1fn)
    with pytest.raises(FormatError, match="multiple of 8 rows"):
        sparsefmt.save({"w": packed}, row_dims={"w": 2})
    assert same_bits(sparsefmt.load(sparsefmt.save({"w": packed}, row_dims=2))["w"], packed)  # where it is possible
    for rows in (8, 24):
        packed = np.resize(np.arange(16).astype(ml_dtypes.float4_e2m1fn), (4, rows, 5))
        assert same_bits(sparsefmt.load(sparsefmt.save({"w": packed}, row_dims=2))["w"], packed)


@pytest.mark.parametrize(
    ("row_dims", "error", "words"),
    [
        ("2", TypeError, "not '2'"),
        (True, TypeError, "not True"),
        ([2], TypeError, r"not \[2\]"),
        (2.0, TypeError, "not 2.0"),
        ({"w": "2"}, TypeError, "not '2'"),
        (0, ValueError, "1 or more, not 0"),
        ({"w": -1}, ValueError, "1 or more, not -1"),
        ({"typo": 2}, ValueError, "names 'typo', which is not a tensor here"),
    ],
)
def test_row_dims_that_say_nothing(row_dims, error, words, tmp_path):
    with pytest.raises(error, match=words):
        sparsefmt.save_file({"w": EXPERTS}, tmp_path / "w.sparsefmt", row_dims=row_dims)
    assert list(tmp_path.iterdir()) == []


def test_odd_memory():
    for array in (EXPERTS[::-1], np.asfortranarray(EXPERTS), EXPERTS[:, ::2], EXPERTS.astype(">f4")):
        w = SparseTensor.from_dense(array, row_dims=2)
        assert np.array_equal(w.todense(), array)


def test_signs_that_stay_in_the_file(tmp_path):
    array = stack(4, 256, 1024, zeros=0.9, negative_zeros=True)
    sparsefmt.save_file({"w": array}, tmp_path / "w.sparsefmt", codec="raw")
    w = sparsefmt.load_file(tmp_path / "w.sparsefmt")["w"]
    assert w.signs is not None
    for number in range(4):
        assert same_bits(w[number].todense(), array[number])
    assert same_bits(pickle.loads(pickle.dumps(w[3])).todense(), array[3])


def test_the_command_line(tmp_path):
    safetensors.numpy.save_file({"experts": EXPERTS, "gate": EXPERTS[0]}, tmp_path / "a.safetensors")

    def run(*arguments: object) -> str:
        done = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output
        return done.output

    run("convert", tmp_path / "a.safetensors", tmp_path / "a.sparsefmt")
    assert "6x(96x256)" in run("inspect", tmp_path / "a.sparsefmt")
    assert '"row_dims": 2' in run("inspect", tmp_path / "a.sparsefmt", "--json")
    run("verify", tmp_path / "a.sparsefmt", "--strict", "--against", tmp_path / "a.safetensors")
    with sparsefmt.open_file(tmp_path / "a.sparsefmt") as file:
        assert same_bits(file["experts"][2].todense(), EXPERTS[2])
