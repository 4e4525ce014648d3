"""Weights as two tensors come back in the form that they had, checked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import in_form, same_bits, weights

import sparsefmt
from sparsefmt.layouts import FORMS
from sparsefmt.torch.weight_tensors import from_tensors, memory_of, to_tensors


def weight(form: str) -> sparsefmt.SparseTensor:
    array = weights(np.random.default_rng(2), (40, 900), np.float32, 0.99)
    array[3] = 0
    array[3, [0, 850]] = 1, 2  # three fillers between
    return in_form(array, form, 16)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_comes_back(form):
    w, x = weight(form), np.random.default_rng(3).standard_normal((5, 900)).astype(np.float32)
    tensors = to_tensors(w)
    back = from_tensors(memory_of(tensors.arrays), tensors.table, check=True)
    assert back.tiling.layout is w.tiling.layout
    assert (back.nnz, back.nbytes) == (w.nnz, w.nbytes)
    assert same_bits(back.todense(), w.todense())
    assert same_bits(sparsefmt.linear(x, back), sparsefmt.linear(x, w))


@pytest.mark.parametrize(("form", "width"), [("columns", 2), ("gaps", 1)])
def test_places_outside_the_matrix_are_refused(form, width):
    """They would be read by kernels."""
    w = weight(form)
    tensors = to_tensors(w)
    arrays = tensors.arrays.clone()
    begin = int(tensors.table[6])
    entries = int(w.operand().tiles[0]["row_counts"][0])
    for slot in range(entries):
        at = begin + 16 * width * slot
        arrays[at : at + width] = torch.full((width,), 255, dtype=torch.uint8)
    with pytest.raises(sparsefmt.FormatError) as caught:
        from_tensors(memory_of(arrays), tensors.table, check=True)
    assert caught.value.code in ("column-range", "column-order")
