"""What is wrong with a file, though its checksums are right, is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import sparsefmt
from sparsefmt.checkpoints.sparsefmt_file import SparsefmtFile
from sparsefmt.checkpoints.verification import Verifier
from sparsefmt.errors import FormatError


def test_forged_totals_are_found_by_verifying(tmp_path: Path) -> None:
    array = np.zeros((100, 100), np.float32)
    array[:, 0] = 1
    sparsefmt.save_file({"w": array}, tmp_path / "a.sparsefmt", layout="bitmask")
    with SparsefmtFile(tmp_path / "a.sparsefmt") as file:
        entry = file.reader.index.tensors["w"]
        object.__setattr__(entry, "nnz", 99)
        with pytest.raises(FormatError, match="99") as caught:
            Verifier().verify(file.reader, entry)
        assert caught.value.code == "nnz"
