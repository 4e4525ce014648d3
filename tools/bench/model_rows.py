"""What `model.py` measures of a pruned model, as lines of its CSV. Everything is verified before it is timed.

The tool imports this file; it is not a program.
"""

from __future__ import annotations

import copy
import gc
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import torch

from tools.bench import model_memory
from tools.bench.harness import Others, in_turns, seconds_of
from tools.bench.kernels_timing import settle
from tools.bench.model_cases import (
    Contender,
    Subject,
    answer,
    embed,
    generate,
    nbytes_of,
    pruned_layers,
    set_threads,
    tokens_of,
)
from tools.bench.model_checks import logits_of, verify_embeddings, verify_layers, verify_logits, verify_rows

FAST_SECONDS = 0.1
"""What takes less is called twice, and timed the second time."""

PEERS = ("csr", "compile")

SAME_BITS = "layers with the bits of single texts"

TEXTS = 4
"""In the batch whose rows are compared with single texts."""


class Plan(NamedTuple):
    """What is measured.

    Attributes:
        batches, tokens: of the encoder's texts, in all combinations.
        prompt, new_tokens: of the text that is continued.
        repeats: turns; in each case, a contender that has used up its seconds sits out the later ones.
        load_repeats: turns of loading.
        memory: whether fresh processes tell what memory a model takes.
        read_tokens: of a text that is read at once, without being continued; 0 for none.
    """

    batches: tuple[int, ...]
    tokens: tuple[int, ...]
    prompt: int
    new_tokens: int
    repeats: int
    seconds: float
    load_repeats: int
    memory: bool
    read_tokens: int = 0


@dataclass(frozen=True)
class Row:
    """A number.

    Attributes:
        case: what is run, of times; what is compared with what, of differences.
        value: the median, of times.
        unit: "s", "bytes", or "" for ratios and differences.
        spread: quartile distance over the median, of times.
        over_dense: the value over that of the dense model: of times, in float32; of bytes, with the dtype of ours.
        others: cores that other processes took meanwhile.
    """

    model: str
    sparsity: float
    measured: str
    case: str
    contender: str
    value: float
    unit: str
    over_dense: float | None = None
    threads: int | None = None
    spread: float | None = None
    repeats: int | None = None
    others: float | None = None


Models = dict[Contender, Any]
"""Each contender loaded."""


def load_all(subject: Subject) -> Models:
    return {contender: subject.load(contender) for contender in subject.contenders}


def verified(subject: Subject, models: Models, plan: Plan) -> Iterator[Row]:
    """How far ours is from the dense model. Fails if that is too far."""
    dense = models[subject.reference]
    ours = [contender for contender in models if contender.ours]
    row = partial(Row, subject.name, subject.sparsity)
    for contender in ours:
        verify_layers(contender, models[contender], dense)
        layers = verify_rows(contender.name, models[contender], tokens_of(dense, TEXTS, plan.prompt))
        yield row(SAME_BITS, f"batch of {TEXTS}", contender.name, layers, "")
    if subject.causal:
        rounded = subject.dense
        tokens = tokens_of(dense, TEXTS, plan.prompt)
        exact, theirs = (logits_of(models[contender], tokens) for contender in (subject.reference, rounded))
        for contender in ours:
            found = logits_of(models[contender], tokens)
            difference, of_rounded = verify_logits(contender.name, found, theirs, exact)
            case = "largest, over the standard deviation of logits"
            yield row("difference", case, contender.name, difference, "")
        yield row("difference", case, rounded.name, of_rounded, "")
        return
    for batch, count in shapes(plan):
        tokens = tokens_of(dense, batch, count)
        expected = embed(dense, tokens)
        for contender in ours:
            difference = verify_embeddings(contender.name, embed(models[contender], tokens), expected)
            yield row("difference", shape_text(batch, count), contender.name, difference, "")


def stored(subject: Subject, models: Models) -> Iterator[Row]:
    """Bytes in files and in memory."""
    layers = pruned_layers(models[subject.reference])
    measured: dict[Contender, dict[str, int]] = {}
    for contender, model in models.items():
        weights, tensors = nbytes_of(model, layers)
        measured[contender] = {"file": subject.file_bytes(contender), "weights": weights, "tensors": tensors}
    yield from byte_rows(subject, measured)


def resident(subject: Subject, threads: int) -> Iterator[Row]:
    """Bytes that a process grows by. Nothing where the system does not say."""
    measured = {}
    for contender in subject.contenders:
        growth = model_memory.in_fresh_process(subject, contender, threads)
        if growth is None:
            return
        measured[contender] = asdict(growth)
    yield from byte_rows(subject, measured)


def byte_rows(subject: Subject, measured: dict[Contender, dict[str, int]]) -> Iterator[Row]:
    for contender, numbers in measured.items():
        for name, value in numbers.items():
            dense = measured[subject.dense][name]
            ratio = value / dense if dense > 0 else None
            yield Row(subject.name, subject.sparsity, name, "", contender.name, value, "bytes", ratio)


def loaded(subject: Subject, plan: Plan, threads: int) -> Iterator[Row]:
    """Seconds of loading; and of loading and the first answer."""
    set_threads(threads)
    times: dict[str, dict[str, list[float]]] = {"load": {}, "load and run": {}}
    others = Others()
    for turn in range(plan.load_repeats + 1):
        gc.collect()
        for contender in subject.contenders:
            settle()
            start = time.perf_counter()
            model = subject.load(contender)
            ready = time.perf_counter()
            answer(subject, model)
            end = time.perf_counter()
            del model
            if turn:
                times["load"].setdefault(contender.name, []).append(ready - start)
                times["load and run"].setdefault(contender.name, []).append(end - start)
    meanwhile = others.cores()
    for measured, found in times.items():
        yield from time_rows(subject, Case(measured, "", threads, meanwhile), found)


def run(subject: Subject, models: Models, plan: Plan, threads: int, peers: tuple[str, ...]) -> Iterator[Row]:
    """Seconds of embedding, or of continuing a text."""
    set_threads(threads)
    dense = models[subject.reference]
    if subject.causal:
        prompt, text = (tokens_of(dense, 1, count) for count in (plan.prompt, plan.read_tokens))
        calls = {
            ("generate", f"{plan.new_tokens} after {plan.prompt}"): lambda model: generate(
                model, prompt, plan.new_tokens
            )
        }
        if plan.read_tokens:
            calls["read", f"{plan.read_tokens} tokens"] = lambda model: logits_of(model, text)
        for (measured, name), call in calls.items():
            samples = {contender.name: partial(sample, partial(call, models[contender])) for contender in models}
            others, found = Others(), in_turns(samples, plan.repeats, seconds=plan.seconds)
            yield from time_rows(subject, Case(measured, name, threads, others.cores()), found)
        return
    running = {contender.name: models[contender] for contender in models}
    running |= peer_models(dense, models[subject.ours], peers)
    for batch, count in shapes(plan):
        tokens = tokens_of(dense, batch, count)
        runs = {name: partial(embed, model, tokens) for name, model in running.items()}
        expected = embed(dense, tokens)
        for name, call in runs.items():
            verify_embeddings(name, call(), expected)
        samples = {name: partial(sample, call) for name, call in runs.items()}
        others, found = Others(), in_turns(samples, plan.repeats, seconds=plan.seconds)
        yield from time_rows(subject, Case("embed", shape_text(batch, count), threads, others.cores()), found)


def peer_models(dense: torch.nn.Module, ours: torch.nn.Module, peers: tuple[str, ...]) -> dict[str, Any]:
    """Other ways to run the encoder."""
    found: dict[str, Any] = {}
    if "csr" in peers:
        found["torch CSR"] = model = copy.deepcopy(dense)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CSR is in beta
            for name in pruned_layers(dense):
                compressed = model.get_parameter(f"{name}.weight").to_sparse_csr()
                model.get_submodule(name).weight = torch.nn.Parameter(compressed, requires_grad=False)
    if "compile" in peers:
        torch._dynamo.reset()
        found["torch, compiled"] = torch.compile(dense, dynamic=False)
        found["sparsefmt, compiled"] = torch.compile(ours, dynamic=False)
    return found


def shapes(plan: Plan) -> list[tuple[int, int]]:
    """Batch and tokens of each case of the encoder."""
    return [(batch, count) for batch in plan.batches for count in plan.tokens]


def shape_text(batch: int, count: int) -> str:
    return f"batch {batch}, {count} tokens"


def sample(call: Callable[[], object]) -> float:
    """Seconds of a call; of what is fast, those of a second one."""
    settle()
    seconds = seconds_of(call)
    return seconds if seconds >= FAST_SECONDS else seconds_of(call)


class Case(NamedTuple):
    """What was timed. others: cores that other processes took meanwhile."""

    measured: str
    case: str
    threads: int
    others: float | None


def time_rows(subject: Subject, case: Case, times: dict[str, list[float]]) -> Iterator[Row]:
    dense = statistics.median(times[subject.reference.name])
    for name, seconds in times.items():
        first, median, third = statistics.quantiles(seconds, n=4)
        yield Row(
            model=subject.name,
            sparsity=subject.sparsity,
            measured=case.measured,
            case=case.case,
            contender=name,
            value=median,
            unit="s",
            over_dense=median / dense,
            threads=case.threads,
            spread=(third - first) / median,
            repeats=len(seconds),
            others=case.others,
        )
