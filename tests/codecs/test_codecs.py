"""Codecs: lossless, never changing their input, refusing whatever is not exactly what they wrote."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
import zstandard
from helpers import check_codec_round_trip
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefmt.codecs import CODECS
from sparsefmt.codecs.contract import ArrayInfo
from sparsefmt.errors import FormatError


@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=400), repeat=st.sampled_from([1, 50]), width=st.sampled_from([1, 2, 4, 8]))
def test_round_trip(name, data, repeat, width):
    raw = np.frombuffer(data * repeat, np.uint8)
    raw = raw[: raw.size // width * width]
    if raw.size or name != "rans":  # a chunk without bytes is never coded
        check_codec_round_trip(CODECS[name], raw, ArrayInfo(width, 1, raw.size // width))


def test_zstd_stores_byte_planes():
    raw = np.arange(600, dtype=np.uint32).view(np.uint8)
    planes = zstandard.decompress(CODECS["zstd"].coder(b"", ArrayInfo(4, 1, 600)).encode(raw, None))
    assert planes == b"".join(raw[byte::4].tobytes() for byte in range(4))


def decode(stored: bytes, size: int) -> np.ndarray:
    out = np.zeros(size, np.uint8)
    CODECS["zstd"].coder(b"", ArrayInfo(1, 1, size)).decode(np.frombuffer(stored, np.uint8), None, out)
    return out


FRAME = zstandard.ZstdCompressor().compress(b"abc" * 100)


@pytest.mark.parametrize(
    ("stored", "code"),
    [
        (b"", "zstd-corrupt"),
        (b"not zstd at all", "zstd-corrupt"),
        (FRAME[:-1], "zstd-corrupt"),
        (FRAME + b"\0", "zstd-corrupt"),
        (FRAME + FRAME, "zstd-corrupt"),
        (FRAME[:8] + bytes([FRAME[8] ^ 0xFF]) + FRAME[9:], "zstd-corrupt"),
        (zstandard.ZstdCompressor().compress(b"abc" * 101), "zstd-size"),
        (zstandard.ZstdCompressor(write_content_size=False).compress(b"abc" * 100), "zstd-size"),
        (zstandard.ZstdCompressor().compress(b""), "zstd-size"),
    ],
)
def test_zstd_refuses(stored, code):
    with pytest.raises(FormatError) as caught:
        decode(stored, 300)
    assert caught.value.code == code


def test_any_changed_byte_is_refused_or_decodes_within_its_size():
    for position in range(len(FRAME)):
        for flip in (1, 0x80, 0xFF):
            changed = bytearray(FRAME)
            changed[position] ^= flip
            with suppress(FormatError):
                assert decode(bytes(changed), 300).size == 300
