"""The bytes of an index: which msgpack is taken, to the byte; numbers at the ends of 31, 32, 53, 63 and 64 bits; lies.

A file of a greater minor version may have a key that this one does not know, whose value is read by nobody and has to
be in canonical form all the same: any value can be put there. What the reader of SPEC.md says is compared.
"""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import msgpack
import numpy as np
import pytest
import scipy.sparse
from helpers import ROOT, peak_of
from outcomes import outcome_of_library, outcome_of_reader
from sparsefmt_files import small_file

import sparsefmt
from sparsefmt.container.sources import Memory
from sparsefmt.sparse_file import SparseFile
from tools.taken_apart import encoded, join, records_of, split, split_and_decode, table_of

NEWER = struct.pack("<H", 7)


@cache
def parts() -> tuple[bytes, list[bytes]]:
    """What is in front of the index of a small file, of a greater minor version, and the elements of the index."""
    head, index = split(small_file())
    chunks, kinds, tensors, fields = map(msgpack.packb, msgpack.unpackb(index))
    return head[:10] + NEWER + head[12:], [chunks, kinds, tensors, fields[1:]]


def with_value(value: bytes) -> bytes:
    """A file whose index has the key "zzz" with these bytes as its value, in its fields."""
    head, (*elements, fields) = parts()
    return join(head, b"\x94" + b"".join(elements) + b"\x82" + fields + b"\xa3zzz" + value)


def text(length: int) -> bytes:
    return b"x" * length


def keys(count: int) -> bytes:
    """That many pairs of a map: ascending keys of two letters, and 0."""
    letters = b"abcdefghijklmnopqrstuvwxyz"
    return b"".join(b"\xa2" + bytes([letters[n // 26], letters[n % 26]]) + b"\0" for n in range(count))


TAKEN = [
    *(bytes([small]) for small in range(0x80)),
    *(b"\xcc\x80", b"\xcc\xff", b"\xcd\x01\x00", b"\xcd\xff\xff", b"\xce\x00\x01\x00\x00", b"\xce\xff\xff\xff\xff"),
    *(b"\xcf\x00\x00\x00\x01\x00\x00\x00\x00", b"\xcf" + b"\xff" * 8),
    *(bytes([0xA0 + length]) + text(length) for length in range(32)),
    *(b"\xd9\x20" + text(32), b"\xd9\xff" + text(255), b"\xda\x01\x00" + text(256), b"\xda\xff\xff" + text(65535)),
    b"\xdb\x00\x01\x00\x00" + text(65536),
    *(b"\xa1\x00", b"\xa2\xc3\xa9", b"\xa3\xef\xbb\xbf", b"\xa4\xf0\x9f\x98\x80", b"\xa4\xf4\x8f\xbf\xbf"),
    *(b"\xc4\x00", b"\xc4\xff" + text(255), b"\xc5\x01\x00" + text(256), b"\xc5\xff\xff" + text(65535)),
    b"\xc6\x00\x01\x00\x00" + text(65536),
    *(bytes([0x90 + length]) + bytes(length) for length in range(16)),
    *(b"\xdc\x00\x10" + bytes(16), b"\xdc\x04\x00" + bytes(1024)),
    *(bytes([0x80 + count]) + keys(count) for count in range(16)),
    *(b"\xde\x00\x10" + keys(16), b"\xde\x02\x00" + keys(512)),
    b"\x91" * 14 + b"\0",
    b"\x81\xa1a" * 14 + b"\0",
]
"""The shortest form of everything that may occur, at both ends of each form."""

NOT_SHORTEST = [
    *(
        b"\xcc\x00",
        b"\xcc\x7f",
        b"\xcd\x00\x00",
        b"\xcd\x00\xff",
        b"\xce\x00\x00\xff\xff",
        b"\xcf\0\0\0\0" + b"\xff" * 4,
    ),
    *(b"\xd0\x05", b"\xd1\x00\x05", b"\xd2\x00\x00\x00\x05", b"\xd3" + bytes(7) + b"\x05"),
    *(b"\xd9\x00", b"\xd9\x1f" + text(31), b"\xda\x00\xff" + text(255), b"\xdb\x00\x00\xff\xff" + text(65535)),
    *(b"\xc5\x00\x00", b"\xc5\x00\xff" + text(255), b"\xc6\x00\x00\xff\xff" + text(65535)),
    *(b"\xdc\x00\x0f" + bytes(15), b"\xdd\x00\x00\x00\x00", b"\xdd\x00\x00\x04\x00" + bytes(1024)),
    *(b"\xde\x00\x0f" + keys(15), b"\xdf\x00\x00\x00\x00", b"\xdf\x00\x00\x00\x10" + keys(16)),
    *(b"\x82\xa1a\0\xa1a\0", b"\x82\xa1b\0\xa1a\0", b"\x82\xa2ab\0\xa1a\0", b"\x83\xa1a\0\xa1c\0\xa1b\0"),
    b"\x91\x91\x82\xa1a\0\xa1a\0",
    b"\x81\xa1a\x91\x82\xa1b\0\xa1a\0",
]
"""Longer forms than there need be, and keys that are not sorted or come twice, at any depth."""

NO_TYPE_OF_AN_INDEX = [
    *(b"\xc0", b"\xc2", b"\xc3"),
    *(b"\xcb" + bytes(8), b"\xcb\x7f\xf8" + bytes(6)),
    *(bytes([negative]) for negative in range(0xE0, 0x100)),
    *(b"\xd0\x80", b"\xd1\x80\x00", b"\xd2\x80\x00\x00\x00", b"\xd3\x80" + bytes(7)),
    b"\x91\xc0",
    b"\x81\xa1a\xc3",
]
"""Nil, booleans, floats and negative integers, in their shortest forms."""

MALFORMED = [
    b"",
    b"\xc1",
    *(bytes([kind, size, 1]) + bytes(size) for kind, size in ((0xC7, 0), (0xC7, 3))),
    *(b"\xc8\x00\x01\x01\x00", b"\xc9\x00\x00\x00\x01\x01\x00"),
    *(bytes([0xD4 + power, 1]) + bytes(1 << power) for power in range(5)),
    b"\xd6\xff" + bytes(4),  # a point in time
    *(b"\xa1\x80", b"\xa1\xff", b"\xa2\xc0\x80", b"\xa3\xed\xa0\x80", b"\xa4\xf4\x90\x80\x80", b"\xa1\xc3"),
    *(b"\x81\x00\x00", b"\x81\xc0\x00", b"\x81\xc4\x01a\x00", b"\x81\x90\x00", b"\x81\xa1\xff\x00"),
    *(b"\xdc\x04\x01" + bytes(1025), b"\x91" * 15 + b"\0", b"\x81\xa1a" * 15 + b"\0"),
    *(b"\xa2a", b"\xc4\x02a", b"\x92\0", b"\x81\xa1a", b"\xcd\x01", b"\xda\x01"),
    *(b"\0\0", b"\0\xc0", b"\xa1a\n"),
    *(b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"),
]
"""No msgpack, one that ends early or late, extensions, text that is not UTF-8, keys that are no text, too deep."""


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (TAKEN, None),
        (NOT_SHORTEST, "index-not-canonical"),
        (NO_TYPE_OF_AN_INDEX, "index-type"),
        (MALFORMED, "index-malformed"),
    ],
    ids=["taken", "not shortest", "no type of an index", "malformed"],
)
def test_values(values, expected):
    names = sorted(sparsefmt.load(small_file()))
    for value in values:
        data = with_value(value)
        found = outcome_of_library(data)
        assert found == outcome_of_reader(data), value
        if expected is None:
            assert sorted(found) == names, value
        else:
            assert found == expected, value


SINGLE = [b"\xca\x00\x00\x00\x00", b"\xca\x3f\x80\x00\x00", b"\xca\x7f\xc0\x00\x01"]


def test_floats_of_32_bits():
    """Of a type that no index has, and shorter than the float that an encoder would make of them."""
    for value in SINGLE:
        for outcome in (outcome_of_library, outcome_of_reader):
            assert outcome(with_value(value)) == "index-type"


def test_every_first_byte_is_in_one_of_the_lists():
    everything = [*TAKEN, *NOT_SHORTEST, *NO_TYPE_OF_AN_INDEX, *SINGLE, *MALFORMED]
    assert {value[0] for value in everything if value} == set(range(256))
    assert not {*TAKEN} & {*NOT_SHORTEST, *NO_TYPE_OF_AN_INDEX, *MALFORMED}


ENDS = [(1 << bits) + off for bits in (31, 32, 53, 63, 64) for off in (-1, 0, 1) if (1 << bits) + off < 1 << 64]
SHAPES = [
    *([1 << 31, 1 << 32], [1 << 32, 1 << 32], [1 << 16] * 4, [1 << 21] * 3, [1 << 32] * 32, [(1 << 63) - 1, 2]),
    *(
        [(1 << 63) - 1, 0],
        [0, (1 << 63) - 1],
        [1 << 62, 4, 0],
        [3, 1 << 53],
        [1 << 53, 70],
        [(1 << 31) - 1, (1 << 31) - 1],
    ),
]


def changed_entries() -> Iterator[tuple[str, bytes]]:
    """Files in which one number of the index was changed to one at the end of some bits."""
    for name in ("half", "most", "bias", "none"):
        for key in ("nnz", "first_chunk", "tile_rows", "negative_zeros_dropped"):
            if key == "nnz" and name in ("bias", "none"):
                continue
            for number in ENDS:
                head, content = split_and_decode(small_file())
                content["tensors"][name][key] = number
                yield f"{name}: {key} {number}", join(head, encoded(content))
        for shape in [[end] for end in ENDS] + [[9, end] for end in ENDS] + [[end, 70] for end in ENDS] + SHAPES:
            head, content = split_and_decode(small_file())
            content["tensors"][name]["shape"] = shape
            yield f"{name}: shape {shape}", join(head, encoded(content))
            content["tensors"][name]["tile_rows"] = min(max(shape[0] - 1, 0), 1 << 20)
            yield f"{name}: shape {shape} and tile_rows", join(head, encoded(content))


def changed_records() -> Iterator[tuple[str, bytes]]:
    """The same for the chunk table, and for the trailer."""
    _, content = split_and_decode(small_file())
    for number in range(len(records_of(content["chunks"]))):
        for field in range(2):
            for end in ENDS:
                head, content = split_and_decode(small_file())
                records = records_of(content["chunks"])
                records[number][field] = end
                content["chunks"] = table_of(records)
                yield f"chunk {number}, field {field}: {end}", join(head, encoded(content))
    for end in (end for end in ENDS if end < 1 << 32):
        data = bytearray(small_file())
        struct.pack_into("<I", data, len(data) - 20, end)
        yield f"trailer: {end}", bytes(data)


@pytest.mark.parametrize("files", [changed_entries, changed_records])
def test_numbers_at_the_ends_are_refused_by_their_code(files):
    """All of these files lie; what they claim is compared before memory is taken for it."""
    seen = set()
    for what, data in files():
        code, peak = peak_of(lambda data=data: outcome_of_library(data))
        assert peak < (1 << 20) + 64 * len(data), what
        assert code == outcome_of_reader(data), what
        seen.add(code)
    assert len(seen) >= 5


def with_shape_of_nothing(shape: list[int]) -> bytes:
    head, content = split_and_decode(small_file())
    content["tensors"]["none"]["shape"] = shape
    return join(head, encoded(content))


def test_empty_tensors_of_any_size_are_read():
    """What holds no element may have any number of rows or columns, as long as 63 bits can count the bits of it."""
    most = (1 << 60) - 1
    for shape in ([0, most], [most, 0], [0, 1 << 31, 1 << 28], [1 << 32, 0, 1 << 27], [0, 1 << 53], [1 << 53, 0]):
        data = with_shape_of_nothing(shape)
        loaded = sparsefmt.load(data)["none"]
        assert (loaded.shape, loaded.size) == (tuple(shape), 0)
        part = SparseFile(Memory(data)).get_slice("none")
        assert part[..., :0].size == part[:1].size == 0
        by_reader = outcome_of_reader(data)
        assert isinstance(by_reader, dict)
        assert by_reader["none"] == b""
    for shape in ([0, most + 1], [most + 1, 0], [0, 1 << 31, 1 << 29], [1 << 32, 0, 1 << 28], [0, 1 << 63 - 1]):
        assert outcome_of_library(with_shape_of_nothing(shape)) == "shape-size"
        assert outcome_of_reader(with_shape_of_nothing(shape)) == "shape-size"


def lies() -> Iterator[tuple[str, bytes]]:
    """Small files that pass for large ones, by what the index says or by what is coded."""
    noise = np.random.default_rng(0).integers(0, 1 << 32, (64, 256), np.uint32)
    noise[:, ::3] = 0
    for codec in ("zstd", "rans"):
        for elements in (1 << 20, 1 << 26, 1 << 30):
            head, content = split_and_decode(sparsefmt.save({"w": noise}, codec=codec, layout="dense"))
            content["tensors"]["w"].update(shape=[1, elements])
            records = records_of(content["chunks"])
            records[0][1] = 4 * elements
            content["chunks"] = table_of(records)
            yield f"{codec} of {elements} elements", join(head, encoded(content))
    for name in ("half", "most"):
        for rows in (1 << 20, 1 << 40, 1 << 53):
            head, content = split_and_decode(small_file())
            content["tensors"][name].update(shape=[rows, 40], tile_rows=1)
            yield f"{name} of {rows} tiles", join(head, encoded(content))
    for value in MALFORMED[-4:]:
        yield f"an index with {value.hex()}", with_value(value)
    empty = scipy.sparse.csr_array((1 << 12, 1 << 14), dtype=np.float32)
    for layout in ("bitmask", "permuted"):
        yield f"{layout} of zeros", sparsefmt.save({"w": empty}, layout=layout)


HOSTILE = """
import resource, sys
sys.path[:0] = sys.argv[1:]
import sparsefmt, test_index_bytes
files = list(test_index_bytes.lies())
sparsefmt.load(test_index_bytes.small_file())
resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20),) * 2)
for what, data in files:
    for layout in ("auto", "dense", "permuted"):
        try:
            sparsefmt.load(data, layout=layout, threads=1, max_decoded_bytes=64 << 20)
            code = "accepted"
        except sparsefmt.SparsefmtError as error:
            code = error.code
        print(layout, what, code, len(data), sep="\\t")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits and sizes of memory are those of Linux")
def test_lies_take_no_memory():
    """In 256 MiB of addresses, with a budget of 64 MiB: nothing runs out of memory, and little of it is touched."""
    command = [sys.executable, "-c", HOSTILE, str(Path(__file__).parent), str(ROOT / "tests"), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *lines, resident = done.stdout.splitlines()
    codes = {tuple(line.split("\t")[:2]): line.split("\t")[2] for line in lines}
    assert len(codes) == 3 * len(list(lies())) > 50
    assert "memory" not in codes.values()
    # zeros are no lie: they are what they say, and take little memory in a sparse layout
    accepted = {place for place, code in codes.items() if code == "accepted"}
    assert {place[1] for place in accepted} <= {"bitmask of zeros", "permuted of zeros"}
    assert {"decoded-bytes", "chunk-size", "chunk-assignment", "index-malformed", "zstd-size"} <= set(codes.values())
    assert int(resident) < 100 << 10  # KiB


def test_an_index_takes_memory_in_proportion_to_its_size():
    """Of many small values, which take a Python object each."""
    for value in (b"\x90", b"\x80", b"\xa0", b"\xc4\x00", b"\xce\xff\xff\xff\xff"):
        inner = b"\xdc\x04\x00" + value * 1024
        data = with_value(b"\xdc\x00\x20" + inner * 32)
        _, peak = peak_of(lambda data=data: sparsefmt.load(data))
        assert peak < 100 * len(data)
