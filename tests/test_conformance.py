"""The conformance kit: three readers pass it, and readers that are wrong do not."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT

from tools.fuzz import c_reader as fuzz
from tools.vectors import conformance as kit
from tools.vectors import make as vectors

pytestmark = pytest.mark.slow

VECTORS = ROOT / "spec" / "vectors"


@pytest.mark.parametrize("reader", [kit.Library, kit.Numpy])
def test_readers_in_python(reader):
    result = kit.run(reader(), VECTORS)
    assert result.differences == []
    assert result.files > 300
    assert result.refused > 250
    assert result.tensors > result.products > 1000


@pytest.mark.skipif(fuzz.compiler() is None, reason="no C compiler")
@pytest.mark.parametrize("with_zstd", [True, False])
def test_reader_in_c(with_zstd, tmp_path):
    """Built without libzstd, it reads all but what codec zstd has coded."""
    zstd = fuzz.find_zstd() if with_zstd else None
    if with_zstd and zstd is None:
        pytest.skip("no libzstd")
    program = tmp_path / "sparsefmt_cat"
    fuzz.build("sparsefmt_cat.c", program, ["-O1"], zstd)
    result = kit.run(
        kit.Program((str(program),)),
        VECTORS,
        () if with_zstd else ("zstd", "another-level", "window-of-the-raw-size", "with-checksum-"),
    )
    assert result.differences == []
    assert result.files > (300 if with_zstd else 200)


class Wrong(kit.Library):
    """Wrong in one way for each kind of thing that the kit compares."""

    def __init__(self, how: str) -> None:
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


@pytest.mark.parametrize("how", ["dtype", "bytes", "product"])
def test_wrong_readers(how):
    without = ("bad/", "zstd", "rans", "/odd/")
    assert len(kit.run(Wrong(how), VECTORS, without).differences) > 50
    assert not kit.run(kit.Library(), VECTORS, without).differences


def test_a_program_that_dies_and_one_that_reads_anything(tmp_path):
    script = tmp_path / "reader.py"
    for body, said in (("import os; os.abort()", "exited with"), ("pass", "no error")):
        script.write_text(body)
        result = kit.run(kit.Program((sys.executable, str(script))), VECTORS, ("good/", "/index-", "/chunk-", "/rans-"))
        assert result.files == len(result.differences) > 10
        assert all(said in difference for difference in result.differences)


def test_large_files(tmp_path):
    """Of those that are not kept, some; all are in test_spec_reader.py."""
    files = {path: data for path, data in vectors.faulty(large=True).items() if len(data) < 1 << 20}
    vectors.write({**files, "manifest.json": vectors.json_of(vectors.manifest(files)).encode()}, tmp_path)
    assert kit.run(kit.Library(), tmp_path).files == len(files) >= 3
    assert kit.run(kit.Library(), tmp_path).differences == []


def test_activations():
    """As spec/conformance.md says, with Python's integers."""
    expected = [((j * 2654435761 % 2**32) >> 8) / 2**24 - 0.5 for j in range(1000)]
    assert np.array_equal(kit.activations(1000).astype(np.float64), expected)
    assert Path(ROOT / "spec" / "conformance.md").read_text().count("2654435761") == 1
