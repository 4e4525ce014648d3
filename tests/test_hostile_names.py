"""Nothing that a file names is imported, evaluated or unpickled by us: formats, quantizers, classes, dtypes, tensors.

Every text of every file that comes with a model says, in one of many spellings, to import a module that is there and
would show that it was.
"""

from __future__ import annotations

import builtins
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
import safetensors.numpy
import torch
from helpers import run_command, weights
from transformers import AutoModelForCausalLM, LlamaConfig

import sparsefmt
import sparsefmt.torch
from sparsefmt.errors import SparsefmtError
from sparsefmt.transformers import SparsefmtConfig, SparsefmtQuantizer
from tools.taken_apart import encoded, join, merged, split_and_decode, with_kinds

pytestmark = pytest.mark.usefixtures("small_layers")

MODULE = "hostile_module"
SPELLINGS = (
    MODULE,
    f"{MODULE}.Thing",
    f"{MODULE}:Thing",
    f"sparsefmt.{MODULE}.Thing",
    f"{MODULE}--owner/repository",
    f"__import__({MODULE!r})",
    f"!!python/object/apply:{MODULE}.Thing []",
    f"c{MODULE}\nThing\n(tR.",
    f"${{{MODULE}}}",
    f"file:{MODULE}.py",
)

_seen: list[str] = []
_watching = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event in ("import", "exec", "compile", "pickle.find_class", "os.system", "subprocess.Popen"):
        told = [
            getattr(argument, "co_names", ()) + getattr(argument, "co_consts", ()) or argument for argument in arguments
        ]
        if MODULE in repr(told):
            _seen.append(f"{event} {told!r:.200}")


sys.addaudithook(_audit)


class Finder:
    """The first to be asked for every module: remembers those that files have named."""

    def find_spec(self, name: str, *arguments: object) -> None:
        if MODULE in name:
            _seen.append(f"find {name}")


@contextmanager
def watched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module of that name can be imported meanwhile. It fails if anybody so much as tried to."""
    global _watching
    (folder / f"{MODULE}.py").write_text("import builtins\nbuiltins.hostile_was_here = True\nclass Thing: ...\n")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
        real = importlib.import_module
        patch.setattr(
            importlib, "import_module", lambda name, *rest: _seen.append(name) if MODULE in name else real(name, *rest)
        )
        _seen.clear()
        _watching = True
        try:
            yield
        finally:
            _watching = False
    found = [
        *_seen,
        *(["it was imported"] if hasattr(builtins, "hostile_was_here") else []),
        *([MODULE] if MODULE in sys.modules else []),
    ]
    sys.modules.pop(MODULE, None)
    vars(builtins).pop("hostile_was_here", None)
    assert not found, found


def hostile(spelling: str) -> dict[str, Any]:
    """What a config.json may have beside what is needed."""
    return {
        "auto_map": {
            "AutoConfig": spelling,
            "AutoModelForCausalLM": f"{MODULE}.Thing",
            "AutoTokenizer": [spelling, None],
        },
        "architectures": [spelling],
        "custom_pipelines": {"p": {"impl": spelling, "pt": [spelling]}},
        "format": spelling,
        "quantizer": spelling,
        "_attn_implementation_internal": None,
        "transformers_version": spelling,
        "unknown": {"class": spelling, "py/object": spelling, "py/reduce": [spelling], "__class__": spelling},
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that is pruned, as safetensors."""
    folder = tmp_path_factory.mktemp("hostile") / "model"
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0
    )
    made = AutoModelForCausalLM.from_config(config)
    for module in made.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data *= torch.rand(module.weight.shape) < 0.1
    made.save_pretrained(folder)
    return folder


def poisoned(model: Path, folder: Path, spelling: str, quantization: Any = None) -> Path:
    """The same model, whose files name the module wherever texts can be."""
    folder.mkdir()
    config = {**json.loads((model / "config.json").read_text()), **hostile(spelling)}
    if quantization is not None:
        config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("generation_config.json", "tokenizer_config.json", "custom.json"):
        (folder / name).write_text(json.dumps({"class": spelling, "auto_map": {"x": spelling}}))
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": spelling}]))
    (folder / f"{MODULE}.py").write_text("import builtins\nbuiltins.hostile_was_here = True\nclass Thing: ...\n")
    tensors = safetensors.numpy.load_file(model / "model.safetensors")
    shard = "model-00001-of-00001.safetensors"
    safetensors.numpy.save_file(tensors, folder / shard, {"format": "pt", "class": spelling, spelling: spelling})
    index = {
        "metadata": {"total_size": 1, "class": spelling, "format": spelling},
        "weight_map": dict.fromkeys(tensors, shard),
        "class": spelling,
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_the_watch_sees(tmp_path, monkeypatch):
    def imported() -> None:
        importlib.import_module(MODULE)

    def dotted() -> None:
        with suppress(ImportError):
            importlib.import_module(f"sparsefmt.{MODULE}")

    def plain() -> None:
        with suppress(ImportError):
            __import__(f"xml.{MODULE}")

    ways: list[Callable[[], object]] = [
        imported,
        dotted,
        plain,
        lambda: eval(f"__import__({MODULE!r})"),
        lambda: exec(f"import {MODULE}"),
        lambda: compile(f"{MODULE}.Thing", "f", "eval"),
    ]
    for way in ways:
        with pytest.raises(AssertionError, match=MODULE), watched(tmp_path, monkeypatch):
            way()
    with watched(tmp_path, monkeypatch):
        importlib.import_module("json")


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_model_whose_files_name_it(model, tmp_path, monkeypatch, spelling):
    """Converted, looked at, checked, exported, loaded and saved: as any other."""
    source = poisoned(model, tmp_path / "source", spelling)
    target = tmp_path / "target"
    with watched(tmp_path, monkeypatch):
        for arguments in (
            ("convert", source, target),
            ("inspect", target),
            ("verify", target, "--against", source, "--strict"),
            ("diff", source, target),
            ("export", target, tmp_path / "back"),
        ):
            result = run_command(*arguments)
            assert result.exit_code == 0, (arguments, result.output)
        found = AutoModelForCausalLM.from_pretrained(target, trust_remote_code=False)
        assert any(isinstance(module, sparsefmt.torch.SparseLinear) for module in found.modules())
        sparsefmt.torch.load_into(found, target)
        found.save_pretrained(tmp_path / "saved")
        found.dequantize()


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize(
    "key", ["quant_method", "layout", "include", "exclude", "min_sparsity", "format", "class", "backend"]
)
def test_a_quantization_config_that_names_it(model, tmp_path, monkeypatch, spelling, key):
    config = {"quant_method": "sparsefmt", key: spelling}
    folder = poisoned(model, tmp_path / "source", spelling, config)
    with watched(tmp_path, monkeypatch):
        with suppress(ValueError, TypeError):
            SparsefmtConfig.from_dict(dict(config))
        run_command("convert", folder, tmp_path / "target")
        with suppress(ValueError, TypeError, OSError):
            AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_tensors_and_metadata_that_name_it(tmp_path, monkeypatch, spelling):
    array = weights(np.random.default_rng(0), (64, 64), np.float32, 0.8)
    path = tmp_path / "model.sparsefmt"
    with watched(tmp_path, monkeypatch):
        sparsefmt.save_file({spelling: array, "plain": array}, path, {spelling: spelling, "format": spelling})
        assert sparsefmt.load_file(path)[spelling].shape == (64, 64)
        for framework in ("np", "pt"):
            with sparsefmt.safe_open(path, framework) as file:
                assert file.metadata()["format"] == spelling
                file.get_tensor(spelling)
        with pytest.raises(SparsefmtError):
            sparsefmt.safe_open(path, spelling)
        for option in ({"layout": spelling}, {"backend": spelling}):
            with pytest.raises(ValueError, match="must be"):
                sparsefmt.load_file(path, **option)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("key", ["layout", "dtype", "codec", "array", "kind", "alias_of", "copy_of", "models"])
def test_an_index_that_names_it(tmp_path, monkeypatch, spelling, key):
    """Layouts, codecs, dtypes and arrays come from tables."""
    array = weights(np.random.default_rng(0), (64, 64), np.float32, 0.8)
    head, content = split_and_decode(sparsefmt.save({"w": array}, layout="permuted"))
    content = merged(content)
    entry = content["tensors"]["w"]
    if key == "codec":
        entry["arrays"] = dict.fromkeys(entry["arrays"], spelling)
    elif key == "array":
        entry["arrays"][spelling] = "raw"
    elif key == "models":
        entry["models"] = {spelling: spelling.encode()}
    elif key in ("alias_of", "copy_of"):
        content["tensors"]["x"] = {key: spelling}
    else:
        entry[key] = spelling
    content = with_kinds(content)
    if key == "kind":
        content["tensors"]["w"]["kind"] = spelling
    data = join(head, encoded(content))
    with watched(tmp_path, monkeypatch), pytest.raises(SparsefmtError):
        sparsefmt.load(data)


@pytest.mark.parametrize("name", [*SPELLINGS, "hub", "_inductor", "ops", "save", "torch.hub", "nn.Linear"])
def test_a_dtype_that_is_something_else(tmp_path, monkeypatch, name):
    """torch imports some of its modules when their names are asked for."""
    quantizer = SparsefmtQuantizer(SparsefmtConfig())
    with watched(tmp_path, monkeypatch), pytest.raises(ValueError, match="not a dtype of torch"):
        quantizer._dequantize(torch.nn.Linear(2, 2), dtype=name)
    assert quantizer._dequantize(torch.nn.Linear(2, 2), dtype="bfloat16") is not None
    assert quantizer._dequantize(torch.nn.Linear(2, 2), dtype="torch.float16") is not None
