"""A closed file is one error, whatever is asked of it and whoever closes it, also while it is read."""

from __future__ import annotations

import io
import random
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import same_bits

import sparsefmt
from sparsefmt.container import sources
from sparsefmt.errors import SparsefmtError

RNG = np.random.default_rng(0)
WEIGHT = np.where(RNG.random((96, 80)) < 0.8, 0, RNG.standard_normal((96, 80))).astype(np.float32)
TENSORS = {
    "dense": RNG.standard_normal((40, 30)).astype(np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.float32(3),
    "w": WEIGHT,
}
BACKENDS = ["mmap", "pread"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("closing") / "a.sparsefmt"
    sparsefmt.save_file(TENSORS, path, {"key": "text"})
    return path


@pytest.fixture(scope="module")
def small_tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each tensor in several tiles, so that files are closed in the midst of one."""
    from sparsefmt.layouts import heights

    path = tmp_path_factory.mktemp("closing") / "tiles.sparsefmt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heights, "TILE_POSITIONS", 1 << 10)
        sparsefmt.save_file(TENSORS, path, {"key": "text"})
    return path


def expect_closed(call: Callable[[], object]) -> None:
    with pytest.raises(SparsefmtError, match="closed") as caught:
        call()
    assert (type(caught.value), caught.value.code) == (SparsefmtError, "file-closed")


class TestAfterwards:
    @pytest.mark.parametrize("kind", [*BACKENDS, "bytes", "file object"])
    @pytest.mark.parametrize("name", TENSORS)
    def test_of_an_open_file(self, path, kind, name):
        if kind == "bytes":
            file = sparsefmt.SparseFile(sources.Memory(path.read_bytes()))
        elif kind == "file object":
            file = sparsefmt.open_file(io.BytesIO(path.read_bytes()))
        else:
            file = sparsefmt.open_file(path, backend=kind)
        part = file.get_slice(name)
        file.close()
        file.close()
        for call in (
            lambda: file[name],
            lambda: file.get(name),
            lambda: file.get_tensor(name),
            lambda: file.get_slice(name)[...],
            lambda: file.load(name, "dense"),
            lambda: part[...],
            lambda: dict(file),
        ):
            expect_closed(call)
        # what the index says is known
        assert (file.keys(), len(file), name in file) == (sorted(TENSORS), 4, True)
        assert (file.metadata(), part.shape) == ({"key": "text"}, np.shape(TENSORS[name]))

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("framework", ["np", "pt"])
    def test_of_safe_open(self, path, backend, framework):
        with sparsefmt.safe_open(path, framework, backend=backend) as file:
            part = file.get_slice("w")
        for call in (
            file.keys,
            file.offset_keys,
            file.metadata,
            file.get_tensors,
            lambda: file.get_tensor("w"),
            lambda: file.get_tensor("nothing"),
            lambda: file.get_slice("empty"),
        ):
            expect_closed(call)
        assert same_bits(np.asarray(part[1:3]), WEIGHT[1:3])

    def test_of_a_source(self, path):
        opened = [sources.MappedFile(path), sources.ReadFile(path), sources.Memory(path.read_bytes())]
        for source in [*opened, sources.FileObject(io.BytesIO(path.read_bytes()))]:
            assert not source.closed
            source.close()
            assert source.closed
            expect_closed(lambda source=source: source.read(0, 64))
            source.forget(0, 64)

    def test_by_the_owner_of_a_file_object(self, path):
        owned = io.BytesIO(path.read_bytes())
        file = sparsefmt.open_file(owned)
        owned.close()
        expect_closed(lambda: file["w"])

    def test_by_the_owner_of_a_file_object_during_a_read(self, path):
        class ClosedAtOnce(io.BytesIO):
            armed = False

            def seek(self, *arguments: int) -> int:
                if self.armed:
                    self.close()
                return super().seek(*arguments)

        owned = ClosedAtOnce(path.read_bytes())
        file = sparsefmt.open_file(owned)
        owned.armed = True
        expect_closed(lambda: file["w"])


def reads_of_safe_open(framework: str) -> list[Callable[[Any], Any]]:
    return [
        lambda file: file.get_tensor("w"),
        lambda file: file.get_tensors()["w"],
        lambda file: file.get_slice("w")[:],
        lambda file: file.get_slice("w")[[*range(96)]],
    ]


class TestDuringARead:
    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("framework", ["np", "pt"])
    def test_a_read_of_safe_open_comes_to_its_end(self, small_tiles, backend, framework, monkeypatch):
        """`with` ends in another thread at the first byte that is read."""
        kind = sources.MappedFile if backend == "mmap" else sources.ReadFile
        for read in reads_of_safe_open(framework):
            file = sparsefmt.safe_open(small_tiles, framework, backend=backend)
            real, closings = kind.read, []

            def closing(source: Any, *arguments: int, real=real, file=file, closings=closings) -> np.ndarray:
                other = threading.Thread(target=file.__exit__, args=(None, None, None))
                other.start()
                other.join()
                closings.append(source.closed)
                return real(source, *arguments)

            with monkeypatch.context() as patch:
                patch.setattr(kind, "read", closing)
                found = read(file)
            assert same_bits(np.asarray(found), WEIGHT)
            assert len(closings) > 3
            assert not any(closings)
            expect_closed(file.keys)

    def test_a_handle_that_nobody_has_any_more(self, small_tiles):
        for framework in ("np", "pt"):
            for read in reads_of_safe_open(framework):
                assert same_bits(np.asarray(read(sparsefmt.safe_open(small_tiles, framework))), WEIGHT)

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_a_read_of_an_open_file_says_so(self, small_tiles, backend, monkeypatch):
        kind = sources.MappedFile if backend == "mmap" else sources.ReadFile
        for read in (
            lambda file: file["w"],
            lambda file: file.get_tensor("w"),
            lambda file: file.get_slice("w")[5:90],
            lambda file: file.load("w", "bitmask"),
            lambda file: dict(file),
        ):
            file = sparsefmt.open_file(small_tiles, backend=backend)
            left = iter(range(5))

            def closing(source: Any, *arguments: int, real=kind.read, file=file, left=left) -> np.ndarray:
                if next(left, None) is None:
                    file.close()
                return real(source, *arguments)

            with monkeypatch.context() as patch:
                patch.setattr(kind, "read", closing)
                expect_closed(lambda read=read, file=file: read(file))

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_at_every_step(self, small_tiles, backend):
        """Whatever line another thread closes before: the tensor, or the error."""

        def numpy_handle() -> Any:
            return sparsefmt.safe_open(small_tiles, "np", backend=backend)

        def torch_handle() -> Any:
            return sparsefmt.safe_open(small_tiles, "pt", backend=backend)

        def opened() -> Any:
            return sparsefmt.open_file(small_tiles, backend=backend, threads=1)

        sparsefmt.set_num_threads(1)
        try:
            for make, read in (
                (numpy_handle, lambda file: file.get_tensor("dense")),
                (numpy_handle, lambda file: file.get_slice("dense")[:]),
                (torch_handle, lambda file: file.get_tensors()["dense"].numpy()),
                (opened, lambda file: file.get_tensor("dense")),
                (opened, lambda file: file.get_slice("dense")[:]),
                (opened, lambda file: file["dense"]),
            ):
                outcomes = [closed_at(step, make(), read) for step in steps()]
                assert set(outcomes) == {"read", "file-closed"}
        finally:
            sparsefmt.set_num_threads(2)


def steps() -> list[int]:
    return [*range(1, 60), *range(60, 400, 7), *range(400, 1500, 40)]


def closed_at(step: int, file: Any, read: Callable[[Any], np.ndarray]) -> str:
    """What comes of a read if the file is closed before its line number `step`."""
    lines = iter(range(1, 100_000))

    def trace(frame: Any, event: str, argument: Any) -> Any:
        if event == "line" and "sparsefmt" in frame.f_code.co_filename and next(lines) == step:
            sys.settrace(None)
            file.__exit__(None, None, None)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        found = read(file)
    except SparsefmtError as error:
        return error.code
    finally:
        sys.settrace(before)
    assert same_bits(found, TENSORS["dense"])
    return "read"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["np", "pt", "file"])
def test_threads_that_read_while_another_closes(small_tiles, backend, kind):
    """Many rounds: every answer is the tensor, or the one error."""
    sizes = {"w": WEIGHT, "dense": TENSORS["dense"]}
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    wrong: list[object] = []
    outcomes: set[str] = set()

    def work(file: Any, seed: int, start: threading.Barrier) -> None:
        choose = random.Random(seed)
        start.wait()
        for _ in range(30):
            name = choose.choice([*sizes])
            try:
                found = choose.choice([file.get_tensor, lambda name: file.get_slice(name)[:]])(name)
            except SparsefmtError as error:
                outcomes.add(error.code)
                continue
            except BaseException as error:
                wrong.append(error)
                return
            outcomes.add("read")
            if not same_bits(np.asarray(found), sizes[name]):
                wrong.append(name)

    try:
        for seed in range(25):
            file: Any
            if kind == "file":
                file = sparsefmt.open_file(small_tiles, backend=backend)
            else:
                file = sparsefmt.safe_open(small_tiles, kind, backend=backend)
            start = threading.Barrier(4)
            readers = [threading.Thread(target=work, args=(file, 10 * seed + number, start)) for number in range(3)]
            for reader in readers:
                reader.start()
            start.wait()
            threading.Event().wait(random.Random(seed).random() * 0.01)
            file.__exit__(None, None, None)
            for reader in readers:
                reader.join()
    finally:
        sys.setswitchinterval(switch)
    assert not wrong
    assert outcomes == {"read", "file-closed"}
