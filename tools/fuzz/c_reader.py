"""Read mutated files with the library and with spec/c/sparsefmt.h, and compare what they say.

    python -m tools.fuzz.c_reader [--seconds 60] [--count N] [--seed 0] [--keep FOLDER] [--no-sanitizers] [--zstd PATH]

Small files of all layouts, codecs and dtypes, and single tensors of spec/vectors/good, are damaged: bits, bytes,
lengths, splices, numbers and names of the index, chunks and models, mostly with checksums and offsets made right again,
so that the damage reaches the code behind them. The C reader, built with the address and undefined behaviour
sanitizers, answers from a process of its own. Both readers have to refuse a file, or to find the same names, dtypes,
shapes, layouts, counts, dense bytes and products in it. Files that disagree go to the folder given by --keep.

Needs gcc or cc. Codec zstd takes part if there is a libzstd of the version that the library uses: another one may
decode frames that this one refuses, or decode invalid frames to other bytes. Exit status: 0 if the readers agree on all
files; 1 if not, or if the C reader stopped; 2 if there is no compiler.

    python -m tools.fuzz.c_reader --corpus FOLDER

only writes small files to start from, for libFuzzer (spec/c/fuzz_target.h): each tensor of spec/vectors/good by itself,
the files of spec/vectors/bad, and random ones.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes.util
import itertools
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import xxhash
import zstandard

import sparsefmt
from sparsefmt.container.sources import Memory
from sparsefmt.dtypes import DTYPES, DType, as_bits, pack
from sparsefmt.layouts import FORMS
from tools import ROOT, forms
from tools.fuzz.asked import Asked, add_options, asked
from tools.taken_apart import TakenApart, chunks_of, join, split

SOURCES = ROOT / "spec" / "c"
LAYOUTS, CODECS = ("dense", "bitmask", "permuted"), ("raw", "zstd", "rans")
ARRAYS = ["columns", "gaps", "mask", "negative_zeros", "row_counts", "row_permutation", "slice_offsets", "values"]
MOST_IN_PRODUCTS = 131072
"""Rows and columns of the tensors that are multiplied; the same in check_reader.c."""

MOST_IN_CORPUS = 1 << 14
"""Bytes of a random file to start from."""

MOST_MEMORY = 1 << 33
"""Bytes of addresses that this program may use, so that a file that claims too much shows as an error."""

ZSTD_HEADER = """
#include <stddef.h>
size_t ZSTD_decompress(void *dst, size_t capacity, const void *src, size_t size);
size_t ZSTD_findFrameCompressedSize(const void *src, size_t size);
"""


# Building and asking the C reader


def compiler() -> str | None:
    """The C compiler of this machine."""
    return shutil.which("gcc") or shutil.which("cc")


def find_zstd() -> str | None:
    """Name of this machine's libzstd."""
    return ctypes.util.find_library("zstd")


def is_same_zstd(library: str | None) -> bool:
    """Whether this is the version of libzstd that the library decodes with."""
    return library is not None and ctypes.CDLL(library).ZSTD_versionNumber() == sum(
        part * unit for part, unit in zip(zstandard.ZSTD_VERSION, (10000, 100, 1), strict=True)
    )


def zstd_flags(folder: Path, library: str | None) -> list[str]:
    """Flags that build codec zstd in, if there is the library. Its header need not be there: two prototypes do."""
    if library is None:
        return []
    (folder / "zstd.h").write_text(ZSTD_HEADER)
    return ["-DSPARSEFMT_ZSTD", f"-I{folder}", library if "/" in library else f"-l:{library}"]


def build(source: str, program: Path, flags: list[str], zstd: str | None) -> None:
    """Compile a program of spec/c, with all warnings as errors.

    Args:
        zstd: name or path of the libzstd that decodes codec zstd; None for none.

    Raises:
        CalledProcessError: it does not compile, or flags that the compiler does not know.
    """
    command = [compiler() or "cc", "-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", str(SOURCES / source)]
    subprocess.run([*command, "-o", str(program), *flags, *zstd_flags(program.parent, zstd), "-lm"], check=True)


def has_sanitizers(folder: Path) -> bool:
    """Whether the compiler can build and this machine run a program with sanitizers."""
    source, program = folder / "empty.c", folder / "empty"
    source.write_text("int main(void) { return 0; }\n")
    command = [compiler() or "cc", "-fsanitize=address,undefined", str(source), "-o", str(program)]
    if subprocess.run(command, capture_output=True).returncode:
        return False
    return not subprocess.run(unlimited(program), capture_output=True).returncode


def unlimited(program: Path, *arguments: str) -> list[str]:
    """The command for a program without the limit of this one: sanitizers map terabytes."""
    return ["sh", "-c", 'ulimit -S -v unlimited; exec "$0" "$@"', str(program), *arguments]


class CReader:
    """check_reader.c as a process that answers."""

    def __init__(self, folder: Path, sanitizers: bool, zstd: str | None, flags: Sequence[str] = ()) -> None:
        self.program = folder / "check_reader"
        sanitizing = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
        build("check_reader.c", self.program, ["-O1", *flags, *(sanitizing if sanitizers else [])], zstd)
        self.process = self.start()

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(unlimited(self.program, *arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, data: bytes) -> str:
        """What it says of a file; "stopped" if it stopped, after which a new process answers."""
        given, said = self.process.stdin, self.process.stdout
        assert given is not None
        assert said is not None
        try:
            given.write(struct.pack("<I", len(data)) + data)
            given.flush()
        except BrokenPipeError:
            pass
        head = said.read(4)
        if len(head) == 4:
            return said.read(struct.unpack("<I", head)[0]).decode()
        self.close()
        self.process = self.start()
        return "stopped"

    def close(self) -> int:
        """Exit status of the process: not 0 if it stopped, or if it did not release all memory."""
        with contextlib.suppress(BrokenPipeError):
            self.process.communicate()
        return self.process.wait()


# The same answers from the library


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


# Files to start from


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
    if kind == 1:
        return (int(rng.integers(1, 4)), int(rng.integers(65500, 65600)))
    if kind == 2:  # gaps of 8 bits do not always reach
        return (int(rng.integers(1, 20)), int(rng.integers(257, 1600)))
    return (int(rng.integers(1, 40)), int(rng.choice([1, 3, 8, 16, 63, 64, 65, 100, 130])))


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
    metadata, codec = {"by": "fuzz"} if rng.random() < 0.2 else None, str(rng.choice(codecs))
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


# Mutations

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


# Comparing


@dataclass
class Figures:
    """What a run counts."""

    tried: int = 0
    accepted: int = 0
    refused: int = 0
    too_large: int = 0
    disagreements: int = 0
    codes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Codes of the C reader and of the library, where they differ."""
    refusals: Counter[str] = field(default_factory=Counter)

    def add(self, of_c: str, of_library: str) -> bool:
        """Counts what both say of a file. Whether they agree."""
        self.tried += 1
        refused = "\n" not in of_c, "\n" not in of_library
        if refused == (True, True) and not of_library.startswith("raised") and of_c != "stopped":
            self.refused += 1
            self.refusals[of_library] += 1
            if of_c != of_library:
                self.codes[of_c, of_library] += 1
        elif of_c == of_library:
            self.accepted += 1
        else:
            self.disagreements += 1
            return False
        return True

    def text(self) -> str:
        lines = [
            f"files tried                     {self.tried:>10,}",
            f"accepted by both, equal         {self.accepted:>10,}",
            f"refused by both                 {self.refused:>10,}, for {len(self.refusals)} faults",
            f"  of these with another code    {sum(self.codes.values()):>10,}",
            f"too large, read by neither      {self.too_large:>10,}",
            f"disagreements                   {self.disagreements:>10,}",
        ]
        pairs = [f"  {count:>8,}  C {c}, library {library}" for (c, library), count in self.codes.most_common(40)]
        return "\n".join(lines + (["other codes:", *pairs] if pairs else []))


def compare(reader: CReader, data: bytes, figures: Figures) -> tuple[str, str] | None:
    """Ask both. What they say, if they disagree."""
    of_c = reader.ask(data)
    if of_c == "memory":
        figures.tried += 1
        figures.too_large += 1
        return None
    of_library = ask_library(data)
    return None if figures.add(of_c, of_library) else (of_c, of_library)


def run(reader: CReader, asked: Asked, codecs: Sequence[str]) -> Figures:
    """Mutates and compares, until the count or the time is over."""
    rng, figures, end = np.random.default_rng(asked.seed), Figures(), time.monotonic() + asked.seconds
    files: list[bytes] = []
    while (asked.count is None or figures.tried < asked.count) and time.monotonic() < end:
        if figures.tried % 20_000 == 0:
            files = seeds(rng, 200, codecs)
        data, other = files[rng.integers(len(files))], files[rng.integers(len(files))]
        for _ in range(int(rng.choice([1, 1, 1, 2]))):
            mutation = MUTATIONS[rng.integers(len(MUTATIONS))]
            try:
                data = mutation(rng, data, other)
            except NOTHING_TO_MUTATE:
                break  # the first mutation left nothing to take apart
        different = compare(reader, data, figures)
        if different is None:
            continue
        print(f"file {figures.tried}: C {different[0]!r}, library {different[1]!r}", flush=True)
        if asked.keep is not None:
            asked.keep.mkdir(parents=True, exist_ok=True)
            (asked.keep / f"seed{asked.seed}-{figures.tried}.sparsefmt").write_bytes(data)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--no-sanitizers", action="store_true")
    parser.add_argument("--zstd", default=find_zstd(), help="libzstd for the C reader, a path with a slash in it")
    parser.add_argument("--corpus", type=Path, help="only write files to start from to this folder")
    options = parser.parse_args()
    if options.corpus is not None:
        print(f"{write_corpus(options.corpus, options.seed)} files in {options.corpus}")
        return 0
    if compiler() is None:
        print("no C compiler: install gcc, or another that is called cc", file=sys.stderr)
        return 2
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, resource.RLIM_INFINITY))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reader = CReader(folder, not options.no_sanitizers and has_sanitizers(folder), options.zstd)
        codecs = CODECS if is_same_zstd(options.zstd) else ("raw", "rans")
        if codecs != CODECS:
            print(f"without codec zstd, which {options.zstd or 'no library'} may decode in another way")
        figures = run(reader, asked(options), codecs)
        status = reader.close()
    print(figures.text())
    return 1 if figures.disagreements or status else 0


if __name__ == "__main__":
    sys.exit(main())
