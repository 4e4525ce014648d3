"""A pruned Llama: a prompt read at once, and tokens one by one, with compressed weights beside dense ones.

    python -m tools.bench.llama                                  one thread; ten minutes
    python -m tools.bench.llama --isa avx2 --threads 2 --zeros 0.5 --zeros 2:4
    python -m tools.bench.llama --zeros 0.7 --eight-bits         with int8 weights, too, and with both in eight bits

The model has 8 layers of 1024 features and random weights. The Linear layers of its blocks are pruned by magnitude;
embeddings and output layer are dense, as is usual. It reads a prompt of 128 tokens (`--tokens`), and continues it by 8,
greedily. Three models are compared with the dense one in float32, which has the same pruned weights: ours in float32;
ours with weights in bfloat16 and activations in float32 (`compute_dtype="float32"`); ours in bfloat16. The last is
compared with the dense model in bfloat16, too.

Models take turns. A number is how many times faster ours is, the median over turns of the ratio within a turn, with its
quartiles. --isa holds everybody to these instructions.
"""

from __future__ import annotations

import copy
import inspect
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import click
import torch
import transformers
from rich.table import Table

import sparsefmt
from sparsefmt.isa import ISA
from sparsefmt.torch import sparsify
from tools.bench import harness
from tools.pruning import apply_mask, magnitude_mask, nm_mask

CONTINUED = 8
"""Tokens that are made one by one."""

VOCABULARY = 8000

CACHE = "cache" if "cache" in inspect.signature(transformers.LlamaForCausalLM.forward).parameters else "past_key_values"
"""What transformers calls the keys and values of earlier tokens, now or in versions before."""


class Seconds(NamedTuple):
    """Of a prompt, and of each token behind it."""

    prompt: float
    token: float


PAIRS = {
    "float32": ("float32", "dense float32"),
    "bfloat16 weights, float32 activations": ("mixed", "dense float32"),
    "bfloat16": ("bfloat16", "dense float32"),
    "bfloat16, over dense bfloat16": ("bfloat16", "dense bfloat16"),
}
"""By the line of the table, whose time is compared with whose."""

PAIRS_OF_EIGHT = {
    "int8 weights, float32 activations": ("int8", "dense float32"),
    "int8 weights and activations": ("W8A8", "dense float32"),
    "int8 weights and activations, over bfloat16": ("W8A8", "mixed"),
}
"""The same of --eight-bits. The last is ours over ours with weights in bfloat16 and activations in float32."""


def made() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=8,
        pad_token_id=0,
    )
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def pruned_layers(model: Any) -> Iterator[torch.nn.Linear]:
    return (layer for layer in model.model.layers.modules() if isinstance(layer, torch.nn.Linear))


def prune(model: Any, zeros: str) -> None:
    """In place: a share of each weight, or N of M in a row."""
    with torch.no_grad():
        for layer in pruned_layers(model):
            weight = layer.weight.numpy()
            if ":" in zeros:
                kept, group = map(int, zeros.split(":"))
                mask = nm_mask(weight, kept, group)
            else:
                mask = magnitude_mask(weight, float(zeros))
            layer.weight.copy_(torch.from_numpy(apply_mask(weight, mask, multiply=False)))


def all_models(zeros: str, eight_bits: bool) -> dict[str, Any]:
    dense = made()
    prune(dense, zeros)
    half = copy.deepcopy(dense).to(torch.bfloat16)
    models = {"dense float32": dense, "dense bfloat16": half}
    models |= {"float32": copy.deepcopy(dense), "mixed": copy.deepcopy(half), "bfloat16": copy.deepcopy(half)}
    for name, computed in (("float32", None), ("mixed", "float32"), ("bfloat16", None)):
        sparsify(models[name], include="model.layers.*", compute_dtype=computed)
    for name, activations in (("int8", None), ("W8A8", "int8")) if eight_bits else ():
        models[name] = copy.deepcopy(dense)
        sparsify(models[name], include="model.layers.*", values="int8", activations=activations)
    return models


@torch.no_grad()
def run(model: Any, prompt: torch.Tensor) -> Seconds:
    start = time.perf_counter()
    out = model(prompt, use_cache=True)
    read = time.perf_counter() - start
    times = []
    for _ in range(CONTINUED):
        token = out.logits[:, -1:].argmax(-1)
        start = time.perf_counter()
        out = model(token, use_cache=True, **{CACHE: out.past_key_values})
        times.append(time.perf_counter() - start)
    return Seconds(read, statistics.median(times))


def measured(models: dict[str, Any], tokens: int, turns: int) -> dict[str, list[Seconds]]:
    """Seconds of each model, turn by turn; the order is another in each turn."""
    prompt = torch.randint(3, VOCABULARY, (1, tokens), generator=torch.Generator().manual_seed(0))
    found: dict[str, list[Seconds]] = {name: [] for name in models}
    for turn in range(-1, turns):
        first = turn % len(models)
        for name in [*models][first:] + [*models][:first]:
            seconds = run(models[name], prompt)
            if turn >= 0:
                found[name].append(seconds)
    return found


def medians_text(ours: Sequence[float], theirs: Sequence[float]) -> str:
    return f"{1e3 * statistics.median(ours):.1f} / {1e3 * statistics.median(theirs):.1f}"


def ratio_text(ours: Sequence[float], theirs: Sequence[float]) -> str:
    ratios = [there / here for here, there in zip(ours, theirs, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    shown = f"{middle:.2f} ({low:.2f} to {high:.2f})"
    return f"[red]{shown}[/]" if middle < 1 else shown


def parse_zeros(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    for zeros in value:
        kept, _, group = zeros.partition(":")
        try:
            good = 0 < int(kept) < int(group) if group else 0 <= float(kept) < 1
        except ValueError:
            good = False
        if not good:
            raise click.BadParameter(f"{zeros!r} is neither a share of zeros such as 0.5 nor a pattern such as 2:4")
    return value


@click.command(help=__doc__)
@click.option("--isa", type=click.Choice(["avx512", "avx2", "portable"]), help="Hold everybody to these instructions.")
@click.option(
    "--zeros", multiple=True, default=("0.5", "2:4", "0.7", "0.8", "0.9"), show_default=True, callback=parse_zeros
)
@click.option("--tokens", type=click.IntRange(1), default=128, show_default=True, help="Of the prompt.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--eight-bits", is_flag=True, help="Models with int8 weights, too.")
@click.option("--turns", type=click.IntRange(2), default=9, show_default=True)
def main(isa: str | None, zeros: tuple[str, ...], tokens: int, threads: int, eight_bits: bool, turns: int) -> None:
    harness.hold_to(isa)
    torch.set_num_threads(threads)
    sparsefmt.set_num_threads(threads)
    others = harness.Others()
    table = Table("zeros", "ours", f"prompt of {tokens}", "token", "prompt, ms", "token, ms")
    for share in zeros:
        times = measured(all_models(share, eight_bits), tokens, turns)
        for line, (ours, theirs) in (PAIRS | (PAIRS_OF_EIGHT if eight_bits else {})).items():
            pairs = list(zip(zip(*times[ours], strict=True), zip(*times[theirs], strict=True), strict=True))
            table.add_row(share, line, *(ratio_text(*pair) for pair in pairs), *(medians_text(*pair) for pair in pairs))
        table.add_section()
    busy = others.cores()
    console = harness.wide_console()
    console.print(table)
    cores = "" if busy is None else f"; others took {busy:.1f} cores"
    console.print(f"{harness.processor()}, {ISA}, {threads} thread(s), {turns} turns{cores}")


if __name__ == "__main__":
    main()
