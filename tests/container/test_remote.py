"""Files behind URLs: in fsspec's memory, on a server that knows ranges or does not, and in an S3 on loopback."""

from __future__ import annotations

import errno
import pickle
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from remote_servers import FileHandler, s3_bucket, serving

import sparsefmt
import sparsefmt.numpy
from sparsefmt.container import remote, remote_file
from sparsefmt.urls import Url, as_place, is_url, shown, without_secrets

fsspec = pytest.importorskip("fsspec", reason="URLs need fsspec")


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    pruned = {
        f"layers.{number}": np.where(rng.random((1024, 512)) < 0.5, 0, rng.standard_normal((1024, 512))).astype(
            np.float32
        )
        for number in range(3)
    }
    return pruned | {f"norm.{number}": np.arange(number + 3.0) for number in range(50)}


@pytest.fixture
def url(tensors, request) -> Iterator[str]:
    """A file in fsspec's memory."""
    name = f"memory://{re.sub('[^a-z]', '-', request.node.name)}/model.sparsefmt"
    sparsefmt.save_file(tensors, name, codec="raw")
    yield name
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The ranges that are asked for, as that goes on."""
    found: list[tuple[int, int]] = []
    read, read_both = remote.RemoteObject.read, remote.RemoteObject.read_both

    def counted(self, begin, end):
        found.append((begin, end))
        return read(self, begin, end)

    def counted_both(self, first, second):
        found.extend((first, second))
        return read_both(self, first, second)

    monkeypatch.setattr(remote.RemoteObject, "read", counted)
    monkeypatch.setattr(remote.RemoteObject, "read_both", counted_both)
    return found


def same(loaded, tensors) -> bool:
    return loaded.keys() == tensors.keys() and all(np.array_equal(loaded[name], tensors[name]) for name in tensors)


def test_the_file_is_that_of_the_disk(url, tensors, tmp_path):
    sparsefmt.save_file(tensors, tmp_path / "model.sparsefmt", codec="raw")
    assert fsspec.filesystem("memory").cat_file(url) == (tmp_path / "model.sparsefmt").read_bytes()


def test_bytes_are_saved_with_options(tmp_path):
    """A place that is not a URL takes none."""
    data = {"w": {"dtype": "float32", "shape": [2], "data": bytes(8)}}
    sparsefmt.serialize_file(data, "memory://bytes/model.sparsefmt", storage_options={"use_listings_cache": False})
    assert fsspec.filesystem("memory").cat_file("/bytes/model.sparsefmt") == sparsefmt.serialize(data)
    fsspec.filesystem("memory").store.clear()
    with pytest.raises(ValueError, match="storage_options are for URLs"):
        sparsefmt.serialize_file(data, tmp_path / "model.sparsefmt", storage_options={"key": "k"})


@pytest.mark.parametrize("codec", ["raw", "auto"])
def test_all_ways_to_read(tensors, codec):
    url = "memory://all/model.sparsefmt"
    sparsefmt.numpy.save_file(tensors, url, codec=codec)
    assert same({name: np.asarray(tensor) for name, tensor in sparsefmt.load_file(url).items()}, tensors)
    assert same(sparsefmt.numpy.load_file(url), tensors)
    with sparsefmt.safe_open(url, "np") as file:
        assert np.array_equal(file.get_slice("layers.1")[5:9, 3:], tensors["layers.1"][5:9, 3:])
    with sparsefmt.open_file(url) as file:
        again = pickle.loads(pickle.dumps(file))
        x = np.ones(512, np.float32)
        assert np.array_equal(file["layers.0"] @ x, again["layers.0"] @ x)
    with pytest.raises(sparsefmt.SparsefmtError) as caught:
        file["layers.0"]
    assert caught.value.code == "file-closed"


def test_torch(tensors):
    torch = pytest.importorskip("torch")
    import sparsefmt.torch

    url = "memory://torch/model.sparsefmt"
    sparsefmt.torch.save_file({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, url)
    assert same({name: tensor.numpy() for name, tensor in sparsefmt.torch.load_file(url).items()}, tensors)
    layer, other = torch.nn.Linear(40, 30), torch.nn.Linear(40, 30)
    sparsefmt.torch.save_model(layer, url)
    assert sparsefmt.torch.load_model(other, url) == ([], [])
    assert torch.equal(layer.weight, other.weight)
    again = torch.nn.Linear(40, 30)
    sparsefmt.torch.load_into(again, url)
    assert torch.equal(layer.weight, again.weight)


def test_what_is_asked_for(url, tensors, asked):
    """Opening takes two ranges; a slice one, of its tiles; all tensors a few large ones."""
    with sparsefmt.open_file(url) as file:
        assert len(asked) == 2
        size = file.reader.size
        asked.clear()
        part = file.get_slice("layers.1")[100:104]
        assert np.array_equal(part, tensors["layers.1"][100:104])
        ((begin, end),) = asked
        assert end - begin < tensors["layers.1"].nbytes * 0.6
        asked.clear()
        assert np.array_equal(file.get_tensor("layers.0"), tensors["layers.0"])
        assert len(asked) == 1
        asked.clear()
        # what is small lies beside the index, which has been read
        assert np.array_equal(file.get_tensor("norm.7"), tensors["norm.7"])
        assert len(asked) <= 1
    asked.clear()
    sparsefmt.load_file(url)
    assert len(asked) == 3
    assert sum(end - begin for begin, end in asked) < size + remote_file.HEAD + remote_file.TAIL


def test_ranges_are_joined(monkeypatch, asked):
    data = bytes(range(256)) * (1 << 14)
    fsspec.filesystem("memory").pipe_file("/joined", data)
    source = remote_file.RemoteFile(Url("memory://joined", {}))
    monkeypatch.setattr(remote_file, "MOST_GAP", 1000)
    monkeypatch.setattr(remote_file, "MOST_AT_ONCE", 100_000)
    asked.clear()
    ranges = [(2000, 100), (2100, 50), (3000, 10), (50_000, 90_000), (140_500, 20_000), (200_000, 7)]
    source.expect(ranges)
    for offset, size in ranges[::-1]:
        found = source.read(offset, size)
        assert found.tobytes() == data[offset : offset + size]
        assert found.ctypes.data % 64 == 0
    assert sorted(asked) == [(2000, 3010), (50_000, 140_000), (140_500, 160_500), (200_000, 200_007)]
    # what is read again, or was not expected, is asked for alone
    asked.clear()
    assert source.read(2100, 50).tobytes() == data[2100:2150]
    assert source.read(900_000, 5).tobytes() == data[900_000:900_005]
    assert asked == [(2100, 2150), (900_000, 900_005)]


def test_what_was_read_ahead_is_forgotten(monkeypatch, asked):
    data = bytes(range(256)) * (1 << 14)
    fsspec.filesystem("memory").pipe_file("/kept", data)
    source = remote_file.RemoteFile(Url("memory://kept", {}))
    monkeypatch.setattr(remote_file, "MOST_GAP", 0)
    monkeypatch.setattr(remote_file, "MOST_AT_ONCE", 1000)
    monkeypatch.setattr(remote_file, "MOST_KEPT", 2500)
    ranges = [(begin, 500) for begin in range(10_000, 20_000, 500)]
    source.expect(ranges)
    asked.clear()
    for offset, size in [*ranges[::2], *ranges[1::2]]:
        assert source.read(offset, size).tobytes() == data[offset : offset + size]
        assert sum(source._kept.values()) <= 3500
    assert 10 < len(asked) <= 20
    assert not source._kept


def test_many_threads(url, tensors):
    with sparsefmt.open_file(url, threads=1) as file:
        found: dict[str, np.ndarray] = {}

        def read(name):
            found[name] = file.get_tensor(name)

        threads = [threading.Thread(target=read, args=(name,)) for name in tensors]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert same(found, tensors)


def test_a_save_that_fails_leaves_nothing(tensors):
    url = "memory://left/model.sparsefmt"
    sparsefmt.save_file({"a": np.eye(3)}, url)
    with pytest.raises(sparsefmt.SparsefmtError):
        sparsefmt.save_file({**tensors, "x": np.array(["text"])}, url)
    assert same(sparsefmt.load_file(url), {"a": np.eye(3)})
    with pytest.raises(sparsefmt.SparsefmtError):
        sparsefmt.save_file({**tensors, "x": np.array(["text"])}, "memory://left/other.sparsefmt")
    assert not fsspec.filesystem("memory").exists("/left/other.sparsefmt")
    sparsefmt.save_file({"b": np.eye(3)}, url)
    assert list(sparsefmt.load_file(url)) == ["b"]


def test_a_file_that_is_replaced_meanwhile(url, tensors):
    with sparsefmt.open_file(url) as file:
        others = {name: tensor + 1 for name, tensor in tensors.items()}
        sparsefmt.save_file(others, url, codec="raw")
        with pytest.raises(sparsefmt.FormatError, match="replaced while it was read") as caught:
            file.get_tensor("layers.0")
    assert caught.value.code == "file-changed"
    assert caught.value.path == url


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_damaged_files_name_their_url(url, damage):
    files = fsspec.filesystem("memory")
    data = bytearray(files.cat_file(url))
    if damage == "flipped":
        data[5000] ^= 1
    files.pipe_file(url, bytes(data[: {"cut": 100_000, "flipped": len(data), "empty": 0}[damage]]))
    with pytest.raises(sparsefmt.SparsefmtError, match=re.escape(url)):
        sparsefmt.load_file(url)


def test_places():
    assert is_url("s3://bucket/key")
    assert is_url("simplecache::s3://bucket/key")
    assert not any(
        map(is_url, ["model.sparsefmt", "C://folder/x", "/a/b", b"s3://b/k", Path("a"), "file:///a/b", None])
    )
    assert as_place("file:///a/b") == "/a/b"
    assert as_place("s3://b/k", {"key": "x"}) == Url("s3://b/k", {"key": "x"})
    with pytest.raises(ValueError, match="storage_options are for URLs"):
        sparsefmt.load_file("model.sparsefmt", storage_options={"key": "x"})
    with pytest.raises(FileNotFoundError):
        sparsefmt.load_file("file:///no/such/file.sparsefmt")


def test_secrets_stay_secret():
    place = Url("https://someone:password@host.org/a/model.sparsefmt?signature=abcdef", {"secret": "opensesame"})
    assert shown(place.url) == "https://host.org/a/model.sparsefmt"
    text = f"cannot reach {place.url} or https://other:word@there/x?y=z with opensesame"
    told = without_secrets(text, place)
    assert not any(
        word in told for word in ("someone", "password", "signature", "abcdef", "opensesame", "word@", "y=z")
    )
    assert "host.org/a/model.sparsefmt" in told


def test_what_cannot_be_reached(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such object.*memory://no/such"):
        sparsefmt.open_file("memory://no/such")
    with pytest.raises(sparsefmt.UnsupportedError, match="Protocol not known") as caught:
        sparsefmt.open_file("nosuch://user:word@a/b")
    assert "word" not in str(caught.value)
    fsspec.filesystem("memory").makedirs("/folder/inside", exist_ok=True)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        sparsefmt.open_file("memory://folder")
    with pytest.raises(TypeError):
        sparsefmt.load("memory://folder/x")  # type: ignore[arg-type]


@pytest.fixture
def served(tensors) -> Iterator[tuple[str, type[FileHandler]]]:
    """A URL, and how its server behaves."""
    with serving({"/model.sparsefmt": sparsefmt.save(tensors, codec="raw")}) as (url, handler):
        yield f"{url}/model.sparsefmt", handler


def test_a_server_with_ranges(served, tensors):
    url, handler = served
    with sparsefmt.open_file(url) as file:
        assert np.array_equal(file.get_slice("layers.2")[7:9], tensors["layers.2"][7:9])
        assert sum(handler.sent) < len(handler.files["/model.sparsefmt"]) / 2
    assert same(sparsefmt.numpy.load_file(url), tensors)


def test_a_server_without_ranges(served, tensors):
    url, handler = served
    handler.way = "whole"
    with pytest.warns(UserWarning, match="knows no ranges"):
        file = sparsefmt.open_file(url)
    with file:
        before = len(handler.sent)
        assert same({name: file.get_tensor(name) for name in file}, tensors)
        assert len(handler.sent) == before


def test_a_large_file_of_a_server_without_ranges(served, tensors, monkeypatch):
    """It goes to the disk, and no more than a part of it is held."""
    url, handler = served
    handler.way = "whole"
    monkeypatch.setattr(remote_file, "MOST_WHOLE", 1000)
    with pytest.warns(UserWarning, match="temporary file") as caught:
        file = sparsefmt.open_file(url)
    assert len(caught) == 1
    with file:
        assert not file.reader._source._ends
        assert same({name: file.get_tensor(name) for name in file}, tensors)


def test_a_large_file_of_a_server_with_ranges(served, tensors, monkeypatch):
    url, handler = served
    monkeypatch.setattr(remote_file, "MOST_WHOLE", 1000)
    with sparsefmt.open_file(url) as file:
        assert np.array_equal(file.get_tensor("layers.0"), tensors["layers.0"])
    assert sum(handler.sent) < len(handler.files["/model.sparsefmt"])


def test_redirects_to_another_host(served, tensors):
    """They are followed, and who is asked there is told no password."""
    url, handler = served
    with serving({}) as (first, redirecting):
        redirecting.way = url.removesuffix("/model.sparsefmt")
        named = first.replace("127.0.0.1", "user:word@localhost")
        assert same(sparsefmt.numpy.load_file(f"{named}/model.sparsefmt"), tensors)
    assert any("Authorization" in headers for headers in redirecting.headers_seen)
    assert not any("Authorization" in headers for headers in handler.headers_seen)


def test_nothing_is_written_to_a_web_server(served):
    url, _ = served
    with pytest.raises(sparsefmt.UnsupportedError, match="not written to") as caught:
        sparsefmt.save_file({}, url)
    assert (caught.value.code, caught.value.path) == ("url-read-only", url)


@pytest.mark.parametrize(
    ("way", "error", "words"),
    [
        ("short", sparsefmt.FormatError, "sent .* bytes of"),
        ("forbidden", PermissionError, "403"),
        ("broken", OSError, "500"),
    ],
)
def test_servers_that_fail(served, way, error, words):
    url, handler = served
    handler.way = way
    secret = url.replace("://", "://user:word@") + "?token=abcdefgh"
    with pytest.raises(error, match=words) as caught:
        sparsefmt.load_file(secret)
    assert url in str(caught.value)
    assert "word" not in str(caught.value)
    assert "abcdefgh" not in str(caught.value)


def test_nothing_is_there(served):
    url, _ = served
    with pytest.raises(FileNotFoundError, match="no such object"):
        sparsefmt.load_file(url + "x")
    with pytest.raises(OSError, match=r"127\.0\.0\.1:9/model"):
        sparsefmt.load_file("http://127.0.0.1:9/model")


@pytest.fixture(scope="module")
def bucket() -> Iterator[dict]:
    """What reaches a bucket of an S3 on loopback."""
    with s3_bucket() as options:
        yield options


def test_s3(bucket, tensors, asked):
    url = "s3://bucket/folder/model.sparsefmt"
    sparsefmt.save_file(tensors, url, codec="raw", storage_options=bucket)
    with sparsefmt.open_file(url, storage_options=bucket) as file:
        asked.clear()
        assert np.array_equal(file.get_slice("layers.2")[7:9], tensors["layers.2"][7:9])
        assert len(asked) == 1
        again = pickle.loads(pickle.dumps(file))
        assert np.array_equal(again.get_tensor("layers.2"), tensors["layers.2"])
    assert same(sparsefmt.numpy.load_file(url, storage_options=bucket), tensors)
    with pytest.raises(FileNotFoundError, match="no such object"):
        sparsefmt.load_file("s3://bucket/other", storage_options=bucket)
    with pytest.raises(FileNotFoundError, match="no such object"):
        sparsefmt.save_file({}, "s3://nobucket/model", storage_options=bucket)


def test_a_store_that_has_less_than_was_written_is_told(url, tensors, monkeypatch):
    kind = type(fsspec.filesystem("memory"))
    right = kind.info

    def info(self, path, **keywords):
        found = right(self, path, **keywords)
        return {**found, "size": found["size"] - 1}

    monkeypatch.setattr(kind, "info", info)
    with pytest.raises(OSError, match=r"has [\d,]+ bytes after [\d,]+ were written.*memory://") as caught:
        sparsefmt.save_file(tensors, url)
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("large", [False, True])
def test_uploads_that_fail_are_given_up(bucket, tensors, monkeypatch, large):
    import gc

    files = fsspec.filesystem("s3", **bucket)
    block = 5 << 20
    options = bucket | {"default_block_size": block}
    array = np.random.default_rng(0).standard_normal(3 * block // 8 if large else 8)
    with pytest.raises(sparsefmt.SparsefmtError):
        sparsefmt.save_file({"a": array, "x": np.array(["text"])}, "s3://bucket/half", storage_options=options)
    gc.collect()
    files.invalidate_cache()
    assert not files.exists("s3://bucket/half")
    assert not files.call_s3("list_multipart_uploads", Bucket="bucket").get("Uploads")
