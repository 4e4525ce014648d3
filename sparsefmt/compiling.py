"""Says that kernels are being compiled, since nothing seems to happen in the seconds of a first use.

Machine code is kept on disk, so that this happens once for a processor and a version of this package. This file does
not import numba; `jit.py` reports to it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

PATIENCE = 2.0
"""Seconds of compiling after which the message is given, once in a process."""

MESSAGE = "compiling kernels for this processor, once; `sparsefmt warmup` does it ahead of time"

Tell = Callable[[str], object]

_log = logging.getLogger("sparsefmt")


class Watch:
    """Adds up the time that is spent compiling, and gives the message when it is long.

    Compiling is reported by one thread at a time (numba has a lock), and may nest.

    Args:
        tell: called once with a sentence, from a separate thread.
    """

    def __init__(self, tell: Tell) -> None:
        self.tell = tell
        self._seconds = 0.0
        self._depth = 0
        self._began = 0.0
        self._timer: threading.Timer | None = None
        self._told = False

    def started(self) -> None:
        """Note that a function begins to be compiled."""
        self._depth += 1
        if self._depth > 1 or self._told:
            return
        self._began = time.monotonic()
        self._timer = threading.Timer(max(PATIENCE - self._seconds, 0), self._tell_once)
        self._timer.daemon = True
        with suppress(RuntimeError):  # no thread to be had: then nothing is told
            self._timer.start()

    def ended(self) -> None:
        """Note that the function that was started last is compiled."""
        self._depth -= 1
        if self._depth == 0 and self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._seconds += time.monotonic() - self._began

    def _tell_once(self) -> None:
        if not self._told:
            self._told = True
            self.tell(MESSAGE)


watch = Watch(_log.info)
"""The watch of this process. In a program, the message goes to the logger "sparsefmt", at level info."""


@contextmanager
def told_by(tell: Tell) -> Iterator[None]:
    """Within the block, give the message to `tell` in place of the logger."""
    before, watch.tell = watch.tell, tell
    try:
        yield
    finally:
        watch.tell = before
