"""Writes spec/vectors/: small files that every reader must read, or must refuse, and what it must find in them.

    python -m tools.vectors.make                   write good/, bad/ and manifest.json
    python -m tools.vectors.make --check           exit 1 if what is there differs from what would be written
    python -m tools.vectors.make --large FOLDER    write the files that are too large to be kept, of 0.1 to 20 MB

spec/conformance.md tells what is in them. Contents of good files follow from a formula, not from a random generator of
any library. Coded files depend on choices of their encoders, and are only compared by what a reader finds in them, as
are files with faults, most of which were made from coded ones.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import click
import numpy as np

import sparsefmt
from sparsefmt.dtypes import DTYPES, as_bits, pack
from sparsefmt.layouts import heights
from tools import ROOT, forms
from tools.forms import LAYOUTS
from tools.vectors import scaled
from tools.vectors.faults import FAULTS, Fault
from tools.vectors.patterns import splitmix64, tensor
from tools.vectors.spec_reader import spec_reader

FOLDER = ROOT / "spec" / "vectors"
KEPT_BYTES = 1 << 17
"""Files with faults up to which they are kept."""
SHAPES = ((), (0,), (3,), (2, 0), (1, 70), (9, 8), (3, 2, 5))


def tensors() -> dict[str, np.ndarray]:
    """Every dtype in every shape, and the corners of sparsity."""
    named = {}
    for number, dtype in enumerate(DTYPES.values()):
        for shape in SHAPES:
            named[f"{dtype.name}{list(shape)}".replace(" ", "")] = tensor(dtype, shape, 10 * number, 10)
    for zeros in (0, 4, 15, 16):
        named[f"zeros/{zeros}"] = tensor(DTYPES["F32"], (20, 40), 777, zeros)
    for rows in (7, 8, 9, 15, 16, 17, 24, 25):  # slices of all kinds
        named[f"rows/{rows}"] = tensor(DTYPES["F16"], (rows, 11), rows, 8)
    named["tied/one"] = named["tied/two"] = tensor(DTYPES["BF16"], (12, 100), 888, 8)
    named["equal/one"] = named["equal/two"] = named["tied/one"].copy()  # tied to each other, and equal to those
    return named


def modelled() -> dict[str, np.ndarray]:
    """What codec `rans` has means for: streams of 1, 8 and 32 states, every part of its models."""

    def mixed(seed: int, *shape: int) -> np.ndarray:
        return splitmix64(seed, int(np.prod(shape))).reshape(shape)

    def sized(seed: int, exponents: np.ndarray) -> np.ndarray:
        """bfloat16 of given exponents, any signs and mantissas, a fourth of them zero."""
        bits = mixed(seed, 192, 200)
        values = (np.uint64(110) + exponents) << np.uint64(7) | bits & np.uint64(0x807F)
        values[bits >> np.uint64(20) & np.uint64(3) == 0] = 0
        return values.astype(np.uint16).view(DTYPES["BF16"].numpy)

    row, col = np.arange(192, dtype=np.uint64)[:, None], np.arange(200, dtype=np.uint64)
    # rows and columns between nearly empty and nearly full
    uneven = mixed(1, 192, 200) % np.uint64(40000) < row * (np.uint64(7) * col % np.uint64(200))
    ones = np.ones((192, 200), np.uint8)
    return {
        "mask/uneven": ones * uneven,
        "mask/uneven columns": ones * (mixed(2, 192, 200) % np.uint64(200) < col),
        "mask/uneven rows": ones * (mixed(3, 192, 200) % np.uint64(192) < row),
        "mask/2 of 4": ones * (np.argsort(mixed(4, 192, 50, 4), axis=2).reshape(192, 200) < 2),
        "mask/blocks": np.kron(mixed(5, 16, 200) % np.uint64(3) == 0, np.ones((12, 1))).astype(np.uint8),
        "mask/large": np.kron(mixed(6, 50, 820) % np.uint64(4) == 0, np.ones((16, 1))).astype(np.uint8),
        "values/large": (mixed(7, 70000) % np.uint64(4)).astype(np.uint8).reshape(7, 10000),
        "values/of rows and columns": sized(13, row % np.uint64(24) + col % np.uint64(24)),
        "values/of columns": sized(14, (row + np.uint64(9)) // np.uint64(201) * np.uint64(8) + col % np.uint64(40)),
        "values/ascending": np.cumsum(mixed(8, 3000) % np.uint64(9)).astype(np.int64),
        "values/16 columns": np.cumsum(mixed(9, 200, 16) % np.uint64(50), axis=0).astype(np.uint16),
        "values/few": np.array([1.5, -2.25, 3e8, 1e-5], np.float32)[mixed(10, 40, 50) % np.uint64(4)],
        "values/of bfloat16": (mixed(11, 40, 50) % np.uint64(1 << 16) << np.uint64(16))
        .astype(np.uint32)
        .view(np.float32),
        "values/any": mixed(12, 40, 50).view(np.float64),
        "values/all the same": np.full((40, 50), 7, np.int32),
    }


TILES = {21: 1, 22: 8, 23: 9, 24: 16, 25: 17, 200: 17}
"""Rows of the tiles of a matrix of so many columns, in the files of `edges`."""


STACKS = {(3, 18, 23): 2, (2, 2, 16, 24): 3, (2, 17, 25): 2, (1, 16, 22): 2}
"""Shapes of stacks in the files of `edges`, and how many of their dimensions make rows."""


def edges() -> dict[str, np.ndarray]:
    """Where readers go wrong that read everything else: roundings of products, several tiles, names."""
    # pairs of products whose exact sum is next to a half-way point, one or two units of a float64 away, of any sign and
    # size; and a product that is too small for a float32
    rounded = np.zeros((8, 130), np.uint32)
    rounded[0, [106, 122]] = 0x44B7261F, 0xB7203C0A
    rounded[1, [113, 129]] = 0x4249B76C, 0x368D5A42
    rounded[2, 1] = 0x80000001
    rounded[3, [83, 129]] = 0x404D64AE, 0xB40D5A42
    rounded[4, [44, 105]] = 0xBEFA9448, 0x32A29D57
    rounded[5, [51, 72]] = 0x3E2F1960, 0x33A0FA96
    rounded[6, [47, 72]] = 0xBE100909, 0xB620FA96
    rounded[7, [5, 8]] = 0x3C969954, 0x30100E52
    named = {"product/half-way": rounded.view(np.float32)}
    for dtype in "F64", "I64", "U64":
        named[f"product/{dtype}"] = tensor(DTYPES[dtype], (5, 40), 2000, 8)
    doubles = named["product/F64"].view(np.uint64)  # with all 53 bits, from 1 on and below 2
    doubles[...] = np.where(doubles << np.uint64(1) == 0, doubles, doubles % np.uint64(1 << 52) + np.uint64(1023 << 52))
    # sums that are infinite, or become so, and then go on
    infinite, largest = np.inf, np.finfo(np.float64).max
    w = np.array([[infinite, 1, 1], [1, infinite, infinite], [1, -infinite, 1], [np.nan, 1, 0], [largest] * 3])
    w = np.concatenate([w, w], axis=1)
    w[4] = np.copysign(w[4], activations(6))
    named["product/F64 not finite"] = np.concatenate([w, -w])
    for dtype in DTYPES.values():
        if dtype.nbits < 8 or dtype.name.startswith("F8"):
            patterns = np.arange(1 << dtype.nbits, dtype=np.uint8)[:, None]
            named[f"patterns/{dtype.name}"] = patterns.view(dtype.numpy)
    named["patterns/F4, 6 of them"] = np.arange(10, 16, dtype=np.uint8).view(DTYPES["F4"].numpy).reshape(3, 2)
    for number, (cols, height) in enumerate(TILES.items()):
        dtype = DTYPES["F16" if cols < 200 else "U8"]
        w = tensor(dtype, (2 * height + 1, cols), 2100 + number, 8)
        named[f"tiles/{height} of {cols} columns"] = w if cols < 200 else w & np.uint8(3)
    named["tiles/packed"] = tensor(DTYPES["F6_E3M2"], (17, 22), 2200, 4)
    for number, shape in enumerate(STACKS):
        named[f"stack/{list(shape)}"] = tensor(DTYPES["F16"], shape, 2300 + number, 8)
    # the order of the last three by UTF-16 would be another
    for number, name in enumerate(("\ufeffname", "\uffee", "\U0001f600", "\U0001f600" * 256)):
        named[name] = np.full((1, 3), number, np.uint8)
    return named


def streams() -> dict[str, np.ndarray]:
    """For codec `rans`: numbers of symbols about those where the number of states changes, elements of 64 bits."""

    def mixed(seed: int, *shape: int) -> np.ndarray:
        return splitmix64(seed, int(np.prod(shape))).reshape(shape)

    named = {
        f"stream/{count}": (mixed(count, count) % np.uint64(32) == 0).astype(np.uint8)
        for count in (1023, 1024, 1025, 65535, 65536, 65537)
    }
    steps = mixed(30, 300, 16) % np.uint64(9)
    return named | {
        "lag/1": np.cumsum(steps.reshape(-1)).astype(np.int64) + (1 << 32) - 5000,
        "lag/1 below 0": np.cumsum(steps.reshape(-1)).astype(np.int64) - 5000,
        "lag/16": np.cumsum(steps * np.uint64((1 << 20) - 3), axis=0).astype(np.int64) + (1 << 32) - (1 << 28),
        "shift/29": (1 + mixed(31, 20, 50).astype(np.float64) / 2**64).astype(np.float32).astype(np.float64),
        "shift/40": (mixed(32, 20, 50) % np.uint64(1000)).astype(np.int64) << 40,
    }


def wide() -> dict[str, np.ndarray]:
    """Columns that fit 16 bits, and columns that do not."""
    named = {}
    for cols in (65536, 65537):
        named[f"columns/{cols}"] = w = np.zeros((2, cols), np.uint8)
        w[0, [0, 1, 255, 256, 65535]] = 1, 2, 3, 4, 5
        w[1, [2, 65534, cols - 1]] = 6, 7, 8
    return named


def far_apart() -> dict[str, np.ndarray]:
    """Distances that gaps of 8 bits reach, and those that take fillers; -0.0 between."""
    ends = (254, 255, 256, 257, 509, 510, 511, 512, 765, 766)
    named = {}
    for number, name in enumerate(("F32", "BF16", "F8_E4M3", "U8", "F64")):
        dtype = DTYPES[name]
        bits = as_bits(tensor(dtype, (18, 1800), 3000 + number, 0), dtype)
        kept = np.zeros(bits.shape, np.bool_)
        for row, distance in enumerate(ends):
            kept[row, [1, 1 + distance, 2 + distance]] = True
            kept[row + 5, distance] = True
        kept[15, ::255], kept[16, -1], kept[17, :600] = True, True, True
        signs = splitmix64(3100, bits.size).reshape(bits.shape) % np.uint64(9) == 0
        zeros = np.where(signs, dtype.negative_zero, 0)
        named[f"fillers/{name}"] = np.where(kept, bits | 1, zeros).astype(dtype.bits_dtype).view(dtype.numpy)
    return named


def save_in_tiles(
    tensors: dict[str, np.ndarray], form: str, codec: str, metadata: dict[str, str] | None = None
) -> bytes:
    """A file with tiles as in TILES, which are far smaller than those that the library makes."""

    def height(rows: int, cols: int) -> int:
        return min(rows, TILES.get(cols, rows)) if cols else 0

    with mock.patch.object(heights, "tile_rows", height), mock.patch.object(heights, "sparse_tile_rows", height):
        row_dims = {name: dims for shape, dims in STACKS.items() if (name := f"stack/{list(shape)}") in tensors}
        return forms.save(tensors, metadata, form=form, codec=codec, row_dims=row_dims)


class Multiplied(NamedTuple):
    """A file with scaled weights, and the products that a reader makes of it, as the manifest has them."""

    data: bytes
    products: list[dict[str, str]]


def scaled_files() -> dict[str, Multiplied]:
    """By path."""
    found = {}
    cases, (wrong, codes) = scaled.cases(), scaled.refused()
    for what, cases_of, form, codec in (
        *((f"scaled-{layout}-raw", cases, form, "raw") for layout, form in LAYOUTS.items()),
        ("scaled-long-rans", scaled.long(), "dense", "rans"),
        ("scales/refused", wrong, "bitmask", "raw"),
    ):
        data = save_in_tiles(scaled.tensors_of(cases_of), form, codec, scaled.metadata_of(cases_of))
        found[f"good/{what}.sparsefmt"] = Multiplied(data, scaled.products_of(cases_of, codes))
    for code, texts in scaled.METADATA.items():
        for what, text in texts.items():
            case = scaled.one_case()
            data = save_in_tiles(scaled.tensors_of(case), "bitmask", "raw", {"sparsefmt.scales": text})
            errors = {} if code == "ok" else dict.fromkeys(case, code)
            path = f"good/scales/{code}-{what}.sparsefmt".replace(",", "").replace(" ", "-")
            found[path] = Multiplied(data, scaled.products_of(case, errors))
    return found


def multiplied(file: Multiplied) -> list[dict[str, str]]:
    """Products with the SHA-256 of their elements, by the reader that was written from SPEC.md alone."""
    reader, found = spec_reader(), []
    container = reader.open_container(file.data)
    for product in file.products:
        if "error" not in product:
            y = reader.multiply_scaled(container, reader.Product(**product))
            product = {**product, "sha256": sha256_of(y, product["result"])}
        found.append(product)
    return found


NANS = {"F64": 0x7FF8 << 48, "F32": 0x7FC0 << 16, "F16": 0x7E00, "BF16": 0x7FC0}
"""How a NaN is written before elements of a result are compared."""


def sha256_of(y: bytes, dtype: str) -> str:
    """SHA-256 of the elements of a product, every NaN in it the one of numpy."""
    bits = np.frombuffer(y, f"<u{DTYPES[dtype].nbits // 8}").copy()
    bits[np.isnan(bits.view(DTYPES[dtype].numpy))] = NANS[dtype]
    return hashlib.sha256(bits.tobytes()).hexdigest()


def dense_bytes(array: np.ndarray) -> bytes:
    """A tensor as safetensors would hold it."""
    dtype = sparsefmt.dtypes.dtype_of(array.dtype)
    bits = as_bits(array, dtype)
    return (pack(bits, dtype) if dtype.packed else bits).tobytes()


def activations(cols: int) -> np.ndarray:
    """x for products: from -0.5 on and below 0.5, with all 24 bits of a float32."""
    scattered = np.arange(cols, dtype=np.uint64) * np.uint64(2654435761) % np.uint64(1 << 32)
    return ((scattered >> np.uint64(8)).astype(np.float64) / (1 << 24) - 0.5).astype(np.float32)


def product_sha256(weight: sparsefmt.SparseTensor | np.ndarray, rows: int, cols: int) -> str | None:
    """SHA-256 of the bytes of W x, every NaN in it the one of numpy; None if W has no product."""
    if not isinstance(weight, sparsefmt.SparseTensor):
        weight = weight.reshape(rows, cols)
    try:
        with np.errstate(all="ignore"):
            y = sparsefmt.linear(activations(cols), weight)
    except (sparsefmt.SparsefmtError, ValueError):
        return None
    y[np.isnan(y)] = np.nan
    return hashlib.sha256(y.astype(y.dtype.newbyteorder("<")).tobytes()).hexdigest()


def manifest_of(data: bytes) -> dict[str, Any]:
    """What a reader must find: for each tensor dtype, shape, layout, and SHA-256 of the dense bytes and of a product;
    or the code of its error."""
    try:
        file = sparsefmt.sparse_file.SparseFile(sparsefmt.container.sources.Memory(data))
        index = file.reader.index
        tensors = {}
        for name, entry in sorted(index.tensors.items()):
            loaded = file.load(name, entry.layout.name)
            tensors[name] = {
                "dtype": entry.dtype.name,
                "shape": list(entry.shape),
                "layout": entry.layout.name,
                **({"row_dims": entry.row_dims} if entry.row_dims > 1 else {}),
                "sha256": hashlib.sha256(dense_bytes(file.get_tensor(name))).hexdigest(),
                "product_sha256": product_sha256(loaded, entry.rows, entry.cols),
            }
    except sparsefmt.SparsefmtError as error:
        return {"error": error.code}
    return {
        "metadata": index.metadata,
        "aliases": {name: index.entry(name).name for name in index.aliases},
        "tensors": tensors,
    }


def path_of(fault: Fault) -> str:
    """Where a file with a fault belongs, named after it; without one, it is a good file that looks odd."""
    words = fault.name.replace("+0", "plus 0").replace("-0", "minus 0").replace("[]", "array").replace("{}", "map")
    slug = re.sub("[^a-z0-9]+", "-", f"{words}, {fault.base}".lower()).strip("-")
    return f"good/odd/{slug}.sparsefmt" if fault.code == "ok" else f"bad/{fault.code}/{slug}.sparsefmt"


def faulty(large: bool) -> dict[str, bytes]:
    """Files with a fault, by path: the large ones, or the others."""
    files: dict[str, bytes] = {}
    for fault in FAULTS:
        if fault.slow and not large:
            continue
        data, path = fault.file(), path_of(fault)
        if (len(data) > KEPT_BYTES) == large:
            assert path not in files, path
            files[path] = data
    return files


def make() -> dict[str, bytes]:
    """All files that are kept, by their path under spec/vectors/."""
    files = {"good/empty.sparsefmt": sparsefmt.save({}, {"key": "value", "": "β"})}
    for layout, form in LAYOUTS.items():
        for codec in ("raw", "zstd", "rans"):
            files[f"good/{layout}-{codec}.sparsefmt"] = forms.save(tensors(), form=form, codec=codec)
    for layout in ("bitmask", "dense"):
        files[f"good/rans-models-{layout}.sparsefmt"] = sparsefmt.save(modelled(), layout=layout, codec="rans")
    files["good/dropped.sparsefmt"] = sparsefmt.save(
        {"w": tensors()["zeros/4"]}, codec="raw", layout="bitmask", negative_zeros="drop"
    )
    for layout, form in LAYOUTS.items():
        for codec in ("raw", "rans"):
            files[f"good/edges-{layout}-{codec}.sparsefmt"] = save_in_tiles(edges(), form, codec)
    files["good/rans-streams.sparsefmt"] = sparsefmt.save(streams(), layout="dense", codec="rans")
    for layout, codec in (
        ("bitmask", "rans"),
        ("permuted", "raw"),
        ("permuted", "rans"),
        ("gaps", "raw"),
        ("gaps", "rans"),
    ):
        files[f"good/wide-{layout}-{codec}.sparsefmt"] = forms.save(wide(), form=LAYOUTS[layout], codec=codec)
    for layout, codec in ("bitmask", "rans"), ("permuted", "raw"), ("gaps", "raw"), ("gaps", "zstd"), ("gaps", "rans"):
        files[f"good/fillers-{layout}-{codec}.sparsefmt"] = forms.save(far_apart(), form=LAYOUTS[layout], codec=codec)
    files |= faulty(large=False)
    with_products = scaled_files()
    files |= {path: file.data for path, file in with_products.items()}
    files["manifest.json"] = json_of(manifest(files, with_products)).encode()
    return files


def manifest(files: dict[str, bytes], with_products: dict[str, Multiplied] | None = None) -> dict[str, Any]:
    """What a reader must find in each file, by path. Of a fault, it is what the path says."""
    found = {path: manifest_of(data) for path, data in sorted(files.items())}
    for path, file in (with_products or {}).items():
        found[path]["products"] = multiplied(file)
    for path, content in found.items():
        expected = path.split("/")[1] if path.startswith("bad/") else None
        assert content.get("error") == expected, f"{path}: {content.get('error')}"
    return found


def json_of(manifest: dict[str, Any]) -> str:
    """JSON with a tensor to a line, and a file with an error too."""
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    return re.sub(r"\{[^{}]*\"(sha256|error)\"[^{}]*\}", lambda entry: " ".join(entry[0].split()), text) + "\n"


def differences(files: dict[str, bytes]) -> list[str]:
    """Files under spec/vectors/ that are not as `make` made them: of those that may differ, by what is in them."""
    there = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file()}
    wrong = sorted(there ^ files.keys())
    for path in there & files.keys():
        stored, data = (FOLDER / path).read_bytes(), files[path]
        by_content = re.search("zstd|rans|^bad/|/odd/", path)
        if stored != data and not (by_content and manifest_of(stored) == manifest_of(data)):
            wrong.append(path)
    return wrong


def write(files: dict[str, bytes], folder: Path) -> None:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    print(f"{len(files)} files, {sum(map(len, files.values())):,} bytes")


@click.command(help=__doc__.replace("\n\n    python", "\n\n\b\n    python") if __doc__ else None)
@click.option("--check", is_flag=True, help="Compare instead of writing.")
@click.option("--large", type=click.Path(file_okay=False, path_type=Path), help="Write the large files here instead.")
def main(check: bool, large: Path | None) -> None:
    if large:
        files = faulty(large=True)
        write({**files, "manifest.json": json_of(manifest(files)).encode()}, large)
    elif check:
        sys.exit("\n".join(f"differs: {path}" for path in differences(make())) or 0)
    else:
        write(make(), FOLDER)


if __name__ == "__main__":
    main()
