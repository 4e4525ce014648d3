"""The products of each group of tensors are timed in turns with dense ones, and compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np

from sparsefmt.cli.benchmark.groups import Contender, Group, Timing
from sparsefmt.cli.benchmark.libraries import Library, Product
from sparsefmt.container.remote_path import Place
from sparsefmt.errors import in_file

SECONDS = 1.0
"""Seconds for the turns of one tensor and batch size. Then turns end, unless they are fewer than LEAST_REPEATS."""

LEAST_REPEATS = 3

TOKENS_TO_CHECK = 16
"""The fewest rows of activations in whose outputs the largest is searched: one row may be near 0 by chance."""

TOLERANCE = 1e-4
"""The largest difference, over the largest output. float32 sums of a few thousand terms in another order differ by a
hundredth of that."""

OURS = "sparsefmt"

Who = TypeVar("Who")

_clock = time.perf_counter


def quartile_spread(times: list[float]) -> float:
    """Quartile distance over the median."""
    first, median, third = statistics.quantiles(times, n=4)
    return (third - first) / median if median else 0.0


@dataclass
class Results:
    """All that was measured.

    Attributes:
        path: the model.
        threads: of our products.
        given: whether the user asked for that number.
        left_out: tensors that are stored dense, and were not measured.
        libraries: of the dense products; none where nothing is measured.
    """

    path: Place
    threads: int
    given: bool
    left_out: int
    groups: list[Group]
    libraries: list[Library] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        return [fault for group in self.groups for fault in group.faults]


def measure(group: Group, batches: list[int], libraries: list[Library], threads: int, repeats: int) -> None:
    """Load the first tensor of a group, time its products, compare them."""
    from sparsefmt import SparseTensor, linear

    entry = group.first
    with in_file(group.path):
        tensor = group.file.load(entry.name, group.asked)
    assert isinstance(tensor, SparseTensor)
    group.layout = tensor.layout
    group.nbytes = tensor.nbytes
    # weights may be too large for float32, or not finite; that is not a fault
    with np.errstate(all="ignore"):
        dense = tensor.todense(threads).astype(np.float32, copy=False).reshape(entry.rows, entry.cols)
        rng = np.random.default_rng(0)
        x = rng.standard_normal((max(TOKENS_TO_CHECK, *batches), entry.cols), np.float32)
        reference = x @ dense.T
        scale = float(np.abs(reference[np.isfinite(reference)]).max(initial=0))
        group.not_finite = not np.isfinite(reference).all()
        products = [(library, library.product(dense)) for library in libraries]
        for batch in batches:
            part = x[:batch]

            def ours(part: np.ndarray = part) -> np.ndarray:
                return linear(part, tensor, threads=threads)

            difference = _difference(ours(), part @ dense.T)  # also compiles, and fills caches
            # the last term is the smallest normal number of float32
            if not difference <= TOLERANCE * scale + np.finfo(np.float32).tiny:
                group.faults.append(
                    f"{group.path}: tensor {entry.name!r}, batch {batch}: the product is not numpy's; it differs by "
                    f"{difference:.3g}, and the largest output is {scale:.3g}"
                )
            contenders: dict[tuple[Contender, bool], tuple[Callable[[], Any], Product]] = {
                (Contender(OURS, threads), False): (lambda: None, ours)
            }
            for library, product in products:
                run = product(part)
                for count in library.threads:
                    who = Contender(library.name, count), library.rounds
                    contenders[who] = (partial(library.prepare, count), run)
            times = _interleaved(contenders, repeats)
            own = times.pop((Contender(OURS, threads), False))
            exact, rounded = (
                {who: taken for (who, rounds), taken in times.items() if rounds == wanted} for wanted in (False, True)
            )
            group.timings.append(Timing(batch, own, exact, rounded))


def _difference(ours: np.ndarray, reference: np.ndarray) -> float:
    """The largest difference where the reference is finite. Elsewhere, any of several overflows may come first."""
    finite = np.isfinite(reference)
    return float(np.abs(ours[finite] - reference[finite].astype(np.float64)).max(initial=0))


def _interleaved(contenders: dict[Who, tuple[Callable[[], Any], Product]], repeats: int) -> dict[Who, list[float]]:
    """Seconds of each contender. They take turns, so that other work of the machine affects all of them alike.

    A turn is two runs, of which the second counts. Threads of BLAS and OpenMP go on spinning for a while after a
    product, which slows the next one: numpy, timed right after torch, is several times slower than alone.

    Args:
        contenders: for each, a function to call before its turn, and its product.
    """
    times: dict[Who, list[float]] = {who: [] for who in contenders}
    began = _clock()
    for turn in range(repeats):
        if turn >= LEAST_REPEATS and _clock() - began > SECONDS:
            break
        for who, (prepare, run) in contenders.items():
            prepare()
            run()
            started = _clock()
            run()
            times[who].append(_clock() - started)
    return times
