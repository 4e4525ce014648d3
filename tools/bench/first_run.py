"""Time what a newcomer does first, when no kernel is compiled yet, and again when all of them are.

    python -m tools.bench.first_run                       each step from an empty cache, and from a full one
    python -m tools.bench.first_run --step save --functions     what is compiled for it, how often, and for how long

Each step runs in a process of its own with a cache folder of its own (NUMBA_CACHE_DIR), which is empty the first time.
Seconds are those of the step and of what it imports, without those that Python takes to start. Compiling keeps one
core busy, so that processor seconds are about the seconds of a quiet machine, and are what to compare on a busy one.
`--functions` compiles with numba's events switched on: seconds of a function are those of a processor, without those of
functions that it calls, which are compiled meanwhile.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from tools.bench.harness import wide_console

ROOT = Path(__file__).parents[2]


def _matrix(dtype: str = "bfloat16", sparsity: float = 0.6) -> Any:
    """A pruned matrix as models have them."""
    import ml_dtypes
    import numpy as np

    rng = np.random.default_rng(0)
    found = rng.standard_normal((1024, 1024), np.float32)
    found[rng.random(found.shape) < sparsity] = 0
    return found.astype(getattr(ml_dtypes, dtype, dtype))


def _import(folder: Path) -> None:
    import sparsefmt  # noqa: F401


def _from_dense(folder: Path) -> None:
    from sparsefmt import SparseTensor

    SparseTensor.from_dense(_matrix())


def _product(folder: Path, dtype: str = "float32", tokens: int | None = None) -> None:
    import numpy as np

    from sparsefmt import SparseTensor

    w = SparseTensor.from_dense(_matrix(dtype))
    w @ np.ones(w.shape[1] if tokens is None else (w.shape[1], tokens), np.float32)


def _save(folder: Path, dtype: str = "bfloat16") -> None:
    from sparsefmt import save_file

    save_file({"w": _matrix(dtype)}, folder / "new.sparsefmt")


def _load(folder: Path) -> None:
    from sparsefmt import load_file

    load_file(folder / "w.sparsefmt")


def _command(*arguments: str) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        from sparsefmt.cli import main

        os.chdir(folder)
        main(list(arguments), standalone_mode=False)

    return run


STEPS: dict[str, Callable[[Path], None]] = {
    "import": _import,
    "from_dense": _from_dense,
    "product": _product,
    "product of 128": lambda folder: _product(folder, tokens=128),
    "save": _save,
    "save float32": lambda folder: _save(folder, "float32"),
    "load": _load,
    "convert": _command("convert", "w.safetensors", "converted.sparsefmt", "--force"),
    "warmup": _command("warmup", "--quiet"),
}
"""What is done, in a folder with `w.safetensors` and `w.sparsefmt`."""


def _prepare(folder: Path) -> None:
    from safetensors.numpy import save_file

    import sparsefmt

    # as checkpoints are: matrices, a vector, and a dense matrix
    weights = {"w": _matrix(), "v": _matrix(sparsity=0.8), "norm": _matrix()[0].copy(), "head": _matrix(sparsity=0)}
    save_file(weights, folder / "w.safetensors")
    sparsefmt.save_file(weights, folder / "w.sparsefmt")


def _listen() -> list[tuple[str, str, float]]:
    """(function, types, seconds of its own) of what is compiled from now on."""
    from numba.core import event

    found: list[tuple[str, str, float]] = []
    inner: list[float] = []

    class Listener(event.Listener):
        def on_start(self, event: Any) -> None:
            inner.append(-time.process_time())
            inner.append(0.0)

        def on_end(self, event: Any) -> None:
            of_callees, began = inner.pop(), inner.pop()
            seconds = time.process_time() + began
            if inner:
                inner[-1] += seconds
            function = event.data["dispatcher"].py_func
            name = f"{function.__module__.removeprefix('sparsefmt.')}.{function.__qualname__}"
            found.append((name, ", ".join(map(str, event.data["args"])), seconds - of_callees))

    event.register("numba:compile", Listener())
    return found


def _child(step: str, folder: Path, functions: bool) -> None:
    """Print the seconds of a step as JSON behind all else that it prints, and what was compiled."""
    compiled = _listen() if functions else []
    began = time.perf_counter(), time.process_time()
    STEPS[step](folder)
    took = time.perf_counter() - began[0], time.process_time() - began[1]
    print("\n" + json.dumps([*took, compiled]))


def _run(step: str, folder: Path, cache: Path, functions: bool = False) -> list[Any]:
    """[seconds, processor seconds, what was compiled] of a step in a process of its own."""
    command = [sys.executable, "-m", "tools.bench.first_run", "--child", step, str(folder)]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    command += ["--functions"] if functions else []
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def _show_functions(step: str, compiled: list[tuple[str, str, float]], signatures: bool) -> None:
    by_name: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for name, types, seconds in compiled:
        by_name[name].append((types, seconds))
    total = sum(seconds for _, _, seconds in compiled)
    table = Table(title=f"{step}: {len(compiled)} instances of {len(by_name)} functions in {total:.1f} s")
    for column in ("function", "instances", "seconds"):
        table.add_column(column, justify="left" if column == "function" else "right", overflow="fold")
    for name, found in sorted(by_name.items(), key=lambda item: -sum(seconds for _, seconds in item[1])):
        table.add_row(name, str(len(found)), f"{sum(seconds for _, seconds in found):.2f}")
        if signatures:
            for types, seconds in found:
                table.add_row(f"  {types}", "", f"{seconds:.2f}")
    wide_console().print(table)


@click.command(epilog="See the head of this file for what is measured.")
@click.option("--step", "steps", multiple=True, type=click.Choice(list(STEPS)), help="Only this one. May be repeated.")
@click.option("--functions", is_flag=True, help="Show which functions are compiled.")
@click.option("--signatures", is_flag=True, help="Show for which types, too.")
@click.option("--child", type=(str, Path), hidden=True)
def main(steps: tuple[str, ...], functions: bool, signatures: bool, child: tuple[str, Path] | None) -> None:
    """Time what a newcomer does first, from an empty cache of compiled code and from a full one."""
    if child is not None:
        _child(*child, functions)
        return
    table = Table(title="seconds, and those of a processor")
    for column in ("step", "empty cache", "processor", "full cache", "processor"):
        table.add_column(column, justify="left" if column == "step" else "right")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        _prepare(folder)
        for number, step in enumerate(steps or STEPS):
            cache = folder / f"cache-{number}"
            if functions or signatures:
                _show_functions(step, _run(step, folder, cache, functions=True)[2], signatures)
                continue
            empty, full = _run(step, folder, cache), _run(step, folder, cache)
            table.add_row(step, *(f"{seconds:.2f}" for seconds in (*empty[:2], *full[:2])))
    if table.row_count:
        wide_console().print(table)


if __name__ == "__main__":
    main()
