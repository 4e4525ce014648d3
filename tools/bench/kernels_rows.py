"""What `kernels.py` measures, as lines of its CSV. Everything is verified before it is timed.

The tool imports this file; it is not a program.
"""

from __future__ import annotations

import csv
import statistics
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple, TextIO

import click
import numpy as np

from sparsefmt import SparseTensor
from tools.bench import kernels_peers
from tools.bench.harness import Others, in_turns, spread
from tools.bench.kernels_contenders import VALUE_DTYPES, Contender, Weights, contenders, set_threads
from tools.bench.read_bandwidth import ReadBandwidth
from tools.pruning import magnitude_mask
from tools.safetensors_io import FLOAT_DTYPES, read_safetensors

PRUNED_FROM = 0.2
"""Share of zeros from which a matrix of a model counts as pruned."""

DENSE = ("numpy f32", "torch f32")

MKL = "MKL CSR"

OURS = "sparsefmt "


class Plan(NamedTuple):
    """What is measured where no option says otherwise.

    Attributes:
        seconds: a contender's time for one case, after which it sits out further turns.
        cold: whether weights are evicted from the caches before each call.
        peers: other engines to measure.
        model: a safetensors file to take the matrices from, in place of `shape` and `sparsity`.
    """

    shape: tuple[str, ...]
    batch: tuple[int, ...]
    sparsity: tuple[float, ...]
    repeats: int
    seconds: float
    cold: bool = True
    threads: tuple[int, ...] = (1, 2)
    peers: tuple[str, ...] = ()
    model: Path | None = None


class Matrix(NamedTuple):
    """A pruned matrix, contiguous float32 (rows, cols)."""

    name: str
    array: np.ndarray

    def sparsity(self) -> float:
        return 1 - np.count_nonzero(self.array) / self.array.size


@dataclass(frozen=True)
class Row:
    """A line of the CSV: one contender in one case. Ratios are how many times faster."""

    matrix: str
    rows: int
    cols: int
    sparsity: float
    threads: int
    batch: int
    contender: str
    median_ms: float
    spread: float
    turns: int
    others: float | None
    """Cores that other processes, or other guests of the machine, took during the case."""
    weight_bytes: int
    read_gb_per_s: float
    """Bandwidth of reading as many bytes, with --warm over and over."""
    memory_gb_per_s: float
    """Bandwidth of reading more than any cache holds."""
    over_dense: float
    over_mkl: float | None
    roof_over_dense: float
    """over_dense of a product that took as long as reading the weights."""
    auto: bool
    """Whether it is what a user gets by default, with values of its type."""


def layouts_by_default(array: np.ndarray) -> dict[str, str]:
    """The layout that `auto` takes on this processor, for values of each type."""
    return {name: SparseTensor.from_dense(array.astype(dtype)).layout for name, dtype in VALUE_DTYPES.items()}


def random_matrices(shapes: Iterable[str], sparsities: Iterable[float]) -> Iterator[Matrix]:
    """Gaussian matrices without their smallest magnitudes."""
    for shape in shapes:
        rows, cols = map(int, shape.split("x"))
        weight = np.random.default_rng(0).standard_normal((rows, cols)).astype(np.float32)
        for sparsity in sparsities:
            yield Matrix("gaussian", np.where(magnitude_mask(weight, sparsity), weight, np.float32(0)))


def model_matrices(path: Path) -> Iterator[Matrix]:
    """Of a safetensors file, the first pruned matrix of each shape."""
    seen = set()
    for name, tensor in read_safetensors(path)[0].items():
        if tensor.dtype not in FLOAT_DTYPES or len(tensor.shape) != 2 or tensor.shape in seen:
            continue
        matrix = Matrix(name, np.ascontiguousarray(tensor.values, np.float32))
        if matrix.sparsity() >= PRUNED_FROM:
            seen.add(tensor.shape)
            yield matrix


class Case(NamedTuple):
    """What is measured of a matrix at a time. others: cores that other processes took meanwhile."""

    threads: int
    batch: int
    others: float | None


class MatrixRun:
    """All contenders on one matrix, whose forms are made once; peer processes live as long.

    Args:
        commands: of the peers.
        bandwidth: of the machine.
    """

    def __init__(self, matrix: Matrix, commands: dict[str, list[str]], plan: Plan, bandwidth: ReadBandwidth) -> None:
        self.matrix, self.plan, self.bandwidth = matrix, plan, bandwidth
        self.weights = Weights(matrix.array)
        self.by_default = [f"{OURS}{layout} {values}" for values, layout in layouts_by_default(matrix.array).items()]
        self.before = Weights(matrix.array.copy()) if plan.cold else None
        self.peers: list[kernels_peers.PeerProcess] = []
        with ExitStack() as stack:
            for name, command in commands.items():
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"bench-{name}-")))
                self.peers.append(stack.enter_context(kernels_peers.PeerProcess(name, command, matrix.array, folder)))
            self._stack = stack.pop_all()

    def __enter__(self) -> MatrixRun:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def rows_of_case(self, threads: int, batch: int) -> list[Row]:
        """Verify and time all contenders in one case."""
        x = np.random.default_rng(1).standard_normal((batch, self.matrix.array.shape[1])).astype(np.float32)
        set_threads(threads)
        contending = contenders(self.weights, x, threads, self.before)
        for peer in self.peers:
            contending += peer.contenders(x, contending[0].expected, threads, self.plan.cold)
        for contender in contending:
            contender.verify()
        others = Others(peer.process.pid for peer in self.peers)
        samples = {contender.name: contender.turn for contender in contending}
        times = in_turns(samples, self.plan.repeats, seconds=self.plan.seconds)
        return list(self._rows(contending, times, Case(threads, batch, others.cores())))

    def _rows(self, contending: list[Contender], times: dict[str, list[float]], case: Case) -> Iterator[Row]:
        """The CSV's lines of one case."""
        medians = {name: statistics.median(seconds) for name, seconds in times.items()}
        dense = min(medians[name] for name in DENSE)
        rows, cols = self.matrix.array.shape
        memory = self.bandwidth(case.threads)
        for contender in contending:
            name, median = contender.name, medians[contender.name]
            speed = memory if self.plan.cold else self.bandwidth(case.threads, contender.weight_bytes)
            yield Row(
                matrix=self.matrix.name,
                rows=rows,
                cols=cols,
                sparsity=round(self.matrix.sparsity(), 4),
                threads=case.threads,
                batch=case.batch,
                contender=name,
                median_ms=median * 1e3,
                spread=spread(times[name]),
                turns=len(times[name]),
                others=case.others,
                weight_bytes=contender.weight_bytes,
                read_gb_per_s=speed / 1e9,
                memory_gb_per_s=memory / 1e9,
                over_dense=dense / median,
                over_mkl=medians[MKL] / median if MKL in medians else None,
                roof_over_dense=dense * speed / contender.weight_bytes,
                auto=name in self.by_default,
            )


def csv_writer(file: TextIO) -> csv.DictWriter[str]:
    writer = csv.DictWriter(file, [field.name for field in fields(Row)])
    writer.writeheader()
    return writer


def read_rows(path: Path) -> list[Row]:
    """Of a CSV that this program has written."""
    parse = {
        "bool": "True".__eq__,
        "str": str,
        "int": int,
        "float": float,
        "float | None": lambda text: float(text) if text else None,
    }
    with open(path, newline="") as file:
        try:
            return [
                Row(**{field.name: parse[field.type](line[field.name]) for field in fields(Row)})
                for line in csv.DictReader(file)
            ]
        except (KeyError, ValueError) as error:
            raise click.ClickException(f"{path} is no CSV of this program: {error}") from None
