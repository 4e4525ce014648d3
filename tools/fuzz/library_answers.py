"""What the library says of a file, in the words of spec/c/check_reader.c."""

from __future__ import annotations

from typing import Any

import numpy as np
import xxhash

import sparsefmt
from sparsefmt.container.sources import Memory
from sparsefmt.dtypes import DType, as_bits, pack

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
