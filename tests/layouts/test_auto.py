"""layout="auto" takes no more memory than dense arrays do, nor more of a raw file, and what else it means."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import PRUNABLE, examples, layout_nbytes, pretend, same_bits, skewed
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsefmt
from sparsefmt import isa
from sparsefmt.adapters import rows_of
from sparsefmt.dtypes import DTYPES, DType
from sparsefmt.layouts import auto, heights, sizes

WIDTHS_OF_TYPES = ["U8", "BF16", "F32", "F64"]


@st.composite
def pruned_tensors(draw: st.DrawFn) -> np.ndarray:
    """Few to some rows, of few to many columns, in 2 to 4 dimensions, evenly or unevenly pruned."""
    first = draw(st.integers(1, 40))
    rest = draw(
        st.one_of(
            st.tuples(st.integers(1, 5000)),
            st.tuples(st.integers(1, 60), st.integers(1, 60)),
            st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 40)),
        )
    )
    dtype = DTYPES[draw(st.sampled_from(WIDTHS_OF_TYPES))]
    return skewed(draw(st.integers(0, 2**32 - 1)), (first, *rest), dtype)


@settings(max_examples=examples(150), deadline=None)
@given(pruned_tensors(), st.sampled_from(["raw", "zstd", "rans", "auto"]))
def test_no_default_takes_more_than_dense(array, codec):
    check_takes_no_more_than_dense(array, codec)


@pytest.mark.parametrize("sparsity", [0.7, 0.8, 0.9, 0.95, 0.999])
@pytest.mark.parametrize(
    "shape", [(1, 4096), (2, 4096), (3, 4096), (7, 4096), (9, 4096), (3, 3, 128, 64), (1, 3, 3, 512), (4, 64, 64)]
)
def test_heads_convolutions_and_stacks(shape, sparsity):
    """What people have with few rows."""
    rng = np.random.default_rng(1)
    for numpy_dtype in (np.float32, np.float16):
        array = rng.standard_normal(shape).astype(numpy_dtype)
        array[rng.random(shape) < sparsity] = 0
        for codec in ("raw", "auto"):
            check_takes_no_more_than_dense(array, codec)


def check_takes_no_more_than_dense(array: np.ndarray, codec: str) -> None:
    tensor = sparsefmt.SparseTensor.from_dense(array)
    assert layout_nbytes(tensor) <= array.nbytes
    data = sparsefmt.save({"w": array}, codec=codec)
    (loaded,) = sparsefmt.load(data).values()
    assert layout_nbytes(loaded) <= array.nbytes
    # a tensor that is laid out already chooses anew
    (again,) = sparsefmt.load(sparsefmt.save({"w": tensor}, codec=codec)).values()
    assert layout_nbytes(again) <= array.nbytes
    for result in (tensor, loaded, again):
        assert same_bits(np.asarray(result), array)
    if codec == "raw":
        assert len(data) <= len(sparsefmt.save({"w": array}, layout="dense", codec="raw"))


def test_one_full_row_is_not_padded_to_a_slice():
    array = np.zeros((8, 4096), np.float32)
    array[3] = 1
    tensor = sparsefmt.SparseTensor.from_dense(array)
    assert (tensor.layout, tensor.nbytes) == ("bitmask", 4096 + 2 * 4 + 4 * 4096)
    (coded,) = sparsefmt.load(sparsefmt.save({"w": array})).values()
    assert (coded.layout, coded.nbytes) == ("bitmask", tensor.nbytes)
    (raw,) = sparsefmt.load(sparsefmt.save({"w": array}, codec="raw")).values()
    assert raw.layout == "bitmask"


def test_what_is_evenly_pruned_is_permuted_as_ever():
    rng = np.random.default_rng(1)
    array = rng.standard_normal((256, 256)).astype(np.float32)
    array[rng.random(array.shape) < 0.8] = 0
    assert sparsefmt.SparseTensor.from_dense(array).layout == "permuted"
    for codec in ("raw", "auto"):
        assert sparsefmt.load(sparsefmt.save({"w": array}, codec=codec))["w"].layout == "permuted"


@settings(max_examples=examples(100), deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 2000), st.sampled_from(PRUNABLE))
def test_permuted_is_computed_with_where_it_is_small_enough(seed: int, rows: int, cols: int, dtype: DType):
    matrix = rows_of(skewed(seed, (rows, cols), dtype))
    filling = matrix.filling(matrix.survey())
    best = auto.for_computing(filling)
    assert (best.name == "permuted") == (
        filling.nbytes(filling.permuted) <= auto.most_bytes_of(filling, filling.permuted)
    )


def chosen(dtype: str, rows: int, cols: int, nnz: int, purpose: auto.Purpose = "computing") -> str:
    """What "auto" means for a matrix whose rows have equally many nonzeros."""
    stored = sizes.Stored(nnz, nnz)
    filling = sizes.Filling(DTYPES[dtype], rows, cols, heights.sparse_tile_rows(rows, cols), nnz, stored)
    return auto.layout_for("auto", purpose, (rows, cols), filling).name


class TestAuto:
    def test_few_zeros_stay_dense(self):
        assert chosen("F32", 1000, 1000, 990_000) == "dense"
        assert chosen("BF16", 1000, 1000, 950_000, "coded") == "dense"

    def test_some_zeros_are_bitmask_and_most_are_permuted(self):
        assert chosen("BF16", 1000, 1000, 600_000) == "bitmask"
        assert chosen("F32", 1000, 1000, 100_000) == "permuted"
        assert chosen("F32", 1000, 1000, 100_000, "coded") == "bitmask"

    @pytest.mark.parametrize("instructions", isa.ISAS)
    @pytest.mark.parametrize("dtype", ["I8", "BF16", "F16", "F32", "F64"])
    def test_the_processor_counts_in_memory_only(self, instructions, dtype, monkeypatch):
        """Files are the same on each. What is pruned to 70 % may have a little less, and is `permuted` anywhere."""
        pretend(monkeypatch, ISA=instructions)
        size, cols = 1_000_000, 1000
        least = auto.PERMUTED_FROM[instructions][DTYPES[dtype].bits_dtype.itemsize]
        assert least < 0.6997
        assert chosen(dtype, 1000, cols, int(size * (1 - least)) - 1) == "permuted"
        assert chosen(dtype, 1000, cols, int(size * (1 - least)) + 2) == "bitmask"
        assert chosen(dtype, 1000, cols, int(size * 0.3003)) == "permuted"
        assert chosen(dtype, 1000, cols, size // 2, "raw") == "bitmask"
        assert chosen(dtype, 1000, cols, int(size * 0.3003), "raw") == "permuted"

    def test_small_matrices_take_the_faster_one(self, monkeypatch):
        """All of them stays in a cache, where fewer bytes bring no speed."""
        pretend(monkeypatch, ISA="avx2")
        assert chosen("BF16", 512, 512, 512 * 256) == "permuted"
        assert chosen("BF16", 520, 512, 520 * 256) == "bitmask"
        assert chosen("BF16", 512, 512, 512 * 256, "raw") == "bitmask"
        pretend(monkeypatch, ISA="avx512")
        assert chosen("F32", 512, 512, 512 * 256) == "permuted"
        assert chosen("F32", 520, 512, 520 * 256) == "bitmask"

    def test_narrow_matrices_take_the_one_that_is_never_slower_than_dense(self, monkeypatch):
        pretend(monkeypatch, ISA="avx2")
        for rows, cols in ((128, 8192), (511, 4096), (8192, 128), (4096, 511)):
            assert chosen("BF16", rows, cols, rows * cols // 2) == "permuted"
            assert chosen("BF16", rows, cols, rows * cols // 2, "raw") == "bitmask"
        assert chosen("BF16", 512, 4096, 512 * 2048) == "bitmask"
        pretend(monkeypatch, ISA="avx512")
        assert chosen("F16", 255, 4096, 255 * 2048) == "permuted"
        assert chosen("F16", 256, 4096, 256 * 2048) == "bitmask"
        assert chosen("F16", 8192, 128, 8192 * 64) == "bitmask"

    def test_narrow_rows_are_not_padded(self):
        assert chosen("F32", 1000, 1, 500) == "dense"
        assert chosen("I8", 1000, 9, 4000) == "bitmask"
        assert chosen("I8", 1000, 9, 8000) == "dense"
        assert chosen("F32", 1000, 1000, 4000) == "permuted"


class TestWithScales:
    def test_groups_of_columns_want_a_mask(self):
        assert auto.with_scales("permuted", 0.8, 1, None) == "permuted"
        assert auto.with_scales("permuted", 0.8, 4, None) == "bitmask"
        assert auto.with_scales("permuted", 0.97, 4, None) == "permuted"

    def test_so_do_eight_bits_where_an_instruction_multiplies_them(self, monkeypatch):
        pretend(monkeypatch, DOTS=True)
        assert auto.with_scales("permuted", 0.8, 1, "int8") == "bitmask"
        assert auto.with_scales("permuted", 0.95, 1, "int8") == "permuted"
        pretend(monkeypatch, DOTS=False)
        assert auto.with_scales("permuted", 0.8, 1, "int8") == "permuted"

    @pytest.mark.parametrize("layout", ["dense", "bitmask"])
    def test_other_layouts_stay(self, layout):
        assert auto.with_scales(layout, 0.8, 4, "int8") == layout
