"""Elements that compressed-tensors packs in words: unpacked to one byte each, or refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quantized_checkpoints import packed
from tensor_groups import Arrays, Memory, dense

from sparsefmt import FormatError, SparsefmtError, UnsupportedError
from sparsefmt.checkpoints.folding import Group, foldable, folded
from sparsefmt.checkpoints.packed import PackedRows


def parts_of(elements: np.ndarray, num_bits: int, layer: str = "layer") -> Arrays:
    return {
        f"{layer}.weight_packed": packed(elements, num_bits),
        f"{layer}.weight_shape": np.array(elements.shape, np.int64),
    }


@settings(max_examples=60, deadline=None)
@given(
    num_bits=st.sampled_from([4, 8]),
    rows=st.integers(0, 9),
    cols=st.integers(5, 70),
    seed=st.integers(0, 1 << 32),
    data=st.data(),
)
def test_any_elements(num_bits: int, rows: int, cols: int, seed: int, data: st.DataObject) -> None:
    half = 1 << (num_bits - 1)
    elements = np.random.default_rng(seed).integers(-half, half, (rows, cols)).astype(np.int8)
    file = folded(Memory({**parts_of(elements, num_bits), "layer.weight_scale": np.ones(1)}))
    assert file.names == ["layer.weight", "layer.weight_scale"]
    matrix = file.rows_of("layer.weight")
    assert isinstance(matrix, PackedRows)
    assert matrix.nbits == num_bits or not rows
    assert (matrix.dtype.name, matrix.shape) == ("I8", elements.shape)
    begin = data.draw(st.integers(0, rows))
    end = data.draw(st.integers(begin, rows))
    part = matrix.bits(begin, end)
    assert part.flags.c_contiguous
    assert np.array_equal(part.view(np.int8), elements[begin:end])


def test_what_is_packed_lies_where_the_format_has_it() -> None:
    """The first element in the lowest bits, -8 as 0."""
    words = np.array([[0x76543210, 0xFEDCBA98 - (1 << 32)]], np.int32)
    file = folded(Memory({"w.weight_packed": words, "w.weight_shape": np.array([1, 16])}))
    assert dense(file, "w.weight").tolist() == [list(range(-8, 8))]


def test_names() -> None:
    assert foldable(["a.weight_packed", "a.weight_scale", "a.weight_shape"]) == [
        Group("a.weight", "packed", ("a.weight_packed", "a.weight_shape"))
    ]
    assert foldable(["a.weight_packed", "b.weight_shape", "packed", "shape"]) == []
    # what others pack in bytes is left alone
    bytes_of_four_bits = Memory({"a.weight_packed": np.ones((2, 8), np.uint8), "a.weight_scale": np.ones((2, 1))})
    assert folded(bytes_of_four_bits) is bytes_of_four_bits


class TestRefused:
    elements = np.random.default_rng(0).integers(-8, 8, (6, 32)).astype(np.int8)

    def check(self, match: str, kind: type = FormatError, **changes: np.ndarray | None) -> None:
        arrays = parts_of(self.elements, 4) | {f"layer.{name}": array for name, array in changes.items()}
        memory = Memory({name: array for name, array in arrays.items() if array is not None})
        with pytest.raises(kind, match=match) as caught:
            folded(memory).rows_of("layer.weight").bits(0, 1)
        assert "layer.weight" in str(caught.value)

    def test_parts_that_do_not_fit(self) -> None:
        self.check(r"words are I64 \[6, 4\]", weight_packed=np.zeros((6, 4), np.int64), weight_shape=np.array([6, 32]))
        self.check(r"words are I32 \[24\]", weight_packed=np.zeros(24, np.int32))
        self.check(r"words are \[6, 3\].* neither 4 nor 8 bits", weight_packed=np.zeros((6, 3), np.int32))
        self.check(r"words are \[6, 4\]", weight_shape=np.array([7, 32]))
        self.check(r"words are \[6, 4\]", weight_shape=np.array([6, 33]))
        self.check("shape is F64", weight_shape=np.ones(2))
        self.check(r"shape is I64 \[3\]", weight_shape=np.array([1, 6, 32]))
        self.check(r"shape says \[6, -32\]", weight_shape=np.array([6, -32]))
        self.check("over .* bits", SparsefmtError, weight_shape=np.array([1 << 40, 1 << 40]))

    def test_few_columns_that_may_be_of_either_width(self) -> None:
        self.check("4 or 8 bits", weight_packed=np.zeros((6, 1), np.int32), weight_shape=np.array([6, 4]))

    def test_halves(self) -> None:
        self.check("'layer.weight_packed' is not", weight_packed=None)
        self.check("'layer.weight_shape' is not", weight_shape=None)

    def test_what_is_more_than_elements_and_scales(self) -> None:
        zero_points = np.zeros((6, 1), np.int8)
        folded(Memory({**parts_of(self.elements, 4), "layer.weight_zero_point": zero_points}))
        zero_points = zero_points.copy()
        zero_points[3] = 1
        self.check("'layer.weight_zero_point' is not 0", UnsupportedError, weight_zero_point=zero_points)
        self.check("'layer.weight_g_idx' is there", UnsupportedError, weight_g_idx=np.zeros(32, np.int32))

    def test_names_that_are_taken(self) -> None:
        self.check("it is there beside", weight=self.elements)
