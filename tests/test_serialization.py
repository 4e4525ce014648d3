"""serialize and deserialize: what those of safetensors do, on .sparsefmt files."""

from __future__ import annotations

import io
import json

import ml_dtypes
import numpy as np
import pytest
import safetensors
from helpers import weights

import sparsefmt
from sparsefmt import FormatError, LimitError, SparsefmtError, UnsupportedError, deserialize, serialize, serialize_file
from sparsefmt.dtypes import DTYPES, pack

PRUNED = weights(np.random.default_rng(0), (40, 70), np.float32, 0.8, negative_zeros=True)


def spec(array: np.ndarray, dtype: str | None = None) -> safetensors.TensorSpec:
    shape = list(array.shape)
    return safetensors.TensorSpec(
        dtype=dtype or str(array.dtype), shape=shape, data_ptr=array.ctypes.data, data_len=array.nbytes
    )


def as_dict(array: np.ndarray, dtype: str) -> dict[str, object]:
    return {"dtype": dtype, "shape": array.shape, "data": array.tobytes()}


@pytest.mark.parametrize("make", [spec, lambda array: as_dict(array, "F32"), lambda array: as_dict(array, "float32")])
def test_the_file_is_that_of_save_file(make, tmp_path):
    other = np.arange(6, dtype=np.float32)
    expected = sparsefmt.save({"w": PRUNED, "x": other}, {"key": "text"})
    tensors = {"x": make(other), "w": make(PRUNED)}
    assert serialize(tensors, {"key": "text"}) == expected
    serialize_file(tensors, tmp_path / "t.sparsefmt", metadata={"key": "text"})
    assert (tmp_path / "t.sparsefmt").read_bytes() == expected
    serialize_file(tensors, sink := io.BytesIO(), {"key": "text"})
    assert sink.getvalue() == expected
    assert len(serialize(tensors, layout="dense", codec="raw")) > len(expected)


def test_it_gives_what_safetensors_gives():
    arrays = {
        "bool": np.array([True, False]),
        "matrix": PRUNED,
        "scalar": np.array(3, np.int64),
        "empty": np.zeros((0, 3), np.float32),
    }
    specs = {name: spec(array) for name, array in arrays.items()}
    ours, theirs = deserialize(serialize(specs)), safetensors.deserialize(safetensors.serialize(specs))
    assert dict(ours) == dict(theirs)
    assert all(type(fields["data"]) is bytearray for _, fields in ours)
    # what was given goes in again
    assert deserialize(serialize(dict(ours))) == ours
    assert dict(deserialize(io.BytesIO(serialize(specs)))) == dict(ours)


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype(name):
    dtype = DTYPES[name]
    bits = np.random.default_rng(0).integers(0, 2 if name == "BOOL" else 16, (3, 8)).astype(dtype.bits_dtype)
    data = pack(bits.reshape(-1), dtype) if dtype.packed else bits
    fields = {"dtype": name, "shape": [3, 8], "data": bytearray(data.tobytes())}
    assert deserialize(serialize({"t": fields})) == [("t", fields)]
    array = sparsefmt.load(serialize({"t": fields}), layout="dense")["t"]
    assert array.dtype == dtype.numpy
    assert array.tobytes() == bits.tobytes()


def test_names_of_dtypes_are_those_of_torch_too():
    array = np.ones((2, 2), ml_dtypes.bfloat16)
    assert deserialize(serialize({"t": as_dict(array, "bfloat16")}))[0][1]["dtype"] == "BF16"
    assert deserialize(serialize({"t": spec(array)})) == deserialize(serialize({"t": as_dict(array, "BF16")}))


def test_tied_names_have_bytes_of_their_own():
    data = sparsefmt.save({"a": PRUNED, "b": PRUNED})
    found = dict(deserialize(data))
    assert found["a"] == found["b"]
    assert found["a"]["data"] is not found["b"]["data"]
    assert found["a"]["data"] == PRUNED.tobytes()
    with pytest.raises(LimitError):
        deserialize(data, max_decoded_bytes=2 * PRUNED.nbytes - 1)
    assert dict(deserialize(data, max_decoded_bytes=4 * PRUNED.nbytes)) == found


def test_what_does_not_fit_is_refused():
    good = as_dict(PRUNED, "float32")
    with pytest.raises(
        SparsefmtError, match=r"'w'.*11,199 bytes of data; F32 of shape \(40, 70\) takes 11,200"
    ) as found:
        serialize({"w": {**good, "data": good["data"][:-1]}})
    assert found.value.code == "tensor-data"
    with pytest.raises(SparsefmtError, match=r"'w'.*a tensor needs data, shape too"):
        serialize({"w": {"dtype": "F32"}})
    with pytest.raises(UnsupportedError, match="dtype 'float7' is not one of BOOL") as found:
        serialize({"w": {**good, "dtype": "float7"}})
    assert found.value.code == "dtype-unknown"
    with pytest.raises(TypeError, match=r"a dict of dtype, shape and data, not ndarray: sparsefmt\.save takes arrays"):
        serialize({"w": PRUNED})
    with pytest.raises(FormatError):
        deserialize(json.dumps({}).encode())
