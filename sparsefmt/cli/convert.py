"""`sparsefmt convert`: safetensors, or checkpoints of PyTorch, to .sparsefmt."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import click

from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.formats import FileFormat
from sparsefmt.checkpoints.huggingface import is_weights
from sparsefmt.checkpoints.saved_weights import saved_weights
from sparsefmt.cli import cluster as on_cluster
from sparsefmt.cli import options
from sparsefmt.cli.failures import Failure
from sparsefmt.codecs import CODECS
from sparsefmt.container.remote_path import Place, RemotePath, is_same
from sparsefmt.layouts import LAYOUTS
from sparsefmt.quantizing.quantization import GROUP_SIZES, SCALES, VALUES, Quantization
from sparsefmt.save_options import SaveOptions


@click.command(
    short_help="Turn safetensors, or .bin, .pt, .pth, into .sparsefmt.",
    context_settings={"show_default": True},
    epilog="""\b
Examples:
  sparsefmt convert model.safetensors
  sparsefmt convert model.safetensors small.sparsefmt --negative-zeros drop
  sparsefmt convert model.safetensors fast.sparsefmt --codec raw
  sparsefmt convert checkpoint.safetensors pruned.sparsefmt --fold --negative-zeros drop
  sparsefmt convert model.safetensors small.sparsefmt --values int8 --group-size 64
  sparsefmt convert pytorch_model.bin model.sparsefmt
  sparsefmt convert llama-pruned/ llama-pruned-sparsefmt/
  sparsefmt convert llama-pruned/ llama-pruned-sparsefmt/ --dask tcp://scheduler:8786
  sparsefmt convert s3://bucket/llama-pruned s3://bucket/llama-pruned-sparsefmt
""",
)
@click.argument("src", type=options.PATH)
@click.argument("dst", type=options.PATH, required=False)
@click.option("--layout", type=click.Choice(["auto", *LAYOUTS]), default="auto", help="How tensors are laid out.")
@click.option(
    "--codec",
    type=click.Choice(["auto", *CODECS]),
    default="auto",
    help="raw: computed on as it lies in the file, no decoding; auto: the smallest file.",
)
@click.option(
    "--negative-zeros",
    type=click.Choice(["keep", "drop"]),
    default="keep",
    help="Keep the sign of -0.0, or store 0.0 instead and record how many.",
)
@click.option(
    "--values",
    type=click.Choice(VALUES),
    help="Round the pruned weights to elements of a byte and scales. LOSSY: the table says by how much.",
)
@click.option(
    "--group-size",
    type=click.Choice(list(map(str, GROUP_SIZES))),
    help="Columns that share a scale.  [default: all of a row]",
)
@click.option(
    "--scale",
    type=click.Choice(SCALES),
    default="absmax",
    help="Scales of --values: of the largest magnitude, or with the least squared error.",
)
@options.fold
@on_cluster.option
@options.threads
@options.force
@options.quiet
@options.storage
def command(
    src: Place,
    dst: Place | None,
    layout: str,
    codec: str,
    negative_zeros: Any,
    values: str | None,
    group_size: str | None,
    scale: str,
    fold: bool,
    cluster: str | None,
    threads: int,
    force: bool,
    quiet: bool,
) -> None:
    """Convert the safetensors file or checkpoint SRC to DST, paths or URLs.

    SRC is a file, a folder, or the index of shards (*.safetensors.index.json). DST is a file or a folder
    accordingly, by default SRC with the suffix .sparsefmt, or SRC-sparsefmt; for a URL, it has to be named. Memory use
    does not grow with the model.

    Where torch is installed, SRC may be what torch.save wrote (.bin, .pt, .pth), or a folder of it. Of the checkpoint
    of a training, the weights of the model are taken; no code in it is run, and what was skipped is said.

    A folder with a config.json is a Hugging Face model: its other files are copied, but for hidden ones and weights of
    other formats. config.json gets a quantization_config, so that transformers can load DST after
    `import sparsefmt.transformers`, and README.md says so.

    With --values, pruned matrices called X.weight are stored as elements, X.weight, and scales, X.weight_scale; not
    those that are embeddings by their names. Models are loaded from DST with these values as they are.

    Nothing takes its place before all of it is written. With --force, weights and indexes of a model that is in the
    folder DST already, dense or not, are removed then; all other files stay.
    """
    from sparsefmt.cli import output
    from sparsefmt.cli.conversion_report import notes_on_folder, report

    try:
        quantization = Quantization.of(values, None if group_size is None else int(group_size), scale)
    except ValueError:
        raise click.UsageError("--group-size and --scale are for --values") from None
    options = SaveOptions(layout, codec, negative_zeros, threads=threads)
    started = time.perf_counter()
    with Checkpoint(src, ["safetensors", "torch"]) as source:
        if fold:
            source.fold()
        source.quantization = quantization
        destination = destination_of(source, dst, "sparsefmt")
        before = saved_weights(destination)
        with output.progress_bar("converting", source.dense_nbytes, quiet) as progress:
            converted = on_cluster.convert(cluster, source, destination, options, progress)
        elapsed = time.perf_counter() - started
        if not quiet:
            report(source, destination, converted, elapsed)
            for line in notes_on_folder(source, destination, before, "sparsefmt"):
                output.say(line)


def destination_of(source: Checkpoint, given: Place | None, file_format: FileFormat) -> Place:
    """The destination: the given path, if it makes sense; without one, a path beside the source with another suffix.

    Raises Failure for a name that belongs to something else: a typing error must not cost the source, and a file must
    be what its name says.
    """
    suffix = f".{file_format}"
    if given is None and isinstance(source.path, RemotePath):
        raise Failure(f"{source.path}: name the destination, a path or a URL", 2)
    if given is None:
        if not source.is_folder:
            return source.path.with_suffix(suffix)
        folder = Path(os.path.abspath(source.folder))  # type: ignore[arg-type]
        return folder.with_name(f"{re.sub('-(safetensors|sparsefmt)$', '', folder.name)}-{file_format}")
    if source.is_folder:
        if is_weights(given.name):
            raise Failure(f"{given}: the destination must be a folder, as the source is one", 2)
    elif given.suffix != suffix and not given.is_dir() and not _is_same(given, source.path):
        hint = f"; name it {given.name}{suffix}" if not given.suffix else ""
        raise Failure(f"{given}: the destination must be a {suffix} file, for that is what is written{hint}", 2)
    return given


def _is_same(given: Place, source: Place) -> bool:
    """Whether two paths are one file. If so, writing raises the error."""
    return given.exists() and is_same(source, given)
