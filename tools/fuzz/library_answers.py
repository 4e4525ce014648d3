"""What the library says of a file, in the words of spec/c/check_reader.c."""

from __future__ import annotations

from typing import Any

import numpy as np
import xxhash

import sparsefmt
from sparsefmt.checkpoints.scales import scales_in
from sparsefmt.container.sources import Memory
from sparsefmt.dtypes import DType, as_bits, pack

INPUT_SCALE = 3 / 64
"""The static one of scaled products; the same in check_reader.c."""

MOST_IN_PRODUCTS = 131072
"""Rows and columns of the tensors that are multiplied; the same in check_reader.c."""


def element_of_x(cols: int) -> np.ndarray:
    return (((np.arange(cols) * 37) % 113 - 56) / 8).astype(np.float32)


def product_digest(weight: Any, rows: int, cols: int) -> int:
    """Digest of the product with a vector that is the same in check_reader.c; 0 if there is none."""
    if weight.dtype.kind == "c" or max(rows, cols) > MOST_IN_PRODUCTS:
        return 0
    if isinstance(weight, np.ndarray):
        weight = weight.reshape(rows, cols)
    result = sparsefmt.linear(element_of_x(cols), weight, threads=1).astype(np.float64)
    bits = result.view(np.uint64).copy()
    bits[np.isnan(result)] = 0x7FF8 << 48
    return xxhash.xxh64_intdigest(bits.tobytes())


def tokens(cols: int) -> np.ndarray:
    """A few tokens for scaled products: the one of other products, zeros, and one with NaN."""
    x = np.zeros((3, cols), np.float32)
    x[0] = x[2] = element_of_x(cols)
    x[2, cols // 2 : cols // 2 + 1] = np.nan
    return x


def scaled_digest(weight: Any, x: np.ndarray, how: dict[str, Any]) -> str:
    """Digest of the products of a scaled weight, or "refused"."""
    try:
        result = sparsefmt.linear(x, weight, threads=1, **how).astype(np.float64)
    except sparsefmt.SparsefmtError:
        return "refused"
    bits = result.view(np.uint64).copy()
    bits[np.isnan(result)] = 0x7FF8 << 48
    return f"{xxhash.xxh64_intdigest(bits.tobytes()):016x}"


def scaled_fields(file: sparsefmt.SparseFile, name: str, weight: Any, shape: tuple[int, int]) -> list[str]:
    """What comes of a tensor that the metadata names as a scaled weight; nothing if it does not."""
    try:
        scale = scales_in(file.metadata(), set(file)).get(name)
        if scale is None:
            return []
        scales = sparsefmt.Scales(file.get_tensor(scale), *shape)
    except sparsefmt.SparsefmtError:
        return ["refused"]
    if weight.dtype.kind == "c" or max(shape) > MOST_IN_PRODUCTS:
        return ["none"]
    if isinstance(weight, np.ndarray):
        weight = weight.reshape(shape)
    x = tokens(shape[1])
    eight_bits = {"scale": scales, "activations": "int8"}
    hows = ({"scale": scales}, eight_bits, {**eight_bits, "input_scale": INPUT_SCALE})
    return [scaled_digest(weight, x, how) for how in hows]


def dense_bytes(array: np.ndarray, dtype: DType) -> bytes:
    return pack(as_bits(array, dtype), dtype).tobytes() if dtype.packed else as_bits(array, dtype).tobytes()


def describe_tensor(file: sparsefmt.SparseFile, name: str) -> str:
    entry = file.reader.index.entry(name)
    dense = file.get_tensor(name)
    weight = file.load(name, entry.layout.name)
    rows, cols = entry.rows, entry.cols
    nnz = dense.size if entry.layout.name == "dense" else entry.nnz
    fields = [
        xxhash.xxh64_hexdigest(name.encode()),
        entry.dtype.name,
        str(list(entry.shape)).replace(" ", ""),
        entry.layout.name,
        str(nnz),
        xxhash.xxh64_hexdigest(dense_bytes(dense, entry.dtype)),
        f"{product_digest(weight, rows, cols):016x}",
        *scaled_fields(file, name, weight, (rows, cols)),
    ]
    return " ".join(fields) + "\n"


def ask_library(data: bytes) -> str:
    """What the library says of a file, as check_reader.c says it."""
    digest = xxhash.xxh64_hexdigest
    try:
        with sparsefmt.SparseFile(Memory(data), threads=1) as file:
            texts = sorted((key.encode(), value.encode()) for key, value in file.metadata().items())
            names = sorted(file, key=str.encode)
            lines = ["".join(f"{digest(key)}={digest(value)} " for key, value in texts) + "\n"]
            return "".join(lines + [describe_tensor(file, name) for name in names])
    except sparsefmt.SparsefmtError as error:
        return error.code
    except Exception as error:  # whatever else it raises is a fault of the library, and to be shown
        return f"raised {type(error).__name__}: {error}"
