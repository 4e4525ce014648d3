"""What notebooks show of a tensor."""

from __future__ import annotations

import base64
import re
import struct
import zlib

import numpy as np
import pytest

from sparsefmt import SparseTensor


def pixels_of(shown: str) -> np.ndarray:
    """The opacity of each pixel of the picture."""
    [uri] = re.findall(r"base64,([^\"]+)", shown)
    png = base64.b64decode(uri)
    width, height = struct.unpack(">II", png[16:24])
    (size,) = struct.unpack(">I", png[33:37])
    rows = np.frombuffer(zlib.decompress(png[41 : 41 + size]), np.uint8).reshape(height, 1 + 4 * width)
    return rows[:, 1:].reshape(height, width, 4)[..., 3]


@pytest.mark.parametrize("layout", ["dense", "bitmask", "permuted"])
def test_a_tensor_shows_where_it_is_not_zero(layout: str) -> None:
    array = np.zeros((128, 256), np.float32)
    array[:64, 128:] = 1
    shown = SparseTensor.from_dense(array, layout)._repr_html_()
    expected = np.zeros((64, 64), np.uint8)
    expected[:32, 32:] = 255
    assert np.array_equal(pixels_of(shown), expected)
    assert f"SparseTensor (128, 256) float32<br>75.0% zeros<br>layout {layout}<br>" in shown


@pytest.mark.parametrize("array", [np.zeros((0, 4)), np.zeros((3, 3), np.complex64)])
def test_tensors_without_a_picture(array: np.ndarray) -> None:
    shown = SparseTensor.from_dense(array)._repr_html_()
    assert "<img" not in shown
    assert str(array.shape) in shown


@pytest.mark.parametrize("array", [np.array(2.0), np.array([0.0, np.nan]), np.zeros((5, 5))])
def test_small_empty_and_odd_tensors_draw(array: np.ndarray) -> None:
    assert pixels_of(SparseTensor.from_dense(array)._repr_html_()).max(initial=0) == 255 * bool(array.any())
