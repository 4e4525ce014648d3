"""Checkpoints converted and verified by a cluster of two worker processes: bytes and words are those of one process."""

from __future__ import annotations

import filecmp
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import run_command
from safetensors_files import save_shards, sparse_array

import sparsefmt
from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.conversion import convert_checkpoint
from sparsefmt.quantizing import Quantization
from sparsefmt.save_options import SaveOptions

distributed = pytest.importorskip("distributed", reason="a cluster needs dask and distributed")

import sparsefmt.dask  # noqa: E402
from sparsefmt.dask import conversion, shards  # noqa: E402

NAMES = [f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)]


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", memory_limit=0, silence_logs="CRITICAL"
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as found,
    ):
        yield found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three shards of a model; of one of its tensors, the weight is in one shard and the mask in another."""
    pruned = sparse_array(1)
    folder = save_shards(
        tmp_path / "in",
        {
            NAMES[0]: {"a.weight": pruned, "b.weight_orig": sparse_array(2), "a.bias": np.arange(7.0)},
            NAMES[1]: {"b.weight_mask": (pruned != 0).astype(np.float32), "c.weight": sparse_array(3)},
            NAMES[2]: {"d.weight": -pruned, "e.weight": -pruned},
        },
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


def on_one_machine(source: Path, destination: Path, fold: bool = False, values: str | None = None) -> Path:
    with Checkpoint(source, ["safetensors"]) as checkpoint:
        if fold:
            checkpoint.fold()
        checkpoint.quantization = Quantization.of(values, None, "absmax")
        convert_checkpoint(checkpoint, destination, SaveOptions())
    return destination


def check_same(folder: Path, other: Path) -> None:
    names = sorted(os.listdir(other))
    assert sorted(os.listdir(folder)) == names
    assert filecmp.cmpfiles(folder, other, names, shallow=False)[0] == names


@pytest.mark.parametrize("options", [{}, {"fold": True}, {"values": "int8"}], ids=str)
def test_the_bytes_are_those_of_one_machine(client, source, tmp_path, options):
    sparsefmt.dask.convert(source, tmp_path / "out", client, **options)
    check_same(tmp_path / "out", on_one_machine(source, tmp_path / "one", **options))
    with pytest.raises(FileExistsError):
        sparsefmt.dask.convert(source, tmp_path / "out", client)
    # an index file, and a single file, by the address of the scheduler
    address = client.scheduler.address
    sparsefmt.dask.convert(source / NAMES[2], tmp_path / "file.sparsefmt", address)
    assert filecmp.cmp(
        tmp_path / "file.sparsefmt", on_one_machine(source / NAMES[2], tmp_path / "one.sparsefmt"), shallow=False
    )


def test_what_is_returned_and_told(client, source, tmp_path):
    """As on one machine: for each tensor, and for each byte."""
    told: list[int] = []
    with Checkpoint(source, ["safetensors"]) as checkpoint:
        found = conversion.convert_checkpoint(
            checkpoint, tmp_path / "out", SaveOptions(), conversion.OnCluster(client, progress=told.append)
        )
        expected = convert_checkpoint(checkpoint, tmp_path / "one", SaveOptions())
        assert found == expected
        assert sum(told) == checkpoint.dense_nbytes
        assert min(told) > 0


def test_a_worker_that_is_killed(client, source, tmp_path):
    """The first one that has written half of a shard."""
    client.run(_patch, "killed", str(tmp_path / "killed"))
    try:
        sparsefmt.dask.convert(source, tmp_path / "out", client)
    finally:
        client.run(_unpatch)
    assert (tmp_path / "killed").exists()
    check_same(tmp_path / "out", on_one_machine(source, tmp_path / "one"))


def test_a_client_that_begins_again(client, source, tmp_path):
    """Only the shard that failed is made again, and only with the same options."""
    client.wait_for_workers(2)
    client.run(_patch, "failing", str(tmp_path))
    try:
        with pytest.raises(OSError, match="out of luck"):
            sparsefmt.dask.convert(source, tmp_path / "out", client, retries=0)
        assert [path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")] == []
        with pytest.raises(FileNotFoundError, match="not finished"):
            Checkpoint(tmp_path / "out", ["sparsefmt"])
        before = sorted(os.listdir(tmp_path / "begun"))
        assert len(before) == 3
        sparsefmt.dask.convert(source, tmp_path / "out", client)
        assert len(os.listdir(tmp_path / "begun")) == 4
        check_same(tmp_path / "out", on_one_machine(source, tmp_path / "one"))
        (tmp_path / "luck").unlink()
        with pytest.raises(OSError, match="out of luck"):
            sparsefmt.dask.convert(source, tmp_path / "other", client, codec="raw", retries=0)
        sparsefmt.dask.convert(source, tmp_path / "other", client, codec="zstd")
        assert len(os.listdir(tmp_path / "begun")) == 4 + 3 + 3
        # what passes is tried again
        (tmp_path / "luck").unlink()
        sparsefmt.dask.convert(source, tmp_path / "again", client)
        check_same(tmp_path / "again", tmp_path / "one")
    finally:
        client.run(_unpatch)


def test_a_task_that_runs_twice_at_once(client, source, tmp_path):
    with Checkpoint(source / NAMES[0], ["safetensors"]) as checkpoint:
        task = conversion._task_of(checkpoint, checkpoint.files[0], SaveOptions())
    task = task.with_places(tmp_path / "shard.sparsefmt", tmp_path / "shard.json")
    assert shards.found_done(task) is None
    first, second = client.gather(client.map(shards.convert_shard, [task, task], pure=False))
    assert first == second == shards.found_done(task)
    on_one_machine(source / NAMES[0], tmp_path / "one.sparsefmt")
    assert filecmp.cmp(tmp_path / "shard.sparsefmt", tmp_path / "one.sparsefmt", shallow=False)
    # a shard that is another one, or is gone, is not finished
    task.destination.write_bytes((tmp_path / "one.sparsefmt").read_bytes() + b"x")
    assert shards.found_done(task) is None
    task.state.write_text("{}")
    assert shards.found_done(task) is None


def test_what_is_wrong_is_named(client, source, tmp_path):
    with Checkpoint(source / NAMES[0], ["safetensors"]) as checkpoint:
        task = conversion._task_of(checkpoint, checkpoint.files[0], SaveOptions())
    task = task.with_places(tmp_path / "shard.sparsefmt", None)
    with pytest.raises(sparsefmt.UnsupportedError, match="worker-version"):
        client.submit(shards.convert_shard, replace(task, version="0")).result()
    os.utime(source / NAMES[0], ns=(0, 1))
    with pytest.raises(sparsefmt.FormatError, match="file-changed") as caught:
        client.submit(shards.convert_shard, task).result()
    assert caught.value.path == str(source / NAMES[0])
    weight = np.full((8, 8), np.nan, np.float32)
    weight[:6] = 0
    bad = save_shards(tmp_path / "bad", {NAMES[0]: {"x.weight": weight}}, index=False) / NAMES[0]
    with pytest.raises(sparsefmt.FormatError, match=r"x\.weight.*finite") as caught:
        sparsefmt.dask.convert(bad, tmp_path / "bad.sparsefmt", client, values="int8")
    assert caught.value.path == str(bad)
    assert not (tmp_path / "bad.sparsefmt").exists()


def test_the_command(client, source, tmp_path):
    run_command("convert", source, tmp_path / "one")
    result = run_command("convert", source, tmp_path / "out", "--dask", client.scheduler.address)
    assert result.exit_code == 0, result.stderr
    assert "Copied: config.json" in result.stdout
    check_same(tmp_path / "out", tmp_path / "one")
    result = run_command("convert", source, tmp_path / "other", "--dask", "nonsense://host:1")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "nonsense" in result.stderr


def without_seconds(result: Any) -> tuple[int, str, str]:
    return result.exit_code, re.sub(r"in [\d.]+ s\b", "in S s", result.stdout), result.stderr


def test_verifying(client, source, tmp_path, monkeypatch):
    """All that is said is what one machine says, of paths as they were given: a chunk is damaged, a weight differs, one
    is missing."""
    monkeypatch.chdir(tmp_path)
    address = client.scheduler.address
    with Checkpoint(source, ["safetensors"]) as checkpoint:
        checkpoint.fold()
        convert_checkpoint(checkpoint, tmp_path / "out", SaveOptions(codec="raw"))
    for arguments in (["out", "--strict"], ["out", "--against", "in", "--fold"]):
        result = run_command("verify", *arguments, "--dask", address)
        assert result.exit_code == 0, result.stderr
        assert "5 tensors" in result.stdout or "6 tensors" in result.stdout
        assert without_seconds(result) == without_seconds(run_command("verify", *arguments))
    with Checkpoint("out", ["sparsefmt"]) as checkpoint:
        damaged = checkpoint.holder["a.bias"].path
    content = damaged.read_bytes()
    damaged.write_bytes(content.replace(np.arange(7.0).tobytes(), np.arange(1.0, 8).tobytes()))
    changed = {"a.weight": sparse_array(1), "a.bias": np.arange(7.0), "c.weight": -sparse_array(3)}
    save_shards(tmp_path / "other", {NAMES[0]: changed, NAMES[1]: {"d.weight": -sparse_array(1)}})
    arguments = ["out", "--against", "other", "--strict"]
    result = run_command("verify", *arguments, "--dask", address)
    assert without_seconds(result) == without_seconds(run_command("verify", *arguments))
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert len(lines) == 4
    assert "'b.weight': only in out" in lines[0]
    assert "'e.weight': only in out" in lines[1]
    assert lines[2].startswith("sparsefmt: error: out/model-00001")
    assert "'a.bias'" in lines[2]
    assert "'c.weight'" in lines[3]
    faults = sparsefmt.dask.verify("out", client, against="other", strict=True)
    assert [f"sparsefmt: error: {fault}" for fault in faults] == lines
    sparsefmt.save_file({"zeros": np.zeros((300, 300), np.float32)}, "small.sparsefmt")
    arguments = ["small.sparsefmt", "--max-decoded-bytes", "0"]
    result = run_command("verify", *arguments, "--dask", address)
    assert without_seconds(result) == without_seconds(run_command("verify", *arguments))
    assert "raise --max-decoded-bytes" in result.stderr


def test_patterns(client, source, tmp_path, monkeypatch):
    """What is printed is what one machine prints, also of tensors that are folded from several files."""
    monkeypatch.chdir(tmp_path)
    for options in (["--fold"], ["--json", "--name", "*weight*"]):
        arguments = ["inspect", "in", "--patterns", *options]
        result = run_command(*arguments, "--dask", client.scheduler.address)
        assert result.exit_code == 0, result.stderr
        assert "b.weight" in result.stdout
        assert "unstructured" in result.stdout
        assert result.stdout == run_command(*arguments).stdout
    result = run_command("inspect", "in", "--dask", "local")
    assert result.exit_code == 2
    assert "--patterns" in result.stderr


def test_report(client, tmp_path, monkeypatch):
    """The page is that of one machine, to the byte: of groups and pairs of masks whose tensors are in several files."""
    pytest.importorskip("jinja2", reason="no jinja2")
    pytest.importorskip("matplotlib", reason="no matplotlib")
    monkeypatch.chdir(tmp_path)
    address, rng = client.scheduler.address, np.random.default_rng(0)
    before: dict[str, dict[str, np.ndarray]] = {name: {} for name in NAMES}
    for layer in range(7):
        up, kept = sparse_array(layer), rng.random((32, 16, 4)).argsort(2).argsort(2) < 2
        down = np.where(kept.reshape(32, 64), rng.standard_normal((32, 64)), 0).astype(np.float32)
        # the last file has the first pattern of these in the order of their names
        down = [np.ones_like(down), down, np.zeros_like(down)][layer % 3]
        before[NAMES[-layer % 3]] |= {f"layers.{layer}.up.weight": up, f"layers.{layer}.down.weight": down}
    before[NAMES[1]] |= {"a.weight_mask": (sparse_array(8) != 0).astype(np.float32), "b": np.array([np.nan, -0.0, 1])}
    before[NAMES[2]]["a.weight_orig"] = sparse_array(9)
    after = {file: {name: array * np.float32(1.1) for name, array in arrays.items()} for file, arrays in before.items()}
    after[NAMES[0]]["new"] = after[NAMES[1]].pop("b")
    save_shards(tmp_path / "in", before)
    save_shards(tmp_path / "other", after)
    result = run_command("report", "in", "other", "--fold", "-o", "one.html")
    assert result.exit_code == 0, result.stderr
    result = run_command("report", "in", "other", "--fold", "-o", "two.html", "--dask", address)
    assert result.exit_code == 0, result.stderr
    page = Path("one.html").read_text()
    assert Path("two.html").read_text() == page
    assert "a.<wbr>weight" in page
    assert page.count("data:image/png") > 4
    with pytest.raises(FileExistsError):
        sparsefmt.dask.report("in", "two.html", client)
    on_one_machine(tmp_path / "in", tmp_path / "out")
    run_command("report", "out", "-o", "one.html", "--force")
    sparsefmt.dask.report("out", "two.html", client, overwrite=True)
    assert Path("two.html").read_text() == Path("one.html").read_text() != page
    damaged = next(Path("out").glob("*1-of*.sparsefmt"))
    content = bytearray(damaged.read_bytes())
    content[100] ^= 1
    damaged.write_bytes(content)
    result = run_command("report", "out", "-o", "three.html", "--dask", address)
    assert result.exit_code == 1
    assert result.stderr == run_command("report", "out", "-o", "three.html").stderr
    assert str(damaged) in result.stderr
    assert not Path("three.html").exists()


@pytest.mark.slow
def test_from_a_store_to_a_store(client, source, tmp_path):
    """One request of twenty fails, and a worker is killed with half of a shard on its way."""
    fsspec = pytest.importorskip("fsspec", reason="URLs need fsspec")
    pytest.importorskip("s3fs", reason="s3:// needs s3fs")
    pytest.importorskip("moto.server", reason="an S3 to test with: pip install 'moto[server]'")
    from tools.bench.loopback import options_of, store

    on_one_machine(source, tmp_path / "one")
    with store(0.05) as address:
        options = options_of(address)
        files = fsspec.filesystem("s3", **options)
        again(files.call_s3, "create_bucket", Bucket="bucket")
        for path in source.iterdir():
            again(files.put_file, str(path), f"bucket/in/{path.name}")
        client.wait_for_workers(2)
        client.run(_patch, "killed", str(tmp_path / "killed"))
        try:
            sparsefmt.dask.convert("s3://bucket/in", "s3://bucket/out", client, storage_options=options)
        finally:
            client.run(_unpatch)
        assert (tmp_path / "killed").exists()
        (tmp_path / "back").mkdir()
        files.invalidate_cache()
        for path in again(files.find, "bucket/out"):
            again(files.get_file, path, str(tmp_path / "back" / path.removeprefix("bucket/out/").replace("/", "-")))
    check_same(tmp_path / "back", tmp_path / "one")


@pytest.mark.slow
def test_a_client_that_begins_again_in_a_store(client, source, tmp_path):
    """Only the shard that failed is made again, and readers refuse what is there before."""
    fsspec = pytest.importorskip("fsspec", reason="URLs need fsspec")
    pytest.importorskip("s3fs", reason="s3:// needs s3fs")
    pytest.importorskip("moto.server", reason="an S3 to test with: pip install 'moto[server]'")
    from tools.bench.loopback import options_of, store

    with store(0) as address:
        options = options_of(address)
        files = fsspec.filesystem("s3", **options)
        files.call_s3("create_bucket", Bucket="bucket")
        for path in source.iterdir():
            files.put_file(str(path), f"bucket/in/{path.name}")
        client.wait_for_workers(2)
        client.run(_patch, "failing", str(tmp_path))
        places = ("s3://bucket/in", "s3://bucket/out")
        try:
            with pytest.raises(OSError, match="out of luck"):
                sparsefmt.dask.convert(*places, client, retries=0, storage_options=options)
            with pytest.raises(sparsefmt.FormatError, match="not finished"):
                sparsefmt.dask.verify(places[1], client, storage_options=options)
            assert len(os.listdir(tmp_path / "begun")) == 3
            sparsefmt.dask.convert(*places, client, storage_options=options)
        finally:
            client.run(_unpatch)
        assert len(os.listdir(tmp_path / "begun")) == 4
        assert sparsefmt.dask.verify(places[1], client, against=source, storage_options=options) == []
        files.invalidate_cache()
        names = [path.removeprefix("bucket/out/") for path in files.find("bucket/out")]
        assert sorted(names) == sorted(os.listdir(on_one_machine(source, tmp_path / "one")))


def again(call: Any, *arguments: Any, **options: Any) -> Any:
    """The store lets requests of tests fail, too."""
    for _ in range(10):
        try:
            return call(*arguments, **options)
        except OSError:
            continue
    return call(*arguments, **options)


@pytest.mark.thorough
def test_no_cluster(source, tmp_path):
    with pytest.raises(TypeError, match="a client of distributed or an address"):
        sparsefmt.dask.convert(source, tmp_path / "out", 3)
    assert not (tmp_path / "out").exists()


def _patch(way: str, place: str) -> None:
    """On a worker: let a conversion kill its process, or fail. `place`: where it is noted that it has."""
    _unpatch()
    shards._write_converted = shards.write_converted  # type: ignore[attr-defined]
    shards.write_converted = {"killed": _Killed, "failing": _Failing}[way](Path(place))  # type: ignore[assignment]


def _unpatch() -> None:
    shards.write_converted = getattr(shards, "_write_converted", shards.write_converted)


class _Killed:
    def __init__(self, note: Path) -> None:
        self._note = note

    def __call__(self, file: Any, sink: Any, *arguments: Any) -> Any:
        try:
            self._note.touch(exist_ok=False)
        except FileExistsError:
            return shards._write_converted(file, sink, *arguments)  # type: ignore[attr-defined]
        sink.write(b"half of it")
        os.kill(os.getpid(), signal.SIGKILL)


class _Failing:
    """Fails with one shard, the first time, once the two others are finished."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, file: Any, sink: Any, *arguments: Any) -> Any:
        begun = self._folder / "begun"
        begun.mkdir(exist_ok=True)
        (begun / f"{time.time_ns()}-{os.getpid()}").touch()
        luck = self._folder / "luck"
        if file.path.name == NAMES[1] and not luck.exists():
            deadline = time.monotonic() + 60
            while self._finished(file) < 2 and time.monotonic() < deadline:
                time.sleep(0.01)
            luck.touch()
            raise OSError(5, "out of luck", str(file.path))
        return shards._write_converted(file, sink, *arguments)  # type: ignore[attr-defined]

    def _finished(self, file: Any) -> int:
        """How many shards are noted as finished, beside a folder or in the bucket of the test."""
        if isinstance(file.path, Path):
            return len(list(self._folder.glob("*/.converting-*/*.json")))
        import fsspec

        files = fsspec.filesystem("s3", **file.path.options)
        files.invalidate_cache()
        return sum(path.endswith(".json") and "/.converting-" in path for path in files.find("bucket/out"))
