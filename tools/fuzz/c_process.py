"""spec/c/check_reader.c as a process that answers, built with sanitizers where the compiler has them."""

from __future__ import annotations

import contextlib
import ctypes.util
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import zstandard

from tools import ROOT

SOURCES = ROOT / "spec" / "c"

ZSTD_HEADER = """
#include <stddef.h>
size_t ZSTD_decompress(void *dst, size_t capacity, const void *src, size_t size);
size_t ZSTD_findFrameCompressedSize(const void *src, size_t size);
"""


def compiler() -> str | None:
    """The C compiler of this machine."""
    return shutil.which("gcc") or shutil.which("cc")


def find_zstd() -> str | None:
    """Name of this machine's libzstd."""
    return ctypes.util.find_library("zstd")


def is_same_zstd(library: str | None) -> bool:
    """Whether this is the version of libzstd that the library decodes with."""
    return library is not None and ctypes.CDLL(library).ZSTD_versionNumber() == sum(
        part * unit for part, unit in zip(zstandard.ZSTD_VERSION, (10000, 100, 1), strict=True)
    )


def zstd_flags(folder: Path, library: str | None) -> list[str]:
    """Flags that build codec zstd in, if there is the library. Its header need not be there: two prototypes do."""
    if library is None:
        return []
    (folder / "zstd.h").write_text(ZSTD_HEADER)
    return ["-DSPARSEFMT_ZSTD", f"-I{folder}", library if "/" in library else f"-l:{library}"]


def build(source: str, program: Path, flags: list[str], zstd: str | None) -> None:
    """Compile a program of spec/c, with all warnings as errors.

    Args:
        zstd: name or path of the libzstd that decodes codec zstd; None for none.

    Raises:
        CalledProcessError: it does not compile, or flags that the compiler does not know.
    """
    command = [compiler() or "cc", "-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", str(SOURCES / source)]
    subprocess.run([*command, "-o", str(program), *flags, *zstd_flags(program.parent, zstd), "-lm"], check=True)


def has_sanitizers(folder: Path) -> bool:
    """Whether the compiler can build and this machine run a program with sanitizers."""
    source, program = folder / "empty.c", folder / "empty"
    source.write_text("int main(void) { return 0; }\n")
    command = [compiler() or "cc", "-fsanitize=address,undefined", str(source), "-o", str(program)]
    if subprocess.run(command, capture_output=True).returncode:
        return False
    return not subprocess.run(unlimited(program), capture_output=True).returncode


def unlimited(program: Path, *arguments: str) -> list[str]:
    """The command for a program without the limit of this one: sanitizers map terabytes."""
    return ["sh", "-c", 'ulimit -S -v unlimited; exec "$0" "$@"', str(program), *arguments]


class CReader:
    """check_reader.c as a process that answers."""

    def __init__(self, folder: Path, sanitizers: bool, zstd: str | None, flags: Sequence[str] = ()) -> None:
        self.program = folder / "check_reader"
        sanitizing = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
        build("check_reader.c", self.program, ["-O1", *flags, *(sanitizing if sanitizers else [])], zstd)
        self.process = self.start()

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(unlimited(self.program, *arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, data: bytes) -> str:
        """What it says of a file; "stopped" if it stopped, after which a new process answers."""
        given, said = self.process.stdin, self.process.stdout
        assert given is not None
        assert said is not None
        try:
            given.write(struct.pack("<I", len(data)) + data)
            given.flush()
        except BrokenPipeError:
            pass
        head = said.read(4)
        if len(head) == 4:
            return said.read(struct.unpack("<I", head)[0]).decode()
        self.close()
        self.process = self.start()
        return "stopped"

    def close(self) -> int:
        """Exit status of the process: not 0 if it stopped, or if it did not release all memory."""
        with contextlib.suppress(BrokenPipeError):
            self.process.communicate()
        return self.process.wait()
