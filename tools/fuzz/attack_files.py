"""Damages small files in every way there is, reads them, and prints what came of it.

    python -m tools.fuzz.attack_files                       every flip, truncation, zeroed part and splice; some minutes
    python -m tools.fuzz.attack_files --share 0.02          a sample of each
    python -m tools.fuzz.attack_files --only flips

There is a file with all kinds of tensors for every layout with every codec. These are the campaigns:

    flips          every bit of a file, checksums left as they are
    mended flips   every bit of every chunk and of the index, with checksums that fit
    truncations    at every byte
    zeroed tails   from every byte on
    zeroed blocks  each 16 bytes, with checksums left as they are, and mended
    splices        the head of one file, the tail of another, at every 16th byte

Each damaged file is opened; all tensors are loaded in the layout of the file and dense, and multiplied by, scaled ones
with their scales, too. It is "refused" if that gives a SparsefmtError, "same" if it gives what the file had, "other" if
it gives something else. Any other exception, and a death of the process that reads, is a "crash". Exits with 1 if there
is a crash, or if a file whose checksums were left as they are is not refused.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import click
import ml_dtypes
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import sparsefmt
from sparsefmt.checkpoints.scales import as_metadata, checked_scales, scales_in
from sparsefmt.codecs import CODECS
from sparsefmt.container.sources import Memory
from tools import forms
from tools.taken_apart import mended

Case = tuple[str, bytes]
"""The name of the file that was damaged, and what became of it."""

Damage = tuple[str, Callable[[], bytes]]
"""The name of the file that is damaged, and what makes the damaged one: of a sample, the others need not be made."""

MAX_DECODED_BYTES = 1 << 24
"""Whatever a file claims, no more memory is taken."""


class Campaign(NamedTuple):
    """A way to damage files.

    Attributes:
        cases: every damaged file, still to be made.
        must_refuse: whether each of them must be refused, and not only do no harm.
    """

    cases: Callable[[dict[str, bytes]], Iterator[Damage]]
    must_refuse: bool


def bases() -> dict[str, bytes]:
    """Small files, by name."""
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((9, 17)).astype(np.float32)
    weight[rng.random(weight.shape) < 0.6] = 0
    weight[rng.random(weight.shape) < 0.1] = -0.0
    tensors = {
        "weight": weight,
        "half": np.tile(weight, (2, 3)).astype(ml_dtypes.bfloat16),
        "small": rng.integers(-3, 4, (5, 9)).astype(np.int8),
        "vector": np.arange(30, dtype=np.uint16),
        "flags": rng.random((3, 7)) < 0.5,
        "packed": rng.standard_normal((3, 5)).astype(ml_dtypes.float4_e2m1fn),
        "far": np.eye(1, 520, 300, np.int8) + np.eye(1, 520, 519, np.int8),
        "tied": weight,
        "stack": np.where(rng.random((2, 3, 33)) < 0.6, 0, rng.integers(1, 9, (2, 3, 33))).astype(np.int8),
        "small scales": np.array([[1, 2, 0.5]] * 5, np.float16),
    }
    metadata = {"key": "text", **as_metadata({"small": "small scales"})}
    return {
        f"{layout} {codec}": forms.save(tensors, metadata, form=form, codec=codec, row_dims={"stack": 2})
        for layout, form in forms.LAYOUTS.items()
        for codec in CODECS
    }


def flips(files: dict[str, bytes]) -> Iterator[Damage]:
    for name, data in files.items():
        for bit in range(8 * len(data)):
            yield name, partial(flipped, data, bit)


def mended_flips(files: dict[str, bytes]) -> Iterator[Damage]:
    for name, data in files.items():
        for bit in range(8 * 16, 8 * (len(data) - 20)):
            yield name, partial(mended_flip, data, bit)


def truncations(files: dict[str, bytes]) -> Iterator[Damage]:
    for name, data in files.items():
        for size in range(len(data)):
            yield name, partial(spliced, data, size, b"", 0)


def zeroed_tails(files: dict[str, bytes]) -> Iterator[Damage]:
    for name, data in files.items():
        for begin in range(len(data)):
            if data[begin:].strip(b"\0"):
                yield name, partial(zeroed, data, begin, len(data))


def zeroed_blocks(files: dict[str, bytes]) -> Iterator[Damage]:
    for name, data in files.items():
        for begin in range(0, len(data), 16):
            if data[begin : begin + 16].strip(b"\0"):
                yield name, partial(zeroed, data, begin, begin + 16)


def mended_blocks(files: dict[str, bytes]) -> Iterator[Damage]:
    for name, damaged in zeroed_blocks(files):
        yield name, lambda damaged=damaged: mended(damaged())


def splices(files: dict[str, bytes]) -> Iterator[Damage]:
    for name, data in files.items():
        for other, tail in files.items():
            for cut in range(16, min(len(data), len(tail)), 16) if other != name else ():
                if data[:cut] != tail[:cut] and data[cut:] != tail[cut:]:
                    yield name, partial(spliced, data, cut, tail, cut)
                    yield name, partial(spliced, data, len(data) - cut, tail, len(tail) - cut)


CAMPAIGNS = {
    "flips": Campaign(flips, True),
    "mended flips": Campaign(mended_flips, False),
    "truncations": Campaign(truncations, True),
    "zeroed tails": Campaign(zeroed_tails, True),
    "zeroed blocks": Campaign(zeroed_blocks, True),
    "mended blocks": Campaign(mended_blocks, False),
    "splices": Campaign(splices, True),
}


def flipped(data: bytes, bit: int) -> bytes:
    out = bytearray(data)
    out[bit // 8] ^= 1 << bit % 8
    return bytes(out)


def mended_flip(data: bytes, bit: int) -> bytes:
    return mended(flipped(data, bit))


def zeroed(data: bytes, begin: int, end: int) -> bytes:
    end = min(end, len(data))
    return data[:begin] + bytes(end - begin) + data[end:]


def spliced(data: bytes, head: int, other: bytes, tail: int) -> bytes:
    """The head of one file, and what is behind the head of the other."""
    return data[:head] + other[tail:]


def content(data: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """All tensors: loaded in the file's layout and multiplied by, and dense."""
    found: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    dense = sparsefmt.load(data, layout="dense", max_decoded_bytes=MAX_DECODED_BYTES)
    tensors = sparsefmt.load(data, max_decoded_bytes=MAX_DECODED_BYTES)
    for name, tensor in tensors.items():
        array = dense[name]
        assert isinstance(array, np.ndarray)
        found[name] = str(array.dtype), array.shape, array.tobytes()
        if isinstance(tensor, sparsefmt.SparseTensor):
            assert tensor.todense().tobytes() == array.tobytes()
            with np.errstate(all="ignore"):
                sparsefmt.linear(np.ones((3, tensor.tiling.cols), np.float32), tensor)
            if tensor.tiling.row_dims > 1:
                assert np.asarray(tensor[-1:]).tobytes() == array[-1:].tobytes()
                assert tensor[-1].todense().tobytes() == array[-1].tobytes()
    with sparsefmt.SparseFile(Memory(data), threads=1) as file:
        pairs = scales_in(file.metadata(), set(dense))
    for name, scales in pairs.items():
        scale = checked_scales(name, dense[name].shape, scales, np.asarray(dense[scales]))
        x = np.ones((3, dense[name].shape[1]), np.float32)
        activations = "int8" if dense[name].dtype == np.int8 else None
        with np.errstate(all="ignore"):
            sparsefmt.linear(x, tensors[name], scale=scale, activations=activations)
    return found


def outcome(data: bytes, original: dict[str, Any]) -> str:
    """ "refused", "same", "other", or the name of an exception that should not be."""
    try:
        return "same" if content(data) == original else "other"
    except sparsefmt.SparsefmtError:
        return "refused"
    except Exception as error:
        return f"crash: {type(error).__name__}: {error}"


def read_cases(cases: Connection, files: dict[str, bytes]) -> None:
    """In a process of its own: an outcome for each file that comes."""
    sparsefmt.set_num_threads(1)
    originals = {name: content(data) for name, data in files.items()}
    while True:
        name, data = cases.recv()
        cases.send(outcome(data, originals[name]))


class Victim:
    """The process that reads."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._cases, there = context.Pipe()
        self._process = context.Process(target=read_cases, args=(there, self._files), daemon=True)
        self._process.start()
        there.close()

    def read(self, case: Case) -> str:
        try:
            self._cases.send(case)
            return self._cases.recv()
        except (EOFError, OSError):
            self._process.join()
            died = f"crash: the process died with {self._process.exitcode}"
            self._start()
            return died

    def stop(self) -> None:
        self._process.kill()


class Report(NamedTuple):
    """What came of a campaign: how often, and the cases that must not be."""

    outcomes: Counter[str]
    wrong: list[tuple[str, Case]]


def attack(campaign: Campaign, files: dict[str, bytes], share: float, seed: int, each: Callable[[], object]) -> Report:
    """Read a share of the damaged files of a campaign."""
    rng, victim, report = random.Random(seed), Victim(files), Report(Counter(), [])
    for name, damaged in campaign.cases(files):
        if share < 1 and rng.random() >= share:
            continue
        case = name, damaged()
        found = victim.read(case)
        report.outcomes[found.split(":")[0]] += 1
        if found.startswith("crash") or (campaign.must_refuse and found != "refused"):
            report.wrong.append((found, case))
        each()
    victim.stop()
    return report


@click.command(help=(__doc__ or "").replace("\n\n    ", "\n\n\b\n    "))
@click.option("--only", multiple=True, type=click.Choice(list(CAMPAIGNS)), help="These campaigns.")
@click.option("--share", type=click.FloatRange(0, 1), default=1.0, show_default=True, help="Part of the cases to try.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the sample.")
@click.option("--keep", type=click.Path(file_okay=False), help="Folder for files that did what they must not.")
def main(only: tuple[str, ...], share: float, seed: int, keep: str | None) -> None:
    files = bases()
    sizes = sorted(map(len, files.values()))
    print(f"{len(files)} files of {sizes[0]:,} to {sizes[-1]:,} bytes, {share:.0%} of the cases")
    table = Table("campaign", *(f"{word}" for word in ("cases", "refused", "same", "other", "crashes", "seconds")))
    wrong: list[tuple[str, Case]] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for name in only or CAMPAIGNS:
            task, started = progress.add_task(name, total=None), time.perf_counter()
            report = attack(CAMPAIGNS[name], files, share, seed, lambda task=task: progress.advance(task))
            counts = [report.outcomes[word] for word in ("refused", "same", "other", "crash")]
            elapsed = time.perf_counter() - started
            table.add_row(name, f"{sum(counts):,}", *(f"{count:,}" for count in counts), f"{elapsed:.0f}")
            wrong += report.wrong
            progress.remove_task(task)
    Console().print(table)
    for number, (found, (name, data)) in enumerate(wrong[:20]):
        print(f"{found} ({name})")
        if keep:
            os.makedirs(keep, exist_ok=True)
            with open(os.path.join(keep, f"{number:03}.sparsefmt"), "wb") as file:
                file.write(data)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
