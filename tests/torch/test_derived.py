"""Weights that are made of other weights: transposed, to the bit."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_layers import LAYOUTS, sparse_tensor

from sparsefmt.dtypes import DTYPES, as_bits
from sparsefmt.torch.derived import transposed


@settings(max_examples=30, deadline=None)
@given(
    rows=st.sampled_from([1, 7, 64, 300]),
    cols=st.sampled_from([1, 9, 65, 200]),
    dtype=st.sampled_from(["F32", "BF16", "F64", "I8"]),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 50),
)
def test_transposed_to_the_bit(rows, cols, dtype, layout, seed):
    tensor = sparse_tensor(rows, cols, dtype, layout, 0.7, seed)
    flipped = transposed(tensor, layout)
    assert flipped.layout == layout
    assert np.array_equal(
        as_bits(flipped.todense(), DTYPES[dtype]), as_bits(np.ascontiguousarray(tensor.todense().T), DTYPES[dtype])
    )


def test_transposed_in_several_blocks():
    tensor = sparse_tensor(3000, 3100, sparsity=0.95)
    assert np.array_equal(transposed(tensor, "bitmask").todense(), tensor.todense().T)
