"""The tool that takes tiny models of many architectures through the whole path."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from click.testing import CliRunner
from helpers import first_always

from tools import zoo, zoo_path
from tools.zoo_models import MODELS, Tiny

pytestmark = pytest.mark.slow

DOZEN = [
    *("llama-tied", "phi3", "gpt2", "falcon", "mamba", "lfm2", "albert", "modernbert", "t5", "bart", "clip"),
    *("convnext", "whisper", "siglip", "mixtral"),
]
"""Of every kind: fused and shared weights, Conv1D, subclasses of Linear, weights that are used without their layers."""


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    level = transformers.logging.get_verbosity()
    monkeypatch.setattr(transformers.logging, "disable_progress_bar", lambda: None)
    yield
    transformers.logging.set_verbosity(level)


def test_there_are_many() -> None:
    assert len(MODELS) >= 60


@pytest.mark.parametrize("name", first_always(DOZEN, 4))
def test_the_path(name: str, tmp_path: Path) -> None:
    outcome = zoo_path.walk(name, MODELS[name], tmp_path)
    assert not outcome.wrong
    assert (outcome.saved, outcome.dequantized, outcome.exported) == ("bits", "bits", "bits")
    assert outcome.pruned
    # experts that stay dense are named
    assert outcome.share == 1 or (name == "mixtral" and outcome.dense)


def tiny() -> Tiny:
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0
    )
    return Tiny(transformers.LlamaForCausalLM(config), {"input_ids": torch.arange(3, 9)[None]}, False)


class TestWhatIsWrongIsSaid:
    def test_a_model_that_cannot_be_built(self, tmp_path: Path) -> None:
        def make() -> Tiny:
            raise KeyError("no config")

        assert zoo_path.walk("x", make, tmp_path).wrong == ["build: KeyError: 'no config'"]

    def test_a_stage_that_fails(self, tmp_path: Path) -> None:
        (tmp_path / "sparse").write_text("in the way")
        (text,) = zoo_path.walk("x", tiny, tmp_path).wrong
        assert text.startswith("convert: ")

    def test_other_logits_bits_and_tokens(self) -> None:
        outcome = zoo_path.Outcome(
            "x", difference=1e-3, generates="others", saved="w has other bits", silent=["w"], dequantized="bits"
        )
        assert outcome.wrong == [
            "w stays dense without a word",
            "logits differ by 1.0e-03 standard deviations",
            "it generates other tokens",
            "saved: w has other bits",
        ]
        assert zoo_path.Outcome("x", difference=float("nan")).wrong

    def test_a_weight_that_stays_dense_without_a_word(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from sparsefmt.transformers import quantizer

        settle = quantizer.replace_layers.settle

        def forgetful(model: torch.nn.Module, selection: object) -> object:
            result = settle(model, selection)
            result.sparse.pop("lm_head")
            model.lm_head = torch.nn.Linear(32, 32, bias=False)
            return result

        monkeypatch.setattr(quantizer.replace_layers, "settle", forgetful)
        outcome = zoo_path.walk("x", tiny, tmp_path)
        assert outcome.silent == ["lm_head.weight"]
        assert 0 < outcome.share < 1


def test_differences() -> None:
    one, other = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.0, 4.5])
    assert zoo_path.difference([one], [one]) == 0
    assert zoo_path.difference([one], [other]) == pytest.approx(0.5 / float(one.std()))
    assert zoo_path.difference([one], [one[:2]]) == float("inf")
    assert zoo_path.difference([one], [torch.tensor([1.0, 2.0, float("nan")])]) == float("inf")
    masked = torch.tensor([1.0, -torch.inf, 4.0])
    assert zoo_path.difference([masked], [masked]) == 0


def test_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "MODELS", {**MODELS, "llama": tiny})
    result = CliRunner(env={"COLUMNS": "160"}).invoke(zoo.main, ["--only", "llama"])
    assert result.exit_code == 0, result.output
    assert "100 %" in result.stdout
    result = CliRunner().invoke(zoo.main, ["--only", "llama", "--json"])
    (found,) = json.loads(result.stdout)
    assert (found["name"], found["share"], found["wrong"]) == ("llama", 1.0, [])

    def make() -> Tiny:
        raise KeyError("no config")

    monkeypatch.setattr(zoo, "MODELS", {"llama": make})
    result = CliRunner().invoke(zoo.main, ["--only", "llama"])
    assert result.exit_code == 1
    assert "llama: build: KeyError" in result.stderr
