"""What the page says of files and memory is what saving and loading make."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from helpers import succeed

import sparsefmt
from sparsefmt.adapters import rows_of
from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.dtypes import DTYPES
from sparsefmt.report.compressed import compressed, reason_for_dense
from sparsefmt.report.tensors import Stored


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)

    def pruned(shape: tuple[int, ...], share: float, dtype: np.dtype | type = np.float32) -> np.ndarray:
        return np.where(rng.random(shape) < share, 0, rng.normal(0, 1, shape)).astype(dtype)

    return {
        "half": pruned((256, 512), 0.5),
        "many": pruned((300, 400), 0.9, ml_dtypes.bfloat16),
        "nearly all": pruned((512, 1024), 0.998),
        "signs": pruned((128, 256), 0.7) * np.where(rng.random((128, 256)) < 0.5, -1, 1).astype(np.float32),
        "few": pruned((256, 256), 0.05),
        "small": pruned((8, 16), 0.8),
        "vector": pruned((900,), 0.8),
        "scalar": np.array(3, np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "flags": rng.random((64, 128)) < 0.1,
    }


def found_in(path: Path) -> tuple[int, dict[str, Stored]]:
    steps: list[int] = []
    with Checkpoint(path, ["sparsefmt", "safetensors"]) as model:
        [file] = model.files
        nbytes, stored = compressed(file, 2, steps.append)
        assert sum(steps) == model.dense_nbytes
    return nbytes, stored


def check_memory(stored: dict[str, Stored], held: dict[str, sparsefmt.SparseTensor | np.ndarray]) -> None:
    for name, tensor in held.items():
        if isinstance(tensor, sparsefmt.SparseTensor) and tensor.layout != "dense":
            assert stored[name].memory_layout.split(",")[0] == tensor.layout, name
            assert stored[name].memory_nbytes == tensor.nbytes, name
        else:
            assert (stored[name].memory_layout, stored[name].memory_nbytes) == ("dense", tensor.nbytes), name


def test_sizes_are_those_of_convert(tensors: dict[str, np.ndarray], tmp_path: Path) -> None:
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors", metadata={"a": "b"})
    nbytes, stored = found_in(tmp_path / "a.safetensors")
    succeed("convert", tmp_path / "a.safetensors")
    assert nbytes == (tmp_path / "a.sparsefmt").stat().st_size
    with sparsefmt.open_file(tmp_path / "a.sparsefmt") as file:
        index = file.reader.index
        for name in tensors:
            entry = index.entry(name)
            assert stored[name].file_nbytes == index.stored_nbytes(entry)
            assert stored[name].file_layout.split(",")[0] == entry.layout.name
            assert bool(stored[name].reason) == (entry.layout.name == "dense"), name
    held = {name: sparsefmt.SparseTensor.from_dense(tensors[name]) for name in tensors if name != "signs"}
    check_memory(stored, held)


@pytest.mark.parametrize("codec", ["auto", "raw"])
@pytest.mark.parametrize("layout", ["auto", "permuted"])
def test_a_file_of_ours_is_what_it_is(tensors: dict[str, np.ndarray], tmp_path: Path, codec: str, layout: str) -> None:
    path = tmp_path / "a.sparsefmt"
    sparsefmt.save_file(tensors, path, codec=codec, layout=layout, negative_zeros="drop")
    nbytes, stored = found_in(path)
    assert nbytes == path.stat().st_size
    check_memory(stored, sparsefmt.load_file(path))


def test_copies_take_nothing_in_a_file(tmp_path: Path) -> None:
    array = np.where(np.random.default_rng(5).random((128, 128)) < 0.7, 0, 1).astype(np.float32)
    safetensors.numpy.save_file({"a": array, "b": array.copy()}, tmp_path / "a.safetensors")
    _, stored = found_in(tmp_path / "a.safetensors")
    assert stored["a"].file_nbytes > 0
    assert stored["b"].file_nbytes == 0
    assert stored["a"].memory_nbytes == stored["b"].memory_nbytes > 0


def test_reasons(tensors: dict[str, np.ndarray]) -> None:
    reasons = {name: reason_for_dense(rows_of(tensors[name])) for name in tensors}
    assert reasons["flags"] == "elements of BOOL cannot be pruned"
    assert reasons["vector"] == reasons["scalar"] == "a vector or a single number"
    assert reasons["empty"] == "no elements"
    assert reasons["small"] == "under 4 KiB: too small to be worth it"
    assert reasons["few"] == "too few zeros: sparse, it would not be 10% smaller"
    wide: Any = SimpleNamespace(dtype=DTYPES["I8"], shape=(1, 1 << 32), cols=1 << 32, dense_nbytes=1 << 32)
    assert reason_for_dense(wide) == "too many columns"
