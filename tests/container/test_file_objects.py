"""Binary file objects in place of paths, and what is said of files that are neither."""

# ruff: noqa: SIM115 (who opens a file, and who closes it, is what is tested)

from __future__ import annotations

import errno
import gzip
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from helpers import in_threads, weights
from test_opening import FUNCTIONS, OF_BYTES, READING, TENSORS, check_tensors

import sparsefmt
import sparsefmt.numpy
import sparsefmt.torch
from sparsefmt import FormatError, UnsupportedError
from sparsefmt.tensor_writer import TensorWriter

CONTENT = sparsefmt.save(TENSORS, codec="raw")
TORCH_TENSORS = {name: torch.from_numpy(array) for name, array in TENSORS.items()}


class Plain:
    """A file object with nothing but what is needed, that reads a few bytes at a time."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)
        self.seek, self.tell = self._file.seek, self._file.tell

    def read(self, size: int) -> bytes:
        return self._file.read(min(size, 100))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.sparsefmt"
    path.write_bytes(CONTENT)
    return path


def zipped(data: bytes) -> BinaryIO:
    return gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(data)))  # type: ignore[return-value]


def on_disk(data: bytes, **options: Any) -> BinaryIO:
    file = tempfile.TemporaryFile(**options)
    file.write(data)  # not flushed
    file.seek(0)
    return file  # type: ignore[return-value]


def named(data: bytes) -> BinaryIO:
    file = tempfile.NamedTemporaryFile()
    file.write(data)
    file.seek(0)
    return file  # type: ignore[return-value]


def spooled(data: bytes) -> BinaryIO:
    file = tempfile.SpooledTemporaryFile()
    file.write(data)
    file.seek(0)
    return file  # type: ignore[return-value]


KINDS: list[Callable[[bytes], Any]] = [io.BytesIO, Plain, zipped, on_disk, named, spooled]


class Given:
    """A path whose bytes are given as a file object."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def read_bytes(self) -> Any:
        return self.file


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if not name.endswith("load_into")])
def test_all_functions_read_them(name, kind):
    function, read = FUNCTIONS[name], READING[name]
    file = kind(CONTENT)
    source = Given(file) if name.endswith(OF_BYTES) else file
    for _ in range(2):
        check_tensors(read(function, source))
        assert file.tell() == 0
        assert not getattr(file, "closed", False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("before", [1, 64, 128])
@pytest.mark.parametrize("backend", ["mmap", "pread"])
def test_the_file_begins_at_the_position(kind, before, backend):
    file = kind(bytes(range(before)) + CONTENT)
    file.seek(before)
    check_tensors(sparsefmt.load_file(file, layout="dense", backend=backend))
    assert file.tell() == before
    check_tensors(sparsefmt.load(file, layout="dense"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_position_at_the_end_is_named(kind):
    file = kind(CONTENT)
    for position in (len(CONTENT), 3):
        file.seek(position)
        with pytest.raises(FormatError, match=rf"byte {position:,}, where the file object stands: seek\(0\)") as caught:
            sparsefmt.load_file(file)
        assert caught.value.code == "not-sparsefmt"


def test_files_of_the_disk_are_mapped_and_may_be_closed(path):
    with open(path, "rb") as file:
        opened = sparsefmt.open_file(file)
        weight = opened["weight"]
    check_tensors({name: opened.get_tensor(name) for name in opened})
    assert not np.asarray(weight.operand().tiles[0]["values"]).flags.owndata
    with open(path, "rb", buffering=0) as file:
        check_tensors(sparsefmt.numpy.load_file(file))


def test_a_file_object_that_was_closed(path):
    file = io.BytesIO(CONTENT)
    opened = sparsefmt.open_file(file)
    file.close()
    with pytest.raises(ValueError, match="closed"):
        opened.get_tensor("weight")
    for function in (sparsefmt.open_file, lambda closed: sparsefmt.save_file(TENSORS, closed)):
        with pytest.raises(ValueError, match="closed"):
            function(file)


def test_many_threads_share_a_position():
    rng = np.random.default_rng(0)
    tensors = {str(number): weights(rng, (300, 200), np.float32, 0.5) for number in range(8)}
    opened = sparsefmt.open_file(Plain(sparsefmt.save(tensors)))

    def read(name: str) -> None:
        assert np.array_equal(opened.get_tensor(name), tensors[name]), name

    in_threads(read, tensors)


def test_a_file_object_that_ends_early():
    class Shrinking(Plain):
        def read(self, size: int) -> bytes:
            return b"" if self.tell() >= 64 and size > 100 else super().read(size)

    with pytest.raises(FormatError, match="cut off while it was read"):
        sparsefmt.load_file(Shrinking(CONTENT))


SAVING: dict[str, Callable[[Any], None]] = {
    "save_file": lambda file: sparsefmt.save_file(TENSORS, file),
    "numpy.save_file": lambda file: sparsefmt.numpy.save_file(TENSORS, file),
    "torch.save_file": lambda file: sparsefmt.torch.save_file(TORCH_TENSORS, file),
    "torch.save_model": lambda file: sparsefmt.torch.save_model(torch.nn.Linear(64, 64), file),
}


@pytest.mark.parametrize("name", SAVING)
def test_all_functions_write_them(name):
    file = io.BytesIO()
    SAVING[name](file)
    assert not file.closed
    assert file.tell() == len(file.getvalue())
    file.seek(0)
    assert sparsefmt.load_file(file).keys() == TENSORS.keys()
    file.seek(0, os.SEEK_END)
    middle = file.tell()
    SAVING[name](file)
    file.seek(middle)
    assert sparsefmt.load_file(file).keys() == TENSORS.keys()


def test_written_files_are_flushed(path):
    with open(path, "wb") as file:
        sparsefmt.save_file(TENSORS, file)
        check_tensors(sparsefmt.numpy.load_file(path))


@pytest.mark.parametrize("most", [1, 1000])
def test_sinks_that_take_a_part(most):
    """As raw files do: they say how many bytes they have taken."""

    class Raw(io.RawIOBase):
        taken = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            self.taken += bytes(data)[:most]
            return min(most, memoryview(data).nbytes)

    file = Raw()
    file.taken = bytearray()
    sparsefmt.save_file({"bias": TENSORS["bias"]}, file)
    assert bytes(file.taken) == sparsefmt.save({"bias": TENSORS["bias"]})
    writer = TensorWriter(Raw())
    writer.add("bias", TENSORS["bias"])


def test_a_sink_that_takes_nothing():
    class Blocked(io.RawIOBase):
        def write(self, data: Any) -> None:
            return None

    with pytest.raises(BlockingIOError):
        TensorWriter(Blocked())


def test_pipes_are_written_as_open_files(tmp_path):
    code = "import sys, numpy as np, sparsefmt; sparsefmt.save_file({'w': np.eye(9)}, sys.stdout.buffer)"
    data = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert np.array_equal(np.asarray(sparsefmt.load(data)["w"]), np.eye(9))
    os.mkfifo(tmp_path / "pipe")
    for destination, kind in ((tmp_path / "pipe", "a pipe"), ("/dev/null", "a device")):
        with pytest.raises(
            OSError, match=f"is {kind}, not a regular file, .*open it with mode 'wb' and save to the open file"
        ) as caught:
            sparsefmt.save_file(TENSORS, destination)
        assert (caught.value.errno, caught.value.filename) == (errno.EINVAL, os.fspath(destination))
        with pytest.raises(
            OSError, match=f"is {kind}, not a regular file: read it to its end and give sparsefmt.load its bytes"
        ):
            sparsefmt.load_file(destination)


def test_what_cannot_be_read_or_written(path):
    reading, writing = os.pipe()
    cases: list[tuple[Any, type[Exception], str]] = [
        (io.StringIO("text"), TypeError, "is a text file: open it with mode"),
        (open(path), TypeError, "model.sparsefmt' is a text file: open it with mode"),
        (tempfile.NamedTemporaryFile("w+"), TypeError, "is a text file"),
        (None, TypeError, "a path or an open binary file is needed.*, not NoneType"),
        (3, TypeError, "not int"),
        (TENSORS, TypeError, "not dict"),
    ]
    only_reading: list[tuple[Any, type[Exception], str]] = [
        (open(path.with_name("new"), "wb"), UnsupportedError, "not open for reading: open it with mode 'rb'"),
        (open(reading, "rb"), UnsupportedError, r"cannot be read at any place.*sparsefmt.load\(file.read\(\)\)"),
        (CONTENT, TypeError, "sparsefmt.load takes them"),
        (bytearray(CONTENT), TypeError, "sparsefmt.load takes them"),
    ]
    for given, error, message in cases + only_reading:
        for function in (sparsefmt.load_file, sparsefmt.numpy.load_file, sparsefmt.torch.load_file):
            with pytest.raises(error, match=message):
                function(given)
    for given, error, message in [*cases, (open(path, "rb"), UnsupportedError, "open it with mode 'wb'")]:
        for save in (sparsefmt.save_file, sparsefmt.numpy.save_file):
            with pytest.raises(error, match=message):
                save(TENSORS, given)
    for given in (path, str(path)):
        with pytest.raises(TypeError, match="load_file takes a path"):
            sparsefmt.load(given)
    with pytest.raises(TypeError, match="load_model takes an open file"):
        sparsefmt.torch.load_into(torch.nn.Linear(64, 64), io.BytesIO(CONTENT))
    os.close(writing)
