"""Convert a checkpoint in a store with a cluster: a worker is killed, requests fail, and the bytes are compared.

    python -m tools.bench.dask_store                  # 400 MB, s3:// to s3://, 5 % of requests fail

The store is moto's, on loopback, which keeps objects in memory, in a process of its own. Exit code 1 if a byte differs.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import click
import distributed
import fsspec

import sparsefmt.dask
from tools.bench.dask_local import checkpoint, expect_same
from tools.bench.loopback import counts, options_of, store

BUCKET = "bench"


def kill_one(client: Any, after: float) -> threading.Timer:
    """Kill one of the workers after so many seconds."""
    pid = random.Random(0).choice(sorted(client.run(os.getpid).values()))
    timer = threading.Timer(after, os.kill, (pid, signal.SIGKILL))
    timer.start()
    return timer


def in_store(source: Path, folder: Path, share: float, kill_after: float) -> None:
    """From the store to the store."""
    with store(share) as address:
        options = options_of(address)
        files = fsspec.filesystem("s3", **options)
        patiently(lambda: files.call_s3("create_bucket", Bucket=BUCKET))
        for path in sorted(source.iterdir()):
            patiently(lambda path=path: files.put_file(str(path), f"{BUCKET}/in/{path.name}"))
        with (
            distributed.LocalCluster(
                n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=False
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            timer = kill_one(client, kill_after)
            started = time.perf_counter()
            sparsefmt.dask.convert(f"s3://{BUCKET}/in", f"s3://{BUCKET}/out", client, storage_options=options)
            elapsed = time.perf_counter() - started
            timer.cancel()
            was_killed = not timer.is_alive() and elapsed > kill_after
        back = folder / "back"
        back.mkdir()
        files.invalidate_cache()
        for path in patiently(lambda: files.find(f"{BUCKET}/out")):
            patiently(lambda path=path: files.get_file(path, str(back / Path(path).name)))
        requests, failed, _ = counts(address)
    killed = f"a worker was killed after {kill_after:g} s" if was_killed else "no worker was killed: it was too fast"
    click.echo(f"{elapsed:.1f} s; {killed}; {failed:,} of {requests:,} requests failed")
    subprocess.run(
        [sys.executable, "-m", "sparsefmt", "convert", str(source), str(folder / "one"), "--quiet"], check=True
    )
    expect_same(folder / "one", back)


def patiently(call: Any) -> Any:
    for _ in range(20):
        with contextlib.suppress(OSError):
            return call()
    return call()


@click.command(context_settings={"show_default": True})
@click.option("--megabytes", type=int, default=400, help="Size of the checkpoint.")
@click.option("--failing", type=float, default=0.05, help="Share of requests that fail.")
@click.option("--kill-after", type=float, default=5, help="Seconds.")
def main(megabytes: int, failing: float, kill_after: float) -> None:
    """Convert a checkpoint from a store to the store by two worker processes, and compare the bytes."""
    with tempfile.TemporaryDirectory(prefix="bench-dask-") as name:
        folder = Path(name)
        in_store(checkpoint(folder / "in", megabytes), folder, failing, kill_after)


if __name__ == "__main__":
    main()
