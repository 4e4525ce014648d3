"""The readers that `conformance.py` runs, each asked in its own way: this library, those of spec/, any program."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from abc import ABC, abstractmethod
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

import sparsefmt
from sparsefmt.checkpoints.scales import checked_input_scale, checked_scales, scales_in
from sparsefmt.dtypes import DTYPES, dtype_of
from tools import ROOT
from tools.vectors.make import dense_bytes
from tools.vectors.spec_reader import spec_reader


class Refused(Exception):
    """A reader's error: its code."""


class Described(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    layout: str


class Reader(ABC):
    """A reader of .sparsefmt files. All raise Refused for what they refuse.

    Attributes:
        multiplies_scaled: whether it multiplies scaled weights. SPEC.md, section 6, leaves that open.
    """

    multiplies_scaled = True

    @abstractmethod
    def describe(self, path: Path) -> dict[str, Described]:
        """All tensors by name."""

    @abstractmethod
    def dense(self, path: Path, name: str) -> bytes:
        """Dense bytes of a tensor."""

    @abstractmethod
    def product(self, path: Path, name: str, x: np.ndarray) -> bytes:
        """Little-endian bytes of W x."""

    def scaled(self, path: Path, product: dict[str, str]) -> bytes:
        """Little-endian elements of a product of a scaled weight, as an entry of `products` in the manifest has it."""
        raise NotImplementedError


class Library(Reader):
    """sparsefmt itself. A file stays open until another one is asked for."""

    def __init__(self) -> None:
        self._path = Path()
        self._file: sparsefmt.SparseFile | None = None

    def describe(self, path: Path) -> dict[str, Described]:
        file = self._open(path)
        entries = {name: file.reader.index.entry(name) for name in file}
        return {name: Described(entry.dtype.name, entry.shape, entry.layout.name) for name, entry in entries.items()}

    def dense(self, path: Path, name: str) -> bytes:
        file = self._open(path)
        try:
            return dense_bytes(file.get_tensor(name))
        except sparsefmt.SparsefmtError as error:
            raise Refused(error.code) from None

    def product(self, path: Path, name: str, x: np.ndarray) -> bytes:
        file = self._open(path)
        entry = file.reader.index.entry(name)
        weight = file.load(name, entry.layout.name)
        if not isinstance(weight, sparsefmt.SparseTensor):
            weight = weight.reshape(entry.rows, entry.cols)
        with np.errstate(all="ignore"):
            return sparsefmt.linear(x, weight).tobytes()

    def scaled(self, path: Path, product: dict[str, str]) -> bytes:
        file = self._open(path)
        try:
            return self._scaled(file, product)
        except sparsefmt.SparsefmtError as error:
            raise Refused(error.code) from None

    def _scaled(self, file: sparsefmt.SparseFile, product: dict[str, str]) -> bytes:
        name, scale_name, input_name = product["weight"], scales_of(file)[product["weight"]], product.get("input_scale")
        entry, input_scale = file.reader.index.entry(name), None
        weight = file.load(name, entry.layout.name)
        if not isinstance(weight, sparsefmt.SparseTensor):
            weight = sparsefmt.SparseTensor.from_dense(weight, layout="dense")
        scale = checked_scales(name, (entry.rows, entry.cols), scale_name, file.get_tensor(scale_name))
        if input_name is not None:
            input_scale = checked_input_scale(name, input_name, file.get_tensor(input_name))
        x = file.get_tensor(product["x"])
        bias = file.get_tensor(product["bias"]) if "bias" in product else None
        result = DTYPES[product["result"]].numpy
        if x.dtype != result and x.itemsize == 2:
            x = x.astype(np.float32)  # or the result would be of its dtype
        with np.errstate(all="ignore"):
            y = sparsefmt.linear(
                x, weight, bias, scale=scale, activations=product.get("activations"), input_scale=input_scale
            )
        return rounded(y, result).tobytes()

    def _open(self, path: Path) -> sparsefmt.SparseFile:
        if self._file is None or path != self._path:
            if self._file is not None:
                self._file.close()
                self._file = None
            try:
                self._path, self._file = path, sparsefmt.open_file(path)
            except sparsefmt.SparsefmtError as error:
                raise Refused(error.code) from None
        return self._file


def scales_of(file: sparsefmt.SparseFile) -> dict[str, str]:
    """Names of weights, and of their scales, as the metadata has them. Raises FormatError as the library does."""
    return scales_in(file.metadata(), file)


def rounded(y: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """y in another dtype. Of two 16-bit floats, that of x is what the library gives by itself, and no other."""
    with np.errstate(all="ignore"):
        if y.dtype == np.float64 and dtype.itemsize == 2:
            return np.frombuffer(spec_reader().scaled.bytes_of(y, dtype_of(dtype).name), dtype).reshape(y.shape)
        return y.astype(dtype)


class Numpy(Reader):
    """spec/python/reader.py, or a changed copy of it."""

    def __init__(self, module: ModuleType | None = None) -> None:
        self._module = module or spec_reader()
        self._path = Path()
        self._container: Any = None
        self._tensors: dict[str, Any] = {}

    def describe(self, path: Path) -> dict[str, Described]:
        self._read(path)
        return {name: Described(t.dtype, tuple(t.shape), t.layout) for name, t in self._tensors.items()}

    def dense(self, path: Path, name: str) -> bytes:
        self._read(path)
        return self._tensors[name].data

    def product(self, path: Path, name: str, x: np.ndarray) -> bytes:
        self._read(path)
        return self._module.multiply_tensor(self._container, self._container.names[name], x).tobytes()

    def scaled(self, path: Path, product: dict[str, str]) -> bytes:
        self._read(path)
        try:
            return self._module.multiply_scaled(self._container, self._module.Product(**product))
        except self._module.Fault as fault:
            raise Refused(fault.code) from None

    def _read(self, path: Path) -> None:
        if path == self._path:
            return
        data = path.read_bytes()
        try:
            self._tensors, self._container = self._module.read(data), self._module.open_container(data)
        except self._module.Fault as fault:
            raise Refused(fault.code) from None
        self._path = path


class Program(Reader):
    """A program with the interface of sparsefmt_cat."""

    def __init__(self, command: tuple[str, ...]) -> None:
        self._command = command

    def describe(self, path: Path) -> dict[str, Described]:
        return described_by(self._run(path).decode())

    def dense(self, path: Path, name: str) -> bytes:
        return self._run(path, name)

    def product(self, path: Path, name: str, x: np.ndarray) -> bytes:
        return self._run("--matvec", path, name, given=x.tobytes())

    def scaled(self, path: Path, product: dict[str, str]) -> bytes:
        return self._run("--scaled", path, *(f"{name}={value}" for name, value in product.items()))

    def _run(self, *arguments: str | Path, given: bytes = b"") -> bytes:
        done = subprocess.run([*self._command, *map(str, arguments)], input=given, capture_output=True, check=False)
        if done.returncode == 0:
            return done.stdout
        said = done.stderr.decode(errors="replace").strip()
        if done.returncode != 1 or not re.match(r"[a-z0-9-]+: ", said):
            raise RuntimeError(f"{self._command[0]} exited with {done.returncode} and said {said[:300]!r}")
        raise Refused(said.split(":")[0])


class JavaScript(Reader):
    """spec/js/reader.js, in one process of Node that answers a line of JSON with another (spec/js/sparsefmt_cat.js)."""

    def __init__(self, node: str) -> None:
        command = [node, str(ROOT / "spec" / "js" / "sparsefmt_cat.js"), "--answer"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def describe(self, path: Path) -> dict[str, Described]:
        return described_by(self._ask(path)["text"])

    def dense(self, path: Path, name: str) -> bytes:
        return base64.b64decode(self._ask(path, name)["bytes"])

    def product(self, path: Path, name: str, x: np.ndarray) -> bytes:
        return base64.b64decode(self._ask(path, name, base64.b64encode(x.tobytes()).decode())["bytes"])

    def scaled(self, path: Path, product: dict[str, str]) -> bytes:
        return base64.b64decode(self._ask(path, product)["bytes"])

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _ask(self, path: Path, *more: str | dict[str, str]) -> dict[str, str]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(path), *more]).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process ended with {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise Refused(answer["error"])
        return answer


def described_by(listed: str) -> dict[str, Described]:
    """What a program of the interface of sparsefmt_cat lists: all tensors by name."""
    lines = [line.split("\t") for line in listed.splitlines()]
    return {
        re.sub(r"\\x(..)", lambda code: chr(int(code[1], 16)), name): Described(dtype, tuple(json.loads(shape)), layout)
        for name, dtype, shape, layout, *_ in lines
    }
