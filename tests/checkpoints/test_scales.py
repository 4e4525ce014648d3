"""Scaled weights that metadata names: what does not fit is refused wherever files are made of files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from helpers import fail, run_command, succeed
from scaled_pairs import BAD, pair_with

import sparsefmt
from sparsefmt import SparsefmtError
from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.conversion import convert_checkpoint, export_checkpoint
from sparsefmt.checkpoints.verification import Verifier
from sparsefmt.checkpoints.verified_files import Verification
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

    def test_by_verify(
        self, tensors: dict[str, Any], metadata: dict[str, str], code: str, words: str, tmp_path: Path
    ) -> None:
        whole, said = pair_with(tensors, metadata)
        sparsefmt.save_file(whole, tmp_path / "model.sparsefmt", said)
        with Checkpoint(tmp_path / "model.sparsefmt", ["sparsefmt"]) as checkpoint:
            # a model is the same as itself, and still not what products take
            found = Verification(checkpoint, checkpoint).run(Verifier())
        (fault,) = found.faults
        assert isinstance(fault, SparsefmtError)
        assert fault.code == code
        assert re.search(words, str(fault))
        assert "model.sparsefmt" in str(fault)


def test_verify_names_every_pair_of_a_folder(tmp_path: Path) -> None:
    for number, scale in enumerate((np.full(8, np.nan), np.ones(9), np.ones(8))):
        sparsefmt.save_file(
            {f"{number}.weight": np.ones((8, 16), np.int8), f"{number}.weight_scale": scale.astype(np.float32)},
            tmp_path / f"model-{number + 1:05}-of-00003.sparsefmt",
            {"sparsefmt.scales": f'{{"{number}.weight": "{number}.weight_scale"}}'},
        )
    shards = [(number, path.name) for number, path in enumerate(sorted(tmp_path.iterdir()))]
    index = {f"{number}.{name}": path for number, path in shards for name in ("weight", "weight_scale")}
    (tmp_path / "model.sparsefmt.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    for against in ([], ["--against", tmp_path]):
        result = run_command("verify", tmp_path, *against)
        assert result.exit_code == 1
        printed = result.stdout + result.stderr
        assert "model-00001-of-00003.sparsefmt: tensor '0.weight': its scales '0.weight_scale' do not fit" in printed
        assert "model-00002-of-00003.sparsefmt: tensor '1.weight': its scales '1.weight_scale' do not fit" in printed
        assert "2 faults; 6 tensors" in printed


def test_verify_says_one_thing_of_scales_that_are_damaged(tmp_path: Path) -> None:
    path = tmp_path / "model.sparsefmt"
    whole, said = pair_with({"weight_scale": np.full(8, 0.1234, np.float32)}, {})
    sparsefmt.save_file(whole, path, said, codec="raw")
    content = bytearray(path.read_bytes())
    content[content.index(whole["l.weight_scale"].tobytes())] ^= 1
    path.write_bytes(content)
    assert "'l.weight_scale'" in fail(1, "verify", path)


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
