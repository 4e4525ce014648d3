"""How much of a file the signs of pruned zeros take, and when the user should be told."""

from __future__ import annotations

import sys
import warnings

from sparsefmt.container.index import Index

_WORTH_A_WORD = 1 / 3
"""Share of a file from which on a user who saves is told that signs can be left out. At 99.9 % zeros it is 96 %."""

_PACKAGE = __name__.partition(".")[0]


def note(signs: int, written: int, remedy: str) -> str | None:
    """A sentence on the signs of pruned zeros, if they are a large part of what was written; None if they are not.

    Args:
        signs: stored bytes of the arrays `negative_zeros`.
        written: bytes of the files.
        remedy: what leaves the signs out, as the caller can say it.
    """
    if not written or signs <= _WORTH_A_WORD * written:
        return None
    return (
        f"{signs / written:.0%} of what was saved, {signs:,} of {written:,} bytes, are the signs of pruned zeros that"
        f" are -0.0: {remedy} leaves them out, if 0.0 is as good, and the file records how many"
    )


def warn(index: Index, written: int) -> None:
    """Warn the caller of this library, once for a file, if signs are a large part of the file."""
    signs = sum(map(index.sign_nbytes, index.tensors.values()))
    text = note(signs, written, 'negative_zeros="drop"')
    if text is not None:
        warnings.warn(text, UserWarning, stacklevel=_levels_to_caller())


def _levels_to_caller() -> int:
    """The stack level of the first frame outside of this package, counted from the function that calls this one."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE:
        level, frame = level + 1, frame.f_back
    return level
