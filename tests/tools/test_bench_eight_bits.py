"""The program that quantizes the encoder: that it runs, and compares what was saved with what is loaded."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from transformers import BertConfig, BertModel
from transformers.utils import logging

from sparsefmt import isa, threads
from sparsefmt.kernels import dots, panel

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_layers")]

eight_bits = importlib.import_module("tools.bench.eight_bits")
cases = importlib.import_module("tools.bench.model_cases")
products = importlib.import_module("tools.bench.eight_bits_products")
roof = importlib.import_module("tools.bench.eight_bits_roof")


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_num_threads", None)
    before, verbosity = torch.get_num_threads(), logging.get_verbosity()
    torch.manual_seed(0)
    BertModel(BertConfig(**cases.TINY, vocab_size=96)).save_pretrained(tmp_path / "bert")
    target = tmp_path / "eight.csv"
    try:
        result = CliRunner().invoke(eight_bits.main, ["--quick", "--encoder", tmp_path / "bert", "--csv", target])
    finally:
        torch.set_num_threads(before)
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
    assert result.exit_code == 0, result.output
    with target.open() as file:
        rows = list(csv.DictReader(file))
    assert {row["contender"] for row in rows} == {
        *("torch float32", "torch int8", "sparsefmt float32"),
        *(f"sparsefmt {name}" for name in eight_bits.QUANTIZED),
    }
    assert {row["tokens"] for row in rows} == {"16", "128"}
    for row in rows:
        assert float(row["least_cosine"]) > 0.99
        assert row["contender"] in result.output
    sizes = {row["contender"]: int(row["pruned_bytes"]) for row in rows}
    assert sizes["sparsefmt int8"] < sizes["sparsefmt float32"] < sizes["torch float32"]


@pytest.mark.skipif(isa.DOTS is None, reason="no instruction for dot products of bytes")
def test_the_roof_is_of_dot_products() -> None:
    assert (roof.sums_of(1000) == 4 * 3 * 2 * 1000).all()
    found = roof.Roof(multiply_adds_a_second=2e11, cycles_a_second=4e9)
    assert found.multiply_adds_a_cycle == 50
    assert found.seconds(1000, 2000, 4) == pytest.approx(4e-5)


def test_without_an_instruction_there_is_no_roof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panel, "dots_way", lambda: dots.SIGNS)
    with pytest.raises(click.UsageError, match=r"--roof: this processor has no instruction .* SPARSEFMT_DOTS"):
        products.roof_of(Console(), 1)
