"""The memory that a process has once it has loaded a pruned model, as `top` shows it.

    python -m tools.bench.memory                         a Llama of 48 layers, 1.1 GB in bfloat16, 80 % of it pruned
    python -m tools.bench.memory --layers 16 --sparsity 0.9 --negative-zeros
    python -m tools.bench.memory --folder llama          keep the folders, and take them again the next time

Needs `pip install torch transformers accelerate`, Linux, and 4 GB of disk.

The model has random weights, its linear layers pruned by magnitude, embeddings and output layer dense; with
--negative-zeros, weights are multiplied by their masks, which makes half of the zeros -0.0. It is loaded in each of
these ways, each in a fresh process that has loaded and run a tiny model of the same kind before, so that all code is
there and all kernels are compiled:

    dense       from_pretrained of safetensors
    sparse      from_pretrained of what `sparsefmt convert` makes of it
    raw         the same, converted with `--codec raw`
    load_into   sparsefmt.torch.load_into of the `sparse` folder
    compress    from_pretrained of safetensors with a SparsefmtConfig

"model" are the bytes of all parameters and buffers. "private" and "mapped" are the resident memory by which the process
has grown once the model has run, its own and pages of files (which processes share, and which the system may drop);
"over model" is the sum of both over the model's bytes, "unused" what `malloc_trim` would still give back, "peak" the
most on the way.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
import transformers
from rich import box
from rich.table import Table

from sparsefmt.torch import load_into
from sparsefmt.transformers import SparsefmtConfig
from tools.bench.harness import STATUS, reset_peak, status, wide_console
from tools.bench.model_cases import CAUSAL, LlamaSize, Subject, answer, finished, set_threads, write_random

WAYS = {
    "dense": "safetensors",
    "sparse": "sparsefmt",
    "raw": "raw",
    "load_into": "sparsefmt",
    "compress": "safetensors",
}
"""The folder that each loads."""

TARGETS = {"sparse": 1.25, "load_into": 1.25}
"""Growth of the process over the model's bytes, at most."""


@dataclass(frozen=True)
class Resident:
    """Bytes; see the head of this file."""

    model: int
    private: int
    mapped: int
    unused: int
    peak: int

    @property
    def over_model(self) -> float:
        return (self.private + self.mapped) / self.model


def load(way: str, folder: Path) -> Any:
    kind, source = transformers.AutoModelForCausalLM, folder / WAYS[way]
    if way == "load_into":
        with torch.device("meta"):
            model = kind.from_config(transformers.AutoConfig.from_pretrained(source))
        load_into(model, source)
        # rotary frequencies are in no file: those that transformers computes on the CPU
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
        return model.eval()
    how = {"quantization_config": SparsefmtConfig()} if way == "compress" else {}
    return kind.from_pretrained(source, **how).eval()


def measured(way: str, folder: Path, subject: Subject) -> Resident:
    """In this process."""
    answer(subject, load(way, folder / "tiny"))
    gc.collect()
    reset_peak()
    before = status()
    model = load(way, folder)
    answer(subject, model)
    after = status()
    ctypes.CDLL(None).malloc_trim(0)
    trimmed = status()
    everything = {tensor.data_ptr(): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    return Resident(
        sum(everything.values()),
        *(after[field] - before[field] for field in ("RssAnon", "RssFile")),
        after["VmRSS"] - trimmed["VmRSS"],
        after["VmHWM"] - before["VmRSS"],
    )


def in_fresh_process(way: str, folder: Path, threads: int) -> Resident:
    command = [
        sys.executable,
        "-m",
        "tools.bench.memory",
        "--measure",
        way,
        "--folder",
        str(folder),
        "--threads",
        str(threads),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"a process failed:\n{done.stderr}")
    return Resident(**json.loads(done.stdout.splitlines()[-1]))


def prepare(folder: Path, size: LlamaSize, sparsity: float, negative_zeros: bool) -> None:
    """Write what is not there: the model and a tiny one, as safetensors and converted."""
    if not (folder / "raw" / "config.json").exists():
        subject = Subject("Llama", sparsity, True, folder, CAUSAL)
        write_random(size.config(), sparsity, folder / "safetensors", causal=True, multiply=negative_zeros)
        tiny = replace(size, hidden=64, intermediate=128, layers=1, vocabulary=128, heads=2, key_value_heads=1)
        finished(subject, tiny.config())
    (folder / "tiny").mkdir(exist_ok=True)
    for name in ("safetensors", "sparsefmt", "raw"):
        if not (folder / "tiny" / name).exists():
            (folder / "tiny" / name).symlink_to(Path("..") / f"tiny-{name}")


def table_of(found: dict[str, Resident]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("MB")
    for heading in ("model", "private", "mapped", "over model", "at most", "unused", "peak"):
        table.add_column(heading, justify="right")
    for way, resident in found.items():
        numbers = [f"{number / 1e6:,.0f}" for number in asdict(resident).values()]
        target = f"{TARGETS[way]}" if way in TARGETS else ""
        table.add_row(way, *numbers[:3], f"{resident.over_model:.2f}", target, *numbers[3:])
    return table


@click.command(help=__doc__.replace("\n\n    ", "\n\n\b\n    "))  # its lines stay lines
@click.option("--layers", type=click.IntRange(1), default=48, show_default=True)
@click.option("--hidden", type=click.IntRange(64), default=1024, show_default=True, help="Features of a token.")
@click.option("--sparsity", type=click.FloatRange(0.4, 1, max_open=True), default=0.8, show_default=True)
@click.option("--negative-zeros", is_flag=True, help="Multiply weights by their masks.")
@click.option("--way", "ways", multiple=True, type=click.Choice(list(WAYS)), help="One of them.  [default: all]")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Where the models are, or will be.")
@click.option("--measure", type=click.Choice(list(WAYS)), hidden=True)
def main(
    layers: int,
    hidden: int,
    sparsity: float,
    negative_zeros: bool,
    ways: tuple[str, ...],
    threads: int,
    folder: Path | None,
    measure: str | None,
) -> None:
    if not STATUS.exists():
        raise click.ClickException("only Linux says how much memory a process has")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    set_threads(threads)
    if measure and folder:
        with torch.no_grad():
            subject = Subject("Llama", sparsity, True, folder, CAUSAL)
            print(json.dumps(asdict(measured(measure, folder, subject))))
        return
    with ExitStack() as stack:
        where = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-memory-")))
        where.mkdir(parents=True, exist_ok=True)
        size = LlamaSize(hidden, 11 * hidden // 4, layers, vocabulary=8000, key_value_heads=8)
        prepare(where, size, sparsity, negative_zeros)
        found = {way: in_fresh_process(way, where, threads) for way in ways or WAYS}
    wide_console().print(table_of(found))
    missed = [way for way, most in TARGETS.items() if way in found and found[way].over_model > most]
    if missed:
        raise click.ClickException(f"more than aimed at: {', '.join(missed)}")


if __name__ == "__main__":
    main()
