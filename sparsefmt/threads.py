"""The thread pool that loading, saving and products share.

Jitted code and codecs release the GIL, so plain threads are enough. numba's own threading layers are not used, since
one of them aborts the process on concurrent calls. A worker that asks for parallel work does that work itself, so that
pools never nest. A forked child starts with a fresh pool. If no thread can be started, because the system has no more
or the interpreter is about to end, the calling thread does all the work.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

ENVIRONMENT_VARIABLE = "SPARSEFMT_NUM_THREADS"

_lock = threading.Lock()
_worker = threading.local()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_num_threads: int | None = None


def set_num_threads(threads: int) -> None:
    """Set how many threads are used where no `threads` argument says otherwise. Raises ValueError if it is below 1."""
    global _num_threads
    _num_threads = _at_least_one(threads, "threads")


def num_threads(threads: int | None = None) -> int:
    """`threads` if given, else the number of `set_num_threads` or SPARSEFMT_NUM_THREADS, else the usable cores."""
    if threads is not None:
        return _at_least_one(threads, "threads")
    if _num_threads is not None:
        return _num_threads
    setting = os.environ.get(ENVIRONMENT_VARIABLE)
    if setting:
        return _at_least_one(setting, ENVIRONMENT_VARIABLE)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def expect_count(threads: int | None) -> None:
    """Raise ValueError if this is not a number of threads. None stands for the default."""
    if threads is not None:
        _at_least_one(threads, "threads")


def in_order(work: Callable[[Item], Result], items: Iterable[Item], threads: int | None = None) -> Iterator[Result]:
    """Results of `work` for each item, in order. A few items are worked on at once, so that results do not pile up."""
    count = num_threads(threads)
    alone = isinstance(items, Sized) and len(items) <= 1
    if alone or count == 1 or getattr(_worker, "busy", False):
        yield from map(work, items)
        return
    pool = _get_pool(count)
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(_submit(pool, work, item))
            if len(pending) > count:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


AT_ONCE = 1 << 20
"""Bytes of small items that a thread is handed together."""


def in_batches(
    work: Callable[[Item], Result], items: Iterable[Item], size_of: Callable[[Item], int], threads: int | None = None
) -> Iterator[Result]:
    """Like `in_order`, for items of which many may be small: handing each to a thread would take longer than its work.

    Args:
        size_of: bytes of an item. Consecutive ones are handed to a thread together until they come to AT_ONCE.
    """
    if num_threads(threads) == 1 or is_worker():
        yield from map(work, items)
        return
    for results in in_order(lambda batch: [work(item) for item in batch], _batches(items, size_of), threads):
        yield from results


def _batches(items: Iterable[Item], size_of: Callable[[Item], int]) -> Iterator[list[Item]]:
    batch: list[Item] = []
    size = 0
    for item in items:
        batch.append(item)
        size += size_of(item)
        if size >= AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def share(work: Callable[[int], None], count: int, threads: int) -> None:
    """Call `work` with 0 to `count - 1`, each once, on this thread and up to `threads - 1` others.

    A thread that is free takes the next number. This thread starts at once, and does not wait for others that have not
    started, so that a busy pool does not delay it.
    """
    numbers = iter(range(count))

    def take() -> None:
        # next() of a range's iterator is one step under the GIL
        for number in numbers:
            work(number)

    helpers = min(threads, count) - 1
    if helpers < 1 or getattr(_worker, "busy", False):
        take()
        return
    pool = _get_pool(threads)
    futures = []
    with suppress(RuntimeError):  # no thread can be started
        for _ in range(helpers):
            futures.append(pool.submit(_marked_take, take))
    try:
        take()
    finally:
        started = [future for future in futures if not future.cancel()]
        for future in started:
            future.exception()
    for future in started:
        future.result()


def is_worker() -> bool:
    """Whether this thread is one of the pool's, at work: what it calls has no threads of its own."""
    return getattr(_worker, "busy", False)


def _submit(pool: ThreadPoolExecutor, work: Callable[[Item], Result], item: Item) -> Future[Result]:
    with suppress(RuntimeError):
        return pool.submit(_marked, work, item)
    # no thread can be started; a running thread may do the same work once more, which does no harm
    done: Future[Result] = Future()
    done.set_result(_marked(work, item))
    return done


def _marked_take(take: Callable[[], None]) -> None:
    _marked(lambda _: take(), None)


def _marked(work: Callable[[Item], Result], item: Item) -> Result:
    _worker.busy = True
    try:
        return work(item)
    finally:
        _worker.busy = False


def _get_pool(size: int) -> ThreadPoolExecutor:
    """The shared pool, grown to `size` workers. Callers that hold the smaller one finish on it."""
    global _pool, _pool_size
    with _lock:
        if _pool is None or _pool_size < size:
            _pool = ThreadPoolExecutor(size, thread_name_prefix="sparsefmt")
            _pool_size = size
        return _pool


def _forget_pool() -> None:
    """In a forked child the pool's threads do not exist, and the lock may be held by one of them."""
    global _lock, _pool, _pool_size
    _lock = threading.Lock()
    _pool, _pool_size = None, 0
    _worker.busy = False


def _at_least_one(threads: int | str, what: str) -> int:
    try:
        count = int(threads)
    except ValueError:
        raise ValueError(f"{what} must be a whole number, not {threads!r}") from None
    if count < 1:
        raise ValueError(f"{what} must be 1 or more, not {count}")
    return count


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
