"""Compressed matrices put together and taken apart: every bit is there, and nothing is copied where tiles fit."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

import sparsefmt
from sparsefmt import SparseTensor
from sparsefmt.torch.stacking import above_each_other, matrices_of, rows_between, stacked


def matrix(rows: int, cols: int, seed: int = 0, dtype: str = "f4") -> np.ndarray:
    rng = np.random.default_rng(seed)
    kept = rng.random((rows, cols)) < 0.3
    return np.where(kept, rng.standard_normal((rows, cols)), rng.choice([0.0, -0.0], (rows, cols))).astype(dtype)


def same_bits(tensor: SparseTensor, array: np.ndarray) -> bool:
    return tensor.shape == array.shape and tensor.todense().tobytes() == array.tobytes()


@pytest.mark.parametrize("layouts", [("bitmask",) * 3, ("permuted",) * 3, ("bitmask", "permuted", "dense")])
@pytest.mark.parametrize("rows", [48, 50])
def test_together_and_apart(rows: int, layouts: tuple[str, ...]) -> None:
    arrays = [matrix(rows, 80, seed) for seed in range(3)]
    tensors = [SparseTensor.from_dense(array, layout) for array, layout in zip(arrays, layouts, strict=True)]
    stack, tall = stacked(tensors), above_each_other(tensors)
    assert same_bits(stack, np.stack(arrays))
    assert same_bits(tall, np.concatenate(arrays))
    for whole in (stack, tall):
        assert all(same_bits(part, array) for part, array in zip(matrices_of(whole, 3), arrays, strict=True))
    for begin, end in ((0, 3 * rows), (16, 48), (7, 120), (rows, 2 * rows)):
        assert same_bits(rows_between(tall, begin, end), np.concatenate(arrays)[begin:end])
    x = np.random.default_rng(1).standard_normal((2, 80)).astype("f4")
    assert np.array_equal(sparsefmt.linear(x, stack[1]), sparsefmt.linear(x, tensors[1]))


def test_matrices_of_one_stack_are_put_together_without_a_copy() -> None:
    array = np.stack([matrix(96, 64, seed) for seed in range(4)])
    stack = SparseTensor.from_dense(array, "bitmask", row_dims=2)
    again = stacked(matrices_of(stack, 4))
    assert all(again.tile(n)["values"] is stack.tile(n)["values"] for n in range(stack.tiling.tiles))


def test_a_stack_whose_rows_are_whole_matrices_is_taken_apart() -> None:
    array = np.stack([matrix(32, 40, seed) for seed in range(3)])
    tensor = SparseTensor.from_dense(array, "bitmask", row_dims=1)
    assert all(same_bits(*pair) for pair in zip(matrices_of(tensor, 3), array, strict=True))


def test_signs_stay_in_their_file(tmp_path: Path) -> None:
    arrays = {f"{seed}": matrix(512, 1024, seed) for seed in range(2)}
    sparsefmt.save_file(arrays, tmp_path / "w.sparsefmt", layout="bitmask")
    tensors = list(sparsefmt.load_file(tmp_path / "w.sparsefmt").values())
    assert all(tensor.signs is not None for tensor in tensors)
    for whole in (stacked(tensors), above_each_other(tensors)):
        assert whole.signs is not None
        dense = whole.todense().reshape(-1, 1024)
        assert dense.tobytes() == np.concatenate(list(arrays.values())).tobytes()
        assert pickle.loads(pickle.dumps(whole)).todense().tobytes() == dense.tobytes()
        parts = matrices_of(whole, 2)
        assert all(same_bits(*pair) for pair in zip(parts, arrays.values(), strict=True))
    half = rows_between(tensors[0], 0, tensors[0].tiling.tile_rows)
    assert same_bits(half, arrays["0"][: half.shape[0]])


def test_what_does_not_fit_is_refused() -> None:
    one, other = SparseTensor.from_dense(matrix(4, 8)), SparseTensor.from_dense(matrix(4, 9))
    with pytest.raises(ValueError, match=r"one shape; these have \(4, 8\), \(4, 9\)"):
        stacked([one, other])
    with pytest.raises(ValueError, match="as many columns"):
        above_each_other([one, other])
    with pytest.raises(ValueError, match="several dtypes cannot be put together: F16, F32"):
        stacked([one, SparseTensor.from_dense(matrix(4, 8, dtype="f2"))])
    with pytest.raises(ValueError, match="is not a stack of 3 matrices"):
        matrices_of(one, 3)
    with pytest.raises(ValueError, match="these have none"):
        stacked([])
