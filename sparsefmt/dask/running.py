"""Tasks for the files of a checkpoint: run by a cluster, tried again after what passes, and heard of meanwhile."""

from __future__ import annotations

import errno
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import distributed

import sparsefmt
from sparsefmt.checkpoints.conversion import Progress
from sparsefmt.dask.source_files import SourceFile
from sparsefmt.errors import SparsefmtError, UnsupportedError

_PASSING = (errno.EIO, errno.ETIMEDOUT, errno.ECONNRESET, errno.EAGAIN, None)
"""Errors of the system that another try may not have: those of networks and stores."""

_SECONDS_BETWEEN_NEWS = 0.5


@dataclass(frozen=True)
class OnCluster:
    """Where tasks run, and how patiently.

    Attributes:
        client: of distributed.
        retries: how often a task is tried again after an error of a network or a store.
        progress: told the dense bytes that are done.
    """

    client: Any
    retries: int = 3
    progress: Progress | None = None


class Task(Protocol):
    """What a worker is told of a file."""

    @property
    def source(self) -> SourceFile: ...


AnyTask = TypeVar("AnyTask", bound=Task)
Result = TypeVar("Result")


def run(
    work: Callable[[AnyTask], Result], tasks: Mapping[str, AnyTask], where: OnCluster
) -> Iterator[tuple[AnyTask, Result]]:
    """Have a task done for each of some files. Cancels all others after an error.

    Args:
        work: what a worker does with a task.
        tasks: by their names on the dashboard; the first begin first.

    Returns:
        tasks and their results, as these come in.

    Raises:
        as `work`; OSError if workers die of a task, or the scheduler has given it up.
    """
    if not tasks:
        return
    token = secrets.token_hex(4)
    running: dict[Any, tuple[str, int]] = {}

    def begun(name: str, tries: int) -> Any:
        # another key than any before: what a client that was cut off has begun is not waited for
        key = (f"{work.__name__}-{token}", f"{name}{f' try {tries}' if tries > 1 else ''}")
        future = where.client.submit(work, tasks[name], key=key, pure=False)
        running[future] = name, tries
        return future

    arriving = distributed.as_completed([begun(name, 1) for name in tasks], loop=where.client.loop)
    try:
        for future in arriving:
            name, tries = running.pop(future)
            file = tasks[name].source.called
            try:
                found = future.result()
            except (SparsefmtError, OSError) as error:
                if not _may_pass(error) or tries > where.retries:
                    raise
                arriving.add(begun(name, tries + 1))
            except distributed.KilledWorker as error:
                raise OSError(errno.EIO, f"worker after worker has died of this: {error}", file) from None
            except distributed.CancelledError:
                raise OSError(errno.EIO, "the scheduler has given it up", file) from None
            else:
                yield tasks[name], found
    finally:
        if running:
            where.client.cancel(list(running))


def _may_pass(error: Exception) -> bool:
    if not isinstance(error, OSError) or isinstance(error, (FileNotFoundError, FileExistsError, PermissionError)):
        return False
    return error.errno in _PASSING


def check_version(version: str) -> None:
    """On a worker: refuse a task of a client with another version of sparsefmt.

    Raises:
        UnsupportedError: (`worker-version`).
    """
    if version != sparsefmt.__version__:
        raise UnsupportedError(
            "worker-version",
            f"a worker has sparsefmt {sparsefmt.__version__}, and the client {version}: results could differ",
        )


class News:
    """Adds up how much of each file is done, so that progress counts each byte once.

    Args:
        sizes: dense bytes of each file, by a key.
    """

    def __init__(self, sizes: Mapping[str, int], progress: Progress | None) -> None:
        self._sizes, self._progress = sizes, progress
        self._told = dict.fromkeys(sizes, 0)

    def finished(self, key: str) -> None:
        self._tell(key, self._sizes[key])

    def _tell(self, key: str, done: int) -> None:
        done = min(done, self._sizes[key])
        more, self._told[key] = done - self._told[key], max(done, self._told[key])
        if self._progress is not None and more > 0:
            self._progress(more)

    @contextmanager
    def heard(self, client: Any) -> Iterator[str]:
        """A topic on which workers tell what is done; "" if nobody wants to know."""
        if self._progress is None:
            yield ""
            return
        topic = f"sparsefmt-{secrets.token_hex(8)}"

        def hear(event: tuple[float, Mapping[str, Any]]) -> None:
            _, said = event
            self._tell(said["file"], said["done"])

        client.subscribe_topic(topic, hear)
        try:
            yield topic
        finally:
            client.unsubscribe_topic(topic)


def teller(topic: str, key: str) -> Progress | None:
    """On a worker: a function that tells the client how much of a file is done, not too often."""
    if not topic:
        return None
    try:
        worker = distributed.get_worker()
    except ValueError:  # called without a cluster
        return None
    done, last = 0, time.monotonic()

    def tell(nbytes: int) -> None:
        nonlocal done, last
        done += nbytes
        if time.monotonic() - last > _SECONDS_BETWEEN_NEWS:
            last = time.monotonic()
            worker.log_event(topic, {"file": key, "done": done})

    return tell
