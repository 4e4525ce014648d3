"""Faults of codec `zstd` (SPEC.md, section 5.2)."""

from __future__ import annotations

import numpy as np
import zstandard

from tools.taken_apart import TakenApart
from tools.vectors.faults.changes import changed, faults


def recompressed(compress):
    def change(file: TakenApart):
        values = file.array("values", "u4")
        planes = values.view(np.uint8).reshape(-1, 4).T.tobytes()
        file.chunks[file.number("values")] = (compress(planes), values.nbytes)

    return change


def compressed(data: bytes, **options) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)


def windowed(frame: bytes, log: int) -> bytes:
    """A frame that was a single segment, as one that states a window of 2^log bytes."""
    assert frame[4] & 0x20
    return frame[:4] + bytes([frame[4] & ~0x20, (log - 10) << 3]) + frame[5:]


def recompressed_rows(compress):
    """Of a mask, which has fewer bytes than the bits of its rows have."""

    def change(file: TakenApart):
        number = file.number("mask")
        stored, raw = file.chunks[number]
        rows = zstandard.decompress(stored)
        assert len(stored) < raw < len(rows) == 2048
        file.chunks[number] = (compress(rows), raw)

    return change


SKIPPABLE = b"\x50\x2a\x4d\x18\4\0\0\0skip"
DICTIONARY = zstandard.train_dictionary(2000, [np.random.default_rng(n).bytes(30) * 3 for n in range(2000)])
faults(
    "ok",
    "big dense",
    {
        "with checksum": recompressed(lambda data: compressed(data, write_checksum=True)),
        "another level": recompressed(lambda data: compressed(data, level=19)),
        "window of the raw size": recompressed(lambda data: windowed(compressed(data), 20)),
    },
)
faults(
    "zstd-size",
    "big dense",
    {
        "no content size": recompressed(lambda data: compressed(data, write_content_size=False)),
        "less": recompressed(lambda data: compressed(data[:-4])),
        "more": recompressed(lambda data: compressed(data + b"more")),
    },
)
faults(
    "zstd-corrupt",
    "big dense",
    {
        "no frame": recompressed(lambda data: b"no frame" * 50),
        "cut": recompressed(lambda data: compressed(data)[:-1]),
        "trailing byte": recompressed(lambda data: compressed(data) + b"\0"),
        "another frame": recompressed(lambda data: compressed(data) + compressed(b"")),
        "skippable frame": recompressed(lambda data: compressed(data) + SKIPPABLE),
        "dictionary": recompressed(lambda data: compressed(data, dict_data=DICTIONARY)),
        "skippable frame first": recompressed(lambda data: SKIPPABLE + compressed(data)),
        "window": recompressed(lambda data: windowed(compressed(data), 21)),
        "checksum": recompressed(lambda data: changed(compressed(data, write_checksum=True), -1, 1)),
        "reserved bit": recompressed(lambda data: changed(compressed(data), 4, 8)),
    },
)
faults(
    "ok",
    "tall mask zstd",
    {
        "another level of rows": recompressed_rows(lambda rows: compressed(rows, level=19)),
        "window of the size of the rows": recompressed_rows(lambda rows: windowed(compressed(rows), 11)),
    },
)
faults(
    "zstd-size",
    "tall mask zstd",
    {
        "the raw size": recompressed_rows(lambda rows: compressed(rows[: 9 * 1024 // 8])),
        "a row less": recompressed_rows(lambda rows: compressed(rows[:-2])),
    },
)
faults(
    "zstd-corrupt",
    "tall mask zstd",
    {
        "window over the size of the rows": recompressed_rows(lambda rows: windowed(compressed(rows), 12)),
        "bit of the next column": recompressed_rows(lambda rows: compressed(changed(rows, 1, 2))),
        "last bit": recompressed_rows(lambda rows: compressed(changed(rows, -1, 0x80))),
    },
)
