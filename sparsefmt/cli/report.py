"""`sparsefmt report`: a page on a model, and what became of it in another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sparsefmt.cli import cluster as on_cluster
from sparsefmt.cli import options
from sparsefmt.cli.failures import Failure
from sparsefmt.container.remote_path import Place
from sparsefmt.in_words import printable

if TYPE_CHECKING:
    from sparsefmt.checkpoints.checkpoint import Checkpoint
    from sparsefmt.report.contents import Contents


@click.command(
    short_help="Make a page on a model: what was pruned, and what it brings.",
    epilog="""\b
Examples:
  sparsefmt report model.safetensors -o report.html
  sparsefmt report llama-pruned/ -o llama.html --bench
  sparsefmt report before.safetensors after.safetensors -o changes.html
  sparsefmt report s3://bucket/llama-pruned -o llama.html
  sparsefmt report s3://bucket/llama-pruned -o llama.html --dask tcp://scheduler:8786
""",
)
@click.argument("path", type=options.PATH, metavar="MODEL")
@click.argument("other", type=options.PATH, metavar="[OTHER]", required=False)
@click.option(
    "--output",
    "-o",
    "target",
    type=options.PATH,
    default=Path("report.html"),
    show_default=True,
    metavar="FILE",
    help="The page.",
)
@click.option("--bench", is_flag=True, help="Time the products of layers beside dense ones, on this machine.")
@options.fold
@on_cluster.option
@options.max_decoded_bytes
@options.threads
@options.force
@options.quiet
@options.storage
@click.pass_context
def command(
    ctx: click.Context,
    path: Place,
    other: Place | None,
    target: Place,
    bench: bool,
    fold: bool,
    cluster: str | None,
    max_decoded_bytes: int | None,
    threads: int,
    force: bool,
    quiet: bool,
) -> None:
    """Make a page on the model MODEL: a file or folder of .sparsefmt, safetensors or PyTorch.

    It shows which layers have which zeros, the pattern of each group of tensors, how many nonzeros their rows and
    columns have, their magnitudes and a picture of a mask; what the model takes as .sparsefmt, in a file and in memory,
    and what stays dense and why. With OTHER, also what has changed from MODEL to OTHER: how far numbers are apart, how
    much masks overlap, and which zeros are lost.

    The page is one HTML file that needs nothing else. Tensors are read one after another, in runs of rows; as
    .sparsefmt, the model is made, and not written anywhere. Needs jinja2 and matplotlib.
    """
    from sparsefmt.cli import output
    from sparsefmt.cli.report_times import add_times, alike
    from sparsefmt.container.file_objects import destination
    from sparsefmt.report.gathering import contents_of, expect_new, models_for, nbytes_of

    _expect_libraries()
    expect_new(target, force)
    with models_for(target, [path] if other is None else [path, other], fold, max_decoded_bytes) as models:
        contents = contents_of(*models)
        if cluster is None:
            _gather(models, contents, threads, quiet)
        else:
            on_cluster.gather(cluster, models, contents, quiet)
        faults = []
        if bench:
            kinds = alike(contents.tensors)
            with output.progress_bar("measuring", sum(map(nbytes_of, kinds)), quiet) as progress:
                faults = add_times(contents, kinds, threads, progress)
    page = _drawn(contents, quiet).encode()
    with destination(target) as file:
        file.write(page)
    if not quiet:
        output.say(f"{target}: {output.size(len(page))}, {output.plural(len(contents.tensors), 'tensor')}")
    for fault in faults:
        click.echo(f"sparsefmt: error: {printable(fault)}", err=True)
    if faults:
        ctx.exit(1)


def _expect_libraries() -> None:
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise Failure(f"a report needs {error.name}: pip install 'sparsefmt[report]'", 2) from None


def _gather(models: list[Checkpoint], contents: Contents, threads: int, quiet: bool) -> None:
    """Read all tensors, on this machine."""
    from sparsefmt.cli import output
    from sparsefmt.report.gathering import (
        add_changes,
        add_compressed,
        bytes_to_compress,
        bytes_to_read,
        compress,
        look_at_all,
    )

    for model in models:
        model.expect()
    with output.progress_bar("reading", bytes_to_read(contents), quiet) as progress:
        look_at_all(contents, threads, progress)
        if contents.comparison is not None:
            add_changes(models[1], contents, threads, progress)
    with output.progress_bar("compressing", bytes_to_compress(models[0], contents), quiet) as progress:
        add_compressed(contents, (compress(file, threads, progress) for file in models[0].files))


def _drawn(contents: Contents, quiet: bool) -> str:
    from sparsefmt.cli import output
    from sparsefmt.report.page import cards_in, page_of

    with output.progress_bar("drawing", cards_in(contents), quiet, in_bytes=False) as progress:
        return page_of(contents, progress)
