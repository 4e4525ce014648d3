"""What a file in a store costs: opened, one layer read, and downloaded; requests, bytes and seconds.

    python -m tools.bench.remote
    python -m tools.bench.remote --tensors 10000 --megabytes 200

The store is moto's, on loopback: seconds are those of its Python, and say little. Requests and bytes are those of any
store.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import fsspec
import numpy as np
from rich.console import Console
from rich.table import Table

import sparsefmt
from tools.bench.loopback import counts, options_of, store

BUCKET = "bench"


def many_tensors(path: Path, number: int) -> None:
    """A file of small tensors, all different."""
    with open(path, "wb") as file:
        writer = sparsefmt.TensorWriter(file, codec="raw")
        for index in range(number):
            writer.add(f"model.layers.{index // 10}.part.{index % 10}.weight", np.full((4, 4), index, np.float32))
        writer.finish()


def layers(path: Path, megabytes: int) -> None:
    """A file of layers of 2048 x 2048, half zeros."""
    rng = np.random.default_rng(0)
    with open(path, "wb") as file:
        writer = sparsefmt.TensorWriter(file, codec="raw")
        for number in range(max(megabytes * 1_000_000 // (2048 * 2048 * 4), 1)):
            weight = rng.standard_normal((2048, 2048), np.float32)
            weight[rng.random(weight.shape, np.float32) < 0.5] = 0
            writer.add(f"layers.{number}.weight", weight)
        writer.finish()


@click.command(context_settings={"show_default": True})
@click.option("--tensors", type=int, default=100_000, help="Of the file that is opened.")
@click.option("--megabytes", type=int, default=1000, help="Dense bytes of the file of which a layer is read.")
def main(tensors: int, megabytes: int) -> None:
    """Put two files into a store on loopback, and print what opening and reading take."""
    table = Table("step", "requests", "bytes", "seconds")
    with tempfile.TemporaryDirectory(prefix="bench-remote-") as name, store(0) as address:
        options = options_of(address)
        files = fsspec.filesystem("s3", **options)
        files.call_s3("create_bucket", Bucket=BUCKET)

        def step(what: str, do: Callable[[], Any]) -> Any:
            before, started = counts(address), time.perf_counter()
            result = do()
            elapsed = time.perf_counter() - started
            found = counts(address).since(before)
            table.add_row(what, f"{found.requests:,}", f"{found.sent:,}", f"{elapsed:.2f}")
            return result

        for what, make in (
            ("many", lambda path: many_tensors(path, tensors)),
            ("layers", lambda p: layers(p, megabytes)),
        ):
            path, url = Path(name) / f"{what}.sparsefmt", f"s3://{BUCKET}/{what}.sparsefmt"
            make(path)
            files.put_file(str(path), url)
            size = path.stat().st_size
            file = step(
                f"open {what}, {size:,} bytes", lambda url=url: sparsefmt.open_file(url, storage_options=options)
            )
            middle = file.keys()[len(file) // 2]
            step(f"read {middle}", lambda file=file, middle=middle: file[middle])
            step("rows 100 to 104 of another", lambda file=file: file.get_slice(file.keys()[0])[100:104])
            step(f"download {what}", lambda url=url: files.get_file(url, str(Path(name) / "copy")))
            file.close()
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
