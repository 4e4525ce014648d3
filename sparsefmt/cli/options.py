"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sparsefmt.threads import ENVIRONMENT_VARIABLE, num_threads


def _threads(ctx: click.Context, param: click.Parameter, value: int | None) -> int:
    try:
        return num_threads(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


threads = click.option(
    "--threads",
    type=int,
    callback=_threads,
    metavar="N",
    help=f"How many threads may work.  [default: {ENVIRONMENT_VARIABLE}, or all usable cores]",
)
force = click.option(
    "--force", is_flag=True, help="Replace what is there; of a folder, the weights of the model in it."
)
quiet = click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")

fold = click.option(
    "--fold",
    is_flag=True,
    help="Take what a checkpoint spells in several tensors as one: X_orig and X_mask of torch.nn.utils.prune as X,"
    " bitmasks of compressed-tensors as what they stand for.",
)
max_decoded_bytes = click.option(
    "--max-decoded-bytes",
    type=click.IntRange(0),
    metavar="N",
    help="Most bytes that a file may turn into.  [default: 1 GiB, or 1,024 times its size]",
)

PATH: Any = click.Path(path_type=Path)
"""A path. The command itself finds out whether it exists, so that all errors look the same."""
