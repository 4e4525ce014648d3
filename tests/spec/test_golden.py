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

VECTORS = ROOT / "spec" / "vectors"
MANIFEST = json.loads((VECTORS / "manifest.json").read_text())
GOOD = [path for path in MANIFEST if Path(path).parent.name == "good"]
"""Files whose content follows from a formula. The others are in test_conformance.py."""


@cache
def made() -> dict[str, np.ndarray]:
    """All tensors of those files but the one with dropped signs."""
    names = ("tensors", "modelled", "edges", "streams", "wide", "far_apart")
    return {name: tensor for part in names for name, tensor in getattr(make_vectors, part)().items()}


@pytest.mark.parametrize("path", GOOD)
def test_good_files_hold_what_the_manifest_says(path):
    data = (VECTORS / path).read_bytes()
    assert make_vectors.manifest_of(data) == MANIFEST[path]
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
