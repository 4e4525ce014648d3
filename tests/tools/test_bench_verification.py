"""The benchmark of verification takes out all checks, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import sparsefmt
from tools.bench import verification as bench

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("codec", ["raw", "rans"])
def test_nothing_is_verified_meanwhile(codec: str, tmp_path: Path) -> None:
    weights = np.where(np.arange(64 * 96).reshape(64, 96) % 5, 0, 1.5).astype(np.float32)
    path = tmp_path / "a.sparsefmt"
    # small ones are stored as they are, with padding between
    small = {"a": np.array([1, 2, 3], np.uint8), "b": np.array([4], np.uint8)}
    sparsefmt.save_file({**small, "w": weights}, path, layout="bitmask", codec=codec)
    with sparsefmt.open_file(path) as file:
        chunks = file.reader.index.chunks
        padded = chunks[chunks["padding"] > 0][0]
        end = int(padded["offset"] + padded["stored"])
    damaged = bytearray(path.read_bytes())
    damaged[end] ^= 1  # padding
    path.write_bytes(damaged)
    with bench.unverified():
        assert np.array_equal(sparsefmt.load_file(path)["w"].todense(), weights)
    with pytest.raises(sparsefmt.FormatError, match="padding"):
        sparsefmt.load_file(path)


def test_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sparsefmt.save_file({"w": np.eye(64, dtype=np.float32)}, tmp_path / "a.sparsefmt")
    bench.main.main(["--model", str(tmp_path / "a.sparsefmt"), "--rounds", "3"], standalone_mode=False)
    assert "a.sparsefmt" in capsys.readouterr().out
