"""An S3 on loopback, in a process of its own: it counts, and lets a share of requests fail."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import fsspec

SERVER = """
import random, sys
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
share, rng = float(sys.argv[1]), random.Random(0)
store = DomainDispatcherApplication(create_backend_app)
counts = {"requests": 0, "failed": 0, "sent": 0}
def application(environ, start_response):
    if environ["PATH_INFO"] == "/counts":
        start_response("200 OK", [])
        return [" ".join(map(str, counts.values())).encode()]
    counts["requests"] += 1
    if environ["REQUEST_METHOD"] in ("GET", "PUT", "POST", "HEAD") and rng.random() < share:
        counts["failed"] += 1
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response("503 Slow Down", [("Content-Type", "application/xml")])
        return [b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"]
    answer = list(store(environ, start_response))
    counts["sent"] += sum(map(len, answer)) if environ["REQUEST_METHOD"] != "HEAD" else 0
    return answer
server = make_server("127.0.0.1", 0, application, threaded=True)
print(server.server_port, flush=True)
server.serve_forever()
"""


class Counts(NamedTuple):
    """What a store has done: requests, those of them that failed on purpose, and bytes sent."""

    requests: int
    failed: int
    sent: int

    def since(self, before: Counts) -> Counts:
        return Counts(*(now - then for now, then in zip(self, before, strict=True)))


@contextlib.contextmanager
def store(share: float) -> Iterator[str]:
    """The address of a store of which a share of requests fails."""
    environment = os.environ | {"AWS_ACCESS_KEY_ID": "somekey", "AWS_SECRET_ACCESS_KEY": "opensesame"}
    command = [sys.executable, "-c", SERVER, str(share)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


def options_of(address: str) -> dict[str, Any]:
    return {"key": "somekey", "secret": "opensesame", "client_kwargs": {"endpoint_url": address}}


def counts(address: str) -> Counts:
    """What a store has done so far."""
    return Counts(*map(int, fsspec.filesystem("http", use_listings_cache=False).cat_file(f"{address}/counts").split()))
