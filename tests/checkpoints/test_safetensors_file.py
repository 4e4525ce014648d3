"""safetensors in and out: what is none, what it cannot hold, and how it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from converted_files import convert, export
from safetensors_files import craft, craft_tensors, patterns, read_back

import sparsefmt
from sparsefmt.adapters import ArrayRows, BytesRows
from sparsefmt.checkpoints.safetensors_file import SafetensorsFile
from sparsefmt.checkpoints.safetensors_writing import write_safetensors
from sparsefmt.checkpoints.sparsefmt_file import SparsefmtFile
from sparsefmt.dtypes import DTYPES
from sparsefmt.errors import FormatError, LimitError


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"PK\x03\x04" + bytes(60), "zip archive"),
        (b"", "empty"),
        (bytes(100), "zeros"),
        (b"GGUF" + bytes(60), "GGUF"),
        (sparsefmt.save({"w": np.ones(3)}), "a .sparsefmt file already"),
        (
            craft({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234"),
            "shape [2] of F32 takes 8 bytes, and its data_offsets give it 4",
        ),
        (
            craft({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"12345"),
            "it ends after 76 bytes, and 1 more follow",
        ),
        (craft({"w": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}}, b"1234"), "X9"),
        (craft({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b""), "of 76 bytes 4 are missing"),
        (craft('{"w": '), "header"),
        (
            craft(
                '{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
                b"1",
            ),
            "'w' is there twice",
        ),
    ],
)
def test_what_is_no_safetensors_is_called_by_its_name(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        SafetensorsFile(path)
    assert caught.value.code == "safetensors-invalid"
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "not a sparsefmt file" not in str(caught.value)


def test_a_folder_or_a_pipe_is_no_file(tmp_path: Path) -> None:
    for opener in (SafetensorsFile, SparsefmtFile):
        with pytest.raises(IsADirectoryError):
            opener(tmp_path)
        with pytest.raises(OSError, match="not a regular file"):
            opener("/dev/null")
        with pytest.raises(FileNotFoundError):
            opener(tmp_path / "missing")


def test_a_file_of_the_library_comes_back_byte_for_byte(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    dtypes = [
        np.float32,
        np.float16,
        ml_dtypes.bfloat16,
        np.int8,
        np.int64,
        np.uint16,
        np.bool_,
        np.float64,
        np.complex64,
    ]
    arrays = {
        f"{number}.{np.dtype(dtype).name}": rng.integers(0, 2, (3, number + 1)).astype(dtype)
        for number, dtype in enumerate(dtypes)
    }
    source = tmp_path / "a.safetensors"
    for metadata in (None, {"format": "pt"}, {"one": 'a "quoted" \u2028 text\n\x00'}):
        safetensors.numpy.save_file({**arrays, "é\t": np.ones(5)}, source, metadata)
        convert(source, tmp_path / "a.sparsefmt")
        export(tmp_path / "a.sparsefmt", tmp_path / "b.safetensors")
        assert (tmp_path / "b.safetensors").read_bytes() == source.read_bytes()
        for name in ("a.sparsefmt", "b.safetensors"):
            (tmp_path / name).unlink()


class Recorder(bytearray):
    """A sink that remembers how much it got at once."""

    largest = 0

    def write(self, data: Any) -> None:
        self.largest = max(self.largest, memoryview(data).nbytes)
        self.extend(data)


def test_writer_streams_tiles_and_keeps_their_order(tmp_path: Path) -> None:
    # several tiles each, the last one shorter; rows of F4 and F6 that do not end at whole bytes
    shapes = {"F4": (2_000_002, 1), "F6_E2M3": (400_004, 5), "F6_E3M2": (1, 3_000_000), "U8": (3001, 999)}
    contents = {name: (name, list(shape), patterns(name, *shape)) for name, shape in shapes.items()}
    source = tmp_path / "a.safetensors"
    source.write_bytes(craft_tensors(contents))
    with SafetensorsFile(source) as file:
        sink, done = Recorder(), []
        write_safetensors(sink, {name: file.rows_of(name) for name in file.names}, progress=done.append)
    (tmp_path / "b.safetensors").write_bytes(sink)
    assert read_back(tmp_path / "b.safetensors") == contents
    assert sum(done) == sum(len(content) for _, _, content in contents.values())
    assert sink.largest <= 3_000_000 * 6 // 8
    convert(source, tmp_path / "a.sparsefmt")
    export(tmp_path / "a.sparsefmt", tmp_path / "b.safetensors", overwrite=True)
    assert read_back(tmp_path / "b.safetensors") == contents


def test_writer_refuses_what_safetensors_cannot_hold_before_it_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Recorder()
    with pytest.raises(FormatError, match="__metadata__"):
        write_safetensors(sink, {"__metadata__": ArrayRows(np.ones(2))})
    for dtype, elements in (("F4", 3), ("F6_E2M3", 2), ("F6_E3M2", 7)):
        odd = BytesRows(lambda offset, size: np.zeros(size, np.uint8), DTYPES[dtype], (elements,))
        with pytest.raises(FormatError, match="whole bytes") as caught:
            write_safetensors(sink, {"fine": ArrayRows(np.ones(2)), "odd": odd})
        assert caught.value.tensor == "odd"
    monkeypatch.setattr("sparsefmt.checkpoints.safetensors_writing.MAX_HEADER_BYTES", 100)
    with pytest.raises(LimitError):
        write_safetensors(sink, {"n" * 100: ArrayRows(np.ones(2))})
    assert not sink


def test_boolean_that_is_none_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "a.safetensors"
    source.write_bytes(craft_tensors({"flags": ("BOOL", [3], b"\x00\x01\x02")}))
    with pytest.raises(FormatError, match="'flags'"):
        convert(source, tmp_path / "a.sparsefmt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
