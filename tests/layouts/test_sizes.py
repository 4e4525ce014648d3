"""What arrays take in each layout is told before they are made, to the byte."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers import PRUNABLE, SPARSE, examples, in_form, layout_nbytes, same_bits, skewed
from hypothesis import example, given, settings
from hypothesis import strategies as st

import sparsefmt
from sparsefmt.adapters import rows_of
from sparsefmt.dtypes import DTYPES, DType
from sparsefmt.layouts import FORMS
from sparsefmt.layouts.permuted import padded


@settings(max_examples=examples(100), deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 2000), st.sampled_from(PRUNABLE))
@example(1, 1 << 17, 3, DTYPES["F32"])  # tiles of which the last is smaller
@example(1, 70_001, 40, DTYPES["I8"])
@example(1, 3, 70_000, DTYPES["F32"])  # columns of 32 bits
def test_sizes_are_exact(seed: int, rows: int, cols: int, dtype: DType):
    array = skewed(seed, (rows, cols), dtype)
    matrix = rows_of(array)
    survey = matrix.survey()
    filling = matrix.filling(survey)
    for layout in ("dense", *SPARSE):
        tensor = sparsefmt.SparseTensor.from_dense(array, layout)
        form = tensor.tiling.layout
        # tiles of `permuted` are higher where hardly an element is there
        expected = replace(filling, tile_rows=tensor.tiling.tile_rows)
        assert expected.nbytes(form) == layout_nbytes(tensor)
        if layout == "permuted":
            assert tensor.filling() == filling == expected
            assert form is filling.permuted
            for other in ("columns", "gaps"):
                made = in_form(array, other, filling.tile_rows)
                assert filling.nbytes(FORMS[other]) == layout_nbytes(made) >= layout_nbytes(tensor)
                assert made.filling() == filling
        if layout == "bitmask" and filling.tile_rows == tensor.tiling.tile_rows:
            assert tensor.filling() == filling


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize(("zeros", "form"), [(0.75, "gaps"), (0.9, "gaps"), (0.99, "gaps"), (0.997, "columns")])
def test_the_form_that_takes_fewer_bytes(dtype, zeros, form):
    """In memory, in files, loaded as another layout, saved again."""
    rng = np.random.default_rng(1)
    array = rng.standard_normal((512, 2048)).astype(np.float32)
    array[rng.random(array.shape) < zeros] = 0
    array = array.astype(DTYPES[dtype].numpy)
    made = sparsefmt.SparseTensor.from_dense(array)
    assert made.tiling.layout.form == form
    other = in_form(array, {"gaps": "columns", "columns": "gaps"}[form])
    assert made.nbytes < other.nbytes
    for tensor in (array, made, other, made.to_layout("bitmask")):
        loaded = sparsefmt.load(sparsefmt.save({"w": tensor}, layout="permuted", codec="raw"))["w"]
        assert (loaded.tiling.layout.form, loaded.nbytes) == (form, made.nbytes)
    coded = sparsefmt.load(sparsefmt.save({"w": array}))["w"]
    assert (coded.tiling.layout.form, coded.nbytes) == (form, made.nbytes)
    assert made.to_layout("bitmask").to_layout("permuted").tiling.layout.form == form
    # one that is loaded stays as it is
    assert other.to_layout("permuted") is other
    if zeros == 0.9:
        assert round(made.nbytes / array.nbytes, 2) == {"F32": 0.13, "BF16": 0.15}[dtype]


def test_rows_whose_zeros_are_in_no_order_and_in_one():
    """Where nobody has looked, zeros are taken to be anywhere; what is counted decides where somebody has."""
    array = np.zeros((512, 8192), np.float32)
    array[:, ::1100] = 1  # four fillers before each
    for layout in ("permuted", "bitmask"):
        w = sparsefmt.SparseTensor.from_dense(array, layout)
        assert w.to_layout("permuted").tiling.layout.form == "columns"
    array = np.zeros((512, 8192), np.float32)
    array[:, :8] = 1
    w = sparsefmt.SparseTensor.from_dense(array, "permuted")
    assert w.tiling.layout.form == "gaps"
    assert same_bits(
        sparsefmt.load(sparsefmt.save({"w": w}, layout="bitmask"), layout="permuted")["w"].todense(), array
    )


@given(st.lists(st.integers(0, 100), min_size=1, max_size=40))
def test_padding_is_what_slices_need(counts):
    descending = sorted(counts, reverse=True)
    assert padded(np.array(counts)) == sum(16 * descending[first] for first in range(0, len(counts), 16))
