"""The benchmark of experts runs, and verifies before it measures."""

from __future__ import annotations

import click
import pytest
import torch

from tools.bench import experts

pytestmark = pytest.mark.slow


def test_it_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(experts, "hold_to", lambda isa: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr(experts.sparsefmt, "set_num_threads", lambda threads: None)
    monkeypatch.setenv("COLUMNS", "200")
    experts.main.main(["--quick", "--turns", "3"], standalone_mode=False)
    shown = capsys.readouterr().out
    assert shown.count("2 of 2 stacks of experts compressed") == 2
    assert (shown.count("one token"), shown.count("a prompt of 128")) == (2, 2)


def test_other_logits_are_a_failure() -> None:
    class Other(experts.Runs):
        def prompt(self) -> torch.Tensor:
            return super().prompt() + 1

    model = experts.model_of(0.5, torch.float32, True)
    with torch.inference_mode(), pytest.raises(click.ClickException, match="logits of a prompt differ by 1"):
        experts.verify(Other(model, "eager"), experts.Runs(model, "eager"))
