"""sparsefmt.safe_open: what safetensors.safe_open does, on numpy and torch."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from helpers import examples, peak_of, random_bits, run_python, same_bits, weights
from hypothesis import given, settings
from hypothesis.extra import numpy as hypothesis_numpy

import sparsefmt
from sparsefmt import FormatError, SparsefmtError, UnsupportedError, safe_open
from sparsefmt.dtypes import DTYPES

FRAMEWORKS = ["np", "numpy", "pt", "torch", "pytorch"]
CUBE = weights(np.random.default_rng(0), (7, 5, 4), np.float32, 0.6, negative_zeros=True)
MATRIX = weights(np.random.default_rng(1), (40, 70), np.float32, 0.8, negative_zeros=True)
TENSORS = {"cube": CUBE, "matrix": MATRIX, "scalar": np.float32(3), "empty": np.zeros((0, 3), np.float32)}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("safe_open") / "t.sparsefmt"
    sparsefmt.save_file({**TENSORS, "tied": MATRIX}, path, {"key": "text"})
    return path


def as_numpy(tensor) -> np.ndarray:
    return tensor.numpy() if isinstance(tensor, torch.Tensor) else tensor


@pytest.mark.parametrize("backend", ["mmap", "pread"])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_tensors(path, framework, backend):
    with safe_open(path, framework, "cpu", backend=backend) as f:
        assert f.keys() == ["cube", "empty", "matrix", "scalar", "tied"]
        assert f.offset_keys() == ["empty", "cube", "matrix", "tied", "scalar"]
        assert f.metadata() == {"key": "text"}
        tensors = f.get_tensors()
        assert list(tensors) == f.offset_keys()
        for name, expected in {**TENSORS, "tied": MATRIX}.items():
            for tensor in (f.get_tensor(name), tensors[name]):
                assert type(tensor) is (np.ndarray if framework.startswith("n") else torch.Tensor)
                assert same_bits(as_numpy(tensor), np.asarray(expected)), name
            assert f.get_slice(name).get_shape() == list(expected.shape)
            assert f.get_slice(name).get_dtype() == "F32"


def test_arguments_by_name_and_path_as_text(path):
    with safe_open(filename=str(path), framework="pt", device="cpu") as f:
        assert f.get_tensor("scalar").item() == 3


def test_no_metadata_is_none(tmp_path):
    sparsefmt.save_file({}, tmp_path / "t")
    with safe_open(tmp_path / "t", "np") as f:
        assert f.metadata() is None
        assert f.keys() == f.offset_keys() == []
        assert f.get_tensors() == {}


def test_tensors_are_the_callers_own(path):
    with safe_open(path, "np") as f:
        first = f.get_tensor("matrix")
        first[:] = 7
        assert same_bits(f.get_tensor("matrix"), MATRIX)
        assert same_bits(f.get_tensors()["tied"], MATRIX)


KEYS = [
    3,
    -1,
    np.int64(2),
    slice(None),
    slice(1, 5),
    slice(5, 1),
    slice(-3, None),
    slice(0, 99),
    slice(None, None, 3),
    (),
    Ellipsis,
    None,
    [],
    [1, 3, 3, -1],
    np.array([6, 0]),
    [True, False] * 3 + [True],
    np.arange(7) % 2 == 0,
    (0, 0, 0),
    (slice(None), slice(1, 3)),
    (slice(None), slice(1, 3), slice(None, None, 2)),
    (slice(2, 6), 0),
    (slice(2, 6), -1, slice(0, 2)),
    (2, slice(1, 4)),
    (Ellipsis, 1),
    (Ellipsis, slice(1, 3)),
    (1, Ellipsis, 2),
    (slice(1, 3), Ellipsis),
    (Ellipsis, 1, slice(1, 3), 0),
    (0, 1, 2, Ellipsis),
    (Ellipsis, None, 2),
    (Ellipsis, [1, 0]),
    (slice(1, 3), None, 2),
    ([1, 2], slice(None), 3),
    ([1, 2], [3, 4]),
    (slice(None), [3, 4]),
    ([1, 2], None),
    (0, slice(None), [1, 2]),
    ([0, 1], slice(None), [1, 2]),
    ([0, 1], Ellipsis, 2),
]
TORCH_KEYS = [
    (Ellipsis, Ellipsis),
    ([[1, 2], [3, 4]],),
    torch.tensor(2),
    torch.tensor([2, 0]),
    torch.arange(7) > 3,
    (torch.tensor([2, 0]), slice(1, 3)),
    np.array([1, 0, 0, 1, 0, 0, 0], np.uint8),
    True,
]


@pytest.mark.parametrize("key", KEYS + TORCH_KEYS, ids=repr)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_keys_do_what_they_do_on_a_tensor(path, key):
    expected = torch.from_numpy(CUBE)[key]
    with safe_open(path, "pt") as f:
        part = f.get_slice("cube")[key]
    assert part.is_contiguous()
    assert part.untyped_storage().nbytes() == part.numel() * 4
    assert part.dtype == expected.dtype
    assert same_bits(part.numpy(), expected.contiguous().numpy())


@pytest.mark.parametrize("key", KEYS, ids=repr)
def test_keys_do_what_they_do_on_an_array(path, key):
    with safe_open(path, "np") as f:
        part = f.get_slice("cube")[key]
    assert isinstance(part, np.ndarray)
    assert part.flags.c_contiguous
    assert part.flags.writeable
    assert part.base is None or part.base.nbytes == part.nbytes
    assert same_bits(part, np.array(CUBE[key], order="C"))


@settings(max_examples=examples(200), deadline=None)
@given(key=hypothesis_numpy.basic_indices(CUBE.shape, allow_newaxis=True))
def test_any_basic_key(path, key):
    with safe_open(path, "np") as f:
        assert same_bits(f.get_slice("cube")[key], np.array(CUBE[key], order="C"))
    parts = key if isinstance(key, tuple) else (key,)
    if not any(isinstance(part, slice) and (part.step or 1) < 0 for part in parts):
        with safe_open(path, "pt") as f:
            assert same_bits(f.get_slice("cube")[key].numpy(), torch.from_numpy(CUBE)[key].contiguous().numpy())


@pytest.mark.parametrize(
    "key",
    [
        7,
        -8,
        (0, 5),
        (slice(None), 0, -5),
        (0, 0, 0, 0),
        (0, 0, Ellipsis, 0, 0),
        slice(None, None, -1),
        [7],
        [True],
        1.5,
    ],
    ids=repr,
)
def test_bad_keys_raise_what_torch_raises(path, key):
    with pytest.raises((IndexError, ValueError, TypeError)) as theirs:
        torch.from_numpy(CUBE)[key]
    with safe_open(path, "pt") as f, pytest.raises(theirs.type):
        f.get_slice("cube")[key]


@pytest.mark.parametrize(
    "key", [7, -8, (0, 5), (slice(None), 0, -5), (0, 0, 0, 0), (0, 0, Ellipsis, 0, 0), [7], [True], 1.5], ids=repr
)
def test_bad_keys_raise_what_numpy_raises(path, key):
    with safe_open(path, "np") as f, pytest.raises(IndexError):
        f.get_slice("cube")[key]


@pytest.mark.parametrize("framework", ["np", "pt"])
def test_keys_of_a_scalar(path, framework):
    with safe_open(path, framework) as f:
        part = f.get_slice("scalar")
        assert as_numpy(part[()]) == as_numpy(part[...]) == 3
        assert as_numpy(part[None]).shape == (1,)
        for key in (0, slice(None)):
            with pytest.raises(IndexError):
                part[key]


@pytest.mark.parametrize(
    "dtype", [dtype for dtype in DTYPES.values() if dtype.nbits >= 8], ids=lambda dtype: dtype.name
)
def test_parts_of_every_dtype(dtype, tmp_path):
    """Also of those that torch cannot index itself."""
    array = random_bits(np.random.default_rng(2), (9, 6), dtype)
    sparsefmt.save_file({"w": array}, tmp_path / "t")
    with safe_open(tmp_path / "t", "pt") as f, safe_open(tmp_path / "t", "np") as g:
        assert f.get_slice("w").get_dtype() == dtype.name
        for key in (slice(2, 5), (slice(None), slice(1, 4)), [3, 1], (slice(None), [0, 2]), 4, np.arange(9) > 4):
            expected = np.ascontiguousarray(array[key])
            assert f.get_slice("w")[key].view(torch.uint8).numpy().tobytes() == expected.tobytes()
            assert same_bits(g.get_slice("w")[key], expected)


@pytest.mark.parametrize("framework", ["np", "pt"])
@pytest.mark.parametrize(
    "key",
    [slice(100, 130), (slice(None), slice(8, 24)), (Ellipsis, slice(8, 24)), 5, [1, 100, 7]],
    ids=["rows", "columns", "ellipsis", "one row", "list"],
)
def test_a_part_is_read_in_little_memory(framework, key, tmp_path):
    array = weights(np.random.default_rng(0), (4096, 2048), np.float32, 0.8)
    sparsefmt.save_file({"w": array}, tmp_path / "w", codec="zstd")
    with safe_open(tmp_path / "w", framework) as f:
        part = f.get_slice("w")
        part[:1]  # whatever is imported or compiled for it
        found, peak = peak_of(lambda: part[key])
    assert same_bits(as_numpy(found), np.ascontiguousarray(array[key]))
    assert peak < array.nbytes / 2


class TestClosing:
    @pytest.mark.parametrize("backend", ["mmap", "pread"])
    def test_a_closed_file_says_so(self, path, backend):
        with safe_open(path, "np", backend=backend) as f:
            pass
        for call in (
            f.keys,
            f.offset_keys,
            f.metadata,
            f.get_tensors,
            lambda: f.get_tensor("cube"),
            lambda: f.get_slice("cube"),
        ):
            with pytest.raises(SparsefmtError) as caught:
                call()
            assert (caught.value.code, caught.value.path) == ("file-closed", str(path))
            assert str(caught.value) == f"{path}: the file is closed [file-closed]"
        f.__exit__(None, None, None)

    @pytest.mark.parametrize("backend", ["mmap", "pread"])
    def test_slices_and_tensors_outlive_it(self, path, backend):
        with safe_open(path, "pt", backend=backend) as f:
            part, tensor = f.get_slice("cube"), f.get_tensor("cube")
        assert same_bits(part[2:4].numpy(), CUBE[2:4])
        assert same_bits(tensor.numpy(), CUBE)

    @pytest.mark.parametrize("backend", ["mmap", "pread"])
    def test_the_file_is_closed_with_the_last_of_them(self, path, backend):
        f = safe_open(path, "np", backend=backend)
        part = f.get_slice("cube")
        file = part._held.file
        f.__exit__(None, None, None)
        assert same_bits(file.get_tensor("cube"), CUBE)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            del part
        with pytest.raises(ValueError, match="closed"):
            file.get_tensor("cube")

    def test_it_works_without_with(self, path):
        assert same_bits(safe_open(path, "np").get_tensor("cube"), CUBE)


class TestBadInput:
    @pytest.mark.parametrize("framework", ["tf", "flax", "jax", "mlx", "paddle", "", "PT"])
    def test_frameworks(self, path, framework):
        with pytest.raises(UnsupportedError, match="'np', 'numpy', 'pt'") as caught:
            safe_open(path, framework)
        assert caught.value.code == "framework-unknown"

    def test_devices_that_numpy_has(self, path):
        for device in ("cpu", None, torch.device("cpu")):
            assert same_bits(safe_open(path, "np", device).get_tensor("cube"), CUBE)

    @pytest.mark.parametrize("device", ["cuda", "cuda:0", 0, "mps", "nonsense"])
    def test_devices_that_numpy_has_not(self, path, device):
        with pytest.raises(UnsupportedError, match="only 'cpu'"):
            safe_open(path, "np", device)

    @pytest.mark.parametrize("method", ["get_tensor", "get_slice"])
    def test_missing_tensors(self, path, method):
        with safe_open(path, "np") as f, pytest.raises(SparsefmtError, match=r"no tensor 'v' in .*sparsefmt") as caught:
            getattr(f, method)("v")
        assert (caught.value.code, caught.value.path) == ("tensor-missing", str(path))

    def test_files(self, tmp_path):
        (tmp_path / "bad").write_bytes(b"x" * 200)
        with pytest.raises(FormatError):
            safe_open(tmp_path / "bad", "np")
        with pytest.raises(FileNotFoundError):
            safe_open(tmp_path / "missing", "np")
        with pytest.raises(ValueError, match="backend must be"):
            safe_open(tmp_path / "bad", "np", backend="ftp")


def test_numpy_needs_no_torch(path):
    code = f"""
import sys, sparsefmt, sparsefmt.numpy
with sparsefmt.safe_open({str(path)!r}, "np") as f:
    f.get_tensors()
sparsefmt.numpy.load_file({str(path)!r})
print("torch" in sys.modules)
"""
    assert run_python(code) == "False"


def test_twins_are_imported_when_they_are_used():
    code = """
import sys, sparsefmt
before = [name in sys.modules for name in ("sparsefmt.numpy", "sparsefmt.torch", "torch")]
sparsefmt.numpy.save, sparsefmt.torch.save
print(before, [name in sys.modules for name in ("sparsefmt.numpy", "sparsefmt.torch", "torch")])
"""
    assert run_python(code) == "[False, False, False] [True, True, True]"
    with pytest.raises(AttributeError, match="has no attribute 'tensorflow'"):
        sparsefmt.tensorflow  # noqa: B018 (looking is the test)
