"""Old files stay readable, and new ones are written as before: the files of spec/vectors/good/."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import dense, same_bits

import sparsefmt

ROOT = Path(__file__).parent.parent
VECTORS = ROOT / "spec" / "vectors"
MANIFEST = json.loads((VECTORS / "manifest.json").read_text())


@pytest.fixture(scope="module")
def make_vectors():
    module_spec = importlib.util.spec_from_file_location("make_vectors", ROOT / "tools" / "make_vectors.py")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules["make_vectors"] = module
    module_spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", MANIFEST)
def test_good_files_hold_what_the_manifest_says(path, make_vectors):
    data = (VECTORS / path).read_bytes()
    assert make_vectors.manifest_of(data) == MANIFEST[path]
    for layout in ("auto", "dense", "bitmask", "permuted"):
        loaded = sparsefmt.load(data, layout=layout)
        expected = make_vectors.tensors()
        if "dropped" in path:
            cleared = np.where(expected["zeros/4"] == 0, np.float32(0), expected["zeros/4"])
            assert same_bits(dense(loaded["w"]), cleared)
            continue
        for name, tensor in loaded.items():
            assert same_bits(dense(tensor), expected[name]), name


def test_every_file_is_in_the_manifest():
    assert {str(path.relative_to(VECTORS)) for path in VECTORS.glob("good/*")} == set(MANIFEST)


def test_the_writer_still_writes_them(make_vectors):
    assert make_vectors.differences(make_vectors.make()) == []
