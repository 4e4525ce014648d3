"""What `sizes.py` measures, as lines of its CSV. Everything is verified before it is timed.

The tool imports this file; it is not a program.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape

from tools.bench.sizes_bounds import bounds
from tools.bench.sizes_contenders import (
    Contender,
    Tensors,
    safetensors_bytes,
    verify,
    warm_up,
)
from tools.bench.sizes_memory import Peaks, peaks_in_fresh_process

SLOW_SECONDS = 3
"""Peers that take longer are not run again: their first time counts, which a cold cache hardly changes."""


class Plan(NamedTuple):
    """What is done where no option says otherwise.

    Attributes:
        quick: without the slow contenders and levels.
        memory: measure peak memory too.
    """

    cases: tuple[str, ...]
    side: int
    repeats: int
    quick: bool = False
    memory: bool = False


@dataclass(frozen=True)
class Row:
    """A line of the tables and of the CSV: one contender, or one bound, and the tensors of one file. MB are 1e6."""

    file: str
    tensors: int
    elements: int
    dense_bytes: int
    contender: str
    kind: str
    """ours, peer, inexact (a peer that does not give back every bit), or bound."""
    note: str
    threads: int
    bytes: float
    over_safetensors: float
    bits_per_element: float
    encode_mb_per_s: float | None = None
    decode_mb_per_s: float | None = None
    encode_peak_mb: float | None = None
    decode_peak_mb: float | None = None


@dataclass
class Entry:
    """A contender and what was measured of it; `encode` and `decode` are seconds."""

    contender: Contender
    stored: list[bytes] = field(default_factory=list)
    encode: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    peaks: Peaks | None = None


def first_run(contender: Contender, tensors: Tensors, quick: bool) -> Entry:
    """Encode, decode and verify; keep the times if they are long, except ours, which may have compiled."""
    entry = Entry(contender.tuned(tensors, quick))
    warm_up(entry.contender, tensors)
    limit = math.inf if contender.ours else SLOW_SECONDS
    start = time.perf_counter()
    entry.stored = entry.contender.encode(tensors)
    encoded = time.perf_counter()
    decoded = entry.contender.decode(entry.stored, tensors)
    end = time.perf_counter()
    verify(entry.contender, decoded, tensors)
    entry.encode += [encoded - start] * (encoded - start > limit)
    entry.decode += [end - encoded] * (end - encoded > limit)
    return entry


def measure(contending: list[Contender], tensors: Tensors, plan: Plan, errors: Console) -> list[Entry]:
    """Verify all, then time them in turns. A peer that fails is left out, and `errors` says so."""
    entries = []
    for contender in contending:
        try:
            entries.append(first_run(contender, tensors, plan.quick))
        except Exception as error:
            if contender.ours:
                raise
            errors.print(f"left out: {contender.name}: {escape(str(error))}", soft_wrap=True)
    slow_encode = {entry.contender.name for entry in entries if entry.encode or entry.contender.only_decodes}
    slow_decode = {entry.contender.name for entry in entries if entry.decode}
    for _ in range(plan.repeats):
        for entry in entries:
            contender, begin = entry.contender, time.perf_counter()
            if contender.name not in slow_encode:
                contender.encode(tensors)
                entry.encode.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            if contender.name not in slow_decode:
                contender.decode(entry.stored, tensors)
                entry.decode.append(time.perf_counter() - begin)
    if plan.memory:
        for entry in entries:
            entry.peaks = peaks_in_fresh_process(entry.contender, tensors)
    return entries


def rows_of(file: str, tensors: Tensors, entries: list[Entry], threads: int) -> list[Row]:
    dense = sum(array.nbytes for array in tensors.values())
    elements = sum(array.size for array in tensors.values())
    plain = len(safetensors_bytes(tensors))

    def row(contender: str, kind: str, size: float, **measured: Any) -> Row:
        return Row(
            file=file,
            tensors=len(tensors),
            elements=elements,
            dense_bytes=dense,
            contender=contender,
            kind=kind,
            threads=threads,
            bytes=size,
            over_safetensors=size / plain,
            bits_per_element=8 * size / elements,
            **measured,
        )

    def speed(seconds: list[float]) -> float | None:
        return dense / 1e6 / statistics.median(seconds) if seconds else None

    rows = []
    for entry in entries:
        contender, peaks = entry.contender, entry.peaks
        rows.append(
            row(
                contender.name,
                "ours" if contender.ours else "peer" if contender.exact else "inexact",
                sum(map(len, entry.stored)),
                note=contender.note,
                encode_mb_per_s=speed(entry.encode),
                decode_mb_per_s=speed(entry.decode),
                encode_peak_mb=peaks.encode / 1e6 if peaks and not contender.only_decodes else None,
                decode_peak_mb=peaks.decode / 1e6 if peaks else None,
            )
        )
    return rows + [row(name, "bound", size, note="") for name, size in bounds(tensors).items()]
