"""`sparsefmt export`: .sparsefmt to safetensors."""

from __future__ import annotations

import time

import click

from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.contract import TensorFile
from sparsefmt.checkpoints.conversion import export_checkpoint
from sparsefmt.checkpoints.saved_weights import saved_weights
from sparsefmt.checkpoints.scales import scales_in
from sparsefmt.cli import options
from sparsefmt.cli.convert import destination_of
from sparsefmt.container.remote_path import Place
from sparsefmt.errors import in_file


@click.command(
    short_help="Turn .sparsefmt back into safetensors.",
    epilog="""\b
Examples:
  sparsefmt export model.sparsefmt
  sparsefmt export model.sparsefmt copy.safetensors --force
  sparsefmt export llama-pruned-sparsefmt/ llama-pruned-copy/
  sparsefmt export hf://org/llama-pruned-sparsefmt llama-pruned/
""",
)
@click.argument("src", type=options.PATH)
@click.argument("dst", type=options.PATH, required=False)
@click.option(
    "--dequantize", is_flag=True, help="Write scaled weights as elements times scales, in float32, without the scales."
)
@options.max_decoded_bytes
@options.threads
@options.force
@options.quiet
@options.storage
def command(
    src: Place,
    dst: Place | None,
    dequantize: bool,
    max_decoded_bytes: int | None,
    threads: int,
    force: bool,
    quiet: bool,
) -> None:
    """Write the .sparsefmt file or folder SRC as safetensors: dense again, bit for bit what was converted.

    DST is by default SRC with the suffix .safetensors, or SRC-safetensors for a folder. Tied tensors become full
    copies, since safetensors has no ties. Memory use does not grow with the model. The other files of a Hugging Face
    model are copied; config.json and README.md lose what `sparsefmt convert` added.

    Weights that --values of `sparsefmt convert` has quantized stay elements and scales, which few programs know to
    belong together, unless --dequantize is given. What rounding has lost does not come back.
    """
    from sparsefmt.cli import output
    from sparsefmt.cli.conversion_report import notes_on_folder

    started = time.perf_counter()
    with Checkpoint(src, ["sparsefmt"], max_decoded_bytes) as source:
        scaled = sum(map(_scaled_in, source.files))
        if dequantize:
            source.dequantize()
        destination = destination_of(source, dst, "safetensors")
        before = saved_weights(destination)
        with output.progress_bar("exporting", source.dense_nbytes, quiet) as progress:
            export_checkpoint(source, destination, threads=threads, overwrite=force, progress=progress)
        if not quiet:
            tensors = output.plural(len(source.names), "tensor")
            elapsed = time.perf_counter() - started
            output.say(
                f"{source.path} ({output.size(source.nbytes)}) -> {destination}: {tensors}, "
                f"{output.size(source.dense_nbytes)} dense, in {elapsed:.1f} s"
            )
            if scaled:
                done = "written as elements times scales" if dequantize else "written as elements and scales"
                output.say(f"{output.plural(scaled, 'scaled weight')}: {done}.")
            for line in notes_on_folder(source, destination, before, "safetensors"):
                output.say(line)


def _scaled_in(file: TensorFile) -> int:
    """How many scaled weights there are."""
    with in_file(file.path):
        return len(scales_in(file.metadata, file.names))
