"""tools/bench/patterns.py: it makes masks that have the patterns by whose names it calls them, and times them all."""

from __future__ import annotations

import numpy as np
from click.testing import CliRunner

from sparsefmt import SparseTensor
from tools.bench import patterns as bench


def test_masks_are_what_they_are_called():
    found = {
        kind: SparseTensor.from_dense(mask.astype(np.float32)).pattern().label
        for kind, mask in bench.masks(256, 256).items()
    }
    assert found == {
        "no zeros": "dense",
        "50 % at random": "unstructured",
        "80 % at random": "unstructured",
        "99 % at random": "unstructured",
        "2:4": "2:4",
        "4x4 blocks": "4x4 blocks",
        "4x4 blocks, 0.1 % off": "4x4 blocks",
        "heads": "heads of 16 rows",
        "columns": "columns",
        "a triangle": "lower triangular",
    }


def test_each_has_a_row():
    options = ["--shape", "64x128", "--tiny", "16x64", "--tensors", "2", "--rounds", "3"]
    result = CliRunner().invoke(bench.main, options, env={"COLUMNS": "140"})
    assert result.exit_code == 0, result.output
    assert all(kind in result.output for kind in bench.masks(64, 64))
    assert "is not of the form" in CliRunner().invoke(bench.main, ["--shape", "64"]).output
