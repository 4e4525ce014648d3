"""What has to hold for any bytes: checks of tools/fuzz/reader.py.

Any bytes give tensors, or a SparsefmtError. Tensors have the same bits in every layout, slices are those of the dense
tensor, products do not depend on the batch and are those of spec/python, the index is canonical, and what is saved
comes back. No input takes long, or much memory.
"""

from __future__ import annotations

import resource
import time
import traceback
from collections.abc import Iterator
from typing import Any

import numpy as np
import xxhash

import sparsefmt
from sparsefmt.container import index
from sparsefmt.container.envelope import MINOR
from sparsefmt.container.sources import Memory
from tools.fuzz.library_answers import element_of_x
from tools.fuzz.small_files import CODECS
from tools.taken_apart import split
from tools.vectors.spec_reader import spec_reader

MOST_IN_PRODUCTS = 1 << 16
"""Rows and columns of the tensors that are multiplied."""

MOST_IN_SLOW_PRODUCTS = 1 << 12
"""Elements of those whose product is compared with that of spec/python/reader.py, which takes milliseconds."""

MOST_GROWTH = 1 << 28
"""Bytes by which one input may make the process grow."""

MOST_SECONDS = 5
"""Of the processor for one input, once everything is compiled."""


class Wrong(Exception):
    """The library did something that it must not."""


def expect(holds: object, message: str) -> None:
    if not holds:
        raise Wrong(message)


def examine(data: bytes, max_decoded_bytes: int) -> str:
    """ "read", or the code of the error that the file gives. Raises whatever else comes of it, or Wrong."""
    try:
        with sparsefmt.SparseFile(Memory(data), threads=1, max_decoded_bytes=max_decoded_bytes) as file:
            file.expect_budget("auto")
            file.expect_budget("dense")
            found = {name: read_tensor(file, name) for name in file}
            texts = file.metadata()
    except sparsefmt.SparsefmtError as error:
        return error.code
    file = sparsefmt.SparseFile(Memory(data), threads=1)
    for name, in_layouts in found.items():
        check_slices(file, name, in_layouts)
        check_products(file, data, name, in_layouts)
    if file.reader.minor <= MINOR:
        stored, again = (index.content(encoded) for encoded in (split(data)[1], file.reader.index.encode()))
        expect(stored == again, "an index that is not canonical was read")
    check_saved(data, texts)
    return "read"


InLayouts = dict[str, Any]
"""A tensor by the layout that it was loaded with: an array for "dense", or a SparseTensor."""


def read_tensor(file: sparsefmt.SparseFile, name: str) -> InLayouts:
    """The tensor in all layouts. They all have the same bits, or all give the same error."""
    is_sparse = file.reader.index.entry(name).layout.sparse
    found: InLayouts = {}
    errors: list[sparsefmt.SparsefmtError] = []
    for layout in ("dense", "auto", "bitmask", "permuted") if is_sparse else ("dense",):
        try:
            found[layout] = file.load(name, layout)
        except sparsefmt.LimitError:
            raise
        except sparsefmt.SparsefmtError as error:
            errors.append(error)
    codes = {error.code for error in errors}
    expect(not errors or (len(codes) == 1 and not found), f"refused with {codes}, and read as {list(found)}")
    if errors:
        raise errors[0]
    for layout, tensor in found.items():
        if layout != "dense":
            expect_same(tensor.todense(), found["dense"], f"{name!r} as {layout}")
            expect(repr(tensor) and tensor.nnz == file.reader.index.entry(name).nnz, f"nnz of {name!r} as {layout}")
    return found


def expect_same(found: np.ndarray, expected: np.ndarray, what: str) -> None:
    same = found.dtype == expected.dtype and found.shape == expected.shape and found.tobytes() == expected.tobytes()
    expect(same, f"{what}: other bits")


def slices(shape: tuple[int, ...]) -> Iterator[Any]:
    """Some indices that are in range, none of which gives more than there is."""
    if not shape:
        yield ()
        return
    rows = shape[0]
    yield from (slice(rows // 3, rows - rows // 4), slice(None, None, -2))
    if rows > 1:
        yield from ([rows - 1, 0], -1)
    if len(shape) > 1:
        yield slice(None), slice(shape[1] // 2, None)


def check_slices(file: sparsefmt.SparseFile, name: str, in_layouts: InLayouts) -> None:
    in_file = file.get_slice(name)
    for key in slices(in_file.shape):
        expected = np.asarray(in_layouts["dense"][key])
        expect_same(np.asarray(in_file[key]), expected, f"slice {key} of {name!r}")
        for layout, tensor in in_layouts.items():
            if layout != "dense":
                expect_same(np.asarray(tensor[key]), expected, f"slice {key} of {name!r} as {layout}")


def check_products(file: sparsefmt.SparseFile, data: bytes, name: str, in_layouts: InLayouts) -> None:
    """With a vector, with a batch of which one is not finite, and with its transpose."""
    entry = file.reader.index.entry(name)
    if entry.dtype.name == "C64" or max(entry.rows, entry.cols) > MOST_IN_PRODUCTS:
        return
    x = element_of_x(entry.cols)
    batch = np.stack([x, x[::-1], x])
    batch[2, : entry.cols // 2] = np.inf
    for layout, tensor in in_layouts.items():
        what = f"product of {name!r} as {layout}"
        if isinstance(tensor, np.ndarray):
            tensor = tensor.reshape(entry.rows, entry.cols)
        products = sparsefmt.linear(batch, tensor, threads=1)
        for row, product in zip(batch, products, strict=True):
            expect_same(without_payloads(sparsefmt.linear(row, tensor, threads=1)), without_payloads(product), what)
        if layout != "dense":
            expect_same(without_payloads(tensor @ batch.T), without_payloads(products.T), what)
        if layout == entry.layout.name and entry.elements <= MOST_IN_SLOW_PRODUCTS:
            expected = spec_reader().multiply(data, name, x)
            expect_same(without_payloads(products[0]), without_payloads(expected), f"{what}, as in the specification")


def without_payloads(product: np.ndarray) -> np.ndarray:
    """All NaN made the same: which one a product gives is not promised."""
    return np.where(np.isnan(product), product.dtype.type(np.nan), product)


def check_saved(data: bytes, texts: dict[str, str]) -> None:
    """Saved with a codec that depends on the bytes, all tensors, their names and the metadata come back."""
    tensors, codec = sparsefmt.load(data, threads=1), CODECS[xxhash.xxh32_intdigest(data) % len(CODECS)]
    saved = sparsefmt.save(tensors, texts, codec=codec, threads=1)
    with sparsefmt.SparseFile(Memory(saved), threads=1) as file:
        expect(file.metadata() == texts, f"saved with {codec}, metadata changed")
    again = sparsefmt.load(saved, threads=1)
    expect(list(again) == list(tensors), f"saved with {codec}, names changed")
    for name, tensor in tensors.items():
        expect_same(dense(again[name]), dense(tensor), f"{name!r} saved with {codec}")
        tied = [other for other in tensors if tensors[other] is tensor]
        expect(tied == [other for other in again if again[other] is again[name]], f"ties of {name!r}, with {codec}")


def dense(tensor: Any) -> np.ndarray:
    return tensor.todense() if isinstance(tensor, sparsefmt.SparseTensor) else tensor


def judge(data: bytes, max_decoded_bytes: int) -> tuple[str, str]:
    """What became of a file, "finding" if what must not be; and for a finding, what it is."""
    for attempt in range(2):
        memory, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        try:
            outcome = examine(data, max_decoded_bytes)
        except Exception:
            return "finding", traceback.format_exc()
        grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory)
        if grown > MOST_GROWTH or outcome == "memory":
            return "finding", f"{outcome}, and took {grown:,} bytes more than any before"
        seconds = time.process_time() - started
        if seconds <= MOST_SECONDS:
            return outcome, ""
        # the first time, kernels may have been compiled
        if attempt:
            return "finding", f"{outcome}, after {seconds:.1f} seconds"
    raise AssertionError
