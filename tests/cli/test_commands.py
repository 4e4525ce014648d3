"""The command line: what it prints, what it leaves behind, and its exit codes."""

from __future__ import annotations

import json
import os
import re
import resource
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner
from helpers import ROOT, fail, run_command, succeed
from safetensors_files import ONE, SHARDS, TWO, craft_tensors, patterns, read_back, save_shards, sparse_array

import sparsefmt
from sparsefmt.cli import main
from sparsefmt.container.entry import TensorEntry
from sparsefmt.container.reader import Reader
from sparsefmt.dtypes import DTYPES
from sparsefmt.layouts.tile import Tile
from sparsefmt.tensor_writer import TensorWriter


def process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sparsefmt", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Three pruned layers, one with negative zeros, beside tensors that stay dense."""
    tensors = {f"layers.{n}.weight": ("F32", [64, 96], sparse_array(n).tobytes()) for n in range(2)}
    tensors["layers.2.weight"] = ("BF16", [64, 96], patterns("BF16", 64, 96))
    tensors["bias"] = ("F32", [3], struct.pack("<3f", 0, -0.0, 1))
    tensors["flags"] = ("BOOL", [2], b"\x00\x01")
    path = tmp_path / "model.safetensors"
    path.write_bytes(craft_tensors(tensors, {"format": "pt"}))
    return path


@pytest.fixture
def converted(model: Path) -> Path:
    succeed("convert", model)
    return model.with_suffix(".sparsefmt")


def negative_zeros_of(model: Path) -> int:
    stored = read_back(model)
    return int(np.count_nonzero(np.frombuffer(stored["layers.2.weight"][2], "<u2") == 0x8000))


# convert, export


@pytest.mark.parametrize("layout", ["auto", "dense", "bitmask", "permuted"])
@pytest.mark.parametrize("codec", ["auto", "raw", "zstd"])
def test_there_and_back_is_the_same_file(model: Path, tmp_path: Path, layout: str, codec: str) -> None:
    tensors = {name: (name, [16, 24], patterns(name, 16, 24)) for name in DTYPES}
    tensors["empty"] = ("F32", [3, 0], b"")
    model.write_bytes(craft_tensors(tensors, {"format": "pt", "note": "é"}))
    succeed("convert", model, tmp_path / "a.sparsefmt", "--layout", layout, "--codec", codec, "--threads", "2")
    out = succeed("verify", tmp_path / "a.sparsefmt", "--against", model)
    assert "all bits are those of" in out
    succeed("export", tmp_path / "a.sparsefmt", tmp_path / "b.safetensors")
    assert read_back(tmp_path / "b.safetensors") == tensors
    assert "equal: 23 tensors" in succeed("diff", tmp_path / "b.safetensors", tmp_path / "a.sparsefmt")


def test_closing_table_groups_layers(model: Path) -> None:
    out = succeed("convert", model)
    [layers] = [line for line in out.splitlines() if line.startswith("layers.*.weight")]
    zeros = 100 * np.mean([np.mean(sparse_array(n) == 0) for n in range(2)])
    expected = ["layers.*.weight", "64x96", "F32", "bitmask", "2", f"{zeros:.1f}%", "49.2", "kB"]
    assert layers.split()[:8] == expected
    assert any(line.startswith("layers.2.weight") for line in out.splitlines())
    [total] = [line for line in out.splitlines() if line.startswith("total")]
    assert "61.5 kB" in total
    after = model.with_suffix(".sparsefmt").stat().st_size
    assert f"-> {model.with_suffix('.sparsefmt')} ({after / 1000:.1f} kB): {model.stat().st_size / after:.2f}x" in out


def test_table_of_many_groups_stays_readable(tmp_path: Path) -> None:
    letters = [chr(ord("a") + n // 26) + chr(ord("a") + n % 26) for n in range(60)]
    tensors = {name: ("U8", [n + 1], bytes(n + 1)) for n, name in enumerate(letters)}
    (tmp_path / "m.safetensors").write_bytes(craft_tensors(tensors))
    out = succeed("convert", tmp_path / "m.safetensors")
    assert "21 smaller groups" in out
    assert letters[-1] in out
    assert len(out.splitlines()) < 50


def test_negative_zeros_are_mentioned(model: Path, tmp_path: Path) -> None:
    count = negative_zeros_of(model)
    out = succeed("convert", model)
    assert f"{count:,} of the pruned zeros are -0.0" in out
    assert "--negative-zeros drop" in out
    out = succeed("convert", model, "--force", "--negative-zeros", "drop")
    assert f"{count + 1:,} zeros were -0.0 and are stored as 0.0" in out  # and one in the bias
    sparse = model.with_suffix(".sparsefmt")
    assert f"{count + 1:,} negative zeros were stored as 0.0" in succeed("inspect", sparse)
    out = succeed("verify", sparse, "--against", model)
    assert f"but for {count + 1:,} negative zeros that were dropped on purpose" in out
    assert "2 differences" in run_command("diff", sparse, model).stdout
    # a model whose zeros all are positive has other bits at none of those places
    tensors = read_back(model)
    tensors["bias"] = ("F32", [3], struct.pack("<3f", 0, 0, 1))
    (tmp_path / "other.safetensors").write_bytes(craft_tensors(tensors))
    assert "tensor 'bias': 0 negative zeros" in fail(1, "verify", sparse, "--against", tmp_path / "other.safetensors")


def test_quiet_prints_nothing(model: Path, tmp_path: Path) -> None:
    sparse = tmp_path / "a.sparsefmt"
    for arguments in (
        ("convert", model, sparse),
        ("verify", sparse, "--against", model),
        ("export", sparse),
        ("diff", sparse, model),
    ):
        assert succeed(*arguments, "--quiet") == ""


def test_destination_is_not_overwritten_unless_forced(model: Path, converted: Path) -> None:
    before = converted.read_bytes()
    message = fail(2, "convert", model, "--codec", "raw")
    assert message == f"{converted}: exists already; --force replaces it"
    assert fail(2, "export", converted) == f"{model}: exists already; --force replaces it"
    assert converted.read_bytes() == before
    succeed("convert", model, "--codec", "raw", "--force")
    assert converted.read_bytes() != before


def test_wrong_destinations(model: Path, converted: Path, tmp_path: Path) -> None:
    source = model.read_bytes()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(model)
    (tmp_path / "plain").write_bytes(source)
    assert "is the source itself" in fail(2, "convert", tmp_path / "plain", tmp_path / "plain", "--force")
    assert "is the source itself" in fail(2, "convert", model, tmp_path / "link", "--force")
    assert "must be a .sparsefmt file" in fail(2, "convert", model, tmp_path / "x.safetensors")
    assert "must be a .safetensors file" in fail(2, "export", converted, tmp_path / "x.sparsefmt")
    assert "is a folder" in fail(2, "convert", model, tmp_path / "folder", "--force")
    assert "x.sparsefmt: No such file or directory" in fail(2, "convert", model, tmp_path / "none" / "x.sparsefmt")
    assert "must be a folder" in fail(2, "convert", save_shards(tmp_path / "in", SHARDS), tmp_path / "x.sparsefmt")
    assert "is a file" in fail(2, "convert", tmp_path / "in", tmp_path / "plain")
    assert "is the source itself" in fail(2, "convert", tmp_path / "in", tmp_path / "in", "--force")
    assert "not empty; --force" in fail(2, "convert", tmp_path / "in", tmp_path)
    assert model.read_bytes() == source
    names = {"folder", "link", "plain", "in", model.name, converted.name}
    assert {path.name for path in tmp_path.iterdir()} == names


@pytest.mark.parametrize("command", ["convert", "inspect", "verify", "export"])
def test_wrong_sources(command: str, tmp_path: Path) -> None:
    missing = tmp_path / "missing.x"
    assert fail(2, command, missing) == f"{missing}: No such file or directory"
    (tmp_path / "empty").mkdir()
    assert "the folder has no ." in fail(2, command, tmp_path / "empty")
    assert "is not a regular file" in fail(2, command, "/dev/null")
    (tmp_path / "x").write_bytes(b"version https://git-lfs.github.com/spec/v1\n" + bytes(100))
    message = fail(1, command, tmp_path / "x")
    assert message.startswith(f"{tmp_path / 'x'}: ")
    assert "Git LFS" in message
    assert message.count(str(tmp_path)) == 1


def test_one_format_in_place_of_the_other(model: Path, converted: Path) -> None:
    for command in ("verify", "export"):
        assert "convert it with `sparsefmt convert`" in fail(2, command, model)
    assert "a .sparsefmt file already" in fail(2, "convert", converted)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_folder(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    assert "Permission denied" in fail(2, "convert", tmp_path / "closed")


def test_usage_errors_have_exit_code_2(model: Path) -> None:
    for arguments in (
        ["convert"],
        ["convert", model, "--codec", "lzma"],
        ["no-such"],
        ["verify", model, "--threads", "0"],
    ):
        assert run_command(*arguments).exit_code == 2
    result = CliRunner(env={"SPARSEFMT_NUM_THREADS": "many"}).invoke(main, ["convert", str(model)])
    assert result.exit_code == 2
    assert "SPARSEFMT_NUM_THREADS must be a whole number" in result.stderr


def test_every_command_has_examples() -> None:
    context = click.Context(main)
    assert isinstance(main, click.Group)
    out = succeed("--help")
    assert "Exit codes:" in out
    for name in main.list_commands(context):
        text = succeed(name, "--help")
        assert name == "demo" or f"sparsefmt {name} " in text.partition("Examples:")[2]
        assert f"\n  {name} " in out


# folders


def test_shards(tmp_path: Path) -> None:
    source = save_shards(tmp_path / "model", SHARDS)
    (source / "other.safetensors").write_bytes(b"")
    out = succeed("convert", source)
    assert "Not part of the checkpoint, and not converted: other.safetensors" in out
    sparse = tmp_path / "model-sparsefmt"
    assert "all bits are those of" in succeed("verify", sparse, "--against", source)
    listing = succeed("inspect", sparse)
    for word in ("a ", "b ", "c ", "all 2 files: 3 tensors"):
        assert word in listing
    succeed("export", sparse / "model.sparsefmt.index.json")
    for shard in (ONE, TWO):
        assert (tmp_path / "model-safetensors" / shard).read_bytes() == (source / shard).read_bytes()
    assert "equal: 3 tensors" in succeed("diff", source, sparse)
    (sparse / ONE.replace("safetensors", "sparsefmt")).unlink()
    assert "is missing" in fail(1, "inspect", sparse)


def test_shards_against_one_file(tmp_path: Path) -> None:
    succeed("convert", save_shards(tmp_path / "model", SHARDS))
    whole = tmp_path / "whole.safetensors"
    safetensors.numpy.save_file({**SHARDS[ONE], **SHARDS[TWO]}, whole)
    succeed("verify", tmp_path / "model-sparsefmt", "--against", whole)


def test_bad_index_is_one_line(tmp_path: Path) -> None:
    assert "'ghost'" in fail(1, "convert", save_shards(tmp_path / "model", SHARDS, ghost=ONE))
    assert not (tmp_path / "model-sparsefmt").exists()


# inspect


def test_inspect_shows_the_form_of_permuted(tmp_path: Path) -> None:
    near, far = np.eye(32, 256, dtype=np.float32), np.eye(32, 9000, 8000, dtype=np.float32)
    sparsefmt.save_file({"near": near, "far": far}, tmp_path / "a.sparsefmt", layout="permuted", codec="raw")
    lines = succeed("inspect", tmp_path / "a.sparsefmt").splitlines()
    assert [line for line in lines if "near" in line and "permuted, gaps" in line]
    assert [line for line in lines if "far" in line and "permuted, columns" in line]
    [file] = json.loads(succeed("inspect", tmp_path / "a.sparsefmt", "--json"))["files"]
    assert {tensor["name"]: tensor["layout"] for tensor in file["tensors"]} == {"near": "permuted", "far": "permuted"}


def test_inspect_as_json(model: Path, converted: Path) -> None:
    content = json.loads(succeed("inspect", converted, "--json"))
    assert (content["json_version"], content["index"]) == (1, None)
    [file] = content["files"]
    assert (file["path"], file["nbytes"]) == (str(converted), converted.stat().st_size)
    assert (file["format_version"], file["metadata"]) == ("1.0", {"format": "pt"})
    tensors = {tensor["name"]: tensor for tensor in file["tensors"]}
    assert list(tensors) == ["bias", "flags", "layers.0.weight", "layers.1.weight", "layers.2.weight"]
    first, last, bias = tensors["layers.0.weight"], tensors["layers.2.weight"], tensors["bias"]
    assert (first["dtype"], first["shape"], first["layout"]) == ("F32", [64, 96], "bitmask")
    assert first["nnz"] == np.count_nonzero(sparse_array(0))
    assert (first["dense_nbytes"], first["negative_zeros"], last["negative_zeros"]) == (24576, False, True)
    assert set(last["codecs"]) == {"mask", "negative_zeros", "slice_offsets", "values"}
    assert (bias["layout"], bias["nnz"], bias["tiles"], bias["tile_rows"]) == ("dense", None, 1, 3)
    total = content["total"]
    assert total["dense_nbytes"] == sum(len(data) for _, _, data in read_back(model).values())
    assert total["stored_nbytes"] == sum(tensor["stored_nbytes"] for tensor in tensors.values())
    for tensor in tensors.values():
        assert sum(tensor["array_nbytes"].values()) == tensor["stored_nbytes"]
        assert tensor["array_nbytes"].keys() == tensor["codecs"].keys()
        modelled = [array for array, codec in tensor["codecs"].items() if codec == "rans" and array != "slice_offsets"]
        assert (tensor["model_nbytes"] > 0) == bool(modelled)
    assert total["stored_nbytes"] + file["index_nbytes"] < total["nbytes"] == file["nbytes"]
    assert total["chunks"] == file["chunks"] == sum(t["tiles"] * len(t["codecs"]) for t in tensors.values())


def test_inspect_as_table(converted: Path) -> None:
    out = succeed("inspect", converted)
    [row] = [line for line in out.splitlines() if line.startswith("layers.0.weight")]
    zeros = 100 * np.mean(sparse_array(0) == 0)
    assert row.split()[1:5] == ["64x96", "F32", "bitmask", "rans"]
    assert f" {zeros:.1f}% " in row
    assert "format 1.0" in out
    assert re.search(r", index [\d.]+ k?B, coded, ", out)
    assert "5 tensors" in out
    assert "  format: pt" in out
    assert "signs of negative zeros are kept in 1 of the tensors" in out


def test_ties_are_shown(tmp_path: Path) -> None:
    shared = sparse_array(0)
    sparsefmt.save_file({"embed": shared, "head": shared}, tmp_path / "a.sparsefmt")
    assert "= embed" in succeed("inspect", tmp_path / "a.sparsefmt")
    content = json.loads(succeed("inspect", tmp_path / "a.sparsefmt", "--json"))
    assert content["files"][0]["tensors"][1] == {"name": "head", "alias_of": "embed"}
    assert (content["total"]["tensors"], content["total"]["dense_nbytes"]) == (1, shared.nbytes)
    safetensors.numpy.save_file({"embed": shared, "head": shared + 1}, tmp_path / "b.safetensors")
    message = fail(1, "verify", tmp_path / "a.sparsefmt", "--against", tmp_path / "b.safetensors")
    assert message.startswith("tensor 'head': 6,144 of 6,144 elements differ, first at [0, 0]")


def test_hostile_names_do_not_reach_the_terminal(tmp_path: Path) -> None:
    name = "w\x1b[2J\n[red]\u202e"
    sparsefmt.save_file({name: np.ones(2)}, tmp_path / "a.sparsefmt", {"key\x1b": "text\x07\nfoo"})
    other = save_shards(tmp_path / "in", SHARDS)
    for out in (
        succeed("inspect", tmp_path / "a.sparsefmt"),
        run_command("diff", tmp_path / "a.sparsefmt", other).stdout,
        run_command("verify", tmp_path / "a.sparsefmt", "--against", other).stderr,
    ):
        assert not {"\x1b", "\x07", "\u202e"} & set(out)
        assert "[red]" in out
    assert fail(2, "inspect", tmp_path / "a\x1b[2J\nb").endswith("a\\x1b[2J\\nb: No such file or directory")


def test_inspect_loads_no_numba(converted: Path) -> None:
    program = (
        "import sys; from sparsefmt.cli import main; main(sys.argv[1:], standalone_mode=False); "
        "print(*sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, "inspect", str(converted)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    imported = set(result.stderr.split())
    assert "sparsefmt.cli.inspect" in imported
    assert not {name for name in imported if name.split(".")[0] in ("numba", "llvmlite", "torch", "scipy")}
    assert not {name for name in imported if name.startswith(("sparsefmt.kernels.", "sparsefmt.layouts.jitted"))}


# verify, diff


def test_strict_accepts_what_is_in_its_only_form() -> None:
    good = ROOT / "spec" / "vectors" / "good"
    for path in sorted(good.glob("*.sparsefmt")):
        # there are weights among these whose scales no product can use
        faulty = ["[scaled-not-matrix]"] * 2 if re.fullmatch("scaled-.*-raw", path.stem) else []
        done = run_command("verify", path, "--strict", "--quiet")
        assert re.findall(r"\[[a-z-]+\]$", done.stderr, re.MULTILINE) == faulty, path
        assert done.exit_code == bool(faulty)
    newer = good / "odd" / "unknown-keys-of-a-greater-minor-version-bitmask-raw.sparsefmt"
    succeed("verify", newer)
    assert "not-canonical" in fail(1, "verify", newer, "--strict")


@pytest.mark.parametrize("layout", ["dense", "bitmask", "permuted"])
def test_strict_finds_what_checks_might_overlook(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = np.where(np.arange(8 * 96).reshape(8, 96) % 3, 0, 1.5).astype(np.float32)
    sparsefmt.save_file({"w": weights}, tmp_path / "a.sparsefmt", layout=layout, codec="raw")
    with sparsefmt.open_file(tmp_path / "a.sparsefmt") as file:
        kind = type(file.reader.index.entry("w").layout)
    read = Reader.tile

    def with_a_change(reader: Reader, entry: TensorEntry, number: int, *options: object, **others: object) -> Tile:
        tile = read(reader, entry, number).moved(np.ndarray.copy)
        if layout == "permuted":  # padding of the first slice, of which products see nothing
            for array in ("gaps", "values"):
                tile.put(array, np.concatenate([tile[array], np.zeros(16, tile[array].dtype)]))
        elif layout == "bitmask":
            tile["slice_offsets"][0] = 1
        else:
            tile.put("values", np.concatenate([tile["values"], tile["values"][:1]]))
        return tile

    monkeypatch.setattr(Reader, "tile", with_a_change)
    monkeypatch.setattr(kind, "check", lambda *arguments: None)
    assert "not-canonical" in fail(1, "verify", tmp_path / "a.sparsefmt", "--strict")


def test_damage_names_the_tensor(converted: Path) -> None:
    intact = converted.read_bytes()
    content = json.loads(succeed("inspect", converted, "--json"))
    with sparsefmt.open_file(converted) as file:
        index = file.reader.index
        places = {name: int(index.chunk(entry, 0, "values")["offset"]) for name, entry in index.tensors.items()}
    assert set(places) == {tensor["name"] for tensor in content["files"][0]["tensors"]}
    for name, place in places.items():
        damaged = bytearray(intact)
        damaged[place] ^= 1
        converted.write_bytes(damaged)
        message = fail(1, "verify", converted)
        assert message.startswith(f"{converted}: tensor '{name}': ")
        assert "chunk-checksum" in message
    # all of them are listed, and the rest is still counted
    damaged = bytearray(intact)
    for name in ("bias", "layers.1.weight"):
        damaged[places[name]] ^= 1
    converted.write_bytes(damaged)
    result = run_command("verify", converted)
    assert result.exit_code == 1
    assert ["'bias'" in result.stderr.splitlines()[0], "'layers.1.weight'" in result.stderr.splitlines()[1]] == [
        True,
        True,
    ]
    assert "2 faults; 5 tensors" in result.stdout
    assert "layers.0" not in result.stderr
    converted.write_bytes(intact[:-1])
    assert "cut off" in fail(1, "verify", converted)


@pytest.mark.parametrize("bit", [0, 31])
def test_flipped_bit_of_the_source_is_found(model: Path, converted: Path, bit: int) -> None:
    data = bytearray(model.read_bytes())
    length = int.from_bytes(data[:8], "little")
    place = 8 + length + 4 * (5 * 96 + 7)  # of layers.0.weight, which lies first
    data[place + bit // 8] ^= 1 << (bit % 8)
    model.write_bytes(data)
    element = int(sparse_array(0).view("<u4")[5, 7])
    message = fail(1, "verify", converted, "--against", model)
    assert message == (
        "tensor 'layers.0.weight': 1 of 6,144 elements differ, first at [5, 7]: "
        f"bits 0x{element:08x}, not 0x{element ^ (1 << bit):08x}"
    )
    result = run_command("diff", converted, model, "--bits")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[0] == message


def test_other_names_types_and_shapes_are_differences(model: Path, converted: Path) -> None:
    tensors = read_back(model)
    tensors["new"] = tensors.pop("flags")
    tensors["bias"] = ("I32", [3], tensors["bias"][2])
    tensors["layers.1.weight"] = ("F32", [96, 64], tensors["layers.1.weight"][2])
    model.write_bytes(craft_tensors(tensors, {"format": "np"}))
    result = run_command("verify", converted, "--against", model)
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert len(lines) == 4
    for line, words in zip(
        lines, ["F32 [3] in", f"only in {converted}", "[64, 96] in", f"only in {model}"], strict=True
    ):
        assert words in line
    result = run_command("diff", converted, model, "--bits")
    assert result.exit_code == 1
    assert {line.removeprefix("sparsefmt: error: ") for line in lines} < set(result.stdout.splitlines())
    assert "metadata 'format': ['pt'] in" in result.stdout
    assert "5 differences" in result.stdout


# when things go wrong


def test_disk_full_leaves_the_old_file(model: Path, converted: Path) -> None:
    before = converted.read_bytes()
    names = {path.name for path in model.parent.iterdir()}

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    for arguments in (
        ("convert", model, converted, "--force", "--codec", "raw"),
        ("convert", model, model.with_name("new.sparsefmt"), "--codec", "raw"),
        ("export", converted, model.with_name("new.safetensors")),
    ):
        # a module compiled anew would be cut off as well, and read by the next process
        result = process(*arguments, preexec_fn=limit, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
        assert result.returncode == 2, result.stderr
        assert result.stderr == f"sparsefmt: error: {arguments[2]}: File too large\n"
        assert {path.name for path in model.parent.iterdir()} == names
    assert converted.read_bytes() == before


def test_interrupted(model: Path, converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = converted.read_bytes()
    calls = []

    def interrupt(self: TensorWriter, *tensor: Any, add: Any = TensorWriter.add_prepared) -> None:
        calls.append(tensor)
        if len(calls) == 3:
            raise KeyboardInterrupt
        add(self, *tensor)

    # as small tensors are written
    monkeypatch.setattr(TensorWriter, "add_prepared", interrupt)
    assert fail(130, "convert", model, "--force") == "interrupted"
    assert len(calls) == 3
    assert converted.read_bytes() == before
    assert {path.name for path in model.parent.iterdir()} == {model.name, converted.name}


def test_as_a_process(model: Path) -> None:
    sparse = model.with_suffix(".sparsefmt")
    assert process("convert", model).returncode == 0
    assert process("verify", sparse, "--against", model).returncode == 0
    version = process("--version")
    assert version.stdout == f"sparsefmt {sparsefmt.__version__}\n"
    content = bytearray(sparse.read_bytes())
    content[64] ^= 255
    sparse.write_bytes(content)
    result = process("verify", sparse)
    assert result.returncode == 1
    assert result.stderr.startswith("sparsefmt: error: ")
    assert "Traceback" not in result.stderr
    result = process("inspect", model.parent / "none")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)


def test_reader_that_hangs_up_is_no_error(converted: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "w") as closed:
        command = [sys.executable, "-m", "sparsefmt", "inspect", str(converted), "--json"]
        result = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=60)
    assert "Traceback" not in result.stderr
    assert "error" not in result.stderr
