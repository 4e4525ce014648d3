"""What a file in a store costs: opened, one layer read, and downloaded; requests, bytes and seconds.

    python -m tools.bench.remote
    python -m tools.bench.remote --tensors 10000 --megabytes 200
    python -m tools.bench.remote --shards 40   # a layer of 8 GB; an object of 1 GB is too much for moto

The store is moto's, on loopback: seconds are those of its Python, and say little. Requests and bytes are those of any
store. It keeps what it has in temporary files.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import fsspec
import numpy as np
from rich.table import Table

import sparsefmt
from tools.bench.harness import wide_console
from tools.bench.loopback import counts, options_of, store

BUCKET = "bench"
INDEX = "model/model.sparsefmt.index.json"

DOWNLOADED = 10
"""Of how many files the download is timed, where there are more."""


def many_tensors(path: Path, number: int) -> None:
    """A file of small tensors, all different."""
    with open(path, "wb") as file:
        writer = sparsefmt.TensorWriter(file, codec="raw")
        for index in range(number):
            writer.add(f"model.layers.{index // 10}.part.{index % 10}.weight", np.full((4, 4), index, np.float32))
        writer.finish()


def layers(path: Path, megabytes: int) -> list[str]:
    """A file of layers of 2048 x 2048, half zeros: one and the same, with its rows in another order. Their names."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((2048, 2048), np.float32)
    weight[rng.random(weight.shape, np.float32) < 0.5] = 0
    count = max(megabytes * 1_000_000 // weight.nbytes, 1)
    names = [f"layers.{number}.weight" for number in range(count)]
    with open(path, "wb") as file:
        writer = sparsefmt.TensorWriter(file, codec="raw")
        for number, name in enumerate(names):
            writer.add(name, np.roll(weight, number, 0))
        writer.finish()
    return names


def upload_shards(files: Any, folder: Path, megabytes: int, shards: int) -> tuple[str, int]:
    """Put a checkpoint of several files, and its index, into the store. The name of a layer, and bytes of all files.

    Each file has the layers of the first, under names of its own.
    """
    path, weight_map, size = folder / "shard.sparsefmt", dict[str, str](), 0
    layers(path, megabytes)
    tensors = list(sparsefmt.load_file(path).values())
    for number in range(1, shards + 1):
        shard = f"model-{number:05}-of-{shards:05}.sparsefmt"
        names = [f"layers.{len(weight_map) + place}.weight" for place in range(len(tensors))]
        content = sparsefmt.save(dict(zip(names, tensors, strict=True)), codec="raw")
        weight_map |= dict.fromkeys(names, shard)
        files.pipe_file(f"{BUCKET}/model/{shard}", content, chunksize=1 << 30)
        size += len(content)
    path.unlink()
    files.pipe_file(f"{BUCKET}/{INDEX}", json.dumps({"metadata": {}, "weight_map": weight_map}).encode())
    return list(weight_map)[len(weight_map) // 2], size


def download(files: Any, path: str, to: Path) -> None:
    """Write an object to the disk. Asked for parts, s3fs first asks for the whole, only to learn its size."""
    files.get_file(path, str(to), max_concurrency=1)


def layer_of_shards(name: str, options: dict[str, Any]) -> Any:
    """One layer of a checkpoint of several files: the index says which one has it."""
    index = json.loads(fsspec.filesystem("s3", **options).cat_file(f"{BUCKET}/{INDEX}"))
    url = f"s3://{BUCKET}/model/{index['weight_map'][name]}"
    with sparsefmt.open_file(url, storage_options=options) as file:
        return file[name]


@click.command(context_settings={"show_default": True})
@click.option("--tensors", type=int, default=100_000, help="Of the file that is opened.")
@click.option("--megabytes", type=int, default=400, help="Dense bytes of the file of which a layer is read.")
@click.option("--shards", type=int, default=0, help="Also read a layer of a checkpoint of so many such files.")
def main(tensors: int, megabytes: int, shards: int) -> None:
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
            step(f"download {what}", lambda url=url: download(files, url, Path(name) / "copy"))
            file.close()
            path.unlink()
            (Path(name) / "copy").unlink()
        if shards:
            layer, size = upload_shards(files, Path(name), megabytes, shards)
            step(f"{layer} of {shards} files, {size:,} bytes", lambda: layer_of_shards(layer, options))

            some = [path for path in files.ls(f"{BUCKET}/model", detail=False) if path.endswith(".sparsefmt")][
                :DOWNLOADED
            ]

            def download_some() -> None:
                for path in some:
                    download(files, path, Path(name) / "copy")

            step(f"download {len(some)} of {shards} files", download_some)
    wide_console().print(table)


if __name__ == "__main__":
    main()
