"""A mixture of experts with compressed weights beside the same model dense: reading prompts, and one token at a time.

    python -m tools.bench.experts                             50 and 80 % zeros, float32, all usable cores, some minutes
    python -m tools.bench.experts --sparsity 0.8 --threads 1 --dtype bfloat16
    python -m tools.bench.experts --isa avx2                  both held to AVX2
    python -m tools.bench.experts --batched-prompts           prompts by `batched_mm`, too: up to a minute a call
    python -m tools.bench.experts --quick                     a tiny model, to see that it runs

The model is like Qwen3-MoE: 8 layers with 64 experts of 512 x 1024, of which each token is routed to 4, with random
weights that are pruned at random; embeddings, routers and the output layer stay dense. Both forms have the same
weights. The dense one is measured with each implementation that transformers has for its experts, and the fastest is
what counts. `batched_mm` copies the weights of each token, and takes a minute a call for a prompt: it reads none unless
asked to. First it is verified that logits are within 1e-3 of the dense model's.

Contenders take turns. Numbers are medians of a forward pass: of a prompt of 128 tokens, and of one token after such a
prompt, whose keys and values are kept. "spread" is the largest distance of the quartiles over the median, "others" how
many cores other processes took meanwhile: where they leave fewer than there are threads, the numbers are worth little.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import click
import torch
from rich.table import Table
from transformers import AutoModelForCausalLM, DynamicCache, Qwen3MoeConfig

import sparsefmt
from sparsefmt.torch import sparsify
from tools.bench.harness import (
    Others,
    hold_to,
    in_turns,
    processor,
    seconds_of,
    spread,
    time_text,
    usable_cores,
    wide_console,
)

PROMPT = 128
BATCHED = "batched_mm"
IMPLEMENTATIONS = ("eager", BATCHED, "grouped_mm")
OURS = "compressed"


QUICK = {"hidden_size": 128, "num_hidden_layers": 1, "num_experts": 8, "moe_intermediate_size": 64, "head_dim": 16}


def model_of(sparsity: float, dtype: torch.dtype, quick: bool) -> Any:
    sizes = {"hidden_size": 1024, "num_hidden_layers": 8, "num_experts": 64, "moe_intermediate_size": 512}
    shape = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 128, "num_experts_per_tok": 4}
    config = Qwen3MoeConfig(**{**sizes, **shape, **(QUICK if quick else {})}, vocab_size=1024)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if "layers" in name and parameter.dim() > 1 and not name.endswith("gate.weight"):
            parameter.data[torch.rand(parameter.shape) < sparsity] = 0
    return model.to(dtype)


class Options(NamedTuple):
    """What the command line asks for."""

    sparsity: tuple[float, ...]
    dtype: str
    threads: int
    isa: str | None
    turns: int
    batched_prompts: bool
    quick: bool


class Runs:
    """Forward passes of one model."""

    def __init__(self, model: Any, implementation: str) -> None:
        self._model = model
        self._implementation = implementation
        self._tokens = torch.randint(3, 1000, (1, PROMPT), generator=torch.Generator().manual_seed(1))
        self._cache: Any = None

    def choose(self) -> None:
        """Have the model compute its experts so. Not part of a call: it goes through all modules of the model."""
        self._model.set_experts_implementation(self._implementation)

    def prompt(self) -> torch.Tensor:
        return self._called(self._tokens, None)

    def token(self) -> torch.Tensor:
        if self._cache is None:
            self._cache = DynamicCache(config=self._model.config)
            self._called(self._tokens, self._cache)
        logits = self._called(self._tokens[:, :1], self._cache)
        self._cache.crop(-1)
        return logits

    def _called(self, tokens: torch.Tensor, cache: Any) -> torch.Tensor:
        return self._model(tokens, cache=cache, use_cache=cache is not None).logits


def verify(ours: Runs, dense: Runs) -> None:
    ours.choose()
    dense.choose()
    for call in ("prompt", "token"):
        difference = (getattr(ours, call)().float() - getattr(dense, call)().float()).abs().max()
        if not difference < 1e-3:
            raise click.ClickException(f"logits of a {call} differ by {difference:.2g}")


def measured(contenders: dict[str, Runs], call: str, turns: int) -> dict[str, list[float]]:
    def sample(runs: Runs) -> Callable[[], float]:
        def timed() -> float:
            runs.choose()
            return seconds_of(getattr(runs, call))

        return timed

    return in_turns({name: sample(runs) for name, runs in contenders.items()}, turns, warm_up=2, seconds=60)


@click.command(help=__doc__.split("\n")[0])
@click.option("--sparsity", type=click.FloatRange(0, 1), multiple=True, default=(0.5, 0.8), help="May be repeated.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32")
@click.option("--threads", type=click.IntRange(1), default=usable_cores())
@click.option("--isa", type=click.Choice(["avx2", "portable"]), help="Hold both to lesser instructions.")
@click.option("--turns", type=click.IntRange(3), default=15)
@click.option(
    "--batched-prompts",
    is_flag=True,
    help="Prompts by transformers' batched_mm, too. It is left out of them otherwise: it takes a minute a call.",
)
@click.option("--quick", is_flag=True, help="A tiny model, to see that it runs.")
@torch.inference_mode()
def main(**given: Any) -> None:
    options = Options(**given)
    sparsity, dtype, threads, quick = options.sparsity, options.dtype, options.threads, options.quick
    hold_to(options.isa)
    torch.set_num_threads(threads)
    sparsefmt.set_num_threads(threads)
    table = Table("zeros", "of", *IMPLEMENTATIONS, OURS, "over the fastest", "spread", "others")
    for share in sparsity:
        model = model_of(share, getattr(torch, dtype), quick)
        compressed = copy.deepcopy(model)
        summary = sparsify(compressed, min_size=0 if quick else None).summary
        assert summary is not None
        click.echo(f"{share:.0%}: {summary}")
        contenders = {name: Runs(model, name) for name in IMPLEMENTATIONS} | {OURS: Runs(compressed, "eager")}
        if dtype == "float32":
            verify(contenders[OURS], contenders["eager"])
        for call, what in (("token", "one token"), ("prompt", f"a prompt of {PROMPT}")):
            takes_part = {
                name: runs
                for name, runs in contenders.items()
                if name != BATCHED or call == "token" or options.batched_prompts
            }
            others = Others()
            times = measured(takes_part, call, options.turns)
            cores = others.cores()
            medians = {name: statistics.median(found) for name, found in times.items()}
            fastest = min(medians[name] for name in IMPLEMENTATIONS if name in medians)
            table.add_row(
                f"{share:.0%}",
                what,
                *(time_text(medians[name]) if name in medians else "" for name in contenders),
                f"{fastest / medians[OURS]:.2f}",
                f"{max(map(spread, times.values())):.0%}",
                "" if cores is None else f"{cores:.1f}",
            )
    console = wide_console()
    console.print(f"{processor()}, {options.isa or 'all instructions'}, {threads} threads, {dtype}")
    console.print(table)


if __name__ == "__main__":
    main()
