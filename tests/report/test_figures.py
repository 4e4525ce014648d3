"""What is counted for charts and pictures is what numpy counts."""

from __future__ import annotations

import pickle

import ml_dtypes
import numpy as np
import pytest

from sparsefmt.adapters import rows_of
from sparsefmt.report.figures import Figures, look_at


def pruned(shape: tuple[int, ...], share: float, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(shape) < share, 0, rng.normal(0, 1, shape)).astype(ml_dtypes.bfloat16)


@pytest.mark.parametrize("shape", [(300, 200), (7, 1000), (3, 40, 64), (1, 5)])
@pytest.mark.parametrize("threads", [1, 3])
def test_rows_columns_and_magnitudes(shape: tuple[int, ...], threads: int) -> None:
    arrays = [pruned(shape, share, seed) for seed, share in enumerate((0.3, 0.8))]
    figures = Figures(rows_of(arrays[0]))
    for number, array in enumerate(arrays):
        looked = look_at(f"t{number}", rows_of(array), figures, threads)
        figures.add(looked)
        assert looked.pattern.zeros == np.count_nonzero(array == 0)
    rows = rows_of(arrays[0])
    matrices = np.stack([array.reshape(-1, rows.matrix_rows, rows.cols) for array in arrays]).astype(np.float32) != 0
    by_row, by_column = matrices.sum(-1).reshape(-1), matrices.sum(-2).reshape(-1)
    assert np.array_equal(figures.row_counts, np.bincount(by_row, minlength=rows.cols + 1))
    assert np.array_equal(figures.column_counts, np.bincount(by_column, minlength=rows.matrix_rows + 1))
    smallest = [np.abs(array[array != 0].astype(np.float64)).min() for array in arrays if (array == 0).any()]
    assert figures.thresholds == smallest
    assert figures.magnitudes is not None
    assert figures.magnitudes.histogram(np.array([0, np.inf]))[0] == matrices.sum()


def test_a_picture_for_each_pattern() -> None:
    rng = np.random.default_rng(2)
    halves = (rng.random((256, 64, 4)).argsort(2) < 2).reshape(256, 256).astype(np.float32)
    blocks = np.kron(rng.random((64, 64)) < 0.3, np.ones((4, 4))).astype(np.float32)
    anywhere = (rng.random((256, 256)) < 0.4).astype(np.float32)
    rows, full = np.repeat(rng.random((256, 1)) < 0.5, 256, 1).astype(np.float32), np.ones((256, 256), np.float32)
    figures = Figures(rows_of(halves))
    for name, mask in {"a": halves, "b": halves, "c": blocks, "d": anywhere, "e": rows, "f": full}.items():
        figures.add(look_at(name, rows_of(mask), figures))
    assert [picture.name for picture in figures.pictures.values()] == ["a", "c", "d"]
    assert list(figures.pictures) == ["2:4", "4x4 blocks", "unstructured"]
    picture = figures.pictures["4x4 blocks"]
    assert np.array_equal(picture.density, blocks)
    assert np.array_equal(picture.coarser().density, blocks.reshape(128, 2, 128, 2).mean((1, 3)))
    assert np.array_equal(picture.corner, blocks[:64, :64] != 0)


@pytest.mark.parametrize("parts", ["abcdef", "fb|dac|e", "e|f|d|c|b|a"])
def test_parts_of_a_group_are_merged(parts: str) -> None:
    """The pictures are the first ones in the order of the group, wherever and in whatever order tensors are read."""
    rng, places = np.random.default_rng(2), {name: place for place, name in enumerate("abcdef")}
    halves = (rng.random((64, 16, 4)).argsort(2) < 2).reshape(64, 64).astype(np.float32)
    zeros, full = np.zeros((64, 64), np.float32), np.ones((64, 64), np.float32)
    arrays = dict(zip("abcdef", [halves, full, halves * 2, rng.random((64, 64)) < 0.4, zeros, full * 3], strict=True))
    figures = Figures(rows_of(halves))
    for part in parts.split("|"):
        some = Figures(rows_of(halves))
        for name in sorted(part):
            some.add(look_at(name, rows_of(arrays[name].astype(np.float32)), some))
        figures.merge(pickle.loads(pickle.dumps(some)), places)
    assert [picture.name for picture in figures.pictures.values()] == ["a", "b", "d"]
    assert sorted(figures.thresholds) == [1, 1, 2]
    assert figures.row_counts.sum() == 6 * 64
    assert figures.magnitudes is not None
    assert figures.magnitudes.histogram(np.array([0, 1.5, 3.5])).sum() == sum(map(np.count_nonzero, arrays.values()))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_nothing_is_counted_of_nothing(shape: tuple[int, ...]) -> None:
    figures = Figures(rows_of(np.zeros(shape, np.float32)))
    looked = look_at("empty", rows_of(np.zeros(shape, np.float32)), figures)
    figures.add(looked)
    assert looked.pattern.kind == "empty"
    assert not figures.row_counts.any()
    assert not figures.pictures


def test_progress_adds_up_to_the_bytes() -> None:
    array, steps = pruned((3000, 700), 0.5), []
    look_at("a", rows_of(array), None, 1, steps.append)
    assert sum(steps) == array.nbytes
    assert len(steps) > 1
