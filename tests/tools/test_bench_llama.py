"""The benchmark of a whole Llama: what it is asked, and what its numbers are."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner

from tools.bench import llama


@pytest.mark.parametrize("zeros", ["1", "-0.1", "half", "4:2", "0:4", "2:"])
def test_nonsense_is_refused(zeros):
    result = CliRunner().invoke(llama.main, ["--zeros", zeros])
    assert result.exit_code == 2
    assert f"'{zeros}' is neither a share of zeros such as 0.5 nor a pattern such as 2:4" in result.output


def test_ratios_are_of_turns():
    assert llama.ratio_text([1, 2, 4], [2, 2, 4]) == "1.00 (1.00 to 2.00)"
    assert llama.ratio_text([2, 2, 2], [1, 1, 1]).startswith("[red]0.50 ")
    assert llama.medians_text([0.001, 0.003, 0.002], [0.004, 0.005, 0.006]) == "2.0 / 5.0"


@pytest.mark.parametrize("zeros", ["0.5", "2:4"])
def test_blocks_alone_are_pruned(zeros):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = torch.nn.Module()
            self.model.layers = torch.nn.ModuleList([torch.nn.Linear(64, 32)])
            self.lm_head = torch.nn.Linear(64, 32)

    model = Model()
    llama.prune(model, zeros)
    kept = model.model.layers[0].weight != 0
    assert kept.sum() == 32 * 32
    if zeros == "2:4":
        assert (kept.reshape(-1, 4).sum(1) == 2).all()
    assert (model.lm_head.weight != 0).all()
