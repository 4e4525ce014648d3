"""tools/bench/memory.py: what a process takes for a model, by the numbers that Linux has."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

pytest.importorskip("transformers")
tool = importlib.import_module("tools.bench.memory")

pytestmark = pytest.mark.skipif(not tool.STATUS.exists(), reason="the system does not say how much memory it takes")


@pytest.mark.thorough
def test_a_small_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def in_fresh_process(*arguments: Any) -> Any:
        measured.append(of_a_process(*arguments))
        return measured[-1]

    of_a_process = tool.in_fresh_process
    monkeypatch.setattr(tool, "in_fresh_process", in_fresh_process)
    monkeypatch.setattr(tool, "TARGETS", {})  # of a model as small as this, the process takes a multiple
    arguments = ["--layers", "1", "--hidden", "64", "--folder", str(tmp_path / "llama")]
    result = CliRunner().invoke(tool.main, [*arguments, "--way", "sparse"])
    assert result.exit_code == 0, result.output
    assert "over model" in result.output
    assert "sparse" in result.output
    assert "compress" not in result.output
    (found,) = measured
    # two tables of 8000 x 64 and a layer, in bfloat16
    assert 2_048_000 < found.model < 2_300_000
    assert 2_000_000 < found.private < 40_000_000
    assert found.peak >= found.private + found.mapped


def test_more_than_aimed_at_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "prepare", lambda *arguments: None)
    monkeypatch.setattr(tool, "in_fresh_process", lambda *arguments: tool.Resident(100, 120, 6, 0, 130))
    result = CliRunner().invoke(tool.main, ["--folder", str(tmp_path)])
    assert result.exit_code == 1
    assert "1.26" in result.output
    assert "sparse, load_into" in result.output
