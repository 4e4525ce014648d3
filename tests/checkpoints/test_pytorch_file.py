"""`sparsefmt convert` on what torch.save wrote: what is taken, what is skipped and said, what is refused."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers import check_progress, fail, run_command, succeed
from safetensors_files import sparse_array

import sparsefmt
import sparsefmt.torch
from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.conversion import convert_checkpoint
from sparsefmt.save_options import SaveOptions


def pruned(seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.from_numpy(sparse_array(seed)).to(dtype)


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    """As a model has it: parameters, a buffer, a scalar, tied weights, a transposed view."""
    embedding = pruned(0)
    return {
        "embed.weight": embedding,
        "layer.weight": torch.nn.Parameter(pruned(1, torch.bfloat16)),
        "layer.transposed": pruned(2).T,
        "norm.num_batches_tracked": torch.tensor(3),
        "mask": torch.zeros(3, dtype=torch.bool),
        "empty": torch.zeros(0, 4),
        "head.weight": embedding,
    }


def check_same(path: Path, state: dict[str, torch.Tensor]) -> None:
    loaded = sparsefmt.torch.load_file(path)
    assert set(loaded) == set(state)
    for name, tensor in state.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        assert torch.equal(loaded[name], tensor), name


@pytest.mark.parametrize("name", ["model.pt", "model.bin", "model.pth", "no_suffix"])
@pytest.mark.parametrize("old_form", [False, True])
def test_a_state_dict(name: str, old_form: bool, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / name, _use_new_zipfile_serialization=not old_form)
    out = succeed("convert", tmp_path / name)
    path = (tmp_path / name).with_suffix(".sparsefmt")
    check_same(path, state)
    assert "1 name of a tensor that has another name, too: stored once." in out
    assert "skipped" not in out
    with sparsefmt.open_file(path) as file:
        assert file.reader.index.aliases == {"head.weight": "embed.weight"}
        assert file.metadata() == {"format": "pt"}
    assert "all bits are those of" in succeed("verify", path, "--against", tmp_path / name)
    # of the metadata alone, torch has none
    assert succeed("diff", path, tmp_path / name) == f"equal: {len(state)} tensors\n"


def test_checkpoint_of_a_training(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(3))])
    content = {
        "epoch": 3,
        "model_state_dict": state,
        "optimizer_state_dict": {"state": {0: {"exp_avg": torch.ones(3)}}, **optimizer.state_dict()},
        "loss": torch.tensor(0.5),
        "history": [1.0, 2.0],
        "name": "x",
        "none": None,
    }
    torch.save(content, tmp_path / "a.pt")
    out = succeed("convert", tmp_path / "a.pt")
    check_same(tmp_path / "a.sparsefmt", state)
    assert "a.pt: the tensors below 'model_state_dict' were taken." in out
    skipped = out.partition("skipped, since it is not a part of the model or no tensor: ")[2].splitlines()[0]
    assert skipped == "'epoch', 'optimizer_state_dict', 'loss', 'history', 'name' and 1 more"


@pytest.mark.parametrize(
    ("content", "names", "taken", "skipped"),
    [
        ({"state_dict": {"model": {"w": 1}}}, {"w"}, "state_dict.model", ""),
        ({"model": {"a": {"w": 1}, "b": [1, 1]}, "args": {"x": 2.0}}, {"a.w", "b.0", "b.1"}, "model", "'args'"),
        ({"encoder": {"w": 1, "step": 5.0}, "decoder": {"w": 1}}, {"encoder.w", "decoder.w"}, "", "'encoder.step'"),
        ({"model": {}, "params": {"w": 1}}, {"w"}, "params", "'model'"),
        ({"model": {"step": 2.0}, "w": 1}, {"w"}, "", "'model'"),
        ({0: 1, "1": 1}, {"0", "1"}, "", ""),
        (1, {"tensor"}, "", ""),
        ([1, (1, 2.0)], {"0", "1.0"}, "", "'1.1'"),
        ({"state_dict": {"w": 1, "x": "text"}}, {"w"}, "state_dict", "'state_dict.x'"),
    ],
)
def test_what_is_taken(content: Any, names: set[str], taken: str, skipped: str, tmp_path: Path) -> None:
    def filled(part: Any) -> Any:
        """With a tensor for each 1."""
        if isinstance(part, dict):
            return {key: filled(value) for key, value in part.items()}
        if isinstance(part, (list, tuple)):
            return type(part)(map(filled, part))
        return torch.ones(2, 3) * torch.rand(1) if part == 1 and isinstance(part, int) else part

    torch.save(filled(content), tmp_path / "a.pt")
    out = succeed("convert", tmp_path / "a.pt")
    assert set(sparsefmt.load_file(tmp_path / "a.sparsefmt")) == names
    assert (f"below {taken!r} were taken" in out) if taken else ("were taken" not in out)
    assert out.partition("or no tensor: ")[2].strip() == skipped


def test_two_tensors_of_one_name(tmp_path: Path) -> None:
    torch.save({"a.b": torch.ones(1), "a": {"b": torch.ones(2)}}, tmp_path / "a.pt")
    assert "tensor 'a.b': " in fail(1, "convert", tmp_path / "a.pt")


def save_model_folder(folder: Path, shards: list[dict[str, torch.Tensor]], *, index: bool) -> Path:
    folder.mkdir()
    count = len(shards)
    names = (
        ["pytorch_model.bin"] if count == 1 else [f"pytorch_model-{n + 1:05d}-of-{count:05d}.bin" for n in range(count)]
    )
    for name, shard in zip(names, shards, strict=True):
        torch.save(shard, folder / name)
    if index:
        weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        content = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(content))
    torch.save({"lr": 1}, folder / "training_args.bin")
    torch.save({"state": {}}, folder / "optimizer.pt")
    (folder / "config.json").write_text('{"model_type": "llama"}\n')
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.mark.parametrize(("count", "index"), [(1, False), (2, True), (2, False)])
def test_folder_of_transformers(count: int, index: bool, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    names = [name for name in state if name != "head.weight"]
    shards = [{name: state[name] for name in names[start::count]} for start in range(count)]
    source = save_model_folder(tmp_path / "model", shards, index=index)
    out = succeed("convert", source)
    sparse = tmp_path / "model-sparsefmt"
    stems = ["model"] if count == 1 else [f"model-{n + 1:05d}-of-{count:05d}" for n in range(count)]
    expected = {"README.md", "config.json", "tokenizer.json", *(f"{stem}.sparsefmt" for stem in stems)}
    expected |= {"model.sparsefmt.index.json"} if count > 1 else set()
    assert {path.name for path in sparse.iterdir()} == expected
    assert "training_args.bin" in out
    assert json.loads((sparse / "config.json").read_text())["quantization_config"]["quant_method"] == "sparsefmt"
    succeed("verify", sparse, "--against", source)
    succeed("export", sparse, tmp_path / "back")
    exported: dict[str, torch.Tensor] = {}
    for path in (tmp_path / "back").glob("*.safetensors"):
        exported |= safetensors.torch.load_file(path)
    assert all(torch.equal(exported[name], state[name]) for name in names)
    assert len(exported) == len(names)
    if index:
        succeed("convert", source / "pytorch_model.bin.index.json", tmp_path / "again")
        (source / "pytorch_model-00002-of-00002.bin").unlink()
        assert "is missing" in fail(1, "convert", source, tmp_path / "no")


def test_folder_of_several_files_asks_which(tmp_path: Path) -> None:
    for name in ("best.pt", "last.pt"):
        torch.save({"w": torch.ones(2)}, tmp_path / name)
    assert "which is the model? Give one of its files: best.pt, last.pt" in fail(1, "convert", tmp_path)
    (tmp_path / "last.pt").unlink()
    succeed("convert", tmp_path, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["best.sparsefmt"]


def test_what_could_run_code_is_refused_and_not_run(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    for number, content in enumerate([{"w": torch.ones(2), "x": Harmful()}, torch.nn.Linear(2, 2)]):
        for old_form in (False, True):
            path = tmp_path / f"{number}{old_form}.pt"
            torch.save(content, path, _use_new_zipfile_serialization=not old_form)
            message = fail(1, "convert", path)
            assert "and not only tensors, so that loading it could run code from the file" in message
            assert "weights_only" not in message
            assert "system" in message or "Linear" in message
    torch.save({"w": torch.ones(2), "args": argparse.Namespace(a=1)}, tmp_path / "b.pt")
    assert "it has a argparse.Namespace" in fail(1, "convert", tmp_path / "b.pt")
    assert not (tmp_path / "ran").exists()
    assert not list(tmp_path.glob("*.sparsefmt"))


def test_damaged_and_odd_files(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1000)}, tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    path = tmp_path / "a.pt"
    for length in (4, 100, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:length])
        fail(1, "convert", path)
    torch.save({"w": torch.ones(1000)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:500])
    assert "it may be damaged" in fail(1, "convert", path)
    torch.save({"epoch": 3}, path)
    assert "there is no tensor in it" in fail(1, "convert", path)
    torch.save({"w": torch.ones(3, device="meta")}, path)
    assert "tensor 'w': " in fail(1, "convert", path)
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    assert "TorchScript" in fail(1, "convert", path)
    loop: list[Any] = [torch.ones(1)]
    loop.append(loop)
    torch.save({"a": loop}, path)
    assert run_command("convert", path).exit_code == 1
    many: list[Any] = [torch.ones(1)]
    for _ in range(64):
        many = [many, many]
    torch.save(many, path)
    assert run_command("convert", path).exit_code == 1
    assert [path.name for path in tmp_path.glob("*.sparsefmt")] == []


def test_without_torch(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "a.bin")
    program = "import sys; sys.modules['torch'] = None; from sparsefmt.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", program, "convert", str(tmp_path / "a.bin")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert result.stderr.startswith("sparsefmt: error: ")
    assert "pip install torch" in result.stderr
    assert result.stderr.count("\n") == 1


def test_progress_counts_tied_names(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "a.pt")
    steps: list[int] = []
    with Checkpoint(tmp_path / "a.pt", ["torch"]) as source:
        convert_checkpoint(source, tmp_path / "a.sparsefmt", SaveOptions(), progress=steps.append)
        check_progress(steps, source.dense_nbytes)


def test_memory_is_not_that_of_the_checkpoint(tmp_path: Path) -> None:
    """It is mapped: what counts is memory that cannot be dropped."""
    torch.save(
        {f"w{n}": torch.from_numpy(np.random.default_rng(n).random((1024, 8192), np.float32)) for n in range(4)},
        tmp_path / "a.pt",
    )
    program = """
import sys
from sparsefmt.cli import main

def peak():  # of anonymous memory, sampled where a tensor is begun
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1])

from sparsefmt.tensor_writer import TensorWriter
add, seen = TensorWriter.add, []
TensorWriter.add = lambda self, *a: (seen.append(peak()), add(self, *a), seen.append(peak()))[1]
main(sys.argv[1:], standalone_mode=False)
print((max(seen) - seen[0]) >> 10)
"""
    command = [sys.executable, "-c", program, "convert", str(tmp_path / "a.pt"), "--codec", "raw", "--quiet"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert int(result.stdout) < 64  # MB, of 134


def test_names_that_say_something_else_are_not_written(tmp_path: Path) -> None:
    safetensors.torch.save_file({"w": pruned(0)}, tmp_path / "a.safetensors")
    succeed("convert", tmp_path / "a.safetensors")
    for name in ("x.gguf", "x.bin", "x.pt", "x.sparsefmt", "x.safetensor", "x"):
        if name != "x.sparsefmt":
            message = fail(2, "convert", tmp_path / "a.safetensors", tmp_path / name)
            assert "must be a .sparsefmt file" in message
        assert "must be a .safetensors file" in fail(2, "export", tmp_path / "a.sparsefmt", tmp_path / name)
    assert "name it x.sparsefmt" in message
    (tmp_path / "in").mkdir()
    (tmp_path / "a.safetensors").rename(tmp_path / "in" / "a.safetensors")
    for name in ("x.gguf", "x.bin", "x.sparsefmt", "x.safetensors.index.json"):
        assert "must be a folder" in fail(2, "convert", tmp_path / "in", tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {"a.sparsefmt", "in"}
    succeed("convert", tmp_path / "in", tmp_path / "llama-3.1")
