"""The verbs and SparseTensor: what goes in comes out, and what cannot go in says why."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Mapping

import ml_dtypes
import numpy as np
import pytest
import scipy.sparse
from helpers import (
    CODECS,
    SPARSE,
    arrays,
    check_file_round_trip,
    dense,
    pruned,
    random_bits,
    run_python,
    same_bits,
    weights,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsefmt
from sparsefmt import FormatError, LimitError, SparsefmtError, SparseTensor, UnsupportedError
from sparsefmt.dtypes import DTYPES
from sparsefmt.layouts import LAYOUTS, heights
from sparsefmt.tensor_writer import TensorWriter

LAYOUT_NAMES = ["auto", *LAYOUTS]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@settings(max_examples=25, deadline=None)
@given(tensors=st.lists(arrays(), max_size=4))
def test_any_tensors_come_back(tensors, layout, codec):
    check_file_round_trip({f"tensor {number}": array for number, array in enumerate(tensors)}, layout, codec)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=lambda dtype: dtype.name)
def test_every_dtype_over_several_tiles(dtype, codec, monkeypatch):
    """Of tiles as small as will do: where codec `rans` takes part, its streams have 32 states."""
    rng = np.random.default_rng(2)
    positions, rows = (heights.TILE_POSITIONS * 3 // 5, 960) if codec in ("rans", "auto") else (1 << 17, 250)
    monkeypatch.setattr(heights, "TILE_POSITIONS", positions)
    shape = (rows, 700)
    array = pruned(rng, shape, dtype, 0.7, True) if dtype.prunable else random_bits(rng, shape, dtype)
    data = check_file_round_trip({"w": array, "flat": array.reshape(-1)}, codec=codec)
    assert (
        sparsefmt.sparse_file.SparseFile(sparsefmt.container.sources.Memory(data)).reader.index.tensors["w"].tiles > 1
    )


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_byte_order_and_memory_order_do_not_matter(layout):
    rng = np.random.default_rng(0)
    for name in (">f4", ">f8", ">f2", ">i4", ">u2", ">c8"):
        native = (rng.standard_normal((12, 30)) * (rng.random((12, 30)) > 0.5) * 50).astype(name[1:])
        for odd in (
            native.astype(name),
            np.asfortranarray(native.astype(name)),
            native[::-1],
            native[:, ::-2],
            native.T,
            np.broadcast_to(native[0], (5, 30)),
            native.reshape(3, 4, 30).transpose(2, 0, 1),
        ):
            expected = np.ascontiguousarray(odd).astype(odd.dtype.newbyteorder("<"))
            before = odd.tobytes()
            loaded = sparsefmt.load(sparsefmt.save({"w": odd}, layout=layout))["w"]
            assert same_bits(dense(loaded), expected)
            assert odd.tobytes() == before


def test_subclasses_and_lists():
    data = sparsefmt.save({"list": [[1.0, 0.0]], "scalar": 3.5, "numpy": np.float32(2), "tuple": (1, 2)})
    loaded = sparsefmt.load(data)
    assert loaded["list"].dtype == np.float64
    assert loaded["scalar"].shape == ()
    assert loaded["numpy"] == np.float32(2)
    assert np.array_equal(loaded["tuple"], [1, 2])


class TestNegativeZeros:
    array = weights(np.random.default_rng(4), (40, 90), np.float32, 0.6, negative_zeros=True)

    @pytest.mark.parametrize("layout", LAYOUT_NAMES)
    @pytest.mark.parametrize("codec", CODECS)
    def test_kept_by_default(self, layout, codec):
        assert np.signbit(self.array[self.array == 0]).sum() > 500
        loaded = sparsefmt.load(sparsefmt.save({"w": self.array}, layout=layout, codec=codec))["w"]
        assert same_bits(dense(loaded), self.array)

    @pytest.mark.parametrize("layout", LAYOUT_NAMES)
    @pytest.mark.parametrize("sparse_input", [False, True])
    def test_dropped_when_told_to_and_recorded(self, layout, sparse_input, tmp_path):
        value = SparseTensor.from_dense(self.array) if sparse_input else self.array
        path = tmp_path / "w.sparsefmt"
        sparsefmt.save_file({"w": value, "b": np.array([-0.0, 1])}, path, layout=layout, negative_zeros="drop")
        with sparsefmt.open_file(path) as file:
            assert same_bits(file.get_tensor("w"), self.array + np.float32(0))
            assert not np.signbit(file.get_tensor("b")).any()
            entry = file.reader.index.tensors["w"]
            assert entry.negative_zeros_dropped == np.signbit(self.array[self.array == 0]).sum()
            assert "negative_zeros" not in entry.codecs

    def test_cost_one_bit_each_and_nothing_where_there_are_none(self):
        clean = self.array + np.float32(0)
        sizes = [len(sparsefmt.save({"w": array}, codec="raw", layout="bitmask")) for array in (clean, self.array)]
        zeros = int((clean == 0).sum())
        assert zeros // 8 <= sizes[1] - sizes[0] <= zeros // 8 + 200
        dropped = sparsefmt.save({"w": self.array}, codec="raw", layout="bitmask", negative_zeros="drop")
        assert len(dropped) - sizes[0] < 64

    def test_count_as_pruned(self):
        w = SparseTensor.from_dense(self.array)
        assert w.nnz == np.count_nonzero(self.array)
        assert w.sparsity == pytest.approx(1 - w.nnz / self.array.size)

    def test_not_those_of_types_that_have_none(self):
        nan = np.full((4, 70), 0x80, np.uint8).view(ml_dtypes.float8_e4m3fnuz)
        nan[:, ::2] = 0
        assert same_bits(dense(sparsefmt.load(sparsefmt.save({"w": nan}, negative_zeros="drop"))["w"]), nan)


class TestTied:
    def test_one_array_under_two_names_is_stored_once(self):
        array = np.random.default_rng(0).standard_normal((200, 300)).astype(np.float32)
        one = sparsefmt.save({"a": array}, codec="raw")
        both = sparsefmt.save({"b": array, "a": array, "view": array[:]}, codec="raw")
        assert len(both) - len(one) < 200
        loaded = sparsefmt.load(both)
        assert loaded["a"] is loaded["b"]
        assert loaded["view"] is loaded["a"]
        assert same_bits(loaded["a"], array)

    def test_views_that_differ_are_not_tied(self):
        array = np.random.default_rng(0).standard_normal((20, 20)).astype(np.float32)
        tensors = {
            "a": array,
            "t": array.T,
            "half": array[:10],
            "bits": array.view(np.uint32),
            "flat": array.reshape(-1),
        }
        loaded = sparsefmt.load(sparsefmt.save(tensors))
        for name, value in tensors.items():
            assert same_bits(dense(loaded[name]), np.ascontiguousarray(value)), name

    def test_sparse_tensors_and_lazy_files(self, tmp_path):
        w = SparseTensor.from_dense(np.eye(100, dtype=np.float32))
        sparsefmt.save_file({"a": w, "b": w}, tmp_path / "t.sparsefmt")
        with sparsefmt.open_file(tmp_path / "t.sparsefmt") as file:
            assert file.reader.index.aliases == {"b": "a"}
            assert file.keys() == ["a", "b"]
            assert len(file) == 2
            assert "b" in file
            assert np.array_equal(file["b"].todense(), np.eye(100))

    @pytest.mark.parametrize("sparse", [False, True])
    def test_a_lazy_mapping_may_reuse_memory(self, sparse):
        """Each value dies before the next is made, most likely at the same address: they are not one tensor."""

        class Lazy(Mapping):
            def __iter__(self):
                return iter("abcdefgh")

            def __len__(self):
                return 8

            def __getitem__(self, name):
                array = np.full((100, 100), ord(name), np.float32)
                return SparseTensor.from_dense(array * np.eye(100, dtype=np.float32)) if sparse else array

        loaded = sparsefmt.load(sparsefmt.save(Lazy()))
        assert {name: int(dense(value)[0, 0]) for name, value in loaded.items()} == {n: ord(n) for n in "abcdefgh"}

    def test_an_open_file_is_a_mapping_that_can_be_saved(self, tmp_path):
        array = weights(np.random.default_rng(0), (300, 200), np.float32, 0.8, True)
        sparsefmt.save_file({"a": array, "b": np.arange(3), "c": array}, tmp_path / "one", codec="raw")
        with sparsefmt.open_file(tmp_path / "one") as file:
            sparsefmt.save_file(file, tmp_path / "two", file.metadata())
        loaded = sparsefmt.load_file(tmp_path / "two")
        assert same_bits(dense(loaded["a"]), array)
        assert same_bits(dense(loaded["c"]), array)

    def test_empty_arrays_are_tied_if_they_are_one(self):
        empty = np.zeros((0, 3), bool)
        loaded = sparsefmt.load(sparsefmt.save({"a": empty, "b": empty, "c": np.zeros((0, 3), bool)}))
        assert loaded["a"] is loaded["b"]
        assert loaded["a"] is not loaded["c"]
        again = sparsefmt.load(sparsefmt.save(loaded))
        assert again["a"] is again["b"]

    def test_empty_arrays_are_not_tied_by_their_address(self):
        loaded = sparsefmt.load(sparsefmt.save({"a": np.zeros((0, 3), "f4"), "b": np.zeros((0, 3), "f4")[:0]}))
        assert loaded["a"].shape == loaded["b"].shape == (0, 3)


class TestLayoutWhenLoaded:
    """`auto`: what somebody chose stays; a coded bitmask becomes what multiplies faster."""

    @pytest.mark.parametrize(
        ("saved", "codec", "sparsity", "loaded"),
        [
            ("auto", "raw", 0.5, "bitmask"),
            ("auto", "zstd", 0.3, "bitmask"),
            ("auto", "raw", 0.8, "permuted"),
            ("auto", "zstd", 0.8, "permuted"),
            ("bitmask", "raw", 0.8, "bitmask"),
            ("bitmask", "zstd", 0.8, "permuted"),
            ("permuted", "raw", 0.5, "permuted"),
            ("permuted", "zstd", 0.5, "permuted"),
        ],
    )
    def test_auto(self, saved, codec, sparsity, loaded):
        array = weights(np.random.default_rng(0), (100, 400), np.float32, sparsity)
        w = sparsefmt.load(sparsefmt.save({"w": array}, layout=saved, codec=codec))["w"]
        assert isinstance(w, SparseTensor)
        assert w.layout == loaded
        assert same_bits(w.todense(), array)


class TestBadInput:
    @pytest.mark.parametrize(
        ("tensors", "code"),
        [
            ({"w": np.array(["text"])}, "dtype-unknown"),
            ({"w": np.array([None, {}])}, "dtype-unknown"),
            ({"w": np.zeros(3, np.complex128)}, "dtype-unknown"),
            ({"w": np.zeros(3, "M8[s]")}, "dtype-unknown"),
            ({"w": np.zeros(3, np.longdouble)}, "dtype-unknown"),
            ({"w": np.zeros(3, [("a", "f4")])}, "dtype-unknown"),
            ({"w": np.ma.masked_array([1.0, 2.0], [0, 1])}, "dtype-unknown"),
            ({"": np.zeros(3)}, "name-invalid"),
            ({"a\0b": np.zeros(3)}, "name-invalid"),
            ({"\ud800": np.zeros(3)}, "name-invalid"),
            ({3: np.zeros(3)}, "name-invalid"),
            ({"a" * 1025: np.zeros(3)}, "name-length"),
            ([("a", np.zeros(3))], "tensors-invalid"),
            ({"w": np.zeros((1,) * 33)}, "shape-ndim"),
            ({"w": np.array([0, 2], np.uint8).view(np.bool_)}, "bool-invalid"),
        ],
    )
    def test_tensors(self, tensors, code, tmp_path):
        with pytest.raises(SparsefmtError) as caught:
            sparsefmt.save_file(tensors, tmp_path / "w.sparsefmt")
        assert caught.value.code == code
        assert list(tmp_path.iterdir()) == []

    def test_the_error_names_the_tensor_and_the_remedy(self):
        with pytest.raises(UnsupportedError, match=r"tensor 'layer\.w'.*cast it"):
            sparsefmt.save({"layer.w": np.zeros(3, np.complex128)})

    def test_names_of_a_writer(self):
        writer = TensorWriter(io.BytesIO())
        writer.add("w", np.eye(3))
        writer.add_alias("tied", "w")
        for again in ("w", "tied"):
            with pytest.raises(FormatError) as caught:
                writer.add(again, np.eye(3))
            assert (caught.value.code, caught.value.tensor) == ("name-duplicate", again)
            with pytest.raises(FormatError) as caught:
                writer.add_alias(again, "w")
            assert caught.value.code == "name-duplicate"
        for target in ("missing", "tied"):
            with pytest.raises(FormatError) as caught:
                writer.add_alias("new", target)
            assert (caught.value.code, caught.value.tensor) == ("alias-invalid", "new")

    @pytest.mark.parametrize("metadata", [{"a": 1}, {1: "a"}, {"a": None}, {"a": "\ud800"}])
    def test_metadata(self, metadata):
        with pytest.raises(FormatError) as caught:
            sparsefmt.save({}, metadata)
        assert caught.value.code == "metadata-invalid"

    def test_metadata_size(self):
        with pytest.raises(LimitError):
            sparsefmt.save({}, {"a": "x" * (1 << 24)})

    @pytest.mark.parametrize(
        "keywords",
        [{"layout": "csr"}, {"codec": "lzma"}, {"negative_zeros": "maybe"}, {"threads": 0}, {"layout": None}],
    )
    def test_keywords(self, keywords):
        with pytest.raises(ValueError, match="must be"):
            sparsefmt.save({"w": np.eye(200)}, **keywords)

    def test_loading(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            sparsefmt.load_file(tmp_path / "missing.sparsefmt")
        with pytest.raises(OSError):  # noqa: PT011
            sparsefmt.open_file(tmp_path)
        with pytest.raises(ValueError, match="layout must be"):
            sparsefmt.load(sparsefmt.save({"w": np.eye(9)}), layout="csr")
        with pytest.raises(ValueError, match="backend must be"):
            sparsefmt.open_file(tmp_path / "x", backend="ftp")

    def test_unknown_names_in_a_file(self, tmp_path):
        sparsefmt.save_file({"w": np.eye(9)}, tmp_path / "w.sparsefmt")
        with sparsefmt.open_file(tmp_path / "w.sparsefmt") as file:
            for get in (file.get_tensor, file.get_slice, file.__getitem__):
                with pytest.raises(KeyError, match="no tensor 'v'"):
                    get("v")

    def test_layouts_that_cannot_be(self):
        for array in (np.ones(4, np.float32), np.ones((3, 3), np.complex64), np.zeros((0, 4), np.float32)):
            with pytest.raises(UnsupportedError) as caught:
                SparseTensor.from_dense(array, "permuted")
            assert caught.value.code == "layout-invalid"


def test_empty_file_and_metadata(tmp_path):
    path = tmp_path / "empty.sparsefmt"
    sparsefmt.save_file({}, path, {"clé": "värde", "": ""})
    with sparsefmt.open_file(path) as file:
        assert file.metadata() == {"clé": "värde", "": ""}
        assert file.keys() == []
    assert sparsefmt.load_file(path) == {}


WRONG_ARGUMENTS = {"layout": "csr", "threads": 0, "max_decoded_bytes": -1}


@pytest.mark.parametrize("tensors", [{}, {"one": np.float32(1)}])
def test_wrong_arguments_are_refused_whatever_there_is(tensors, tmp_path):
    """Also where there is nothing that they could be used for."""
    data, path = sparsefmt.save(tensors), tmp_path / "w.sparsefmt"
    path.write_bytes(data)
    for name, value in WRONG_ARGUMENTS.items():
        with pytest.raises(ValueError, match=name):
            sparsefmt.load(data, **{name: value})
        with pytest.raises(ValueError, match=name):
            sparsefmt.load_file(path, **{name: value})
        if name != "layout":
            with pytest.raises(ValueError, match=name):
                sparsefmt.open_file(path, **{name: value})
    for name, value in {"layout": "csr", "codec": "lzma", "negative_zeros": "lose", "threads": 0}.items():
        for module in (sparsefmt, sparsefmt.numpy):
            if name == "threads" and module is sparsefmt.numpy:
                continue  # safetensors.numpy has none
            with pytest.raises(ValueError, match=name):
                module.save(tensors, **{name: value})
            with pytest.raises(ValueError, match=name):
                module.save_file(tensors, path, **{name: value})
    assert path.read_bytes() == data


def test_names_of_every_kind():
    names = ["a", "Ä", "日本語", "with space", "../../etc/passwd", "a/b\\c", "__metadata__", "\n", "x" * 1024, "😀"]
    loaded = sparsefmt.load(sparsefmt.save({name: np.float32(number) for number, name in enumerate(names)}))
    assert {name: float(value) for name, value in loaded.items()} == {name: n for n, name in enumerate(names)}


def test_save_is_deterministic_and_threads_do_not_matter():
    rng = np.random.default_rng(1)
    tensors = {"w": weights(rng, (2200, 1000), np.float32, 0.7, True), "v": rng.standard_normal(1_100_000)}
    saved = {sparsefmt.save(tensors, threads=threads) for threads in (1, 2, 5, None)}
    assert len(saved) == 1
    index = sparsefmt.sparse_file.SparseFile(sparsefmt.container.sources.Memory(saved.pop())).reader.index
    assert index.tensors["w"].tiles > 2
    assert index.tensors["v"].tiles > 1


def test_progress_reaches_the_total():
    calls = []
    tensors = {"a": np.zeros((4, 4), "f4"), "b": np.zeros(9, "f8"), "c": SparseTensor.from_dense(np.eye(8, dtype="f4"))}
    sparsefmt.save(tensors, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(64, 64 + 72 + 256), (64 + 72, 64 + 72 + 256), (64 + 72 + 256, 64 + 72 + 256)]


class TestSparseTensor:
    array = weights(np.random.default_rng(3), (37, 90), ml_dtypes.bfloat16, 0.6, negative_zeros=True)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_properties(self, layout):
        w = SparseTensor.from_dense(self.array, layout)
        assert (w.shape, w.dtype, w.ndim, w.layout, len(w)) == (self.array.shape, self.array.dtype, 2, layout, 37)
        assert w.nnz == np.count_nonzero(self.array)
        assert w.nbytes == sum(data.nbytes for tile in w.operand().tiles for data in tile.all_arrays().values())
        assert same_bits(w.todense(), self.array)
        assert same_bits(np.asarray(w), self.array)
        assert layout in repr(w)
        assert "bfloat16" in repr(w)

    def test_immutable(self):
        w = SparseTensor.from_dense(self.array)
        with pytest.raises(AttributeError):
            w.shape = (1, 1)
        for tile in w.operand().tiles:
            for data in tile.all_arrays().values():
                assert not data.flags.writeable

    def test_todense_is_the_callers_own(self):
        for layout in LAYOUTS:
            w = SparseTensor.from_dense(self.array, layout)
            first = w.todense()
            first[:] = 7
            assert same_bits(w.todense(), self.array)

    @pytest.mark.parametrize("source", LAYOUTS)
    @pytest.mark.parametrize("target", LAYOUTS)
    def test_to_layout(self, source, target):
        w = SparseTensor.from_dense(self.array, source).to_layout(target)
        assert w.layout == target
        assert same_bits(w.todense(), self.array)
        direct = SparseTensor.from_dense(self.array, target)
        x = np.random.default_rng(0).standard_normal(90).astype(np.float32)
        assert same_bits(w @ x, direct @ x)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_scipy(self, layout):
        array = weights(np.random.default_rng(3), (37, 90), np.float32, 0.6)
        csr = SparseTensor.from_dense(array, layout).to_scipy()
        assert isinstance(csr, scipy.sparse.csr_array)
        assert csr.has_canonical_format
        assert same_bits(csr.toarray(), array)
        for form in ("csr", "csc", "coo", "lil", "bsr"):
            again = SparseTensor.from_scipy(scipy.sparse.csr_matrix(array).asformat(form), layout)
            assert same_bits(again.todense(), array)
            assert again.layout == layout
        assert same_bits(
            SparseTensor.from_dense(self.array, layout).to_scipy().toarray(), self.array.astype(np.float32) + 0
        )

    @pytest.mark.parametrize("shape", [(), (0,), (3,), (0, 4), (4, 0), (2, 3, 4)])
    def test_scipy_of_other_shapes(self, shape):
        array = np.ones(shape, np.float32)
        csr = SparseTensor.from_dense(array).to_scipy()
        rows = shape[0] if shape else 1
        assert same_bits(csr.toarray(), array.reshape(rows, array.size // rows if rows else int(np.prod(shape[1:]))))

    def test_scipy_of_a_type_whose_zero_bits_are_not_zero(self):
        array = np.zeros((3, 4), np.uint8).view(ml_dtypes.float8_e8m0fnu)
        assert same_bits(SparseTensor.from_dense(array).to_scipy().toarray(), np.full((3, 4), 2.0**-127, np.float32))

    def test_scipy_matrices_are_saved(self):
        array = weights(np.random.default_rng(3), (300, 400), np.float32, 0.97)
        loaded = sparsefmt.load(sparsefmt.save({"w": scipy.sparse.csr_matrix(array)}))["w"]
        assert isinstance(loaded, SparseTensor)
        assert same_bits(loaded.todense(), array)

    def test_copies_and_pickles(self):
        w = SparseTensor.from_dense(self.array)
        for again in (copy.copy(w), copy.deepcopy(w), pickle.loads(pickle.dumps(w))):
            assert same_bits(again.todense(), self.array)
            for tile in again.operand().tiles:
                assert not any(data.flags.writeable for data in tile.all_arrays().values())

    def test_numpy_does_not_take_over_the_product(self):
        w = SparseTensor.from_dense(np.eye(3))
        with pytest.raises(TypeError, match="todense"):
            np.ones((2, 3)) @ w


def test_import_and_dense_tensors_need_no_numba():
    code = """
import sys, numpy as np, sparsefmt
data = sparsefmt.save({"a": np.ones(5), "b": np.arange(3)})
sparsefmt.load(data)
print(sorted(name for name in ("numba", "scipy", "torch", "rich", "click") if name in sys.modules))
"""
    assert run_python(code) == "[]"


def test_loaded_raw_arrays_are_the_mapped_file(tmp_path):
    """No copy: what the tensor holds is read-only memory of the mapping, and the file can be replaced meanwhile."""
    array = weights(np.random.default_rng(3), (2000, 1000), np.float32, 0.8, negative_zeros=True)
    path = tmp_path / "w.sparsefmt"
    for layout in SPARSE:
        sparsefmt.save_file({"w": array}, path, layout=layout, codec="raw")
        w = sparsefmt.load_file(path)["w"]
        for tile in w.operand().tiles:
            for name in w.tiling.layout.arrays:
                base = tile[name]
                while isinstance(base, np.ndarray) and base.base is not None:
                    base = base.base
                assert "mmap" in type(base.obj if isinstance(base, memoryview) else base).__name__, name
        expected = w @ np.ones(1000, np.float32)
        sparsefmt.save_file({"w": np.zeros(5)}, path)
        assert same_bits(w.todense(), array)
        assert same_bits(w @ np.ones(1000, np.float32), expected)


def test_a_loaded_tensor_saved_over_its_own_file(tmp_path):
    array = weights(np.random.default_rng(3), (500, 300), np.float32, 0.8)
    path = tmp_path / "w.sparsefmt"
    sparsefmt.save_file({"w": array}, path, codec="raw")
    loaded = sparsefmt.load_file(path)
    sparsefmt.save_file(loaded, path, codec="raw", layout="bitmask")
    assert sparsefmt.load_file(path)["w"].layout == "bitmask"
    assert same_bits(sparsefmt.load_file(path)["w"].todense(), array)


def test_buffers_that_can_change_are_copied():
    array = weights(np.random.default_rng(3), (50, 300), np.float32, 0.8)
    data = bytearray(sparsefmt.save({"w": array}, codec="raw"))
    for buffer in (data, memoryview(data), memoryview(data).toreadonly()):
        w = sparsefmt.load(buffer)["w"]
        before = bytes(data)
        data[:] = bytes(len(data))
        assert same_bits(w.todense(), array)
        data[:] = before


def test_codec_raw_codes_nothing(tmp_path):
    values = np.where(np.arange(40 * 70).reshape(40, 70) % 9 == 0, 1.5, -0.0).astype(np.float32)
    for layout in ("bitmask", "permuted"):
        sparsefmt.save_file({"w": values}, tmp_path / "a.sparsefmt", codec="raw", layout=layout)
        with sparsefmt.open_file(tmp_path / "a.sparsefmt") as file:
            codecs = file.reader.index.entry("w").codecs
        assert "negative_zeros" in codecs
        assert set(codecs.values()) == {"raw"}
