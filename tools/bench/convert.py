"""Measure what converting a checkpoint costs: peak memory, time, and how long `sparsefmt inspect` takes afterwards.

    python -m tools.bench.convert --gigabytes 2 --shards 4
    python -m tools.bench.convert --checkpoint FOLDER --codec raw

Each command runs in a process of its own, and the system says what it used, so that nothing of this program counts.
Exit code 1 if memory or inspect are over their bounds.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from sparsefmt.threads import num_threads
from tools.bench.harness import wide_console

BASE_BYTES = 300_000_000
"""Interpreter, numpy, numba and its compiled passes, tiles in flight."""

MAX_INSPECT_SECONDS = 0.4
INSPECT_RUNS = 5


def run(*command: object) -> tuple[float, int]:
    """Seconds and peak resident bytes of a command; its output is shown only if it fails."""
    started = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    output = process.stdout.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    elapsed = time.perf_counter() - started
    if process.returncode:
        raise click.ClickException(f"{' '.join(map(str, command))} failed:\n{output}")
    # kilobytes, but bytes on macOS
    return elapsed, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def largest_tensor(folder: Path) -> int:
    """Bytes of the largest tensor of the safetensors files in a folder."""
    largest = 0
    for path in folder.glob("*.safetensors"):
        with open(path, "rb") as file:
            header: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        header.pop("__metadata__", None)
        largest = max([largest, *(end - begin for begin, end in (entry["data_offsets"] for entry in header.values()))])
    return largest


def folder_size(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern))


@click.command(context_settings={"show_default": True})
@click.option("--checkpoint", type=click.Path(path_type=Path, exists=True), help="Folder of safetensors.")
@click.option("--gigabytes", type=float, default=2, help="Without --checkpoint: size of the one to make.")
@click.option("--shards", type=int, default=4, help="Without --checkpoint: number of files.")
@click.option("--sparsity", type=float, default=0.6, help="Without --checkpoint: share of zeros.")
@click.option("--dtype", default="bf16", help="Without --checkpoint: f32, bf16 or f16.")
@click.option("--codec", default="auto", help="As in sparsefmt convert.")
@click.option("--threads", type=int, default=num_threads(), help="As in sparsefmt convert.")
@click.option("--scratch", type=click.Path(path_type=Path), help="Where to write.  [default: temporary folder]")
def main(
    checkpoint: Path | None,
    gigabytes: float,
    shards: int,
    sparsity: float,
    dtype: str,
    codec: str,
    threads: int,
    scratch: Path | None,
) -> None:
    """Convert, verify and export a checkpoint, and print what each step took."""
    program = [sys.executable, "-m", "sparsefmt"]
    with tempfile.TemporaryDirectory(prefix="bench-convert-", dir=scratch) as name:
        folder = Path(name)
        if checkpoint is None:
            checkpoint = folder / "checkpoint"
            options = ("--gigabytes", gigabytes, "--shards", shards, "--sparsity", sparsity, "--dtype", dtype)
            run(sys.executable, "-m", "tools.make_checkpoint", checkpoint, *options)
        converted, exported = folder / "sparse", folder / "dense"
        common = ("--threads", threads)
        steps = {
            "convert": run(*program, "convert", checkpoint, converted, "--codec", codec, *common),
            "verify --against": run(*program, "verify", converted, "--against", checkpoint, *common),
            "export": run(*program, "export", converted, exported, *common),
        }
        inspections = [run(*program, "inspect", converted) for _ in range(INSPECT_RUNS)]
        steps["inspect"] = (
            statistics.median(seconds for seconds, _ in inspections),
            max(peak for _, peak in inspections),
        )
        before, after = folder_size(checkpoint, "*.safetensors"), folder_size(converted, "*.sparsefmt")
        largest = largest_tensor(checkpoint)
    seconds, _ = steps["convert"]
    bound = 2 * largest + BASE_BYTES
    table = Table("step", "seconds", "peak RSS, MB", "bound, MB")
    for step, (elapsed, peak) in steps.items():
        table.add_row(step, f"{elapsed:.2f}", f"{peak / 1e6:,.0f}", f"{bound / 1e6:,.0f}")
    console = wide_console()
    console.print(table)
    console.print(
        f"{before / 1e9:.2f} GB -> {after / 1e9:.2f} GB ({before / after:.2f}x) at {before / 1e6 / seconds:,.0f} MB/s, "
        f"{threads} threads; largest tensor {largest / 1e6:,.0f} MB"
    )
    failed = [step for step, (_, peak) in steps.items() if peak > bound]
    if steps["inspect"][0] > MAX_INSPECT_SECONDS:
        failed.append(f"inspect over {MAX_INSPECT_SECONDS} s")
    if failed:
        raise click.ClickException(f"over the bound: {', '.join(failed)}")


if __name__ == "__main__":
    main()
