"""tools/fuzz/hammer_threads.py: a short run, and that it sees what differs."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest

from tools.fuzz import hammer_threads


@pytest.mark.thorough
@pytest.mark.slow
def test_a_short_run():
    command = [sys.executable, "-m", "tools.fuzz.hammer_threads", "--calls", "600", "--seconds", "20"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done
    assert re.search(r"^16 threads, [\d,]+ calls compared, 0 differences, 0 errors", done.stdout, re.MULTILINE)


def test_it_sees_a_single_bit():
    answers = hammer_threads.Answers(0)
    for version in range(2):
        for name, array in answers.models[version].items():
            wrong = array.copy()
            wrong.view(np.uint8)[..., -1] ^= 1
            assert answers.same_dense(version, name, array.copy())
            assert not answers.same_dense(version, name, wrong)
            assert not answers.same_dense(1 - version, name, array)
    weight = answers.tensors[0, "f32", "bitmask"]
    assert answers.same_product(0, "f32", weight, 3, 2)
    assert not answers.same_product(1, "f32", weight, 3, 2)
