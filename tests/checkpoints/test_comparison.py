"""What differs between two models is found and counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import sparsefmt
from sparsefmt.adapters import ArrayRows
from sparsefmt.checkpoints.comparison import compare_tensors
from sparsefmt.checkpoints.sparsefmt_file import SparsefmtFile
from sparsefmt.checkpoints.verification import Verifier


@pytest.mark.parametrize("signs", [False, True])
def test_comparison_finds_the_first_bit_and_counts(tmp_path: Path, signs: bool) -> None:
    array = np.zeros((3000, 700), np.float32)
    array[::3] = np.nan
    other = array.copy()
    other[1, 0] = -0.0
    other[2500, 699] = 5e-324
    other[2999] = np.frombuffer(b"\x01\x00\xc0\x7f", np.float32)
    sparsefmt.save_file({"w": other}, tmp_path / "b.sparsefmt", negative_zeros="drop" if signs else "keep")
    found = compare_tensors(ArrayRows(array), ArrayRows(other), threads=2)
    assert (found.elements, found.first, found.bits) == (701, 700, (0, 0x80000000))
    with SparsefmtFile(tmp_path / "b.sparsefmt") as file:
        entry = file.reader.index.tensors["w"]
        ours = Verifier(threads=2).verify(file.reader, entry, ArrayRows(other))
        theirs = Verifier(threads=2).verify(file.reader, entry, ArrayRows(array))
    assert ours == (0, -1, (0, 0), 1 if signs else 0)
    # with the signs dropped, 0.0 there is no difference any more; without, it is the first
    assert theirs[:2] == ((700, 2999 * 700) if signs else (701, 700))
