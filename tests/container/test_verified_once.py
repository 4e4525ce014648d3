"""Tiles that are the same memory each time are verified once; others each time they are read."""

from __future__ import annotations

import numpy as np
import pytest

import sparsefmt
from sparsefmt.container import envelope


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what is verified, as that goes on."""
    sizes, checksum = [], envelope.checksum

    def counted(data, *rest):
        sizes.append(len(data))
        return checksum(data, *rest)

    monkeypatch.setattr(envelope, "checksum", counted)
    return sizes


@pytest.mark.parametrize("backend", ["mmap", "pread"])
@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_slices(tmp_path, verified, backend, codec):
    weight = np.random.default_rng(0).standard_normal((600, 512)).astype(np.float32)
    weight[np.random.default_rng(1).random(weight.shape) < 0.5] = 0
    path = tmp_path / "w.sparsefmt"
    sparsefmt.save_file({"w": weight}, path, codec=codec, layout="bitmask")
    with sparsefmt.open_file(path, backend=backend) as file:
        verified.clear()
        for begin in range(0, 512, 128):
            assert np.array_equal(file.get_slice("w")[:, begin : begin + 128], weight[:, begin : begin + 128])
            if not begin:
                once = len(verified)
        assert once > 0
        assert len(verified) == (once if (backend, codec) == ("mmap", "raw") else 4 * once)
        assert np.array_equal(file.get_tensor("w"), weight)


def test_what_is_damaged_is_found_each_time(tmp_path):
    path = tmp_path / "w.sparsefmt"
    sparsefmt.save_file({"w": np.arange(1, 90_001, dtype=np.int32).reshape(300, 300) % 2}, path, codec="raw")
    data = bytearray(path.read_bytes())
    data[2_000] ^= 1
    path.write_bytes(data)
    with sparsefmt.open_file(path) as file:
        for _ in range(3):
            with pytest.raises(sparsefmt.ChecksumError):
                file.get_slice("w")[:, 5:7]
