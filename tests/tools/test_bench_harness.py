"""What benchmarks share: who is measured when, and how times are written."""

from __future__ import annotations

import time

import pytest

from tools.bench import harness
from tools.bench.harness import MIN_TURNS


def test_each_has_its_turn() -> None:
    order: list[str] = []

    def sample(name: str) -> float:
        order.append(name)
        return float(len(order))

    samples = {name: lambda name=name: sample(name) for name in "ab"}
    assert harness.in_turns(samples, 3) == {"a": [1, 3, 5], "b": [2, 4, 6]}
    assert "".join(order) == "ab" * 3
    order.clear()
    assert harness.in_turns(samples, 2, warm_up=2) == {"a": [5, 7], "b": [6, 8]}
    assert "".join(order) == "ab" * 4


def test_what_has_used_up_its_time_sits_out_after_the_first_turns() -> None:
    samples = {"slow": lambda: time.sleep(0.01) or 0.0, "fast": lambda: 0.0}
    found = harness.in_turns(samples, 10, warm_up=1, seconds=0.01 * MIN_TURNS)
    assert {name: len(taken) for name, taken in found.items()} == {"slow": MIN_TURNS, "fast": 10}
    assert len(harness.in_turns(samples, 2, seconds=0)["slow"]) == 2


def test_seconds_of_a_call() -> None:
    assert 0.02 <= harness.seconds_of(time.sleep, 0.02) < 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(12.3456, "12.3 s"), (0.2, "200 ms"), (0.00123, "1.23 ms"), (8e-6, "8.00 us"), (1.234e-7, "0.123 us")],
)
def test_times_have_three_digits(seconds: float, text: str) -> None:
    assert harness.time_text(seconds) == text
