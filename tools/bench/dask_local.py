"""Convert a checkpoint by one process, and by a cluster of two on the same machine: seconds, CPU seconds, same bytes.

    python -m tools.bench.dask_local --megabytes 2400

Exit code 1 if a byte differs. What two worker processes and a scheduler take to start is in their time.
"""

from __future__ import annotations

import filecmp
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click


def checkpoint(folder: Path, megabytes: int) -> Path:
    size = ("--gigabytes", str(megabytes / 1000), "--shards", "8", "--sparsity", "0.6", "--dtype", "bf16")
    command = [sys.executable, "-m", "tools.make_checkpoint", str(folder), *size]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def seconds(command: list[str]) -> tuple[float, float]:
    """Seconds, and CPU seconds of a command and of its children."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - started, used


def beside(source: Path, folder: Path, rounds: int, codec: str) -> None:
    """Local conversion beside `--dask local`, in turns."""
    program = [sys.executable, "-m", "sparsefmt", "convert", str(source)]
    common = ["--quiet", "--force", "--codec", codec]
    for number in range(rounds):
        one = seconds([*program, str(folder / "one"), *common])
        many = seconds([*program, str(folder / "many"), *common, "--dask", "local"])
        wall, cpu = (many[which] / one[which] - 1 for which in (0, 1))
        click.echo(
            f"round {number + 1}: one process {one[0]:.1f} s, {one[1]:.1f} s CPU; --dask local {many[0]:.1f} s,"
            f" {many[1]:.1f} s CPU: {wall:+.0%}, CPU {cpu:+.0%}"
        )
    expect_same(folder / "one", folder / "many")


def expect_same(one: Path, other: Path) -> None:
    names = sorted(os.listdir(one))
    differing = sorted(set(names) ^ set(os.listdir(other)))
    differing += [name for name in names if name not in differing and not filecmp.cmp(one / name, other / name, False)]
    if differing:
        raise click.ClickException(f"not the same: {', '.join(differing)}")
    click.echo(f"{len(names)} files are the same, byte for byte")


@click.command(context_settings={"show_default": True})
@click.option("--megabytes", type=int, default=400, help="Size of the checkpoint.")
@click.option("--rounds", type=int, default=3, help="How often, in turns.")
@click.option("--codec", default="auto", help="As in sparsefmt convert.")
def main(megabytes: int, rounds: int, codec: str) -> None:
    """Convert a checkpoint by one process and by a cluster of two worker processes, and compare time and bytes."""
    with tempfile.TemporaryDirectory(prefix="bench-dask-") as name:
        folder = Path(name)
        beside(checkpoint(folder / "in", megabytes), folder, rounds, codec)


if __name__ == "__main__":
    main()
