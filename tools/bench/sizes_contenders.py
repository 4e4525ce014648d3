"""The ways to store tensors that `sizes.py` compares, and how one of them is verified.

Formats of files (safetensors, lmz, ours) hold names, dtypes and shapes. The others code the elements of one array, are
told its dtype and shape when they decode, and are counted without a place to keep these. With more than one thread,
those that know no threads work on as many tensors at once. The tool imports this file; it is not a program.
"""

from __future__ import annotations

import importlib
import io
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import safetensors
import zstandard

import sparsefmt
from sparsefmt.codecs import CODECS
from sparsefmt.dtypes import as_bits, dtype_of
from tools.safetensors_io import WRITER_DTYPES

Tensors = Mapping[str, np.ndarray]

WORTH_PRUNING = 0.25
"""Share of zeros from which a tensor counts as pruned."""

INSTALLED_BY = {"pcodec": "pcodec", "zipnn": "zipnn", "lmz": "lmzip", "blosc2": "blosc2", "scipy": "scipy"}
"""What `pip install` brings each module."""


def bits_of(array: np.ndarray) -> np.ndarray:
    return as_bits(array, dtype_of(array.dtype))


def of_bits(bits: np.ndarray, like: np.ndarray) -> np.ndarray:
    return bits.view(like.dtype).reshape(like.shape)


@dataclass(frozen=True, kw_only=True)
class Contender(ABC):
    """One way to store tensors, all of them together. It can be sent to another process.

    Attributes:
        name: in tables.
        threads: how many may work.
        slow: whether --quick leaves it out.
        note: options that were chosen for the tensors at hand.
        only_decodes: whether its bytes are those of another contender.
        needs: module that has to be installed for it.
        ours: whether it is sparsefmt.
        exact: whether every bit comes back.
    """

    name: str
    threads: int = 1
    slow: bool = False
    note: str = ""
    only_decodes: bool = False
    needs: ClassVar[str] = ""
    ours: ClassVar[bool] = False
    exact: ClassVar[bool] = True

    def tuned(self, tensors: Tensors, quick: bool) -> Contender:
        """This contender with the options that store these tensors smallest."""
        return self

    @abstractmethod
    def encode(self, tensors: Tensors) -> list[bytes]:
        """The bytes that would be stored, in as many pieces as is convenient."""

    @abstractmethod
    def decode(self, stored: list[bytes], like: Tensors) -> Mapping[str, Any]:
        """Arrays, or whatever has `todense`, by name.

        like: has the names, dtypes and shapes, and is used for nothing else.
        """


@dataclass(frozen=True, kw_only=True)
class Safetensors(Contender):
    """level: of zstd over the whole file, if not None."""

    level: int | None = None

    def encode(self, tensors: Tensors) -> list[bytes]:
        plain = safetensors_bytes(tensors)
        if self.level is None:
            return [plain]
        # zstandard's 1 is a thread of its own, and other frames
        threads = self.threads if self.threads > 1 else 0
        return [zstandard.ZstdCompressor(self.level, threads=threads).compress(plain)]

    def decode(self, stored: list[bytes], like: Tensors) -> Mapping[str, Any]:
        (data,) = stored
        return from_safetensors(data if self.level is None else zstandard.ZstdDecompressor().decompress(data), like)


def safetensors_bytes(tensors: Tensors) -> bytes:
    """The library's own numpy writer lacks bfloat16."""
    specs = {
        name: safetensors.TensorSpec(
            dtype=WRITER_DTYPES[dtype_of(array.dtype).name],
            shape=array.shape,
            data_ptr=array.ctypes.data,
            data_len=array.nbytes,
        )
        for name, array in tensors.items()
    }
    return safetensors.serialize(specs)


def from_safetensors(data: bytes, like: Tensors) -> dict[str, np.ndarray]:
    stored = safetensors.deserialize(data)
    return {name: np.frombuffer(fields["data"], like[name].dtype).reshape(fields["shape"]) for name, fields in stored}


@dataclass(frozen=True, kw_only=True)
class Ours(Contender):
    """codec: to save with. layout: to load into."""

    codec: str
    layout: str = "auto"
    ours: ClassVar[bool] = True

    def encode(self, tensors: Tensors) -> list[bytes]:
        return [sparsefmt.save(tensors, codec=self.codec, threads=self.threads)]

    def decode(self, stored: list[bytes], like: Tensors) -> Mapping[str, Any]:
        (data,) = stored
        return sparsefmt.load(data, layout=self.layout, threads=self.threads)


@dataclass(frozen=True, kw_only=True)
class Lmz(Contender):
    """It goes from file to file only; these are in memory where the system has a folder for that."""

    needs: ClassVar[str] = "lmz"

    def encode(self, tensors: Tensors) -> list[bytes]:
        with scratch() as folder:
            (folder / "plain.safetensors").write_bytes(safetensors_bytes(tensors))
            lmz = importlib.import_module("lmz")
            lmz.compress(str(folder / "plain.safetensors"), str(folder / "packed"), workers=self.threads)
            return [(folder / "packed").read_bytes()]

    def decode(self, stored: list[bytes], like: Tensors) -> Mapping[str, Any]:
        with scratch() as folder:
            (folder / "packed").write_bytes(stored[0])
            lmz = importlib.import_module("lmz")
            lmz.decompress(str(folder / "packed"), str(folder / "plain.safetensors"), workers=self.threads)
            return from_safetensors((folder / "plain.safetensors").read_bytes(), like)


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder, in memory if there is a place for that."""
    in_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="bench-sizes-", dir=in_memory) as name:
        yield Path(name)


@dataclass(frozen=True, kw_only=True)
class PerTensor(Contender):
    """A codec of arrays.

    Attributes:
        pieces: buffers for each tensor.
        knows_threads: whether it uses `threads` for one tensor.
    """

    pieces: ClassVar[int] = 1
    knows_threads: ClassVar[bool] = False

    @abstractmethod
    def encode_one(self, array: np.ndarray) -> Sequence[bytes]: ...

    @abstractmethod
    def decode_one(self, stored: Sequence[bytes], like: np.ndarray) -> Any: ...

    def encode(self, tensors: Tensors) -> list[bytes]:
        return list(chain.from_iterable(self.each(self.encode_one, tensors.values())))

    def decode(self, stored: list[bytes], like: Tensors) -> Mapping[str, Any]:
        groups = [stored[begin : begin + self.pieces] for begin in range(0, len(stored), self.pieces)]
        return dict(zip(like, self.each(self.decode_one, groups, like.values()), strict=True))

    def each(self, work: Callable[..., Any], *arguments: Iterable[Any]) -> list[Any]:
        """Results of `work` for each tensor."""
        if self.threads == 1 or self.knows_threads:
            return list(map(work, *arguments))
        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(work, *arguments))


@dataclass(frozen=True, kw_only=True)
class Csr(PerTensor):
    """scipy's CSR in compressed .npz. It has no bfloat16, which becomes float32, and -0.0 comes back as 0.0."""

    needs: ClassVar[str] = "scipy"
    exact: ClassVar[bool] = False

    def encode_one(self, array: np.ndarray) -> Sequence[bytes]:
        sparse = importlib.import_module("scipy.sparse")
        matrix = array.reshape(len(array) if array.ndim > 1 else 1, -1)
        buffer = io.BytesIO()
        sparse.save_npz(buffer, sparse.csr_array(matrix.astype(self.dtype_for(array.dtype), copy=False)))
        return [buffer.getvalue()]

    def decode_one(self, stored: Sequence[bytes], like: np.ndarray) -> Any:
        return importlib.import_module("scipy.sparse").load_npz(io.BytesIO(stored[0]))

    @staticmethod
    def dtype_for(dtype: np.dtype) -> np.dtype:
        return dtype if dtype.kind in "iuc" or dtype in (np.float32, np.float64) else np.dtype(np.float32)


class Split(NamedTuple):
    """A tensor as a packed bitmap, and the bits of the elements that are not all-zero bits.

    Attributes:
        mask: empty if the tensor is not pruned and all its elements are here.
    """

    mask: np.ndarray
    elements: np.ndarray


def split(array: np.ndarray) -> Split:
    bits = bits_of(array).reshape(-1)
    mask = bits != 0
    if np.count_nonzero(mask) > (1 - WORTH_PRUNING) * mask.size:
        return Split(np.empty(0, np.uint8), bits)
    return Split(np.packbits(mask), bits[mask])


def join(parts: Split, like: np.ndarray) -> np.ndarray:
    if not parts.mask.size:
        return of_bits(parts.elements, like)
    bits = np.zeros(like.size, parts.elements.dtype)
    bits[np.unpackbits(parts.mask, count=like.size).view(np.bool_)] = parts.elements
    return of_bits(bits, like)


@dataclass(frozen=True, kw_only=True)
class Bitmap(PerTensor):
    """A bitmap and the nonzeros, as they are."""

    pieces: ClassVar[int] = 2

    def encode_one(self, array: np.ndarray) -> Sequence[bytes]:
        parts = split(array)
        return [parts.mask.tobytes(), parts.elements.tobytes()]

    def decode_one(self, stored: Sequence[bytes], like: np.ndarray) -> Any:
        mask, elements = stored
        return join(
            Split(np.frombuffer(mask, np.uint8), np.frombuffer(elements, dtype_of(like.dtype).bits_dtype)), like
        )


def ordered(bits: np.ndarray) -> np.ndarray:
    top = bits.dtype.type(1 << 8 * bits.itemsize - 1)
    return np.where(bits & top, ~bits, bits | top)


def unordered(bits: np.ndarray) -> np.ndarray:
    top = bits.dtype.type(1 << 8 * bits.itemsize - 1)
    return np.where(bits & top, bits ^ top, ~bits)


def rotated(bits: np.ndarray, left: int) -> np.ndarray:
    width = 8 * bits.itemsize
    return bits << left | bits >> width - left


FORMS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]] = {
    "bits as they are": (lambda bits: bits, lambda bits: bits),
    "in the order of numbers": (ordered, unordered),
    "sign last": (lambda bits: rotated(bits, 1), lambda bits: rotated(bits, 8 * bits.itemsize - 1)),
}
"""How floats that pcodec does not know become unsigned integers, and back."""


@dataclass(frozen=True, kw_only=True)
class Pcodec(PerTensor):
    """pcodec on all elements; `tuned` finds the best of its levels and of FORMS."""

    level: int = 8
    form: str = "bits as they are"
    needs: ClassVar[str] = "pcodec"
    levels: ClassVar[tuple[int, ...]] = (8, 12)

    def elements(self, array: np.ndarray) -> np.ndarray:
        """The bits that are pcodec's to code."""
        return bits_of(array).reshape(-1)

    def tuned(self, tensors: Tensors, quick: bool) -> Contender:
        known = all(dtype_known_to_pcodec(array.dtype) for array in tensors.values())
        options = [
            replace(self, level=level, form=form, note=f"level {level}" if known else f"level {level}, {form}")
            for level in (self.levels[:1] if quick else self.levels)
            for form in (list(FORMS)[:1] if known else FORMS)
        ]
        elements = [(self.elements(array), array.dtype) for array in tensors.values()]
        return min(options, key=lambda option: sum(len(option.compress(*one)) for one in elements))

    def compress(self, bits: np.ndarray, dtype: np.dtype) -> bytes:
        pcodec = importlib.import_module("pcodec")
        known = dtype_known_to_pcodec(dtype)
        values = bits.view(known) if known else FORMS[self.form][0](bits)
        return pcodec.standalone.simple_compress(
            values, pcodec.ChunkConfig(compression_level=self.level, enable_8_bit=True)
        )

    def decompress(self, data: bytes, dtype: np.dtype) -> np.ndarray:
        values = importlib.import_module("pcodec").standalone.simple_decompress(data)
        if values is None:  # it makes no empty arrays
            return np.empty(0, dtype_of(dtype).bits_dtype)
        return values.view(f"u{dtype.itemsize}") if dtype_known_to_pcodec(dtype) else FORMS[self.form][1](values)

    def encode_one(self, array: np.ndarray) -> Sequence[bytes]:
        return [self.compress(self.elements(array), array.dtype)]

    def decode_one(self, stored: Sequence[bytes], like: np.ndarray) -> Any:
        return of_bits(self.decompress(stored[0], like.dtype), like)


def dtype_known_to_pcodec(dtype: np.dtype) -> np.dtype | None:
    if dtype.kind == "c":
        return np.dtype(f"f{dtype.itemsize // 2}")
    return dtype if dtype.kind in "iu" or dtype in (np.float16, np.float32, np.float64) else None


@dataclass(frozen=True, kw_only=True)
class BitmapPcodec(Pcodec):
    """What a script of forty lines does: a bitmap through zstd -19, the nonzeros through pcodec."""

    pieces: ClassVar[int] = 2

    def elements(self, array: np.ndarray) -> np.ndarray:
        return split(array).elements

    def encode_one(self, array: np.ndarray) -> Sequence[bytes]:
        mask, elements = split(array)
        return [zstandard.ZstdCompressor(19).compress(mask.data), self.compress(elements, array.dtype)]

    def decode_one(self, stored: Sequence[bytes], like: np.ndarray) -> Any:
        mask = np.frombuffer(zstandard.ZstdDecompressor().decompress(stored[0]), np.uint8)
        return join(Split(mask, self.decompress(stored[1], like.dtype)), like)


@dataclass(frozen=True, kw_only=True)
class Zipnn(PerTensor):
    """For the three types that it takes; others are stored as they are."""

    needs: ClassVar[str] = "zipnn"
    knows_threads: ClassVar[bool] = True
    types: ClassVar[Mapping[str, str]] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}

    def encode_one(self, array: np.ndarray) -> Sequence[bytes]:
        # a copy, since zipnn reorders its input in place
        data = bytearray(array.tobytes())
        codec = self.codec(array.dtype)
        return [bytes(codec.compress(data) if codec else data)]

    def decode_one(self, stored: Sequence[bytes], like: np.ndarray) -> Any:
        codec = self.codec(like.dtype)
        return np.frombuffer(codec.decompress(stored[0]) if codec else stored[0], like.dtype).reshape(like.shape)

    def codec(self, dtype: np.dtype) -> Any:
        name = self.types.get(dtype_of(dtype).name)
        return name and importlib.import_module("zipnn").ZipNN(bytearray_dtype=name, threads=self.threads)


@dataclass(frozen=True, kw_only=True)
class Blosc2(PerTensor):
    """Bits shuffled, then zstd, at a level of blosc2's own."""

    level: int
    needs: ClassVar[str] = "blosc2"
    knows_threads: ClassVar[bool] = True

    def encode_one(self, array: np.ndarray) -> Sequence[bytes]:
        blosc2 = importlib.import_module("blosc2")
        options = {
            "codec": blosc2.Codec.ZSTD,
            "clevel": self.level,
            "typesize": array.itemsize,
            "filters": [blosc2.Filter.BITSHUFFLE],
            "nthreads": self.threads,
        }
        return [blosc2.SChunk(data=bits_of(array).reshape(-1), cparams=options).to_cframe()]

    def decode_one(self, stored: Sequence[bytes], like: np.ndarray) -> Any:
        schunk = importlib.import_module("blosc2").schunk_from_cframe(stored[0])
        schunk.dparams = importlib.import_module("blosc2").DParams(nthreads=self.threads)
        return np.frombuffer(schunk[:], like.dtype).reshape(like.shape)


def all_contenders(threads: int) -> list[Contender]:
    """Every contender, whether or not what it needs is installed."""
    codecs = [*CODECS, "auto"]
    layouts = ("bitmask", "permuted", "dense")
    made: list[Contender] = [
        Safetensors(name="safetensors"),
        Safetensors(name="safetensors, zstd -3", level=3),
        Safetensors(name="safetensors, zstd -19", level=19, slow=True),
        Csr(name="scipy CSR, .npz"),
        Bitmap(name="bitmap + nonzeros"),
        Blosc2(name="blosc2, level 5", level=5),
        Blosc2(name="blosc2, level 9", level=9, slow=True),
        Zipnn(name="zipnn"),
        Lmz(name="lmz"),
        Pcodec(name="pcodec dense"),
        BitmapPcodec(name="bitmap + zstd + pcodec"),
        *(Ours(name=f"sparsefmt {codec}", codec=codec) for codec in codecs),
        *(
            Ours(name=f"sparsefmt auto, into {layout}", codec="auto", layout=layout, only_decodes=True)
            for layout in layouts
        ),
    ]
    return [replace(contender, threads=threads) for contender in made]


def verify(contender: Contender, decoded: Mapping[str, Any], tensors: Tensors) -> None:
    """Raise ValueError unless every bit of every tensor has come back (or, if not exact, every number)."""
    if set(decoded) != set(tensors):
        raise ValueError("does not give back the tensors that it was given")
    for name, array in tensors.items():
        got = decoded[name]
        got = np.asarray(got if isinstance(got, np.ndarray) else got.todense())
        if contender.exact:
            same = (
                got.dtype == array.dtype and got.shape == array.shape and np.array_equal(bits_of(got), bits_of(array))
            )
        else:
            expected = array.astype(got.dtype).reshape(got.shape)
            same = np.array_equal(got, expected, equal_nan=got.dtype.kind in "fc")
        if not same:
            raise ValueError(f"does not give back {name!r}")


def warm_up(contender: Contender, tensors: Tensors) -> None:
    """Import, compile and start what the contender needs, with a few rows of each dtype."""
    few = {str(array.dtype): np.ascontiguousarray(array[:64]) for array in tensors.values() if array.ndim}
    contender.decode(contender.encode(few), few)
