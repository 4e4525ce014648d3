"""Old files stay readable, and new ones are written as before: the files of spec/vectors/good/."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, dense, same_bits

import sparsefmt
from tools.vectors import make as make_vectors
from tools.vectors import scaled

VECTORS = ROOT / "spec" / "vectors"
MANIFEST = json.loads((VECTORS / "manifest.json").read_text())
GOOD = [path for path in MANIFEST if Path(path).parent.name == "good"]
"""Files whose content follows from a formula. The others are in test_conformance.py."""


@cache
def made() -> dict[str, np.ndarray]:
    """All tensors of those files but the one with dropped signs."""
    names = ("tensors", "modelled", "edges", "streams", "wide", "far_apart")
    found = {name: tensor for part in names for name, tensor in getattr(make_vectors, part)().items()}
    return found | scaled.tensors_of(scaled.cases() | scaled.long())


@pytest.mark.parametrize("path", GOOD)
def test_good_files_hold_what_the_manifest_says(path):
    data = (VECTORS / path).read_bytes()
    products = {key: value for key, value in MANIFEST[path].items() if key == "products"}  # test_conformance.py
    assert make_vectors.manifest_of(data) | products == MANIFEST[path]
    for layout in ("auto", "dense", "bitmask", "permuted"):
        loaded = sparsefmt.load(data, layout=layout)
        if "dropped" in path:
            cleared = np.where(made()["zeros/4"] == 0, np.float32(0), made()["zeros/4"])
            assert same_bits(dense(loaded["w"]), cleared)
            continue
        for name, tensor in loaded.items():
            assert same_bits(dense(tensor), made()[name]), name


def test_every_file_is_in_the_manifest():
    assert {path.relative_to(VECTORS).as_posix() for path in VECTORS.rglob("*.sparsefmt")} == set(MANIFEST)
    assert len(GOOD) > 10


def test_the_writer_still_writes_them():
    assert make_vectors.differences(make_vectors.make()) == []
