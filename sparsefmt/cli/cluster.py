"""The option `--dask`: commands that have a cluster do the work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from sparsefmt.checkpoints.conversion import ConvertedTensor, Progress, convert_checkpoint
from sparsefmt.checkpoints.found_patterns import find_patterns
from sparsefmt.cli.failures import Failure

if TYPE_CHECKING:
    from sparsefmt.checkpoints.checkpoint import Checkpoint
    from sparsefmt.checkpoints.contract import TensorFile
    from sparsefmt.checkpoints.verification import Verifier
    from sparsefmt.checkpoints.verified_files import Findings, Verification
    from sparsefmt.container.remote_path import Place
    from sparsefmt.dask.running import OnCluster
    from sparsefmt.patterns import Pattern
    from sparsefmt.report.contents import Contents
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
    force = bool(click.get_current_context().params["force"])
    if cluster is None:
        return convert_checkpoint(source, destination, options, overwrite=force, progress=progress)
    with _running_on(cluster, source, progress) as where:
        from sparsefmt.dask.conversion import convert_checkpoint as convert_on

        options = replace(options, threads=_threads_of_each(options.threads))
        return convert_on(source, destination, options, where, overwrite=force)


def verify(cluster: str | None, verification: Verification, verifier: Verifier) -> Findings:
    """Verify a checkpoint, on a cluster if one is given."""
    if cluster is None:
        return verification.run(verifier)
    with _running_on(cluster, verification.ours, verifier.progress) as where:
        from sparsefmt.dask.verification import verify_checkpoint

        return verify_checkpoint(verification, replace(verifier, threads=_threads_of_each(verifier.threads)), where)


def pattern_finder(
    cluster: str | None, checkpoint: Checkpoint, progress: Progress | None, threads: int
) -> Callable[[Sequence[tuple[TensorFile, str]]], Sequence[Pattern]]:
    """What finds patterns of tensors of a checkpoint, on a cluster if one is given."""
    if cluster is None:
        return lambda wanted: find_patterns(wanted, progress, threads)

    def find(wanted: Sequence[tuple[TensorFile, str]]) -> Sequence[Pattern]:
        with _running_on(cluster, checkpoint, progress) as where:
            from sparsefmt.dask.patterns import find_patterns as find_on

            return find_on(wanted, checkpoint.file_format, _threads_of_each(threads), where)

    return find


def gather(cluster: str, models: list[Checkpoint], contents: Contents, quiet: bool) -> None:
    """Read all tensors that a page tells of, on a cluster."""
    from sparsefmt.cli import output
    from sparsefmt.report.gathering import bytes_to_compress, bytes_to_read

    total = bytes_to_read(contents) + bytes_to_compress(models[0], contents)
    with (
        output.progress_bar("reading and compressing", total, quiet) as progress,
        _running_on(cluster, models[0], progress) as where,
    ):
        from sparsefmt.dask.reporting import gather as gather_on

        threads = click.get_current_context().params["threads"]
        gather_on(models, contents, _threads_of_each(threads), where)


@contextmanager
def _running_on(cluster: str, source: Checkpoint, progress: Progress | None) -> Iterator[OnCluster]:
    """Where the tasks for the files of a checkpoint run. What is wrong with the option ends the program."""
    try:
        from sparsefmt.dask.clients import client_of
        from sparsefmt.dask.running import OnCluster
    except ImportError as error:
        raise Failure(f"--dask: {error}", 2) from None
    try:
        with client_of(cluster, len(source.files)) as client:
            yield OnCluster(client, progress=progress)
    except ValueError as error:
        if type(error) is not ValueError:  # one of ours is one, too
            raise
        raise Failure(f"--dask {cluster}: {error}", 2) from None


def _threads_of_each(threads: int | None) -> int | None:
    """Threads for each file: those that are given, not those of this machine."""
    is_default = click.get_current_context().get_parameter_source("threads") == ParameterSource.DEFAULT
    return None if is_default else threads
