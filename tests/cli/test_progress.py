"""Progress, wherever it is told: it goes forward only, never beyond its total, and ends there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import scipy.sparse
from helpers import check_progress, run_command, weights
from safetensors_files import SHARDS, craft_tensors, patterns, read_back, save_shards, sparse_array

import sparsefmt
from sparsefmt.cli import output


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[int]]]:
    """Totals and steps of the bars that commands show, as if all of them had a terminal."""
    shown: list[tuple[int, list[int]]] = []

    @contextmanager
    def record(what: str, total: int, quiet: bool, **options: bool) -> Iterator[Callable[[int], None]]:
        shown.append((total, []))
        yield shown[-1][1].append

    monkeypatch.setattr(output, "progress_bar", record)
    return shown


def check_bar(bars: list[tuple[int, list[int]]], *command: object, code: int = 0) -> int:
    """Run a command that shows one bar. Returns how many steps it had."""
    bars.clear()
    assert run_command(*command).exit_code == code
    [(total, steps)] = bars
    check_progress(steps, total)
    return len(steps)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A tensor of several tiles, more than a writer keeps, beside some without elements and of odd types."""
    rng = np.random.default_rng(0)
    tensors = {
        "large": ("F32", [4500, 1001], weights(rng, (4500, 1001), np.float32, 0.8, True).tobytes()),
        "large.dense": ("F32", [5000, 1001], weights(rng, (5000, 1001), np.float32, 0.1).tobytes()),
        "empty": ("F32", [0, 7], b""),
        "none": ("F32", [3, 0], b""),
        "scalar": ("F64", [], patterns("F64", 1, 1)),
        "packed": ("F6_E2M3", [4, 3], patterns("F6_E2M3", 4, 3)),
    }
    path = tmp_path / "large.safetensors"
    path.write_bytes(craft_tensors(tensors))
    return path


@pytest.mark.parametrize("codec", ["auto", "rans", "raw"])
@pytest.mark.parametrize("threads", [1, 2])
def test_convert_counts_every_tile_once(
    bars: list[tuple[int, list[int]]], large: Path, codec: str, threads: int
) -> None:
    tiles = check_bar(bars, "convert", large, "--codec", codec, "--threads", threads)
    assert tiles > 6


def test_other_commands_on_large_tensors(bars: list[tuple[int, list[int]]], large: Path) -> None:
    sparse = large.with_suffix(".sparsefmt")
    check_bar(bars, "convert", large, "--codec", "raw")
    assert check_bar(bars, "verify", sparse, "--against", large) > 6
    assert check_bar(bars, "verify", sparse, "--strict") > 6
    assert check_bar(bars, "diff", sparse, large) > 6
    assert check_bar(bars, "export", sparse, "--force") > 6


def test_names_of_one_tensor(bars: list[tuple[int, list[int]]], tmp_path: Path) -> None:
    shared = sparse_array(0)
    sparse, other = tmp_path / "a.sparsefmt", tmp_path / "b.safetensors"
    sparsefmt.save_file({"a": shared, "b": shared, "c": shared, "d": sparse_array(1)}, sparse)
    check_bar(bars, "export", sparse, other)
    check_bar(bars, "verify", sparse)
    check_bar(bars, "verify", sparse, "--against", other)
    check_bar(bars, "verify", sparse, "--against", sparse)
    check_bar(bars, "diff", sparse, other)
    # of the names, two can be compared
    safetensors.numpy.save_file({"a": shared, "c": shared, "d": sparse_array(1)}, other)
    check_bar(bars, "verify", sparse, "--against", other, code=1)
    check_bar(bars, "diff", sparse, other, code=1)
    # what is compared and differs counts all the same
    tensors = read_back(other)
    tensors["c"] = ("F32", [64, 96], sparse_array(7).tobytes())
    other.write_bytes(craft_tensors(tensors))
    check_bar(bars, "verify", sparse, "--against", other, code=1)


def test_folders_of_shards(bars: list[tuple[int, list[int]]], tmp_path: Path) -> None:
    source = save_shards(tmp_path / "model", SHARDS)
    sparse = tmp_path / "model-sparsefmt"
    check_bar(bars, "convert", source)
    check_bar(bars, "verify", sparse, "--against", source)
    check_bar(bars, "diff", sparse, source)
    check_bar(bars, "export", sparse)


def test_folded_tensors(bars: list[tuple[int, list[int]]], tmp_path: Path) -> None:
    original = sparse_array(0)
    mask = (np.arange(original.size).reshape(original.shape) % 3 == 0).astype(np.float32)
    safetensors.numpy.save_file({"w_orig": original, "w_mask": mask, "b": original[0]}, tmp_path / "a.safetensors")
    check_bar(bars, "convert", tmp_path / "a.safetensors", "--fold")
    check_bar(bars, "verify", tmp_path / "a.sparsefmt", "--against", tmp_path / "a.safetensors", "--fold")


def test_bench_counts_groups(bars: list[tuple[int, list[int]]], tmp_path: Path) -> None:
    shared = sparse_array(0)
    tensors = {"a": shared, "b": shared, "c": sparse_array(0).T.copy(), "d": np.ones(3, np.float32)}
    sparsefmt.save_file(tensors, tmp_path / "a.sparsefmt")
    check_bar(bars, "bench", tmp_path / "a.sparsefmt", "--repeats", "3", "--batch", "1")


@pytest.mark.parametrize("codec", ["auto", "raw"])
def test_saving(codec: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shared = weights(rng, (700, 300), np.float32, 0.8)
    tensors = {
        "large": weights(rng, (4500, 1001), np.float32, 0.8),
        "a": shared,
        "b": shared,
        "laid out": sparsefmt.SparseTensor.from_dense(weights(rng, (300, 700), ml_dtypes.bfloat16, 0.9)),
        "scipy": scipy.sparse.random_array((90, 80), density=0.1, format="coo", dtype=np.float32, rng=rng),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.float64(1.5),
        "F4": np.zeros((8, 4), ml_dtypes.float4_e2m1fn),
    }
    calls: list[tuple[int, int]] = []
    sparsefmt.save_file(
        tensors, tmp_path / "a.sparsefmt", codec=codec, progress=lambda done, total: calls.append((done, total))
    )
    assert len(calls) == len(tensors)
    [total] = {total for _, total in calls}
    check_progress([after - before for before, after in pairwise([0, *(done for done, _ in calls)])], total)
