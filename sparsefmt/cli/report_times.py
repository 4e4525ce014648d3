"""What `sparsefmt report --bench` measures: the products of a model's tensors beside dense ones."""

from __future__ import annotations

import platform
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sparsefmt.report.gathering import Progress, nbytes_of

if TYPE_CHECKING:
    from sparsefmt import SparseTensor
    from sparsefmt.report.contents import Contents
    from sparsefmt.report.tensors import Tensor

BATCHES = [1, 32]
"""Rows of activations with which products are timed, as `sparsefmt bench` does."""

REPEATS = 11


class _LaidOut:
    """Gives a tensor as products take it: what `measure` asks an open file for."""

    def __init__(self, tensor: Tensor, threads: int) -> None:
        self._tensor, self._threads = tensor, threads

    def load(self, name: str, layout: str) -> SparseTensor:
        from sparsefmt import SparseTensor

        return SparseTensor.from_dense(self._tensor.open_rows(), layout, threads=self._threads)


def alike(tensors: list[Tensor]) -> list[list[Tensor]]:
    """The tensors that are multiplied sparse, those together that take equally long."""
    found: dict[object, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.stored is not None and tensor.stored.memory_layout != "dense" and tensor.row_dims == 1:
            key = (tensor.shape, tensor.dtype, tensor.stored.memory_layout, round(100 * tensor.zeros / tensor.elements))
            found.setdefault(key, []).append(tensor)
    return list(found.values())


def add_times(contents: Contents, kinds: list[list[Tensor]], threads: int, progress: Progress | None) -> list[str]:
    """Time a tensor of each kind for all that are alike. Returns sentences on products that are wrong."""
    from sparsefmt.cli.benchmark.groups import Group
    from sparsefmt.cli.benchmark.libraries import dense_libraries
    from sparsefmt.cli.benchmark.measuring import measure
    from sparsefmt.report.contents import Speed
    from sparsefmt.report.tensors import Times

    matrices = sum(len(tensor.shape) > 1 for tensor in contents.tensors)
    left_out = matrices - sum(map(len, kinds))
    faults: list[str] = []
    with dense_libraries(threads) as libraries:
        contents.speed = Speed(_processor(), threads, [library.name for library in libraries], left_out)
        for tensors in kinds:
            first = tensors[0]
            rows = first.open_rows()
            # what is measured has no file of its own, and no entry in one
            file: Any = _LaidOut(first, threads)
            entry: Any = SimpleNamespace(name=first.name, rows=rows.rows, cols=rows.cols)
            group = Group("auto", "auto", 0, file, Path(contents.title), [entry])
            measure(group, BATCHES, libraries, threads, REPEATS)
            faults += group.faults
            times = [
                Times(timing.batch, timing.seconds, timing.dense_seconds, timing.ranking[0].library)
                for timing in group.timings
            ]
            for tensor in tensors:
                tensor.times = times
            if progress:
                progress(nbytes_of(tensors))
    return faults


def _processor() -> str:
    """The processor, as it calls itself."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
