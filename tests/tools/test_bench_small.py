"""The benchmark of many small tensors runs, beside safetensors."""

from __future__ import annotations

import pytest

from tools.bench import small

pytestmark = pytest.mark.slow


def test_it_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    small.main.main(["--tensors", "20", "--rounds", "3"], standalone_mode=False)
    shown = capsys.readouterr().out
    assert all(kind in shown for kind in small.KINDS)
    assert shown.count("safetensors") == 1 + len(small.KINDS)
