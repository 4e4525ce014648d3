"""Indices that are made to cost, as tools/fuzz/attack_index.py makes them."""

from __future__ import annotations

import pytest

from tools.fuzz import attack_index

pytestmark = pytest.mark.slow


@pytest.mark.thorough
def test_large_indices_take_memory_in_proportion(capsys):
    with pytest.raises(SystemExit) as end:
        attack_index.main.main(["--mib", "5"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert shown.count("memory") > 3  # refused for it, beside the head of the column
    assert shown.count("read: ") > 6
    assert "crash" not in shown
