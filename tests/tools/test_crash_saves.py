"""tools/fuzz/crash_saves.py: a short run."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def test_a_short_run():
    command = [sys.executable, "-m", "tools.fuzz.crash_saves", "--count", "10"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done
    assert "survived: 10 of 10" in done.stdout
