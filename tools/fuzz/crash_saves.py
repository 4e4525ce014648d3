"""Kill writers with SIGKILL while they save over a good file, and look at what is there then.

    python -m tools.fuzz.crash_saves [--count 200] [--seed 0] [--folder FOLDER]

Writers take turns: one calls `sparsefmt.save_file`, the next is `sparsefmt convert`. Each is forked from this process,
which has everything imported and compiled and no threads. Of five kills, one comes at a moment chosen uniformly from
the whole save, and one each at a moment from one phase of it: before the first byte, while writing, before the rename
(when all is written and is being synced), after the rename. How long they last is measured at the start, and their
beginnings are waited for. A writer that has finished by then does not count, and another takes its place.

After each kill the file has to be, byte for byte, the one before or the one that was being saved, and has to load to
the bits of that model. Beside it, at most one leftover may be there, of a name that `sparsefmt.container.atomic` gives
and of no other: so the next writer that comes as far as its own temporary file has removed those of the dead. At the
end, one save of each kind is left to finish, after which no leftover may be there.

Where a kill has hit is told from what it has left: no leftover or an empty one, a part of the file, all of it, the new
file under its name.

What a power cut does cannot be tried this way; see the order of system calls in tests/container/test_atomic.py.

Exit status: 0 if all is as it should be; 1 if not. Not for Windows.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import statistics
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import numpy as np
import safetensors.numpy

import sparsefmt
from sparsefmt.cli import main as sparsefmt_command
from sparsefmt.container.atomic import TEMPORARY_SUFFIX

PHASES = ("before the first byte", "while writing", "before the rename", "after the rename")
WHOLE_SAVES = 3
"""Saves that are timed to choose the moments from."""

POLL_SECONDS = 0.0002

Model = dict[str, np.ndarray]


@dataclass
class Way:
    """A way to save a model, and what it has to come to.

    Attributes:
        save: writes model number n to a path, with so many threads.
        files: the bytes of the file of each model.
        seconds: how long each phase of a save takes.
    """

    name: str
    path: Path
    models: list[Model]
    save: Callable[[int, Path, int], None]
    files: list[bytes] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def prepare(self) -> None:
        """Save both models whole, which also compiles what is needed, and see how long it takes."""
        for number, model in enumerate(self.models):
            self.save(number, self.path, 1)
            self.files.append(self.path.read_bytes())
            expect(holds(self.path, model), f"{self.path} does not hold what was saved")
        times = np.array([self._times(number % 2) for number in range(WHOLE_SAVES)])
        self.seconds = [statistics.median(phase) for phase in np.diff(times, axis=1).T.tolist()]

    def _times(self, number: int) -> list[float]:
        """When each phase of a save begins, and when the last ends."""
        watch = Watch(self, number)
        times = [time.perf_counter()]
        process = self.start(number)
        for phase in range(1, len(PHASES)):
            watch.wait_for(phase, process)
            times.append(time.perf_counter())
        status = os.waitid(os.P_PID, process, os.WEXITED)
        expect(status is not None and not status.si_status, f"{self.name} failed")
        return [*times, time.perf_counter()]

    def start(self, number: int) -> int:
        """Save a model in a process of its own."""
        expect(threading.active_count() == 1, "a process with threads cannot be forked safely")
        process = os.fork()
        if process:
            return process
        try:
            self.save(number, self.path, 2)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    def model_in_file(self) -> int:
        """Number of the model that the file holds, whole."""
        data = self.path.read_bytes()
        expect(data in self.files, f"{self.path} is neither the old file nor the new one: {len(data):,} bytes")
        number = self.files.index(data)
        expect(holds(self.path, self.models[number]), f"{self.path} does not hold the bits of its model")
        return number


class Watch:
    """Sees from outside how far a save of model `number` has come."""

    def __init__(self, way: Way, number: int) -> None:
        self._way, self._size = way, len(way.files[number])
        self._before = set(leftovers(way.path))
        self._inode = way.path.stat().st_ino

    def own(self) -> set[Path]:
        """What has been written beside the file since."""
        return set(leftovers(self._way.path)) - self._before

    def phase(self) -> int:
        sizes = []
        for path in self.own():
            with suppress(FileNotFoundError):
                sizes.append(path.stat().st_size)
        if self._way.path.stat().st_ino != self._inode:
            return 3
        return 2 if self._size in sizes else 1 if any(sizes) else 0

    def wait_for(self, phase: int, process: int) -> None:
        """Wait until a phase has begun, or the process has ended."""
        while self.phase() < phase and os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(POLL_SECONDS)


@dataclass
class Tally:
    """What came of the kills.

    Attributes:
        where: kills by way and phase.
        kept: kills after which the old file was there.
        late: writers that had finished when they were to be killed; they do not count.
        seen: names of all leftovers.
    """

    where: Counter[tuple[str, str]] = field(default_factory=Counter)
    kept: int = 0
    late: int = 0
    seen: set[Path] = field(default_factory=set)

    @property
    def kills(self) -> int:
        return self.where.total()


class Fault(Exception):
    """A promise that was not kept."""


def expect(kept: bool, fault: str) -> None:
    if not kept:
        raise Fault(fault)


def holds(path: Path, model: Model) -> bool:
    """Whether a file, all of it verified, has the bits of a model."""
    loaded = sparsefmt.load_file(path, layout="dense", threads=1)
    return loaded.keys() == model.keys() and all(
        (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes())
        for array, found in ((array, np.asarray(loaded[name])) for name, array in model.items())
    )


def make_model(rng: np.random.Generator) -> Model:
    """A few pruned layers, and what is beside them; some 2 MB."""
    model: Model = {"norm": rng.standard_normal(512).astype(np.float32)}
    for layer, sparsity in enumerate((0.0, 0.5, 0.9)):
        weight = rng.standard_normal((768, 256)).astype(np.float32)
        model[f"layers.{layer}.weight"] = weight * (rng.random(weight.shape) >= sparsity)
    return model


def make_ways(folder: Path, seed: int) -> list[Way]:
    models = [make_model(np.random.default_rng([seed, number])) for number in range(2)]
    sources = [folder / f"source-{number}.safetensors" for number in range(2)]
    for model, source in zip(models, sources, strict=True):
        safetensors.numpy.save_file(model, source)

    def save(number: int, path: Path, threads: int) -> None:
        sparsefmt.save_file(models[number], path, threads=threads)

    def convert(number: int, path: Path, threads: int) -> None:
        arguments = ["convert", sources[number], path, "--force", "--quiet", "--threads", threads]
        sparsefmt_command.main(list(map(str, arguments)), standalone_mode=False)

    return [
        Way("save_file", folder / "saved.sparsefmt", models, save),
        Way("sparsefmt convert", folder / "converted.sparsefmt", models, convert),
    ]


def leftovers(path: Path) -> Iterator[Path]:
    """Files in the folder that are there only because a writer to `path` has died."""
    ours = re.compile(re.escape(f".{path.name}.") + "[0-9a-f]{16}" + re.escape(TEMPORARY_SUFFIX))
    return (other for other in path.parent.iterdir() if ours.fullmatch(other.name))


def expect_nothing_else(folder: Path, ways: list[Way], sources: int) -> None:
    known = {way.path for way in ways} | {left for way in ways for left in leftovers(way.path)}
    strangers = [path.name for path in folder.iterdir() if path not in known and path.suffix != ".safetensors"]
    expect(not strangers, f"files of unknown names: {strangers}")
    expect(len(list(folder.glob("*.safetensors"))) == sources, "a source is missing")


def kill_once(way: Way, begin: int, seconds: float, tally: Tally) -> None:
    """Kill one writer so many seconds after it has begun a phase, and see what it has left."""
    old = way.model_in_file()
    watch = Watch(way, 1 - old)
    process = way.start(1 - old)
    watch.wait_for(begin, process)
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    status = os.waitpid(process, 0)[1]
    now = way.model_in_file()
    left = set(leftovers(way.path))
    expect(len(left) <= 1, f"leftovers that nobody has removed: {sorted(path.name for path in left)}")
    if not os.WIFSIGNALED(status):
        expect(status == 0, f"{way.name} failed")
        expect(now != old and not left, f"{way.name} had finished, and has saved nothing or left something")
        tally.late += 1
        return
    expect(now == old or not left, "a leftover, though the new file has its name")
    tally.seen |= left
    tally.kept += now == old
    tally.where[way.name, PHASES[watch.phase()]] += 1


def kill_many(folder: Path, count: int, seed: int) -> tuple[list[Way], Tally]:
    """Kill `count` writers. Raises Fault if one of them has done damage."""
    ways, tally, rng = make_ways(folder, seed), Tally(), random.Random(seed)
    for way in ways:
        way.prepare()
    turns = cycle((begin, way) for begin in (None, *range(len(PHASES))) for way in ways)
    while tally.kills < count:
        begin, way = next(turns)
        span = sum(way.seconds) if begin is None else way.seconds[begin]
        kill_once(way, begin or 0, rng.uniform(0, span), tally)
        expect_nothing_else(folder, ways, 2)
    for way in ways:
        new = 1 - way.model_in_file()
        expect(os.waitpid(way.start(new), 0)[1] == 0, f"{way.name} failed")
        expect(way.model_in_file() == new, f"{way.name} has saved nothing")
        expect(not set(leftovers(way.path)), "leftovers that the last save has not removed")
    return ways, tally


def report(ways: list[Way], tally: Tally, seconds: float) -> None:
    print(f"{'kills':24}{'':8}" + "".join(f"{phase:>23}" for phase in PHASES))
    for way in ways:
        kills = [tally.where[way.name, phase] for phase in PHASES]
        print(f"  {way.name:22}{sum(kills):>8,}" + "".join(f"{kills_there:>23,}" for kills_there in kills))
    print(f"survived: {tally.kills:,} of {tally.kills:,}, with the old file {tally.kept:,}, ", end="")
    print(f"with the new one {tally.kills - tally.kept:,}")
    print(f"leftovers: {len(tally.seen):,} seen, {len(tally.seen):,} cleaned by the next save")
    saves = ", ".join(
        f"{way.name} {sum(way.seconds) * 1000:.0f} ms ({' + '.join(f'{part * 1000:.1f}' for part in way.seconds)})"
        for way in ways
    )
    sizes = ", ".join(f"{len(way.files[0]):,}" for way in ways)
    print(f"a whole save: {saves}; files of {sizes} bytes")
    print(f"{tally.late:,} other writers had finished before they were killed; {seconds:.0f} s in all")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--count", type=int, default=200, help="kills (200)")
    parser.add_argument("--seed", type=int, default=0, help="of the models and the moments (0)")
    parser.add_argument("--folder", type=Path, help="where to save to, for a look at another file system")
    arguments = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="crash-saves-") as folder:
        try:
            ways, tally = kill_many(Path(folder), arguments.count, arguments.seed)
        except Fault as fault:
            print(f"fault: {fault}", file=sys.stderr)
            return 1
    report(ways, tally, time.perf_counter() - started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
