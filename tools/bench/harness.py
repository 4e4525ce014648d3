"""What benchmarks share: turns, how busy others kept the machine, how much times spread, the memory of this process."""

from __future__ import annotations

import math
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import click
from rich.console import Console

STATUS = Path("/proc/self/status")
"""Where Linux says how much memory a process has."""

CLEAR_REFS = Path("/proc/self/clear_refs")
"""Where Linux sets the peak of a process back."""

MIN_TURNS = 3
"""Turns that each has however long they take."""


HELD = {
    "avx2": {
        "OPENBLAS_CORETYPE": "Haswell",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
    "portable": {
        "OPENBLAS_CORETYPE": "Nehalem",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
    },
}
"""By instruction set, what holds the dense products to it."""

WITHOUT_AVX512 = {
    "NUMBA_CPU_FEATURES": "+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+movbe,+aes"
}
"""What a processor of HELD["avx2"] has. LLVM would take larger registers where it finds them, and other orders."""

OF_OPENBLAS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
"""What may make OpenBLAS take the code of another processor."""


def held_to(isa: str | None) -> dict[str, str]:
    """The environment in which numpy, PyTorch and sparsefmt take no better instructions; None: what they find best."""
    environment = {name: value for name, value in os.environ.items() if name not in OF_OPENBLAS}
    if isa is None:
        return environment
    environment |= {"SPARSEFMT_ISA": isa, **HELD.get(isa, {})}
    found = cpuinfo()
    if isa == "avx2" and "avx512f" in found.get("flags", "").split():
        name = "znver3" if found.get("vendor_id") == "AuthenticAMD" else "alderlake"
        environment |= {"NUMBA_CPU_NAME": name, **WITHOUT_AVX512}
    return environment


ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""Variables of an environment in which numpy and PyTorch have one thread."""


def hold_to(isa: str | None, **more: str) -> None:
    """Start this program anew in that environment, and with more variables, unless it is in it: libraries look at it
    when they are loaded."""
    environment = held_to(isa) | more
    if environment != dict(os.environ):
        os.execve(sys.executable, sys.orig_argv, environment)


def parse_shapes(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    for shape in value:
        if re.fullmatch(r"[1-9]\d*x[1-9]\d*", shape) is None:
            raise click.BadParameter(f"{shape!r} is not of the form 4096x4096")
    return value


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpuinfo() -> dict[str, str]:
    """What Linux says of the last core; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def processor() -> str:
    """Its name, as Linux has it."""
    return cpuinfo().get("model name") or platform.processor() or platform.machine()


def wide_console() -> Console:
    """Where tables go. They are as wide as a terminal, and what is written into a file has room for all of them."""
    return Console(width=None if sys.stdout.isatty() else 200)


def seconds_of(call: Callable[..., object], *arguments: object) -> float:
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


def in_turns(
    samples: Mapping[str, Callable[[], float]], turns: int, *, warm_up: int = 0, seconds: float = math.inf
) -> dict[str, list[float]]:
    """Samples of each, in turns, so that a busy machine is busy for all of them.

    Args:
        samples: functions that measure, each of which returns its sample.
        turns: those that count.
        warm_up: turns before them.
        seconds: whatever has used them up sits out the turns after the first MIN_TURNS.
    """
    found: dict[str, list[float]] = {name: [] for name in samples}
    used = dict.fromkeys(samples, 0.0)
    for turn in range(-warm_up, turns):
        for name, sample in samples.items():
            if turn >= MIN_TURNS and used[name] >= seconds:
                continue
            start = time.perf_counter()
            value = sample()
            if turn >= 0:
                found[name].append(value)
                used[name] += time.perf_counter() - start
    return found


def spread(times: Sequence[float]) -> float:
    """Distance of the quartiles over the median."""
    first, median, third = statistics.quantiles(times, n=4)
    return (third - first) / median


def time_text(seconds: float) -> str:
    """Three digits, in a unit that leaves at least one of them before the point."""
    factor, unit = (1, "s") if seconds >= 1 else (1e3, "ms") if seconds >= 1e-3 else (1e6, "us")
    return f"{seconds * factor:#.3g} {unit}".replace(". ", " ")


class Others:
    """How many cores other processes take from now on, from Linux's counters; None elsewhere.

    Another process on one of two cores makes every product with two threads a matter of luck, which a spread alone may
    not show.

    Args:
        own: the process ids, beside that of this one, that are not others.
    """

    def __init__(self, own: Iterable[int] = ()) -> None:
        self._own = [os.getpid(), *own]
        self._start, self._busy = time.perf_counter(), self._busy_ticks()

    def cores(self) -> float | None:
        """On average, since this object was made."""
        busy = self._busy_ticks()
        if self._busy is None or busy is None:
            return None
        return max(0.0, (busy - self._busy) / os.sysconf("SC_CLK_TCK") / (time.perf_counter() - self._start))

    def _busy_ticks(self) -> int | None:
        """Clock ticks of all cores in which they were neither idle nor at work for us."""
        try:
            user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
            ours = [Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split() for process in self._own]
        except OSError:
            return None
        return user + nice + system + sum(interrupts) - sum(int(own[11]) + int(own[12]) for own in ours)


def status() -> dict[str, int]:
    """Bytes of this process, by Linux's name for them: VmRSS, RssAnon, RssFile, VmHWM and so on."""
    fields = (line.split() for line in STATUS.read_text().splitlines() if line.endswith(" kB"))
    return {name.rstrip(":"): int(number) << 10 for name, number, _ in fields}


def reset_peak() -> None:
    """Let VmHWM begin anew with what is there now. getrusage's peak cannot be set back."""
    CLEAR_REFS.write_text("5")
