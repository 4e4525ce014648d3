"""An index that is coded by zstd: where it is, what it may become, and that nothing is allocated on its word."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import zstandard
from helpers import weights

import sparsefmt
from sparsefmt.container import coded_index
from sparsefmt.errors import FormatError, LimitError
from sparsefmt.limits import MAX_CODED_INDEX_BYTES, MAX_INDEX_RATIO
from tools.taken_apart import join, split, split_as_stored

TENSORS = {f"layers.{n}.weight": weights(np.random.default_rng(n), (40, 60), np.float32, 0.8) for n in range(20)}


@pytest.mark.parametrize(("codec", "is_coded"), [("raw", False), ("rans", False), ("zstd", True), ("auto", True)])
def test_it_is_coded_unless_the_user_names_a_codec_that_others_have(codec, is_coded):
    data = sparsefmt.save(TENSORS, codec=codec)
    _, stored = split_as_stored(data)
    assert stored.startswith(zstandard.FRAME_HEADER) == is_coded
    assert is_coded == (len(stored) < len(split(data)[1]))
    assert sparsefmt.load(join(*split(data))).keys() == TENSORS.keys()


@pytest.mark.parametrize("index", [b"", b"\x80", bytes(100), np.random.default_rng(0).bytes(10_000), b"ab" * 5000])
def test_what_is_encoded_is_decoded(index):
    stored = coded_index.encode(index)
    assert len(stored) <= max(len(index), coded_index.SMALLEST)
    assert coded_index.decode(stored) == index


def test_what_becomes_more_than_readers_take_stays_as_it_is():
    zeros = bytes(1 << 20)
    assert coded_index.encode(zeros) is zeros
    data = sparsefmt.save(TENSORS, {"text": "a" * (1 << 20)}, codec="zstd")
    assert split_as_stored(data) == split(data)
    assert sparsefmt.load(data).keys() == TENSORS.keys()


def coded(index: bytes, **options: object) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(index)


def noise(size: int) -> bytes:
    return np.random.default_rng(1).bytes(size)


@pytest.mark.parametrize(
    "stored",
    [
        zstandard.FRAME_HEADER,
        coded(noise(100))[:-1],
        coded(noise(100)) + b"\0",
        coded(noise(100)) + coded(b""),
        coded(noise(100), write_content_size=False),
        coded(noise(20))[:31],
        coded(bytes(1 << 16)).ljust(40, b"\0"),
    ],
)
def test_other_frames_are_refused(stored):
    with pytest.raises(FormatError) as caught:
        coded_index.decode(stored)
    assert caught.value.code == "index-frame"


@pytest.mark.parametrize(
    ("claimed", "code"),
    [(MAX_CODED_INDEX_BYTES + 1, "index-size"), (MAX_CODED_INDEX_BYTES, "index-frame"), (1 << 62, "index-size")],
)
def test_a_claim_takes_no_memory(claimed, code):
    frame = zstandard.FRAME_HEADER + bytes([0xE0]) + claimed.to_bytes(8, "little") + bytes(1000)
    tracemalloc.start()
    with pytest.raises((FormatError, LimitError)) as caught:
        coded_index.decode(frame)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.code == code
    assert peak < 1 << 16


def test_the_greatest_ratio():
    """Of what a reader takes, to the byte."""
    zeros = next(
        size for size in range(10_000, 40_000) if MAX_INDEX_RATIO * len(coded(noise(500) + bytes(size))) <= 500 + size
    )
    fits, too_much = (coded(noise(500) + bytes(size)) for size in (zeros - 1, zeros + MAX_INDEX_RATIO))
    assert len(coded_index.decode(fits)) == 500 + zeros - 1
    with pytest.raises(FormatError):
        coded_index.decode(too_much)
