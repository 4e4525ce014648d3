"""What is saved can be loaded: whatever a reader would refuse, the writer refuses first, and leaves no file."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from helpers import CODECS, arrays, dense, examples, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy
from outcomes import outcome_of_reader

import sparsefmt
from sparsefmt import FormatError, SparsefmtError, SparseTensor, limits
from sparsefmt.adapters import ArrayRows
from sparsefmt.container import coded_index, in_progress, writer
from sparsefmt.layouts import LAYOUTS
from sparsefmt.tensor_writer import TensorWriter
from sparsefmt.writing import write_all
from tools.taken_apart import split_as_stored

ANY_TEXT = st.text(st.characters(exclude_categories=[]), max_size=5)
"""With NUL, surrogates, and characters that have several forms."""

NAMES = ANY_TEXT | st.sampled_from(
    ["", "é", "e\u0301", "a" * 1024, "a" * 1025, "é" * 512, "é" * 513, "\0", "\ud800", "../w"]
)
NO_NAMES = st.sampled_from([None, 3, b"w", ("w",), True])

SHAPES = st.sampled_from(
    [(), (0,), (1,), (0, 0), (3, 0), (0, 3), (2, 3, 0, 4), (1,) * 32, (1,) * 33, (0,) * 33, (1,) * 64]
)
HUGE_SHAPES = st.lists(st.sampled_from([0, 1, 2, 1 << 16, 1 << 31, 1 << 32, 1 << 53, 1 << 59, 1 << 60]), max_size=4)


@st.composite
def empty_of_huge_shapes(draw: Any) -> np.ndarray:
    """No element, and other dimensions as large as numpy takes them."""
    shape = [*draw(HUGE_SHAPES), 0]
    dtype = draw(st.sampled_from([np.uint8, np.float16, np.float32, np.float64, np.bool_]))
    try:
        return np.empty(draw(st.permutations(shape)), dtype)
    except ValueError:
        return np.empty((0, 7), dtype)


def any_arrays() -> st.SearchStrategy[Any]:
    """Of types, shapes and memory orders that the format has and of others."""
    dtypes = hypothesis_numpy.scalar_dtypes() | hypothesis_numpy.byte_string_dtypes()
    of_numpy = hypothesis_numpy.arrays(
        dtypes | hypothesis_numpy.unicode_string_dtypes(),
        hypothesis_numpy.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    )
    steps = st.sampled_from([1, 2, -1])
    views = st.builds(lambda array, step: array[..., ::step] if array.ndim else array, arrays(), steps)
    others = st.sampled_from(
        [None, "text", object(), [1, "a"], [[1], [2]], [[1], [1, 2]], {}, 1 << 70, 1j, float("nan"), True, b"\0"]
    )
    zeros = st.builds(np.zeros, SHAPES, st.sampled_from(["f4", "?", "V3", "M8[s]"]))
    return of_numpy | views | others | zeros | empty_of_huge_shapes()


NO_TEXT = ANY_TEXT | st.none() | st.integers() | st.binary(max_size=2)
METADATA = st.none() | st.dictionaries(ANY_TEXT, ANY_TEXT, max_size=3) | st.dictionaries(NO_TEXT, NO_TEXT, max_size=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("writer")


def saved(tensors: Mapping[Any, Any], metadata: Any, folder: Path, **keywords: Any) -> bytes | None:
    """The bytes of the file; None if it was refused, with an error of the library and nothing left behind."""
    path = folder / "w.sparsefmt"
    path.unlink(missing_ok=True)
    try:
        sparsefmt.save_file(tensors, path, metadata, **keywords)
    except SparsefmtError:
        assert list(folder.iterdir()) == []
        return None
    return path.read_bytes()


@settings(max_examples=examples(200), deadline=None)
@given(
    tensors=st.dictionaries(st.text("abé.", min_size=1, max_size=3), any_arrays() | arrays(), min_size=1, max_size=2),
    metadata=st.dictionaries(st.text("ab\0", max_size=2), st.text("ü\n", max_size=2), max_size=2),
    layout=st.sampled_from(["auto", *LAYOUTS]),
    codec=st.sampled_from(CODECS),
)
def test_what_is_accepted_can_be_read(tensors, metadata, layout, codec, folder):
    """By the library, and by the reader that was written from SPEC.md alone."""
    data = saved(tensors, metadata, folder, layout=layout, codec=codec)
    if data is None:
        return
    loaded = sparsefmt.load(data)
    assert list(loaded) == sorted(tensors)
    with sparsefmt.open_file(folder / "w.sparsefmt") as file:
        assert file.metadata() == (metadata or {})
    for name, value in tensors.items():
        array = np.asarray(value)
        expected = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"))).reshape(array.shape)
        assert same_bits(dense(loaded[name]), expected)
    by_reader = outcome_of_reader(data)
    assert isinstance(by_reader, dict), by_reader
    assert list(by_reader) == sorted(tensors)


@settings(max_examples=examples(200), deadline=None)
@given(names=st.lists(NAMES | NO_NAMES, min_size=1, max_size=4, unique=True), metadata=METADATA)
def test_names_and_metadata(names, metadata, folder):
    """Of tensors that nothing is wrong with: a file if and only if all texts are what SPEC.md says."""
    data = saved(dict.fromkeys(names, np.ones(2, np.float32)), metadata, folder, codec="raw")
    good = all(is_text(name) and 1 <= len(name.encode()) <= 1024 and "\0" not in name for name in names)
    good &= all(is_text(key) and is_text(value) for key, value in (metadata or {}).items())
    assert (data is not None) == good


def is_text(value: object) -> bool:
    """Whether this is text that UTF-8 can write."""
    return isinstance(value, str) and not any(0xD800 <= ord(character) < 0xE000 for character in value)


@settings(max_examples=examples(100), deadline=None)
@given(array=empty_of_huge_shapes(), codec=st.sampled_from(CODECS))
def test_shapes_without_elements(array, codec, folder):
    """A file if and only if 63 bits count the bits of its other dimensions."""
    data = saved({"w": array}, None, folder, codec=codec)
    bits = array.dtype.itemsize * 8
    for size in array.shape:
        bits *= max(size, 1)
    assert (data is not None) == (bits < 1 << 63)
    if data is not None:
        assert sparsefmt.load(data)["w"].shape == array.shape


def test_limits_of_a_file(folder, monkeypatch):
    """Metadata up to its limit and no more; tensors and bytes of the index, with limits that a test can reach."""
    text = "é" * (limits.MAX_METADATA_BYTES // 2 - 1)
    data = saved({}, {"ab": text}, folder)
    assert data is not None
    with sparsefmt.open_file(folder / "w.sparsefmt") as file:
        assert file.metadata() == {"ab": text}
    assert saved({}, {"abc": text}, folder) is None
    tensors = {"a": np.ones(2), "b": np.ones(3), "c": np.ones(4)}
    monkeypatch.setattr(writer, "MAX_TENSORS", 3)
    assert saved(tensors, {}, folder) is not None
    assert saved({**tensors, "d": np.ones(5)}, {}, folder) is None
    assert saved({**tensors, "tied": tensors["a"]}, {}, folder) is None
    monkeypatch.setattr(in_progress, "MAX_CHUNK_BYTES", 32)
    assert saved(tensors, {}, folder) is not None
    assert saved({**tensors, "c": np.ones((1, 5))}, {}, folder) is None
    for codec in ("auto", "raw"):
        monkeypatch.setattr(writer, "MAX_INDEX_BYTES", 40)
        assert saved({"a": np.ones(2)}, {}, folder, codec=codec) is not None
        assert saved(tensors, {}, folder, codec=codec) is None
    monkeypatch.setattr(writer, "MAX_INDEX_BYTES", limits.MAX_INDEX_BYTES)
    # what readers would not decode is not coded
    monkeypatch.setattr(coded_index, "MAX_CODED_INDEX_BYTES", 40)
    found = saved(tensors, {}, folder)
    assert found is not None
    assert not split_as_stored(found)[1].startswith(zstandard.FRAME_HEADER)


@pytest.mark.parametrize("layout", ["bitmask", "permuted"])
def test_tensors_that_are_compressed_already(layout, folder):
    """Their arrays are read-only, and so is what they come from: nobody can change them behind the writer's back."""
    array = np.diag(np.arange(1, 41, dtype=np.float32))
    w = SparseTensor.from_dense(array, layout)
    for tile in w.operand().tiles:
        for part in tile.all_arrays().values():
            with pytest.raises(ValueError, match="read-only"):
                part[...] = 0
    data = saved({"w": w, "tied": w}, {}, folder)
    assert data is not None
    assert same_bits(dense(sparsefmt.load(data)["tied"]), array)


def test_old_files_stay(folder):
    """A refusal leaves the file that was there."""
    path = folder / "w.sparsefmt"
    sparsefmt.save_file({"w": np.eye(3)}, path)
    before = path.read_bytes()
    faults: list[tuple[Any, Any]] = [({"\ud800": np.eye(3)}, {}), ({"w": np.array(["text"])}, {}), ({}, {"a": 1})]
    for tensors, metadata in faults:
        with pytest.raises(SparsefmtError):
            sparsefmt.save_file(tensors, path, metadata)
        assert path.read_bytes() == before
        assert list(folder.iterdir()) == [path]


class _Failing(ArrayRows):
    """An array whose rows from `end` on cannot be read, or change after they have been counted."""

    def __init__(self, array: np.ndarray, end: int, error: BaseException | None) -> None:
        super().__init__(array)
        self._end, self._error, self._counted = end, error, False

    def survey(self, threads: int | None = None) -> Any:
        found = super().survey(threads)
        self._counted = True
        return found

    def bits(self, begin: int, end: int) -> np.ndarray:
        bits = super().bits(begin, end)
        if not self._counted or end <= self._end:
            return bits
        if self._error is not None:
            raise self._error
        return np.where(np.arange(begin, end)[:, None] < self._end, bits, bits.dtype.type(1))


TALL = np.zeros((4096, 1024), np.float32)
TALL[::7, ::5] = 3


@pytest.mark.parametrize(
    "error", [None, FormatError("index-invalid", "no"), OSError(5, "no"), KeyboardInterrupt()], ids=repr
)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("end", [0, 2048])
def test_after_a_tensor_that_failed(error, codec, end):
    """Once a part of a tensor was written, a writer refuses everything; before that, it goes on without the tensor."""
    sink = io.BytesIO()
    tensor_writer = TensorWriter(sink, codec=codec, threads=1)
    tensor_writer.add("first", np.eye(3))
    before = sink.tell()
    with pytest.raises(FormatError if error is None else type(error)):
        tensor_writer.add("failed", _Failing(TALL, end, error))
    if sink.tell() == before:
        tensor_writer.add("failed", TALL)
        tensor_writer.finish()
        loaded = sparsefmt.load(sink.getvalue())
        assert same_bits(dense(loaded["failed"]), TALL)
        assert same_bits(dense(loaded["first"]), np.eye(3))
        return
    for call in (
        lambda: tensor_writer.add("other", np.eye(3)),
        lambda: tensor_writer.add_alias("tied", "first"),
        tensor_writer.finish,
    ):
        with pytest.raises(FormatError, match=r"tensor 'failed' failed .* Write a new one") as raised:
            call()
        assert raised.value.code == "writer-failed"


class _Full(io.BytesIO):
    """A sink that takes so many bytes."""

    room = 0

    def write(self, data: Any, /) -> int:
        if self.tell() + memoryview(data).nbytes > self.room:
            raise OSError(28, "No space left on device")
        return super().write(data)


def test_after_a_sink_that_failed():
    """Whatever the byte at which a sink is full: no file, and a writer that says so."""
    whole = len(sparsefmt.save({"a": np.eye(3), "b": np.eye(4)}))
    for room in range(64, whole, 16):
        sink = _Full()
        sink.room = room
        tensor_writer = TensorWriter(sink)
        with pytest.raises(OSError, match="No space"):
            write_all(tensor_writer, {"a": np.eye(3), "b": np.eye(4)})
        sink.room = 2 * whole
        with pytest.raises(FormatError) as raised:
            tensor_writer.finish()
        assert raised.value.code == "writer-failed"


def test_a_finished_file_takes_nothing_more():
    sink = io.BytesIO()
    tensor_writer = TensorWriter(sink)
    tensor_writer.add("w", np.eye(3))
    tensor_writer.finish()
    for call in (
        lambda: tensor_writer.add("other", np.eye(3)),
        lambda: tensor_writer.add_alias("tied", "w"),
        tensor_writer.finish,
    ):
        with pytest.raises(FormatError) as raised:
            call()
        assert raised.value.code == "writer-finished"
    assert list(sparsefmt.load(sink.getvalue())) == ["w"]
