"""Open files whose index is as large as it may be and made to cost, and print what that takes.

    python -m tools.fuzz.attack_index              indices of 256 MiB, the largest that are read; some two minutes, 8 GB
    python -m tools.fuzz.attack_index --mib 16     smaller ones

Each file is opened in a process of its own. "Time" is that of opening alone; "memory" is what the process takes at
most, beyond what it takes for an empty file. A file is "read", or refused with a code. Some are valid, with as many
tensors, names, chunks or texts as there is room for. The others have small things in large numbers where the format has
no place for them, or where, in a file of a later minor version, a reader has to ignore them.

Exits with 1 if anything but tensors or a SparsefmtError came of it, or if more than 40 times the size of the index was
taken.
"""

from __future__ import annotations

import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import click
import msgpack
import xxhash
import zstandard
from rich.console import Console
from rich.table import Table

import sparsefmt
from sparsefmt.container import coded_index
from sparsefmt.limits import MAX_CODED_INDEX_BYTES, MAX_TENSORS
from tools.bench.harness import status
from tools.taken_apart import join, preamble

MOST_TIMES = 40
"""Bytes of memory for each byte of the index."""

KINDS = [["U8"]]
NOTHING = [b"", [], {}]
"""An index of a file without tensors."""


def with_unknown(size: int, *pieces: bytes, text: str = "") -> bytes:
    """An index of about `size` bytes with an unknown key, whose value has `pieces` over and over, in arrays. text: of
    the metadata, beside that size."""
    inner = array_of(list(pieces) * (1024 // len(pieces)))
    inners = [inner] * ((size - 1000) // len(inner))
    middles = [array_of(inners[first : first + 1024]) for first in range(0, len(inners), 1024)]
    fields = {"metadata": {"a": text}} if text else {}
    head = b"\x94" + b"".join(map(msgpack.packb, NOTHING)) + msgpack.Packer().pack_map_header(len(fields) + 1)
    return head + msgpack.packb(fields)[1:] + msgpack.packb("unknown") + array_of(middles)


def array_of(elements: list[bytes]) -> bytes:
    """An array of msgpack, of elements that are encoded."""
    return msgpack.Packer().pack_array_header(len(elements)) + b"".join(elements)


def tensors(dimensions: int, size: int) -> bytes:
    """An index with as many tensors as fit."""
    entry = [0, [0] * dimensions]
    count = min(MAX_TENSORS, (size - 100) // (len(msgpack.packb(entry)) + 9))
    return msgpack.packb([b"", KINDS, {f"{number:08x}": entry for number in range(count)}])


def smallest_tensors(size: int) -> tuple[bytes, bytes]:
    """As many tensors of one byte as fit, each of which takes as little of the index as it can, and their bytes."""
    count = min(MAX_TENSORS, (size - 100) // 18)
    tensors = {f"{number:05x}": [0, []] for number in range(count)}
    return msgpack.packb([table_of_bytes(count), KINDS, tensors]), bytes(8 * count - 7)


def table_of_bytes(count: int) -> bytes:
    """The table of so many chunks of a byte of 0."""
    return b"\1" + b"\1" * count + xxhash.xxh64_digest(b"\0")[::-1] * count


def aliases(size: int) -> bytes:
    count = min(MAX_TENSORS, (size - 200) // 23) - 1
    tied = {f"{number:08x}": {"alias_of": "0"} for number in range(count)}
    return msgpack.packb([b"", KINDS, {"0": [0, [0]], **tied}])


def chunk_table(size: int) -> bytes:
    """One tensor of as many tiles as fit, none of the bytes of which are there."""
    count = (size - 200) // 9
    return msgpack.packb([b"\1" + bytes(9 * count), KINDS, {"w": [0, [count], {"tile_rows": 1}]}])


def many_tiles(size: int) -> tuple[bytes, bytes]:
    """A dense tensor of as many tiles as fit, with all their bytes."""
    count = min((size - 200) // 9, 1 << 23)
    return msgpack.packb([table_of_bytes(count), KINDS, {"w": [0, [count], {"tile_rows": 1}]}]), bytes(8 * count - 7)


def coded(size: int) -> bytes:
    """A frame that becomes as much as a coded index may, or 28 times its size if that is less."""
    decoded = min(28 * size, MAX_CODED_INDEX_BYTES)
    text = random.Random(0).randbytes(decoded // 28).hex()
    return zstandard.compress(with_unknown(decoded - len(text), b"\x81\xa0\xa0", text=text))


CASES: dict[str, Callable[[int], tuple[bytes, int, bytes]]] = {
    "tensors without elements": lambda size: (tensors(1, size), 0, b""),
    "tensors of 32 dimensions": lambda size: (tensors(32, size), 0, b""),
    "tensors of one byte": lambda size: ((made := smallest_tensors(size))[0], 0, made[1]),
    "maps of one text, coded": lambda size: (coded(size), 1, b""),
    "tied names": lambda size: (aliases(size), 0, b""),
    "chunks, and no bytes": lambda size: (chunk_table(size), 0, b""),
    "tiles of one byte": lambda size: ((made := many_tiles(size))[0], 0, made[1]),
    "a text of metadata": lambda size: (msgpack.packb([*NOTHING, {"metadata": {"a": "a" * (size - 100)}}]), 0, b""),
    "maps, empty": lambda size: (with_unknown(size, b"\x80"), 0, b""),
    "maps of one text": lambda size: (with_unknown(size, b"\x81\xa0\xa0"), 1, b""),
    "arrays, empty, later version": lambda size: (with_unknown(size, b"\x90"), 1, b""),
    "arrays of one number": lambda size: (with_unknown(size, b"\x91\x00"), 1, b""),
    "numbers of one byte": lambda size: (with_unknown(size, b"\x00"), 0, b""),
    "numbers of three bytes": lambda size: (with_unknown(size, b"\xcd\x10\x00"), 1, b""),
    "texts of two letters": lambda size: (with_unknown(size, b"\xa2ab"), 1, b""),
    "bytes": lambda size: (with_unknown(size, b"\xc4\x02ab"), 1, b""),
    "maps, and texts": lambda size: (with_unknown(size, b"\x81\xa0\xa0", *[b"\xa2ab"] * 4), 1, b""),
    "null": lambda size: (with_unknown(size, b"\xc0"), 0, b""),
}


def measure(path: str, sender: Connection) -> None:
    """Open the file at `path`, and send what came of it, the seconds and the memory in use at most."""
    started = time.perf_counter()
    try:
        with sparsefmt.open_file(path) as file:
            outcome = f"read: {len(file):,} names"
    except sparsefmt.SparsefmtError as error:
        outcome = error.code
    except BaseException as error:  # whatever it is, it should not be
        outcome = f"crash: {type(error).__name__}: {error}"
    sender.send((outcome, time.perf_counter() - started, status()["VmHWM"]))


def run(data: bytes, folder: str) -> tuple[str, float, int]:
    path = f"{folder}/index.sparsefmt"
    with open(path, "wb") as file:
        file.write(data)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([measure.__module__])  # each is a fork of a process that has imported this
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(path, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return "crash: the process died", 0.0, 0
    finally:
        process.join()


@click.command(epilog="See the head of this file for what is measured.")
@click.option("--mib", type=click.IntRange(1, 256), default=256, show_default=True, help="Size of the indices.")
@click.option("--folder", type=click.Path(exists=True, file_okay=False), help="Where the files are made.")
def main(mib: int, folder: str | None) -> None:
    """Open files whose index is as large as it may be and made to cost."""
    size, bad = mib << 20, False
    table = Table("an index full of", "MiB", "outcome", "seconds", "memory", "times its size", title="Hostile indices")
    with tempfile.TemporaryDirectory(dir=folder) as folder:
        _, _, base = run(join(preamble(), msgpack.packb(NOTHING)), folder)
        for name, make in CASES.items():
            index, minor, body = make(size)
            outcome, seconds, memory = run(join(preamble(minor) + body, index), folder)
            nbytes = len(coded_index.decode(index))
            times = max(memory - base, 0) / nbytes
            bad |= outcome.startswith("crash") or times > MOST_TIMES
            numbers = f"{seconds:.1f}", f"{memory / 2**20:,.0f} MiB", f"{times:.1f}"
            table.add_row(name, f"{nbytes / 2**20:.0f}", outcome, *numbers)
        Console(width=110).print(table)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
