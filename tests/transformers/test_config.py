"""SparsefmtConfig: which options a folder and a call may have, and what they do."""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoModelForCausalLM,
)
from transformers_models import QUANTIZED, SPARSE_LAYERS, edit_config, sparse_layers

from sparsefmt.errors import LimitError
from sparsefmt.torch import SparseLinear
from sparsefmt.transformers import SparsefmtConfig

pytestmark = pytest.mark.usefixtures("small_layers")


def test_options_of_the_config(folders: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    config = SparsefmtConfig(layout="bitmask", min_sparsity=0.5, include="*.mlp.*")
    for number, folder in enumerate(folders["llama"]):
        source = tmp_path / f"in{number}"
        source.mkdir()
        for path in folder.iterdir():
            (source / path.name).write_bytes(path.read_bytes())
        if number:
            edit_config(source, quantization_config=config.to_dict())
        model = AutoModelForCausalLM.from_pretrained(source, **{} if number else {"quantization_config": config})
        assert len(sparse_layers(model)) == 6
        assert all(".mlp." in name for name in sparse_layers(model))
        layers = [module for module in model.modules() if isinstance(module, SparseLinear)]
        assert {layer.sparse_tensor().layout for layer in layers} == {"bitmask"}
        model.save_pretrained(tmp_path / f"out{number}")
        saved = json.loads((tmp_path / f"out{number}" / "config.json").read_text())["quantization_config"]
        assert saved == {**QUANTIZED, "layout": "bitmask", "min_sparsity": 0.5, "include": ["*.mlp.*"]}
    model = AutoModelForCausalLM.from_pretrained(
        folders["llama"][0], quantization_config=SparsefmtConfig(min_sparsity=0.95)
    )
    assert not sparse_layers(model)


def test_limit_and_backend_are_of_the_call(
    folders: dict[str, tuple[Path, Path]], llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folders["llama"][1]
    for error_in in (folder, llama):
        if error_in == llama:
            edit_config(llama, quantization_config=None)
        with pytest.raises(LimitError, match=r"raise SparsefmtConfig\(max_decoded_bytes=...\) if you trust it"):
            AutoModelForCausalLM.from_pretrained(error_in, quantization_config=SparsefmtConfig(max_decoded_bytes=1000))
    config = SparsefmtConfig(max_decoded_bytes=1 << 30, backend="pread")
    with monkeypatch.context() as patch:
        patch.setattr(mmap, "mmap", None)
        model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)
    assert len(sparse_layers(model)) == SPARSE_LAYERS["llama"]
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"] == QUANTIZED
    for chosen in ({"max_decoded_bytes": 1 << 60}, {"backend": "pread"}):
        edit_config(tmp_path, quantization_config={"quant_method": "sparsefmt", **chosen})
        with pytest.raises(ValueError, match="not for a file to decide"):
            AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"backend": "carrier pigeon"}, ValueError),
        ({"layout": "dense"}, ValueError),
        ({"min_sparsity": 1.5}, ValueError),
        ({"include": [1]}, TypeError),
        ({"quant_method": "gptq"}, ValueError),
        ({"bits": 4}, ValueError),
    ],
)
def test_wrong_options(arguments: dict[str, Any], error: type[Exception], llama: Path) -> None:
    with pytest.raises(error, match=str(next(iter(arguments)))):
        SparsefmtConfig(**arguments)
    edit_config(llama, quantization_config={"quant_method": "sparsefmt", **arguments})
    if "quant_method" not in arguments:
        with pytest.raises(error):
            AutoModelForCausalLM.from_pretrained(llama)


def test_layers_can_be_left_out_by_name(folders: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    config = SparsefmtConfig(exclude=["*.mlp.*", "lm_head"])
    for folder in folders["llama"]:
        model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)
        assert len(sparse_layers(model)) == 8
        assert not any(".mlp." in name or "lm_head" in name for name in sparse_layers(model))
        assert model.hf_quantizer.result.dense["lm_head"] == "it is excluded"
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert saved == {**QUANTIZED, "exclude": ["*.mlp.*", "lm_head"]}
    assert len(sparse_layers(AutoModelForCausalLM.from_pretrained(tmp_path))) == 8
