"""How files are damaged: mostly with checksums and offsets made right again, to reach the code behind them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import zstandard

from sparsefmt.dtypes import DTYPES
from tools.fuzz.small_files import CODECS
from tools.taken_apart import TakenApart, join, split

LAYOUTS = ("dense", "bitmask", "permuted")
ARRAYS = ["columns", "gaps", "mask", "negative_zeros", "row_counts", "row_permutation", "slice_offsets", "values"]

NUMBERS = [0, 1, 2, 3, 7, 8, 63, 64, 65, 255, 256, 1023, 1024, 65535, 65536, 2**20, 2**31 - 1, 2**31, 2**32, 2**36]
ODD_VALUES = [None, -1, 1.5, True, b"", "", [], {}, "w", [[]], {"a": 1}, msgpack.ExtType(1, b"")]
ODD_KEYS = ["", "a", "alias_of", "copy_of", "x" * 1025, "nul\0", "models", "\u00e9", "values"]
LARGE_NUMBERS = [2**36 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1]


def other_number(rng: np.random.Generator, value: int) -> int:
    kind = rng.integers(4)
    if kind == 0:
        return int(rng.choice(NUMBERS))
    if kind == 1:
        return LARGE_NUMBERS[rng.integers(len(LARGE_NUMBERS))]
    return max(0, value + int(rng.choice([-64, -8, -2, -1, 1, 2, 8, 64])))


def damage(rng: np.random.Generator, data: bytearray) -> None:
    """Change a few bits, bytes, words or lengths in place."""
    for _ in range(int(rng.choice([1, 1, 1, 2, 4]))):
        kind, at = rng.integers(6), int(rng.integers(max(1, len(data))))
        if not data or kind == 0:
            data[at:at] = rng.integers(0, 256, rng.integers(1, 9), dtype=np.uint8).tobytes()
        elif kind == 1:
            del data[at : at + int(rng.integers(1, 9))]
        elif kind == 2:
            data[at] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256))]))
        elif kind == 3 and len(data) >= 4:
            at = min(at // 4 * 4, len(data) - 4)
            (value,) = struct.unpack_from("<I", data, at)
            struct.pack_into("<I", data, at, other_number(rng, value) % 2**32)
        else:
            data[at] ^= 1 << int(rng.integers(8))


def mutate_bytes(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
    """Somewhere in the file, checksums left as they are."""
    changed = bytearray(data)
    damage(rng, changed)
    return bytes(changed)


def mutate_length(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
    return data[: rng.integers(len(data))]


def splice(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
    return data[: rng.integers(len(data))] + other[rng.integers(len(other)) :]


def mutate_index_bytes(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
    """Bytes of the index, with the right checksum."""
    before, index = split(data)
    damaged = bytearray(index)
    damage(rng, damaged)
    return join(before, bytes(damaged))


def mutate_preamble(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
    parts = TakenApart(data)
    parts.preamble[rng.integers(8, 16)] ^= 1 << int(rng.integers(8))
    return bytes(parts)


def mutate_chunk(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
    parts = TakenApart(data)
    if parts.chunks:
        stored, _ = parts.chunks[rng.integers(len(parts.chunks))]
        size = len(stored)
        damage(rng, stored)
        if rng.random() < 0.7:  # as long as it was
            stored[:] = stored[:size].ljust(size, b"\0")
    return bytes(parts)


def mutate_sizes(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
    parts = TakenApart(data)
    if parts.chunks:
        number = int(rng.integers(len(parts.chunks)))
        stored, raw = parts.chunks[number]
        parts.chunks[number] = (stored, len(stored) if rng.random() < 0.2 else other_number(rng, raw))
    return bytes(parts)


def mutate_chunk_order(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
    parts, others = TakenApart(data), TakenApart(other)
    if parts.chunks:
        number = int(rng.integers(len(parts.chunks)))
        pool = parts.chunks + others.chunks
        parts.chunks[number] = pool[rng.integers(len(pool))]
        if rng.random() < 0.2:
            parts.chunks.insert(number, pool[rng.integers(len(pool))])
    return bytes(parts)


def mutate_padding(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
    parts = TakenApart(data)
    parts.padding = int(rng.integers(1, 256))
    return bytes(parts)


def some_entry(rng: np.random.Generator, parts: TakenApart) -> dict[str, Any]:
    entries = [entry for entry in parts.index["tensors"].values() if "dtype" in entry]
    return entries[rng.integers(len(entries))]


def mutate_model(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
    parts = TakenApart(data)
    models = some_entry(rng, parts).get("models")
    if not models:
        return mutate_chunk(rng, data, other)
    array = str(rng.choice(list(models)))
    model = bytearray(models[array])
    damage(rng, model)
    models[array] = bytes(model)
    return bytes(parts)


def mutate_entry(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
    """A number or a name of an entry."""
    parts = TakenApart(data)
    entry = some_entry(rng, parts)
    key = str(
        rng.choice(["arrays", "dtype", "first_chunk", "layout", "nnz", "row_dims", "shape", "tile_rows", "dropped"])
    )
    if key == "arrays":
        entry["arrays"][str(rng.choice(ARRAYS))] = str(rng.choice(CODECS))
    elif key == "dtype":
        entry["dtype"] = str(rng.choice(list(DTYPES)))
    elif key == "layout":
        entry["layout"] = str(rng.choice(LAYOUTS))
    elif key == "shape" and entry["shape"] and rng.random() < 0.8:
        number = int(rng.integers(len(entry["shape"])))
        entry["shape"][number] = other_number(rng, entry["shape"][number])
    elif key == "shape":
        entry["shape"] = [int(rng.choice(NUMBERS)) for _ in range(int(rng.choice([0, 1, 2, 3, 32, 33])))]
    elif key == "dropped":
        entry["negative_zeros_dropped"] = other_number(rng, 1)
    else:
        entry[key] = other_number(rng, entry.get(key, 0))
    return bytes(parts)


def mutate_index(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
    """The structure of the index: keys, types, names."""
    parts = TakenApart(data)
    entry, index = some_entry(rng, parts), parts.index
    maps = [index, index["tensors"], index["metadata"], entry, entry["arrays"], entry.get("models", {})]
    chosen = maps[rng.integers(len(maps))]
    keys, kind = list(chosen), rng.integers(6)
    odd_value, odd_key = ODD_VALUES[rng.integers(len(ODD_VALUES))], str(rng.choice(ODD_KEYS))
    if kind == 0 and keys:
        del chosen[str(rng.choice(keys))]
    elif kind == 1 and keys:
        chosen[str(rng.choice(keys))] = odd_value
    elif kind == 2:
        chosen[odd_key] = odd_value
    elif kind == 3:
        parts.preamble[10] = 1
        chosen["unknown"] = odd_value
    elif kind == 4:
        key = str(rng.choice(["alias_of", "copy_of"]))
        index["tensors"]["alias"] = {key: str(rng.choice([*index["tensors"], "", "alias"]))}
    else:
        entry["models"] = {str(rng.choice(ARRAYS)): b"" for _ in range(int(rng.integers(3)))}
    return bytes(parts)


def leave(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
    return data


Mutation = Callable[[np.random.Generator, bytes, bytes], bytes]
MUTATIONS: list[Mutation] = [
    mutate_bytes,
    mutate_length,
    splice,
    mutate_index_bytes,
    mutate_index_bytes,
    mutate_preamble,
    *[mutate_chunk] * 8,
    *[mutate_model] * 4,
    mutate_sizes,
    mutate_chunk_order,
    mutate_padding,
    *[mutate_entry] * 3,
    mutate_index,
    leave,
]


NOTHING_TO_MUTATE = (
    *(struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError),
    *(zstandard.ZstdError, ZeroDivisionError, msgpack.UnpackException),
)
"""What a mutation raises that finds nothing to change, or a file that cannot be taken apart."""
