"""Which cluster does the work: one that is there, or one of this machine that ends with the work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import distributed
from distributed.comm.addressing import parse_address
from distributed.comm.registry import get_backend

from sparsefmt.threads import num_threads

LOCAL = "local"
"""In place of an address: a cluster of this machine."""

_SECONDS_TO_CONNECT = 20


@contextmanager
def client_of(given: Any, most_workers: int) -> Iterator[Any]:
    """A client of distributed, to be used in the block.

    Args:
        given: a client; the address of a scheduler, such as "tcp://host:8786"; "local" for worker processes on this
            machine, one thread each, which end with the block; None for the present client, and where there is none,
            as "local".
        most_workers: how many workers of "local" would have work.

    Raises:
        OSError: no scheduler answers at the address.
        ValueError: an address of another kind.
        TypeError: it is none of these.
    """
    if given is None:
        try:
            given = distributed.default_client()
        except ValueError:
            given = LOCAL
    if isinstance(given, str) and given != LOCAL:
        # a client that is made for an address of no kind takes long to go away again
        get_backend(parse_address(given)[0])
        with distributed.Client(given, timeout=_SECONDS_TO_CONNECT, set_as_default=False) as client:
            yield client
    elif isinstance(given, str):
        workers = max(min(num_threads(None), most_workers), 1)
        own = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
        with (
            distributed.LocalCluster(**own, silence_logs="ERROR") as cluster,
            distributed.Client(cluster, set_as_default=False) as client,
        ):
            yield client
    elif isinstance(given, distributed.Client):
        yield given
    else:
        raise TypeError(f"a client of distributed or an address is needed, not {type(given).__name__}")
