"""Arrays of scipy.sparse, pydata/sparse and others, as they are saved and laid out; and SparseTensor as an array."""

from __future__ import annotations

from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
import scipy.sparse
import sparse
from helpers import PRUNABLE, SPARSE, examples, first_always, peak_of, pruned, same_bits, weights
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsefmt
import sparsefmt.numpy
from sparsefmt import FormatError, SparseTensor, UnsupportedError
from sparsefmt.adapters import rows_of
from sparsefmt.dtypes import DTYPES

pytestmark = pytest.mark.filterwarnings("ignore:Constructing a DIA matrix")

SCIPY_DTYPES = [dtype for dtype in DTYPES.values() if dtype.numpy.isbuiltin == 1 and dtype.name != "F16"]
FILLS = [0.0, -0.0, 1, -2.5, float("nan"), float("inf")]
SCIPY_FORMATS = ["csr", "csc", "coo", "bsr", "dia", "lil", "dok"]


def bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(f"u{array.itemsize}")


def saved(value: object, **options: object) -> np.ndarray:
    return sparsefmt.load(sparsefmt.save({"w": value}, **options), layout="dense")["w"]


def random_array(seed: int, shape: tuple[int, ...], dtype: object, sparsity: float) -> np.ndarray:
    """Any bits in any dtype, -0.0 among them."""
    rng = np.random.default_rng(seed)
    known = next(known for known in DTYPES.values() if known.numpy == dtype)
    if known in PRUNABLE:
        return pruned(rng, shape, known, sparsity, negative_zeros=True)
    return (rng.standard_normal(shape) * (rng.random(shape) >= sparsity)).astype(dtype)


def stored_coo(array: np.ndarray, kind: type) -> scipy.sparse.coo_array:
    """A matrix with every element stored that is not all zero bits, in any order."""
    coordinates = np.nonzero(bits(array).reshape(array.shape) if array.dtype != np.bool_ else array)
    order = np.random.default_rng(0).permutation(len(coordinates[0]))
    coordinates = tuple(indices[order] for indices in coordinates)
    return kind((array[coordinates], coordinates), shape=array.shape)


class TestScipy:
    @settings(max_examples=examples(150), deadline=None)
    @given(
        form=st.sampled_from(["csr", "csc", "coo"]),
        kind=st.sampled_from([scipy.sparse.coo_array, scipy.sparse.coo_matrix]),
        dtype=st.sampled_from(SCIPY_DTYPES),
        shape=st.tuples(st.integers(0, 12), st.integers(0, 12)),
        sparsity=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
        seed=st.integers(0, 1 << 32),
    )
    def test_any_bits(self, form, kind, dtype, shape, sparsity, seed):
        array = random_array(seed, shape, dtype.numpy, sparsity)
        matrix = stored_coo(array, kind).asformat(form)
        assert same_bits(saved(matrix), array)
        assert same_bits(SparseTensor.from_scipy(matrix).todense(), array)
        assert sparsefmt.numpy.save({"w": matrix}) == sparsefmt.save({"w": array})

    def test_any_bits_in_blocks(self):
        array = random_array(1, (6, 8), np.float32, 0.5)
        blocks = array.reshape(2, 3, 4, 2).transpose(0, 2, 1, 3)[[0, 0, 1], [1, 3, 0]]
        expected = np.zeros_like(array)
        for row, col in ((0, 1), (0, 3), (1, 0)):
            place = np.s_[3 * row : 3 * row + 3, 2 * col : 2 * col + 2]
            expected[place] = array[place]
        matrix = scipy.sparse.bsr_array((blocks, [1, 3, 0], [0, 2, 3]), shape=(6, 8))
        assert matrix.blocksize == (3, 2)
        assert same_bits(saved(matrix), expected)

    @pytest.mark.parametrize("form", SCIPY_FORMATS)
    @pytest.mark.parametrize("kind", ["array", "matrix"])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.bool_, np.complex64])
    def test_every_format(self, form, kind, dtype):
        array = random_array(1, (70, 90), dtype, 0.8)
        array[~np.isfinite(array) | (array == 0)] = 0
        matrix = getattr(scipy.sparse, f"{form}_{kind}")(array)
        assert same_bits(SparseTensor.from_scipy(matrix).todense(), array)
        assert same_bits(saved(matrix), array)

    @pytest.mark.parametrize("form", SCIPY_FORMATS)
    def test_several_tiles_and_other_layouts(self, form):
        array = weights(np.random.default_rng(1), (2600, 900), np.float32, 0.99)
        matrix = scipy.sparse.csr_array(array).asformat(form)
        before = matrix.copy()
        assert sparsefmt.save({"w": matrix}) == sparsefmt.save({"w": array})
        assert same_bits(SparseTensor.from_scipy(matrix, "permuted").todense(), array)
        assert (before != matrix).nnz == 0

    @settings(max_examples=examples(100), deadline=None)
    @given(
        shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
        length=st.integers(1, 12),
        offsets=st.sets(st.integers(-10, 10), max_size=5),
        seed=st.integers(0, 1 << 32),
    )
    def test_diagonals_that_reach_out(self, shape, length, offsets, seed):
        data = random_array(seed, (len(offsets), length), np.float32, 0.2)
        matrix = scipy.sparse.dia_array((data, sorted(offsets)), shape=shape)
        expected = np.zeros(shape, np.float32)
        for offset, diagonal in zip(sorted(offsets), data, strict=True):
            for column in range(min(length, shape[1])):
                if 0 <= column - offset < shape[0]:
                    expected[column - offset, column] = diagonal[column]
        assert same_bits(saved(matrix), expected)

    @pytest.mark.parametrize("form", ["csr", "csc", "coo", "bsr"])
    @pytest.mark.parametrize("dtype", [np.float32, np.int8, np.bool_, np.uint64])
    def test_duplicates_and_unsorted_indices(self, form, dtype):
        rng = np.random.default_rng(0)
        size = 200
        data = (rng.standard_normal(size) * 90).astype(np.int64).astype(dtype)
        rows, cols = rng.integers(0, 6, size), rng.integers(0, 7, size)
        if form == "coo":
            matrix = scipy.sparse.coo_array((data, (rows, cols)), shape=(6, 7))
        elif form == "bsr":
            starts = np.array([0, 20, 25, 50])
            matrix = scipy.sparse.bsr_array((data.reshape(50, 2, 2), rng.integers(0, 4, 50), starts), shape=(6, 8))
        else:
            starts = np.concatenate([[0], np.sort(rng.integers(0, size, 5)), [size]])
            make = scipy.sparse.csr_array if form == "csr" else scipy.sparse.csc_array
            matrix = make((data, rng.integers(0, 7, size), starts), shape=(6, 7) if form == "csr" else (7, 6))
        assert not matrix.has_canonical_format
        expected = matrix.toarray()
        assert same_bits(saved(matrix), expected)
        assert not matrix.has_canonical_format

    def test_sums_are_made_in_their_order(self):
        values = np.array([1e8, 1, -1e8, 3, 5, -0.0], np.float32)
        matrix = scipy.sparse.coo_array((values, ([0, 0, 0, 0, 0, 1], [2, 2, 2, 2, 2, 0])), shape=(2, 3))
        assert same_bits(saved(matrix), np.array([[0, 0, 8], [-0.0, 0, 0]], np.float32))
        rng = np.random.default_rng(0)
        values = (rng.standard_normal(500) * 10.0 ** rng.integers(-8, 8, 500)).astype(np.float32)
        matrix = scipy.sparse.coo_array((values, rng.integers(0, 4, (2, 500))), shape=(4, 4))
        assert same_bits(saved(matrix), matrix.toarray())

    def test_explicit_zeros(self):
        matrix = scipy.sparse.csr_array((np.zeros(4, np.float32), [0, 1, 2, 3], [0, 2, 4]), shape=(2, 600))
        tensor = SparseTensor.from_scipy(matrix)
        assert tensor.nnz == 0
        assert same_bits(tensor.todense(), np.zeros((2, 600), np.float32))

    @pytest.mark.parametrize("form", ["csr", "csc", "coo", "bsr", "dia"])
    def test_the_other_byte_order(self, form):
        array = random_array(3, (20, 30), np.float32, 0.6)
        array[np.isnan(array)] = 7
        matrix = stored_coo(array, scipy.sparse.coo_array).asformat(form)
        expected = saved(matrix)
        matrix.data = matrix.data.astype(">f4")
        assert matrix.dtype == np.dtype(">f4")
        assert same_bits(saved(matrix), expected)

    def test_room_behind_the_last_entry(self):
        matrix = scipy.sparse.csr_array(np.eye(4, dtype=np.float32))
        matrix.data = np.append(matrix.data, np.float32([5, 6]))
        matrix.indices = np.append(matrix.indices, [1, 99]).astype(np.int32)
        assert same_bits(saved(matrix), np.eye(4, dtype=np.float32))

    def test_one_dimension_and_many(self):
        array = weights(np.random.default_rng(0), (4, 5, 6), np.float32, 0.7)
        assert same_bits(saved(scipy.sparse.coo_array(array)), array)
        assert same_bits(saved(scipy.sparse.coo_array(array[0, 0])), array[0, 0])
        assert same_bits(saved(scipy.sparse.csr_array(array[0, 0])), array[0, 0])
        assert same_bits(saved(scipy.sparse.dok_array(array[0, 0])), array[0, 0])
        assert SparseTensor.from_scipy(scipy.sparse.coo_array(array)).shape == (4, 5, 6)

    def test_indices_that_scipy_does_not_check(self):
        for change in ("indices", "indptr", "data"):
            matrix = scipy.sparse.csr_array(np.eye(4, dtype=np.float32))
            if change == "data":
                matrix.data = matrix.data[:2]
            else:
                getattr(matrix, change)[2] = 7
            with pytest.raises(FormatError, match=r"tensor 'layer\.w'.*not well formed") as caught:
                sparsefmt.save({"layer.w": matrix})
            assert caught.value.code == "indices-invalid"

    @pytest.mark.parametrize("form", ["csr", "csc", "coo"])
    @pytest.mark.parametrize("wrong", [-1, 4, (1 << 32) + 1, -(1 << 32)])
    def test_indices_are_checked_before_they_are_narrowed(self, form, wrong):
        for which in (0, 1) if form == "coo" else (0,):
            matrix = scipy.sparse.csr_array(np.eye(4, dtype=np.float32)).asformat(form)
            if form == "coo":
                matrix.coords = tuple(indices.astype(np.int64) for indices in matrix.coords)
            else:
                matrix.indices = matrix.indices.astype(np.int64)
            (matrix.coords[which] if form == "coo" else matrix.indices)[1] = wrong
            with pytest.raises(FormatError, match="not well formed") as caught:
                SparseTensor.from_scipy(matrix)
            assert caught.value.code == "indices-invalid"

    def test_pointers_of_another_number_of_rows(self):
        for starts in ([0, 2], [0, 1, 1, 2], [1, 1, 2], [0, 2, 1, 2]):
            matrix = scipy.sparse.csr_array(np.eye(2, dtype=np.float32))
            matrix.indptr = np.array(starts, np.int32)
            with pytest.raises(FormatError, match="pointers"):
                SparseTensor.from_scipy(matrix)

    @pytest.mark.parametrize("form", ["csr", "csc"])
    def test_unsorted_indices_of_several_tiles(self, form):
        array = random_array(5, (2600, 900), np.float32, 0.97)
        matrix = stored_coo(array, scipy.sparse.coo_array).asformat(form)
        for begin, end in pairwise(matrix.indptr):
            for part in (matrix.indices, matrix.data):
                part[begin:end] = part[begin:end][::-1].copy()
        matrix = type(matrix)((matrix.data, matrix.indices, matrix.indptr), shape=array.shape)  # it had looked before
        assert not matrix.has_sorted_indices
        assert sparsefmt.save({"w": matrix}) == sparsefmt.save({"w": array})

    @pytest.mark.parametrize("form", ["csr", "csc", "coo"])
    @pytest.mark.parametrize("shape", [(3, 1 << 21), (1 << 21, 3), (1 << 34, 2), (2, 1 << 34)])
    def test_elements_are_not_counted_where_rows_or_columns_are_many(self, form, shape):
        """A counter for each row or column would take more than all elements."""
        if form != "coo" and max(shape) > 1 << 30:
            pytest.skip("its pointers take gigabytes")
        places = [0, shape[0] - 1], [shape[1] - 1, 0]
        matrix = scipy.sparse.coo_array((np.float32([1, -2]), places), shape=shape).asformat(form)
        rows = rows_of(matrix)
        assert rows.is_sparse
        first, last = rows.entries(0, 1), rows.entries(shape[0] - 1, shape[0])
        assert (int(first.columns[0]), int(last.columns[0])) == (shape[1] - 1 & 0xFFFFFFFF, 0)
        assert (first.counts.tolist(), last.counts.tolist()) == ([1], [1])

    def test_dtypes_that_are_refused(self):
        with pytest.raises(UnsupportedError, match=r"tensor 'w'.*complex128"):
            sparsefmt.save({"w": scipy.sparse.eye_array(3, dtype=np.complex128)})

    def test_from_scipy_takes_nothing_else(self):
        with pytest.raises(TypeError, match="ndarray"):
            SparseTensor.from_scipy(np.eye(3))

    @pytest.mark.parametrize("form", ["csr", "csc", "coo", "bsr", "dia", "dok"])
    def test_memory_is_that_of_the_elements_stored(self, form):
        """A matrix of 400 MB when dense."""
        size = 10_000
        matrix = scipy.sparse.eye_array(size, dtype=np.float32, format="csr").asformat(form)
        SparseTensor.from_scipy(scipy.sparse.eye_array(64), threads=1)
        tensor, peak = peak_of(lambda: SparseTensor.from_scipy(matrix, threads=1))
        assert tensor.nnz == size
        assert peak < 40e6

    def test_a_subclass_and_names_of_one_matrix(self):
        class Own(scipy.sparse.csr_matrix):
            pass

        matrix = Own(np.eye(80, dtype=np.float32))
        loaded = sparsefmt.load(sparsefmt.save({"a": matrix, "b": matrix, "c": matrix.copy()}))
        assert loaded["a"] is loaded["b"]
        assert loaded["a"] is not loaded["c"]
        assert same_bits(loaded["c"].todense(), np.eye(80, dtype=np.float32))


class TestToScipy:
    @pytest.mark.parametrize("layout", ["dense", *SPARSE])
    @pytest.mark.parametrize("dtype", [dtype.name for dtype in PRUNABLE])
    @pytest.mark.parametrize("shape", first_always([(37, 90), (1, 300), (2300, 460)], 2))
    def test_every_dtype(self, layout, dtype, shape):
        """Any bits, -0.0 and NaN among them, in one tile and in several."""
        known = DTYPES[dtype]
        array = random_array(1, shape, known.numpy, 0.7)
        with np.errstate(invalid="ignore"):
            wide = array if known.numpy.kind in "iuf" and dtype != "F16" else array.astype(np.float32)
        stored = (bits(array).reshape(shape) & ~bits(array).dtype.type(known.negative_zero)) != 0
        found = SparseTensor.from_dense(array, layout).to_scipy()
        assert (found.shape, found.dtype) == (shape, wide.dtype)
        assert found.indices.dtype == found.indptr.dtype == np.int32
        assert found.indptr.tolist() == [0, *np.cumsum(np.count_nonzero(stored, axis=1)).tolist()]
        assert np.array_equal(found.indices, np.nonzero(stored)[1])
        assert same_bits(found.data, wide[stored])

    @pytest.mark.parametrize("layout", ["dense", *SPARSE])
    def test_the_same_on_any_number_of_threads(self, layout, monkeypatch):
        array = random_array(2, (2300, 460), np.float32, 0.7)
        tensor = SparseTensor.from_dense(array, layout)
        assert tensor.tiling.tiles > 1
        found = []
        for threads in ("1", "3"):
            monkeypatch.setenv("SPARSEFMT_NUM_THREADS", threads)
            found.append(tensor.to_scipy())
        for part in ("data", "indices", "indptr"):
            assert same_bits(getattr(found[0], part), getattr(found[1], part))

    @pytest.mark.parametrize("layout", ["dense", *SPARSE])
    def test_memory_is_that_of_the_matrix(self, layout, monkeypatch):
        monkeypatch.setenv("SPARSEFMT_NUM_THREADS", "1")
        array = weights(np.random.default_rng(0), (6000, 1024), np.float32, 0.5).astype(ml_dtypes.bfloat16)
        tensor = SparseTensor.from_dense(array, layout)
        SparseTensor.from_dense(array[:64], layout).to_scipy()
        matrix, peak = peak_of(tensor.to_scipy)
        made = matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes
        assert made < peak < made + 6e6


class TestPydata:
    @settings(max_examples=examples(150), deadline=None)
    @given(
        dtype=st.sampled_from([np.float32, np.float16, np.float64, np.int8, np.uint32, np.bool_, np.complex64]),
        shape=st.sampled_from([(), (5,), (0,), (6, 7), (3, 0), (2, 3, 4), (2, 1, 3, 2)]),
        fill=st.sampled_from(FILLS),
        sparsity=st.sampled_from([0.0, 0.5, 1.0]),
        seed=st.integers(0, 1 << 32),
    )
    def test_what_todense_gives(self, dtype, shape, fill, sparsity, seed):
        if np.dtype(dtype).kind in "biu":
            fill = int(fill > 0)
        value = self.coo(random_array(seed, shape, dtype, sparsity), dtype(fill), sparsity)
        expected = np.asarray(value.todense())
        assert expected.dtype == dtype
        assert same_bits(saved(value), expected)
        assert same_bits(SparseTensor.from_dense(value).todense(), expected)

    @pytest.mark.parametrize("form", ["gcxs", "dok"])
    @pytest.mark.parametrize("shape", [(5,), (6, 7), (2, 3, 4)])
    def test_other_formats(self, form, shape):
        """Few dtypes and shapes: the package compiles some code for each."""
        for fill in FILLS:
            value = self.coo(random_array(0, shape, np.float32, 0.5), np.float32(fill), 0.5).asformat(form)
            assert type(value).__name__.lower() == form
            expected = value.todense()
            assert same_bits(saved(value), expected)
            assert same_bits(SparseTensor.from_dense(value).todense(), expected)

    @staticmethod
    def coo(array: np.ndarray, fill: object, sparsity: float) -> sparse.COO:
        coordinates = np.argwhere(np.random.default_rng(0).random(array.shape) >= sparsity).T
        return sparse.COO(coordinates, array[tuple(coordinates)], shape=array.shape, fill_value=fill)

    @pytest.mark.parametrize("axes", [(0,), (1,)])
    def test_several_tiles(self, axes):
        array = weights(np.random.default_rng(1), (2600, 900), np.float32, 0.99)
        value = sparse.GCXS.from_numpy(array, compressed_axes=axes)
        assert sparsefmt.save({"w": value}) == sparsefmt.save({"w": array})
        assert same_bits(SparseTensor.from_dense(value, "permuted").todense(), array)

    def test_a_fill_that_is_not_zero(self):
        array = np.full((300, 400), 2, np.float32)
        array[5, 6] = 0
        value = sparse.COO.from_numpy(array, fill_value=np.float32(2))
        assert value.nnz == 1
        assert same_bits(saved(value), array)

    def test_zeros_are_no_fill(self):
        array = np.zeros((40, 60), np.float32)
        array[3, 4] = -0.0
        value = sparse.COO(np.array([[3], [4]]), np.float32([-0.0]), shape=(40, 60))
        assert same_bits(saved(value), array)
        value = sparse.DOK((40, 60), dtype=np.float32)
        value[3, 4] = 5
        array[3, 4] = 5
        assert same_bits(saved(value), array)

    def test_dtypes_that_are_refused(self):
        with pytest.raises(UnsupportedError, match=r"tensor 'w'.*complex128"):
            sparsefmt.save({"w": sparse.eye(3, dtype=np.complex128)})

    def test_memory_is_that_of_the_elements_stored(self):
        value = sparse.eye(10_000, dtype=np.float32)
        SparseTensor.from_dense(sparse.eye(64), threads=1)
        tensor, peak = peak_of(lambda: SparseTensor.from_dense(value, threads=1))
        assert tensor.nnz == 10_000
        assert peak < 40e6


class OnlyArray:
    """What gives an array when asked, and nothing else."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        return self._array


class OnlyDlpack:
    """What speaks DLPack, and nothing else."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __dlpack__(self, **options: object) -> object:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()


class TestProtocols:
    @pytest.mark.parametrize("wrap", [OnlyArray, OnlyDlpack])
    @pytest.mark.parametrize("dtype", [np.float32, np.int8, np.complex64])
    def test_other_arrays(self, wrap, dtype, tmp_path):
        array = weights(np.random.default_rng(0), (40, 60), dtype, 0.7)
        assert same_bits(saved(wrap(array)), array)
        assert same_bits(saved(wrap(array[::2, 1::3])), array[::2, 1::3].copy())
        assert same_bits(SparseTensor.from_dense(wrap(array)).todense(), array)
        sparsefmt.numpy.save_file({"w": wrap(array)}, tmp_path / "w")
        assert same_bits(sparsefmt.numpy.load_file(tmp_path / "w")["w"], array)

    def test_types_that_numpy_lacks(self):
        array = weights(np.random.default_rng(0), (40, 60), ml_dtypes.bfloat16, 0.7)
        assert same_bits(saved(OnlyArray(array)), array)

    def test_one_object_under_two_names_is_stored_once(self):
        value = OnlyArray(np.ones((30, 40), np.float32))
        loaded = sparsefmt.load(sparsefmt.save({"a": value, "b": value, "c": OnlyArray(np.ones((30, 40), np.float32))}))
        assert loaded["a"] is loaded["b"]
        assert loaded["a"] is not loaded["c"]

    def test_scalars_and_lists(self):
        number = 1.5
        loaded = sparsefmt.load(sparsefmt.save({"a": number, "b": number, "c": [1, 2], "d": np.float32(3)}))
        assert [loaded[name].tolist() for name in "abcd"] == [1.5, 1.5, [1, 2], 3]

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float8_e4m3fn", "int8", "bool"])
    def test_jax(self, dtype, tmp_path):
        jax_numpy = pytest.importorskip("jax.numpy")
        array = jax_numpy.asarray(weights(np.random.default_rng(0), (40, 60), np.float32, 0.7)).astype(dtype)
        for save_file, load_file in (
            (sparsefmt.numpy.save_file, sparsefmt.numpy.load_file),
            (sparsefmt.save_file, lambda path: sparsefmt.load_file(path, layout="dense")),
        ):
            save_file({"w": array, "tied": array}, tmp_path / "w")
            loaded = load_file(tmp_path / "w")
            assert same_bits(loaded["w"], np.asarray(array))
            again = jax_numpy.asarray(loaded["tied"])
            assert again.dtype == array.dtype
            assert (again == array).all()
        assert (jax_numpy.asarray(np.asarray(SparseTensor.from_dense(array))) == array).all()


class TestAsAnArray:
    """SparseTensor where an array is expected."""

    array = weights(np.random.default_rng(0), (40, 60), np.float32, 0.7, negative_zeros=True)

    @pytest.mark.parametrize("layout", ["dense", "bitmask", "permuted"])
    def test_asarray(self, layout):
        tensor = SparseTensor.from_dense(self.array, layout)
        assert same_bits(np.asarray(tensor), self.array)
        assert same_bits(np.array(tensor), self.array)
        assert same_bits(np.asarray(tensor, np.float64), self.array.astype(np.float64))
        assert same_bits(np.asarray(tensor, np.float32, copy=True), self.array)
        assert same_bits(np.stack([tensor, tensor]), np.stack([self.array] * 2))
        array = np.asarray(tensor)
        array[:] = 5
        assert same_bits(np.asarray(tensor), self.array)

    def test_without_a_copy(self):
        with pytest.raises(ValueError, match="copy"):
            np.asarray(SparseTensor.from_dense(self.array), copy=False)

    def test_types_that_numpy_lacks(self):
        array = self.array.astype(ml_dtypes.bfloat16)
        tensor = SparseTensor.from_dense(array)
        assert same_bits(np.asarray(tensor), array)
        assert same_bits(np.asarray(tensor, np.float32), array.astype(np.float32))

    @pytest.mark.parametrize("layout", ["dense", "bitmask", "permuted"])
    def test_to_scipy_and_back(self, layout):
        tensor = SparseTensor.from_dense(self.array, layout)
        matrix = tensor.to_scipy()
        assert matrix.nnz == tensor.nnz
        assert same_bits(matrix.toarray(), self.array + 0)
        assert same_bits(SparseTensor.from_scipy(matrix).todense(), self.array + 0)
