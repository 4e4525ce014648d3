"""safetensors in and out, and checkpoints of several files: bit for bit, in little memory, with faults named."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from safetensors_files import ONE, SHARDS, TWO, craft, craft_tensors, patterns, read_back, save_shards, sparse_array

import sparsefmt
from sparsefmt.adapters import ArrayRows, BytesRows
from sparsefmt.checkpoints import conversion
from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.conversion import Settings, convert_checkpoint, export_checkpoint
from sparsefmt.checkpoints.safetensors_file import SafetensorsFile, write_safetensors
from sparsefmt.checkpoints.sparsefmt_file import SparsefmtFile
from sparsefmt.checkpoints.verification import compare_tensors, verify_tensor
from sparsefmt.container.sources import ReadFile
from sparsefmt.dtypes import DTYPES
from sparsefmt.errors import FormatError, LimitError, SparsefmtError, UnsupportedError


def convert(source: Path, target: Path, **settings: Any) -> list[conversion.ConvertedTensor]:
    with Checkpoint(source, ["safetensors"]) as checkpoint:
        return convert_checkpoint(checkpoint, target, Settings(**settings))


def export(source: Path, target: Path, overwrite: bool = False) -> None:
    with Checkpoint(source, ["sparsefmt"]) as checkpoint:
        export_checkpoint(checkpoint, target, overwrite=overwrite)


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
    monkeypatch.setattr("sparsefmt.checkpoints.safetensors_file.MAX_HEADER_BYTES", 100)
    with pytest.raises(LimitError):
        write_safetensors(sink, {"n" * 100: ArrayRows(np.ones(2))})
    assert not sink


def test_ties_become_copies(tmp_path: Path) -> None:
    shared = np.eye(80, dtype=np.float32)
    sparsefmt.save_file({"embed": shared, "head": shared, "own": shared.copy()}, tmp_path / "a.sparsefmt")
    export(tmp_path / "a.sparsefmt", tmp_path / "b.safetensors")
    exported = safetensors.numpy.load_file(tmp_path / "b.safetensors")
    assert set(exported) == {"embed", "head", "own"}
    for array in exported.values():
        assert (array == shared).all()


def test_boolean_that_is_none_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "a.safetensors"
    source.write_bytes(craft_tensors({"flags": ("BOOL", [3], b"\x00\x01\x02")}))
    with pytest.raises(FormatError, match="'flags'"):
        convert(source, tmp_path / "a.sparsefmt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


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
            verify_tensor(stored.reader, stored.reader.index.tensors["w"], threads=2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert largest_read <= 4 << 20
    assert read_to_convert < (2 * 64 << 20) + 100_000  # once to count, once to store
    assert peak < 48 << 20  # of 64 MiB, and it was read, laid out, exported and compared
    assert back.read_bytes()[-(64 << 20) :] == source.read_bytes()[-(64 << 20) :]


@pytest.mark.parametrize("signs", [False, True])
def test_comparison_finds_the_first_bit_and_counts(tmp_path: Path, signs: bool) -> None:
    array = np.zeros((3000, 700), np.float32)
    array[::3] = np.nan
    other = array.copy()
    other[1, 0] = -0.0
    other[2500, 699] = 5e-324
    other[2999] = np.frombuffer(b"\x01\x00\xc0\x7f", np.float32)
    sparsefmt.save_file({"w": other}, tmp_path / "b.sparsefmt", negative_zeros="drop" if signs else "keep")
    found = compare_tensors(ArrayRows(array), ArrayRows(other), threads=2)
    assert (found.elements, found.first, found.bits) == (701, 700, (0, 0x80000000))
    with SparsefmtFile(tmp_path / "b.sparsefmt") as file:
        entry = file.reader.index.tensors["w"]
        ours = verify_tensor(file.reader, entry, ArrayRows(other), threads=2)
        theirs = verify_tensor(file.reader, entry, ArrayRows(array), threads=2)
    assert ours == (0, -1, (0, 0), 1 if signs else 0)
    # with the signs dropped, 0.0 there is no difference any more; without, it is the first
    assert theirs[:2] == ((700, 2999 * 700) if signs else (701, 700))


def test_forged_totals_are_found_by_verifying(tmp_path: Path) -> None:
    array = np.zeros((100, 100), np.float32)
    array[:, 0] = 1
    sparsefmt.save_file({"w": array}, tmp_path / "a.sparsefmt", layout="bitmask")
    with SparsefmtFile(tmp_path / "a.sparsefmt") as file:
        entry = file.reader.index.tensors["w"]
        object.__setattr__(entry, "nnz", 99)
        with pytest.raises(FormatError, match="99") as caught:
            verify_tensor(file.reader, entry)
        assert caught.value.code == "nnz"


# checkpoints of several files


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


def check_refused(folder: Path, code: str, *words: str) -> None:
    with pytest.raises(SparsefmtError) as caught:
        Checkpoint(folder, ["safetensors"])
    assert caught.value.code == code
    for word in words:
        assert word in str(caught.value)


def test_index_names_a_tensor_that_its_shard_lacks(tmp_path: Path) -> None:
    check_refused(save_shards(tmp_path / "1", SHARDS, ghost=TWO), "checkpoint-tensor-missing", "'ghost'", TWO)
    check_refused(save_shards(tmp_path / "2", SHARDS, a=TWO), "checkpoint-tensor-missing", "'a'", TWO)


def test_shard_has_a_tensor_that_the_index_lacks(tmp_path: Path) -> None:
    check_refused(save_shards(tmp_path / "1", SHARDS, b=None), "checkpoint-tensor-unlisted", "'b'", ONE)


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    shards = {**SHARDS, TWO: {**SHARDS[TWO], "a": sparse_array(9)}}
    check_refused(save_shards(tmp_path / "1", shards), "checkpoint-tensor-duplicate", "'a'", ONE, TWO)
    check_refused(save_shards(tmp_path / "2", shards, index=False), "checkpoint-tensor-duplicate", "'a'", ONE, TWO)
    folder = save_shards(tmp_path / "3", SHARDS)
    (folder / "model.safetensors.index.json").write_text(f'{{"weight_map": {{"a": "{ONE}", "a": "{TWO}"}}}}')
    check_refused(folder, "checkpoint-index", "'a' is there twice")


@pytest.mark.parametrize("index", [True, False])
def test_missing_shard(tmp_path: Path, index: bool) -> None:
    folder = save_shards(tmp_path / "in", SHARDS, index=index)
    (folder / ONE).unlink()
    check_refused(folder, "checkpoint-shard-missing", ONE)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "sub/x.safetensors", "..", "", "a\\b.safetensors", "c:x.safetensors"]
)
def test_shard_must_lie_beside_the_index(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(craft({}))
    check_refused(save_shards(tmp_path / "in", SHARDS, x=name), "checkpoint-index", "'x'", "plain name")


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "[" * 100_000, "\xff"],
)
def test_index_that_is_none(tmp_path: Path, content: str) -> None:
    folder = save_shards(tmp_path / "in", SHARDS)
    (folder / "model.safetensors.index.json").write_bytes(content.encode("latin-1"))
    check_refused(folder, "checkpoint-index", "index.json")


def test_two_indexes_need_a_choice(tmp_path: Path) -> None:
    folder = save_shards(tmp_path / "in", SHARDS)
    index = folder / "model.safetensors.index.json"
    (folder / "model.fp16.safetensors.index.json").write_bytes(index.read_bytes())
    check_refused(folder, "checkpoint-index", "model.fp16.safetensors.index.json")
    convert(folder / "model.fp16.safetensors.index.json", tmp_path / "out")
    assert (tmp_path / "out" / "model.fp16.sparsefmt.index.json").exists()


def test_index_of_another_format(tmp_path: Path) -> None:
    folder = save_shards(tmp_path / "in", SHARDS, z="pytorch_model.bin")
    check_refused(folder, "checkpoint-index", ".bin")


def test_folder_without_index(tmp_path: Path) -> None:
    folder = save_shards(tmp_path / "one", {"model.safetensors": SHARDS[ONE]}, index=False)
    convert(folder, tmp_path / "1")
    assert [path.name for path in (tmp_path / "1").iterdir()] == ["model.sparsefmt"]
    folder = save_shards(tmp_path / "two", {"x.safetensors": SHARDS[ONE], "y.safetensors": SHARDS[TWO]}, index=False)
    convert(folder, tmp_path / "2")
    assert json.loads((tmp_path / "2" / "model.sparsefmt.index.json").read_text()) == {
        "metadata": {"total_size": 3 * 64 * 96 * 4},
        "weight_map": {"a": "x.sparsefmt", "b": "x.sparsefmt", "c": "y.sparsefmt"},
    }
    with pytest.raises(FileNotFoundError, match=r"no \.sparsefmt file"):
        Checkpoint(folder, ["sparsefmt"])


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
        convert_checkpoint(source, tmp_path / "out", Settings(), overwrite=True)
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
