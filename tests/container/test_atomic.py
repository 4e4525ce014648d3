"""Saving when something goes wrong: the old file stays whole, nothing is left behind, and the error says why."""

from __future__ import annotations

import contextlib
import dis
import errno
import fcntl
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner
from helpers import names_in, same_bits, weights

import sparsefmt
from sparsefmt.cli import main
from sparsefmt.container import atomic

SMALL = {"w": weights(np.random.default_rng(1), (40, 60), np.float32, 0.7)}
LARGE = {"w": weights(np.random.default_rng(2), (2000, 400), np.float32, 0.5), "z": np.float32(1)}
DEAD = ".w.sparsefmt.0123456789abcdef.sparsefmt-tmp"


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A good file alone in its folder, which is there and alone afterwards, too."""
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "w.sparsefmt"
    sparsefmt.save_file(SMALL, path)
    before = path.read_bytes()
    yield path
    assert path.read_bytes() == before
    assert names_in(folder) == ["w.sparsefmt"]


def holds(path: Any, *models: Mapping[str, np.ndarray]) -> bool:
    """Whether a file is whole and has the bits of one of the models."""
    loaded = sparsefmt.load_file(path, layout="dense")
    return any(same_model(loaded, model) for model in models)


def same_model(loaded: Mapping[str, Any], model: Mapping[str, np.ndarray]) -> bool:
    return loaded.keys() == model.keys() and all(same_bits(loaded[name], np.asarray(model[name])) for name in model)


class Lazy(Mapping[str, Any]):
    """A mapping that makes its values when they are asked for, by calling what stands for them."""

    def __init__(self, values: dict[str, Callable[[], Any]]) -> None:
        self._values = values

    def __getitem__(self, name: str) -> Any:
        return self._values[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def raising(error: BaseException) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


def in_child(work: Callable[[], object], user: int | None = None) -> str:
    """What work() gives, or the error that it raises, as a text, in a forked process, of another user if given."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(60)
        try:
            if user is not None:
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
            answer = repr(work())
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answers:
        answer = answers.read()
    assert os.waitpid(child, 0)[1] == 0
    return answer


def open_descriptors() -> list[str]:
    return sorted(os.listdir("/dev/fd"))


def interrupted_at(step: int, work: Callable[[], object]) -> bool:
    """Do work(), with Ctrl-C at the `step`th place in atomic.py or contextlib at which CPython looks for signals.

    It does so as a function begins, after a call and as a loop goes back: not within other instructions.

    Returns whether it got so far; if it did not, work() was done as a whole.
    """
    files = (atomic.__file__, contextlib.__file__)
    left = step
    last: dict[FrameType, int] = {}

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes = True
        looked = event == "call"
        if event == "opcode":
            if frame in last:
                instruction = dis.opname[frame.f_code.co_code[last[frame]]]
                looked = instruction.startswith(("CALL", "JUMP_BACKWARD"))
            last[frame] = frame.f_lasti
        if looked:
            left -= 1
            if left == -1:
                last.clear()
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    try:
        sys.settrace(trace)
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
        last.clear()
    return False


ORDINARY = 65534 if os.geteuid() == 0 else None
"""A user to whom permissions mean something, which they do not to root."""


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that an ordinary user can get to, and owns."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if ORDINARY is not None:
            os.chown(folder, ORDINARY, ORDINARY)
        yield folder
        for inner in (folder, *folder.iterdir()):
            if inner.is_dir() and not inner.is_symlink():
                inner.chmod(0o700)


def by_ordinary_user(work: Callable[[], object]) -> str:
    sparsefmt.save({**SMALL, **LARGE})  # everything is imported and compiled, which another user may not be able to do
    return in_child(work, ORDINARY)


class TestKilledWriters:
    @pytest.mark.slow
    def test_a_short_run_of_the_tool(self):
        command = [sys.executable, "-m", "tools.fuzz.crash_saves", "--count", "10"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done
        assert "survived: 10 of 10" in done.stdout

    def test_their_leftovers_go_with_the_next_save(self, path):
        dead = path.with_name(DEAD)
        dead.write_bytes(b"half")
        sparsefmt.save_file(SMALL, path)
        assert names_in(path.parent) == ["w.sparsefmt"]

    def test_even_with_a_save_that_fails(self, path):
        path.with_name(DEAD).write_bytes(b"half")
        with pytest.raises(RuntimeError):
            sparsefmt.save_file(Lazy({"w": raising(RuntimeError("stop"))}), path)

    def test_nobody_elses_go(self, tmp_path):
        others = [
            DEAD.replace(".w.", ".v."),
            DEAD.replace("f.", "."),
            DEAD.replace("abc", "xyz"),
            DEAD.removeprefix("."),
            DEAD + "x",
            "x" + DEAD,
        ]
        for name in others:
            (tmp_path / name).write_bytes(b"of others")
        (tmp_path / DEAD).symlink_to(others[0])
        sparsefmt.save_file(SMALL, tmp_path / "w.sparsefmt")
        assert names_in(tmp_path) == sorted([*others, DEAD, "w.sparsefmt"])

    def test_those_of_living_writers_stay(self, path):
        slow = Lazy({"w": lambda: sparsefmt.save_file(LARGE, path) or SMALL["w"]})
        sparsefmt.save_file(slow, path)
        assert holds(path, SMALL)

    def test_of_a_writer_in_another_process(self, path):
        with atomic.replacing(path) as file:
            file.write(b"of the parent")
            assert in_child(lambda: sparsefmt.save_file(LARGE, path)) == "None"
            assert len(names_in(path.parent)) == 2
            file.seek(0)
            file.truncate()
            file.write(sparsefmt.save(SMALL))

    def test_a_writer_whose_file_is_taken_for_abandoned_before_it_is_locked_takes_another(self, path, monkeypatch):
        real, taken = fcntl.flock, []

        def flock(descriptor: int, operation: int) -> None:
            if not taken:
                (name,) = set(names_in(path.parent)) - {"w.sparsefmt"}
                taken.append(name)
                path.with_name(name).unlink()
            real(descriptor, operation)

        monkeypatch.setattr(fcntl, "flock", flock)
        sparsefmt.save_file(SMALL, path)
        assert len(taken) == 1

    def test_without_locks_saving_works_and_leftovers_stay(self, tmp_path, monkeypatch):
        def flock(descriptor: int, operation: int) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(fcntl, "flock", flock)
        (tmp_path / DEAD).write_bytes(b"half")
        sparsefmt.save_file(SMALL, tmp_path / "w.sparsefmt")
        assert holds(tmp_path / "w.sparsefmt", SMALL)
        assert names_in(tmp_path) == [DEAD, "w.sparsefmt"]

    def test_names_mean_themselves(self, tmp_path):
        """None of what patterns are made of."""
        for name in ("w*.sparsefmt", "w[a-z].sparsefmt", "w\n.sparsefmt", "(w).sparsefmt", "..w"):
            dead, other = f".{name}.{'a' * 16}.sparsefmt-tmp", f".wa.sparsefmt.{'b' * 16}.sparsefmt-tmp"
            (tmp_path / dead).write_bytes(b"")
            (tmp_path / other).write_bytes(b"")
            sparsefmt.save_file(SMALL, tmp_path / name)
            assert names_in(tmp_path) == sorted([name, other])
            (tmp_path / name).unlink()


@contextmanager
def room_for(nbytes: int) -> Iterator[None]:
    """Files can grow to so many bytes, as if the disk were full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


class TestDisks:
    @pytest.mark.parametrize("nbytes", [0, 1, 64, 8192, 100_000])
    @pytest.mark.parametrize("codec", ["raw", "auto"])
    def test_full(self, nbytes, codec, path):
        sparsefmt.save(LARGE, codec=codec)  # compiled: numba writes files, too
        with pytest.raises(OSError, match="File too large") as caught, room_for(nbytes):
            sparsefmt.save_file(LARGE, path, codec=codec)
        assert (caught.value.errno, caught.value.filename, caught.value.filename2) == (errno.EFBIG, str(path), None)

    def test_full_for_convert(self, path, tmp_path):
        safetensors.numpy.save_file({"w": LARGE["w"]}, tmp_path / "source.safetensors")
        arguments = ["convert", str(tmp_path / "source.safetensors"), str(path), "--force"]
        assert (
            CliRunner().invoke(main, [*arguments[:2], str(tmp_path / "elsewhere.sparsefmt")]).exit_code == 0
        )  # compiled
        with room_for(100_000):
            result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2
        assert result.stderr.splitlines()[-1] == f"sparsefmt: error: {path}: File too large"

    @pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
    def test_that_fail_when_synced(self, number, path, monkeypatch):
        monkeypatch.setattr(os, "fsync", raising_once(OSError(number, os.strerror(number))))
        with pytest.raises(OSError, match=re.escape(os.strerror(number))) as caught:
            sparsefmt.save_file(LARGE, path)
        assert (caught.value.errno, caught.value.filename) == (number, str(path))

    def test_that_fail_when_closed(self, path, monkeypatch):
        """As network file systems do."""

        class Failing(atomic._NamedFile):
            def close(self) -> None:
                if not self.closed:
                    super().close()
                    raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(atomic, "_NamedFile", Failing)
        with pytest.raises(OSError, match="Input/output error") as caught:
            sparsefmt.save_file(LARGE, path)
        assert caught.value.filename == str(path)

    def test_on_which_nothing_can_be_renamed(self, path, monkeypatch):
        """A single file mounted into a container, for one."""
        monkeypatch.setattr(
            os, "replace", raising_once(OSError(errno.EBUSY, "Device or resource busy", "a", None, "b"))
        )
        with pytest.raises(OSError, match="busy") as caught:
            sparsefmt.save_file(LARGE, path)
        assert (caught.value.filename, caught.value.filename2) == (str(path), None)

    @pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
    def test_whose_folders_cannot_be_synced(self, number, path, monkeypatch):
        monkeypatch.setattr(os, "fsync", failing_on_folders(number))
        sparsefmt.save_file(SMALL, path)

    def test_whose_folder_fails_to_sync(self, path, monkeypatch):
        """The only error after which the new file is there: it may not be there after a power cut."""
        monkeypatch.setattr(os, "fsync", failing_on_folders(errno.EIO))
        with pytest.raises(OSError, match="Input/output error") as caught:
            sparsefmt.save_file(LARGE, path)
        assert caught.value.filename == str(path)
        assert holds(path, LARGE)
        monkeypatch.undo()
        sparsefmt.save_file(SMALL, path)


def raising_once(error: OSError) -> Callable[..., None]:
    def fail(*arguments: object) -> None:
        raise error

    return fail


def failing_on_folders(number: int) -> Callable[[int], None]:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    return fsync


class TestDestinations:
    @pytest.mark.parametrize("end", ["", "/", "/.", "/new/", "/new/."])
    def test_folders(self, end, path):
        with pytest.raises(IsADirectoryError, match="folder") as caught:
            sparsefmt.save_file(LARGE, str(path.parent) + end)
        assert caught.value.filename == str(path.parent) + end

    @pytest.mark.parametrize("place", ["fifo", "link to a fifo", "/dev/null"])
    def test_no_files(self, place, path, tmp_path):
        os.mkfifo(tmp_path / "fifo")
        (tmp_path / "link to a fifo").symlink_to("fifo")
        with pytest.raises(OSError, match="not a regular file") as caught:
            sparsefmt.save_file(LARGE, tmp_path / place)
        assert caught.value.filename == str(tmp_path / place)
        assert stat.S_ISFIFO(os.stat(tmp_path / "fifo").st_mode)

    def test_standard_output(self, tmp_path):
        """A pipe cannot be replaced; the file that it was redirected to can."""
        code = "import sparsefmt; sparsefmt.save_file({'w': 1.0}, '/dev/stdout')"
        piped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "'/dev/stdout'" in piped.stderr
        assert "not a regular file" in piped.stderr
        with open(tmp_path / "w.sparsefmt", "wb") as redirected:
            subprocess.run([sys.executable, "-c", code], stdout=redirected, check=True)
        assert holds(tmp_path / "w.sparsefmt", {"w": np.float64(1)})

    def test_no_name(self):
        with pytest.raises(FileNotFoundError):
            sparsefmt.save_file(SMALL, "")

    def test_no_folder(self, tmp_path):
        (tmp_path / "file").write_bytes(b"")
        for place, kind in (("missing/w", FileNotFoundError), ("file/w", NotADirectoryError)):
            with pytest.raises(kind) as caught:
                sparsefmt.save_file(SMALL, tmp_path / place)
            assert caught.value.filename == str(tmp_path / place)

    def test_a_folder_that_is_removed_meanwhile(self, tmp_path):
        folder = tmp_path / "folder"
        folder.mkdir()
        with pytest.raises(FileNotFoundError) as caught:
            sparsefmt.save_file(Lazy({"w": lambda: shutil.rmtree(folder) or SMALL["w"]}), folder / "w")
        assert caught.value.filename == str(folder / "w")
        assert names_in(tmp_path) == []

    def test_a_name_that_becomes_a_folder_meanwhile(self, tmp_path):
        path = tmp_path / "w"
        with pytest.raises(IsADirectoryError) as caught:
            sparsefmt.save_file(Lazy({"w": lambda: path.mkdir() or SMALL["w"]}), path)
        assert (caught.value.filename, caught.value.filename2) == (str(path), None)
        assert names_in(tmp_path) == ["w"]

    @pytest.mark.parametrize(
        ("character", "count"), [("x", 255), ("é", 127), ("\N{GRINNING FACE}", 63), ("e\N{COMBINING ACUTE ACCENT}", 85)]
    )
    def test_long_names(self, character, count, tmp_path):
        name = character * count
        for model in (SMALL, LARGE):
            sparsefmt.save_file(model, tmp_path / name)
            assert holds(tmp_path / name, model)
        with atomic.replacing(tmp_path / name) as file:
            (leftover,) = set(names_in(tmp_path)) - {name}
            leftover.encode()
            file.write(b"")
        assert names_in(tmp_path) == [name]

    def test_names_that_are_too_long(self, tmp_path):
        with pytest.raises(OSError, match="name too long") as caught:
            sparsefmt.save_file(SMALL, tmp_path / ("x" * 256))
        assert caught.value.errno == errno.ENAMETOOLONG
        assert names_in(tmp_path) == []

    def test_names_that_are_not_utf_8_or_are_bytes(self, tmp_path):
        name = b"\xff\xfe w.sparsefmt"
        for path in (os.fsencode(tmp_path) + b"/" + name, tmp_path / os.fsdecode(name)):
            for model in (SMALL, LARGE):
                with atomic.replacing(path) as file:
                    file.write(sparsefmt.save(model))
                assert holds(path, model)
        sparsefmt.save_file(SMALL, tmp_path / os.fsdecode(name))
        assert os.listdir(os.fsencode(tmp_path)) == [name]


class TestLinks:
    def test_symbolic_ones_stay_and_what_they_point_to_is_replaced(self, tmp_path):
        for folder in ("blobs", "snapshots"):
            (tmp_path / folder).mkdir()
        blob, link, second = tmp_path / "blobs" / "0", tmp_path / "snapshots" / "w", tmp_path / "w"
        link.symlink_to("../blobs/0")  # relative, and to nothing as yet
        second.symlink_to(link)
        for model in (SMALL, LARGE):
            sparsefmt.save_file(model, second)
            assert (os.readlink(second), os.readlink(link)) == (str(link), "../blobs/0")
            assert holds(blob, model)
        assert names_in(tmp_path / "blobs") == ["0"]
        assert names_in(tmp_path / "snapshots") == ["w"]

    def test_symbolic_ones_that_lead_nowhere(self, tmp_path):
        (tmp_path / "loop").symlink_to("loop")
        (tmp_path / "folder").symlink_to(".")
        (tmp_path / "lost").symlink_to("missing/w")
        for name, number in (("loop", errno.ELOOP), ("folder", errno.EISDIR), ("lost", errno.ENOENT)):
            with pytest.raises(OSError, match=name) as caught:
                sparsefmt.save_file(SMALL, tmp_path / name)
            assert (caught.value.errno, caught.value.filename) == (number, str(tmp_path / name))
        assert names_in(tmp_path) == ["folder", "loop", "lost"]

    def test_hard_ones_keep_the_old_file(self, tmp_path):
        path, other = tmp_path / "w", tmp_path / "other"
        sparsefmt.save_file(SMALL, path)
        os.link(path, other)
        sparsefmt.save_file(LARGE, path)
        assert holds(path, LARGE)
        assert holds(other, SMALL)


class TestPermissions:
    @pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o777, 0o222])
    @pytest.mark.parametrize("umask", [0o000, 0o077])
    def test_an_old_files_are_kept(self, mode, umask, tmp_path):
        path = tmp_path / "w"
        path.write_bytes(b"")
        path.chmod(mode)
        old = os.umask(umask)
        try:
            sparsefmt.save_file(SMALL, path)
        finally:
            os.umask(old)
        assert stat.S_IMODE(path.stat().st_mode) == mode

    @pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
    def test_a_new_file_has_the_umasks(self, umask, tmp_path):
        old = os.umask(umask)
        try:
            sparsefmt.save_file(SMALL, tmp_path / "w")
        finally:
            os.umask(old)
        assert stat.S_IMODE((tmp_path / "w").stat().st_mode) == 0o666 & ~umask

    def test_no_file_is_open_to_more_than_the_old_one_was(self, tmp_path, monkeypatch):
        real, modes = os.open, []

        def spy(path: str, flags: int, mode: int = 0o777, **options: Any) -> int:
            descriptor = real(path, flags, mode, **options)
            if str(path).endswith(atomic.TEMPORARY_SUFFIX):
                modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
            return descriptor

        (tmp_path / "w").write_bytes(b"")
        (tmp_path / "w").chmod(0o600)
        monkeypatch.setattr(os, "open", spy)
        sparsefmt.save_file(SMALL, tmp_path / "w")
        assert modes == [0o600]

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
    def test_root_keeps_the_owner(self, tmp_path):
        (tmp_path / "w").write_bytes(b"")
        os.chown(tmp_path / "w", 1234, 2345)
        (tmp_path / "w").chmod(0o640)
        sparsefmt.save_file(SMALL, tmp_path / "w")
        status = (tmp_path / "w").stat()
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 2345, 0o640)

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs files of two users")
    def test_others_files_that_one_may_replace_become_ones_own(self, shared):
        (shared / "w").write_bytes(b"")
        os.chown(shared / "w", 1234, 2345)
        (shared / "w").chmod(0o666)
        assert by_ordinary_user(lambda: sparsefmt.save_file(SMALL, shared / "w")) == "None"
        assert holds(shared / "w", SMALL)
        assert (shared / "w").stat().st_uid == ORDINARY

    def test_a_folder_that_cannot_be_written_to(self, shared):
        sparsefmt.save_file(SMALL, shared / "w")
        (shared / "w").chmod(0o666)
        shared.chmod(0o555)
        said = [by_ordinary_user(lambda name=name: sparsefmt.save_file(LARGE, shared / name)) for name in ("w", "new")]
        for name, answer in zip(("w", "new"), said, strict=True):
            start = f"PermissionError: [Errno {errno.EACCES}] Permission denied: its folder must be writable, too"
            assert answer == f"{start}: {str(shared / name)!r}"
        assert holds(shared / "w", SMALL)
        assert names_in(shared) == ["w"]

    def test_a_file_that_is_write_protected(self, shared):
        """Its folder would allow it. Whoever has protected a file means it."""
        sparsefmt.save_file(SMALL, shared / "w")
        if ORDINARY is not None:
            os.chown(shared / "w", ORDINARY, ORDINARY)
        (shared / "w").chmod(0o444)
        answer = by_ordinary_user(lambda: sparsefmt.save_file(LARGE, shared / "w"))
        assert answer == f"PermissionError: [Errno {errno.EACCES}] is write-protected: {str(shared / 'w')!r}"
        assert holds(shared / "w", SMALL)
        assert names_in(shared) == ["w"]

    def test_a_folder_that_can_be_written_to_and_not_read(self, shared):
        shared.chmod(0o333)
        assert by_ordinary_user(lambda: sparsefmt.save_file(SMALL, shared / "w")) == "None"
        shared.chmod(0o777)
        assert holds(shared / "w", SMALL)
        assert names_in(shared) == ["w"]

    def test_a_link_in_a_folder_that_cannot_be_written_to(self, shared):
        """Only the folder of what it points to has to be writable."""
        (shared / "inner").mkdir()
        if ORDINARY is not None:
            os.chown(shared / "inner", ORDINARY, ORDINARY)
        (shared / "link").symlink_to("inner/w")
        shared.chmod(0o555)
        assert by_ordinary_user(lambda: sparsefmt.save_file(SMALL, shared / "link")) == "None"
        assert holds(shared / "inner" / "w", SMALL)


class TestInterruptions:
    @pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, MemoryError, RuntimeError, GeneratorExit])
    def test_errors_of_a_lazy_mapping_come_out_as_they_are(self, kind, path):
        error = kind("mine")
        with pytest.raises(kind) as caught:
            sparsefmt.save_file(Lazy({"a": lambda: LARGE["w"], "b": raising(error)}), path)
        assert caught.value is error

    def test_those_of_reading_do_not_name_the_file_that_is_written(self, path):
        for error in (OSError(errno.EIO, "Input/output error"), ConnectionResetError(errno.ECONNRESET, "reset")):
            with pytest.raises(OSError, match=re.escape(error.strerror)) as caught:
                sparsefmt.save_file(Lazy({"a": lambda: LARGE["w"], "b": raising(error)}), path)
            assert caught.value.filename is None
        with pytest.raises(FileNotFoundError) as caught:
            sparsefmt.save_file(Lazy({"a": path.with_name("missing").read_bytes}), path)
        assert caught.value.filename == str(path.with_name("missing"))

    def test_they_are_not_hidden_by_a_full_disk(self, path):
        """What is left in the buffer is not written any more."""
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)

        def fail() -> Any:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
            raise RuntimeError("mine")

        try:
            with pytest.raises(RuntimeError, match="mine"):
                sparsefmt.save_file(Lazy({"a": lambda: np.float32(1), "b": fail}), path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    def test_ctrl_c_at_any_moment(self, tmp_path):
        path = tmp_path / "w.sparsefmt"
        sparsefmt.save_file(SMALL, path)
        sparsefmt.save(LARGE)  # compiled

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGALRM, interrupt)
        interrupted = 0
        try:
            for microseconds in range(200, 40_000, 1_000):
                signal.setitimer(signal.ITIMER_REAL, microseconds / 1e6)
                try:
                    sparsefmt.save_file(LARGE, path)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except KeyboardInterrupt:
                    interrupted += 1
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                assert holds(path, LARGE, SMALL)
        finally:
            signal.signal(signal.SIGALRM, before)
        assert interrupted
        sparsefmt.save_file(SMALL, path)
        assert names_in(tmp_path) == ["w.sparsefmt"]

    def test_ctrl_c_at_each_step_of_replacing_a_file(self, path):
        """Nothing is left as soon as the exception is let go, neither a file nor a descriptor."""

        def replace() -> None:
            with atomic.replacing(path) as file:
                file.write(before)

        before = path.read_bytes()
        descriptors = open_descriptors()
        steps = 0
        while interrupted_at(steps, replace):
            assert (names_in(path.parent), open_descriptors()) == (["w.sparsefmt"], descriptors), f"step {steps}"
            assert path.read_bytes() == before
            steps += 1
        assert steps > 100

    def test_ctrl_c_at_each_step_of_giving_up(self, path):
        """Ctrl-C a second time, while the temporary file is being removed: then the next save does it."""

        def fail() -> None:
            with suppress(RuntimeError), atomic.replacing(path) as file:
                file.write(b"half")
                raise RuntimeError

        before = path.read_bytes()
        descriptors = open_descriptors()
        steps = 0
        while interrupted_at(steps, fail):
            assert path.read_bytes() == before
            sparsefmt.save_file(SMALL, path)
            assert (names_in(path.parent), open_descriptors()) == (["w.sparsefmt"], descriptors), f"step {steps}"
            steps += 1
        assert steps > 100

    def test_ctrl_c_at_each_step_of_removing_what_dead_writers_have_left(self, path):
        dead = path.with_name(DEAD)
        descriptors = open_descriptors()
        steps = 0
        dead.write_bytes(b"half")
        while interrupted_at(steps, lambda: atomic._remove_abandoned(str(path))):
            assert set(names_in(path.parent)) <= {"w.sparsefmt", DEAD}
            assert open_descriptors() == descriptors, f"step {steps}"
            dead.write_bytes(b"half")
            steps += 1
        assert steps > 20

    def test_processes_that_save_to_one_name_at_once(self, tmp_path):
        path = tmp_path / "w.sparsefmt"
        models = [{"w": np.full((300, 300), number + 1, np.float32)} for number in range(3)]
        sparsefmt.save_file(models[0], path)
        children = []
        for model in models:
            child = os.fork()
            if not child:
                signal.alarm(60)
                try:
                    for _ in range(15):
                        sparsefmt.save_file(model, path)
                except BaseException:
                    os._exit(1)
                os._exit(0)
            children.append(child)
        for _ in range(30):
            assert holds(path, *models)
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
        assert holds(path, *models)
        assert names_in(tmp_path) == ["w.sparsefmt"]


class TestOrderOfSystemCalls:
    """Durable: the data is on the disk before it gets its name, and the name before the save is said to be done."""

    def traced(self, folder: Path, *command: object) -> list[str]:
        """What a process does to files of a folder, in order: `write NAME`, `rename NAME NAME`, `done` …"""
        log = folder.with_name("trace")
        calls = "write,writev,pwrite64,fsync,fdatasync,sync_file_range,rename,renameat,renameat2,unlink,exit_group"
        subprocess.run(["strace", "-f", "-y", "-s0", "-o", log, "-e", calls, *map(str, command)], check=True)
        steps = []
        for line in log.read_text().splitlines():
            found = re.match(r"\d+ +(\w+)\((.*)", line)
            if found is None:
                continue
            call, rest = found.groups()
            places = re.findall(rf"[<\"]{re.escape(str(folder))}/?([^>\"]*)[>\"]", rest)
            if places:
                step = " ".join([call.rstrip("64").replace("renameat2", "rename"), *(place or "." for place in places)])
                steps.append(re.sub("[0-9a-f]{16}", "#", step))
            elif call == "exit_group":
                steps.append("done")
        return [step for number, step in enumerate(steps) if steps[number - 1 : number] != [step]]

    @pytest.fixture(autouse=True)
    def needs_strace(self):
        """Without it, tests/container/test_save.py looks at the calls that Python makes."""
        if not shutil.which("strace") or subprocess.run(["strace", "-o", os.devnull, "true"]).returncode:
            pytest.skip("no strace here, or no permission to use it")

    def test_of_save_file(self, tmp_path):
        folder = tmp_path / "folder"
        folder.mkdir()
        code = f"import sparsefmt; sparsefmt.save_file({{'w': [1.0]}}, {str(folder / 'w')!r})"
        temporary = ".w.#.sparsefmt-tmp"
        assert self.traced(folder, sys.executable, "-c", code) == [
            f"write {temporary}",
            f"fsync {temporary}",
            f"rename {temporary} w",
            "fsync .",
            "done",
        ]

    def test_of_convert(self, tmp_path):
        """All files are safe, aside, before any takes its place; the index, which names the others, before them."""
        source, folder = tmp_path / "source", tmp_path / "folder"
        source.mkdir()
        shards = [f"model-0000{number}-of-00002" for number in (1, 2)]
        for shard in shards:
            safetensors.numpy.save_file({shard: np.ones((2, 2), np.float32)}, source / f"{shard}.safetensors")
        command = [sys.executable, "-m", "sparsefmt", "convert", source, folder, "--quiet"]
        targets = [*(f"{shard}.sparsefmt" for shard in shards), "model.sparsefmt.index.json"]
        aside = ".converting-#.sparsefmt-tmp"
        *weights, index = targets
        assert self.traced(folder, *command) == [
            *(
                step
                for target in targets
                for step in (
                    f"write {aside}/.{target}.#.sparsefmt-tmp",
                    f"fsync {aside}/.{target}.#.sparsefmt-tmp",
                    f"rename {aside}/.{target}.#.sparsefmt-tmp {aside}/{target}",
                    f"fsync {aside}",
                )
            ),
            *(f"unlink {target}" for target in weights),
            *(f"rename {aside}/{target} {target}" for target in (index, *weights)),
            "fsync .",
            "done",
        ]
