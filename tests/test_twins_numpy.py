"""sparsefmt.numpy against safetensors.numpy: the same calls, the same results, and right where that one is not."""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from helpers import CODECS, arrays, check_signature, peak_of, pruned, random_bits, same_bits, weights
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsefmt.numpy
from sparsefmt import FormatError, SparsefmtError, UnsupportedError
from sparsefmt.dtypes import DTYPES
from sparsefmt.layouts import LAYOUTS
from tools import run_safetensors_tests as tool

twin = sparsefmt.numpy


@pytest.mark.parametrize("name", twin.__all__)
def test_signatures_are_those_of_safetensors(name):
    """Whatever can be passed there can be passed here; what there is besides can only be passed by keyword."""
    check_signature(
        getattr(twin, name),
        getattr(safetensors.numpy, name),
        (
            *(("max_decoded_bytes",) if "load" in name else ()),
            *(("storage_options",) if name.endswith("_file") else ()),
        ),
    )


@settings(max_examples=60, deadline=None)
@given(tensors=st.lists(arrays(), max_size=4))
def test_any_tensors_come_back(tensors):
    tensors = {f"tensor {number}": array for number, array in enumerate(tensors)}
    loaded = twin.load(twin.save(tensors))
    assert loaded.keys() == tensors.keys()
    for name, array in tensors.items():
        assert same_bits(loaded[name], array), name


@pytest.mark.parametrize("backend", ["mmap", "pread"])
@pytest.mark.parametrize("codec", CODECS)
def test_every_dtype_and_keyword(tmp_path, codec, backend):
    rng = np.random.default_rng(0)
    tensors = {
        dtype.name: pruned(rng, (70, 130), dtype, 0.7, True) if dtype.prunable else random_bits(rng, (70, 130), dtype)
        for dtype in DTYPES.values()
    }
    for layout in ("auto", *LAYOUTS):
        twin.save_file(tensors, tmp_path / "t.sparsefmt", {"key": "text"}, layout=layout, codec=codec)
        loaded = twin.load_file(tmp_path / "t.sparsefmt", backend=backend)
        for name, array in tensors.items():
            assert type(loaded[name]) is np.ndarray
            assert same_bits(loaded[name], array), name
    with sparsefmt.open_file(tmp_path / "t.sparsefmt") as file:
        assert file.metadata() == {"key": "text"}
        assert file.reader.index.tensors["F32"].layout.name == layout
    assert twin.save(tensors, {"key": "text"}, layout=layout, codec=codec) == (tmp_path / "t.sparsefmt").read_bytes()


@pytest.mark.parametrize("dtype", [name for name in DTYPES if not name.startswith(("F4", "F6", "F8"))])
def test_the_same_as_safetensors(dtype, tmp_path):
    """Where safetensors takes an array, its file and ours load as the same."""
    array = random_bits(np.random.default_rng(1), (5, 7), DTYPES[dtype])
    twin.save_file({"w": array, "empty": array[:0]}, tmp_path / "ours")
    safetensors.numpy.save_file({"w": array, "empty": array[:0]}, tmp_path / "theirs")
    theirs = safetensors.numpy.load_file(tmp_path / "theirs")
    ours = twin.load_file(tmp_path / "ours")
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert same_bits(ours[name], expected)
        assert ours[name].flags.writeable
        assert expected.flags.writeable


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_bytes_of_types_that_safetensors_cannot_load(dtype):
    array = weights(np.random.default_rng(1), (5, 7), dtype, 0.5, True)
    with pytest.raises(KeyError):
        safetensors.numpy.load(safetensors.numpy.save({"w": array}))
    assert same_bits(twin.load(twin.save({"w": array}))["w"], array)


def test_memory_order_and_byte_order():
    """Elements are what counts. safetensors stores the memory of the first of these as if it were contiguous."""
    array = weights(np.random.default_rng(1), (6, 9), np.float32, 0.5, True)
    odd = {
        "transposed": array.T,
        "columns": array[:, ::2],
        "backwards": array[::-1, ::-1],
        "fortran": np.asfortranarray(array),
        "broadcast": np.broadcast_to(array[0], (4, 9)),
        "big": array.astype(">f4"),
        "big and transposed": array.astype(">f4").T,
        "big complex": (array + 1j).astype(">c8"),
    }
    loaded = twin.load(twin.save(odd))
    for name, value in odd.items():
        assert same_bits(loaded[name], np.array(value, value.dtype.newbyteorder("<"), order="C")), name
    theirs = safetensors.numpy.load(safetensors.numpy.save({"w": array.T}))["w"]
    assert not same_bits(theirs, np.ascontiguousarray(array.T))


def test_a_file_does_not_depend_on_the_order_of_the_dict():
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal((30, 40)) for name in "cab"}
    assert twin.save(tensors) == twin.save(dict(sorted(tensors.items())))


def test_one_array_under_two_names_is_stored_once_and_loaded_twice():
    array = np.random.default_rng(0).standard_normal((200, 300))
    data = twin.save({"a": array, "b": array})
    assert len(data) - len(twin.save({"a": array})) < 200
    loaded = twin.load(data)
    loaded["a"][:] = 0
    assert same_bits(loaded["b"], array)


def test_compressed_and_lazy_tensors_are_taken(tmp_path):
    array = weights(np.random.default_rng(0), (300, 200), np.float32, 0.8)
    twin.save_file({"w": sparsefmt.SparseTensor.from_dense(array)}, tmp_path / "w.sparsefmt")
    with sparsefmt.open_file(tmp_path / "w.sparsefmt") as file:
        assert isinstance(file, Mapping)
        assert same_bits(twin.load(twin.save(file))["w"], array)


def test_negative_zeros_can_be_dropped():
    array = np.array([[-0.0, 1.0]] * 40)
    assert np.signbit(twin.load(twin.save({"w": array}))["w"][:, 0]).all()
    assert not np.signbit(twin.load(twin.save({"w": array}, negative_zeros="drop"))["w"]).any()


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_loading_holds_the_tensor_and_a_few_tiles(tmp_path, codec):
    array = weights(np.random.default_rng(0), (4096, 4096), np.float32, 0.8)
    twin.save_file({"w": array}, tmp_path / "w.sparsefmt", codec=codec)
    with sparsefmt.open_file(tmp_path / "w.sparsefmt") as file:
        entry = file.reader.index.tensors["w"]
        tile = array.nbytes // entry.tiles
    assert entry.tiles >= 16
    loaded, peak = peak_of(lambda: twin.load_file(tmp_path / "w.sparsefmt"))
    assert same_bits(loaded["w"], array)
    assert peak < array.nbytes + 2 * (sparsefmt.threads.num_threads() + 1) * tile


@pytest.mark.parametrize(
    ("tensors", "metadata", "code"),
    [
        ({"layer.w": np.zeros(3, np.complex128)}, None, "dtype-unknown"),
        ({"layer.w": np.array(["text"])}, None, "dtype-unknown"),
        ({1: np.zeros(3)}, None, "name-invalid"),
        ({1: np.zeros(3), "a": np.zeros(3)}, None, "name-invalid"),
        ([np.zeros(3)], None, "tensors-invalid"),
        ("text", None, "tensors-invalid"),
        ({}, {"a": 1}, "metadata-invalid"),
    ],
)
def test_bad_input(tensors, metadata, code, tmp_path):
    with pytest.raises(SparsefmtError) as caught:
        twin.save_file(tensors, tmp_path / "w.sparsefmt", metadata)
    assert caught.value.code == code
    with pytest.raises(SparsefmtError):
        twin.save(tensors, metadata)
    assert list(tmp_path.iterdir()) == []


def test_errors_say_which_tensor():
    with pytest.raises(UnsupportedError, match=r"tensor 'layer\.w'.*complex128"):
        twin.save({"layer.w": np.zeros(3, np.complex128)})


def test_files_of_another_format(tmp_path):
    safetensors.numpy.save_file({"w": np.zeros(3)}, tmp_path / "w.safetensors")
    with pytest.raises(FormatError, match="sparsefmt convert"):
        twin.load_file(tmp_path / "w.safetensors")
    with pytest.raises(FormatError, match="sparsefmt convert"):
        twin.load((tmp_path / "w.safetensors").read_bytes())
    with pytest.raises(FileNotFoundError):
        twin.load_file(tmp_path / "missing")
    with pytest.raises(ValueError, match="backend"):
        twin.load_file(tmp_path / "w.safetensors", backend="ftp")


class TestRunningTheTestsOfSafetensors:
    def test_imports_are_swapped_and_nothing_else(self):
        theirs = """
from safetensors import SafetensorError, TensorSpec, safe_open, serialize
from safetensors import safe_open
from safetensors.numpy import load, save
    from safetensors.torch import save_file as save_file_pt
text = "safetensors.numpy"
"""
        ours = """
from sparsefmt import SparsefmtError as SafetensorError, safe_open
from safetensors import TensorSpec, serialize
from sparsefmt import safe_open
from sparsefmt.numpy import load, save
    from sparsefmt.torch import save_file as save_file_pt
text = "safetensors.numpy"
"""
        assert tool.swapped(theirs) == ours

    def test_without_the_source_it_says_so(self, monkeypatch, capsys, tmp_path):
        monkeypatch.setattr("sys.argv", ["run_safetensors_tests.py", "--source", str(tmp_path)])
        assert tool.main() == 2
        assert "no source distribution of safetensors" in capsys.readouterr().err

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("test", "status", "said"),
        [
            (
                "def test_a(): load(save({}))\ndef test_b(): assert False",
                0,
                ["1 passed, 1 expected failures, 0 unexpected"],
            ),
            (
                "def test_a(): assert False\ndef test_b(): pass",
                1,
                ["Unexpected: test_one.py::test_a", "though listed as one that cannot pass"],
            ),
        ],
    )
    def test_outcomes(self, test, status, said, monkeypatch, capsys, tmp_path):
        monkeypatch.setattr("sys.argv", ["run_safetensors_tests.py", "--source", str(tmp_path)])
        monkeypatch.setattr(tool, "EXPECTED", {"test_one.py::test_b": "why"})
        tests = tmp_path / "any" / tool.TESTS
        tests.mkdir(parents=True)
        (tests / "test_one.py").write_text(f"from safetensors.numpy import load, save\n{test}\n")
        assert tool.main() == status
        out = capsys.readouterr().out
        assert all(line in out for line in said)
