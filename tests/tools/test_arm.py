"""tools/arm.py: an ARM processor, emulated, gives the bits of this one. The whole of it is `python -m tools.arm`."""

from __future__ import annotations

import numpy as np
import pytest

from tools import arm, arm_moves

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(arm.missing()), reason=f"{' and '.join(arm.missing())} not found: {arm.PACKAGES}"),
]


@pytest.mark.thorough
def test_the_same_bits_and_a_difference_is_found():
    wanted = [case for case in arm.cases((1, 13)) if case.matrix[1:3] in (("bitmask", "F32"), ("gaps", "BF16"))]
    assert len(wanted) == 4
    wrong = wanted[0]
    wrong.y = np.nextafter(wrong.y, np.float32(np.inf))
    assert arm.differences("cortex-a76", wanted) == [wrong.name]


def test_elements_move_alike():
    wanted = arm_moves.cases()
    wanted[2].y[3] ^= 1
    assert arm.differences("cortex-a76", wanted) == [wanted[2].name]


@pytest.mark.thorough
def test_integers_of_eight_bits():
    wanted = [case for case in arm.eight_bit_cases((1, 13)) if len(case.x) == 13 or case.scales is None]
    wanted[-1].y += np.float32(1)
    assert arm.differences("cortex-a76", wanted) == [wanted[-1].name]
