"""What a scheduler of Dask adds to a conversion: its graph with tasks that sleep in place of converting.

    python -m tools.cluster_simulation
    python -m tools.cluster_simulation --shards 1000 --workers 64 --slow 4

Lengths are those of shards of 4.3 GB, at a rate measured by `python -m tools.bench.convert`, divided so that the whole
takes seconds: the scheduler's work for each shard stays as it is, and shows all the more. All workers live in this
process, as sleeping takes no core, and speak TCP.
"""

from __future__ import annotations

import logging
import random
import time
from dataclasses import dataclass

import click
import distributed
from rich.console import Console
from rich.table import Table

SHARD_GB = 4.3
SPREAD = 0.1
"""Standard deviation of lengths, as a share: shards differ in size and in what they hold."""


@dataclass(frozen=True)
class Cluster:
    """What is simulated.

    Attributes:
        slow: how many times as long everything takes one of the workers.
        length: seconds that a shard takes on the others, here.
    """

    shards: int
    workers: int
    slow: float
    length: float


def sleep(length: float, slow: float, slowest: int) -> float:
    """A task: seconds of sleep."""
    worker = distributed.get_worker()
    length *= slow if worker.name == slowest else 1
    time.sleep(length)
    return length


def simulate(cluster: Cluster) -> tuple[float, float, float]:
    """Seconds until the last shard, those of a perfect division of the same tasks, and CPU seconds of this process."""
    rng = random.Random(0)
    lengths = sorted((max(rng.gauss(1, SPREAD), 0.1) * cluster.length for _ in range(cluster.shards)), reverse=True)
    own = {"n_workers": cluster.workers, "threads_per_worker": 1, "processes": False, "protocol": "tcp://"}
    with (
        distributed.LocalCluster(**own, dashboard_address="127.0.0.1:0", memory_limit=0, silence_logs=False) as found,
        distributed.Client(found) as client,
    ):
        slowest = 0 if cluster.slow > 1 else -1
        begun, cpu = time.perf_counter(), time.process_time()
        futures = [client.submit(sleep, length, cluster.slow, slowest, pure=False) for length in lengths]
        for _ in distributed.as_completed(futures):
            pass
        return time.perf_counter() - begun, divided(lengths, cluster), time.process_time() - cpu


def divided(lengths: list[float], cluster: Cluster) -> float:
    """Seconds until the last of the tasks ends, if each goes at once to whichever worker is free."""
    free = [0.0] * cluster.workers
    for length in lengths:
        # the slow one is the last of those that are free at the same time
        worker = min(range(cluster.workers), key=lambda number: (free[number], -number))
        free[worker] += length * (cluster.slow if worker == 0 else 1)
    return max(free)


@click.command(context_settings={"show_default": True})
@click.option("--shards", type=int, multiple=True, default=(163, 1000), help="Number of files.")
@click.option("--workers", type=int, multiple=True, default=(16,), help="Threads of all workers.")
@click.option("--rate", type=float, default=0.25, help="GB that a core converts in a second.")
@click.option("--seconds", type=float, default=8, help="What each row should take.")
@click.option("--slow", type=float, default=4, help="How many times as long one worker takes, in every second row.")
def main(shards: tuple[int, ...], workers: tuple[int, ...], rate: float, seconds: float, slow: float) -> None:
    """Print, for each number of shards and of workers, what the scheduler adds and what one slow worker costs."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    real = SHARD_GB / rate
    table = Table(
        "shards", "workers", "slow one", "tasks, s", "last one, s", "perfect, s", "more", "ms CPU a shard", "hours"
    )
    for count in shards:
        for number in workers:
            for factor in (1.0, slow):
                length = seconds * number / count
                cluster = Cluster(count, number, factor, length)
                elapsed, perfect, cpu = simulate(cluster)
                more = elapsed / perfect - 1
                hours = perfect / length * real / 3600
                cells = [
                    f"{length:.3f}",
                    f"{elapsed:.2f}",
                    f"{perfect:.2f}",
                    f"{more:+.1%}",
                    f"{1000 * cpu / count:.2f}",
                ]
                slowest = f"{factor:g} times" if factor > 1 else "none"
                table.add_row(str(count), str(number), slowest, *cells, f"{hours:.2f}")
    console = Console(width=120)
    console.print(table)
    console.print(
        f"Hours: with shards of {SHARD_GB} GB and {rate} GB/s a worker, {real:.0f} s each, if divided perfectly. CPU is"
        " that of scheduler, client and all workers together."
    )


if __name__ == "__main__":
    main()
