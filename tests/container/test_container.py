"""The container: any bytes give tensors or an error with a stable code, and nothing is allocated on a file's word."""

from __future__ import annotations

import struct

import msgpack
import numpy as np
import pytest
from helpers import dense, examples, peak_of
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsefmt_files import small_file

import sparsefmt
from sparsefmt import limits
from sparsefmt.container import envelope, index
from sparsefmt.errors import ChecksumError, FormatError, LimitError, SparsefmtError, UnsupportedError
from tools.taken_apart import (
    encoded,
    join,
    mended,
    merged,
    places,
    preamble,
    records_of,
    split,
    split_and_decode,
    table_of,
    with_kinds,
)


def rebuilt(change, data: bytes | None = None) -> bytes:
    """The small file with its index changed."""
    head, content = split_and_decode(data or small_file())
    content = merged(content)
    content = change(content) or content
    return join(head, encoded(with_kinds(content), msgpack.packb))


def code_of(data: bytes, kind: type[SparsefmtError] = SparsefmtError) -> str:
    with pytest.raises(kind) as caught:
        sparsefmt.load(data)
    return caught.value.code


def entry(change, name: str = "half"):
    """A change of one tensor's entry."""
    return lambda content: change(content["tensors"][name]) and None


def put(name: str, key: str, value):
    def change(content):
        content["tensors"][name][key] = value
        content["tensors"][name] = dict(sorted(content["tensors"][name].items()))

    return change


def rans_mask(model):
    """The mask of a tensor is said to be coded by rans, with a model."""

    def change(content):
        put("half", "models", {"mask": model})(content)
        content["tensors"]["half"]["arrays"]["mask"] = "rans"

    return change


def drop(name: str, key: str):
    return lambda content: content["tensors"][name].pop(key) and None


def chunk_field(number: int, field: int, value: int):
    """Set stored (0), raw (1) or checksum (2) of one chunk record."""

    def change(records):
        records[number][field] = value

    return records_changed(change)


def records_changed(change):
    def changed(content):
        records = records_of(content["chunks"])
        content["chunks"] = table_of(change(records) or records)

    return changed


def renamed(old: str, new: str):
    def change(content):
        content["tensors"][new] = content["tensors"].pop(old)
        content["tensors"] = dict(sorted(content["tensors"].items()))

    return change


INDEX_FAULTS = [
    ("index-key", lambda content: {**content, "zzz": 1}),
    ("index-key", drop("half", "nnz")),
    ("index-type", drop("half", "dtype")),
    ("index-key", lambda content: {**content, "kinds": [{}, *with_kinds(content)["kinds"][1:]]}),
    ("index-key", put("bias", "nnz", 3)),
    ("index-key", put("half", "unknown", 3)),
    ("index-type", lambda content: {**content, "chunks": "text"}),
    ("index-type", lambda content: {**content, "chunks": content["chunks"] + b"\0"}),
    ("index-type", lambda content: {**content, "tensors": 3}),
    ("index-type", put("half", "shape", 9)),
    ("index-type", put("half", "shape", [9, -70])),
    ("index-type", put("half", "shape", [9, True])),
    ("index-type", put("half", "shape", [9.0, 70])),
    ("index-type", put("half", "tile_rows", None)),
    ("index-type", put("half", "nnz", 1 << 63)),
    ("index-type", put("tied", "alias_of", 3)),
    ("index-type", put("half", "arrays", ["mask"])),
    ("metadata-invalid", lambda content: {**content, "metadata": {"a": 1}}),
    ("index-not-canonical", lambda content: {**content, "metadata": {"b": "", "a": ""}}),
    ("index-not-canonical", lambda content: {**content, "tensors": dict(reversed(content["tensors"].items()))}),
    ("index-not-canonical", put("half", "negative_zeros_dropped", 0)),
    ("name-invalid", renamed("bias", "")),
    ("name-invalid", renamed("bias", "a\0b")),
    ("name-length", renamed("bias", "a" * 1025)),
    ("alias-invalid", put("tied", "alias_of", "nothing")),
    ("alias-invalid", put("tied", "alias_of", "tied")),
    ("dtype-unknown", put("half", "dtype", "F17")),
    ("index-type", put("half", "dtype", 3)),
    ("index-type", put("half", "layout", [])),
    ("index-type", lambda content: content["tensors"]["half"]["arrays"].update(mask={})),
    ("index-key", put("bias", "nnz", 1)),
    ("layout-unknown", put("half", "layout", "os.system")),
    ("codec-unknown", lambda content: content["tensors"]["half"]["arrays"].update(mask="lzma")),
    ("index-not-canonical", put("half", "models", {})),
    ("index-type", put("half", "models", 3)),
    ("model-set", put("half", "models", {"values": b""})),
    ("model-set", lambda content: content["tensors"]["half"]["arrays"].update(mask="rans")),
    ("index-type", rans_mask(1)),
    ("model-size", rans_mask(bytes((1 << 20) + 1))),
    ("shape-ndim", put("bias", "shape", [1] * 33)),
    ("shape-size", put("bias", "shape", [1 << 62, 0])),
    ("shape-size", put("bias", "shape", [1 << 40, 1 << 40])),
    ("shape-size", put("none", "shape", [0, 1 << 62])),
    ("layout-invalid", put("half", "shape", [630])),
    ("layout-invalid", put("most", "dtype", "C64")),
    ("tile-rows", put("half", "tile_rows", 0)),
    ("tile-rows", put("half", "tile_rows", 9)),
    ("tile-rows", put("half", "tile_rows", 10)),
    ("row-dims", put("half", "row_dims", 1)),
    ("row-dims", put("half", "row_dims", 2)),
    ("row-dims", put("none", "row_dims", 2)),
    ("tile-rows", put("none", "tile_rows", 1)),
    ("tile-rows", put("none", "first_chunk", 100)),
    ("tile-size", lambda content: content["tensors"]["half"].update(shape=[9, (1 << 31) + 1])),
    ("tile-size", put("half", "shape", [1 << 17, 2])),
    ("nnz", put("half", "nnz", 631)),
    ("nnz", put("half", "nnz", 1)),
    ("negative-zeros-dropped", put("half", "negative_zeros_dropped", 631)),
    ("negative-zeros-dropped", put("none", "negative_zeros_dropped", 1)),
    ("array-set", lambda content: content["tensors"]["half"]["arrays"].pop("mask") and None),
    ("array-set", lambda content: content["tensors"]["bias"].update(arrays={"extra": "raw", "values": "raw"})),
    ("array-set", lambda content: content["tensors"]["bias"].update(arrays={"negative_zeros": "raw", "values": "raw"})),
    ("chunk-gap", chunk_field(2, 0, 0)),
    ("chunk-gap", records_changed(lambda records: records[:-1])),
    ("chunk-out-of-bounds", chunk_field(1, 0, 1 << 36)),
    ("chunk-out-of-bounds", records_changed(lambda records: records * 2)),
    ("chunk-limit", chunk_field(0, 1, 1 << 40)),
    ("chunk-limit", chunk_field(0, 0, (1 << 64) - 1)),
    ("chunk-size", chunk_field(0, 1, 19)),
    ("chunk-size", chunk_field(0, 1, 21)),
    ("chunk-checksum", chunk_field(0, 2, 0)),
    ("chunk-assignment", put("half", "first_chunk", 2)),
    ("chunk-assignment", lambda content: content["tensors"].pop("bias") and None),
    ("array-size", put("half", "shape", [9, 64])),
    ("array-size", lambda content: content["tensors"]["bias"].update(shape=[6])),
    ("array-size", lambda content: content["tensors"]["most"].update(shape=[16, 40])),
]


@pytest.mark.parametrize(("code", "change"), INDEX_FAULTS)
def test_index_fault(code, change):
    assert code_of(rebuilt(change)) == code


def test_the_tools_of_this_file_make_valid_files():
    assert sparsefmt.load(rebuilt(lambda content: None)).keys() == sparsefmt.load(small_file()).keys()


@pytest.mark.parametrize(
    ("encoded", "code"),
    [
        (b"", "index-malformed"),
        (b"\xc1", "index-malformed"),
        (b"\x80\x80", "index-malformed"),
        (b"\x81\xa1a", "index-malformed"),
        (b"\xc0", "index-type"),
        (b"\x93\x01\x02\x03", "index-type"),
        (b"\x80", "index-type"),
        (b"\x90", "index-key"),
        (b"\xde\x00\x00", "index-not-canonical"),
        (b"\x82\xa1a\x01\xa1a\x01", "index-not-canonical"),
        (b"\x81\xa1a\xcd\x00\x01", "index-not-canonical"),
        (b"\x81\xa1\xff\x01", "index-malformed"),
        (b"\x81\x01\x01", "index-malformed"),
        (b"\x81\xc4\x01a\x01", "index-type"),
        (b"\xdd\x7f\xff\xff\xff", "index-malformed"),
        (b"\xdf\x7f\xff\xff\xff", "index-malformed"),
        (b"\xdb\x7f\xff\xff\xff", "index-malformed"),
        (b"\xc9\x00\x00\x00\x01\x01\x00", "index-malformed"),
        (b"\x91" * 5000 + b"\xc0", "index-malformed"),
        (b"\xdd\x00\x00\x04\x00" * 3000, "index-malformed"),
        (b"\x81\xa1a" * 5000 + b"\xc0", "index-malformed"),
    ],
)
def test_index_bytes(encoded, code):
    assert code_of(join(preamble(), encoded)) == code


def test_unknown_keys_are_ignored_in_a_newer_minor_version():
    head, content = split_and_decode(small_file())
    content = {**content, "zzz": 1}
    content["kinds"][0] = {**content["kinds"][0], "name": ""}
    content["tensors"]["half"] = dict(sorted({**content["tensors"]["half"], "hint": [1, 2]}.items()))
    newer = head[:10] + struct.pack("<H", 7) + head[12:]
    assert "half" in sparsefmt.load(join(newer, encoded(content)))
    assert code_of(join(head, encoded(content))) == "index-key"


PADDING = 36
"""Where the small file has padding: its first chunk has five floats."""


def patched(offset: int, data: bytes) -> bytes:
    whole = small_file()
    offset %= len(whole)
    return whole[:offset] + data + whole[offset + len(data) :]


@pytest.mark.parametrize(
    ("data", "code", "kind"),
    [
        (b"", "not-sparsefmt", FormatError),
        (envelope.MAGIC, "file-too-short", FormatError),
        (envelope.encode_preamble(), "file-too-short", FormatError),
        (envelope.encode_preamble() + bytes(19), "file-too-short", FormatError),
        (envelope.encode_preamble() + bytes(20), "trailer-missing", FormatError),
        ((8, b"\x02\x00"), "version-unsupported", UnsupportedError),
        ((8, b"\x00\x00"), "version-unsupported", UnsupportedError),
        ((12, b"\x01"), "feature-unsupported", UnsupportedError),
        ((10, b"\x01"), "index-checksum", ChecksumError),
        ((PADDING, b"\x01"), "padding-not-zero", FormatError),
        ((16, b"\xff"), "chunk-checksum", ChecksumError),
        ((-1, b"\x00"), "trailer-missing", FormatError),
        ((-20, struct.pack("<I", 1 << 16)), "index-out-of-bounds", FormatError),
        ((-20, struct.pack("<I", limits.MAX_INDEX_BYTES)), "index-out-of-bounds", FormatError),
        ((-20, struct.pack("<I", limits.MAX_INDEX_BYTES + 1)), "index-size", LimitError),
        ((-20, struct.pack("<I", (1 << 32) - 1)), "index-size", LimitError),
        ((-20, struct.pack("<I", 3)), "index-checksum", ChecksumError),
        ((-20, struct.pack("<I", 0)), "index-checksum", ChecksumError),
        ((-16, bytes(8)), "index-checksum", ChecksumError),
        ((-28, b"\x99"), "index-checksum", ChecksumError),
    ],
)
def test_envelope_fault(data, code, kind):
    """data: all bytes, or the place and the bytes of what is changed in a small file."""
    assert code_of(data if isinstance(data, bytes) else patched(*data), kind) == code


@pytest.mark.parametrize("number", [0, 2])
def test_the_first_byte_of_padding_that_is_not_zero_is_named(number):
    """Not the largest. Before a first chunk that is aligned, and behind a chunk."""
    large = np.arange(1, (1 << 13) + 1, dtype=np.float32)
    data = sparsefmt.save({"a": large, "b": large[:1], "c": 2 * large}, codec="raw")
    ends = [16, *(at + stored for at, stored, _ in places(split_and_decode(data)[1]["chunks"]))]
    start = ends[number]
    with pytest.raises(FormatError) as caught:
        sparsefmt.load(data[: start + 3] + b"\x01\x00\xff" + data[start + 6 :])
    assert (caught.value.code, caught.value.offset) == ("padding-not-zero", start + 3)


@pytest.mark.parametrize("codec", ["raw", "zstd", "rans"])
def test_every_truncation_is_refused(codec):
    data = small_file(codec)
    for size in range(len(data)):
        with pytest.raises(SparsefmtError):
            sparsefmt.load(data[:size])


@pytest.mark.parametrize("codec", ["raw", "zstd", "rans"])
def test_every_changed_byte_is_refused(codec):
    data = small_file(codec)
    for offset in range(len(data)):
        changed = bytearray(data)
        changed[offset] ^= 1 << (offset % 8)
        with pytest.raises(SparsefmtError):
            sparsefmt.load(bytes(changed))


def test_appended_and_zeroed_bytes_are_refused():
    data = small_file()
    for changed in (data + b"\0", data + data, data[:-64] + bytes(64), data[:40] + bytes(64) + data[104:]):
        with pytest.raises(SparsefmtError):
            sparsefmt.load(changed)


@settings(max_examples=examples(300), deadline=None)
@given(st.data())
def test_mutations_with_mended_checksums_give_tensors_or_an_error(data):
    """What a forger can do: any bytes changed, all checksums right."""
    head, content = split_and_decode(small_file(data.draw(st.sampled_from(["raw", "zstd"]))))
    body = bytearray(head)
    chunks = list(places(content["chunks"]))
    for _ in range(data.draw(st.integers(1, 4))):
        offset, stored, _ = chunks[data.draw(st.integers(0, len(chunks) - 1))]
        if stored:
            body[offset + data.draw(st.integers(0, stored - 1))] ^= data.draw(st.integers(1, 255))
    try:
        loaded = sparsefmt.load(mended(join(bytes(body), encoded(content))))
    except SparsefmtError:
        return
    for tensor in loaded.values():
        array = dense(tensor)
        if array.ndim == 2 and array.size:
            sparsefmt.linear(np.ones(array.shape[1], np.float32), tensor)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"\n <html>", "HTML"),
        (b"PK\x03\x04" + bytes(100), "zip"),
        ((60).to_bytes(8, "little") + b'{"a":{"dtype":"F32"' + bytes(100), "safetensors"),
        (b"GGUF" + bytes(100), "GGUF"),
        (bytes(200), "starts with zeros"),
        (b"\x89SPF\n\x1a\n" + bytes(100), "text-mode"),
        (b"", "empty"),
        (b"hello, world, this is text", "68 65 6c 6c 6f"),
    ],
)
def test_other_files_are_named(head, words, tmp_path):
    (tmp_path / "model.sparsefmt").write_bytes(head)
    for backend in ("mmap", "pread"):
        with pytest.raises(FormatError, match=words) as caught:
            sparsefmt.open_file(tmp_path / "model.sparsefmt", backend=backend)
        assert caught.value.code == "not-sparsefmt"


def test_a_claimed_terabyte_is_refused_before_it_is_allocated():
    """A small zstd chunk that claims to be huge, in a tensor of matching shape."""
    data = sparsefmt.save({"w": np.zeros((64, 1024), np.float32)}, codec="zstd", layout="dense")
    elements = 1 << 33

    def change(content):
        content["tensors"]["w"].update(shape=[1, elements])
        chunk_field(0, 1, elements * 4)(content)

    code, peak = peak_of(lambda: code_of(rebuilt(change, data)))
    assert code == "chunk-size"
    assert peak < 1 << 20


def test_errors_name_tensor_and_offset():
    with pytest.raises(ChecksumError) as caught:
        sparsefmt.load(patched(16, b"\xff"))
    assert caught.value.tensor == "bias"
    assert caught.value.offset == 16
    assert "'bias'" in str(caught.value)
    assert "[chunk-checksum]" in str(caught.value)


def test_errors_survive_pickling():
    import pickle

    error = FormatError("nnz", "text", tensor="w", offset=3)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.code, again.tensor, again.offset, str(again)) == (FormatError, "nnz", "w", 3, str(error))


def test_index_encoding_is_canonical_msgpack():
    head, encoded = split(small_file())
    assert msgpack.packb(msgpack.unpackb(encoded)) == encoded
    assert index.decode(encoded, len(head), 0).encode() == encoded
