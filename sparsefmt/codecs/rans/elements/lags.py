"""Elements as differences to those before them. That makes elements short which ascend, as column numbers do."""

from __future__ import annotations

import numpy as np

LAGS = (0, 1, 16)
"""How far back an element may refer: 16 for what lies in slots of 16 rows. 0: elements as they are."""


def differences(elements: np.ndarray, lag: int) -> np.ndarray:
    """What is coded instead of the elements, read-only."""
    if not lag:
        return elements
    out = elements.copy()
    out[lag:] -= elements[:-lag]
    out.flags.writeable = False
    return out


def undo_differences(elements: np.ndarray, lag: int) -> None:
    """Undo `differences` in place. lag: not 0."""
    whole = elements.size // lag * lag
    by_lag = elements[:whole].reshape(-1, lag)
    np.cumsum(by_lag, axis=0, dtype=elements.dtype, out=by_lag)
    if whole:
        elements[whole:] += by_lag[-1, : elements.size - whole]
