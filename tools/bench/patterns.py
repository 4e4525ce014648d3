"""Time how fast patterns of zeros are found, in bytes of dense tensors of bfloat16 for a second of one core.

    python -m tools.bench.patterns
    python -m tools.bench.patterns --shape 4096x14336 --rounds 5
    python -m tools.bench.patterns --tiny 64x128 --tensors 6000

Seconds are those that the process has a core for, not those of the clock: other work of the machine does not count.
Patterns are found in tensors in memory, on one thread. A thumbnail for notebooks is timed beside.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import click
import ml_dtypes
import numpy as np
from rich.table import Table

from sparsefmt.adapters import rows_of
from sparsefmt.patterns import Pattern, mask_of_rows, pattern_of, thumbnail
from tools.bench.harness import in_turns, parse_shapes, spread, time_text, wide_console

GOAL = 2e9
"""Bytes a second that a person does not wait for."""


def masks(rows: int, cols: int) -> dict[str, np.ndarray]:
    """Masks of every kind of pruning, by what they are called: True is kept."""
    rng = np.random.default_rng(0)
    heads, channels = np.ones((rows, cols), bool), np.ones((rows, cols), bool)
    heads.reshape(rows // 16, 16, cols)[rng.random(rows // 16) < 0.3] = False
    channels[:, rng.random(cols) < 0.3] = False
    off = np.kron(rng.random((rows // 4, cols // 4)) < 0.2, np.ones((4, 4), bool))
    return {
        "no zeros": np.ones((rows, cols), bool),
        "50 % at random": rng.random((rows, cols), np.float32) < 0.5,
        "80 % at random": rng.random((rows, cols), np.float32) < 0.2,
        "99 % at random": rng.random((rows, cols), np.float32) < 0.01,
        "2:4": (rng.random((rows, cols // 4, 4), np.float32).argsort(2).argsort(2) < 2).reshape(rows, cols),
        "4x4 blocks": off,
        "4x4 blocks, 0.1 % off": off ^ (rng.random((rows, cols), np.float32) < 0.001),
        "heads": heads,
        "columns": channels,
        "a triangle": np.tri(rows, cols, dtype=bool),
    }


def find(array: np.ndarray) -> Pattern:
    return pattern_of(mask_of_rows(rows_of(array), 1))


def cpu_seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


@click.command(epilog="See the head of this file for what is measured.")
@click.option("--shape", default="4096x4096", callback=lambda *given: parse_shapes(*given[:2], (given[2],))[0])
@click.option("--tiny", default="64x128", callback=lambda *given: parse_shapes(*given[:2], (given[2],))[0])
@click.option("--tensors", type=click.IntRange(1), default=1000, show_default=True, help="How many tiny ones.")
@click.option("--rounds", type=click.IntRange(3), default=5, show_default=True, help="Measurements of each.")
def main(shape: str, tiny: str, tensors: int, rounds: int) -> None:
    """Time how fast patterns of zeros are found."""
    rng = np.random.default_rng(1)
    values = rng.standard_normal(tuple(map(int, shape.split("x"))), np.float32)
    arrays = {kind: np.where(mask, values, 0).astype(ml_dtypes.bfloat16) for kind, mask in masks(*values.shape).items()}
    small = {
        kind: np.where(mask, 1, 0).astype(ml_dtypes.bfloat16)
        for kind, mask in masks(*map(int, tiny.split("x"))).items()
    }

    def several(array: np.ndarray) -> None:
        for _ in range(tensors):
            find(array)

    large_times = in_turns(
        {kind: partial(cpu_seconds, partial(find, array)) for kind, array in arrays.items()}, rounds, warm_up=1
    )
    drawn = in_turns(
        {
            kind: partial(cpu_seconds, lambda array=array: thumbnail(mask_of_rows(rows_of(array), 1)))
            for kind, array in arrays.items()
        },
        rounds,
        warm_up=1,
    )
    tiny_times = in_turns(
        {kind: partial(cpu_seconds, partial(several, array)) for kind, array in small.items()}, 3, warm_up=1
    )
    table = Table(title=f"{shape} of bfloat16 on one thread, and {tensors:,} tensors of {tiny}")
    for column in ("zeros", "found", "time", "GB/s", "spread", "thumbnail", "a tiny one"):
        table.add_column(column, justify="left" if column in ("zeros", "found") else "right")
    for kind, array in arrays.items():
        middle = statistics.median(large_times[kind])
        speed = array.nbytes / middle
        table.add_row(
            kind,
            str(find(array)),
            time_text(middle),
            f"{speed / 1e9:.2f}",
            f"{100 * spread(large_times[kind]):.0f} %",
            time_text(statistics.median(drawn[kind])),
            time_text(statistics.median(tiny_times[kind]) / tensors),
            style="" if speed >= GOAL else "yellow",
        )
    wide_console().print(table)


if __name__ == "__main__":
    main()
