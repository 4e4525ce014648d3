"""Where files can be saved: links, permissions and odd names, and what is said where they cannot."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import names_in
from saving_helpers import LARGE, SMALL, Lazy, holds, in_child

import sparsefmt
from sparsefmt.container import atomic

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

    def test_relative_ones(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        sparsefmt.save_file(SMALL, "w.sparsefmt")
        assert holds("w.sparsefmt", SMALL)

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
