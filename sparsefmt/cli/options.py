"""Options that several commands share."""

from __future__ import annotations

import json
from typing import Any

import click

from sparsefmt.container.remote_path import Place, place_of
from sparsefmt.threads import ENVIRONMENT_VARIABLE, num_threads
from sparsefmt.urls import is_url


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

_STORAGE = "sparsefmt.storage_options"
"""Where a context has them: they are read before all places, wherever they stand."""


class _Place(click.ParamType):
    """A path or a URL. The command itself finds out whether it exists, so that all errors look the same."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Place:
        if not isinstance(value, str):
            return value
        given = ctx.meta.get(_STORAGE) if ctx is not None else None
        return place_of(value, given if is_url(value) else None)


PATH: Any = _Place()


def _storage_options(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> None:
    options: dict[str, Any] = {}
    for value in values:
        key, is_pair, text = value.partition("=")
        if not is_pair or not key:
            raise click.BadParameter("KEY=VALUE is needed")  # what was given may be a secret
        try:
            options[key] = json.loads(text)
        except ValueError:
            options[key] = text
    ctx.meta[_STORAGE] = options


storage = click.option(
    "--storage-option",
    multiple=True,
    metavar="KEY=VALUE",
    callback=_storage_options,
    is_eager=True,
    expose_value=False,
    help="For URLs, an option of fsspec's file system, such as anon=true; may be repeated. Others see it while the"
    " command runs: secrets are better in the environment.",
)
