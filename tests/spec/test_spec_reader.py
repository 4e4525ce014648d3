"""spec/python was written from SPEC.md alone. What it and the library make of the same bytes must be the same."""

import copy
import gc
import hashlib
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import product

import ml_dtypes
import naive
import numpy as np
import pytest
import zstandard
from helpers import ROOT, first_always
from outcomes import BITS, DTYPES, dtype_name, outcome_of_library, outcome_of_reader, packed, reader

import sparsefmt
from sparsefmt.layouts import FORMS, heights
from tools import forms
from tools.taken_apart import TakenApart, chunks_of
from tools.vectors.faults import FAULTS, rans_files
from tools.vectors.faults.changes import base, changed, record, weight
from tools.vectors.faults.rans import coded

pytestmark = pytest.mark.slow

SPEC = ROOT / "spec"


ALWAYS_DENSE = {"BOOL", "F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "C64"}
WITH_NEGATIVE_ZERO = {"F8_E5M2", "F8_E4M3", "F16", "BF16", "F32", "F64"}
LAYOUTS = list(forms.LAYOUTS)
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


def check_tensors(tensors: dict[str, np.ndarray], layout: str, codec: str, **options) -> None:
    read = reader.read(forms.save(tensors, form=forms.LAYOUTS[layout], codec=codec, **options))
    assert read.keys() == tensors.keys()
    for name, array in tensors.items():
        dtype = dtype_name(array)
        may_be_sparse = array.ndim >= 2 and array.size > 0 and dtype not in ALWAYS_DENSE
        expected = FORMS[forms.LAYOUTS[layout]].name if may_be_sparse else "dense"
        assert (read[name].dtype, read[name].shape, read[name].layout) == (dtype, array.shape, expected), name
        assert read[name].data == packed(array, dtype), name


# ---------------------------------------------------------------------------------------------------------- tensors


@pytest.mark.parametrize(("layout", "codec"), [*product(LAYOUTS, CODECS), ("bitmask", "auto")])
def test_every_dtype_and_shape(layout, codec):
    """With "auto", arrays of one tensor have different codecs; each is read by its own, whatever the layout."""
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
        for cols in (65535, 65536, 65537) if layout != "dense" else (65537,):  # whose layout has no columns
            tensors[f"{dtype} wide {cols}"] = random_bits(rng, dtype, (3, cols), 0.01)
    rows = np.tril(np.ones((40, 40), np.float32))
    tensors |= {"ascending": rows, "descending": rows[::-1].copy(), "equal": np.roll(np.eye(40), 7, 0)}
    tensors["2:4"] = np.tile(np.array([1, 0, 2, 0], np.float32), (16, 32))
    check_tensors(tensors, layout, codec)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_of_several_tiles(layout, monkeypatch):
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
    check_has_tiles(forms.save(tensors, form=forms.LAYOUTS[layout], codec="raw"))
    # streams of 32 states, as in tiles of the usual height
    monkeypatch.setattr(heights, "TILE_POSITIONS", 1 << 18)
    smaller = {"BF16": (300, 1000), "F64": (70_000, 4), "F4": (150, 1999)}
    tensors = {dtype: random_bits(rng, dtype, shape, 0.05) for dtype, shape in smaller.items()}
    check_tensors(tensors, layout, "rans")
    check_has_tiles(forms.save(tensors, form=forms.LAYOUTS[layout], codec="raw"))


def check_has_tiles(data: bytes) -> None:
    """Tensors of more than three rows have several tiles."""
    entries = TakenApart(data).index["tensors"].values()
    assert all(entry["tile_rows"] < entry["shape"][0] for entry in entries if entry["shape"][0] > 3)


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
@pytest.mark.parametrize("shape", first_always([(590, 1000), (20, 12), (90, 100), (150, 520)]), ids=str)
def test_rans_of_structured_masks(shape, layout, monkeypatch):
    """Streams of 1, of 8 and of 32 states, those of a mask of 576 rows among them; several tiles."""
    monkeypatch.setattr(heights, "TILE_POSITIONS", 1000 * 576)
    rng, tensors = np.random.default_rng(shape), {}
    palette = np.array([1.5, -2, 3.25, 1e-3, -7, 2, 0.1], np.float32)
    masks = structured_masks(rng, *shape)
    if shape[0] > 500:
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
        "16 ascending": np.cumsum(rng.integers(-9, 99, (count, 16)), 0).astype(np.int32),
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


# --------------------------------------------------------------------------------------------------------- products


MULTIPLY = reader.products.multiply
MULTIPLIED: dict[tuple[np.dtype, tuple[int, ...], bytes, bytes], np.ndarray] = {}


def multiply_once(w: np.ndarray, x: np.ndarray) -> np.ndarray:
    """What the reader makes of a dense matrix and a vector: once, whatever layouts the matrix is stored in."""
    key = w.dtype, w.shape, hashlib.sha256(w.tobytes()).digest(), x.tobytes()
    if key not in MULTIPLIED:
        MULTIPLIED[key] = MULTIPLY(w, x)
    return MULTIPLIED[key]


@pytest.fixture
def multiplied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader.products, "multiply", multiply_once)


def check_products(tensors: dict[str, np.ndarray], xs: list[np.ndarray], layout: str = "dense") -> None:
    """Of chunks that are raw: what codecs make of all these dtypes, widths and layouts is compared above."""
    data = forms.save(tensors, form=forms.LAYOUTS[layout], codec="raw")
    read, container = reader.read(data), reader.open_container(data)
    loaded = {layout: sparsefmt.load(data, layout=layout) for layout in {tensor.layout for tensor in read.values()}}
    for name, tensor in read.items():
        for x in xs:
            with np.errstate(all="ignore"):
                expected = sparsefmt.linear(x, loaded[tensor.layout][name])
            y = reader.multiply_tensor(container, container.names[name], x)
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


@pytest.mark.usefixtures("multiplied_once")
@pytest.mark.parametrize("layout", first_always(sorted(LAYOUTS, reverse=True)))
def test_products_of_every_dtype(layout):
    rng = np.random.default_rng(4)
    tensors = {dtype: random_bits(rng, dtype, (27, 37), 0.4) for dtype in DTYPES if dtype != "C64"}
    check_products(tensors, activations(rng, 37), layout)


@pytest.mark.usefixtures("multiplied_once")
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
    check_products(tensors, activations(rng, cols)[: None if narrow else 2], layout)


@pytest.mark.usefixtures("multiplied_once")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_products_of_special_tensors(layout):
    rng = np.random.default_rng(5)
    conv = rng.standard_normal((10, 3, 3, 3)).astype(np.float16)
    conv[rng.random(conv.shape) < 0.6] = -0.0
    check_products({"conv": conv, "zero": np.zeros((9, 27), np.float32)}, activations(rng, 27), layout)
    tall = random_bits(rng, "BF16", (70_000, 16), 0.1)
    check_products({"several tiles": tall}, activations(rng, 16)[:2], layout)
    check_products({"0-d": np.float32(3), "1-d": np.arange(5, dtype=np.float32)}, activations(rng, 1))
    check_products({"no columns": np.ones((3, 0), np.float32)}, [np.ones(0, np.float32)])


def test_fused_multiply_add():
    """Against exact arithmetic where one rounding and two differ."""
    rng = np.random.default_rng(6)
    a, b, c = (rng.integers(0, 1 << 32, 4000, np.uint64).astype(np.uint32).view(np.float32) for _ in range(3))
    with np.errstate(all="ignore"):
        near = np.nextafter(-a * b, np.float32(0))  # cancellation
        for addend in c, near, np.float32(1e-45) * np.sign(c):
            exact = np.longdouble(a) * np.longdouble(b)  # 48 bits
            y = reader.products.fma(a, b, addend)
            finite = np.isfinite(exact) & np.isfinite(addend) & np.isfinite(y)
            error = abs(np.longdouble(y) + -np.longdouble(addend) - exact)
            half_ulp = abs(np.longdouble(np.spacing(y))) / 2
            assert (error <= half_ulp * (1 + np.longdouble(2) ** -30))[finite].all()
    one = np.float32(1)
    halfway = np.array([1 + 2**-12], np.float32)  # its square is 1 + 2**-11 + 2**-24: halfway between two float32
    for addend, expected in [(2**-60, 2**-11 + 2**-23), (-(2**-60), 2**-11), (0, 2**-11)]:
        assert reader.products.fma(halfway, halfway, np.array([addend], np.float32))[0] == one + np.float32(expected)


# ----------------------------------------------------------------------------------------------------------- faults


LONG = ("too many", "many short metadata")
"""Names of faults whose files take seconds."""


@pytest.fixture
def no_garbage_collection() -> Iterator[None]:
    """An index of a million maps is no garbage, but would be looked through again and again while it is decoded."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_garbage_collection")
@pytest.mark.parametrize(
    "fault",
    [pytest.param(fault, marks=[pytest.mark.thorough] * (fault.name in LONG)) for fault in FAULTS],
    ids=lambda fault: f"{fault.code}: {fault.name}, {fault.base}",
)
def test_fault(fault):
    data = fault.file()
    by_reader = outcome_of_reader(data)
    assert isinstance(by_reader, dict) if fault.code == "ok" else by_reader == fault.code
    assert outcome_of_library(data) == by_reader


def test_every_code_of_section_7_is_here():
    section = (SPEC / "SPEC.md").read_text("utf-8").split("\n## 7. ")[1].split("\n## ")[0]
    codes = set(re.findall(r"^\| `([a-z0-9-]+)` \|", section, re.MULTILINE))
    assert len(codes) > 40
    assert codes == {fault.code for fault in FAULTS} - {"ok"}


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
            field, by = int(rng.integers(2)), int(rng.choice([1, -1, 2, -2, 4, 8, -8, 64, -64]))
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
    files = [
        forms.save(mixed, {"a": "b"}, form=forms.LAYOUTS[layout], codec=codec) for layout in LAYOUTS for codec in codecs
    ]
    files += [forms.save({"w": small}, form=forms.LAYOUTS[layout], codec="raw") for layout in LAYOUTS[1:]] * 4
    return [*files, *(base(name) for name in ("big bitmask", "big permuted", "big gaps", "fillers", "wide gaps"))]


@pytest.mark.parametrize("seed", first_always(range(4)))
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
        if layout == "bitmask":  # slice by slice, column by column
            order = np.lexsort((rows, columns, rows // 16))
            rows, columns = rows[order], columns[order]
        stored, raw = chunk(rows.tolist(), columns.tolist(), r), len(rows) * width
        if len(stored) < raw:
            parts[-1].chunks[-1] = (stored, raw)
    file = parts[0]
    file.chunks = [chunk for part in parts for chunk in part.chunks]
    coded("values", 0, model=model, shape=[tiles * r, c], **({"tile_rows": r} if tiles > 1 else {}))(file)
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
        plain = naive.bitmask_arrays(mask)["mask"].tobytes()
        stored = stored if len(stored) < len(plain) else plain
        file.chunks += [(stored, len(plain)), (b"", 4 * (-(-r // 16) + 1)), (b"\1" * mask.sum(), int(mask.sum()))]
        masks.append(mask)
    coded("slice_offsets", 0)(file)
    coded("mask", 0, model=model, nnz=int(np.sum(masks)), **({"tile_rows": r} if tiles > 1 else {}))(file)
    return file, np.concatenate(masks)


@pytest.mark.parametrize("seed", first_always(range(3)))
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
    chunks = chunks_of(entry)
    tile = int(rng.integers((chunks.stop - chunks.start) // len(arrays)))
    number = chunks.start + tile * len(arrays) + arrays.index(array)
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
    files = [TakenApart(forms.save(mixed, form=form, codec="rans")) for form in forms.LAYOUTS.values()]
    return files + [file_of_elements(rng) for _ in range(10)] + [file_of_positions(rng)[0] for _ in range(10)]


@pytest.mark.parametrize("seed", first_always(range(3)))
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
    program = str(SPEC / "python" / "reader.py")
    return subprocess.run([sys.executable, program, *arguments], capture_output=True, check=False)


def test_command_line(tmp_path):
    path = tmp_path / "a.sparsefmt"
    path.write_bytes(base("bitmask zstd"))
    assert run(str(path)).stdout.decode().splitlines() == ["'v': F32 [70] dense", "'w': F32 [20, 70] bitmask"]
    assert run(str(path), "w").stdout == weight().tobytes()
    path.write_bytes(base("bitmask zstd")[:-1])
    for arguments in [str(path)], [str(path), "w"], [str(tmp_path / "none")]:
        result = run(*arguments)
        assert (result.returncode, result.stdout, result.stderr.count(b"\n")) == (1, b"", 1)
