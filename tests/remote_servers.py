"""Servers on loopback: one for files over HTTP, in ways that servers have, and an S3."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


class FileHandler(BaseHTTPRequestHandler):
    """Serves files: with ranges, or in ways that servers should not.

    Attributes:
        files: content by path.
        way: "ranges", "whole" (knows no ranges), "short" (sends less than it says), "forbidden", "broken", or the URL
            of another server that all is redirected to.
        sent: sizes of the answers.
        headers_seen: of each request.
    """

    files: dict[str, bytes] = {}  # noqa: RUF012
    way = "ranges"
    sent: list[int] = []  # noqa: RUF012
    headers_seen: list[dict[str, str]] = []  # noqa: RUF012
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        self.headers_seen.append(dict(self.headers))
        path = self.path.split("?")[0]
        status = {"forbidden": 403, "broken": 500}.get(self.way, 200 if path in self.files else 404)
        if "://" in self.way:
            status = 302
        whole = self.files.get(path, b"")
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        data = whole if status == 200 else b"no"
        if found and status == 200 and self.way != "whole":
            begin, end = int(found[1]), int(found[2]) + 1
            data, status = whole[begin:end], 206
            if self.way == "short" and begin:
                data = data[: len(data) // 2]
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if status == 302:
            self.send_header("Location", self.way + self.path)
        if self.way != "whole":
            self.send_header("Accept-Ranges", "bytes")
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(whole)}")
        self.end_headers()
        if body:
            self.sent.append(len(data))
            self.wfile.write(data)

    def log_message(self, *arguments):
        pass


class _Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """Clients hang up once they have what they want. What is said of that would be on stderr of some command."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[tuple[str, type[FileHandler]]]:
    """The URL of a server of files, without a slash, and how it behaves."""
    pytest.importorskip("aiohttp", reason="fsspec needs it for https://")
    own = type("Own", (FileHandler,), {"files": files, "sent": [], "headers_seen": []})
    with _Server(("127.0.0.1", 0), own) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", own
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def s3_bucket() -> Iterator[dict[str, Any]]:
    """What reaches s3://bucket of an S3."""
    import fsspec

    pytest.importorskip("s3fs", reason="s3:// needs s3fs")
    server = pytest.importorskip("moto.server", reason="an S3 to test with: pip install 'moto[server]'")
    s3 = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    s3.start()
    host, port = s3.get_host_and_port()
    options = {"key": "somekey", "secret": "opensesame", "client_kwargs": {"endpoint_url": f"http://{host}:{port}"}}
    fsspec.filesystem("s3", **options).call_s3("create_bucket", Bucket="bucket")
    try:
        yield options
    finally:
        s3.stop()
