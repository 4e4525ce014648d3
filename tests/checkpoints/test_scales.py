"""Scaled weights that metadata names: what does not fit is refused wherever files are made of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy
from helpers import fail, succeed
from scaled_pairs import BAD, pair_with

import sparsefmt
from sparsefmt import SparsefmtError
from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.conversion import convert_checkpoint, export_checkpoint
from sparsefmt.save_options import SaveOptions


def export(source: Path, target: Path, dequantize: bool) -> None:
    with Checkpoint(source, ["sparsefmt"]) as checkpoint:
        if dequantize:
            checkpoint.dequantize()
        export_checkpoint(checkpoint, target)


@pytest.mark.parametrize(("tensors", "metadata", "code", "words"), BAD)
class TestRefused:
    def test_by_convert(
        self, tensors: dict[str, Any], metadata: dict[str, str], code: str, words: str, tmp_path: Path
    ) -> None:
        source, target = tmp_path / "model.safetensors", tmp_path / "model.sparsefmt"
        whole, said = pair_with(tensors, metadata)
        safetensors.numpy.save_file(whole, source, said)
        with Checkpoint(source, ["safetensors"]) as checkpoint, pytest.raises(SparsefmtError, match=words) as caught:
            convert_checkpoint(checkpoint, target, SaveOptions())
        assert caught.value.code == code
        assert "model.safetensors" in str(caught.value)
        assert not target.exists()

    @pytest.mark.parametrize("dequantize", [False, True])
    def test_by_export(
        self,
        tensors: dict[str, Any],
        metadata: dict[str, str],
        code: str,
        words: str,
        dequantize: bool,
        tmp_path: Path,
    ) -> None:
        source, target = tmp_path / "model.sparsefmt", tmp_path / "model.safetensors"
        whole, said = pair_with(tensors, metadata)
        sparsefmt.save_file(whole, source, said)
        with pytest.raises(SparsefmtError, match=words) as caught:
            export(source, target, dequantize)
        assert caught.value.code == code
        assert "model.sparsefmt" in str(caught.value)
        assert not target.exists()


def test_the_command_names_the_file(tmp_path: Path) -> None:
    whole, said = pair_with({"weight_scale": None}, {})
    sparsefmt.save_file(whole, tmp_path / "model.sparsefmt", said)
    for option in ([], ["--dequantize"]):
        printed = fail(1, "export", tmp_path / "model.sparsefmt", *option)
        assert "model.sparsefmt" in printed
        assert "'l.weight_scale', which is not among the tensors" in printed


def test_a_good_pair_is_kept(tmp_path: Path) -> None:
    whole, said = pair_with({}, {"sparsefmt.activations": '{"l.weight": "int8"}'})
    sparsefmt.save_file(whole, tmp_path / "a.sparsefmt", said)
    succeed("export", tmp_path / "a.sparsefmt", tmp_path / "b.safetensors")
    succeed("convert", tmp_path / "b.safetensors")
    with sparsefmt.open_file(tmp_path / "b.sparsefmt") as file:
        assert file.metadata() == said
    succeed("export", tmp_path / "a.sparsefmt", tmp_path / "d.safetensors", "--dequantize")
    with safetensors.safe_open(tmp_path / "d.safetensors", "np") as opened:
        assert not opened.metadata()
