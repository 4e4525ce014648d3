"""Everything that moves weights without multiplying them, over the forms that a pruned tensor takes, beside peers.

    python -m tools.bench.throughput                          bfloat16, float32 and float8, on one core
    python -m tools.bench.throughput --dtype bfloat16 --zeros 50 --zeros 50-
    python -m tools.bench.throughput --quick --csv moves.csv
    python -m tools.bench.throughput --peers zipnn --peers pcodec      where these are installed

Columns are forms: a dtype and what is pruned of a Gaussian matrix. A minus says that half of the zeros are -0.0, as
multiplying by a mask leaves them. Rows are operations, and what others need for theirs: numpy to copy the dense array,
safetensors to save and load it, zstd, zipnn and pcodec to compress it. Numbers are millions of weights a second,
whatever their width, of the time that the processor worked (not that of the disk): medians of turns, one thread. What
is red is below half of the median of its row.

The ratios that this project holds itself to stand below, for the worst form and for the median one.
"""

from __future__ import annotations

import csv
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import click
import ml_dtypes
import numpy as np
import safetensors.numpy
import zstandard
from rich.progress import track
from rich.table import Table

import sparsefmt
import sparsefmt.numpy
from sparsefmt.dtypes import dtype_of
from sparsefmt.threads import set_num_threads
from tools.bench.harness import in_turns, processor, wide_console

DTYPES = {
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
    "float16": np.float16,
    "float8": ml_dtypes.float8_e4m3fn,
    "int8": np.int8,
    "float64": np.float64,
}
ZEROS = ("50", "80", "95", "50-", "80-", "2:4", "4x4", "rows", "dense", "zero")
PEERS = ("zstd", "zipnn", "pcodec")
PART = 4
"""Slices are made of a part of the rows, or columns, at a time: so many parts."""

TARGETS = (
    ("todense bitmask", "copy", 0.5),
    ("todense permuted", "copy", 0.5),
    ("dense raw", "copy", 0.5),
    ("rows raw", "copy", 0.5),
    ("from bitmask", "copy", 0.3),
    ("from permuted", "copy", 0.15),
    ("save raw", "safetensors save", 1.0),
    ("save auto", "zipnn compress", 2.0),
    ("dense auto", "zipnn decompress", 1.3),
    ("columns raw", "dense raw", 0.9),
    ("scipy bitmask", "scipy csr", 3.0),
)
"""Of an operation: what it is compared with, and what it is to be of that."""

Operation = Callable[[], object]


def pruned(dtype: np.dtype, zeros: str, shape: tuple[int, int]) -> np.ndarray | None:
    """A matrix in one of the forms; None if its dtype does not have that."""
    rows, cols = shape
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(shape, np.float32)
    array = (weights * 40).astype(dtype) if dtype.kind == "i" else weights.astype(dtype)
    if zeros == "2:4":
        order = np.argsort(np.abs(weights).reshape(-1, 4), axis=1).argsort(axis=1)
        kept = order.reshape(shape) >= 2
    elif zeros == "4x4":
        kept = np.kron(rng.random((rows // 4, cols // 4)) >= 0.8, np.ones((4, 4), bool))
    elif zeros == "rows":
        kept = np.broadcast_to((rng.random(rows) >= 0.5)[:, None], shape)
    elif zeros in ("dense", "zero"):
        kept = np.full(shape, zeros == "dense")
    else:
        kept = rng.random(shape) >= int(zeros.rstrip("-")) / 100
    found = dtype_of(dtype)
    bits = np.where(kept, array.view(found.bits_dtype), 0).astype(found.bits_dtype)
    bits[bits == found.negative_zero] = 0
    if zeros.endswith("-"):
        if not found.negative_zero:
            return None
        bits[~kept & (weights < 0)] = found.negative_zero
    return bits.view(dtype)


def operations(array: np.ndarray, folder: Path) -> Iterator[tuple[str, Operation]]:
    """What is measured of a matrix, by name. Files are written first."""
    raw, auto, dense = (folder / name for name in ("raw.sparsefmt", "auto.sparsefmt", "w.safetensors"))
    yield "copy", array.copy
    for layout in ("bitmask", "permuted"):
        made = sparsefmt.SparseTensor.from_dense(array, layout)
        yield f"from {layout}", partial(sparsefmt.SparseTensor.from_dense, array, layout)
        yield f"todense {layout}", made.todense
        other = "permuted" if layout == "bitmask" else "bitmask"
        yield f"{layout} to {other}", partial(made.to_layout, other)
    for codec, path in (("raw", raw), ("auto", auto)):
        yield f"save {codec}", partial(sparsefmt.save_file, {"w": array}, path, codec=codec)
        sparsefmt.save_file({"w": array}, path, codec=codec)
        yield f"load {codec}", partial(sparsefmt.load_file, path)
        yield f"dense {codec}", partial(sparsefmt.numpy.load_file, path)
        yield f"rows {codec}", partial(in_parts, path, 0)
        yield f"columns {codec}", partial(in_parts, path, 1)
    yield "scipy bitmask", sparsefmt.SparseTensor.from_dense(array, "bitmask").to_scipy
    yield "scipy csr", partial(to_csr, array)
    bits = {"w": array.view(f"u{array.itemsize}")}  # some versions cannot load all dtypes into numpy
    safetensors.numpy.save_file(bits, dense)
    yield "safetensors save", partial(safetensors.numpy.save_file, bits, dense)
    yield "safetensors load", partial(safetensors.numpy.load_file, dense)


def in_parts(path: Path, dim: int) -> None:
    """All of a tensor in slices of rows or columns."""
    with sparsefmt.open_file(path) as file:
        part = file.get_slice("w")
        step = -(-part.shape[dim] // PART)
        for begin in range(0, part.shape[dim], step):
            part[begin : begin + step] if dim == 0 else part[:, begin : begin + step]


def to_csr(array: np.ndarray) -> object:
    import scipy.sparse

    if array.dtype.kind not in "fi" or array.dtype == np.float16:  # scipy has no others
        array = array.astype(np.float32)
    return scipy.sparse.csr_array(array)


def peer_operations(array: np.ndarray, peers: tuple[str, ...]) -> Iterator[tuple[str, Operation]]:
    """What other compressors need for the bytes of the dense matrix."""
    data = array.tobytes()
    if "zstd" in peers:
        for level in (1, 3):
            coder = zstandard.ZstdCompressor(level)
            yield f"zstd -{level}", partial(coder.compress, data)
        yield "zstd -d", partial(zstandard.ZstdDecompressor().decompress, coder.compress(data))
    if "zipnn" in peers and array.dtype.name in ("bfloat16", "float32", "float16"):
        import zipnn

        def coder_of() -> object:
            return zipnn.ZipNN(bytearray_dtype=array.dtype.name, input_format="byte", threads=1)

        # it changes what it is given
        yield "zipnn compress", lambda: coder_of().compress(bytearray(data))
        packed = bytes(coder_of().compress(bytearray(data)))
        yield "zipnn decompress", lambda: coder_of().decompress(bytearray(packed))
    if "pcodec" in peers and array.dtype.itemsize > 1:
        from pcodec import ChunkConfig, standalone

        flat = array.reshape(-1)
        flat = flat.view(np.uint16) if flat.dtype.name == "bfloat16" else flat
        yield "pcodec compress", partial(standalone.simple_compress, flat, ChunkConfig(compression_level=4))


def seconds_of(operation: Operation) -> float:
    """Seconds that the process worked for it."""
    start = time.process_time()
    result = operation()
    taken = time.process_time() - start
    del result
    return max(taken, 1e-7)


def measure(array: np.ndarray, peers: tuple[str, ...], turns: int) -> dict[str, float]:
    """Millions of weights a second, by name of what is done with them."""
    with tempfile.TemporaryDirectory() as folder:
        all_operations = dict(operations(array, Path(folder))) | dict(peer_operations(array, peers))
        samples = {name: partial(seconds_of, operation) for name, operation in all_operations.items()}
        taken = in_turns(samples, turns, warm_up=1, seconds=2)
    return {name: array.size / 1e6 / statistics.median(times) for name, times in taken.items()}


def slow(row: dict[str, float], factor: float = 2) -> set[str]:
    """The forms of a row that are so many times below its median."""
    middle = statistics.median(row.values())
    return {form for form, found in row.items() if found * factor < middle}


def table_of(rows: dict[str, dict[str, float]], forms: list[str]) -> Table:
    table = Table(title="millions of weights a second")
    table.add_column("")
    for form in forms:
        table.add_column(form, justify="right")
    for name, row in rows.items():
        low = slow(row)
        cells = (
            f"[red]{row[form]:,.0f}[/]" if form in low else f"{row[form]:,.0f}" if form in row else "" for form in forms
        )
        table.add_row(name, *cells)
    return table


def targets_of(rows: dict[str, dict[str, float]]) -> Table:
    table = Table(title="times what it is compared with")
    for heading in ("", "compared with", "target", "worst", "of", "median"):
        table.add_column(heading, justify="left" if heading in ("", "compared with", "of") else "right")
    for name, other, target in TARGETS:
        forms = [form for form in rows.get(name, {}) if form in rows.get(other, {})]
        if not forms:
            continue
        ratios = {form: rows[name][form] / rows[other][form] for form in forms}
        worst = min(ratios, key=ratios.__getitem__)
        low = "[red]" if ratios[worst] < target else ""
        table.add_row(
            name, other, f"{target:g}", f"{low}{ratios[worst]:.2f}", worst, f"{statistics.median(ratios.values()):.2f}"
        )
    return table


@click.command(epilog="See the head of this file for what is measured.")
@click.option("--dtype", "dtypes", type=click.Choice(list(DTYPES)), multiple=True, help="By default three of them.")
@click.option("--zeros", type=click.Choice(ZEROS), multiple=True, help="What is pruned; by default all.")
@click.option("--shape", type=(int, int), default=(2048, 4096), show_default=True, help="Rows and columns.")
@click.option("--peers", type=click.Choice(PEERS), multiple=True, help="By default zstd.")
@click.option("--turns", type=click.IntRange(1), default=5, show_default=True, help="Measurements of each.")
@click.option("--quick", is_flag=True, help="A small matrix, a few forms.")
@click.option("--csv", "csv_path", type=click.Path(dir_okay=False), help="Also write the numbers to a file.")
def main(
    dtypes: tuple[str, ...],
    zeros: tuple[str, ...],
    shape: tuple[int, int],
    peers: tuple[str, ...],
    turns: int,
    quick: bool,
    csv_path: str | None,
) -> None:
    """Measure everything that moves weights without multiplying them, beside peers."""
    if quick:
        shape, zeros = (512, 1024), zeros or ("50", "50-", "80", "dense")
    rows: dict[str, dict[str, float]] = {}
    forms = []
    cases = [(name, form) for name in dtypes or ("bfloat16", "float32", "float8") for form in zeros or ZEROS]

    set_num_threads(1)
    for name, form in track(cases, "measuring", transient=True):
        array = pruned(np.dtype(DTYPES[name]), form, shape)
        if array is None:
            continue
        forms.append(f"{name} {form}")
        for operation, speed in measure(array, peers or ("zstd",), turns).items():
            rows.setdefault(operation, {})[forms[-1]] = speed
    console = wide_console()
    console.print(f"{processor()}, SPARSEFMT_ISA={isa()}, {shape[0]} x {shape[1]}, one thread")
    for name in dict.fromkeys(form.split()[0] for form in forms):
        console.print(table_of(rows, [form for form in forms if form.split()[0] == name]))
    console.print(targets_of(rows))
    if csv_path:
        with Path(csv_path).open("w", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(["operation", *forms])
            writer.writerows([name, *(f"{row.get(form, 0):.1f}" for form in forms)] for name, row in rows.items())


def isa() -> str:
    from sparsefmt.isa import ISA

    return ISA


if __name__ == "__main__":
    main()
