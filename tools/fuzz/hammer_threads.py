"""Load, slice and multiply from many threads, while others save over the same files, and compare every bit.

    python -m tools.fuzz.hammer_threads [--threads 16] [--seconds 60] [--calls N] [--seed 0] [--folder FOLDER]

There is a file for each layout and codec, and each exists in two versions, which two further threads save over each
other all the time, while the number of threads for products changes between 1 and 8. The hammering threads take, at
random:

    tensors of files that all of them have open since the start: what is mapped is the file that was replaced long ago
    tensors of files that another thread opens and closes under their hands
    tensors of a file that they open for themselves and close before they look at the tensors
    slices of all of them, and whole files by load_file
    products with SparseTensors that all of them share

Files are mapped or read with pread. Dense bits are compared with the arrays that were saved, products with those of one
thread, made before any other was started. The metadata of a file says which version it is.

A file that another thread has closed may refuse with "the file is closed"; that is counted, and compared with nothing.

Exit status: 0 if there was no difference and no other error; 1 if not.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import sparsefmt
from sparsefmt import SparseFile, SparseTensor
from sparsefmt.container.sources import Backend
from sparsefmt.layouts import LAYOUTS

CODECS = ("raw", "zstd", "rans")
BACKENDS: tuple[Backend, ...] = ("mmap", "pread")
TOKENS = (1, 3, 17)
"""Rows of the activations: each has a kernel of its own, and the last is enough work for several threads."""

Model = dict[str, np.ndarray]


def make_model(rng: np.random.Generator) -> Model:
    """Pruned matrices of several dtypes, and a vector."""
    model: Model = {"vector": rng.standard_normal(77).astype(np.float32)}
    for name, shape, dtype, sparsity in (
        ("f32", (1030, 700), np.float32, 0.8),
        ("bf16", (512, 1025), ml_dtypes.bfloat16, 0.5),
        ("f64", (65, 130), np.float64, 0.9),
    ):
        kept = rng.random(shape) >= sparsity
        model[name] = (rng.standard_normal(shape).astype(np.float32) * kept).astype(dtype)
    return model


class Answers:
    """What one thread gets, for both versions of the model."""

    def __init__(self, seed: int) -> None:
        self.models = [make_model(np.random.default_rng([seed, version])) for version in range(2)]
        self.tensors: dict[tuple[int, str, str], SparseTensor] = {}
        self._x: dict[tuple[str, int], np.ndarray] = {}
        self._products: dict[tuple[int, str, str, int], bytes] = {}
        rng = np.random.default_rng([seed, 2])
        for name in self.matrices:
            cols = self.models[0][name].shape[1]
            for tokens in TOKENS:
                self._x[name, tokens] = rng.standard_normal((tokens, cols)).astype(np.float32)
        for version, name, layout in product(range(2), self.matrices, LAYOUTS):
            weight = SparseTensor.from_dense(self.models[version][name], layout, threads=1)
            self.tensors[version, name, layout] = weight
            for tokens in TOKENS:
                result = sparsefmt.linear(self._x[name, tokens], weight, threads=1)
                self._products[version, name, layout, tokens] = result.tobytes()

    @property
    def matrices(self) -> list[str]:
        return [name for name, array in self.models[0].items() if array.ndim == 2]

    def same_dense(self, version: int, name: str, found: np.ndarray, rows: slice = slice(None)) -> bool:
        expected = self.models[version][name][rows]
        return (found.dtype, found.shape, found.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())

    def same_product(self, version: int, name: str, weight: Any, tokens: int, threads: int | None) -> bool:
        layout = weight.layout if isinstance(weight, SparseTensor) else "dense"
        result = sparsefmt.linear(self._x[name, tokens], weight, threads=threads)
        return result.tobytes() == self._products[version, name, layout, tokens]


@dataclass
class Tally:
    """What the threads have seen.

    Attributes:
        compared: calls by kind whose result was compared.
        different: descriptions of those that were not what one thread gets.
        errors: tracebacks.
        refused: calls to a file that another thread had closed.
        saves, opened: what was done meanwhile.
    """

    compared: Counter[str] = field(default_factory=Counter)
    different: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    refused: int = 0
    saves: int = 0
    opened: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, kind: str, same: bool, what: str) -> None:
        with self.lock:
            self.compared[kind] += 1
            if not same:
                self.different.append(f"{kind}: {what}")


def version_of(file: SparseFile) -> int:
    return int(file.metadata()["version"])


class Hammer:
    """Files, and the threads at work on them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.answers = Answers(seed)
        self.tally = Tally()
        self._seed = seed
        self._paths = {
            (layout, codec): folder / f"{layout}-{codec}.sparsefmt" for layout in LAYOUTS for codec in CODECS
        }
        for kind in self._paths:
            self._save(kind, 0)
        files = list(product(self._paths.values(), BACKENDS))
        self._open = [sparsefmt.open_file(path, backend=backend) for path, backend in files]
        self._changing = [sparsefmt.open_file(path, backend=backend) for path, backend in files]
        self._stop = threading.Event()
        self._most_calls = sys.maxsize

    def run(self, threads: int, seconds: float, calls: int | None) -> None:
        """Hammer until the time is over or there were enough calls."""
        self._most_calls = calls or sys.maxsize
        work = [*[self._hammer] * threads, self._save_all, self._save_all, self._reopen, self._set_num_threads]
        running = [
            threading.Thread(target=self._guarded, args=(job, random.Random(f"{self._seed} {number}")))
            for number, job in enumerate(work)
        ]
        for thread in running:
            thread.start()
        self._stop.wait(seconds)
        self._stop.set()
        for thread in running:
            thread.join()
        for file in (*self._open, *self._changing):
            file.close()

    def _guarded(self, job: Callable[[random.Random], None], rng: random.Random) -> None:
        try:
            while not self._stop.is_set():
                job(rng)
        except BaseException:
            self.tally.errors.append(traceback.format_exc())
            self._stop.set()

    # What goes on meanwhile

    def _save(self, kind: tuple[str, str], version: int) -> None:
        layout, codec = kind
        model, metadata = self.answers.models[version], {"version": str(version)}
        sparsefmt.save_file(model, self._paths[kind], metadata, layout=layout, codec=codec)

    def _save_all(self, rng: random.Random) -> None:
        self._save(rng.choice(list(self._paths)), rng.randrange(2))
        with self.tally.lock:
            self.tally.saves += 1

    def _reopen(self, rng: random.Random) -> None:
        place = rng.randrange(len(self._changing))
        path, backend = list(product(self._paths.values(), BACKENDS))[place]
        closed, self._changing[place] = self._changing[place], sparsefmt.open_file(path, backend=backend)
        closed.close()
        self.tally.opened += 1
        time.sleep(0.002)

    def _set_num_threads(self, rng: random.Random) -> None:
        sparsefmt.set_num_threads(rng.randint(1, 8))
        time.sleep(0.005)

    # The hammering

    def _hammer(self, rng: random.Random) -> None:
        rng.choice([self._of_open_files, self._of_changing_files, self._of_own_files, self._whole_files, self._shared])(
            rng
        )
        if self.tally.compared.total() >= self._most_calls:
            self._stop.set()

    def _of_open_files(self, rng: random.Random) -> None:
        self._use(rng.choice(self._open), rng)

    def _of_changing_files(self, rng: random.Random) -> None:
        with self._may_be_closed():
            self._use(rng.choice(self._changing), rng)

    def _of_own_files(self, rng: random.Random) -> None:
        path, layout = rng.choice(list(self._paths.values())), rng.choice(["auto", *LAYOUTS])
        with sparsefmt.open_file(path, backend=rng.choice(BACKENDS)) as file:
            version = version_of(file)
            tensors = {name: file.load(name, layout) for name in rng.sample(file.keys(), 2)}
        for name, tensor in tensors.items():
            self._compare("opened and closed", version, name, tensor, rng)

    def _whole_files(self, rng: random.Random) -> None:
        path = rng.choice(list(self._paths.values()))
        tensors = sparsefmt.load_file(path, layout=rng.choice(["auto", *LAYOUTS]), threads=rng.randint(1, 8))
        versions = [
            version for version in range(2) if self.answers.same_dense(version, "vector", np.asarray(tensors["vector"]))
        ]
        self.tally.note("load_file", len(versions) == 1, f"{path.name}: the vector is of no version, or of both")
        for name, tensor in tensors.items() if versions else ():
            self._compare("load_file", versions[0], name, tensor, rng)

    def _shared(self, rng: random.Random) -> None:
        key = rng.choice(list(self.answers.tensors))
        self._compare("shared tensors", *key[:2], self.answers.tensors[key], rng)

    def _use(self, file: SparseFile, rng: random.Random) -> None:
        version, name = version_of(file), rng.choice(file.keys())
        if rng.random() < 0.4:
            rows = self.answers.models[version][name].shape[0]
            begin = rng.randrange(rows)
            wanted = slice(begin, rng.randint(begin, rows))
            same = self.answers.same_dense(version, name, file.get_slice(name)[wanted], wanted)
            self.tally.note("slices", same, f"{name}[{wanted.start}:{wanted.stop}]")
        else:
            self._compare("open files", version, name, file.load(name, rng.choice(["auto", *LAYOUTS])), rng)

    def _compare(self, kind: str, version: int, name: str, tensor: Any, rng: random.Random) -> None:
        what = f"{name} of version {version} as {tensor!r}"[:200]
        if name in self.answers.matrices and rng.random() < 0.7:
            tokens, threads = rng.choice(TOKENS), rng.choice([None, 1, 2, 5, 8])
            same = self.answers.same_product(version, name, tensor, tokens, threads)
            self.tally.note(f"products, {kind}", same, f"{what}, {tokens} tokens, {threads} threads")
        else:
            dense = tensor.todense() if isinstance(tensor, SparseTensor) else tensor
            self.tally.note(f"dense, {kind}", self.answers.same_dense(version, name, dense), what)

    @contextmanager
    def _may_be_closed(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            if getattr(error, "code", None) != "file-closed":
                raise
            with self.tally.lock:
                self.tally.refused += 1


def report(tally: Tally, threads: int, seconds: float) -> None:
    for kind, count in sorted(tally.compared.items()):
        print(f"  {kind:36}{count:>10,}")
    print(
        f"{threads} threads, {tally.compared.total():,} calls compared, {len(tally.different):,} differences, "
        f"{len(tally.errors):,} errors, in {seconds:.0f} s"
    )
    print(
        f"meanwhile: {tally.saves:,} saves over those files, {tally.opened:,} files closed under readers' hands, "
        f"who were refused {tally.refused:,} times"
    )
    for fault in [*tally.different, *tally.errors][:10]:
        print(fault, file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--threads", type=int, default=16, help="that hammer; 4 more work beside them (16)")
    parser.add_argument("--seconds", type=float, default=60, help="how long at most (60)")
    parser.add_argument("--calls", type=int, help="stop after so many")
    parser.add_argument("--seed", type=int, default=0, help="of what the threads choose (0)")
    parser.add_argument("--folder", type=Path, help="where the files are to be")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="hammer-threads-") as folder:
        hammer = Hammer(Path(folder), arguments.seed)
        started = time.perf_counter()
        hammer.run(arguments.threads, arguments.seconds, arguments.calls)
        report(hammer.tally, arguments.threads, time.perf_counter() - started)
    return 1 if hammer.tally.different or hammer.tally.errors else 0


if __name__ == "__main__":
    sys.exit(main())
