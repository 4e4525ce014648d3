"""A file taken apart and laid out again: the same bytes if nothing was changed, else checksums that are right."""

from __future__ import annotations

import struct
from functools import cache

import msgpack
import numpy as np
import pytest
from helpers import CODECS, ROOT, weights
from outcomes import outcome_of_library

import sparsefmt
from sparsefmt.container import envelope
from sparsefmt.layouts import LAYOUTS
from tools.taken_apart import (
    END_MAGIC,
    Encoded,
    TakenApart,
    canonical,
    encoded,
    join,
    mended,
    places,
    preamble,
    split,
    split_and_decode,
    split_as_stored,
)

WEIGHT = weights(np.random.default_rng(0), (20, 70), np.float32, 0.7, True)
KINDS = [f"{layout} {codec}" for layout in LAYOUTS for codec in CODECS]


@cache
def file_of(kind: str) -> bytes:
    layout, codec = kind.split()
    return sparsefmt.save({"w": WEIGHT, "v": WEIGHT[0]}, {"a": "b"}, layout=layout, codec=codec)


@pytest.fixture(params=KINDS)
def data(request: pytest.FixtureRequest) -> bytes:
    return file_of(request.param)


def code_of(data: bytes) -> str:
    with pytest.raises(sparsefmt.SparsefmtError) as caught:
        sparsefmt.load(data)
    return caught.value.code


def test_what_is_not_changed_is_laid_out_as_it_was(data):
    assert mended(data) == join(*split_as_stored(data)) == data
    plain = join(*split(data))
    assert bytes(TakenApart(data)) == bytes(TakenApart(plain)) == plain
    before, index = split_and_decode(data)
    assert join(before, encoded(index)) == plain
    parts = TakenApart(data)
    parts.is_coded = True
    assert sparsefmt.load(bytes(parts)).keys() == {"v", "w"}
    assert split(bytes(parts)) == split(data)


def test_all_good_vectors_are_laid_out_as_they_were():
    """But for an index that is coded, which is laid out as it is."""
    paths = list((ROOT / "spec" / "vectors" / "good").glob("*.sparsefmt"))
    assert len(paths) > 10
    for path in paths:
        data = path.read_bytes()
        assert bytes(TakenApart(data)) == join(*split(data)), path


def test_the_envelope_is_that_of_the_library():
    assert preamble() == envelope.encode_preamble()
    assert END_MAGIC == envelope.END_MAGIC
    index = {"chunks": b"", "kinds": [], "later": 1, "metadata": {}, "tensors": {}}
    assert sparsefmt.load(join(preamble(7), encoded(index))) == {}


def test_each_part_can_be_changed():
    """What is wrong is what was changed, and nothing else: readers stumble over it alone."""
    whole = file_of("bitmask raw")
    parts = TakenApart(whole)
    parts.put("values", parts.array("values", "f4") * 2)
    doubled = sparsefmt.load(bytes(parts), layout="dense")["w"]
    assert np.array_equal(doubled, 2 * WEIGHT)
    assert parts.number("values") == parts.entry().get("first_chunk", 0) + 3
    for code, change in {
        "padding-not-zero": lambda parts: setattr(parts, "padding", 1),
        "chunk-gap": lambda parts: parts.behind.update({len(parts.chunks) - 1: bytes(64)}),
        "chunk-assignment": lambda parts: parts.chunks.append((b"a", 1)),
        "version-unsupported": lambda parts: parts.preamble.__setitem__(8, 2),
        "index-type": lambda parts: parts.index.update(chunks="in the place of the table"),
        "chunk-checksum": lambda parts: setattr(
            parts, "change_records", lambda records: records[0].__setitem__(2, records[0][2] ^ 1)
        ),
        "index-malformed": lambda parts: setattr(parts, "change_index", lambda index: index + b"\0"),
        "index-checksum": lambda parts: setattr(
            parts, "change_trailer", lambda fields: fields.__setitem__(1, fields[1] ^ 1)
        ),
    }.items():
        parts = TakenApart(whole)
        change(parts)
        assert code_of(bytes(parts)) == code


def test_arrays_that_are_coded_by_zstd_are_decoded():
    values = {}
    for codec in ("raw", "zstd"):
        parts = TakenApart(sparsefmt.save({"w": np.ones((64, 64), np.float32)}, layout="dense", codec=codec))
        values[codec] = parts.array("values", "f4")
    assert np.array_equal(values["raw"], np.ones(4096, np.float32))
    assert np.array_equal(values["zstd"], values["raw"])


def test_damage_is_left_when_checksums_are_mended(data):
    """Of chunks and of the index: only checksums change."""
    data = join(*split(data))
    before, index = split(data)
    first = next(places(split_and_decode(data)[1]["chunks"]))[0]
    for place in (first, len(before) + 1, len(before) + len(index) - 1):
        damaged = bytearray(data)
        damaged[place] ^= 1
        assert outcome_of_library(bytes(damaged)) == ("chunk-checksum" if place == first else "index-checksum")
        found = mended(bytes(damaged))
        assert len(found) == len(data)
        assert found[:16] == data[:16]
        assert found[place] == damaged[place]
        assert outcome_of_library(found) not in ("chunk-checksum", "index-checksum")


def test_canonical_msgpack():
    value = {"b": [1, 300, {"z": b"", "é": "text", "a": 2**64 - 1}], "a": {}, "c": Encoded(b"\xcc\x05")}
    encoded = canonical(value)
    assert list(msgpack.unpackb(encoded)) == ["a", "b", "c"]
    assert list(msgpack.unpackb(encoded)["b"][2]) == ["a", "z", "é"]
    assert encoded.endswith(b"\xa1c\xcc\x05")
    assert canonical({b"b": None, "a": 1.5}) == b"\x82\xa1a\xcb\x3f\xf8" + bytes(6) + b"\xc4\x01b\xc0"


def test_what_cannot_be_taken_apart():
    for data in (b"", bytes(31), bytes(100), file_of("dense raw")[:-1], join(preamble(), b"\x80")):
        with pytest.raises((ValueError, KeyError, TypeError, IndexError, struct.error)):
            TakenApart(data)
