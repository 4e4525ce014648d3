"""What is said about a model that was compressed: how much of it is, and what is not and why."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from torch.nn.utils import prune
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig

from sparsefmt.torch import load_into, save_model, sparsify
from sparsefmt.transformers import SparsefmtConfig

SMALL = {
    **{"vocab_size": 128, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 1},
    **{"num_attention_heads": 4, "num_key_value_heads": 4, "pad_token_id": 0},
}
PROJECTIONS = 3 * 256 * 1024
ATTENTION = 4 * 256 * 256


def pruned(model: torch.nn.Module, sparsity: float = 0.9, only: str = "layers") -> Any:
    """All matrices of the blocks, experts too."""
    for name, parameter in model.named_parameters():
        if only in name and parameter.dim() > 1:
            flat = parameter.data.view(-1)
            flat[torch.randperm(flat.numel())[: int(sparsity * flat.numel())]] = 0
    return model.eval()


def stack(*sparsities: float) -> torch.nn.Sequential:
    model = torch.nn.Sequential(*(torch.nn.Linear(512, 512) for _ in sparsities))
    for layer, sparsity in zip(model, sparsities, strict=True):
        prune.random_unstructured(layer, "weight", amount=sparsity)
        prune.remove(layer, "weight")
    return model


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """What is logged under transformers, from level info on."""
    found: list[logging.LogRecord] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record)

    handler, logger = Collector(), logging.getLogger("transformers")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield found
    logger.setLevel(level)
    logger.removeHandler(handler)


def said(records: list[logging.LogRecord]) -> logging.LogRecord:
    [record] = [record for record in records if record.getMessage().startswith("sparsefmt: ")]
    return record


def test_sparsify() -> None:
    model = stack(0.9, 0.2, 0.9)
    result = sparsify(model)
    assert result.summary is not None
    held = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    dense = 4 * 3 * (512 * 512 + 512)
    assert (result.summary.nbytes, result.summary.dense_nbytes) == (held, dense)
    assert (result.summary.linear, result.summary.compressed, result.summary.pruned_share) == (3, 2, 1.0)
    assert str(result) == (
        "2 of 3 linear layers compressed (100 % of the pruned weights),"
        f" {held / 1e6:.3g} instead of {dense / 1e6:.3g} MB;"
        " dense: 1 (20.0% of its weight is zero, which is less than 40.0%)"
    )
    assert not result.summary.surprises


def test_the_first_three_are_named_and_the_rest_is_counted() -> None:
    text = str(sparsify(stack(0.1, 0.1, 0.1, 0.1, 0.1)))
    assert text.startswith("0 of 5 linear layers compressed, 5.25 instead of 5.25 MB; dense: 0 (10.0% of")
    assert "2 (10.0%" in text
    assert "3 (10.0%" not in text
    assert text.endswith("and 2 more")


def test_what_was_left_out_is_no_surprise() -> None:
    model = stack(0.9, 0.9, 0.6)
    summary = sparsify(model, exclude="0", min_sparsity=0.8).summary
    assert summary is not None
    assert summary.pruned_share == pytest.approx(1 / 3)
    assert not summary.surprises
    assert summary.dense["0"] == "it is excluded"
    assert "(33 % of the pruned weights)" in str(summary)


def test_what_was_asked_for_by_name_is_one() -> None:
    summary = sparsify(stack(0.9, 0.1, 0.1), include=["0", "1"]).summary
    assert summary is not None
    assert list(summary.surprises) == ["1"]
    assert list(summary.dense) == ["2"]


def test_tied_layers_count_once() -> None:
    model = stack(0.9, 0.9)
    model[1].weight = model[0].weight
    summary = sparsify(model).summary
    assert summary is not None
    assert (summary.linear, summary.compressed) == (2, 2)
    assert summary.dense_nbytes == 4 * (512 * 512 + 2 * 512)


def test_an_adapter_before_training_is_not_pruned() -> None:
    model = stack(0.9, 0.9)
    torch.nn.init.zeros_(model[1].weight)
    summary = sparsify(model).summary
    assert summary is not None
    assert summary.pruned_share == 1.0
    assert not summary.surprises


def test_load_into(tmp_path: Path) -> None:
    save_model(stack(0.9, 0.2), tmp_path / "model.sparsefmt")
    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.Linear(512, 512))
    text = str(load_into(model, tmp_path / "model.sparsefmt"))
    assert text.startswith("1 of 2 linear layers compressed (100 % of the pruned weights), ")
    assert text.endswith("MB; dense: 1 (20.0% of its weight is zero, which is less than 40.0%)")


def test_from_pretrained_says_it_in_a_line(tmp_path: Path, records: list[logging.LogRecord]) -> None:
    model = pruned(AutoModelForCausalLM.from_config(LlamaConfig(**SMALL)))
    sparsify(model, min_size=0)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=SparsefmtConfig(min_size=0))
    record = said(records)
    assert record.levelno == logging.INFO
    bytes_now = sum(tensor.nbytes for tensor in (*loaded.parameters(), *loaded.model.layers.buffers()))
    assert record.getMessage().startswith("sparsefmt: 7 of 8 linear layers compressed (100 % of the pruned weights), ")
    assert f"{loaded.hf_quantizer.result.summary}" in record.getMessage()
    assert loaded.hf_quantizer.result.summary.nbytes == pytest.approx(bytes_now, rel=0.01)
    assert "; dense: lm_head (0.0% of its weight is zero" in record.getMessage()


def test_experts_count_as_stacks_and_one_that_stays_dense_is_a_warning(
    tmp_path: Path, records: list[logging.LogRecord]
) -> None:
    config = MixtralConfig(**SMALL, num_local_experts=4)
    model = pruned(AutoModelForCausalLM.from_config(config))
    model.model.layers[0].mlp.experts.down_proj = torch.nn.Parameter(torch.zeros(4, 256, 1024))
    tensors = [(0.9, "gate_up_proj"), (0.42, "down_proj")]
    for sparsity, name in tensors:
        weight = getattr(model.model.layers[0].mlp.experts, name).data
        weight.copy_((torch.arange(weight.numel()) % 1000 >= 1000 * sparsity).view(weight.shape))
    model.save_pretrained(tmp_path)
    chosen = SparsefmtConfig(min_size=0, min_sparsity=0.45, exclude="*.gate", include="*.layers.*")
    AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=chosen)
    record = said(records)
    assert record.levelno == logging.WARNING
    assert "4 of 5 linear layers and 1 of 2 stacks of experts compressed (" in record.getMessage()
    share = (ATTENTION + 4 * 2 * PROJECTIONS // 3) / (ATTENTION + 4 * PROJECTIONS)
    assert f"({round(100 * share)} % of the pruned weights)" in record.getMessage()
    assert "dense: model.layers.0.mlp.experts.down_proj (42.0% of its weight is zero" in record.getMessage()


def test_pruned_embeddings_are_a_warning(tmp_path: Path, records: list[logging.LogRecord]) -> None:
    config = LlamaConfig(**{**SMALL, "vocab_size": 1024}, tie_word_embeddings=True)
    model = pruned(AutoModelForCausalLM.from_config(config), only="")
    model.save_pretrained(tmp_path / "dense")
    AutoModelForCausalLM.from_pretrained(tmp_path / "dense", quantization_config=SparsefmtConfig())
    record = said(records)
    assert record.levelno == logging.WARNING
    assert "model.embed_tokens.weight (it belongs to a module of class Embedding" in record.getMessage()


def test_a_dense_model_of_others_says_nothing(tmp_path: Path, records: list[logging.LogRecord]) -> None:
    AutoModelForCausalLM.from_config(LlamaConfig(**SMALL)).save_pretrained(tmp_path)
    AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not [record for record in records if "sparsefmt" in record.getMessage()]
