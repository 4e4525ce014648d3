"""How `kernels.py` times a product, in a process that is otherwise quiet. The tool imports this file; it is not a
program."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

TURN_SECONDS = 0.002
"""A product is called for this long to warm up, and again to be timed, but once at least. At first it finds its weights
out of cache and its threads asleep, and if two threads wake up on one core, it takes until the scheduler notices."""

COLD_CALLS = 3
"""Calls of a turn that are timed, each after its weights were evicted from the caches."""

EVICTING_BYTES = 96 << 20
"""What is read to evict all else from the caches: more than the last level of most processors."""


def at_work(process: int) -> bool:
    """Whether a thread of the process other than the calling one is running, by Linux's word; elsewhere, never.

    CPU time would not tell: the kernel adds to it some 4 ms at a time.
    """
    own = str(threading.get_native_id())
    for task in Path(f"/proc/{process}/task").glob("*"):
        try:
            state = (task / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:  # it has just ended
            continue
        if state == "R" and task.name != own:
            return True
    return False


def settle(process: int | None = None) -> None:
    """Wait until a process's threads sleep (by default, this one's): OpenBLAS's, for one, spin for 25 ms after each
    product, on a core that the next contender needs."""
    deadline = time.perf_counter() + 0.1
    while at_work(process or os.getpid()) and time.perf_counter() < deadline:
        time.sleep(0.0005)


def seconds_of_calls(run: Callable[[], object]) -> list[float]:
    """Seconds of each call in TURN_SECONDS."""
    calls = []
    begin = start = time.perf_counter()
    while start - begin < TURN_SECONDS:
        run()
        end = time.perf_counter()
        calls.append(end - start)
        start = end
    return calls


@cache
def _evicting() -> np.ndarray:
    return np.ones(EVICTING_BYTES // 8, np.int64)


def timed_turn(
    run: Callable[[], object],
    before: Callable[[], object] | None,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds of one call, the median of a few.

    before: the same product with other weights in the same form. All else is evicted from the caches and this one is
    called before each of COLD_CALLS, so that code, activations and threads are where they are in the middle of a large
    model, and the weights in memory. If None, as many calls as fit into TURN_SECONDS, warm. clock: in seconds, of cold
    calls.
    """
    settle()
    if before is None:
        seconds_of_calls(run)
        return statistics.median(seconds_of_calls(run))
    run()
    calls = []
    for _ in range(COLD_CALLS):
        _evicting().sum()
        before()
        start = clock()
        run()
        calls.append(clock() - start)
    return statistics.median(calls)
