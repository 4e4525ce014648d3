"""Checkpoints behind URLs: in fsspec's memory, on a web server, and in an S3 on loopback."""

from __future__ import annotations

import json
import pickle
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import click
import numpy as np
import pytest
import safetensors.numpy
from converted_files import convert, export
from helpers import fail, first_always, run_command, succeed
from model_folders import CONFIG, COPIED, save_config, write
from remote_servers import s3_bucket, serving
from safetensors_files import SHARDS, save_shards, sparse_array

import sparsefmt
from sparsefmt.checkpoints import conversion
from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.conversion import convert_checkpoint, convert_file
from sparsefmt.checkpoints.safetensors_file import SafetensorsFile
from sparsefmt.checkpoints.target_folder import FilesWriter, write_checkpoint
from sparsefmt.cli import main
from sparsefmt.container import in_progress, remote, remote_file, remote_path
from sparsefmt.container.remote_path import RemotePath, place_of
from sparsefmt.errors import FormatError, UnsupportedError
from sparsefmt.quantizing import Quantization
from sparsefmt.save_options import SaveOptions

fsspec = pytest.importorskip("fsspec", reason="URLs need fsspec")
from fsspec.implementations.memory import MemoryFileSystem  # noqa: E402


@pytest.fixture
def memory() -> Iterator[Any]:
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What is asked of a store, as that goes on: "info", and ranges."""
    found: list[object] = []
    read, info = remote.RemoteObject.read, remote.RemoteObject.info
    monkeypatch.setattr(remote.RemoteObject, "read", lambda self, *span: (found.append(span), read(self, *span))[1])
    monkeypatch.setattr(remote.RemoteObject, "info", lambda self: (found.append("info"), info(self))[1])
    return found


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder of two shards, with what else belongs to a model."""
    folder = save_shards(tmp_path / "model", SHARDS)
    save_config(folder, CONFIG)
    write(folder, COPIED)
    return folder


def upload(folder: Path, url: str, options: dict[str, Any] | None = None) -> None:
    files, path = fsspec.core.url_to_fs(url, **(options or {}))
    for file in folder.rglob("*"):
        if file.is_file():
            files.pipe_file(f"{path}/{file.relative_to(folder).as_posix()}", file.read_bytes())


def content_of(place: Path | str, options: dict[str, Any] | None = None) -> dict[str, bytes]:
    """All files below a folder of the disk or of a store."""
    files, path = fsspec.core.url_to_fs(str(place), **(options or {}))
    files.invalidate_cache()
    return {name.removeprefix(path).lstrip("/"): files.cat_file(name) for name in files.find(path)}


# places


@pytest.mark.parametrize(
    ("url", "name", "parent", "child"),
    [
        ("s3://b/a/m.safetensors", "m.safetensors", "s3://b/a", "s3://b/a/c d%2e?"),
        ("simplecache::s3://b/a/m.x", "m.x", "simplecache::s3://b/a", "simplecache::s3://b/a/c d%2e?"),
        ("https://h:8/a/m%20n.x?sig=1", "m n.x", "https://h:8/a?sig=1", "https://h:8/a/c%20d%252e%3F?sig=1"),
        ("hf://org/repo@rev/m.x", "m.x", "hf://org/repo@rev", "hf://org/repo@rev/c d%2e?"),
    ],
)
def test_names_and_parents(url, name, parent, child):
    place = place_of(url, {"key": "k"})
    assert isinstance(place, RemotePath)
    assert (place.name, place.stem, place.suffix) == (name, Path(name).stem, Path(name).suffix)
    assert place.parent.url == parent
    assert place.with_name("c d%2e?").url == child
    assert "sig" not in str(place)
    again = pickle.loads(pickle.dumps(place))
    assert again == place
    assert again.options == {"key": "k"}
    assert {place: 1}[again] == 1


@pytest.mark.parametrize("below", ["../x", "/x", "a/../../x"])
def test_what_lies_below_stays_below(below):
    with pytest.raises(ValueError, match="is not below"):
        place_of("s3://bucket/folder") / below  # type: ignore[operator]


# safetensors


def test_what_is_asked_for(memory, asked, monkeypatch):
    """The header comes in one range, small tensors together, large ones in parts; twice only what is too large."""
    arrays = {f"small.{number}": np.full((10, 10), number, np.float32) for number in range(40)}
    arrays["large"] = np.arange(600_000, dtype=np.float32).reshape(600, 1000)
    memory.pipe_file("/m/model.safetensors", safetensors.numpy.save(arrays))
    with SafetensorsFile("memory://m/model.safetensors") as file:
        assert asked == ["info", (0, 1 << 18)]
        asked.clear()
        monkeypatch.setattr(remote_file, "MOST_AT_ONCE", 1 << 20)
        file.expect(file.names, 2)
        for name in (*file.names, *file.names):
            rows = file.rows_of(name)
            stored = rows.bits(0, rows.rows).view(np.float32).reshape(rows.shape)
            assert np.array_equal(stored, arrays[name])
        ranges = [span for span in asked if span != "info"]
        assert len(ranges) == 3
        assert sum(end - begin for begin, end in ranges) < file.nbytes
        assert asked.count("info") == 3


@pytest.mark.parametrize(
    "case", first_always([({}, 1 << 19), ({"values": "int8"}, 0), ({"fold": True}, 0), ({}, 1 << 27)])
)
def test_a_conversion_asks_once_for_each_byte(memory, asked, monkeypatch, tmp_path, case):
    """Though it reads tensors several times: what is more than the bound of memory is on the disk meanwhile."""
    options, kept = case
    arrays = {f"{name}.weight": np.tile(sparse_array(name), (9, 10)) for name in (1, 2)}
    arrays |= {f"small.{number}": np.arange(2000.0) + number for number in range(20)}
    arrays |= {"z.weight_orig": np.ones((576, 960), np.float32), "z.weight_mask": arrays["1.weight"] != 0}
    arrays["z.weight_mask"] = arrays["z.weight_mask"].astype(np.float32)
    content = safetensors.numpy.save(arrays)
    memory.pipe_file("/m/model.safetensors", content)
    (tmp_path / "model.safetensors").write_bytes(content)
    monkeypatch.setattr(remote_path, "WITHOUT_TAIL", remote_file.Ends(1 << 14, 0))
    monkeypatch.setattr(remote_file, "MOST_AT_ONCE", 1 << 18)
    monkeypatch.setattr(remote_file, "MOST_KEPT", kept)
    monkeypatch.setattr(in_progress, "KEPT_BYTES", 0)
    monkeypatch.setattr(conversion, "_MOST_AHEAD", 1 << 16)
    most, keep, blocks = [0], remote_file.RemoteFile._keep, set()

    def watched(self, request):
        keep(self, request)
        most[0] = max(most[0], sum(self._kept.values()))
        blocks.add(self._on_disk._blocks)

    monkeypatch.setattr(remote_file.RemoteFile, "_keep", watched)
    results = []
    for place in (place_of("memory://m/model.safetensors"), tmp_path / "model.safetensors"):
        with Checkpoint(place, ["safetensors"]) as source:
            if "fold" in options:
                source.fold()
            source.quantization = Quantization.of(options.get("values"), None, "absmax")
            convert_checkpoint(source, tmp_path / "out.sparsefmt", SaveOptions(), overwrite=True)
            if isinstance(place, RemotePath):
                (file,) = source.files
                assert not getattr(file, "inner", file)._source._kept
        results.append((tmp_path / "out.sparsefmt").read_bytes())
    assert results[0] == results[1]
    ranges = sorted(span for span in asked if span != "info")
    assert [(a, b) for a, b in pairwise(ranges) if a[1] > b[0]] == []
    assert sum(end - begin for begin, end in ranges) <= len(content)
    assert len(ranges) < 50
    assert most[0] <= max(kept, 1 << 18)
    # what was converted makes room
    assert (max(blocks) > 0) == (kept < 1 << 27)
    assert max(blocks) << 18 < len(content) * 0.7


@pytest.mark.parametrize("expecting", [True, False])
def test_a_file_that_changes_is_an_error(memory, expecting):
    arrays = {"a": np.ones((500, 500), np.float32), "b": np.ones((500, 500), np.float32)}
    memory.pipe_file("/m/model.safetensors", safetensors.numpy.save(arrays))
    with SafetensorsFile("memory://m/model.safetensors") as file:
        if expecting:
            file.expect(file.names)
        memory.pipe_file("/m/model.safetensors", safetensors.numpy.save({"a": arrays["a"] + 1, "b": arrays["b"]}))
        with pytest.raises(FormatError, match="replaced while it was read") as caught:
            file.rows_of("b").bits(0, 500)
    assert (caught.value.code, caught.value.path) == ("file-changed", "memory://m/model.safetensors")


class Hub(MemoryFileSystem):
    """Files of Hugging Face, in memory."""

    protocol = "hf"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.rpartition("://")[2].strip("/")


class Google(Hub):
    """Objects of Google, in memory."""

    protocol = "gs"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]


def test_the_scheme_chooses_the_file_system(monkeypatch):
    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "gs", Google)
    weight = sparse_array(1)
    sparsefmt.save_file({"a": weight}, "gs://bucket/model.sparsefmt")
    assert list(Google.store) == ["/bucket/model.sparsefmt"]
    assert np.array_equal(sparsefmt.numpy.load_file("gs://bucket/model.sparsefmt")["a"], weight)
    with pytest.raises(FileNotFoundError, match=r"no such object.*gs://bucket/none"):
        sparsefmt.load_file("gs://bucket/none")
    Google.store.clear()


@pytest.mark.parametrize(
    ("repository", "is_fixed"),
    [
        (f"o/r@{'0123456789' * 4}", True),
        (f"datasets/o/r@{'0123456789' * 4}", True),
        ("o/r@main", False),
        (f"o/r@{'0123456789' * 3}", False),
        (f"o/r/{'0123456789' * 4}", False),
    ],
)
def test_a_commit_of_hugging_face_never_changes(asked, monkeypatch, repository, is_fixed):
    """With its hash in the URL, nobody asks after each range whether it has."""
    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "hf", Hub)
    url = f"hf://{repository}/model.safetensors"
    Hub.store.clear()
    Hub().pipe_file(url, safetensors.numpy.save({"a": np.ones(300_000), "b": np.ones(9)}))
    with SafetensorsFile(url) as file:
        for name in file.names:
            file.rows_of(name).bits(0, 1)
        assert len([span for span in asked if span != "info"]) == 2
        assert asked.count("info") == (1 if is_fixed else 2)
        if not is_fixed:
            Hub().pipe_file(url, safetensors.numpy.save({"a": np.zeros(300_000), "b": np.ones(9)}))
            with pytest.raises(FormatError, match="replaced while it was read"):
                file.rows_of("a").bits(200_000, 300_000)


def test_long_headers(memory, asked):
    arrays = {f"{'name' * 30}.{number}": np.array([number]) for number in range(3000)}
    memory.pipe_file("/m/model.safetensors", safetensors.numpy.save(arrays))
    with SafetensorsFile("memory://m/model.safetensors") as file:
        assert len(file.names) == 3000
        assert len([span for span in asked if span != "info"]) == 2


def test_torch_files_are_to_be_downloaded(memory):
    memory.pipe_file("/m/pytorch_model.bin", b"PK\x03\x04 and what else torch.save writes")
    assert "download it first" in fail(1, "inspect", "memory://m/pytorch_model.bin")
    with pytest.raises(UnsupportedError, match=r"memory://m/pytorch_model\.bin.*download it first") as caught:
        Checkpoint("memory://m", ["torch"])
    assert caught.value.code == "remote-torch"


def test_files_of_other_formats(memory):
    memory.pipe_file("/m/model.safetensors", b"<html>login</html>" * 10)
    with pytest.raises(FormatError, match=r"memory://m/model.safetensors.*HTML"):
        Checkpoint("memory://m/model.safetensors", ["safetensors"])
    sparsefmt.save_file({"a": np.ones(3)}, "memory://m/own.sparsefmt")
    with pytest.raises(FormatError, match="sparsefmt file already"):
        Checkpoint("memory://m/own.sparsefmt", ["safetensors"])
    with pytest.raises(FileNotFoundError, match=r"no such object.*memory://m/none"):
        Checkpoint("memory://m/none.safetensors", ["safetensors"])


# folders


def test_a_folder_to_a_folder(memory, model, tmp_path):
    """The result is that of the disk, from there and to there, and the way back."""
    upload(model, "memory://bucket/model")
    convert(model, tmp_path / "here")
    convert(place_of("memory://bucket/model"), place_of("memory://bucket/there"))  # type: ignore[arg-type]
    expected = content_of(tmp_path / "here")
    assert "model.sparsefmt.index.json" in expected
    assert content_of("memory://bucket/there") == expected
    convert(place_of("memory://bucket/model"), tmp_path / "down")  # type: ignore[arg-type]
    assert content_of(tmp_path / "down") == expected
    convert(model, place_of("memory://bucket/up"))  # type: ignore[arg-type]
    assert content_of("memory://bucket/up") == expected
    export(tmp_path / "here", tmp_path / "back")
    export(place_of("memory://bucket/there"), place_of("memory://bucket/back"))  # type: ignore[arg-type]
    assert content_of("memory://bucket/back") == content_of(tmp_path / "back")


def test_a_shard_alone(memory, model, tmp_path):
    upload(model, "memory://bucket/model")
    convert(model, tmp_path / "here")
    name = next(iter(SHARDS))
    source = pickle.loads(pickle.dumps(place_of(f"memory://bucket/model/{name}")))
    target = place_of(f"memory://bucket/one/{source.stem}.sparsefmt")
    names = {tensor.name for tensor in convert(source, target)}  # type: ignore[arg-type]
    assert names == set(SHARDS[name])
    assert target.read_bytes() == (tmp_path / "here" / target.name).read_bytes()


def test_a_destination_that_is_there(memory, model):
    upload(model, "memory://bucket/model")
    memory.pipe_file("/bucket/there/notes.txt", b"mine")
    assert "exists already, and is not empty; --force" in fail(2, "convert", model, "memory://bucket/there")
    assert content_of("memory://bucket/there") == {"notes.txt": b"mine"}
    memory.pipe_file("/bucket/there/model-00003-of-00003.sparsefmt", b"old")
    said = succeed("convert", model, "memory://bucket/there", "--force")
    assert "Removed, of the model that was there: model-00003-of-00003.sparsefmt" in said
    after = content_of("memory://bucket/there")
    assert after["notes.txt"] == b"mine"
    assert "model-00003-of-00003.sparsefmt" not in after
    assert "the source itself" in fail(2, "convert", "memory://bucket/model", "memory://bucket/model/", "--force")
    # a single file
    memory.pipe_file("/bucket/one.sparsefmt", b"old")
    shard = model / next(iter(SHARDS))
    assert "exists already; --force" in fail(2, "convert", shard, "memory://bucket/one.sparsefmt")
    assert memory.cat_file("/bucket/one.sparsefmt") == b"old"
    succeed("convert", shard, "memory://bucket/one.sparsefmt", "--force")
    assert "name the destination" in fail(2, "convert", "memory://bucket/model")


def check_is_no_checkpoint(url: str) -> None:
    for formats in (["sparsefmt"], ["safetensors"]):
        with pytest.raises((FormatError, FileNotFoundError)):
            Checkpoint(url, formats)  # type: ignore[arg-type]


class Killed(BaseException):
    """As good as the end of the process: nothing is tidied up after it."""


@pytest.mark.parametrize("after", range(12))
def test_a_conversion_that_is_cut_off_is_no_checkpoint(memory, model, monkeypatch, after):
    """Of all beginnings of what is written, only the whole is taken for a checkpoint."""
    from sparsefmt.checkpoints import store_folder

    written = 0
    writing = remote.RemoteObject.writing

    def killed(self):
        nonlocal written
        if written == after:
            raise Killed
        written += 1
        return writing(self)

    monkeypatch.setattr(remote.RemoteObject, "writing", killed)
    monkeypatch.setattr(store_folder.StoreFolder, "__exit__", lambda *_: None)
    target = place_of("memory://bucket/there")
    with Checkpoint(model, ["safetensors"]) as source:
        try:
            convert_checkpoint(source, target, SaveOptions())
        except Killed:
            check_is_no_checkpoint("memory://bucket/there")
        else:
            pytest.fail("more is written than the test knows") if written > 12 else None
            with Checkpoint(target, ["sparsefmt"]) as whole:
                assert set(whole.names) == set(source.names)


def test_a_conversion_that_fails(memory, model, monkeypatch):
    """What was there stays if none of it was replaced; else the folder says that it is not whole."""
    first, second = (Path(name).stem for name in sorted(SHARDS))
    target = place_of("memory://bucket/there")

    def fails(self, name, rows_of=SafetensorsFile.rows_of):
        if second in str(self.path) and name == self.names[-1]:
            raise FormatError("file-changed", "as it happens", path=str(self.path))
        return rows_of(self, name)

    monkeypatch.setattr(SafetensorsFile, "rows_of", fails)
    with Checkpoint(model, ["safetensors"]) as source:
        with pytest.raises(FormatError, match="as it happens"):
            convert_checkpoint(source, target, SaveOptions())
        assert content_of("memory://bucket/there") == {}
        memory.pipe_file("/bucket/there/model.sparsefmt", sparsefmt.save({"old": np.ones(3)}))
        before = content_of("memory://bucket/there")
        with pytest.raises(FormatError, match="as it happens"):
            convert_checkpoint(source, target, SaveOptions(), overwrite=True)
        assert content_of("memory://bucket/there") == before
        memory.pipe_file(f"/bucket/there/{first}.sparsefmt", sparsefmt.save({"old": np.ones(3)}))
        with pytest.raises(FormatError, match="as it happens"):
            convert_checkpoint(source, target, SaveOptions(), overwrite=True)
    with pytest.raises(FormatError, match=r"model\.sparsefmt\.index\.json: the conversion is not finished"):
        Checkpoint(target, ["sparsefmt"])


def test_a_conversion_that_goes_on(memory, model):
    """With a key, what is there of a failed one stays, in a folder that readers refuse, for the next of that key."""
    target = place_of("memory://bucket/there")

    class Writer(FilesWriter):
        key = "0123456789abcdef"

    def fail_at_the_second(file, place):
        if file.path.name == max(SHARDS):
            raise OSError("as it happens")
        return write(file, place)

    def write(file, place):
        return [tensor.name for tensor in convert_file(file, place, SaveOptions())]

    with Checkpoint(model, ["safetensors"]) as source:
        with pytest.raises(OSError, match="as it happens"):
            write_checkpoint(source, target, "sparsefmt", False, Writer(fail_at_the_second))
        check_is_no_checkpoint("memory://bucket/there")
        assert len(content_of("memory://bucket/there")) == 2
        with pytest.raises(FileExistsError, match="not empty"):
            convert_checkpoint(source, target, SaveOptions())
        write_checkpoint(source, target, "sparsefmt", False, Writer(write))
    with Checkpoint(target, ["sparsefmt"]) as whole:
        assert whole.names == sorted(name for shard in SHARDS.values() for name in shard)


@pytest.mark.parametrize("shard", ["../x.safetensors", "/x", "s3://b/x", "..", "%2e%2e%2fx.safetensors", "x?y", "a@b"])
def test_names_of_an_index_stay_in_the_folder(memory, shard):
    index = {"weight_map": {"a": shard}}
    memory.pipe_file("/m/model.safetensors.index.json", json.dumps(index).encode())
    with pytest.raises(FormatError, match="not the plain name of a file beside the index") as caught:
        Checkpoint("memory://m", ["safetensors"])
    assert caught.value.code == "checkpoint-index"


def test_a_shard_that_is_lost_after_it_was_listed(memory, model, monkeypatch):
    upload(model, "memory://bucket/model")
    lost = sorted(SHARDS)[1]
    memory.rm_file(f"/bucket/model/{lost}")
    with pytest.raises(FormatError, match=f"memory://bucket/model/model.*file '{lost}' is missing"):
        Checkpoint("memory://bucket/model", ["safetensors"])
    memory.rm_file("/bucket/model/model.safetensors.index.json")
    monkeypatch.setattr(
        remote.RemoteObject, "entries", lambda self: {name: False for name in sorted(SHARDS)}
    )  # a listing from before
    with pytest.raises(FileNotFoundError, match=f"no such object.*memory://bucket/model/{lost}"):
        Checkpoint("memory://bucket/model", ["safetensors"])


# commands

TAKE_URLS = {
    "inspect": ["{source}", "--patterns"],
    "convert": ["{source}", "{folder}/new.sparsefmt"],
    "export": ["{ours}", "{folder}/new.safetensors"],
    "verify": ["{ours}", "--against", "{source}"],
    "diff": ["{ours}", "{source}"],
    "report": ["{source}", "{ours}", "-o", "{folder}/new.html"],
    "bench": ["{ours}", "--batch", "1", "--repeats", "3"],
    "view": ["{ours}", "--no-browser"],
}
"""Arguments of the commands that take places."""


def test_which_commands_take_urls():
    assert set(TAKE_URLS) == set(main.list_commands(click.Context(main))) - {"warmup", "demo"}


@pytest.mark.parametrize(
    "command", first_always(["inspect", "convert", "export", "verify", "diff", "report", "bench"], 5)
)
def test_commands_do_with_urls_what_they_do_with_paths(memory, tmp_path, command):
    """They print the same, and write the same bytes. What view serves, tests/cli/test_view.py asks for."""
    if command == "report":
        pytest.importorskip("jinja2", reason="no jinja2")
        pytest.importorskip("matplotlib", reason="no matplotlib")
    weight = np.where(np.arange(128 * 128) % 3 == 0, 1.5, 0).astype(np.float32).reshape(128, 128)
    (tmp_path / "m").mkdir()
    safetensors.numpy.save_file({"layers.0.weight": weight}, tmp_path / "m" / "model.safetensors")
    sparsefmt.save_file({"layers.0.weight": weight}, tmp_path / "m" / "own.sparsefmt")
    upload(tmp_path / "m", "memory://m")
    said = []
    for folder in (str(tmp_path / "m"), "memory://m"):
        places = {"folder": folder, "source": f"{folder}/model.safetensors", "ours": f"{folder}/own.sparsefmt"}
        printed = succeed(command, *(word.format(**places) for word in TAKE_URLS[command]))
        said.append(re.sub(r"[\d.]+ s\b", "S s", printed.replace(folder, "FOLDER")))
    if command == "bench":  # times are never the same
        assert all("layers.0.weight" in printed for printed in said)
    else:
        assert said[0] == said[1]
    assert content_of("memory://m") == content_of(tmp_path / "m")
    assert len(content_of("memory://m")) == 2 + any("new" in word for word in TAKE_URLS[command])


@pytest.mark.parametrize(
    ("command", "number"),
    [
        (command, number)
        for command, words in TAKE_URLS.items()
        for number, word in enumerate(words)
        if word in ("{source}", "{ours}")
    ],
)
def test_commands_name_what_is_not_there(memory, tmp_path, command, number):
    """By its URL, without what may be secret in it."""
    if command == "report":
        pytest.importorskip("jinja2", reason="no jinja2")
        pytest.importorskip("matplotlib", reason="no matplotlib")
    memory.pipe_file("/m/model.safetensors", safetensors.numpy.save({"a": np.ones(3)}))
    sparsefmt.save_file({"a": np.ones(3)}, "memory://m/own.sparsefmt")
    words = list(TAKE_URLS[command])
    suffix = {"{source}": "safetensors", "{ours}": "sparsefmt"}[words[number]]
    words[number] = f"memory://someone:opensesame@m/none.{suffix}?token=abcdefgh"
    places = {"folder": "memory://m", "source": "memory://m/model.safetensors", "ours": "memory://m/own.sparsefmt"}
    message = fail(2, command, *(word.format(**places) for word in words))
    assert message.count(f"memory://m/none.{suffix}") == 1
    assert "no such object" in message
    assert not any(secret in message for secret in ("someone", "opensesame", "abcdefgh"))


# a web server


def test_a_web_server(model, tmp_path, monkeypatch):
    files = {f"/m/{path.name}": path.read_bytes() for path in model.iterdir() if path.is_file()}
    with serving(files) as (url, handler):
        succeed("convert", f"{url}/m/model.safetensors.index.json", tmp_path / "from-index")
        convert(model / "model.safetensors.index.json", tmp_path / "here")
        assert content_of(tmp_path / "from-index") == content_of(tmp_path / "here")
        assert "give the URL of a file, or of an index" in fail(2, "inspect", f"{url}/m/")
        assert "not written to" in fail(1, "convert", model / next(iter(SHARDS)), f"{url}/m/new.sparsefmt")
        secret = url.replace("://", "://user:word@") + "/m/none.safetensors?token=abcdefgh"
        message = fail(2, "inspect", secret)
        assert f"{url}/m/none.safetensors: no such object" in message
        handler.way = "forbidden"
        message = fail(2, "inspect", secret)
        assert "403" in message
        assert "word" not in message
        assert "abcdefgh" not in message
        handler.way = "short"
        monkeypatch.setattr(remote_path, "WITHOUT_TAIL", remote_file.Ends(1000, 0))
        assert "sent" in fail(1, "inspect", f"{url}/m/{next(iter(SHARDS))}", "--patterns")


# an S3


@pytest.fixture(scope="module")
def bucket() -> Iterator[dict[str, Any]]:
    with s3_bucket() as options:
        yield options


@pytest.mark.slow
def test_s3(bucket, model, tmp_path):
    """All commands, with options, from s3:// to s3://."""
    upload(model, "s3://bucket/model", bucket)
    endpoint = json.dumps(bucket["client_kwargs"])
    given = [f"key={bucket['key']}", f"secret={bucket['secret']}", f"client_kwargs={endpoint}"]
    options = [word for option in given for word in ("--storage-option", option)]
    source, target = "s3://bucket/model", "s3://bucket/converted"
    succeed("convert", source, target, *options)
    convert(model, tmp_path / "here")
    assert content_of(target, bucket) == content_of(tmp_path / "here")
    assert f"{target}: ok" in succeed("verify", target, "--against", source, *options)
    assert succeed("inspect", source, "--patterns", *options).count("s3://bucket/model/model-") == 2
    assert json.loads(succeed("inspect", target, "--json", *options))["files"][0]["path"].startswith(target)
    assert "equal" in succeed("diff", source, target, *options)
    # what is wrong, without what is secret
    assert "no such object" in fail(2, "inspect", "s3://bucket/none.safetensors", *options)
    assert "no such object" in fail(2, "inspect", "s3://bucket/none", *options)
    message = fail(2, "inspect", "s3://nobucket/model.safetensors", *options)
    assert "s3://nobucket/model.safetensors" in message
    assert bucket["secret"] not in message


@pytest.mark.parametrize(
    "error", [PermissionError("Access Denied"), TimeoutError("The provided token has expired."), OSError("Slow down")]
)
def test_a_store_that_refuses(memory, monkeypatch, error):
    """What it says is told with the URL, and without what was given to it."""
    memory.pipe_file("/m/model.safetensors", safetensors.numpy.save({"a": np.ones(300_000)}))

    def refuse(*_, **__):
        raise type(error)(f"{error} (opensesame, headers: bearer abcdefgh)")

    option = ("--storage-option", 'client_kwargs={"headers": "bearer abcdefgh"}', "--storage-option", "key=opensesame")
    monkeypatch.setattr(type(memory), "cat_file", refuse)
    message = fail(2, "inspect", "memory://m/model.safetensors", *option)
    assert message.startswith("memory://m/model.safetensors: ")
    assert str(error) in message
    assert "opensesame" not in message
    assert "abcdefgh" not in message


def test_options_that_are_none():
    assert "KEY=VALUE is needed" in fail(2, "inspect", "s3://b/k", "--storage-option", "secret")
    result = run_command("inspect", "model.sparsefmt", "--storage-option", "anon=true")
    assert result.exit_code == 2
