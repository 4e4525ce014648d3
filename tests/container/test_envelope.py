""".sparsefmt files as accidents leave them: cut off, too long, or with zeros in the place of their end."""

from __future__ import annotations

import numpy as np
import pytest

import sparsefmt
from sparsefmt import FormatError
from sparsefmt.container import envelope


@pytest.fixture(scope="module")
def whole() -> bytes:
    return sparsefmt.save({"w": np.random.default_rng(0).standard_normal((100, 100))})


def fault_of(data: bytes) -> str:
    with pytest.raises(FormatError) as caught:
        sparsefmt.load(data)
    assert caught.value.code in ("trailer-missing", "file-too-short", "not-sparsefmt")
    return str(caught.value)


def test_sparsefmt_files_that_were_cut_off(whole):
    for size in range(16 + 20, len(whole), 997):
        message = f"the file is cut off, or was never finished: it has {size:,} bytes and no trailer"
        assert message in fault_of(whole[:size])
    assert f"it has {len(whole) - 1:,} bytes" in fault_of(whole[:-1])
    for size in (8, 15, 16, 20, 35):
        assert f"the file is cut off: it ends after {size} bytes" in fault_of(whole[:size])


@pytest.mark.parametrize("more", [1, 31, 32, 33, 4096, 65000])
def test_sparsefmt_files_with_bytes_behind_their_end(more, whole):
    for content in (b"\n", b"\xff"):
        message = f"the file is too long: it ends after {len(whole):,} bytes, and {more:,} more follow"
        assert message in fault_of(whole + content * more)


def test_sparsefmt_files_that_end_with_zeros(whole):
    """As a file has them that was made in its full size before it was downloaded."""
    cut = whole[:1001].rstrip(b"\0") + b"x"
    assert "its last bytes, 100, are zeros, as a download" in fault_of(cut + bytes(100))
    assert f"its last bytes, at least {envelope.TAIL_SIZE:,}, are zeros" in fault_of(cut + bytes(1 << 20))


def test_a_cut_off_file_from_the_disk(tmp_path, whole):
    path = tmp_path / "model.sparsefmt"
    path.write_bytes(whole[:5000])
    for backend in ("mmap", "pread"):
        with pytest.raises(FormatError, match="it has 5,000 bytes and no trailer"):
            sparsefmt.load_file(path, backend=backend)
