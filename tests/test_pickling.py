"""Open files in pickles, as a DataLoader sends its dataset to workers: opened again where they are used."""

from __future__ import annotations

import copy
import gc
import importlib
import io
import mmap
import multiprocessing
import os
import pickle
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import in_threads, weights

import sparsefmt
from sparsefmt import FormatError, LimitError, SparsefmtError

WEIGHT = weights(np.random.default_rng(0), (64, 64), np.float32, 0.8)
OTHER = weights(np.random.default_rng(1), (64, 64), np.float32, 0.8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.sparsefmt"
    sparsefmt.save_file({"w": WEIGHT, "b": WEIGHT[0]}, path)
    return path


def again(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def descriptors(path: Path) -> int:
    """How often this process has the file open or mapped."""
    folder = Path("/proc/self/fd")
    links = [os.readlink(link) for link in folder.iterdir() if os.path.lexists(link)]
    maps = Path("/proc/self/maps").read_text()
    return links.count(str(path)) + maps.count(str(path))


def test_open_files(path):
    with sparsefmt.open_file(path, backend="pread", threads=1, max_decoded_bytes=20_000) as file:
        data = pickle.dumps(file)
        assert len(data) < 1000  # the tensors stay where they are
        for other in (pickle.loads(data), again(again(file)), copy.copy(file), copy.deepcopy(file)):
            assert other.keys() == ["b", "w"]
            assert np.array_equal(other.get_tensor("w"), WEIGHT)
            other.close()
            with pytest.raises(ValueError, match="closed"):
                other.get_tensor("w")
        assert np.array_equal(file.get_tensor("w"), WEIGHT)


def test_the_arguments_of_opening_go_along(path, monkeypatch):
    file = again(sparsefmt.open_file(path, backend="pread", max_decoded_bytes=255))
    monkeypatch.setattr(mmap, "mmap", None)
    with pytest.raises(LimitError):
        file.get_tensor("w")
    assert np.array_equal(file.get_slice("w")[3:3], WEIGHT[3:3])


@pytest.mark.parametrize("framework", ["np", "pt"])
def test_safe_open_and_slices(path, framework):
    with sparsefmt.safe_open(path, framework) as file:
        for other in (again(file), copy.deepcopy(file)):
            assert np.array_equal(np.asarray(other.get_tensor("w")), WEIGHT)
        rows = again(file.get_slice("w"))
    assert np.array_equal(np.asarray(rows[8:16]), WEIGHT[8:16])
    closed = again(file)
    with pytest.raises(SparsefmtError) as caught:
        closed.get_tensor("w")
    assert caught.value.code == "file-closed"
    assert np.array_equal(again(sparsefmt.open_file(path).get_slice("w"))[3], WEIGHT[3])


def test_nothing_is_opened_before_it_is_used(path):
    """A pool whose workers fail to unpickle a task waits for it forever."""
    data = pickle.dumps(sparsefmt.open_file(path))
    gc.collect()
    assert descriptors(path) == 0
    file = pickle.loads(data)
    assert descriptors(path) == 0
    file.close()
    with pytest.raises(SparsefmtError) as caught:
        file.keys()
    assert caught.value.code == "file-closed"
    path.unlink()
    missing = pickle.loads(data)
    with pytest.raises(FileNotFoundError) as missed:
        missing.keys()
    assert missed.value.filename == str(path)


def test_relative_paths_go_along(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps(sparsefmt.open_file(path.name))
    monkeypatch.chdir("/")
    assert pickle.loads(data).keys() == ["b", "w"]


def test_another_file_of_that_name_is_refused(path):
    data = pickle.dumps(sparsefmt.open_file(path))
    content = path.read_bytes()
    for changed in ({"w": OTHER, "b": WEIGHT[0]}, {"w": WEIGHT}):
        sparsefmt.save_file(changed, path)
        with pytest.raises(FormatError, match=f"'{path}' is another file now") as caught:
            pickle.loads(data).keys()
        assert caught.value.code == "file-changed"
    path.unlink()
    path.write_bytes(content)
    assert pickle.loads(data).keys() == ["b", "w"]


def test_what_has_no_path(path):
    with open(path, "rb") as file:
        for source in (file, io.BytesIO(path.read_bytes())):
            opened = sparsefmt.open_file(source)
            for value in (opened, opened.get_slice("w")):
                with pytest.raises(TypeError, match="from bytes or from a file object cannot be pickled: open it by"):
                    pickle.dumps(value)
    opened = sparsefmt.open_file(path)
    opened.close()
    with pytest.raises(ValueError, match="closed"):
        pickle.dumps(opened)


def test_threads_open_it_once(path, monkeypatch):
    file = again(sparsefmt.open_file(path))
    real, count = mmap.mmap, []
    monkeypatch.setattr(mmap, "mmap", lambda *args, **kwargs: count.append(1) or real(*args, **kwargs))
    in_threads(file.get_tensor, ["w"] * 8)
    assert len(count) == 1


class Rows(torch.utils.data.Dataset):
    """As people write them: the file is opened once, and read in the workers."""

    def __init__(self, path: Path) -> None:
        self.file = sparsefmt.safe_open(path, "pt")
        self.rows = self.file.get_slice("w")

    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> torch.Tensor:
        assert multiprocessing.parent_process() is not None
        return self.rows[number] + 0 * self.file.get_tensor("w")[number]


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_workers_of_a_data_loader(path, method):
    loader = torch.utils.data.DataLoader(Rows(path), batch_size=2, num_workers=1, multiprocessing_context=method)
    assert np.array_equal(torch.cat(list(loader)).numpy(), WEIGHT[:4])


def classes() -> Iterator[type]:
    """All classes of the package."""
    for module in pkgutil.walk_packages(sparsefmt.__path__, "sparsefmt."):
        if not module.name.endswith("__main__"):
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, type) and value.__module__ == module.name:
                    yield value


def test_what_failed_to_be_made_is_deleted_in_silence():
    """`__del__` runs also where `__init__` raised at its first line."""
    found = [kind for kind in classes() if "__del__" in vars(kind)]
    assert {"DiskFile", "FrameworkFile"} <= {kind.__name__ for kind in found}
    for kind in found:
        kind.__new__(kind).__del__()


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_wrong_paths_leave_nothing_to_be_ignored():
    for wrong in (None, 3, object(), "\0", b"\0"):
        for function in (sparsefmt.open_file, sparsefmt.load_file, lambda path: sparsefmt.safe_open(path, "np")):
            with pytest.raises((TypeError, ValueError)):
                function(wrong)
    gc.collect()
