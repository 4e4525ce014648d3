"""The conformance kit: readers pass it, and readers that are wrong do not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import naive
import numpy as np
import pytest
from helpers import ROOT, first_always

import sparsefmt
from sparsefmt.dtypes import DTYPES
from tools import forms
from tools.fuzz import c_process
from tools.vectors import conformance as kit
from tools.vectors import make as vectors
from tools.vectors import readers
from tools.vectors.faults import FAULTS

pytestmark = pytest.mark.slow

VECTORS = ROOT / "spec" / "vectors"
MANIFEST = json.loads((VECTORS / "manifest.json").read_text())


EVERY_TYPE = {
    *(f"good/{layout}-{codec}.sparsefmt" for layout in forms.LAYOUTS for codec in ("raw", "zstd", "rans")),
    *(f"good/scaled-{layout}-raw.sparsefmt" for layout in forms.LAYOUTS),
}
"""Files of every dtype and shape. Their products need a kernel for each. test_golden.py always loads them."""


def test_the_library():
    """It finds in most vectors what the manifest says; in thorough runs, in each: see below."""
    result = kit.run(kit.Library(), VECTORS, tuple(EVERY_TYPE))
    assert set(MANIFEST) > EVERY_TYPE
    assert result.differences == []
    assert result.files == len(MANIFEST) - len(EVERY_TYPE)


@pytest.mark.thorough
@pytest.mark.parametrize("reader", [kit.Library, kit.Numpy])
def test_readers_in_python(reader):
    """Both find in each vector what the manifest says, and so the same.

    test_golden.py has the library load good ones in every layout; test_spec_reader.py makes the bad ones anew and has
    both read them from memory.
    """
    result = kit.run(reader(), VECTORS)
    assert result.differences == []
    assert result.files > 300
    assert result.refused > 250
    assert result.tensors > result.products > 1000
    products = [product for expected in MANIFEST.values() for product in expected.get("products", ())]
    assert result.scaled == len(products) > 600
    refused = {product["error"] for product in products if "error" in product}
    assert len(refused) == 7  # the codes of SPEC.md, section 6.3


@pytest.mark.skipif(c_process.compiler() is None, reason="no C compiler")
@pytest.mark.parametrize("with_zstd", [True, False])
def test_reader_in_c(with_zstd, tmp_path):
    """Built without libzstd, it reads all but what codec zstd has coded; built with it, these.

    That the header reads the others with libzstd, too, is what test_c_reader.py has of check_reader.c, which reads all.
    Files of every dtype and shape take a thousand processes each; here, there is one of them for each codec, and those
    with scaled weights are in `test_scaled_weights_in_c`.
    """
    scaled = {f"good/scaled-{layout}-raw.sparsefmt" for layout in forms.LAYOUTS}
    every = scaled | {
        f"good/{layout}-{codec}.sparsefmt" for layout in forms.LAYOUTS for codec in ("raw", "zstd", "rans")
    }
    every -= {"good/permuted-raw.sparsefmt", "good/dense-zstd.sparsefmt", "good/bitmask-rans.sparsefmt"}
    names = set(MANIFEST)
    assert every < names
    coded = ("zstd", "big", "coded-", "index-frame")  # which conformance.md names
    others = tuple(name for name in names if not any(part in name for part in coded))
    without = {*others, *every} if with_zstd else {*coded, *every}
    zstd = c_process.find_zstd() if with_zstd else None
    if with_zstd and zstd is None:
        pytest.skip("no libzstd")
    program = tmp_path / "sparsefmt_cat"
    c_process.build("sparsefmt_cat.c", program, ["-O1"], zstd)
    result = kit.run(kit.Program((str(program),)), VECTORS, tuple(without))
    assert result.differences == []
    assert result.files == len((names.difference(others) if with_zstd else set(others)) - every)
    assert result.files > (20 if with_zstd else 200)


@pytest.mark.skipif(c_process.compiler() is None, reason="no C compiler")
@pytest.mark.parametrize(
    "flags",
    first_always([["-std=gnu17", "-O2", "-march=native", "-ffp-contract=fast"], ["-O1"], ["-DSPARSEFMT_PORTABLE"]]),
)
def test_scaled_weights_in_c(flags, tmp_path):
    """Also where the compiler would rather make one fma of a product and a sum."""
    program = tmp_path / "sparsefmt_cat"
    c_process.build("sparsefmt_cat.c", program, flags, None)
    reader, result = kit.Program((str(program),)), kit.Result()
    for layout in forms.LAYOUTS:
        path = VECTORS / "good" / f"scaled-{layout}-raw.sparsefmt"
        for product in MANIFEST[f"good/{path.name}"]["products"]:
            kit.check_scaled(reader, path, product, result)
    assert result.differences == []
    assert result.scaled > 600


def test_products_of_scaled_weights_are_those_of_a_loop():
    """What the manifest has was computed by spec/python: the naive reference finds the same."""
    path, compared = VECTORS / "good" / "scaled-bitmask-raw.sparsefmt", 0
    with sparsefmt.open_file(path) as file:
        tensors = {name: file.get_tensor(name) for name in file}
        scales = readers.scales_of(file)
    for product in MANIFEST["good/scaled-bitmask-raw.sparsefmt"]["products"]:
        weight = tensors[product["weight"]]
        q = weight.reshape(len(weight), -1 if weight.size else 0 if weight.ndim < 2 else weight.shape[1])
        y = naive.scaled_linear_oracle(
            q,
            tensors[scales[product["weight"]]],
            tensors[product["x"]],
            bias=tensors.get(product.get("bias")),
            activations=product.get("activations"),
            input_scale=tensors[product["input_scale"]].item() if "input_scale" in product else None,
            result=DTYPES[product["result"]].numpy,
        )
        assert vectors.sha256_of(y.tobytes(), product["result"]) == product["sha256"], product
        compared += 1
    assert compared > 150


class Wrong(kit.Library):
    """Wrong in one way for each kind of thing that the kit compares."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self._how = how

    def describe(self, path):
        found = super().describe(path)
        return (
            {name: kit.Described("F32", *rest) for name, (_, *rest) in found.items()} if self._how == "dtype" else found
        )

    def dense(self, path, name):
        data = super().dense(path, name)
        return data[:-1] + b"\xaa" if self._how == "bytes" and data else data

    def product(self, path, name, x):
        return super().product(path, name, x[::-1].copy() if self._how == "product" else x)

    def scaled(self, path, product):
        if self._how == "scaled":
            product = {key: value for key, value in product.items() if key != "bias"}
        return super().scaled(path, product)


@pytest.mark.parametrize("how", ["dtype", "bytes", "product", "scaled"])
def test_wrong_readers(how):
    """test_readers_in_python has the same reader without the fault, in which there is no difference."""
    without = ("bad/", "zstd", "rans", "/odd/")
    assert len(kit.run(Wrong(how), VECTORS, without).differences) > 50


def test_a_program_that_dies_and_one_that_reads_anything(tmp_path):
    script = tmp_path / "reader.py"
    others = ("good/", *(f"bad/{letter}" for letter in "cdfilmnprz"))
    for body, said in (("import os; os.abort()", "exited with"), ("pass", "no error")):
        script.write_text(body)
        result = kit.run(kit.Program((sys.executable, "-S", str(script))), VECTORS, others)
        assert result.files == len(result.differences) > 10
        assert all(said in difference for difference in result.differences)


def test_large_files(tmp_path):
    """Of those that are not kept, some; all are in test_spec_reader.py."""
    some = [fault for fault in FAULTS if fault.code == "rans-model"]
    made = {vectors.path_of(fault): fault.file() for fault in some}
    files = {path: data for path, data in made.items() if vectors.KEPT_BYTES < len(data) < 1 << 20}
    vectors.write({**files, "manifest.json": vectors.json_of(vectors.manifest(files)).encode()}, tmp_path)
    result = kit.run(kit.Library(), tmp_path)
    assert result.files == len(files) >= 2
    assert result.differences == []


def test_activations():
    """As spec/conformance.md says, with Python's integers."""
    expected = [((j * 2654435761 % 2**32) >> 8) / 2**24 - 0.5 for j in range(1000)]
    assert np.array_equal(kit.activations(1000).astype(np.float64), expected)
    assert Path(ROOT / "spec" / "conformance.md").read_text().count("2654435761") == 1
