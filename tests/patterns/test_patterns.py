"""Patterns of masks that were made to have them, of masks that nearly have them, and of masks at random."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import sparsefmt
from sparsefmt import SparseTensor
from sparsefmt.adapters import rows_of
from sparsefmt.patterns import Pattern, mask_of_rows, pattern_of

BF16 = np.dtype(ml_dtypes.bfloat16)


def values(mask: np.ndarray, dtype: np.dtype | type = np.float32) -> np.ndarray:
    """A tensor that is zero where the mask is."""
    rng = np.random.default_rng(1)
    return np.where(mask, rng.integers(1, 7, mask.shape), 0).astype(dtype)


def found(mask: np.ndarray, dtype: np.dtype | type = np.float32) -> Pattern:
    return pattern_of(mask_of_rows(rows_of(values(mask, dtype))))


def n_of_m(shape: tuple[int, int], n: int, m: int, seed: int = 2) -> np.ndarray:
    order = np.random.default_rng(seed).random((shape[0], shape[1] // m, m)).argsort(2).argsort(2)
    return (order < n).reshape(shape)


def blocks(shape: tuple[int, int], size: tuple[int, int], kept: float = 0.2, seed: int = 3) -> np.ndarray:
    count = shape[0] // size[0], shape[1] // size[1]
    return np.kron(np.random.default_rng(seed).random(count) < kept, np.ones(size)) > 0


@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 4), (3, 4), (4, 8), (3, 8), (1, 8)])
def test_n_of_m_is_found_in_both_directions(n, m):
    mask = n_of_m((64, 192), n, m)
    pattern = found(mask)
    assert (pattern.kind, pattern.sizes, pattern.along, pattern.share) == ("n:m", (n, m), "rows", 1.0)
    pattern = found(mask.T)
    assert (pattern.kind, pattern.sizes, pattern.along, pattern.share) == ("n:m", (n, m), "columns", 1.0)
    assert pattern.label == f"{n}:{m} down columns"


@pytest.mark.parametrize("size", [(4, 4), (1, 4), (8, 1), (1, 64), (64, 64), (16, 2), (32, 32)])
def test_the_largest_blocks_that_hold_are_found(size):
    pattern = found(blocks((512, 512), size))
    assert (pattern.kind, pattern.sizes, pattern.share) == ("blocks", size, 1.0)


@pytest.mark.parametrize("size", [(4, 4), (1, 8), (64, 64)])
def test_blocks_with_one_element_off_have_a_share(size):
    mask = blocks((512, 512), size)
    mask[3, 5] ^= True
    pattern = found(mask)
    assert (pattern.kind, pattern.sizes) == ("blocks", size)
    assert pattern.share == 1 - 1 / mask.size
    assert str(pattern) == f"{size[0]}x{size[1]} blocks, 99.99%"


def test_two_of_four_with_one_element_off_has_a_share():
    mask = n_of_m((64, 128), 2, 4)
    mask[7, 8:12] = True
    pattern = found(mask)
    assert (pattern.label, pattern.share) == ("2:4", 1 - 2 / mask.size)


@pytest.mark.parametrize("zeros", [0.5, 0.8, 0.95, 0.99])
@pytest.mark.parametrize("shape", [(256, 256), (64, 1024), (31, 77), (8, 8), (4, 16), (1, 4096), (4096, 1), (16, 4)])
def test_random_masks_have_no_pattern(zeros, shape):
    for seed in range(20):
        mask = np.random.default_rng(seed).random(shape) >= zeros
        if mask.any() and not mask.all():
            assert found(mask).kind == "unstructured", (seed, shape)


def test_random_halves_of_each_row_are_not_two_of_four():
    mask = np.random.default_rng(5).random((256, 256)).argsort(1) < 128
    assert found(mask).kind == "unstructured"


def test_a_mask_that_is_sparser_than_two_of_four_everywhere_is_not_called_so():
    """At 97 % zeros, hardly a group of four has more than two nonzeros, by chance."""
    mask = np.random.default_rng(6).random((512, 512)) < 0.03
    assert found(mask).kind == "unstructured"


def test_masks_of_which_a_part_is_two_of_four_are_not():
    mask = n_of_m((128, 128), 2, 4)
    mask[64:] = np.random.default_rng(7).random((64, 128)) < 0.5
    assert found(mask).kind == "unstructured"


def test_rows_columns_and_heads():
    rng = np.random.default_rng(8)
    mask = np.ones((96, 200), bool)
    mask[rng.random(96) < 0.4] = False
    pattern = found(mask)
    assert (pattern.kind, pattern.share, pattern.zero_rows) == ("rows", 1.0, 96 - int(mask.any(1).sum()))
    assert found(mask.T).kind == "columns"
    mask[:, rng.random(200) < 0.3] = False
    assert (found(mask).kind, found(mask).share) == ("rows and columns", 1.0)
    removed = np.flatnonzero(~mask.any(1))[2], np.flatnonzero(~mask.any(0))[2]
    mask[removed] = True
    assert (found(mask).kind, found(mask).share) == ("rows and columns", 1 - 1 / mask.size)


def test_heads_are_groups_of_rows():
    mask = np.ones((768, 300), bool)
    mask[64:128] = mask[256:320] = False
    pattern = found(mask)
    assert (pattern.kind, pattern.sizes, pattern.along, pattern.share) == ("heads", (64,), "columns", 1.0)
    assert pattern.label == "heads of 64 rows"
    assert found(mask.T).label == "heads of 64 columns"
    mask[100, 3] = True
    assert str(found(mask)) == "heads of 64 rows, 99.99%"


def test_triangles_and_bands():
    assert found(np.tri(64) > 0).kind == "lower triangular"
    assert found(np.tri(64, 64, -1).T > 0).kind == "upper triangular"
    distance = np.subtract.outer(np.arange(99), np.arange(99))
    pattern = found((distance <= 3) & (distance >= -1))
    assert (pattern.kind, pattern.sizes, pattern.share) == ("banded", (3, 1), 1.0)
    mask = np.tri(64) > 0
    mask[0, 60] = True
    assert (found(mask).kind, found(mask).share) == ("lower triangular", 1 - 1 / 4096)


def test_stacks_have_the_pattern_of_their_matrices():
    mask = np.stack([n_of_m((136, 132), 2, 4, seed).T for seed in range(5)])
    assert found(mask).label == "2:4 down columns"
    heads = np.ones((3, 192, 128), bool)
    heads[0, 64:128] = heads[2, :64] = False
    assert found(heads).label == "heads of 64 rows"
    triangles = np.stack([np.tri(160) > 0] * 3)
    assert found(triangles).kind == "lower triangular"


def test_tensors_without_a_pattern_to_find():
    assert found(np.ones((9, 9), bool)).kind == "dense"
    assert found(np.zeros((9, 9), bool)).kind == "zero"
    assert found(np.zeros((0, 9), bool)).kind == "empty"
    assert found(np.zeros((9, 0), bool)).kind == "empty"
    assert found(np.ones((), bool)).kind == "dense"
    assert found(np.zeros((1,), bool)).kind == "zero"
    for shape in ((2, 2), (1, 3), (3, 1), (2, 4), (4, 4), (5,)):
        mask = np.zeros(shape, bool)
        mask.reshape(-1)[0] = True
        assert found(mask).kind == "unstructured", shape


@pytest.mark.parametrize(
    "dtype",
    [
        *(np.int8, np.uint8, np.int16, np.uint32, np.int64, np.float16, np.float64, np.bool_, BF16),
        *(ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e5m2fnuz),
    ],
)
@pytest.mark.parametrize("cols", [60, 64, 200])
def test_every_width_of_elements(dtype, cols):
    mask = n_of_m((48, cols), 2, 4)
    pattern = found(mask, dtype)
    assert pattern.label == "2:4"
    assert (pattern.zeros, pattern.nans, pattern.infinities) == (48 * cols // 2, 0, 0)


@pytest.mark.parametrize(
    "dtype",
    [
        *(np.float16, np.float32, np.float64, BF16),
        *(ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float8_e4m3fnuz),
    ],
)
@pytest.mark.parametrize("cols", [7, 130])
def test_special_elements_are_counted_whatever_their_bits(dtype, cols):
    """All bit patterns there are, of types of up to 16 bits, as numpy sees them."""
    dtype = np.dtype(dtype)
    unsigned = np.dtype(f"u{dtype.itemsize}")
    rng = np.random.default_rng(9)
    bits = rng.integers(0, 1 << (8 * dtype.itemsize), (4096, cols), np.uint64 if dtype.itemsize == 8 else unsigned)
    if dtype.itemsize > 2:  # where chance would not come by
        array = bits.astype(unsigned).view(dtype)
        array[::7, 0], array[::11, -1], array[3::13] = np.inf, -np.nan, -0.0
    else:
        array = bits.view(dtype)
    pattern = pattern_of(mask_of_rows(rows_of(array)))
    with np.errstate(invalid="ignore"):
        wide = array.astype(np.float64)
    assert pattern.zeros == np.count_nonzero(wide == 0)
    assert pattern.negative_zeros == np.count_nonzero((wide == 0) & np.signbit(wide))
    assert pattern.nans == np.count_nonzero(np.isnan(wide)) > 0
    assert pattern.infinities == np.count_nonzero(np.isinf(wide))


@pytest.mark.parametrize("layout", ["dense", "bitmask", "permuted"])
def test_sparse_tensors_have_patterns(layout):
    array = values(blocks((320, 512), (4, 4)), BF16)
    array[np.asarray(array) == 0] = -0.0
    pattern = SparseTensor.from_dense(array, layout).pattern()
    assert pattern.label == "4x4 blocks"
    assert pattern.negative_zeros == pattern.zeros == np.count_nonzero(array.astype(np.float32) == 0)


def test_files_bound_what_a_pattern_takes(tmp_path):
    path = tmp_path / "w.sparsefmt"
    sparsefmt.save_file({"w": values(blocks((1024, 4096), (64, 64), 0.01))}, path, layout="permuted")
    with sparsefmt.open_file(path, max_decoded_bytes=500_000) as file, pytest.raises(sparsefmt.LimitError):
        file["w"].pattern()


def test_what_has_no_zeros_to_prune_is_refused():
    with pytest.raises(sparsefmt.UnsupportedError, match="C64"):
        mask_of_rows(rows_of(np.zeros((4, 4), np.complex64)))


@pytest.mark.parametrize("shape", [(1, 1), (70, 130), (128, 64), (3, 1000)])
def test_counts_and_densities_are_those_of_numpy(shape):
    mask = np.random.default_rng(10).random(shape) < 0.3
    found = mask_of_rows(rows_of(values(mask)))
    assert found.row_counts().tolist() == mask.sum(1).tolist()
    assert found.column_counts().tolist() == [mask.sum(0).tolist()]
    picture = found.density(16, 32)
    down, across = (min(size, most) for size, most in zip(shape, (16, 32), strict=True))
    rows, cols = np.arange(shape[0]) * down // shape[0], np.arange(shape[1]) * across // shape[1]
    for box in np.ndindex(picture.shape):
        assert picture[box] == mask[np.ix_(rows == box[0], cols == box[1])].mean()


def test_a_pattern_that_does_not_hold_for_all_is_never_rounded_up():
    assert str(Pattern("rows", share=0.99999999)) == "rows, 99.99%"
    assert Pattern("rows").as_object()["label"] == "rows"


LARGE = (1024, 4096)
"""A mask of which a part is looked at first."""


@pytest.mark.parametrize("zeros", [0.5, 0.97, 0.999, 0.99999])
def test_large_random_masks_have_no_pattern(zeros):
    assert found(np.random.default_rng(11).random(LARGE) >= zeros).kind == "unstructured"


@pytest.mark.parametrize("size", [(4, 4), (1, 16), (64, 64), (2, 1)])
@pytest.mark.parametrize("kept", [0.1, 0.002])
def test_large_masks_of_blocks(size, kept):
    mask = blocks(LARGE, size, kept)
    assert (found(mask).kind, found(mask).sizes, found(mask).share) == ("blocks", size, 1.0)
    off = np.random.default_rng(12).random(LARGE) < 0.02 * kept
    assert (found(mask ^ off).kind, found(mask ^ off).sizes) == ("blocks", size)
    assert 1 - off.mean() <= found(mask ^ off).share < 1  # two in one block may be right again


def test_blocks_of_which_the_first_rows_have_none():
    """What is looked at first is nothing but zeros."""
    mask = blocks(LARGE, (8, 8))
    mask[:512] = False
    assert (found(mask).kind, found(mask).sizes) == ("blocks", (8, 8))


def test_the_pattern_that_says_most_wins():
    """A triangle, heads and a band are also blocks, of which it would take far longer to say which are zero."""
    assert found(np.tri(1024, 2048) > 0).kind == "lower triangular"
    heads = np.ones(LARGE, bool)
    heads[64:128] = heads[512:640] = False
    assert found(heads).label == "heads of 64 rows"
    distance = np.subtract.outer(np.arange(1024), np.arange(1024))
    assert found(np.abs(distance) <= 100).label == "banded, -100 to +100"
    assert found(distance == 0).label == "diagonal"
