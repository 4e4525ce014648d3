"""Converted and exported: bit for bit, in little memory, with faults named."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable
from math import prod
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from converted_files import convert, export
from safetensors_files import ONE, SHARDS, TWO, craft, craft_tensors, patterns, read_back, save_shards

import sparsefmt
from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.comparison import compare_tensors
from sparsefmt.checkpoints.conversion import convert_checkpoint, export_checkpoint
from sparsefmt.checkpoints.safetensors_file import SafetensorsFile
from sparsefmt.checkpoints.sparsefmt_file import SparsefmtFile
from sparsefmt.checkpoints.verification import Verifier
from sparsefmt.container.sources import ReadFile
from sparsefmt.dtypes import DTYPES
from sparsefmt.errors import FormatError, UnsupportedError
from sparsefmt.save_options import SaveOptions

ALL_DTYPES = craft_tensors(
    {f"w.{name}": (name, [16, 24], patterns(name, 16, 24)) for name in DTYPES}
    | {
        "scalar": ("F32", [], b"\x00\x00\xc0\x7f"),
        "empty": ("BF16", [0, 7], b""),
        "vector": ("F64", [3], struct.pack("<3d", 1, -0.0, 0)),
        "deep": ("F16", [2, 3, 4], patterns("F16", 2, 12)),
        "名前\n[bold]": ("U8", [1], b"x"),
    },
    {"format": "pt", "empty": "", "名": "\u0001"},
)


@pytest.mark.parametrize("layout", ["auto", "dense", "bitmask", "permuted"])
@pytest.mark.parametrize("codec", ["auto", "raw", "zstd"])
def test_every_dtype_round_trips_bit_for_bit(tmp_path: Path, layout: str, codec: str) -> None:
    source, sparse, back = tmp_path / "a.safetensors", tmp_path / "a.sparsefmt", tmp_path / "b.safetensors"
    source.write_bytes(ALL_DTYPES)
    converted = convert(source, sparse, layout=layout, codec=codec)
    assert {tensor.entry.name for tensor in converted} == set(read_back(source))
    if layout in ("bitmask", "permuted"):
        assert {t.entry.name for t in converted if t.entry.layout.name == layout} == {
            *(f"w.{name}" for name, dtype in DTYPES.items() if dtype.prunable),
            "deep",
        }
    export(sparse, back)
    assert read_back(back) == read_back(source)
    with safetensors.safe_open(back, framework="np") as file:
        assert file.metadata() == {"format": "pt", "empty": "", "名": "\u0001"}


def test_reported_numbers_are_those_of_the_tensor(tmp_path: Path) -> None:
    source, sparse = tmp_path / "a.safetensors", tmp_path / "a.sparsefmt"
    bits = np.frombuffer(patterns("BF16", 64, 100), "<u2")
    source.write_bytes(craft_tensors({"w": ("BF16", [64, 100], bits.tobytes())}))
    [kept] = convert(source, sparse)
    assert (kept.survey.nnz, kept.survey.negative_zeros) == (
        np.count_nonzero(bits & 0x7FFF),
        np.count_nonzero(bits == 0x8000),
    )
    assert kept.survey.negative_zeros > 1000
    pruned = 6400 - kept.survey.nnz
    # the signs are random and so cannot be much smaller than a bit each
    assert pruned / 8 * 0.9 < kept.sign_nbytes <= -(-pruned // 8)
    assert sparse.stat().st_size > kept.stored_nbytes > kept.sign_nbytes + 2 * kept.survey.nnz * 0.9
    [dropped] = convert(source, tmp_path / "b.sparsefmt", negative_zeros="drop")
    assert (dropped.survey, dropped.sign_nbytes) == (kept.survey, 0)
    assert dropped.entry.negative_zeros_dropped == kept.survey.negative_zeros
    loaded = np.asarray(sparsefmt.load_file(tmp_path / "b.sparsefmt")["w"]).view("<u2").reshape(-1)
    assert (loaded == np.where(bits == 0x8000, 0, bits)).all()


def test_names_come_in_file_order(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(craft_tensors({"z": ("U8", [2], b"12"), "a": ("I16", [1], b"34"), "m": ("F32", [0], b"")}))
    with SafetensorsFile(path) as file:
        assert file.names == ["z", "a", "m"]
        assert file.metadata == {}
        assert (file.rows_of("a").dtype.name, file.rows_of("a").shape) == ("I16", (1,))
        assert file.rows_of("z").bits(1, 2).tolist() == [[ord("2")]]


def test_ties_become_copies(tmp_path: Path) -> None:
    shared = np.eye(80, dtype=np.float32)
    sparsefmt.save_file({"embed": shared, "head": shared, "own": shared.copy()}, tmp_path / "a.sparsefmt")
    export(tmp_path / "a.sparsefmt", tmp_path / "b.safetensors")
    exported = safetensors.numpy.load_file(tmp_path / "b.safetensors")
    assert set(exported) == {"embed", "head", "own"}
    for array in exported.values():
        assert (array == shared).all()


def test_memory_is_a_few_tiles_whatever_the_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, sparse, back = tmp_path / "a.safetensors", tmp_path / "a.sparsefmt", tmp_path / "b.safetensors"
    with open(source, "wb") as file:
        header = craft({"w": {"dtype": "F32", "shape": [16384, 1024], "data_offsets": [0, 64 << 20]}})
        file.write(header)
        tile = np.zeros((1024, 1024), np.float32)
        tile[:, ::5] = np.random.default_rng(0).standard_normal((1024, 205))
        for _ in range(16):
            file.write(tile.tobytes())
    largest_read = total_read = 0

    def read(self: ReadFile, offset: int, size: int, original: Callable = ReadFile.read) -> np.ndarray:
        nonlocal largest_read, total_read
        largest_read, total_read = max(largest_read, size), total_read + size
        return original(self, offset, size)

    monkeypatch.setattr(ReadFile, "read", read)
    tracemalloc.start()
    try:
        convert(source, sparse, codec="raw", threads=2)
        read_to_convert = total_read
        with Checkpoint(sparse, ["sparsefmt"]) as ours, Checkpoint(source, ["safetensors"]) as theirs:
            export_checkpoint(ours, back, threads=2)
            assert compare_tensors(ours.rows_of("w"), theirs.rows_of("w"), threads=2) == (0, -1, (0, 0), 0)
        with SparsefmtFile(sparse) as stored:
            Verifier(threads=2).verify(stored.reader, stored.reader.index.tensors["w"])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert largest_read <= 4 << 20
    assert read_to_convert < (2 * 64 << 20) + 100_000  # once to count, once to store
    assert peak < 48 << 20  # of 64 MiB, and it was read, laid out, exported and compared
    assert back.read_bytes()[-(64 << 20) :] == source.read_bytes()[-(64 << 20) :]


@pytest.mark.parametrize("name", ["", "model.safetensors.index.json"])
def test_folder_of_shards_there_and_back(tmp_path: Path, name: str) -> None:
    source = save_shards(tmp_path / "in", SHARDS)
    (source / "consolidated.safetensors").write_bytes(b"not listed, not looked at")
    (source / "config.json").write_text("{}")
    converted = convert(source / name, tmp_path / "out")
    assert [tensor.entry.name for tensor in converted] == ["a", "b", "c"]
    one, two = ONE.replace("safetensors", "sparsefmt"), TWO.replace("safetensors", "sparsefmt")
    # an index stands for the weights alone, a folder for the model
    others = [] if name else ["README.md", "config.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *others,
        one,
        two,
        "model.sparsefmt.index.json",
    ]
    assert json.loads((tmp_path / "out" / "model.sparsefmt.index.json").read_text()) == {
        "metadata": {"total_size": 99, "note": "é"},
        "weight_map": {"a": one, "b": one, "c": two},
        "other": [1],
    }
    with Checkpoint(source / name, ["safetensors"]) as theirs, Checkpoint(tmp_path / "out", ["sparsefmt"]) as ours:
        assert [path.name for path in theirs.unlisted] == ["consolidated.safetensors"]
        for tensor in ours.names:
            assert compare_tensors(ours.rows_of(tensor), theirs.rows_of(tensor)).elements == 0
    export(tmp_path / "out", tmp_path / "back")
    for shard in (ONE, TWO):
        assert (tmp_path / "back" / shard).read_bytes() == (source / shard).read_bytes()
    original, back = (
        json.loads((folder / "model.safetensors.index.json").read_text()) for folder in (source, tmp_path / "back")
    )
    assert back == original


def test_failed_folder_leaves_nothing(tmp_path: Path) -> None:
    folder = save_shards(tmp_path / "in", SHARDS)
    (folder / TWO).write_bytes(craft_tensors({"c": ("BOOL", [2], b"\x05\x00")}))
    with pytest.raises(FormatError) as caught:
        convert(folder, tmp_path / "out")
    assert caught.value.path == str(folder / TWO)
    assert not (tmp_path / "out").exists()
    # an old result there stays what it was, as a whole
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.sparsefmt.index.json").write_text("old")
    (tmp_path / "out" / TWO.replace("safetensors", "sparsefmt")).write_text("old")
    with pytest.raises(FormatError), Checkpoint(folder, ["safetensors"]) as source:
        convert_checkpoint(source, tmp_path / "out", SaveOptions(), overwrite=True)
    left = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert left == dict.fromkeys(["model.sparsefmt.index.json", TWO.replace("safetensors", "sparsefmt")], "old")


def test_unknown_dtype_and_bad_names_say_which_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(craft_tensors({"": ("U8", [1], b"1")}))
    with pytest.raises(FormatError, match="empty"):
        convert(path, tmp_path / "a.sparsefmt")
    path.write_bytes(craft_tensors({"w": ("F32", [1], b"1234")}))
    fewer = {name: dtype for name, dtype in DTYPES.items() if name != "F32"}
    monkeypatch.setattr("sparsefmt.checkpoints.safetensors_file.DTYPES", fewer)
    with pytest.raises(UnsupportedError, match="'w'"):
        SafetensorsFile(path)


def test_small_tensors_are_prepared_ahead_and_large_ones_in_tiles(tmp_path: Path) -> None:
    """Whatever the number of threads, the file is the same, copies are found, and progress comes in order."""
    shapes = [[40, 60 + number] for number in range(12)] + [[1100, 2000], [30, 30], [2000, 1100], [], [7], [0, 3]]
    tensors = {f"t{n:02}": ("F32", shape, patterns("F32", 1, prod(shape), n)) for n, shape in enumerate(shapes)}
    tensors["copy of a small one"] = tensors["t03"]
    tensors["copy of a large one"] = tensors["t12"]
    source = tmp_path / "a.safetensors"
    source.write_bytes(craft_tensors(tensors))
    written, steps = [], []
    for threads in (1, 3):
        with Checkpoint(source, ["safetensors"]) as checkpoint:
            target, done = tmp_path / f"{threads}.sparsefmt", []
            options = SaveOptions(codec="zstd", threads=threads)
            converted = convert_checkpoint(checkpoint, target, options, progress=done.append)
            assert [tensor.name for tensor in converted] == list(tensors)
            assert [tensor.name for tensor in converted if tensor.is_copy] == list(tensors)[-2:]
            assert sum(done) == checkpoint.dense_nbytes
        written.append(target.read_bytes())
        steps.append(done)
        export(target, tmp_path / f"{threads}.safetensors")
        assert read_back(tmp_path / f"{threads}.safetensors") == read_back(source)
    assert written[0] == written[1]
    assert steps[0] == steps[1]


def test_a_fault_of_a_small_tensor_has_its_name(tmp_path: Path) -> None:
    """And nothing is written, though others were ready before it was their turn."""
    tensors = {f"t{n}": ("F32", [20, 30], patterns("F32", 20, 30, n)) for n in range(5)}
    tensors["flags"] = ("BOOL", [2000], bytes([2]) * 2000)
    tensors["last"] = tensors["t1"]
    (tmp_path / "a.safetensors").write_bytes(craft_tensors(tensors))
    with pytest.raises(FormatError, match="'flags'"):
        convert(tmp_path / "a.safetensors", tmp_path / "a.sparsefmt", threads=2)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
