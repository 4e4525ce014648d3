"""The benchmark of opening runs."""

from __future__ import annotations

import pytest

from tools.bench import open as bench_open

pytestmark = pytest.mark.slow


def test_opening(capsys: pytest.CaptureFixture[str]) -> None:
    bench_open.main.main(["--tensors", "50", "--rounds", "3"], standalone_mode=False)
    assert capsys.readouterr().out.count("sparsefmt, ") == 3
