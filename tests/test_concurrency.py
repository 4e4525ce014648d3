"""Many threads and many processes at one file, and files that change under their readers: the bits stay the same."""

from __future__ import annotations

import errno
import gc
import mmap
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import CODECS, open_below, same_bits, weights

import sparsefmt
from sparsefmt import threads
from sparsefmt.api import Backend
from sparsefmt.container.array_reader import ArrayReader
from sparsefmt.container.sources import MappedFile, ReadFile
from sparsefmt.kernels import multiply
from sparsefmt.layouts import LAYOUTS

BACKENDS: list[Backend] = ["mmap", "pread"]
ARRAY = weights(np.random.default_rng(0), (700, 1100), np.float32, 0.7)
OTHER = weights(np.random.default_rng(1), (700, 1100), np.float32, 0.7)
X = np.random.default_rng(2).standard_normal((20, 1100)).astype(np.float32)
"""Enough for products to use three threads."""


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes of the number of threads are undone."""
    monkeypatch.setattr(threads, "_num_threads", 4)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "w.sparsefmt"
    sparsefmt.save_file({"w": ARRAY}, path, layout="permuted", codec="raw")
    return path


def product(path: str | os.PathLike[str]) -> bytes:
    """What a process has to get right: open, load, multiply, save."""
    weight = sparsefmt.load_file(path)["w"]
    assert isinstance(weight, sparsefmt.SparseTensor)
    saved = sparsefmt.load(sparsefmt.save({"w": weight}, codec="rans"))["w"]
    return sparsefmt.linear(X, weight).tobytes() + sparsefmt.linear(X, saved).tobytes()


class TestManyThreads:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_results_do_not_depend_on_the_number_of_threads(self, layout):
        weight = sparsefmt.SparseTensor.from_dense(ARRAY, layout, threads=1)
        for x in (X, X[:1], X[0], X[:3]):
            expected = sparsefmt.linear(x, weight, threads=1)
            for count in range(1, 9):
                assert same_bits(sparsefmt.linear(x, weight, threads=count), expected)
                sparsefmt.set_num_threads(count)
                assert same_bits(sparsefmt.linear(x, weight), expected)

    @pytest.mark.parametrize("codec", CODECS)
    def test_files_do_not_either(self, codec):
        array = np.concatenate([ARRAY] * 4)  # several tiles
        expected = sparsefmt.save({"w": array}, codec=codec, threads=1)
        for count in range(2, 9):
            assert sparsefmt.save({"w": array}, codec=codec, threads=count) == expected
            assert same_bits(sparsefmt.load(expected, layout="dense", threads=count)["w"], array)

    def test_set_num_threads_during_calls(self, path):
        expected = product(path)
        stop = threading.Event()

        def change() -> None:
            while not stop.is_set():
                for count in (1, 8, 2, 5):
                    sparsefmt.set_num_threads(count)

        changing = threading.Thread(target=change)
        changing.start()
        try:
            for _ in range(15):
                assert product(path) == expected
        finally:
            stop.set()
            changing.join()

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_kernels_release_the_gil(self, layout, monkeypatch):
        """Another thread makes progress during one kernel call."""
        spans = spans_of(multiply, "_run", monkeypatch)
        weight = sparsefmt.SparseTensor.from_dense(np.tile(ARRAY, (4, 3)), layout)
        x = np.tile(X[:16], (8, 3))
        sparsefmt.linear(x, weight, threads=1)  # compiled
        assert another_thread_runs_within(spans, lambda: sparsefmt.linear(x, weight, threads=1))

    @pytest.mark.parametrize("codec", ["zstd", "rans"])
    def test_so_do_codecs(self, codec, monkeypatch):
        data = sparsefmt.save({"w": np.tile(ARRAY, (4, 3))}, codec=codec)
        sparsefmt.load(data)  # compiled
        spans = spans_of(ArrayReader, "_decode", monkeypatch)
        assert another_thread_runs_within(spans, lambda: sparsefmt.load(data, threads=1))

    def test_what_holds_it_is_noticed(self, monkeypatch):
        class Holding:
            def work(self) -> None:
                sum(range(300_000))

        holding = Holding()
        spans = spans_of(Holding, "work", monkeypatch)
        assert not another_thread_runs_within(spans, holding.work, attempts=5)


def spans_of(holder: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """A list that gets when each call of a function begins and ends."""
    spans: list[tuple[float, float]] = []
    real = getattr(holder, name)

    def timed(*arguments: Any, **options: Any) -> Any:
        begin = time.perf_counter()
        result = real(*arguments, **options)
        spans.append((begin, time.perf_counter()))
        return result

    monkeypatch.setattr(holder, name, timed)
    return spans


def another_thread_runs_within(
    spans: list[tuple[float, float]], call: Callable[[], object], attempts: int = 1000
) -> bool:
    """Whether a second thread ever runs within one of the spans that a call adds, the GIL being released there.

    The interpreter takes the GIL from nobody meanwhile. On a busy machine the second thread may get no processor while
    a call lasts, and so there are many calls; where the GIL is held, not one of them will do.
    """
    ticks: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.wait(0.0002):
            ticks.append(time.perf_counter())

    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    thread = threading.Thread(target=tick)
    thread.start()
    try:
        for _ in range(attempts):
            del spans[:], ticks[:]
            call()
            if any(begin < tick < end for begin, end in spans for tick in ticks):
                return True
        return False
    finally:
        sys.setswitchinterval(before)
        stop.set()
        thread.join()


class TestWithoutThreads:
    """Where none can be had, the thread that asks does the work."""

    def test_when_the_interpreter_is_about_to_end(self, path):
        code = f"""
import atexit, numpy, sparsefmt
sparsefmt.set_num_threads(4)
weight = sparsefmt.load_file({str(path)!r})["w"]
array = weight.todense()
def at_the_end():
    sparsefmt.save_file({{"w": numpy.concatenate([array] * 4)}}, {str(path)!r}, codec="zstd")
    sparsefmt.load_file({str(path)!r})
    sparsefmt.linear(array[:20], weight)
    print("saved")
atexit.register(at_the_end)
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.stdout, done.stderr) == ("saved\n", "")
        assert same_bits(sparsefmt.load_file(path, layout="dense")["w"], np.concatenate([ARRAY] * 4))

    def test_when_the_system_has_no_more(self, path, monkeypatch):
        expected = product(path)

        def start(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threads, "_pool", None)
        monkeypatch.setattr(threading.Thread, "start", start)
        assert product(path) == expected
        assert list(threads.in_order(str, range(50), 4)) == list(map(str, range(50)))
        with pytest.raises(KeyError):
            list(threads.in_order({}.__getitem__, range(3), 4))
        seen: list[int] = []
        threads.share(seen.append, 50, 4)
        assert sorted(seen) == list(range(50))


class TestProcesses:
    def test_a_forked_child_can_do_everything(self, path):
        expected = product(path)  # this process has used threads
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(product, [path] * 4) == [expected] * 4
        assert product(path) == expected

    def test_one_forked_while_others_multiply(self, path):
        expected = product(path)
        stop = threading.Event()

        def use() -> None:
            while not stop.is_set():
                product(path)

        users = [threading.Thread(target=use) for _ in range(3)]
        for user in users:
            user.start()
        try:
            for _ in range(5):
                child = os.fork()
                if not child:
                    os._exit(product(path) != expected)
                assert exit_code(child) == 0
        finally:
            stop.set()
            for user in users:
                user.join()

    @pytest.mark.thorough
    def test_one_forked_while_another_thread_compiles(self, tmp_path):
        code = """
import os, signal, threading, time, numpy, sparsefmt, sparsefmt.kernels.linear
weight, x = sparsefmt.SparseTensor.from_dense(numpy.eye(64, dtype="f4"), "permuted"), numpy.ones((1, 64), "f4")
compiling = threading.Thread(target=sparsefmt.linear, args=(x, weight))
compiling.start()
time.sleep(0.2)
child = os.fork()
if not child:
    signal.alarm(120)
    sparsefmt.linear(x, weight)
    os._exit(0)
compiling.join()
print(os.waitpid(child, 0)[1])
"""
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        assert done.stdout == "0\n", done.stderr

    @pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="no /proc/self/smaps to look into")
    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_a_pool_shares_one_mapping(self, method, path):
        """What is stored raw is in memory once, however many processes multiply with it."""
        expected = product(path)
        kept = sparsefmt.load_file(path)["w"]
        assert isinstance(kept, sparsefmt.SparseTensor)
        context = multiprocessing.get_context(method)
        with ProcessPoolExecutor(2, context, _keep_in_worker, (path,)) as pool:
            assert list(pool.map(product, [path] * 4)) == [expected] * 4
            for results, used in pool.map(_product_of_kept, range(4)):
                assert results == sparsefmt.linear(X, kept).tobytes()
                assert used["Rss"] >= kept.nbytes
                assert used["Anonymous"] == used["Private_Dirty"] == used["Private_Clean"] == 0, used

    def test_pickled_tensors_come_with_arrays_of_their_own(self, path):
        weight = sparsefmt.load_file(path)["w"]
        with multiprocessing.get_context("fork").Pool(1) as pool:
            back = pool.apply(_itself, (weight,))
        assert same_bits(back.todense(), ARRAY)
        assert sparsefmt.linear(X, back).tobytes() == sparsefmt.linear(X, weight).tobytes()


_kept: Any = None


def _keep_in_worker(path: Path) -> None:
    global _kept
    _kept = sparsefmt.load_file(path)["w"], path


def _product_of_kept(_: int) -> tuple[bytes, dict[str, int]]:
    """A product, and how many bytes of the file's mappings are in memory in which way."""
    weight, path = _kept
    result = sparsefmt.linear(X, weight).tobytes()
    used: dict[str, int] = {}
    ours = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match("[0-9a-f]+-[0-9a-f]+ ", line):
            ours = line.endswith(str(path))
        elif ours and line.endswith(" kB"):
            key, value = line.removesuffix(" kB").split(":")
            used[key] = used.get(key, 0) + int(value) * 1024
    return result, used


def _itself(value: object) -> object:
    return value


def exit_code(child: int, seconds: float = 60) -> int | None:
    """Exit status of a child; None if it hangs, in which case it is ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return None


def replaced(path: Path) -> None:
    sparsefmt.save_file({"w": OTHER}, path)


def deleted(path: Path) -> None:
    path.unlink()


def moved(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


@pytest.mark.parametrize("backend", BACKENDS)
class TestFilesThatChange:
    @pytest.mark.parametrize(
        ("change", "codec", "layout"),
        [
            # always: every two of the three meet in some of them
            pytest.param(change, codec, layout, marks=() if (x + y + z) % 3 == 0 else pytest.mark.thorough)
            for x, change in enumerate([replaced, deleted, moved])
            for y, codec in enumerate(CODECS)
            for z, layout in enumerate(LAYOUTS)
        ],
    )
    def test_readers_keep_the_file_that_they_have_opened(self, layout, codec, change, backend, tmp_path):
        path = tmp_path / "w.sparsefmt"
        sparsefmt.save_file({"w": ARRAY}, path, layout=layout, codec=codec)
        with sparsefmt.open_file(path, backend=backend) as file:
            before = file["w"]
            results = sparsefmt.linear(X, before)
            change(path)
            for weight in (before, file["w"]):
                assert same_bits(np.asarray(weight), ARRAY)
                assert same_bits(sparsefmt.linear(X, weight), results)
            assert same_bits(file.get_slice("w")[50:60], ARRAY[50:60])
        if change is replaced:
            assert same_bits(sparsefmt.load_file(path, layout="dense")["w"], OTHER)

    @pytest.mark.parametrize("codec", CODECS)
    def test_tensors_stay_when_the_file_is_closed(self, codec, backend, path):
        sparsefmt.save_file({"w": ARRAY}, path, codec=codec)
        file = sparsefmt.open_file(path, backend=backend)
        weight, part = file["w"], file.get_slice("w")[3:300]
        results = sparsefmt.linear(X, weight)
        file.close()
        file.close()
        del file
        gc.collect()
        assert same_bits(np.asarray(weight), ARRAY)
        assert same_bits(part, ARRAY[3:300])
        assert same_bits(sparsefmt.linear(X, weight), results)

    def test_a_closed_file_says_so(self, backend, path):
        file = sparsefmt.open_file(path, backend=backend)
        part = file.get_slice("w")
        file.close()
        for read in (lambda: file["w"], lambda: part[:3], lambda: file.get_tensor("w")):
            with pytest.raises(ValueError, match="the file is closed"):
                read()
        assert file.keys() == ["w"]

    @pytest.mark.parametrize("good", [True, False])
    def test_no_descriptors_are_left_open(self, good, backend, path):
        if not good:
            path.write_bytes(path.read_bytes()[:-1])
        for _ in range(20):
            self.open_and_read(path, backend, good)
        assert not open_below(path.parent)

    def open_and_read(self, path: Path, backend: Backend, good: bool) -> None:
        try:
            with sparsefmt.open_file(path, backend=backend) as file:
                file.get_tensor("w")
        except sparsefmt.FormatError:
            assert not good

    def test_what_is_no_file_is_refused_and_not_waited_for(self, backend, tmp_path):
        os.mkfifo(tmp_path / "fifo")
        for place, message in (
            ("fifo", "not a regular file"),
            ("", "is a folder"),
            ("/dev/zero", "not a regular file"),
        ):
            with pytest.raises(OSError, match=message) as caught:
                sparsefmt.open_file(tmp_path / place, backend=backend)
            assert caught.value.filename == str(tmp_path / place)


def reading_by(call: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Let files be read by this call of the system, which is returned: where there is no preadv, pread is what is."""
    if not hasattr(os, call):
        pytest.skip(f"no os.{call} here")
    if call == "pread":
        monkeypatch.delattr(os, "preadv", raising=False)
    real: Callable[..., Any] = getattr(os, call)
    return real


class TestReading:
    """backend="pread": an error where a mapping would end the process."""

    @pytest.mark.parametrize("codec", CODECS)
    @pytest.mark.parametrize("left", [0, 10, 64, 1000, -40, -1])
    def test_a_file_that_is_truncated_in_place(self, left, codec, path):
        sparsefmt.save_file({"a": ARRAY, "b": OTHER}, path, codec=codec)
        size = path.stat().st_size
        with sparsefmt.open_file(path, backend="pread") as file:
            before = file["a"]
            os.truncate(path, left % size)
            for name, array in (("a", ARRAY), ("b", OTHER)):
                if left < 0:  # the index, of which a part is gone, is not read again
                    assert same_bits(file.get_tensor(name), array)
                    continue
                with pytest.raises(sparsefmt.FormatError, match="cut off") as caught:
                    file.get_tensor(name)
                assert caught.value.code == "file-too-short"
            assert same_bits(np.asarray(before), ARRAY)

    def test_a_file_that_is_overwritten_in_place(self, path):
        """With the same size: checksums tell."""
        with sparsefmt.open_file(path, backend="pread") as file:
            before = file["w"]
            with open(path, "r+b") as writer:
                writer.write(b"\1" * path.stat().st_size)
            with pytest.raises(sparsefmt.ChecksumError):
                file.get_tensor("w")
            assert same_bits(np.asarray(before), ARRAY)

    @pytest.mark.parametrize("call", ["preadv", "pread"])
    def test_a_file_that_is_closed_during_a_read(self, path, monkeypatch, call):
        """Its descriptor may belong to another file at once: the read must not go there."""
        source, real, others = ReadFile(path), reading_by(call, monkeypatch), []
        expected = path.read_bytes()[:64]

        def read(*arguments: Any) -> Any:
            source.close()
            others.append(open(os.devnull, "rb"))  # noqa: SIM115 (closed below)
            return real(*arguments)

        monkeypatch.setattr(os, call, read)
        assert source.read(0, 64).tobytes() == expected
        with pytest.raises(ValueError, match="closed"):
            source.read(0, 64)
        for other in others:
            other.close()

    @pytest.mark.parametrize("call", ["preadv", "pread"])
    def test_errors_name_the_file(self, path, monkeypatch, call):
        def read(*arguments: Any) -> Any:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        reading_by(call, monkeypatch)
        file = sparsefmt.open_file(path, backend="pread")
        monkeypatch.setattr(os, call, read)
        with pytest.raises(OSError, match=re.escape(str(path))):
            file.get_tensor("w")

    def test_a_file_that_cannot_be_mapped(self, path, monkeypatch):
        """Some network file systems have no mappings, and some processes no room for one."""

        def cannot(code: int) -> Callable[..., None]:
            def mapping(*arguments: object, **options: object) -> None:
                raise OSError(code, os.strerror(code))

            return mapping

        monkeypatch.setattr(mmap, "mmap", cannot(errno.ENOMEM))
        with pytest.raises(OSError, match=re.escape(str(path))):
            sparsefmt.open_file(path)
        for backend, code in (("pread", errno.ENOMEM), ("mmap", errno.ENODEV)):
            monkeypatch.setattr(mmap, "mmap", cannot(code))
            with sparsefmt.open_file(path, backend=backend) as file:
                assert same_bits(file.get_tensor("w"), ARRAY)

    def test_a_mapping_that_is_closed_during_a_read(self, path):
        """The other thread's step, between any two of this one's."""
        expected = path.read_bytes()[:64]
        for step in range(1, 10):
            source = MappedFile(path)
            done = closing_at(step, source.close, lambda source=source: source.read(0, 64))
            assert done in (expected, "the file is closed [file-closed]")


def closing_at(step: int, close: Callable[[], None], read: Callable[[], np.ndarray]) -> bytes | str:
    """What read() gives if close() is called before its line number `step`."""
    lines = iter(range(1, 1000))

    def trace(frame: Any, event: str, argument: Any) -> Any:
        if event == "line" and next(lines) == step:
            sys.settrace(None)
            close()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return read().tobytes()
    except ValueError as error:
        return str(error)
    finally:
        sys.settrace(before)
