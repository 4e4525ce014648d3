"""max_decoded_bytes: what a file claims is compared with it before memory is taken."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

import sparsefmt
from sparsefmt.container import budget
from sparsefmt.interchange.sparse import SparsefmtFile


@pytest.fixture(scope="module")
def zeros(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Little on disk, 2 GiB when dense, 64 MiB of masks."""
    path = tmp_path_factory.mktemp("budget") / "zeros.sparsefmt"
    sparsefmt.save_file({"w": scipy.sparse.csr_array((1 << 14, 1 << 14), dtype=np.float64)}, path, layout="bitmask")
    assert path.stat().st_size < budget.FLOOR / budget.RATIO
    return path


def refused(call: Callable[[], object]) -> None:
    with pytest.raises(sparsefmt.LimitError, match="max_decoded_bytes") as caught:
        call()
    assert caught.value.code == "decoded-bytes"


def test_default(zeros):
    refused(lambda: sparsefmt.load_file(zeros, layout="dense"))
    refused(lambda: sparsefmt.numpy.load_file(zeros))
    refused(lambda: sparsefmt.load(zeros.read_bytes(), layout="dense"))
    with sparsefmt.open_file(zeros) as file:
        refused(lambda: file.get_tensor("w"))
        refused(lambda: file.get_slice("w")[...])
        assert not file.get_slice("w")[5:7].any()
    weight = sparsefmt.load_file(zeros)["w"]
    assert weight.nnz == 0


def test_a_loaded_tensor_remembers_it(zeros):
    weight = sparsefmt.load_file(zeros)["w"]
    for tensor in (weight, weight.to_layout("permuted"), copy.copy(weight)):
        refused(tensor.todense)
        refused(lambda tensor=tensor: np.asarray(tensor))
        refused(lambda tensor=tensor: tensor[:])
        refused(lambda tensor=tensor: tensor[::-1, :1])
        assert tensor.to_scipy().nnz == 0  # takes nothing for zeros
        refused(lambda tensor=tensor: tensor.todense(max_decoded_bytes=(1 << 31) - 1))
        assert not tensor[100:102].any()
    weight = sparsefmt.load_file(zeros, max_decoded_bytes=1 << 31)["w"]
    refused(lambda: weight.todense(max_decoded_bytes=1 << 30))
    assert weight[::4, :2].shape == (1 << 12, 2)


@pytest.mark.parametrize("layout", ["bitmask", "permuted"])
def test_to_scipy_takes_more_than_the_tensor(layout, tmp_path):
    """12 bytes for each value of 2, and 8 for each row."""
    array = np.where(np.arange(90_000).reshape(300, 300) % 3, 0, 1).astype(np.float16)
    sparsefmt.save_file({"w": array}, tmp_path / "w.sparsefmt", layout=layout)
    weight = sparsefmt.load_file(tmp_path / "w.sparsefmt", max_decoded_bytes=300_000)["w"]
    refused(weight.to_scipy)
    weight = sparsefmt.load_file(tmp_path / "w.sparsefmt", max_decoded_bytes=400_000)["w"]
    assert weight.to_scipy().nnz == 30_000


def test_a_tensor_of_ones_own_has_none():
    assert sparsefmt.SparseTensor.from_dense(np.eye(9)).todense(max_decoded_bytes=1).any()


def test_raised_and_lowered(zeros):
    with sparsefmt.open_file(zeros, max_decoded_bytes=1 << 32) as file:
        file.expect_budget("dense")
    for layout in ("auto", "bitmask", "permuted"):
        loads = sparsefmt.load_file(zeros, layout=layout)
        refused(lambda layout=layout: sparsefmt.load_file(zeros, layout=layout, max_decoded_bytes=100_000))
        assert loads["w"].shape == (1 << 14, 1 << 14)


def test_together(tmp_path):
    """Each tensor is within the budget, and all of them are not."""
    tensors = {str(number): np.zeros((64, 64), np.float32) for number in range(4)}
    data = sparsefmt.save(tensors, layout="dense", codec="rans")
    assert len(sparsefmt.load(data, max_decoded_bytes=4 * 16384)) == 4
    refused(lambda: sparsefmt.load(data, max_decoded_bytes=4 * 16384 - 1))
    path = tmp_path / "a.sparsefmt"
    path.write_bytes(data)
    with sparsefmt.open_file(path, max_decoded_bytes=16384) as file:
        assert all(not tensor.any() for tensor in file.values())


def test_what_stays_mapped_is_free(tmp_path):
    path = tmp_path / "a.sparsefmt"
    weight = np.eye(500, dtype=np.float32)
    sparsefmt.save_file({"w": weight}, path, layout="permuted", codec="raw")
    assert sparsefmt.load_file(path, max_decoded_bytes=0)["w"].nnz == 500
    refused(lambda: sparsefmt.load_file(path, layout="bitmask", max_decoded_bytes=0))


def test_rows_for_other_formats(tmp_path, monkeypatch):
    """A tensor of few rows that are long."""
    path = tmp_path / "a.sparsefmt"
    sparsefmt.save_file({"w": np.zeros((1, 1 << 16), np.float32)}, path, layout="permuted", codec="rans")
    monkeypatch.setattr(budget, "FLOOR", 1 << 17)
    monkeypatch.setattr(budget, "RATIO", 1)
    with SparsefmtFile(path) as file:
        refused(lambda: file.intake("w").bits(0, 1))
