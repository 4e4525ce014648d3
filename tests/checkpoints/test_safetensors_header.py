"""safetensors files as accidents leave them, and headers as other programs write them: what is said of each."""

from __future__ import annotations

# ruff: noqa: E501 (headers and messages)
import json
from typing import Any

import numpy as np
import pytest
import safetensors
from safetensors_files import craft

import sparsefmt
from sparsefmt import FormatError
from sparsefmt.checkpoints import safetensors_file
from sparsefmt.checkpoints.safetensors_file import SafetensorsFile

FLOATS = np.arange(64, dtype="f4").reshape(8, 8)
DATA = FLOATS.tobytes()


def entry(dtype: Any = "F32", shape: Any = (8, 8), begin: Any = 0, end: Any = 256) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [begin, end]}


SIZE = len(craft({"a": entry()}, DATA))
TWICE = f'{{"a":{json.dumps(entry())},"a":{json.dumps(entry(begin=256, end=512))}}}'
FAULTS: dict[str, tuple[bytes, str]] = {
    "cut off": (craft({"a": entry()}, DATA[:100]), rf"it is cut off: of {SIZE} bytes 156 are missing"),
    "cut off by one": (craft({"a": entry()}, DATA[:-1]), f"of {SIZE} bytes 1 are missing. Download or copy it again"),
    "no data": (craft({"a": entry()}), f"of {SIZE} bytes 256 are missing"),
    "cut off in the header": (
        craft({"a": entry()}, DATA)[:20],
        "cut off inside its header: of 72 bytes 60 are missing",
    ),
    "too long": (craft({"a": entry()}, DATA + bytes(16)), f"it ends after {SIZE} bytes, and 16 more follow"),
    "newline behind": (craft({"a": entry()}, DATA + b"\n"), f"it ends after {SIZE} bytes, and 1 more follow"),
    "no tensors, too long": (craft({}, b"1234"), "it ends after 16 bytes, and 4 more follow"),
    "twice": (craft(TWICE, DATA + DATA), "its header is ambiguous: key 'a' is there twice"),
    "dtype twice": (
        craft('{"a":{"dtype":"F32","dtype":"F32","shape":[],"data_offsets":[0,4]}}', b"1234"),
        "'dtype' is there",
    ),
    "number in metadata": (
        craft({"__metadata__": {"n": 0}, "a": entry()}, DATA),
        "must map texts to texts, and 'n' is 0",
    ),
    "map in metadata": (craft({"__metadata__": {"c": {"x": [1]}}, "a": entry()}, DATA), r"and 'c' is {\"x\": \[1\]}"),
    "text as metadata": (craft({"__metadata__": "x", "a": entry()}, DATA), 'must map texts to texts, and is "x"'),
    "hole": (
        craft({"a": entry(), "b": entry(begin=264, end=520)}, DATA + bytes(8) + DATA),
        "tensor 'b': it begins at byte 264 of the data, and 'a' ends at 256: what lies between belongs to no tensor",
    ),
    "hole at the start": (
        craft({"a": entry(begin=8, end=264)}, bytes(8) + DATA),
        "and the data begins at 0: what lies",
    ),
    "overlap": (
        craft({"a": entry(), "b": entry()}, DATA),
        "tensor 'b': it begins at byte 0 of the data, and 'a' ends at 256: they overlap",
    ),
    "size": (
        craft({"a": entry(shape=(8, 9))}, DATA),
        r"shape \[8, 9\] of F32 takes 288 bytes, and its data_offsets give it 256",
    ),
    "half a byte": (
        craft({"a": entry("F4", (3,), 0, 1)}, b"1"),
        r"shape \[3\] of F4 takes 12 bits, which are not whole bytes",
    ),
    "float in shape": (
        craft({"a": entry(shape=[8.0, 8])}, DATA),
        r"tensor 'a': its shape is \[8.0, 8\], which is not a list",
    ),
    "negative": (craft({"a": entry(shape=[-8, -8])}, DATA), r"its shape is \[-8, -8\], which is not a list of whole"),
    "true in shape": (craft({"a": entry(shape=[True, 64])}, DATA), r"its shape is \[true, 64\], which is not a list"),
    "shape of text": (craft({"a": entry(shape="8x8")}, DATA), 'its shape is "8x8"'),
    "backwards": (
        craft({"a": entry(begin=256, end=0)}, DATA),
        r"its data_offsets are \[256, 0\], which is not a beginning",
    ),
    "no offsets": (
        craft({"a": {"dtype": "F32", "shape": [8, 8]}}, DATA),
        "tensor 'a': its header lacks the data_offsets",
    ),
    "no dtype": (craft({"a": {"shape": [8], "data_offsets": [0, 32]}}, DATA[:32]), "its header lacks the dtype"),
    "dtype of another kind": (craft({"a": entry(5)}, DATA), "its dtype is 5, which is not a string"),
    "unknown dtype": (craft({"a": entry("X9")}, DATA), "X9"),
    "list for a tensor": (
        craft({"a": [1]}, DATA),
        r"its header has \[1\] in place of a dtype, a shape and data_offsets",
    ),
    "half a surrogate": (craft('{"a\\ud800":' + json.dumps(entry()) + "}", DATA), "is not valid Unicode"),
    "not UTF-8": (craft({"a": entry()}, DATA).replace(b'"a"', b'"\xff"'), "its header is not UTF-8 at byte 10"),
    "byte order mark": (craft("\ufeff" + json.dumps({"a": entry()}), DATA), "its header begins with a byte order mark"),
    "broken JSON": (craft('{"a": ', DATA), "its header is damaged, which shows at byte"),
    "list": (craft("{}[]", b""), "its header is damaged"),
    "deep": (craft('{"a":' + "[" * 200_000), "nested too deep|damaged|recursion"),
    "NaN": (craft('{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', b"1234"), r"its shape is \[NaN\]"),
    "endless number": (
        craft('{"a":{"dtype":"F32","shape":[' + "9" * 5000 + '],"data_offsets":[0,4]}}', b"1234"),
        "invalid|header",
    ),
}
FINE: dict[str, bytes] = {
    "no metadata": craft({"__metadata__": {}, "a": entry()}, DATA),
    "null for metadata": craft({"__metadata__": None, "a": entry()}, DATA),
    "any order": craft({"b": entry("U8", (3,), 256, 259), "a": entry()}, DATA + b"abc"),
    "scalars and empty tensors": craft({"a": entry(shape=(), end=4), "z": entry(shape=(0, 8), begin=4, end=4)}, DATA[:4]),
    "keys of later versions": craft({"a": {**entry(), "crc": "x"}}, DATA),
    "nothing": craft({}),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_wrong_with_a_safetensors_file(name, tmp_path):
    content, message = FAULTS[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=message) as caught:
        SafetensorsFile(path)
    assert caught.value.code == "safetensors-invalid"
    assert str(caught.value).count(str(path)) == 1


@pytest.mark.parametrize("maps", [True, False])
@pytest.mark.parametrize("name", FINE)
def test_what_is_right_with_a_safetensors_file(name, maps, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_bytes(FINE[name])
    found = {name: fields["shape"] for name, fields in safetensors.deserialize(FINE[name])}
    if not maps:
        monkeypatch.setattr(safetensors_file, "safe_open", cannot_map)
    with SafetensorsFile(path) as file:
        assert {name: list(tensor.shape) for name, tensor in file.tensors.items()} == found


def cannot_map(*args: Any, **kwargs: Any) -> None:
    """As the safetensors library says it."""
    raise OSError("No such device (os error 19)")


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_found_where_nothing_can_be_mapped(name, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_bytes(FAULTS[name][0])
    monkeypatch.setattr(safetensors_file, "safe_open", cannot_map)
    with pytest.raises((FormatError, sparsefmt.UnsupportedError)):
        SafetensorsFile(path)


def test_what_the_library_alone_refuses_is_refused(tmp_path, monkeypatch):
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise safetensors.SafetensorError("it does not like it")

    path = tmp_path / "model.safetensors"
    path.write_bytes(craft({"a": entry()}, DATA))
    monkeypatch.setattr(safetensors_file, "safe_open", refuse)
    for most in (1 << 24, 10):
        monkeypatch.setattr(safetensors_file, "_MOST_EXPLAINED", most)
        with pytest.raises(FormatError, match="it does not like it"):
            SafetensorsFile(path)


def test_a_header_beyond_the_limit(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes((100_000_001).to_bytes(8, "little") + b"{" + bytes(100))
    with pytest.raises(FormatError, match="its header would have 100,000,001 bytes, and safetensors reads 100,000,000"):
        SafetensorsFile(path)
