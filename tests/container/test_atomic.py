"""Saving when something goes wrong: the old file stays whole, nothing is left behind, and the error says why."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import resource
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner
from helpers import names_in
from saving_helpers import DEAD, LARGE, SMALL, Lazy, holds, in_child, raising

import sparsefmt
from sparsefmt.cli import main
from sparsefmt.container import atomic


class TestKilledWriters:
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
            (leftover,) = set(names_in(path.parent)) - {path.name}
            assert leftover.startswith(f".{path.name}.")
            assert leftover.endswith(atomic.TEMPORARY_SUFFIX)
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
        """Without it, the test below looks at the calls that Python makes."""
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


def test_order_of_the_calls_that_python_makes(tmp_path, monkeypatch):
    """Durable: data synced before the rename, folder synced after it."""
    calls = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor):
        calls.append("sync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")
        real_fsync(descriptor)

    def replace(source, target):
        assert os.path.dirname(source) == os.path.dirname(target)
        calls.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    sparsefmt.save_file(SMALL, tmp_path / "w.sparsefmt")
    assert calls == ["sync file", "rename", "sync folder"]
