"""Small files to start from: random ones of all layouts, codecs and dtypes, and single tensors of spec/vectors."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import xxhash

import sparsefmt
from sparsefmt.dtypes import DTYPES, DType
from sparsefmt.layouts import FORMS
from tools import ROOT, forms
from tools.taken_apart import TakenApart, chunks_of

CODECS = ("raw", "zstd", "rans")

MOST_IN_CORPUS = 1 << 14
"""Bytes of a random file to start from."""


def random_tensor(rng: np.random.Generator, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    """Half of the time all bit patterns, half of the time few; some share of zeros, some of them negative."""
    bits = rng.integers(0, 1 << min(dtype.nbits, 63), shape, dtype=np.uint64)
    if rng.random() < 0.5:
        bits = rng.choice(bits.reshape(-1)[:4], shape) if bits.size else bits
    if dtype.name == "BOOL":
        bits %= np.uint64(2)
    zeros = rng.random(shape) < rng.choice([0, 0.3, 0.7, 0.95, 0.995, 1])
    bits[zeros] = 0
    if rng.random() < 0.5:
        bits[zeros & (rng.random(shape) < 0.5)] = dtype.negative_zero
    return bits.astype(dtype.bits_dtype).view(dtype.numpy).reshape(shape)


def random_shape(rng: np.random.Generator) -> tuple[int, ...]:
    kind = rng.integers(8)
    if kind == 0:
        return tuple(int(d) for d in rng.integers(0, 5, rng.integers(0, 4)))
    if kind == 1 and rng.random() < 0.25:  # they take as long as a hundred others
        return (int(rng.integers(1, 4)), int(rng.integers(65500, 65600)))
    if kind == 2:  # gaps of 8 bits do not always reach
        return (int(rng.integers(1, 20)), int(rng.integers(257, 1600)))
    return (int(rng.integers(1, 40)), int(rng.choice([1, 3, 8, 16, 63, 64, 65, 100, 130])))


def random_scales(rng: np.random.Generator, rows: int, cols: int) -> np.ndarray:
    """Scales of a matrix: of rows or of groups of columns. A few fit it not, or are no scales."""
    groups = int(rng.choice([number for number in (1, 2, 3, 4, 8, 16) if cols % number == 0 or rng.random() < 0.02]))
    shape = [(), (1,), (rows,), (rows, 1), (rows, groups), (rows, groups)][int(rng.integers(6))]
    scale = rng.random(shape) * 10.0 ** rng.integers(-3, 3)
    if rng.random() < 0.1:
        scale = np.where(rng.random(shape) < 0.3, rng.choice([0.0, -0.0, np.nan, np.inf, -1.0, 1e-42]), scale)
    dtype = rng.choice([np.float32, np.float16, ml_dtypes.bfloat16, np.float64], p=[0.6, 0.2, 0.17, 0.03])
    with np.errstate(over="ignore"):
        return np.asarray(scale).astype(dtype)


def add_scaled(rng: np.random.Generator, tensors: dict[str, np.ndarray]) -> dict[str, str]:
    """Add a weight and its scales to the tensors of a file. What its metadata says of them."""
    other = str(rng.choice(list(DTYPES)))
    dtype = DTYPES[str(rng.choice(["I8", "I8", "I8", "U8", "F8_E4M3", "F8_E5M2", "BF16", other]))]
    rows, cols = int(rng.integers(1, 40)), int(rng.choice([1, 3, 8, 16, 48, 63, 64, 96, 128, 300]))
    tensors["w.weight"] = random_tensor(rng, dtype, (rows, cols))
    tensors["w.weight_scale"] = random_scales(rng, rows, cols)
    pairs = {"w.weight": "w.weight_scale"}
    if rng.random() < 0.2:
        pairs["t0"] = str(rng.choice(["w.weight_scale", "t0", "none"], p=[0.6, 0.3, 0.1]))
    return {"sparsefmt.scales": json.dumps(pairs)}


def random_file(rng: np.random.Generator, codecs: Sequence[str] = CODECS) -> bytes:
    """A file of one to three small tensors, of one of the codecs."""
    tensors = {}
    for number in range(int(rng.integers(1, 4))):
        dtype = DTYPES[str(rng.choice(list(DTYPES)))]
        tensors[f"t{number}"] = random_tensor(rng, dtype, random_shape(rng))
    if rng.random() < 0.1:
        tensors["tied"] = tensors["t0"]
    if rng.random() < 0.1:
        tensors["copy"] = tensors["t0"].copy()
    metadata, codec = {"by": "fuzz"} if rng.random() < 0.2 else {}, str(rng.choice(codecs))
    if rng.random() < 0.4:
        metadata |= add_scaled(rng, tensors)
    row_dims = int(rng.choice([1, 2]))
    if all(DTYPES_OF[array.dtype].prunable for array in tensors.values()):
        form = str(rng.choice(list(FORMS)))
        return forms.save(tensors, metadata, form=form, codec=codec, row_dims=row_dims)
    return sparsefmt.save(tensors, metadata, codec=codec, row_dims=row_dims)


DTYPES_OF = {dtype.numpy: dtype for dtype in DTYPES.values()}


def single_tensors(data: bytes) -> Iterator[bytes]:
    """Each tensor of a file in a file of its own."""
    parts = TakenApart(data)
    chunks, entries = parts.chunks, parts.index["tensors"]
    for name, entry in entries.items():
        if "shape" not in entry or 0 in entry["shape"]:
            continue
        parts.chunks = chunks[chunks_of(entry)]
        alone = {key: value for key, value in entry.items() if key != "first_chunk"}
        parts.index = {"metadata": {}, "tensors": {name: alone}}
        yield bytes(parts)


def seeds(rng: np.random.Generator, count: int, codecs: Sequence[str]) -> list[bytes]:
    """Files to start from: of the vectors that are built to use every corner of codec rans, and random ones."""
    vectors = itertools.chain.from_iterable(
        single_tensors(path.read_bytes()) for path in sorted((ROOT / "spec/vectors/good").glob("rans-models-*"))
    )
    return [*vectors, *(random_file(rng, codecs) for _ in range(count))]


def write_corpus(folder: Path, seed: int) -> int:
    """Write small files for a fuzzer that mutates by itself. Returns how many."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    good, bad = (sorted((ROOT / "spec/vectors" / kind).rglob("*.sparsefmt")) for kind in ("good", "bad"))
    single = itertools.chain.from_iterable(single_tensors(path.read_bytes()) for path in good)
    random = (random_file(rng) for _ in range(300))
    small = (data for data in random if len(data) <= MOST_IN_CORPUS)
    files = {*single, *(path.read_bytes() for path in bad), *small}
    for data in files:
        (folder / f"{xxhash.xxh64_hexdigest(data)}.sparsefmt").write_bytes(data)
    return len(files)
