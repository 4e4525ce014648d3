"""What a run of a fuzzer is asked for, whatever it compares."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple


class Asked(NamedTuple):
    """When a run ends, and what is left of it.

    Attributes:
        seed: a run with the same one does the same.
        count: files to try; None for as many as there is time for.
        seconds: after which it ends, in any case.
        keep: folder for the files that were found to be read wrongly; None if nobody wants them.
    """

    seed: int
    count: int | None
    seconds: float
    keep: Path | None = None


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that `asked` reads."""
    parser.add_argument("--seconds", type=float, default=60.0, help="stop after so many")
    parser.add_argument("--count", type=int, help="stop after so many files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for what is found")


def asked(options: argparse.Namespace) -> Asked:
    """What the command line asks for."""
    return Asked(options.seed, options.count, options.seconds, options.keep)
