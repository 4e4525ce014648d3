"""Peers of `kernels.py` that need an environment of their own: each is built once, and runs as a process.

A peer process is started for a matrix, does nothing until it is asked, and answers with the seconds of one product;
`kernels_peer_ggml.c` describes the questions. So it takes its turns like the contenders in the tool's own process. What
is downloaded and built lies in .cache/bench-peers; remove that to build again. The tool imports this file; it is not a
program.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

from tools import ROOT
from tools.bench.kernels_contenders import EXACT, ROUNDED, Contender
from tools.bench.kernels_timing import settle

CACHE = ROOT / ".cache" / "bench-peers"

LLAMA_CPP, OPENVINO = "llama-cpp-python==0.3.36", "openvino==2026.4.1"

CMAKE_LISTS = """\
cmake_minimum_required(VERSION 3.14)
project(kernels_peer_ggml C CXX)
add_subdirectory(${GGML} ggml)
add_executable(kernels_peer_ggml ${DRIVER})
target_link_libraries(kernels_peer_ggml PRIVATE ggml)
"""
"""ggml for itself does not configure in this source distribution, which lacks the files that it would install."""

CMAKE_OPTIONS = ("-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", "-DGGML_NATIVE=ON", "-DGGML_LLAMAFILE=ON")
"""As llama.cpp builds it by default, for the processor at hand, but static."""


class UnavailableError(Exception):
    """A peer that cannot be had on this machine, and why."""


class WeightType(NamedTuple):
    """A form in which a peer holds the weights: `block` of them at a time, in `block_bytes` bytes."""

    block: int
    block_bytes: int
    tolerance: float


class Peer(NamedTuple):
    """How to get a peer's program, and the forms of weights that it has."""

    build: Callable[[], list[str]]
    types: dict[str, WeightType]


def run(*command: object) -> None:
    """Run a step of a build; its last errors are the reason if it fails."""
    arguments = [str(part) for part in command]
    try:
        done = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    except OSError as error:
        raise UnavailableError(f"{arguments[0]}: {error.strerror}") from None
    if done.returncode:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()]
        raise UnavailableError(f"{' '.join(arguments[:4])} … failed: {' / '.join((errors or lines)[-3:])}")


def environment(name: str, *packages: str) -> Path:
    """The programs' folder of a virtual environment with the packages."""
    folder = CACHE / name
    if not (folder / "complete").exists():
        venv.create(folder, clear=True, with_pip=True)
        run(folder / "bin" / "python", "-m", "pip", "install", "--quiet", *packages)
        (folder / "complete").touch()
    return folder / "bin"


def ggml_source() -> Path:
    """The folder of ggml out of llama-cpp-python's source distribution."""
    sources = CACHE / "sources"
    if not list(sources.glob("*.tar.gz")):
        download = (sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python")
        run(*download, "-d", sources, LLAMA_CPP)
    [archive] = sources.glob("*.tar.gz")
    folder = sources / archive.name.removesuffix(".tar.gz") / "vendor" / "llama.cpp" / "ggml"
    if not folder.exists():
        with tarfile.open(archive) as tar:
            members = [member for member in tar if "/vendor/llama.cpp/ggml/" in member.name]
            tar.extractall(sources, members, filter="data")
    return folder


def build_ggml() -> list[str]:
    """The driver in C with ggml in it, compiled one file after the other, so that it disturbs little."""
    source = ggml_source()
    programs = environment("cmake", "cmake", "ninja")
    project, build = CACHE / "ggml-project", CACHE / "ggml-build"
    project.mkdir(exist_ok=True)
    (project / "CMakeLists.txt").write_text(CMAKE_LISTS)
    driver = Path(__file__).with_name("kernels_peer_ggml.c").resolve()
    cmake, ninja = programs / "cmake", programs / "ninja"
    if not (build / "build.ninja").exists():
        paths = (f"-DGGML={source}", f"-DDRIVER={driver}", f"-DCMAKE_MAKE_PROGRAM={ninja}")
        run(cmake, "-S", project, "-B", build, "-G", "Ninja", *CMAKE_OPTIONS, *paths)
    run(cmake, "--build", build, "--parallel", "1")  # takes no time if nothing has changed
    return [str(build / "kernels_peer_ggml")]


def build_openvino() -> list[str]:
    """The driver in Python, in an environment with OpenVINO."""
    return [
        str(environment("openvino", OPENVINO) / "python"),
        str(Path(__file__).with_name("kernels_peer_openvino.py")),
    ]


PEERS = {
    "ggml": Peer(
        build_ggml,
        {
            "f16": WeightType(1, 2, ROUNDED),
            "bf16": WeightType(1, 2, ROUNDED),
            "q8_0": WeightType(32, 34, ROUNDED),
        },
    ),
    "openvino": Peer(build_openvino, {"f32": WeightType(1, 4, EXACT)}),
}


class PeerProcess:
    """A peer that holds a matrix. Close it, or use it in a `with`."""

    def __init__(self, name: str, command: list[str], array: np.ndarray, folder: Path) -> None:
        """array: (rows, cols) float32. Files for the process are written to `folder`."""
        self.name, self.shape, self.folder = name, array.shape, folder
        array.tofile(folder / "weights")
        arguments = [*command, *map(str, array.shape), str(folder / "weights")]
        # its libraries' threads are set by the questions alone
        variables = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
        self.process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=variables
        )

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        assert self.process.stdout
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def ask(self, question: str) -> str:
        assert self.process.stdin
        assert self.process.stdout
        try:
            self.process.stdin.write(f"{question}\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline().strip()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise click.ClickException(f"the peer {self.name} ended at {question.split()[0]!r}")
        return answer

    def contenders(self, x: np.ndarray, expected: np.ndarray, threads: int, cold: bool) -> list[Contender]:
        """Its products with x (tokens, cols); they replace those with the last x."""
        (rows, cols), size = self.shape, int(np.prod(self.shape))
        x.tofile(self.folder / "x")
        self.ask(f"case {threads} {len(x)} {self.folder / 'x'}")

        def result(weight_type: str) -> np.ndarray:
            self.ask(f"result {weight_type} {self.folder / 'y'}")
            return np.fromfile(self.folder / "y", np.float32).reshape(len(x), rows)

        def turn(weight_type: str) -> float:
            settle()
            seconds = float(self.ask(f"{'cold' if cold else 'warm'} {weight_type}"))
            settle(self.process.pid)
            return seconds

        return [
            Contender(
                f"{self.name} {key}",
                partial(result, key),
                expected,
                form.tolerance,
                partial(turn, key),
                size // form.block * form.block_bytes,
            )
            for key, form in PEERS[self.name].types.items()
            if cols % form.block == 0
        ]


def build(names: Iterable[str]) -> dict[str, list[str]]:
    """The commands of those peers that can be had, by name; a line for each that can't."""
    CACHE.mkdir(parents=True, exist_ok=True)
    commands = {}
    for name in names:
        click.echo(f"getting {name} ready", err=True)
        try:
            commands[name] = PEERS[name].build()
        except (UnavailableError, OSError) as error:
            click.echo(f"without {name}: {error}", err=True)
    return commands
