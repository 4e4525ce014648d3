"""Two tensors compared: every count against numpy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from sparsefmt.adapters import rows_of
from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.dtypes import DTYPES
from sparsefmt.patterns import Change, change_of

NUMBERS = [name for name, dtype in DTYPES.items() if not dtype.packed and name != "F8_E8M0"]


def numbers(dtype: np.dtype, shape: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    found = np.where(rng.random(shape) < 0.4, rng.integers(0, 2, shape) * rng.normal(0, 3, shape), 0)
    if dtype.kind == "c":
        found = found + 1j * np.roll(found, 1)
    if dtype.kind in "ub":
        found = np.abs(found)
    return found.astype(dtype)


def naive(before: np.ndarray, after: np.ndarray) -> Change:
    wide = np.complex128 if "c" in (before.dtype.kind, after.dtype.kind) else np.float64
    one, two = before.astype(wide), after.astype(wide)
    with np.errstate(invalid="ignore"):
        distances = np.abs(one - two)
    same = (one == two) | (np.isnan(one) & np.isnan(two))
    finite = np.isfinite(distances)
    return Change(
        one.size,
        np.count_nonzero((one != 0) & (two != 0)),
        np.count_nonzero((one != 0) & (two == 0)),
        np.count_nonzero((one == 0) & (two != 0)),
        np.count_nonzero(same),
        np.count_nonzero(~same & ~finite),
        distances[finite].max(initial=0),
        distances[finite].sum(),
    )


def expect_equal(found: Change, expected: Change) -> None:
    assert (found.elements, found.kept, found.pruned, found.regrown) == (
        *(expected.elements, expected.kept, expected.pruned, expected.regrown),
    )
    assert (found.equal, found.not_finite, found.largest) == (expected.equal, expected.not_finite, expected.largest)
    assert found.total == pytest.approx(expected.total, rel=1e-12)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("shape", [(33, 70), (7,), (), (0, 5), (3, 40, 64)])
def test_all_dtypes_and_shapes(name: str, shape: tuple[int, ...]) -> None:
    dtype = DTYPES[name].numpy
    before, after = numbers(dtype, shape, 1), numbers(dtype, shape, 2)
    after = np.where(np.random.default_rng(3).random(shape) < 0.5, before, after).astype(dtype)
    expect_equal(change_of(rows_of(before), rows_of(after)), naive(before, after))


@pytest.mark.parametrize("names", [("BF16", "F32"), ("F8_E4M3", "I8"), ("F64", "F16"), ("I64", "F32"), ("BOOL", "F32")])
def test_tensors_of_two_dtypes(names: tuple[str, str]) -> None:
    before, after = (numbers(DTYPES[name].numpy, (50, 30), seed) for seed, name in enumerate(names))
    expect_equal(change_of(rows_of(before), rows_of(after)), naive(before, after))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_what_is_not_finite_is_counted_apart(dtype: np.dtype) -> None:
    before = np.array([np.nan, np.nan, np.inf, np.inf, np.inf, -0.0, 0.0, 1.0, -2.0], dtype)
    after = np.array([np.nan, 1.0, np.inf, -np.inf, 3.0, 0.0, np.nan, 1.5, 0.0], dtype)
    found = change_of(rows_of(before), rows_of(after))
    assert (found.equal, found.not_finite, found.largest, found.total) == (3, 4, 2.0, 2.5)
    assert (found.kept, found.pruned, found.regrown) == (6, 1, 1)
    assert found.mean == 2.5 / 5
    assert found.overlap == 6 / 8
    assert (found.zeros_before, found.zeros_after) == (2, 2)


@pytest.mark.parametrize(("dtype", "bits"), [(np.int64, 62), (np.uint64, 64)])
def test_large_integers_are_not_rounded(dtype: type, bits: int) -> None:
    before = np.array([2**bits - 1, 2**53, 0], dtype)
    after = np.array([2**bits - 2, 2**53 + 1, 0], dtype)
    found = change_of(rows_of(before), rows_of(after))
    assert (found.equal, found.largest, found.total) == (1, 1.0, 2.0)
    ends = np.iinfo(np.int64)
    found = change_of(rows_of(np.array([ends.min])), rows_of(np.array([ends.max])))
    assert found.largest == 2.0**64


def test_parts_add_up_whatever_the_threads() -> None:
    before, after = (numbers(np.dtype(np.float32), (3000, 700), seed) for seed in (1, 2))
    found = [change_of(rows_of(before), rows_of(after), threads=threads) for threads in (1, 2, 3)]
    assert found[0] == found[1] == found[2]
    expect_equal(found[0], naive(before, after))
    seen: list[int] = []
    change_of(rows_of(before), rows_of(after), progress=seen.append)
    assert sum(seen) == before.nbytes
    assert len(seen) > 1
    halves = [change_of(rows_of(before[part]), rows_of(after[part])) for part in (slice(1500), slice(1500, None))]
    expect_equal(halves[0] + halves[1], naive(before, after))


def test_nothing_has_changed_in_nothing() -> None:
    assert (Change().mean, Change().overlap) == (0.0, 1.0)
    with pytest.raises(ValueError, match="differ"):
        change_of(rows_of(np.zeros(3)), rows_of(np.zeros((3, 1))))


def test_stacks_and_files(tmp_path) -> None:
    """A stack of matrices in one file, and a tensor of three dimensions in another."""
    import sparsefmt

    before, after = (numbers(np.dtype(np.float32), (3, 64, 96), seed) for seed in (1, 2))
    sparsefmt.save_file({"w": before}, tmp_path / "a.sparsefmt", row_dims={"w": 2})
    sparsefmt.save_file({"w": before}, tmp_path / "c.sparsefmt", row_dims=1)
    safetensors.numpy.save_file({"w": after}, tmp_path / "b.safetensors")
    for name in ("a", "c"):
        with (
            Checkpoint(tmp_path / f"{name}.sparsefmt", ["sparsefmt"]) as ours,
            Checkpoint(tmp_path / "b.safetensors", ["safetensors"]) as theirs,
        ):
            expect_equal(change_of(ours.rows_of("w"), theirs.rows_of("w")), naive(before, after))
            expect_equal(change_of(theirs.rows_of("w"), ours.rows_of("w")), naive(after, before))
