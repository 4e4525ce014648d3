"""Products with values of eight bits beside what else there is: dense float32, PyTorch's dense int8, ggml's q8_0.

Products of one shape are timed at several shares of zeros and numbers of tokens, all in turns on one thread, with
weights that were not used a moment ago. Each cell is how many times as fast as dense float32 (the faster of numpy and
PyTorch) a contender is; `over int8` compares activations and weights of eight bits with the fastest dense int8 of the
run. Bits of a weight count positions, values and scales. Times are those of the thread on its core, so that others on
the machine matter less; peers, in processes of their own, have those of a clock.

    python -m tools.bench.eight_bits_products
    python -m tools.bench.eight_bits_products --isa avx2 --peers ggml --shape 4096x11008 --sparsity 0.5
    python -m tools.bench.eight_bits_products --roof --sparsity 0.5 --tokens 24 --tokens 128

`--roof` says what the instruction for dot products of bytes does at most, in a loop of nothing else, and so how many
times as fast as each dense int8 of the run a kernel could be at most that multiplies zeros, too, as `bitmask` does.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import numpy as np
from rich.table import Table

from tools.bench.harness import HELD, ONE_THREAD, hold_to, in_turns, parse_shapes, processor, spread, wide_console

if TYPE_CHECKING:
    from rich.console import Console

    from tools.bench.eight_bits_roof import Roof

SCALE = 0.01

OURS = ("bitmask", "permuted")
"""Layouts that are timed. Others that are called int8 are PyTorch's engines."""


class Contender(NamedTuple):
    """Something that multiplies: a turn gives the seconds of one product. `bits`: of a weight."""

    name: str
    turn: Callable[[], float]
    bits: float


def quantized(rng: np.random.Generator, rows: int, cols: int, sparsity: float) -> np.ndarray:
    """int8 as a normal distribution gives them, with so many zeros at random places."""
    values = np.clip(np.rint(rng.standard_normal((rows, cols)) * 40), -127, 127)
    return np.where(rng.random((rows, cols)) < sparsity, 0, np.where(values == 0, 1, values)).astype(np.int8)


def dense(q: np.ndarray, x: np.ndarray) -> Iterator[tuple[str, Callable[[], object], float]]:
    """The dense products: numpy, PyTorch, and PyTorch's int8 by each of its engines that runs here."""
    import torch

    weight, tokens = q.astype(np.float32) * np.float32(SCALE), torch.from_numpy(x)
    linear = torch.from_numpy(weight)
    yield "numpy", lambda: x @ weight.T, 32
    yield "torch", lambda: torch.nn.functional.linear(tokens, linear), 32
    for engine in torch.backends.quantized.supported_engines:
        if engine in ("none", "qnnpack"):
            continue
        try:
            torch.backends.quantized.engine = engine
            layer = torch.ao.nn.quantized.dynamic.Linear(q.shape[1], q.shape[0], bias_=False)
            scales, zeros = torch.full((q.shape[0],), SCALE), torch.zeros(q.shape[0], dtype=torch.int64)
            per_row = torch.quantize_per_channel(linear, scales.double(), zeros, 0, torch.qint8)
            layer.set_weight_bias(per_row, None)

            def product(layer: Any = layer, engine: str = engine) -> object:
                torch.backends.quantized.engine = engine
                return layer(tokens)

            product()
        except RuntimeError as error:
            click.echo(f"without PyTorch's engine {engine}: {error}", err=True)
            continue
        yield f"int8 {engine}", product, 8


def ours(q: np.ndarray, x: np.ndarray) -> Iterator[tuple[str, Callable[[], object], float]]:
    """Layout "auto" in bfloat16; int8 with a scale for each row, by layout; with activations in eight bits, too."""
    import ml_dtypes

    from sparsefmt import Scales, SparseTensor, linear

    scales = Scales(np.full(q.shape[0], SCALE, np.float32), *q.shape)
    wide = SparseTensor.from_dense((q.astype(np.float32) * np.float32(SCALE)).astype(ml_dtypes.bfloat16))
    yield "bf16 auto", partial(linear, x, wide), 8 * wide.nbytes / q.size
    if wide.layout != "bitmask":
        wide = wide.to_layout("bitmask")
    yield "bf16 bitmask", partial(linear, x, wide), 8 * wide.nbytes / q.size
    for layout in OURS:
        w = SparseTensor.from_dense(q, layout)
        bits = 8 * (w.nbytes + scales.nbytes) / q.size
        yield f"int8 {layout}", partial(linear, x, w, scale=scales), bits
        yield f"w8a8 {layout}", partial(linear, x, w, scale=scales, activations="int8"), bits


def contenders(q: np.ndarray, x: np.ndarray, peers: dict[str, Any]) -> list[Contender]:
    """All of them. Each turn evicts the weights first, which a peer does itself."""
    from tools.bench.kernels_timing import timed_turn

    found = []
    with_others = np.ascontiguousarray(q[::-1])
    before = {name: product for name, product, _ in (*dense(with_others, x), *ours(with_others, x))}
    for name, product, bits in (*dense(q, x), *ours(q, x)):
        found.append(Contender(name, partial(timed_turn, product, before[name], time.thread_time), bits))
    expected = x @ (q.astype(np.float32) * np.float32(SCALE)).T
    for peer in peers.values():
        for contender in peer.contenders(x, expected, 1, True):
            bits = 8 * contender.weight_bytes / q.size
            found.append(Contender(contender.name, contender.turn, bits))
    return found


def roof_of(console: Console, turns: int) -> Roof:
    """Measured and printed."""
    from tools.bench.eight_bits_roof import measure

    try:
        roof = measure(turns)
    except ValueError as error:
        raise click.UsageError(f"--roof: {error}") from error
    console.print(
        f"Alone, the instruction does {roof.multiply_adds_a_cycle:.1f} multiply-adds a cycle, of which there are "
        f"{roof.cycles_a_second / 1e9:.2f} billion a second: {roof.multiply_adds_a_second / 1e9:.0f} billion."
    )
    return roof


@click.command()
@click.option("--shape", default="4096x4096", show_default=True, help="Rows and columns.")
@click.option("--sparsity", multiple=True, type=float, default=(0.5, 0.7, 0.8), show_default=True)
@click.option("--tokens", multiple=True, type=int, default=(1, 24, 128, 512), show_default=True)
@click.option("--turns", default=5, show_default=True, help="Times that each is measured.")
@click.option("--isa", type=click.Choice(list(HELD)), help="Hold all to an instruction set.")
@click.option("--peers", default="", help="Others to build and run: ggml, openvino.")
@click.option("--roof", "with_roof", is_flag=True, help="Say what no kernel of this instruction could exceed.")
def main(
    shape: str,
    sparsity: tuple[float, ...],
    tokens: tuple[int, ...],
    turns: int,
    isa: str | None,
    peers: str,
    with_roof: bool,
) -> None:
    (shape,) = parse_shapes(None, None, (shape,))  # type: ignore[arg-type]
    rows, cols = map(int, shape.split("x"))
    hold_to(isa, **ONE_THREAD)
    import torch

    from sparsefmt import isa as instructions
    from sparsefmt import set_num_threads
    from tools.bench.kernels_peers import PeerProcess, build

    torch.set_num_threads(1)
    set_num_threads(1)
    console, rng = wide_console(), np.random.default_rng(0)
    has = f"with {instructions.DOTS}" if instructions.DOTS else "without an instruction"
    console.print(f"{processor()}, {instructions.ISA}, {has} for dot products of eight bits; {shape}, one thread")
    roof = roof_of(console, turns) if with_roof else None
    commands = build([name for name in peers.split(",") if name])
    for share in sparsity:
        q = quantized(rng, rows, cols, share)
        table = Table("tokens", "float32, ms")
        widest, with_bits = 0.0, False
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            weight = q.astype(np.float32) * np.float32(SCALE)
            running = {
                name: stack.enter_context(PeerProcess(name, command, weight, folder))
                for name, command in commands.items()
            }
            for count in tokens:
                x = rng.standard_normal((count, cols)).astype(np.float32)
                all_of_them = contenders(q, x, running)
                times = in_turns({one.name: one.turn for one in all_of_them}, turns)
                seconds = {name: statistics.median(found) for name, found in times.items()}
                widest = max(widest, *(spread(found) for found in times.values()))
                baseline = min(seconds.pop("numpy"), seconds.pop("torch"))
                int8 = {
                    name: value
                    for name, value in seconds.items()
                    if name.startswith("int8 ") and name.split()[1] not in OURS
                }
                if not with_bits:
                    with_bits = True
                    for one in all_of_them:
                        if one.name in seconds:
                            table.add_column(f"{one.name}\n{one.bits:.1f} bits", justify="right")
                    table.add_column("w8a8 over int8", justify="right")
                    for name in int8 if roof else ():
                        table.add_column(f"at most over\n{name}", justify="right")
                best = min(seconds["w8a8 bitmask"], seconds["w8a8 permuted"])
                over = f"{min(int8.values()) / best:.2f}" if int8 else "-"
                at_most = [value / roof.seconds(rows, cols, count) for value in int8.values()] if roof else []
                table.add_row(
                    str(count),
                    f"{baseline * 1e3:.2f}",
                    *(f"{baseline / value:.2f}" for value in seconds.values()),
                    over,
                    *(f"{ratio:.2f}" for ratio in at_most),
                )
        table.title = (
            f"{share:.0%} zeros: times as fast as dense float32 (quartiles at most {widest:.0%} of the median apart)"
        )
        console.print(table)


if __name__ == "__main__":
    main()
