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

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import track

from sparsefmt.dtypes import SUMMED_IN_DOUBLE
from sparsefmt.shapes import matrix_view
from tools.vectors.make import FOLDER, activations, sha256_of
from tools.vectors.readers import Described, JavaScript, Library, Numpy, Program, Reader, Refused


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
