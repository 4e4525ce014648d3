"""A complete, strictly validating reader of sparsefmt 1.0 files, for study. One file for each section of SPEC.md:

    container.py   2        preamble, chunk table, trailer, index: what is checked when a file is opened
    dtypes.py      3        element types
    layouts.py     4        the arrays of a tile
    frames.py      5.2      frames of zstd, of chunks and of the index
    reader.py      5        reading tensors; chunks of the codecs `raw` and `zstd`. Start here
    rans.py        5.3      codec `rans`
    products.py    6        products, to the bit
    scaled.py      6.1      products of scaled weights, with activations in eight bits (6.2), and what is refused (6.3)
    faults.py      7, 8     how a file is refused; limits

It makes every check of section 7. It is made to be read, not to be fast. Section 10 of SPEC.md has a shorter reader,
which leaves most checks and the products out.

    python reader.py FILE           lists the tensors
    python reader.py FILE TENSOR    writes the dense bytes of one tensor to standard output
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash

sys.path.insert(0, str(Path(__file__).parent))  # if this file was loaded by its path
import products
import rans
import scaled
from container import Container, Entry, Record, is_derived, open_container
from dtypes import numbers
from faults import Fault, require
from frames import decode_frame
from layouts import (
    Arrays,
    Tile,
    array_width,
    ceil_div,
    check_tile,
    dense_bytes,
    offsets_of_slices,
    positions_of_values,
    read_mask,
    write_mask,
)

# ------------------------------------------------------------------------------------------------------------- A file


@dataclass(frozen=True)
class Tensor:
    """A named tensor as it is read."""

    dtype: str
    shape: tuple[int, ...]
    layout: str
    data: bytes  # all elements in row-major order; sub-byte types packed


def read(data: bytes) -> dict[str, Tensor]:
    """All tensors of a file, by name."""
    container = open_container(data)
    tensors = {entry.name: read_tensor(container, entry) for entry in container.names.values()}
    return {name: tensors[entry.name] for name, entry in container.names.items()}


def metadata(data: bytes) -> dict[str, str]:
    return open_container(data).metadata


def multiply(data: bytes, name: str, x: np.ndarray) -> np.ndarray:
    """y = W x for the tensor of that name and one vector x; of the type A of section 6."""
    container = open_container(data)
    return multiply_tensor(container, container.names[name], x)


# ----------------------------------------------------------------------------------------------------------- A tensor


def read_tensor(container: Container, entry: Entry) -> Tensor:
    dense = b"".join(dense_bytes(entry.dtype, tile) for tile in read_tiles(container, entry))
    return Tensor(entry.dtype.name, entry.shape, entry.layout, dense)


def multiply_tensor(container: Container, entry: Entry, x: np.ndarray) -> np.ndarray:
    if x.shape != (entry.cols,):
        raise ValueError(f"no product of {list(entry.shape)} and {list(x.shape)}")
    x = x.astype(products.type_of_sums(entry.dtype, x.dtype))
    tiles = read_tiles(container, entry)
    y = [products.multiply_tile(entry.dtype, tile, x) for tile in tiles]
    return np.concatenate(y) if y else np.zeros(entry.rows, x.dtype)


class Product(NamedTuple):
    """A product of a scaled weight: names of tensors of its file, but for activations, "int8", and result, a dtype."""

    weight: str
    x: str  # several x, one in each row
    bias: str | None = None
    activations: str | None = None
    input_scale: str | None = None
    result: str | None = None


def multiply_scaled(container: Container, product: Product) -> bytes:
    """Sections 6.1 and 6.2: the elements of y for each row of x, of the result type or, without one, of type A."""
    names = container.names
    weight, tokens, scales = (names[product.weight], names[product.x], names[scaled.pairs(container)[product.weight]])
    groups = scaled.groups_of(weight, scales)
    integers = product.activations == "int8"
    require(not integers or weight.dtype.name == "I8", "activations-dtype", f"{weight.name!r}: {weight.dtype.name}")
    x_in_double = tokens.dtype.name in products.SUMMED_IN_DOUBLE and not integers
    a = products.type_of_sums(weight.dtype, np.dtype(np.float64 if x_in_double else np.float32))
    with np.errstate(all="ignore"):
        scale = scaled.by_group(matrix(container, scales, a).reshape(-1), weight.rows, groups)
        q, x = matrix(container, weight, a), matrix(container, tokens, a)
        if integers:
            u = static_scale(container, product.input_scale) if product.input_scale else None
            sums = [scaled.multiply_integers(q.astype(np.int64), scale, token, u) for token in x]
        else:
            sums = [scaled.multiply_floats(q, scale, token) for token in x]
        y = np.array(sums).reshape(len(x), weight.rows)
        if product.bias:
            y = y + matrix(container, names[product.bias], a).reshape(-1)
        return scaled.bytes_of(y, product.result or ("F64" if a == np.float64 else "F32"))


def static_scale(container: Container, name: str) -> np.float32:
    value = matrix(container, container.names[name], np.dtype(np.float32))
    right = value.size == 1 and bool(0 < value.reshape(-1)[0] < np.inf)
    require(right, "input-scale", f"{name!r} is not one number, or one that no input scale is")
    return value.reshape(-1)[0]


def matrix(container: Container, entry: Entry, a: np.dtype) -> np.ndarray:
    """The numbers of a tensor, in its matrix view."""
    elements = np.frombuffer(read_tensor(container, entry).data, f"<u{entry.dtype.width}")
    return numbers(entry.dtype, elements, a)[: entry.rows * entry.cols].reshape(entry.rows, entry.cols)


def read_tiles(container: Container, entry: Entry) -> Iterator[Tile]:
    """The tiles of a tensor, with the checks that section 7 marks *tensor*."""
    models: Models = {}
    nnz, negative_zeros = 0, False
    for number in range(entry.tiles):
        r, arrays = entry.rows_of(number), Arrays()
        for array, record in container.chunks(entry, number):
            chunk = read_chunk(container.data, record)
            if record.stored < record.raw:  # never if the codec is `raw`
                chunk = decode(chunk, record.raw, array, Before(entry, r, arrays, models))
            arrays[array] = np.frombuffer(chunk, f"<u{array_width(array, entry.dtype, entry.cols)}")
        tile = check_tile(entry.layout, entry.dtype, arrays, (r, entry.cols))
        nnz += len(tile.stored[2]) if tile.stored else 0
        negative_zeros |= "negative_zeros" in arrays and bool(arrays["negative_zeros"].any())
        yield tile
    require(entry.nnz in (None, nnz), "nnz", f"{entry.name!r}: {entry.nnz}, but {nnz} are stored")
    useful = "negative_zeros" not in entry.arrays or negative_zeros
    require(useful, "negative-zeros-empty", f"{entry.name!r}")


# ------------------------------------------------------------------------------------------------------------ A chunk


def read_chunk(data: bytes, record: Record) -> bytes:
    """The stored bytes."""
    end = record.offset + record.stored
    chunk = data[record.offset : end]
    require(xxhash.xxh64_intdigest(chunk) == record.checksum, "chunk-checksum", f"chunk at {record.offset} changed")
    require(not any(data[end : end + record.padding]), "padding-not-zero", f"behind the chunk at {record.offset}")
    return chunk


Models = dict[str, rans.ElementModel | rans.PositionModel]  # those of a tensor that a chunk has needed so far


class Before(NamedTuple):
    """What is known when an array of a tile of r rows is decoded."""

    entry: Entry
    r: int
    arrays: Arrays  # those before it
    models: Models


def decode(chunk: bytes, raw: int, array: str, before: Before) -> bytes:
    """An array of `raw` bytes."""
    entry, r, arrays, _ = before
    width = array_width(array, entry.dtype, entry.cols)
    if entry.arrays[array] == "zstd":
        return decode_rows(chunk, r, entry.cols) if array == "mask" else decode_planes(chunk, raw, width)
    if is_derived(entry, array):  # 5.3.7
        return offsets_of_slices(read_mask(arrays["mask"], r, entry.cols)).astype("<u4").tobytes()
    return decode_rans(chunk, raw // width, array, before)


# ---------------------------------------------------------------------------------------------------------- 5.2 zstd


def decode_planes(chunk: bytes, raw: int, width: int) -> bytes:
    """An array of elements of so many bytes."""
    return np.frombuffer(decode_frame(chunk, raw), np.uint8).reshape(width, -1).T.tobytes()


def decode_rows(chunk: bytes, r: int, c: int) -> bytes:
    """A mask."""
    rows = np.frombuffer(decode_frame(chunk, r * ceil_div(c, 8)), np.uint8).reshape(r, -1)
    bits = np.unpackbits(rows, axis=1, bitorder="little")
    require(not bits[:, c:].any(), "zstd-corrupt", f"mask bit beyond column {c - 1}")
    return write_mask(bits[:, :c])


# ---------------------------------------------------------------------------------------------------------- 5.3 rans


def decode_rans(chunk: bytes, m: int, array: str, before: Before) -> bytes:
    """An array of m elements; faults of the model, then of the chunk."""
    entry, r, arrays, models = before
    code = "rans-model"
    try:
        if array not in models:
            models[array] = read_model(entry, array)
        model, code = models[array], "rans-stream"
        if isinstance(model, rans.PositionModel):
            return write_mask(model.decode(chunk, r))
        return model.decode(chunk, m, r, positions(entry, r, m, arrays) if model.has_classes else None)
    except rans.Invalid as error:
        raise Fault(code, f"{entry.name!r}, `{array}`: {error}") from None


def read_model(entry: Entry, array: str) -> rans.ElementModel | rans.PositionModel:
    if array == "mask":
        return rans.PositionModel(entry.models[array], entry.cols)
    in_columns = array == "values" and entry.layout != "permuted" and entry.dtype.bits >= 8
    element_bits = 8 * array_width(array, entry.dtype, entry.cols)
    return rans.ElementModel(entry.models[array], element_bits, entry.cols if in_columns else None)


def positions(entry: Entry, r: int, m: int, arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """5.3.5: row and column of each of m `values`."""
    if entry.layout == "dense":
        return np.divmod(np.arange(m), entry.cols)
    rows, columns = positions_of_values(read_mask(arrays["mask"], r, entry.cols))
    require(len(rows) == m, "slice-offsets", f"{m} values of {len(rows)} positions")
    return rows, columns


# -------------------------------------------------------------------------------------------------------- The program


def main(arguments: list[str]) -> int:
    if len(arguments) not in (1, 2):
        print("usage: reader.py FILE [TENSOR]", file=sys.stderr)
        return 2
    try:
        container = open_container(Path(arguments[0]).read_bytes())
        if len(arguments) == 1:
            for name, entry in container.names.items():
                alias = f", alias of {entry.name!r}" if name != entry.name else ""
                print(f"{name!r}: {entry.dtype.name} {list(entry.shape)} {entry.layout}{alias}")
        elif arguments[1] in container.names:
            sys.stdout.buffer.write(read_tensor(container, container.names[arguments[1]]).data)
        else:
            raise ValueError(f"no tensor {arguments[1]!r}")
    except (OSError, ValueError) as error:
        print(f"{arguments[0]}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
