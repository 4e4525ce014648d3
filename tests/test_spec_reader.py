"""spec/reader.py was written from SPEC.md alone. What it and the library make of the same bytes must be the same."""

import copy
import importlib.util
import re
import struct
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import msgpack
import numpy as np
import pytest
import rans_files
import xxhash
import zstandard

import sparsefmt

SPEC = Path(__file__).parents[1] / "spec"


def load_reader():
    found = importlib.util.spec_from_file_location("spec_reader", SPEC / "reader.py")
    module = importlib.util.module_from_spec(found)
    sys.modules["spec_reader"] = module  # dataclasses look their module up
    found.loader.exec_module(module)
    return module


reader = load_reader()

DTYPES = {
    "BOOL": np.bool_,
    "F4": ml_dtypes.float4_e2m1fn,
    "F6_E2M3": ml_dtypes.float6_e2m3fn,
    "F6_E3M2": ml_dtypes.float6_e3m2fn,
    "U8": np.uint8,
    "I8": np.int8,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "I16": np.int16,
    "U16": np.uint16,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I32": np.int32,
    "U32": np.uint32,
    "F32": np.float32,
    "C64": np.complex64,
    "F64": np.float64,
    "I64": np.int64,
    "U64": np.uint64,
}
BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}  # all others: whole bytes
ALWAYS_DENSE = {"BOOL", "F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "C64"}
WITH_NEGATIVE_ZERO = {"F8_E5M2", "F8_E4M3", "F16", "BF16", "F32", "F64"}
LAYOUTS = ["dense", "bitmask", "permuted"]
CODECS = ["raw", "zstd", "rans"]
SHAPES = [
    (),
    (1,),
    (5,),
    (0,),
    (0, 3),
    (3, 0),
    (2, 0, 3),
    (1, 1),
    (1, 7),
    (7, 1),
    (9, 8),
    (8, 9),
    (3, 15),
    (4, 16),
    (5, 17),
    (17, 63),
    (16, 64),
    (15, 65),
    (1, 1000),
    (1000, 1),
    (2, 3, 4),
    (6, 5, 3, 3),
    (1, 1, 1, 1),
    (24, 37),
]


def random_bits(rng: np.random.Generator, dtype: str, shape: tuple[int, ...], density: float = 0.3) -> np.ndarray:
    """Every bit pattern of the dtype, NaN payloads included; the others +0, or -0 in half of the positions."""
    numpy_type, count = np.dtype(DTYPES[dtype]), int(np.prod(shape))
    high = 2 if dtype == "BOOL" else 1 << BITS.get(dtype, 8)
    bits = rng.integers(0, high, count * numpy_type.itemsize, np.uint8).view(f"u{min(numpy_type.itemsize, 8)}")
    pruned = rng.random(count) >= density
    bits[pruned] = 0
    if dtype in WITH_NEGATIVE_ZERO:
        bits[pruned & (rng.random(count) < 0.5)] = 1 << (8 * bits.itemsize - 1)
    return bits.view(numpy_type).reshape(shape)


def packed(array: np.ndarray, dtype: str) -> bytes:
    """Dense bytes as section 3 lays them out."""
    data = np.frombuffer(array.tobytes(), np.uint8)
    if dtype in BITS:
        data = np.packbits(np.unpackbits(data[:, None], axis=1, bitorder="little")[:, : BITS[dtype]], bitorder="little")
    return data.tobytes()


def dtype_name(array: np.ndarray) -> str:
    return next(name for name, numpy_type in DTYPES.items() if np.dtype(numpy_type) == array.dtype)


def check_tensors(tensors: dict[str, np.ndarray], layout: str, codec: str, **options) -> None:
    read = reader.read(sparsefmt.save(tensors, layout=layout, codec=codec, **options))
    assert read.keys() == tensors.keys()
    for name, array in tensors.items():
        dtype = dtype_name(array)
        may_be_sparse = array.ndim >= 2 and array.size > 0 and dtype not in ALWAYS_DENSE
        expected = layout if may_be_sparse else "dense"
        assert (read[name].dtype, read[name].shape, read[name].layout) == (dtype, array.shape, expected), name
        assert read[name].data == packed(array, dtype), name


# ---------------------------------------------------------------------------------------------------------- tensors


@pytest.mark.parametrize("codec", [*CODECS, "auto"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_dtype_and_shape(layout, codec):
    rng = np.random.default_rng(1)
    check_tensors({f"{d}{list(s)}": random_bits(rng, d, s) for d in DTYPES for s in SHAPES}, layout, codec)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_special_tensors(layout, codec):
    rng = np.random.default_rng(2)
    tensors = {}
    for dtype in ["F8_E4M3", "F8_E5M2FNUZ", "BF16", "F32", "F64", "I16"]:
        zero = np.zeros((20, 70), DTYPES[dtype])
        one = zero.copy()
        one[13, 67] = 1
        tensors |= {f"{dtype} zero": zero, f"{dtype} one": one, f"{dtype} full": zero + one[13, 67]}
        if dtype in WITH_NEGATIVE_ZERO:
            tensors |= {f"{dtype} negative zero": -zero, f"{dtype} one, rest negative zero": np.where(one, one, -zero)}
            tensors[f"{dtype} last is negative zero"] = tensors[f"{dtype} full"].copy()
            tensors[f"{dtype} last is negative zero"][-1, -1] = -zero[0, 0]
        for cols in 65535, 65536, 65537:
            tensors[f"{dtype} wide {cols}"] = random_bits(rng, dtype, (3, cols), 0.01)
    rows = np.tril(np.ones((40, 40), np.float32))
    tensors |= {"ascending": rows, "descending": rows[::-1].copy(), "equal": np.roll(np.eye(40), 7, 0)}
    tensors["2:4"] = np.tile(np.array([1, 0, 2, 0], np.float32), (16, 32))
    check_tensors(tensors, layout, codec)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_of_several_tiles(layout):
    rng = np.random.default_rng(3)
    shapes = {
        "BF16": (1100, 1000),
        "F32": (3, 700_000),
        "F64": (300_000, 4),
        "I8": (65_600, 20),
        "F4": (1100, 1999),
        "F8_E4M3": (1100, 997),
        "BOOL": (1100, 1000),
        "F6_E2M3": (1101, 1001),
        "F6_E3M2": (3, 700_001),
    }
    tensors = {dtype: random_bits(rng, dtype, shape, 0.05) for dtype, shape in shapes.items()}
    tensors["F32"][1:] = 0  # -0.0 in one tile only
    check_tensors(tensors, layout, "raw")
    check_tensors(tensors, layout, "zstd")
    check_tensors({dtype: tensors[dtype] for dtype in ("BF16", "F64", "F4")}, layout, "rans")
    data = sparsefmt.save(tensors, layout=layout, codec="raw")
    entries = TakenApart(data).index["tensors"]
    assert all(entries[dtype]["tile_rows"] < shapes[dtype][0] for dtype in shapes if shapes[dtype][0] > 3)


def structured_masks(rng: np.random.Generator, r: int, c: int) -> dict[str, np.ndarray]:
    """Masks that have something for codec `rans`; c is a multiple of 4."""
    by_column, by_row = rng.beta(0.5, 1, c), rng.beta(0.5, 1, (r, 1))
    dense, half = np.ones((4, 4)), rng.random((r, c)) < 0.5
    return {
        "2:4": (rng.random((r, c // 4, 4)).argsort(2) < 2).reshape(r, c),
        "4x4": np.kron(rng.random((r // 4 + 1, c // 4)) < 0.4, dense)[:r] > 0,
        "16x1": np.repeat(rng.random((r // 16 + 1, c)) < 0.4, 16, 0)[:r],
        "1x16": np.repeat(rng.random((r, c // 16 + 1)) < 0.4, 16, 1)[:, :c],
        "columns": rng.random((r, c)) < by_column,
        "rows": rng.random((r, c)) < by_row,
        "rows and columns": rng.random((r, c)) < by_column * by_row,
        "columns, in copies": (np.repeat(half, 5, 0)[:r] & (by_column > 0.2)) ^ (rng.random((r, c)) < 0.001),
        "diagonal": abs(np.arange(r)[:, None] * c // r - np.arange(c)) < 9,
        "all": half | True,
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(20, 12), (90, 100), (150, 520), (1100, 1000)], ids=str)
def test_rans_of_structured_masks(shape, layout):
    """Streams of 1, of 8 and of 32 states; several tiles."""
    rng, tensors = np.random.default_rng(shape), {}
    palette = np.array([1.5, -2, 3.25, 1e-3, -7, 2, 0.1], np.float32)
    masks = structured_masks(rng, *shape)
    if shape[0] > 1000:
        masks = {name: masks[name] for name in ("2:4", "rows and columns", "columns, in copies")}
    for name, mask in masks.items():
        bf16 = rng.standard_normal(mask.shape).astype(ml_dtypes.bfloat16).astype(np.float32)
        tensors[f"{name}, bf16"] = np.where(mask, bf16, np.float32(0))
        tensors[f"{name}, palette"] = np.where(mask, rng.choice(palette, mask.shape), np.float32(-0.0))
    check_tensors(tensors, layout, "rans")


@pytest.mark.parametrize("count", [1, 9, 1023, 1024, 65535, 65536])
def test_rans_of_vectors(count):
    rng = np.random.default_rng(count)
    steps = rng.integers(0, 1000, count)
    tensors = {
        "ascending": np.cumsum(steps, dtype=np.int64) + 2**40,
        "eight ascending": np.cumsum(rng.integers(-9, 99, (count, 8)), 0).astype(np.int32),
        "wraps": np.cumsum(steps).astype(np.uint8),
        "few": rng.choice([1, 2, 7, 2**50], count, p=[0.9, 0.05, 0.04, 0.01]),
        "normal": rng.standard_normal(count).astype(np.float32),
        "f16": rng.standard_normal(count).astype(np.float16),
        "f32 as f64": rng.standard_normal(count).astype(np.float32).astype(np.float64),
        "constant": np.full(count, -1.25),
    }
    check_tensors(tensors, "dense", "rans")


def test_names_aliases_metadata_and_dropped_signs():
    weight = np.where(np.eye(20, 30) > 0, np.float32(2), np.float32(-0.0))
    texts = {"": "", "format": "pt", "Ωπ𝔘": "ﬀ\n\0"}
    tensors = {"a": weight, "b": weight, "\U00010000": weight[:3].copy(), "\uffff": weight[:4].copy()}
    tensors["é" * 512] = weight[0]
    data = sparsefmt.save(tensors, texts, layout="bitmask", negative_zeros="drop")
    read = reader.read(data)
    assert reader.metadata(data) == texts
    assert {name: tensor.data for name, tensor in read.items()} == {n: (t + 0).tobytes() for n, t in tensors.items()}
    assert read["a"] is read["b"]
    assert TakenApart(data).index["tensors"]["a"]["negative_zeros_dropped"] == 580
    assert reader.read(sparsefmt.save({})) == {}


def test_vectors():
    for path in sorted((SPEC / "vectors" / "good").glob("*.sparsefmt")):
        data = path.read_bytes()
        assert outcome_of_reader(data) == outcome_of_library(data), path.name


# --------------------------------------------------------------------------------------------------------- products


def check_products(data: bytes, xs: list[np.ndarray]) -> None:
    read = reader.read(data)
    loaded = {layout: sparsefmt.load(data, layout=layout) for layout in {tensor.layout for tensor in read.values()}}
    for name, tensor in read.items():
        for x in xs:
            with np.errstate(all="ignore"):
                expected = sparsefmt.linear(x, loaded[tensor.layout][name])
            y = reader.multiply(data, name, x)
            assert y.dtype == expected.dtype, (name, x.dtype)
            nan = np.isnan(expected)
            assert np.array_equal(np.isnan(y), nan), (name, x.dtype)
            assert y[~nan].tobytes() == expected[~nan].tobytes(), (name, x.dtype)


def activations(rng: np.random.Generator, cols: int) -> list[np.ndarray]:
    plain = rng.standard_normal(cols).astype(np.float32)
    infinite, not_a_number = plain.copy(), plain.copy()
    infinite[rng.random(cols) < 0.05] = np.inf
    infinite[rng.random(cols) < 0.02] = -np.inf
    not_a_number[cols // 3] = np.nan
    tiny, huge = plain * np.float32(1e-38), plain * np.float32(5e37)
    return [plain, infinite, not_a_number, tiny, huge, rng.standard_normal(cols), np.float32(-0.0) * abs(plain)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_products_of_every_dtype(layout):
    rng = np.random.default_rng(4)
    tensors = {dtype: random_bits(rng, dtype, (27, 37), 0.4) for dtype in DTYPES if dtype != "C64"}
    check_products(sparsefmt.save(tensors, layout=layout), activations(rng, 37))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cols", [1, 2, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 300, 65535, 65536, 65537])
def test_products_of_every_width(cols, layout):
    rng = np.random.default_rng(cols)
    narrow = cols < 1000
    weight = rng.standard_normal((19 if narrow else 3, cols)).astype(np.float32)
    weight[rng.random(weight.shape) < (0.5 if narrow else 0.98)] = 0
    tensors = {"F32": weight, "BF16": weight.astype(ml_dtypes.bfloat16), "tiny": weight * np.float32(1e-38)}
    tensors["cancels"] = np.concatenate([weight[:5], -weight[:5]], axis=1).reshape(-1, cols)
    tensors |= {"F64": weight.astype(np.float64) / 3} if narrow else {}
    check_products(sparsefmt.save(tensors, layout=layout), activations(rng, cols)[: None if narrow else 2])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_products_of_special_tensors(layout):
    rng = np.random.default_rng(5)
    conv = rng.standard_normal((10, 3, 3, 3)).astype(np.float16)
    conv[rng.random(conv.shape) < 0.6] = -0.0
    check_products(
        sparsefmt.save({"conv": conv, "zero": np.zeros((9, 27), np.float32)}, layout=layout), activations(rng, 27)
    )
    tall = random_bits(rng, "BF16", (70_000, 16), 0.1)
    check_products(sparsefmt.save({"several tiles": tall}, layout=layout), activations(rng, 16)[:2])
    check_products(sparsefmt.save({"0-d": np.float32(3), "1-d": np.arange(5, dtype=np.float32)}), activations(rng, 1))
    check_products(sparsefmt.save({"no columns": np.ones((3, 0), np.float32)}), [np.ones(0, np.float32)])


def test_fused_multiply_add():
    """Against exact arithmetic where one rounding and two differ."""
    rng = np.random.default_rng(6)
    a, b, c = (rng.integers(0, 1 << 32, 4000, np.uint64).astype(np.uint32).view(np.float32) for _ in range(3))
    with np.errstate(all="ignore"):
        near = np.nextafter(-a * b, np.float32(0))  # cancellation
        for addend in c, near, np.float32(1e-45) * np.sign(c):
            exact = np.longdouble(a) * np.longdouble(b)  # 48 bits
            y = reader.fma(a, b, addend)
            finite = np.isfinite(exact) & np.isfinite(addend) & np.isfinite(y)
            error = abs(np.longdouble(y) + -np.longdouble(addend) - exact)
            half_ulp = abs(np.longdouble(np.spacing(y))) / 2
            assert (error <= half_ulp * (1 + np.longdouble(2) ** -30))[finite].all()
    one = np.float32(1)
    halfway = np.array([1 + 2**-12], np.float32)  # its square is 1 + 2**-11 + 2**-24: halfway between two float32
    for addend, expected in [(2**-60, 2**-11 + 2**-23), (-(2**-60), 2**-11), (0, 2**-11)]:
        assert reader.fma(halfway, halfway, np.array([addend], np.float32))[0] == one + np.float32(expected)


# ----------------------------------------------------------------------------------------------------------- faults


class Encoded(bytes):
    """msgpack that is taken as it is."""


def canonical(value) -> bytes:
    if isinstance(value, Encoded):
        return bytes(value)
    packer = msgpack.Packer()
    if isinstance(value, dict):
        return packer.pack_map_header(len(value)) + b"".join(
            canonical(key) + canonical(value[key]) for key in sorted(value, key=lambda key: key.encode())
        )
    if isinstance(value, list):
        return packer.pack_array_header(len(value)) + b"".join(map(canonical, value))
    return packer.pack(value)


class TakenApart:
    """A file as its parts, which can be changed; `bytes(…)` lays them out again, with checksums that are right."""

    def __init__(self, data: bytes):
        offset, size, _, self.end_magic = struct.unpack("<QQQ8s", data[-32:])
        self.preamble = bytearray(data[:64])
        self.index = msgpack.unpackb(data[offset : offset + size])
        records = struct.iter_unpack("<QQQQ", self.index["chunks"])
        self.chunks = [(data[at : at + stored], raw) for at, stored, raw, _ in records]
        self.behind: dict[int, bytes] = {}  # chunk number to what follows the chunk
        self.change_records = self.change_trailer = lambda fields: None
        self.change_index = lambda index: index

    def entry(self, name: str = "w") -> dict:
        return self.index["tensors"][name]

    def number(self, array: str) -> int:
        return self.entry()["first_chunk"] + sorted(self.entry()["arrays"]).index(array)

    def array(self, array: str, dtype: str = "u1") -> np.ndarray:
        stored, raw = self.chunks[self.number(array)]
        width = np.dtype(dtype).itemsize
        if len(stored) < raw:
            stored = np.frombuffer(zstandard.decompress(stored), np.uint8).reshape(width, -1).T.tobytes()
        return np.frombuffer(stored, dtype).copy()

    def put(self, array: str, content: np.ndarray | bytes) -> None:
        content = content if isinstance(content, bytes) else content.tobytes()
        self.chunks[self.number(array)] = (content, len(content))

    def __bytes__(self) -> bytes:
        out, records = bytearray(self.preamble), []
        for number, (stored, raw) in enumerate(self.chunks):
            out += bytes(-len(out) % 64)
            records.append([len(out), len(stored), raw, xxhash.xxh64_intdigest(stored)])
            out += stored + self.behind.get(number, b"")
        out += bytes(-len(out) % 64)
        self.change_records(records)
        self.index["chunks"] = b"".join(struct.pack("<QQQQ", *record) for record in records)
        index = self.change_index(canonical(self.index))
        trailer = [len(out), len(index), xxhash.xxh64_intdigest(bytes(out[:16]) + index)]
        self.change_trailer(trailer)
        return bytes(out) + index + struct.pack("<QQQ", *trailer) + self.end_magic


def outcome_of_reader(data: bytes) -> str | dict[str, bytes]:
    try:
        return {name: tensor.data for name, tensor in reader.read(data).items()}
    except reader.Fault as fault:
        return fault.code


def outcome_of_library(data: bytes) -> str | dict[str, bytes]:
    try:
        dense = sparsefmt.load(data, layout="dense")
        for name, tensor in sparsefmt.load(data).items():
            assert not isinstance(tensor, sparsefmt.SparseTensor) or tensor.todense().tobytes() == dense[name].tobytes()
        return {name: packed(array, dtype_name(array)) for name, array in dense.items()}
    except sparsefmt.SparsefmtError as error:
        return error.code


def weight(negative: bool = True) -> np.ndarray:
    """20 x 70; rows of equal and of different counts, one of them empty."""
    rng = np.random.default_rng(7)
    w = rng.standard_normal((20, 70)).astype(np.float32)
    w[rng.random(w.shape) < 0.7] = -0.0 if negative else 0
    w[5] = np.roll(w[6], 3)
    w[3] = 0
    return w


def bases() -> dict[str, bytes]:
    w, vector = weight(), np.arange(1, 71, dtype=np.float32)
    big = np.zeros((64, 4096), np.float32)
    big[::3, ::5] = 1.25
    files = {
        f"{layout} {codec}": sparsefmt.save({"w": w, "v": vector}, {"a": "b"}, layout=layout, codec=codec)
        for layout in LAYOUTS
        for codec in CODECS
    }
    files |= {f"positive {layout}": sparsefmt.save({"w": abs(w)}, layout=layout, codec="raw") for layout in LAYOUTS[1:]}
    files |= {f"big {layout}": sparsefmt.save({"w": big}, layout=layout, codec="zstd") for layout in LAYOUTS}
    files["integers"] = sparsefmt.save({"w": (w * 10).astype(np.int8)}, layout="bitmask", codec="raw")
    files["bool"] = sparsefmt.save({"w": w > 0}, codec="raw")
    files["packed"] = sparsefmt.save({"w": w[:19, :3].astype(ml_dtypes.float4_e2m1fn)}, codec="raw")
    files["empty"] = sparsefmt.save({"w": w[:, :0], "v": vector}, codec="raw")
    files["full"] = sparsefmt.save({"w": np.ones((8, 8), np.float32)}, layout="bitmask", codec="raw")
    return files


BASES = bases()
FAULTS = []


def faults(code: str, base: str, changes: dict) -> None:
    """Each change gives a file this fault and no other; `ok` none."""
    for name, change in changes.items():
        FAULTS.append(pytest.param(code, base, change, id=f"{code}: {name}, {base}"))


def fields(name: str = "w", minor: int = 0, **values):
    """Change fields of an entry; `...` removes."""

    def change(file: TakenApart):
        file.preamble[10] = minor
        entry = file.entry(name)
        entry.update(values)
        for key in [key for key, value in values.items() if value is ...]:
            del entry[key]

    return change


def top(minor: int = 0, **values):
    def change(file: TakenApart):
        file.preamble[10] = minor
        file.index.update(values)

    return change


def arrays(**codecs):
    def change(file: TakenApart):
        file.entry()["arrays"] = {k: v for k, v in (file.entry()["arrays"] | codecs).items() if v is not ...}

    return change


def entry_named(name: str, value):
    return lambda file: file.index["tensors"].update({name: value})


def preamble(offset: int, value: int):
    return lambda file: file.preamble.__setitem__(offset, value)


def trailer(field: int, value):
    def change(file: TakenApart):
        file.change_trailer = lambda fields: fields.__setitem__(field, value(fields[field]) % 2**64)

    return change


def record(number: int, field: int, value):
    def change(file: TakenApart):
        file.change_records = lambda records: records[number].__setitem__(field, value(records[number][field]) % 2**64)

    return change


def index(value):
    def change(file: TakenApart):
        file.change_index = value if callable(value) else lambda index: value

    return change


def raw_index(**values):
    """Fields of the index that laying out would set, or that are not to be there."""

    def replaced(index: bytes) -> bytes:
        changed = msgpack.unpackb(index) | values
        return canonical({key: value for key, value in changed.items() if value is not ...})

    return lambda file: setattr(file, "change_index", replaced)


def array(name: str, dtype: str, value):
    """Change an array; `value` gets it, and gives another or changes it in place."""

    def change(file: TakenApart):
        content = file.array(name, dtype)
        changed = value(content)
        file.put(name, content if changed is None else changed)

    return change


def item(position: int, value):
    def change(content: np.ndarray):
        content[position] = value(content) if callable(value) else value

    return change


def whole(data):
    """Not a change of the parts: other bytes."""
    return lambda file: data(bytes(file))


def later(value):
    """A key of a greater minor version, in the index."""
    return top(1, later=value)


def nested(levels: int) -> Encoded:
    """Arrays within each other."""
    return Encoded(b"\x91" * levels + b"\0")


ALIAS = {"alias_of": "w"}
faults(
    "ok",
    "bitmask raw",
    {
        "as it was": lambda file: None,
        "a greater minor version": preamble(10, 7),
        "an alias": entry_named("x", ALIAS),
        "unknown keys of a greater minor version": later({"a": [b"", "", 2**64 - 1, {}]}),
        "unknown key in an entry of a greater minor version": fields(minor=1, later=1),
        "name of 1024 bytes": entry_named("é" * 512, ALIAS),
        "32 dimensions": fields(shape=[20, 70] + [1] * 30),
        "negative_zeros_dropped": fields(negative_zeros_dropped=1400),
        "metadata at its limit": lambda file: top(metadata={"a": "b" * (2**24 - 1)})(file),
    },
)
faults(
    "ok",
    "bitmask zstd",
    {"negative zeros as they are": lambda file: file.put("negative_zeros", file.array("negative_zeros"))},
)

# 2.1, 2.3
faults("not-sparsefmt", "bitmask raw", {"magic": preamble(0, 0x88), "nothing": whole(lambda data: b"")})
faults(
    "file-too-short",
    "bitmask raw",
    {"magic only": whole(lambda data: data[:8]), "95 bytes": whole(lambda data: data[:95])},
)
faults("version-unsupported", "bitmask raw", {"major 2": preamble(8, 2), "major 0": preamble(8, 0)})
faults("feature-unsupported", "bitmask raw", {"bit 0": preamble(12, 1), "bit 31": preamble(15, 128)})
faults(
    "trailer-missing",
    "bitmask raw",
    {"cut off": whole(lambda data: data[:-1]), "end magic": whole(lambda data: data[:-1] + b"\0")},
)
faults("index-size", "bitmask raw", {"huge": trailer(1, lambda size: 2**63)})
faults(
    "index-out-of-bounds",
    "bitmask raw",
    {
        "too small": trailer(1, lambda size: size - 1),
        "too large": trailer(1, lambda size: size + 1),
        "later": trailer(0, lambda offset: offset + 64),
        "huge offset": trailer(0, lambda offset: 2**63),
        "not aligned": trailer(0, lambda offset: offset + 1),
    },
)
faults(
    "index-checksum",
    "bitmask raw",
    {
        "checksum": trailer(2, lambda checksum: checksum ^ 1),
        "minor": whole(lambda data: data[:10] + b"\1" + data[11:]),
        "index": whole(lambda data: data.replace(b"dtype", b"dtypf")),
    },
)
faults("padding-not-zero", "bitmask raw", {"byte 16": preamble(16, 1), "byte 63": preamble(63, 1)})
for _n in range(1, 5):
    faults(
        "padding-not-zero", "bitmask raw", {f"behind chunk {_n}": lambda file, n=_n: file.behind.update({n: b"\0\1"})}
    )

# 2.4: msgpack
faults(
    "index-malformed",
    "bitmask raw",
    {
        "empty": index(b""),
        "cut": index(lambda index: index[:-1]),
        "reserved byte": index(b"\xc1"),
        "extension": index(b"\xd4\1\1"),
        "trailing byte": index(lambda index: index + b"\0"),
        "nested deeply": index(b"\x91" * 10**5 + b"\0"),
        "timestamp": later(Encoded(b"\xd6\xff\0\0\0\0")),
        "key of type integer": later(Encoded(b"\x81\1\1")),
        "UTF-8": later(Encoded(b"\xa1\xff")),
        "surrogate": later(Encoded(b"\xa3\xed\xa0\x80")),
    },
)
faults(
    "index-malformed",
    "bitmask raw",
    {
        "key of type bin": later(Encoded(b"\x81\xc4\1a\1")),
        "long array": later([0] * 1025),
        "17 levels": later(nested(16)),
        "many levels": later(nested(200)),
        "2,000 levels": later(nested(2000)),
    },
)
faults(
    "ok", "bitmask raw", {"long array": later([0] * 1024), "16 levels": later(nested(15)), "2^64 - 1": later(2**64 - 1)}
)
faults(
    "index-type",
    "bitmask raw",
    {
        "nil": later(None),
        "true": later(True),
        "negative": later(-1),
        "float": later([1.5]),
        "known key, nil": fields(tile_rows=None),
        "known key, float": fields(nnz=1.5),
        "metadata": raw_index(metadata=[]),
    },
)
faults(
    "index-not-canonical",
    "bitmask raw",
    {
        "integer": fields(tile_rows=Encoded(b"\xcc\x14")),
        "later integer": later(Encoded(b"\xcc\5")),
        "signed integer": later(Encoded(b"\xd0\5")),
        "str": fields(dtype=Encoded(b"\xd9\3F32")),
        "array": fields(shape=Encoded(b"\xdc\0\2\x14\x46")),
        "map": top(metadata=Encoded(b"\xde\0\0")),
        "keys not sorted": top(metadata=Encoded(b"\x82\xa1b\xa1b\xa1a\xa1a")),
        "key twice": top(metadata=Encoded(b"\x82\xa1b\xa1b\xa1b\xa1b")),
        "negative_zeros_dropped of 0": fields(negative_zeros_dropped=0),
    },
)
faults("index-not-canonical", "bitmask raw", {"later keys not sorted": later(Encoded(b"\x82\xa1b\1\xa1a\1"))})
faults("index-key", "dense raw", {"nnz of a dense tensor": fields(nnz=5), "minor 1": fields(minor=1, nnz=5)})

# 2.4: types and keys
faults(
    "index-type",
    "bitmask raw",
    {
        "index": index(b"\x90"),
        "chunks": raw_index(chunks=[]),
        "half a record": raw_index(chunks=b"a" * 31),
        "tensors": raw_index(tensors=[]),
        "entry": entry_named("x", 5),
        "alias": entry_named("x", {"alias_of": []}),
        "dimension": fields(shape=[20, 2**63]),
        "dimension is str": fields(shape=[20, "70"]),
    },
)
for _key in "first_chunk", "nnz", "tile_rows", "negative_zeros_dropped", "shape", "arrays":
    for _value in "x", b"x", [], {}, 2**63:
        if (_key, _value) not in (("arrays", {}), ("shape", [])):
            faults("index-type", "bitmask raw", {f"{_key} = {_value!r}": fields(**{_key: _value})})
for _value in 5, b"x", [], {}:
    faults(
        "index-type",
        "bitmask raw",
        {
            f"dtype = {_value!r}": fields(dtype=_value),
            f"layout = {_value!r}": fields(layout=_value),
            f"codec = {_value!r}": arrays(values=_value),
        },
    )
faults(
    "index-key",
    "bitmask raw",
    {
        **{f"no {key}": fields(**{key: ...}) for key in TakenApart(BASES["bitmask raw"]).entry()},
        **{f"no {key} in the index": raw_index(**{key: ...}) for key in ("chunks", "metadata", "tensors")},
        "unknown": top(later=1),
        "unknown in the entry": fields(later=1),
        "no keys": index(b"\x80"),
        "alias and more": entry_named("x", ALIAS | {"dtype": "F32"}),
        "empty entry": entry_named("x", {}),
    },
)
faults("metadata-invalid", "bitmask raw", {"int": top(metadata={"a": 1}), "bin": top(metadata={"a": b"b"})})
faults("metadata-size", "bitmask raw", {"key and value": lambda file: top(metadata={"a": "b" * 2**24})(file)})
faults("metadata-size", "bitmask raw", {"one value": lambda file: top(metadata={"": "b" * (2**24 + 1)})(file)})
faults(
    "ok",
    "bitmask raw",
    {"many short metadata": lambda file: top(metadata={f"{n:x}": "" for n in range(2**20 + 1)})(file)},
)


# 2.4: tensors
def too_many_tensors(file: TakenApart) -> None:
    names = {f"{n:x}".encode() for n in range(2**20)}
    entries = [canonical("w") + canonical(file.entry())]
    entries += [bytes([0xA0 + len(name)]) + name + b"\x81\xa8alias_of\xa1w" for name in sorted(names)]
    entries.append(entries.pop(0))  # "w" is behind all hexadecimal digits
    file.index["tensors"] = Encoded(msgpack.Packer().pack_map_header(len(entries)) + b"".join(entries))


faults("tensor-count", "full", {"too many": too_many_tensors})
faults("name-invalid", "bitmask raw", {"empty": entry_named("", ALIAS), "NUL": entry_named("a\0b", ALIAS)})
faults("name-length", "bitmask raw", {"1025 bytes": entry_named("é" * 512 + "a", ALIAS)})
faults(
    "alias-invalid",
    "bitmask raw",
    {
        "of nothing": entry_named("x", {"alias_of": "y"}),
        "of itself": entry_named("x", {"alias_of": "x"}),
        "of an alias": lambda file: file.index["tensors"].update(x=ALIAS, y={"alias_of": "x"}),
    },
)
faults("dtype-unknown", "bitmask raw", {"F33": fields(dtype="F33"), "f32": fields(dtype="f32")})
faults("layout-unknown", "bitmask raw", {"csr": fields(layout="csr")})
faults("codec-unknown", "bitmask raw", {"lz4": arrays(values="lz4")})
faults("shape-ndim", "dense raw", {"33": fields("v", shape=[70] + [1] * 32)})
faults("shape-size", "empty", {"2^63 bits": fields(shape=[0, 2**58]), "product": fields(shape=[2**62, 0, 2**62])})
faults(
    "layout-invalid",
    "positive bitmask",
    {"dtype": fields(dtype="C64"), "packed dtype": fields(dtype="F4"), "1-d": fields(shape=[1400])},
)
faults(
    "tile-rows",
    "dense raw",
    {"0": fields(tile_rows=0), "over rows": fields(tile_rows=21), "huge": fields(tile_rows=2**62)},
)
faults(
    "tile-rows",
    "empty",
    {"tile_rows without tiles": fields(tile_rows=1), "first_chunk without tiles": fields(first_chunk=1)},
)


def split(tile_rows: int):
    """A dense tensor of one tile in tiles of so many rows."""

    def change(file: TakenApart):
        file.entry()["tile_rows"] = tile_rows
        (stored, _), columns = file.chunks[0], file.entry()["shape"][1]
        step = tile_rows * columns // 2
        file.chunks = [(stored[at : at + step], len(stored[at : at + step])) for at in range(0, len(stored), step)]

    return change


faults("ok", "packed", {"tiles of 8 rows": split(8), "tiles of 16 rows": split(16)})
faults("tile-rows", "packed", {"tiles of 4 rows": split(4), "tiles of 10 rows": split(10)})
faults(
    "tile-size",
    "bitmask raw",
    {
        "rows": fields(shape=[65537, 70], tile_rows=65537),
        "positions": fields(shape=[65536, 32768], tile_rows=65536),
        "columns": fields(shape=[1, 2**31 + 1], tile_rows=1),
    },
)
faults(
    "array-set",
    "bitmask raw",
    {"one more": arrays(zeros="raw"), "one less": arrays(mask=...), "none": fields(arrays={})},
)
faults(
    "array-set",
    "dense raw",
    {"negative_zeros": arrays(negative_zeros="raw"), "other": fields(arrays={"valuez": "raw"})},
)
faults("array-set", "integers", {"negative_zeros": arrays(negative_zeros="raw")})
for _base in "positive bitmask", "positive permuted":
    faults(
        "nnz",
        _base,
        {
            "over the elements": fields(nnz=1401),
            "one less": lambda file: file.entry().update(nnz=file.entry()["nnz"] - 1),
        },
    )
faults("negative-zeros-dropped", "bitmask raw", {"over the elements": fields(negative_zeros_dropped=1401)})
faults("negative-zeros-dropped", "integers", {"dtype without": fields(negative_zeros_dropped=1)})


# 2.2
def no_chunks(file: TakenApart) -> None:
    file.chunks, file.index["tensors"] = [], {}
    file.preamble += bytes(64)


faults(
    "chunk-limit",
    "bitmask raw",
    {"stored": record(1, 1, lambda size: 2**36 + 1), "raw": record(1, 2, lambda size: 2**64 - 1)},
)
faults(
    "chunk-out-of-bounds",
    "bitmask raw",
    {"far": record(2, 0, lambda offset: 2**20), "huge": record(2, 0, lambda offset: 2**64 - 64)},
)
faults(
    "chunk-overlap",
    "bitmask raw",
    {
        "first": record(0, 0, lambda offset: 0),
        "chunk": record(2, 0, lambda offset: offset - 64),
        "not aligned": record(2, 0, lambda offset: offset - 1),
        "index": record(4, 1, lambda size: size + 64),
    },
)
faults(
    "chunk-gap",
    "bitmask raw",
    {
        "first": record(0, 0, lambda offset: 128),
        "chunk": lambda file: file.behind.update({1: bytes(64)}),
        "not aligned": record(2, 0, lambda offset: offset + 1),
        "index": lambda file: file.behind.update({4: bytes(64)}),
        "no chunks": no_chunks,
    },
)
faults(
    "chunk-assignment",
    "bitmask raw",
    {
        "of none": lambda file: file.chunks.append((b"a", 1)),
        "empty, of none": lambda file: file.chunks.append((b"", 0)),
        "does not exist": lambda file: file.chunks.__delitem__(-1),
        "gap": fields("v", first_chunk=5),
        "far": fields("v", first_chunk=2**63 - 1),
    },
)
faults("chunk-assignment", "dense raw", {"of several": lambda file: file.index["tensors"].update(x=dict(file.entry()))})
faults(
    "chunk-size",
    "bitmask raw",
    {"stored over raw": record(2, 1, lambda size: size + 1), "raw codec": record(2, 2, lambda size: size + 4)},
)
faults("chunk-size", "big dense", {"ratio": lambda file: file.chunks.__setitem__(0, (b"a" * 31, 2**20))})
faults(
    "array-size",
    "bitmask raw",
    {
        "mask": array("mask", "u1", lambda mask: mask[:-16]),
        "part": array("values", "u1", lambda values: values[:-1]),
        "row_offsets": array("row_offsets", "u4", lambda offsets: offsets[:-1]),
        "negative_zeros": array("negative_zeros", "u1", lambda signs: np.append(signs, signs[:1] * 0)),
    },
)
for _array, _dtype in {
    "row_counts": "u4",
    "row_permutation": "u2",
    "slice_offsets": "u4",
    "values": "u4",
    "columns": "u2",
}.items():
    faults("array-size", "permuted raw", {_array: array(_array, _dtype, lambda content: content[:-1])})
faults(
    "array-size",
    "permuted raw",
    {
        "columns of a slot": array("columns", "u2", lambda columns: columns[:-8]),
        "negative_zeros": array("negative_zeros", "u1", lambda signs: np.append(signs, signs[:1] * 0)),
    },
)
faults("array-size", "dense raw", {"values": array("values", "u4", lambda values: values[:-1])})
faults("chunk-checksum", "bitmask raw", {"checksum": record(2, 3, lambda checksum: checksum ^ 1)})


# 5.2


def recompressed(compress):
    def change(file: TakenApart):
        values = file.array("values", "u4")
        planes = values.view(np.uint8).reshape(-1, 4).T.tobytes()
        file.chunks[file.number("values")] = (compress(planes), values.nbytes)

    return change


def compressed(data: bytes, **options) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)


def changed(data: bytes, position: int, bits: int) -> bytes:
    out = bytearray(data)
    out[position] ^= bits
    return bytes(out)


def windowed(frame: bytes, log: int) -> bytes:
    """A frame that was a single segment, as one that states a window of 2^log bytes."""
    assert frame[4] & 0x20
    return frame[:4] + bytes([frame[4] & ~0x20, (log - 10) << 3]) + frame[5:]


SKIPPABLE = b"\x50\x2a\x4d\x18\4\0\0\0skip"
DICTIONARY = zstandard.train_dictionary(2000, [np.random.default_rng(n).bytes(30) * 3 for n in range(2000)])
faults(
    "ok",
    "big dense",
    {
        "with checksum": recompressed(lambda data: compressed(data, write_checksum=True)),
        "another level": recompressed(lambda data: compressed(data, level=19)),
        "window of the raw size": recompressed(lambda data: windowed(compressed(data), 20)),
    },
)
faults(
    "zstd-size",
    "big dense",
    {
        "no content size": recompressed(lambda data: compressed(data, write_content_size=False)),
        "less": recompressed(lambda data: compressed(data[:-4])),
        "more": recompressed(lambda data: compressed(data + b"more")),
    },
)
faults(
    "zstd-corrupt",
    "big dense",
    {
        "no frame": recompressed(lambda data: b"no frame" * 50),
        "cut": recompressed(lambda data: compressed(data)[:-1]),
        "trailing byte": recompressed(lambda data: compressed(data) + b"\0"),
        "another frame": recompressed(lambda data: compressed(data) + compressed(b"")),
        "skippable frame": recompressed(lambda data: compressed(data) + SKIPPABLE),
        "dictionary": recompressed(lambda data: compressed(data, dict_data=DICTIONARY)),
        "skippable frame first": recompressed(lambda data: SKIPPABLE + compressed(data)),
        "window": recompressed(lambda data: windowed(compressed(data), 21)),
        "checksum": recompressed(lambda data: changed(compressed(data, write_checksum=True), -1, 1)),
        "reserved bit": recompressed(lambda data: changed(compressed(data), 4, 8)),
    },
)

# 5.3


def both(first, second):
    """Two changes, one after the other."""

    def change(file: TakenApart):
        first(file)
        second(file)

    return change


def coded(array: str, raw: int, chunk: bytes | None = None, model: bytes | None = None, **entry):
    """Give an array codec `rans`, a chunk of so many bytes raw, a model, and its entry other fields."""

    def change(file: TakenApart):
        file.entry()["arrays"][array] = "rans"
        file.entry().update(entry)
        if model is not None:
            file.entry()["models"] = {array: model}
        if chunk is not None:
            file.chunks[file.number(array)] = (chunk, raw)

    return change


def bits_of(*parts: str | bytes) -> bytes:
    """Bits in the order in which they are read, then bytes from the next whole byte on."""
    bits = "".join(part for part in parts if isinstance(part, str))
    return rans_files.BitsOut(bits).done() + b"".join(part for part in parts if isinstance(part, bytes))


NUMBER_OF_128 = "1" + "000000"  # as expected of the first of two frequencies of precision 8: the number 0 of order 6
CLASSES = "00000" + "00000"  # one of rows, one of columns
HEAD = "00" + "0" + "000000" + "000" + CLASSES  # first lag, folded, shift, precision
TWO_BINS = "1" * 15 + "01" * 2 + "00" * 14  # of 16 bits: keys 0 and 1, keys 2 and 3
ELEMENTS = [0, 3, 2, 0, 1] * 20


def number(value: int, order: int) -> str:
    out = rans_files.BitsOut()
    out.number(value, order)
    return "".join(map(str, out.bits))


def elements(model: bytes, chunk: bytes | None = None):
    """100 elements of 16 bits."""
    if chunk is None:
        bins, offsets = [element // 2 for element in ELEMENTS], [element % 2 for element in ELEMENTS]
        chunk = rans_files.encode_elements(bins, offsets, [1, 1], [(8, [128, 128])] * 100)
    return coded("values", 200, chunk, model)


def elements_changed(value):
    """A chunk that was valid: 8 bytes, 16 bytes of offset bits of which 100 are used, a state, words."""

    def change(file: TakenApart):
        elements(bits_of(HEAD, TWO_BINS, NUMBER_OF_128))(file)
        chunk, raw = file.chunks[0]
        file.chunks[0] = (value(chunk), raw)

    return change


def full_tree(bins: int) -> tuple[bytes, bytes]:
    """A model of 4096 bins of 16 bits, or of one more, and a chunk."""
    widths = [3, 3, *[4] * 4095] if bins > 4096 else [4] * 4096
    tree = ""
    for level in range(4096):  # the inner nodes before each leaf are the bits that have become 0, and at first all
        tree += "1" * (12 if level == 0 else (level & -level).bit_length() - 1)
        tree += "1" + "01" * 2 if bins > 4096 and level == 0 else "01"
    frequencies = [7] * (bins - 1)
    frequencies.append(2**15 - sum(frequencies))
    out = rans_files.BitsOut("00" + "0" + "000000" + "111" + CLASSES + tree)
    rans_files.put_bins(out, frequencies, widths, 15)
    return out.done(), rans_files.encode_elements([bins - 1] * 100, [5] * 100, widths, [(15, frequencies)] * 100)


EVERY_BYTE = "1" + "010" + "11" * 7  # table: popcounts, all frequencies 1
POSITIONS = "000" + "00000" + "1" + "00000"  # precision; one class of rows; copies; one class of columns
TWO_ROW_SYMBOLS = "11" + "1" + "0" * 10  # of the same frequency


def positions(rows=(0, 1, 0, 0, 1), groups=((0, 1),), nnz=2, model=None, value=lambda chunk: chunk):
    """A mask of 5 x 70; of the 45 bytes of groups those that are not 0."""
    row_table, byte_table = (12, [2048, 2048]), (8, [1] * 256)
    content = [dict(groups).get(number, 0) for number in range(45)]
    head = rans_files.encode_stream(rows, [row_table] * 5)
    chunk = struct.pack("<I", len(head)) + head + rans_files.encode_stream(content, [byte_table] * 45)
    model = bits_of(POSITIONS, EVERY_BYTE * 2, TWO_ROW_SYMBOLS) if model is None else model

    def change(file: TakenApart):
        coded("mask", 80, value(chunk), model, nnz=nnz)(file)
        file.entry()["arrays"]["row_offsets"] = "rans"
        file.chunks[file.number("row_offsets")] = (b"", 24)
        file.put("values", b"\1" * nnz)

    return change


BASES["u16"] = sparsefmt.save({"w": np.arange(100, dtype=np.uint16)}, codec="raw")
BASES["u64"] = sparsefmt.save({"w": np.arange(100, dtype=np.uint64)}, codec="raw")
BASES["5 x 70"] = sparsefmt.save({"w": np.zeros((5, 70), np.uint8)}, layout="bitmask", codec="raw")
BASES["wide"] = sparsefmt.save({"w": np.zeros((1, 2**20 + 1), np.uint8)}, layout="bitmask", codec="raw")
faults(
    "ok",
    "u16",
    {
        "two bins": elements(bits_of(HEAD, TWO_BINS, NUMBER_OF_128)),
        "4096 bins": elements(*full_tree(4096)),
        "any model without coded chunks": coded("values", 200, model=b"any"),
        "no model without coded chunks": coded("values", 200, model=b""),
    },
)
faults("ok", "5 x 70", {"copies": positions()})
faults(
    "rans-model",
    "u16",
    {
        "nothing": elements(b""),
        "cut": elements(bits_of(HEAD, TWO_BINS, NUMBER_OF_128)[:-1]),
        "bit behind": elements(bits_of(HEAD, TWO_BINS, NUMBER_OF_128, "1")),
        "byte behind": elements(bits_of(HEAD, TWO_BINS, NUMBER_OF_128, b"\0")),
        "lag": elements(bits_of("11", HEAD[2:], TWO_BINS, NUMBER_OF_128)),
        "shift": elements(bits_of("00" + "0" + "000010" + "000" + CLASSES, "1")),
        "no bins": elements(bits_of(HEAD, "00")),
        "4097 bins": elements(*full_tree(4097)),
        "endless tree": elements(bits_of(HEAD, "1" * 2**15)),
        "frequency 0": elements(bits_of(HEAD, TWO_BINS, number(2 * 128 - 1, 6))),
        "last frequency 0": elements(bits_of(HEAD, TWO_BINS, number(2 * 128, 6))),
        "negative frequency": elements(bits_of(HEAD, TWO_BINS, number(2 * 1000 - 1, 6))),
        "33 bits 0": elements(bits_of(HEAD, TWO_BINS, "0" * 33 + "1" + "0" * 39)),
        "largest number": elements(bits_of(HEAD, TWO_BINS, "0" * 32 + "1" * 39)),
    },
)
faults("rans-model", "u64", {"bin of 64 bits": coded("values", 800, bytes(100), bits_of(HEAD, "01"))})
faults(
    "rans-model",
    "5 x 70",
    {
        "no symbols": positions(model=bits_of(POSITIONS, "0" * 257, EVERY_BYTE, TWO_ROW_SYMBOLS)),
        "no row symbols": positions(model=bits_of(POSITIONS, EVERY_BYTE * 2, "00")),
        "popcounts": positions(model=bits_of(POSITIONS, "1" + number(2, 0) + number(1, 2) + "11" * 6, EVERY_BYTE)),
        "huge popcounts": positions(model=bits_of(POSITIONS, "1" + "0" * 32 + "1" * 2000)),
        "byte behind": positions(model=bits_of(POSITIONS, EVERY_BYTE * 2, TWO_ROW_SYMBOLS, b"\0")),
        "cut": positions(model=bits_of(POSITIONS, EVERY_BYTE)),
    },
)
CLASSES_OF_COLUMNS = "000" + "00000" + "0" + "10000" + "0" + EVERY_BYTE + TWO_ROW_SYMBOLS  # these for columns
faults(
    "rans-model",
    "wide",
    {"columns": coded("mask", 131080, bytes(1000), bits_of(CLASSES_OF_COLUMNS, bytes(2**18)))},
)
BASES["permuted u16"] = sparsefmt.save({"w": np.ones((10, 10), np.uint16)}, layout="permuted", codec="raw")
BASES["bitmask u16"] = sparsefmt.save({"w": np.ones((10, 10), np.uint16)}, layout="bitmask", codec="raw")
BASES["wide u16"] = sparsefmt.save({"w": np.ones((1, 2**20 + 1), np.uint16)}, layout="dense", codec="raw")
ROW_CLASSES = HEAD[:12] + "10000" + "00000" + "0" + TWO_BINS + NUMBER_OF_128 + TWO_ROW_SYMBOLS
COLUMN_CLASSES = HEAD[:12] + "00000" + "10000" + "0" + TWO_BINS + NUMBER_OF_128 + TWO_ROW_SYMBOLS


def elements_of_rows(count: int = 100, value=lambda rows: rows):
    """So many elements of 16 bits in 10 rows, which have classes; the rows may be changed."""
    rows = rans_files.encode_stream([0, 1] * 5, [(12, [2048, 2048])] * 10)
    head = value(struct.pack("<I", len(rows)) + rows)
    chunk = rans_files.encode_elements([0] * count, [1] * count, [1, 1], [(8, [128, 128])] * count, head)
    return coded("values", 2 * count, chunk, bits_of(ROW_CLASSES))


faults("ok", "bitmask u16", {"classes of rows": elements_of_rows()})
faults("rans-model", "permuted u16", {"classes of rows": elements_of_rows(160)})
faults(
    "rans-model",
    "wide u16",
    {"columns": coded("values", 2**21 + 2, bytes(10**5), bits_of(COLUMN_CLASSES, bytes(2**18)))},
)
faults(
    "rans-stream",
    "bitmask u16",
    {
        "rows beyond the chunk": elements_of_rows(value=lambda rows: b"\xff" * 4 + rows[4:]),
        "no rows": elements_of_rows(value=lambda rows: b""),
        "word less of rows": elements_of_rows(value=lambda rows: struct.pack("<I", len(rows) - 6) + rows[4:-2]),
    },
)
faults(
    "row-offsets",
    "bitmask u16",
    {"classes of rows": both(elements_of_rows(), array("mask", "u1", item(0, 0xFE)))},
)
faults(
    "rans-stream",
    "u16",
    {
        "7 bytes": elements_changed(lambda chunk: chunk[:7]),
        "without states": elements_changed(lambda chunk: chunk[:26]),
        "offset bits behind the chunk": elements_changed(lambda chunk: struct.pack("<Q", 64 * 5) + chunk[8:44]),
        "most offset bits": elements_changed(lambda chunk: b"\xff" * 8 + chunk[8:]),
        "one offset bit less": elements_changed(lambda chunk: bytes([99]) + chunk[1:]),
        "one offset bit more": elements_changed(lambda chunk: bytes([101]) + chunk[1:]),
        "bit behind the offset bits": elements_changed(lambda chunk: changed(chunk, 8 + 100 // 8, 1 << 100 % 8)),
        "state": elements_changed(lambda chunk: chunk[:24] + b"\xff\xff\0\0" + chunk[28:]),
        "state in the end": elements(
            bits_of(HEAD, "1" * 15 + "01" + "00" * 15),
            changed(rans_files.encode_elements([0] * 100, [1] * 100, [1], [(8, [256])] * 100), -4, 1),
        ),
        "word less": elements_changed(lambda chunk: chunk[:-2]),
        "word more": elements_changed(lambda chunk: chunk + b"\0\0"),
        "half a word more": elements_changed(lambda chunk: chunk + b"\0"),
    },
)
faults(
    "rans-stream",
    "5 x 70",
    {
        "first row is a copy": positions(rows=(1, 0, 0, 0, 0)),
        "3 bytes": positions(value=lambda chunk: chunk[:3]),
        "rows behind the chunk": positions(value=lambda chunk: b"\xff" * 4 + chunk[4:]),
        "word more of rows": positions(value=lambda c: bytes([c[0] + 2]) + c[1 : 4 + c[0]] + b"\0\0" + c[4 + c[0] :]),
        "word less": positions(value=lambda chunk: chunk[:-2]),
    },
)
faults(
    "mask-padding",
    "5 x 70",
    {"coded": positions(groups=[(8, 64)], nnz=1), "coded, copy": positions(groups=[(17, 64)], nnz=1)},
)
faults("stored-zero", "5 x 70", {"coded mask": both(positions(), lambda file: file.put("values", b"\1\0"))})
faults(
    "chunk-size",
    "u16",
    {
        "ratio of rans": coded("values", 262146, b"a", b"", shape=[131073], tile_rows=131073),
        "nothing": coded("values", 200, b"", b""),
    },
)
faults(
    "chunk-size",
    "5 x 70",
    {"row_offsets": both(positions(), lambda file: file.chunks.__setitem__(1, (b"four", 24)))},
)
faults(
    "model-set",
    "u16",
    {"none": arrays(values="rans"), "of raw": fields(models={"values": b""}), "of none": fields(models={"x": b""})},
)
faults("model-set", "bitmask raw", {"row_offsets": coded("row_offsets", 84, model=b"")})
faults("ok", "bitmask raw", {"row_offsets by themselves": arrays(row_offsets="rans")})
faults("model-size", "u16", {"limit": coded("values", 200, model=bytes(2**20 + 1))})
faults("rans-model", "u16", {"at the limit": elements(bytes(2**20))})
faults(
    "index-type",
    "u16",
    {"models": fields(models=5), "model": both(arrays(values="rans"), fields(models={"values": ""}))},
)
faults("index-not-canonical", "u16", {"models that are empty": fields(models={})})

# 4
faults("bool-invalid", "bool", {"2": array("values", "u1", item(0, 2)), "255": array("values", "u1", item(-1, 255))})
faults("values-padding", "packed", {"bit": array("values", "u1", item(-1, lambda values: values[-1] | 0x80))})
faults(
    "mask-padding",
    "bitmask raw",
    {
        "next column": array("mask", "u1", item(8, lambda mask: mask[8] | 0x40)),
        "last": array("mask", "u1", item(-1, 0x80)),
    },
)


def one_value_less(file: TakenApart) -> None:
    file.put("values", file.array("values")[:-4])
    file.entry()["nnz"] -= 1


faults(
    "row-offsets",
    "positive bitmask",
    {
        "mask": array("mask", "u1", item(0, lambda mask: mask[0] ^ 1)),
        "first": array("row_offsets", "u4", item(0, 1)),
        "one": array("row_offsets", "u4", item(5, lambda offsets: offsets[5] + 1)),
        "values": one_value_less,
        "last": array("row_offsets", "u4", item(-1, 2**32 - 1)),
    },
)
for _base in "bitmask raw", "permuted raw":
    faults("stored-zero", _base, {"+0": array("values", "u4", item(0, 0)), "-0": array("values", "u4", item(0, 2**31))})


def equal_counts_out_of_order(file: TakenApart) -> None:
    counts, permutation = file.array("row_counts", "u4"), file.array("row_permutation", "u2")
    at = int(np.flatnonzero(counts[1:] == counts[:-1])[0])
    permutation[[at, at + 1]] = permutation[[at + 1, at]]
    file.put("row_permutation", permutation)


def last_column_beyond(file: TakenApart) -> None:
    count = int(file.array("row_counts", "u4")[0])
    array("columns", "u2", item(8 * (count - 1), 70))(file)


def one_slot_more(file: TakenApart) -> None:
    for name, dtype in ("columns", "u2"), ("values", "u4"):
        array(name, dtype, lambda content: np.append(content, np.zeros(8, content.dtype)))(file)


faults(
    "row-permutation",
    "permuted raw",
    {
        "twice": array("row_permutation", "u2", item(0, lambda rows: rows[1])),
        "no row": array("row_permutation", "u2", item(0, 20)),
        "equal counts": equal_counts_out_of_order,
    },
)
faults(
    "row-counts",
    "permuted raw",
    {
        "ascending": array("row_counts", "u4", item(1, lambda counts: counts[0] + 1)),
        "over columns": array("row_counts", "u4", item(0, 71)),
        "huge": array("row_counts", "u4", item(0, 2**32 - 1)),
    },
)
faults(
    "slice-offsets",
    "permuted raw",
    {
        "first": array("slice_offsets", "u4", item(0, 1)),
        "last": array("slice_offsets", "u4", item(-1, 2**32 - 1)),
        "second": array("slice_offsets", "u4", item(1, lambda slots: slots[1] + 1)),
        "one slot more": one_slot_more,
    },
)
faults("column-range", "permuted raw", {"last of a row": last_column_beyond})
faults(
    "column-order",
    "permuted raw",
    {
        "twice": array("columns", "u2", item(8, lambda columns: columns[0])),
        "swapped": array("columns", "u2", item([0, 8], lambda columns: columns[[8, 0]])),
    },
)
faults(
    "slot-padding",
    "permuted raw",
    {
        "value": array("values", "u4", item(-1, 1)),
        "-0": array("values", "u4", item(-1, 2**31)),
        "column": array("columns", "u2", item(-1, 1)),
    },
)


def add_negative_zeros(file: TakenApart) -> None:
    file.entry()["arrays"]["negative_zeros"] = "raw"
    size = (int(np.prod(file.entry()["shape"])) - file.entry()["nnz"] + 7) // 8
    file.chunks.insert(file.number("negative_zeros"), (bytes(size), size))


for _base in "bitmask zstd", "permuted raw":
    faults("negative-zeros-empty", _base, {"cleared": array("negative_zeros", "u1", lambda signs: signs * 0)})
    faults(
        "negative-zeros-padding",
        _base,
        {"last bit": array("negative_zeros", "u1", item(-1, lambda signs: signs[-1] | 0x80))},
    )
for _base in "positive bitmask", "positive permuted", "full":
    faults("negative-zeros-empty", _base, {"added": add_negative_zeros})


@pytest.mark.parametrize(("code", "base", "change"), FAULTS)
def test_fault(code, base, change):
    file = TakenApart(BASES[base])
    other = change(file)
    data = other if isinstance(other, bytes) else bytes(file)
    by_reader = outcome_of_reader(data)
    assert isinstance(by_reader, dict) if code == "ok" else by_reader == code
    assert outcome_of_library(data) == by_reader


def test_every_code_of_section_7_is_here():
    section = (SPEC / "SPEC.md").read_text("utf-8").split("\n## 7. ")[1].split("\n## ")[0]
    codes = set(re.findall(r"^\| `([a-z0-9-]+)` \|", section, re.MULTILINE))
    assert len(codes) > 40
    assert codes == {case.values[0] for case in FAULTS} - {"ok"}


# -------------------------------------------------------------------------------------------------------- mutations


def integers(value, path=()):
    """Paths of all integers in an index."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from integers(below, (*path, key))
    elif isinstance(value, list):
        for number, below in enumerate(value):
            yield from integers(below, (*path, number))
    elif isinstance(value, int):
        yield path


def mutate_file(rng: np.random.Generator, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        out[rng.integers(len(out))] ^= 1 << rng.integers(8)
    return bytes(out)


def mutate_bytes(rng: np.random.Generator, content: bytes) -> bytes:
    out = bytearray(content)
    for _ in range(rng.integers(1, 3)):
        at = int(rng.integers(len(out) + 1))
        match rng.integers(5):
            case 0 | 1 if at < len(out):
                out[at] ^= 1 << rng.integers(8)
            case 2 if at < len(out):
                out[at] = rng.integers(256)
            case 3:
                del out[at : at + int(rng.integers(1, 9))]
            case 4:
                out[at:at] = bytes(rng.integers(0, 3, rng.integers(1, 9), np.uint8))
    return bytes(out)


def mutate(rng: np.random.Generator, data: bytes) -> bytes:
    """The checksums are repaired, but for the first kind."""
    file = TakenApart(data)
    file.preamble[10] = rng.random() < 0.1
    number = int(rng.integers(len(file.chunks)))
    stored, raw = file.chunks[number]
    match rng.integers(7):
        case 0:
            return mutate_file(rng, data)
        case 1:
            file.change_index = lambda index: mutate_bytes(rng, index)
        case 2:
            paths = list(integers(file.index))
            for _ in range(rng.integers(1, 3)):
                *path, last = paths[rng.integers(len(paths))]
                at = file.index
                for key in path:
                    at = at[key]
                at[last] = int(rng.choice([at[last] + 1, max(at[last] - 1, 0), at[last] * 2, 0, 1, rng.integers(100)]))
        case 3:
            field, by = int(rng.integers(3)), int(rng.choice([1, -1, 2, -2, 4, 8, -8, 64, -64]))
            record(number, field, lambda value: max(0, value + by))(file)
        case 4:  # keeps its size
            if stored:
                file.chunks[number] = (changed(stored, int(rng.integers(len(stored))), 1 << int(rng.integers(8))), raw)
        case 5:
            content = mutate_bytes(rng, stored if len(stored) == raw else zstandard.decompress(stored))
            file.chunks[number] = (content, len(content))
        case 6:  # numbers stay small numbers
            content = np.frombuffer(stored if len(stored) == raw else zstandard.decompress(stored), np.uint8).copy()
            if content.size:
                at = rng.integers(content.size, size=2)
                content[at] = content[at[::-1]]
                file.chunks[number] = (content.tobytes(), content.size)
    return bytes(file)


def mutation_bases() -> list[bytes]:
    rng = np.random.default_rng(8)
    small = weight()[:11, :37].copy()
    mixed = {
        "w": small,
        "v": small[0],
        "0": np.float64(3),
        "none": small[:, :0],
        "bool": small > 0,
        "bf16": small.astype(ml_dtypes.bfloat16),
        "i8": (small * 10).astype(np.int8),
        "f4": random_bits(rng, "F4", (9, 5)),
        "wide": np.pad(small[:3], ((0, 0), (0, 66000))),
    }
    codecs = "raw", "zstd"
    files = [sparsefmt.save(mixed, {"a": "b"}, layout=layout, codec=codec) for layout in LAYOUTS for codec in codecs]
    files += [sparsefmt.save({"w": small}, layout=layout, codec="raw") for layout in LAYOUTS[1:]] * 4
    return [*files, BASES["big bitmask"], BASES["big permuted"]]


@pytest.mark.parametrize("seed", range(4))
def test_mutations(seed):
    rng = np.random.default_rng(seed)
    files, accepted = mutation_bases(), 0
    for _ in range(1000):
        data = mutate(rng, files[rng.integers(len(files))])
        by_reader, by_library = outcome_of_reader(data), outcome_of_library(data)
        if isinstance(by_reader, dict):
            accepted += 1
            assert by_library == by_reader
        else:
            assert isinstance(by_library, str), by_reader
    assert 50 < accepted < 500


def file_of_elements(rng: np.random.Generator) -> TakenApart:
    """Of one or two tiles; no chunk coded that is not made smaller."""
    width, tiles, r = int(rng.choice([1, 2, 4, 8])), int(rng.integers(1, 3)), int(rng.choice([1, 9, 60]))
    c, layout = int(rng.choice([1, 17, 70])), str(rng.choice(["dense", "bitmask"]))
    masks = [(rng.random((r, c)) < 0.5) | (layout == "dense") for _ in range(tiles)]
    model, chunk = rans_files.some_elements(rng, 8 * width, c)
    parts = []
    for mask in masks:
        parts.append(TakenApart(sparsefmt.save({"w": mask.astype(f"u{width}")}, layout=layout, codec="raw")))
        rows, columns = np.nonzero(mask)
        stored, raw = chunk(rows.tolist(), columns.tolist(), r), len(rows) * width
        if len(stored) < raw:
            parts[-1].chunks[-1] = (stored, raw)
    file = parts[0]
    file.chunks = [chunk for part in parts for chunk in part.chunks]
    coded("values", 0, model=model, shape=[tiles * r, c])(file)
    if layout == "bitmask":
        file.entry()["nnz"] = int(np.sum(masks))
    return file


def file_of_positions(rng: np.random.Generator) -> tuple[TakenApart, np.ndarray]:
    """Layout `bitmask`, of one or two tiles; no mask coded that is not made smaller."""
    c, r, tiles = int(rng.choice([1, 8, 9, 64, 70, 130, 500])), int(rng.choice([1, 9, 40])), int(rng.integers(1, 3))
    file = TakenApart(sparsefmt.save({"w": np.zeros((tiles * r, c), np.uint8)}, layout="bitmask", codec="raw"))
    model, chunk = rans_files.some_positions(rng, c)
    file.chunks, masks = [], []
    for _ in range(tiles):
        stored, mask = chunk(r)
        plain = np.packbits(np.pad(mask, ((0, 0), (0, -c % 64))), axis=1, bitorder="little").tobytes()
        stored = stored if len(stored) < len(plain) else plain
        file.chunks += [(stored, len(plain)), (b"", 4 * r + 4), (b"\1" * mask.sum(), int(mask.sum()))]
        masks.append(mask)
    coded("row_offsets", 0)(file)
    coded("mask", 0, model=model, tile_rows=r, nnz=int(np.sum(masks)))(file)
    return file, np.concatenate(masks)


@pytest.mark.parametrize("seed", range(3))
def test_rans_of_any_model(seed):
    """The strict reader, the one of section 10, and the library."""
    rng, was_coded, section_10 = np.random.default_rng(seed), 0, {}
    exec("".join(re.findall(r"```python\n(.*?)```", (SPEC / "SPEC.md").read_text("utf-8"), re.DOTALL)), section_10)
    for _ in range(40):
        file = file_of_elements(rng)
        by_reader = outcome_of_reader(bytes(file))
        assert isinstance(by_reader, dict) or by_reader == "stored-zero"
        assert outcome_of_library(bytes(file)) == by_reader
        assert by_reader == "stored-zero" or section_10["read"](bytes(file)) == by_reader
        was_coded += isinstance(by_reader, dict) and any(len(stored) < raw > 0 for stored, raw in file.chunks[-1:])
    for _ in range(30):
        file, mask = file_of_positions(rng)
        expected = {"w": mask.astype(np.uint8).tobytes()}
        assert outcome_of_reader(bytes(file)) == expected
        assert outcome_of_library(bytes(file)) == expected
        assert section_10["read"](bytes(file)) == expected
        was_coded += any(len(stored) < raw for stored, raw in file.chunks[::3])
    assert was_coded > 20


def mutate_rans(rng: np.random.Generator, file: TakenApart) -> None:
    """Damage a model, or a chunk that it codes."""
    modelled = [(entry, array) for entry in file.index["tensors"].values() for array in entry.get("models", {})]
    entry, array = modelled[rng.integers(len(modelled))]
    if rng.random() < 0.5:
        model = entry["models"][array]
        whole_model = rng.integers(0, 256, rng.integers(60), np.uint8).tobytes()
        entry["models"][array] = whole_model if rng.random() < 0.2 else mutate_bytes(rng, model)
        return
    arrays = sorted(entry["arrays"])
    tile = int(rng.integers(-(-entry["shape"][0] // entry["tile_rows"])))
    number = entry["first_chunk"] + tile * len(arrays) + arrays.index(array)
    stored, raw = file.chunks[number]
    if 0 < len(stored) < raw:
        file.chunks[number] = (mutate_bytes(rng, stored)[: raw - 1], raw)


def rans_mutation_bases(rng: np.random.Generator) -> list[TakenApart]:
    w = weight()
    mixed = {
        "w": w,
        "v": np.arange(2000),
        "bf16": w.astype(ml_dtypes.bfloat16),
        "2:4": np.where(structured_masks(rng, 64, 80)["2:4"], np.float32(1.5), np.float32(0)),
        "columns": structured_masks(rng, 64, 80)["columns"] * rng.integers(1, 9, (64, 80)).astype(np.int8),
        "copies": structured_masks(rng, 64, 80)["columns, in copies"] * np.float16(3),
    }
    files = [TakenApart(sparsefmt.save(mixed, layout=layout, codec="rans")) for layout in LAYOUTS]
    return files + [file_of_elements(rng) for _ in range(10)] + [file_of_positions(rng)[0] for _ in range(10)]


@pytest.mark.parametrize("seed", range(3))
def test_mutations_of_rans(seed):
    rng = np.random.default_rng(seed)
    files, accepted = rans_mutation_bases(rng), 0
    for _ in range(400):
        file = copy.deepcopy(files[rng.integers(len(files))])
        mutate_rans(rng, file)
        by_reader, by_library = outcome_of_reader(bytes(file)), outcome_of_library(bytes(file))
        if isinstance(by_reader, dict):
            accepted += 1
            assert by_library == by_reader
        elif by_reader.startswith("rans-"):  # the classes of columns are a stream, and part of a model
            assert by_library in ("rans-model", "rans-stream"), by_reader
        else:
            assert isinstance(by_library, str), by_reader
    assert 5 < accepted < 300


# ----------------------------------------------------------------------------------------------------- command line


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(SPEC / "reader.py"), *arguments], capture_output=True, check=False)


def test_command_line(tmp_path):
    path = tmp_path / "a.sparsefmt"
    path.write_bytes(BASES["bitmask zstd"])
    assert run(str(path)).stdout.decode().splitlines() == ["'v': F32 [70] dense", "'w': F32 [20, 70] bitmask"]
    assert run(str(path), "w").stdout == weight().tobytes()
    path.write_bytes(BASES["bitmask zstd"][:-1])
    for arguments in [str(path)], [str(path), "w"], [str(tmp_path / "none")]:
        result = run(*arguments)
        assert (result.returncode, result.stdout, result.stderr.count(b"\n")) == (1, b"", 1)
