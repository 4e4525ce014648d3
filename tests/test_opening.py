"""Everything that opens a file: what it can be told, and from where it reads."""

from __future__ import annotations

import errno
import inspect
import mmap
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from helpers import run_command, same_bits, weights

import sparsefmt
import sparsefmt.numpy
import sparsefmt.torch
from sparsefmt import ChecksumError, LimitError, SparsefmtError
from sparsefmt.cli import main
from sparsefmt.container.disk_file import CannotBeMapped
from sparsefmt.container.sources import MappedFile
from sparsefmt.dtypes import DTYPES

TENSORS = {
    "weight": weights(np.random.default_rng(0), (64, 64), np.float32, 0.8),
    "bias": np.arange(64, dtype=np.float32),
}


def a_layer() -> torch.nn.Module:
    return torch.nn.Linear(64, 64)


def opened(function: Callable, source: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
    with function(source, *arguments, **options) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)


def loaded_into(function: Callable, source: Any, **options: Any) -> dict[str, Any]:
    model = a_layer()
    function(model, source, **options)
    weight = model.weight
    dense = weight.dequantize() if isinstance(weight, sparsefmt.torch.SparseWeight) else weight
    return {"weight": dense.detach(), "bias": model.bias.detach()}


def deserialized(function: Callable[..., Any], path: Any, **options: Any) -> dict[str, Any]:
    return {
        name: np.frombuffer(tensor["data"], DTYPES[tensor["dtype"]].numpy).reshape(tensor["shape"])
        for name, tensor in function(path.read_bytes(), **options)
    }


READING: dict[str, Callable[..., dict[str, Any]]] = {
    "sparsefmt.deserialize": deserialized,
    "sparsefmt.load": lambda f, path, **options: f(path.read_bytes(), layout="dense", **options),
    "sparsefmt.load_file": lambda f, path, **options: f(path, layout="dense", **options),
    "sparsefmt.open_file": opened,
    "sparsefmt.safe_open": lambda f, path, **options: opened(f, path, "np", **options),
    "sparsefmt.numpy.load": lambda f, path, **options: f(path.read_bytes(), **options),
    "sparsefmt.numpy.load_file": lambda f, path, **options: f(path, **options),
    "sparsefmt.torch.load": lambda f, path, **options: f(path.read_bytes(), **options),
    "sparsefmt.torch.load_file": lambda f, path, **options: f(path, **options),
    "sparsefmt.torch.load_into": loaded_into,
    "sparsefmt.torch.load_model": loaded_into,
}
"""How each function that reads is called for all tensors."""


def reading() -> Iterator[tuple[str, Callable]]:
    """Public functions that read a file, found by the names of their arguments."""
    for module in (sparsefmt, sparsefmt.numpy, sparsefmt.torch):
        for name in module.__all__:
            value = getattr(module, name)
            if callable(value) and not name.startswith(("save", "serialize")) and not name.endswith("Error"):
                parameters = inspect.signature(value).parameters
                if parameters.keys() & {"path", "filename", "data", "file"}:
                    yield f"{module.__name__}.{name}", value


FUNCTIONS = dict(reading())
OF_BYTES = (".load", ".deserialize")
"""How names of functions end that take the bytes of a file."""

OF_FILES = {name: function for name, function in FUNCTIONS.items() if not name.endswith(OF_BYTES)}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("opening") / "model.sparsefmt"
    sparsefmt.save_file(TENSORS, path)
    return path


def check_tensors(found: dict[str, Any]) -> None:
    assert found.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        assert same_bits(np.asarray(found[name]), array), name


def test_all_functions_that_read_are_here():
    assert FUNCTIONS.keys() == READING.keys()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_can_be_told_how_much_to_decode(path, name):
    function, read = FUNCTIONS[name], READING[name]
    parameter = inspect.signature(function).parameters["max_decoded_bytes"]
    assert (parameter.kind, parameter.default) == (inspect.Parameter.KEYWORD_ONLY, None)
    check_tensors(read(function, path))
    check_tensors(read(function, path, max_decoded_bytes=1 << 20))
    with pytest.raises(LimitError, match="raise max_decoded_bytes if you trust it") as caught:
        read(function, path, max_decoded_bytes=255)
    assert caught.value.code == "decoded-bytes"


@pytest.mark.parametrize("name", OF_FILES)
def test_errors_have_the_path_as_a_note(path, tmp_path, name):
    damaged = tmp_path / "damaged.sparsefmt"
    content = bytearray(path.read_bytes())
    content[70] ^= 1
    damaged.write_bytes(content[:-1])
    with pytest.raises(SparsefmtError) as caught:
        READING[name](FUNCTIONS[name], damaged)
    assert caught.value.path == str(damaged)
    damaged.write_bytes(content)
    if name not in ("sparsefmt.open_file", "sparsefmt.safe_open"):
        with pytest.raises(ChecksumError) as caught:
            READING[name](FUNCTIONS[name], damaged)
        assert caught.value.path == str(damaged)


@pytest.mark.parametrize("name", OF_FILES)
def test_each_can_be_told_how_to_read(path, name, monkeypatch):
    function, read = FUNCTIONS[name], READING[name]
    parameter = inspect.signature(function).parameters["backend"]
    assert (parameter.kind, parameter.default) == (inspect.Parameter.KEYWORD_ONLY, "mmap")
    with pytest.raises(ValueError, match="backend"):
        read(function, path, backend="carrier pigeon")
    mapped = []
    monkeypatch.setattr(mmap, "mmap", lambda *args, real=mmap.mmap, **kw: mapped.append(1) or real(*args, **kw))
    check_tensors(read(function, path, backend="mmap"))
    assert mapped
    mapped.clear()
    check_tensors(read(function, path, backend="pread"))
    assert not mapped


def cannot_map(code: int) -> Callable:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(code, "as a file system says it")

    return refuse


@pytest.mark.parametrize("name", FUNCTIONS)
def test_file_systems_that_cannot_map(path, name, monkeypatch):
    for code in (errno.ENODEV, errno.EACCES, errno.EINVAL):
        monkeypatch.setattr(mmap, "mmap", cannot_map(code))
        check_tensors(READING[name](FUNCTIONS[name], path))


def test_other_errors_of_mapping_stay(path, monkeypatch):
    monkeypatch.setattr(mmap, "mmap", cannot_map(errno.ENOMEM))
    with pytest.raises(OSError, match="as a file system says it") as caught:
        sparsefmt.load_file(path)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOMEM, str(path))


def test_a_file_that_really_cannot_be_mapped():
    """Files of sysfs are regular files that the kernel does not map."""
    notes = Path("/sys/kernel/notes")
    if not notes.is_file():
        pytest.skip("there is no sysfs")
    with pytest.raises(CannotBeMapped):
        MappedFile(notes)
    with pytest.raises(sparsefmt.FormatError, match="not a sparsefmt file"):
        sparsefmt.open_file(notes)


def commands() -> list[str]:
    """Commands that decode .sparsefmt files: `inspect` reads the index alone, `convert` makes such files, `view` hands
    one to a browser as it is."""
    assert isinstance(main, click.Group)
    context = click.Context(main)
    found = []
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        if any(isinstance(parameter, click.Argument) for parameter in command.params):
            found.append(name)
    return [name for name in found if name not in ("inspect", "convert", "view")]


@pytest.mark.parametrize("name", commands())
def test_each_command_can_be_told_how_much_to_decode(path, tmp_path, name):
    arguments = [
        name,
        path,
        *([path] if name == "diff" else [tmp_path / "out.safetensors"] if name == "export" else []),
        *(["-o", tmp_path / "out.html"] if name == "report" else []),
    ]
    refused = run_command(*arguments, "--max-decoded-bytes", 255)
    assert refused.exit_code == 1
    assert "raise --max-decoded-bytes if you trust it" in refused.stderr
    if name != "bench":  # which compiles kernels
        assert run_command(*arguments, "--max-decoded-bytes", 1 << 20).exit_code == 0


def test_checkpoints_of_torch_where_nothing_can_be_mapped(tmp_path, monkeypatch):
    source = tmp_path / "pytorch_model.bin"
    torch.save({name: torch.from_numpy(array) for name, array in TENSORS.items()}, source)

    def from_file(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError(f"unable to mmap 384 bytes from file <{source}>: No such device (19)")

    monkeypatch.setattr(torch.UntypedStorage, "from_file", from_file)
    with pytest.raises(RuntimeError):
        torch.load(source, weights_only=True, mmap=True)
    assert run_command("convert", source, tmp_path / "model.sparsefmt").exit_code == 0
    check_tensors(sparsefmt.numpy.load_file(tmp_path / "model.sparsefmt"))


def test_errors_know_the_file_and_the_tensor(tmp_path: Path) -> None:
    """Whenever the fault is found: on opening, on reading a tensor, when memory runs out, or after closing."""
    path = tmp_path / "model.sparsefmt"
    sparsefmt.save_file({"w": np.eye(64, dtype=np.float32)}, path, codec="raw", layout="bitmask")
    file = sparsefmt.open_file(path)
    with sparsefmt.open_file(path, max_decoded_bytes=1) as limited, pytest.raises(sparsefmt.LimitError) as beyond:
        limited.load("w", layout="dense")
    file.close()
    with pytest.raises(sparsefmt.SparsefmtError) as closed:
        file["w"]
    data = bytearray(path.read_bytes())
    data[64] ^= 1
    path.write_bytes(data)
    with sparsefmt.open_file(path) as damaged, pytest.raises(sparsefmt.ChecksumError) as changed:
        damaged["w"]
    path.write_bytes(data[:-1])
    with pytest.raises(sparsefmt.FormatError) as short:
        sparsefmt.open_file(path)
    for raised, tensor in ((beyond, "w"), (closed, None), (changed, "w"), (short, None)):
        error = raised.value
        assert (error.path, error.tensor) == (str(path), tensor)
        assert str(error).startswith(f"{path}: ")
        again = pickle.loads(pickle.dumps(error))
        assert (again.path, str(again)) == (error.path, str(error))
    with pytest.raises(sparsefmt.FormatError) as of_bytes:
        sparsefmt.load(bytes(data[:-1]))
    assert of_bytes.value.path is None
