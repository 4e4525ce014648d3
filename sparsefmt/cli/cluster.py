"""The option `--dask`: commands that have a cluster do the work."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from sparsefmt.checkpoints.conversion import ConvertedTensor, Progress, convert_checkpoint
from sparsefmt.cli.failures import Failure

if TYPE_CHECKING:
    from sparsefmt.checkpoints.checkpoint import Checkpoint
    from sparsefmt.container.remote_path import Place
    from sparsefmt.save_options import SaveOptions

option = click.option(
    "--dask",
    "cluster",
    metavar="ADDRESS",
    help="Let a cluster of Dask do it, a task for each file: its scheduler, such as tcp://host:8786, or 'local' for"
    " worker processes on this machine. --threads is then that of each file, by default 1.",
)


def convert(
    cluster: str | None, source: Checkpoint, destination: Place, options: SaveOptions, progress: Progress | None
) -> list[ConvertedTensor]:
    """Convert a checkpoint, on a cluster if one is given. Replaces what is there if the command has `--force`."""
    context = click.get_current_context()
    force = bool(context.params["force"])
    if cluster is None:
        return convert_checkpoint(source, destination, options, overwrite=force, progress=progress)
    try:
        from sparsefmt.dask.clients import client_of
        from sparsefmt.dask.conversion import OnCluster
        from sparsefmt.dask.conversion import convert_checkpoint as convert_on
    except ImportError as error:
        raise Failure(f"--dask: {error}", 2) from None
    if context.get_parameter_source("threads") == ParameterSource.DEFAULT:
        options = replace(options, threads=None)
    try:
        with client_of(cluster, len(source.files)) as client:
            return convert_on(source, destination, options, OnCluster(client, progress=progress), overwrite=force)
    except ValueError as error:
        if type(error) is not ValueError:  # one of ours is one, too
            raise
        raise Failure(f"--dask {cluster}: {error}", 2) from None
