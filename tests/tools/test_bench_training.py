"""tools/bench/training.py measures what it says it measures."""

from __future__ import annotations

from click.testing import CliRunner

from tools.bench import training


def test_steps_of_both_models_are_timed():
    result = CliRunner().invoke(
        training.main, ["--side", "16", "--tokens", "3", "--sparsity", "0.7", "--repeats", "2"], catch_exceptions=False
    )
    assert "70%" in result.output
    assert "3 tokens" in result.output
    assert "x (" in result.output
