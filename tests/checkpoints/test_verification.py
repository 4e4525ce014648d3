"""What is wrong with a file, though its checksums are right, is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from helpers import run_command

import sparsefmt
from sparsefmt.adapters import ArrayRows
from sparsefmt.checkpoints.comparison import Difference
from sparsefmt.checkpoints.sparsefmt_file import SparsefmtFile
from sparsefmt.checkpoints.verification import Verified, Verifier
from sparsefmt.errors import ChecksumError, FormatError


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


@pytest.mark.parametrize("threads", [1, 3])
def test_a_fault_does_not_stop_what_comes_after_it(threads: int, tmp_path: Path) -> None:
    """Many small tensors and one of several tiles, worked on at a time; one small one and a tile are damaged."""
    rng = np.random.default_rng(0)
    arrays = {f"t{n:02}": rng.standard_normal((40, 30 + n), np.float32) for n in range(20)}
    arrays["large"] = rng.standard_normal((3000, 1000), np.float32)
    arrays["last"] = rng.standard_normal((40, 30), np.float32)
    others = {name: array.copy() for name, array in arrays.items()}
    others["t07"][3, 4] = 5
    path = tmp_path / "a.sparsefmt"
    sparsefmt.save_file(arrays, path, codec="raw")
    content = bytearray(path.read_bytes())
    for name, place in (("t05", 100), ("large", 9_000_000)):
        at = content.find(arrays[name].tobytes()[place : place + 64])
        assert at > 0
        content[at] ^= 1
    path.write_bytes(content)
    with SparsefmtFile(path) as file:
        entries = file.reader.index.tensors
        tensors = [Verified(file.reader, entries[name], ArrayRows(others[name])) for name in arrays]
        found = dict(zip(arrays, Verifier(threads=threads).verify_all(tensors), strict=True))
    faults = {name: result for name, result in found.items() if isinstance(result, ChecksumError)}
    assert set(faults) == {"t05", "large"}
    assert all(f"'{name}'" in str(fault) for name, fault in faults.items())
    assert found["t07"][:2] == (1, 3 * 37 + 4)
    assert {name for name, result in found.items() if result != Difference()} == {*faults, "t07"}


@pytest.mark.parametrize("kind", ["safetensors", "sparsefmt"])
def test_a_stack_is_compared_with_what_is_none(tmp_path, kind):
    """Other rows have other columns, and the same elements."""
    weight = np.random.default_rng(0).standard_normal((3, 40, 64)).astype(np.float32)
    weight[np.random.default_rng(1).random(weight.shape) < 0.5] = 0
    changed = weight.copy()
    changed[1, 2, 3] += 1
    for row_dims, other in ((2, 1), (1, 2)):
        path, against = tmp_path / f"{row_dims}.sparsefmt", tmp_path / f"{row_dims}.other.{kind}"
        sparsefmt.save_file({"w": weight}, path, row_dims=row_dims)
        for theirs, fault in ((weight, None), (changed, "1 of 7,680 elements differ, first at [1, 2, 3]")):
            if kind == "safetensors":
                safetensors.numpy.save_file({"w": theirs}, against)
            else:
                sparsefmt.save_file({"w": theirs}, against, row_dims=other)
            result = run_command("verify", str(path), "--against", str(against))
            assert result.exit_code == (0 if fault is None else 1), result.output
            assert fault is None or fault in result.output
