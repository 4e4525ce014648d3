"""Runs a reader over spec/vectors/ and compares what it finds with the manifest (spec/conformance.md).

    python -m tools.vectors.conformance sparsefmt                this library
    python -m tools.vectors.conformance numpy                    spec/python/reader.py
    python -m tools.vectors.conformance javascript               spec/js/reader.js, in Node
    python -m tools.vectors.conformance -- ./sparsefmt_cat       a program with the interface of sparsefmt_cat
    python -m tools.vectors.conformance --without zstd --without index-frame -- ./sparsefmt_cat
    python -m tools.vectors.conformance --vectors large -- ./sparsefmt_cat     what `make --large large` wrote

A program is called as `PROGRAM FILE`, which lists names, dtypes, shapes and layouts between tabs; as `PROGRAM FILE
TENSOR`, which writes dense bytes; as `PROGRAM --matvec FILE TENSOR`, which multiplies by the vector on standard input;
and as `PROGRAM --scaled FILE NAME=VALUE ...`, which multiplies a scaled weight by tensors of the file. On an error it
writes `CODE: message` to standard error and exits with 1.

Prints what differs, and exits with 1 if anything does.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import click
import numpy as np
from rich.console import Console
from rich.progress import track

import sparsefmt
from sparsefmt.checkpoints.scales import checked_input_scale, checked_scales, scales_in
from sparsefmt.dtypes import DTYPES, SUMMED_IN_DOUBLE, dtype_of
from sparsefmt.shapes import matrix_view
from tools import ROOT
from tools.vectors.make import FOLDER, activations, dense_bytes, sha256_of
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

    multiplies_scaled = False

    def __init__(self, node: str) -> None:
        command = [node, str(ROOT / "spec" / "js" / "sparsefmt_cat.js"), "--answer"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def describe(self, path: Path) -> dict[str, Described]:
        return described_by(self._ask(path)["text"])

    def dense(self, path: Path, name: str) -> bytes:
        return base64.b64decode(self._ask(path, name)["bytes"])

    def product(self, path: Path, name: str, x: np.ndarray) -> bytes:
        return base64.b64decode(self._ask(path, name, base64.b64encode(x.tobytes()).decode())["bytes"])

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _ask(self, path: Path, *more: str) -> dict[str, str]:
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


@dataclass
class Result:
    """What was compared, and what differed."""

    files: int = 0
    refused: int = 0
    tensors: int = 0
    products: int = 0
    scaled: int = 0
    differences: list[str] = field(default_factory=list)

    def expect(self, what: str, found: object, expected: object) -> None:
        if found != expected:
            self.differences.append(f"{what}: {found}, where {expected} is right")


def check_good(reader: Reader, path: Path, expected: dict[str, Any], result: Result) -> None:
    """A file that a reader must read."""
    tensors = {**expected["tensors"]}
    tensors |= {name: tensors[target] for name, target in expected["aliases"].items()}
    found = reader.describe(path)
    result.expect(f"{path.name}: names", sorted(found), sorted(tensors))
    for name, tensor in tensors.items():
        what = f"{path.name}: {name!r}"
        shape = tuple(tensor["shape"])
        result.expect(what, found.get(name), Described(tensor["dtype"], shape, tensor["layout"]))
        result.expect(what, hashlib.sha256(reader.dense(path, name)).hexdigest(), tensor["sha256"])
        result.tensors += 1
        if tensor["product_sha256"]:
            dtype = np.dtype("<f8" if tensor["dtype"] in SUMMED_IN_DOUBLE else "<f4")
            x = activations(matrix_view(shape, tensor.get("row_dims", 1))[1]).astype(dtype)
            y = np.frombuffer(reader.product(path, name, x), dtype).copy()
            y[np.isnan(y)] = np.nan
            digest = hashlib.sha256(y.tobytes()).hexdigest()
            result.expect(f"{what}, product", digest, tensor["product_sha256"])
            result.products += 1
    for product in expected.get("products", ()) if reader.multiplies_scaled else ():
        check_scaled(reader, path, product, result)


def check_scaled(reader: Reader, path: Path, product: dict[str, str], result: Result) -> None:
    """A product of a scaled weight."""
    given = {name: value for name, value in product.items() if name not in ("sha256", "error")}
    try:
        found = {"sha256": sha256_of(reader.scaled(path, given), product["result"])}
    except Refused as refused:
        found = {"error": str(refused)}
    result.expect(f"{path.name}: {given}", given | found, product)
    result.scaled += 1


def outcome(reader: Reader, path: Path) -> str:
    """The code of the error that a file gives, when it is opened or its tensors are read."""
    try:
        for name in reader.describe(path):
            reader.dense(path, name)
    except Refused as refused:
        return str(refused)
    return "no error"


def check_file(reader: Reader, path: Path, name: str, expected: dict[str, Any], result: Result) -> None:
    """A file of the kit, of which the manifest has `expected` under its name."""
    result.files += 1
    try:
        if "error" in expected:
            result.refused += 1
            result.expect(name, outcome(reader, path), expected["error"])
        else:
            check_good(reader, path, expected, result)
    except Refused as refused:
        result.differences.append(f"{name}: refused with {refused}")
    except RuntimeError as error:
        result.differences.append(f"{name}: {error}")


def run(reader: Reader, folder: Path, without: tuple[str, ...] = ()) -> Result:
    """Compare a reader with the manifest of a folder. `without`: files with one of these in their path are left out."""
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    result = Result()
    for name in track(sorted(manifest), "reading", console=Console(stderr=True), transient=True):
        if any(part in name for part in without):
            continue
        check_file(reader, folder / name, name, manifest[name], result)
    return result


@click.command(help=(__doc__ or "").replace("\n\n    python", "\n\n\b\n    python"))
@click.argument("reader", nargs=-1, required=True)
@click.option("--vectors", type=click.Path(exists=True, file_okay=False, path_type=Path), default=FOLDER)
@click.option("--without", multiple=True, metavar="PART", help="Leave out files with this in their path.")
def main(reader: tuple[str, ...], vectors: Path, without: tuple[str, ...]) -> None:
    builtin: dict[tuple[str, ...], Callable[[], Reader]] = {
        ("sparsefmt",): Library,
        ("numpy",): Numpy,
        ("javascript",): lambda: JavaScript("node"),
    }
    found = run(builtin[reader]() if reader in builtin else Program(reader), vectors, without)
    for difference in found.differences:
        print(difference)
    print(
        f"{' '.join(reader)}: {found.files} files, {found.refused} of them to be refused, {found.tensors:,} tensors and"
        f" {found.products:,} products, {found.scaled:,} of scaled weights: {len(found.differences)} differences"
    )
    sys.exit(1 if found.differences else 0)


if __name__ == "__main__":
    main()
