"""`sparsefmt view`: a file in the browser. The page is docs/viewer/, which reads the file with spec/js/."""

from __future__ import annotations

import hmac
import html
import mimetypes
import os
import re
import secrets
import threading
import webbrowser
from contextlib import closing
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import click

from sparsefmt.checkpoints.contract import expect_regular_file
from sparsefmt.cli import options
from sparsefmt.cli.failures import Failure, printable
from sparsefmt.container.remote_path import Place, reading
from sparsefmt.container.sources import Source
from sparsefmt.errors import SparsefmtError

HOST = "127.0.0.1"
FOLDERS = ("docs/viewer", "spec/js")
SUFFIXES = (".html", ".js", ".css")
BLOCK = 1 << 20
NO_REQUESTS = "connect-src 'none'"
"""What the page as it stands in the repository forbids itself. Served with a file, it may ask this server for that."""


@click.command(
    short_help="Show a file in the browser: its tensors and their patterns.",
    epilog="""\b
Examples:
  sparsefmt view model.sparsefmt
  sparsefmt view model.sparsefmt --no-browser --port 8800
  sparsefmt view s3://bucket/model.sparsefmt

\b
The file is served on the loopback address alone, under a path that nobody can guess, as long as the command runs.
On another machine: ssh -L 8800:127.0.0.1:8800 HOST, and open the printed address here.
""",
)
@click.argument("path", type=options.PATH, metavar="FILE")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="The port to use.  [default: any that is free]")
@click.option("--no-browser", is_flag=True, help="Print the address, and open no browser.")
@options.storage
def command(path: Place, port: int, no_browser: bool) -> None:
    """Show a .sparsefmt file in the browser, until Ctrl-C."""
    with closing(_opened(path)) as file, Server(file, path.name, port) as server:
        try:
            click.echo(f"{printable(str(path))}: {server.address}")
            click.echo("Ctrl-C stops it")
            if not no_browser:
                threading.Thread(target=webbrowser.open, args=(server.address,), daemon=True).start()
            server.serve_forever()
        except KeyboardInterrupt:
            click.echo()


def _opened(path: Place) -> Source:
    expect_regular_file(path)
    return reading(path)


class Server(ThreadingHTTPServer):
    """Serves the page and one file on the loopback address, below a path that is made anew each time.

    Raises:
        Failure: the page is not installed.
        OSError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, file: Source, name: str, port: int = 0) -> None:
        self.token = secrets.token_urlsafe(24)
        self.file = file
        self.size = file.size
        self.pages = _pages(name, self.size)
        super().__init__((HOST, port), _Handler)
        self.port = self.server_address[1]
        self.hosts = (f"{HOST}:{self.port}", f"localhost:{self.port}")
        self.address = f"http://{HOST}:{self.port}/{self.token}/docs/viewer/"

    def read(self, start: int, size: int) -> bytes:
        """Bytes of the file; none if it has become shorter, or cannot be read any more."""
        try:
            return self.file.read(start, size).tobytes()
        except (OSError, SparsefmtError):
            return b""


def _pages(name: str, size: int) -> dict[str, bytes]:
    """What is served, by path: the files of the page. The page itself says which file there is beside it."""
    inside = Path(__file__).parent / "page"
    root = inside if inside.exists() else Path(__file__).parents[2]
    pages = {
        f"{folder}/{file.name}": file.read_bytes()
        for folder in FOLDERS
        for file in (root / folder).glob("*")
        if file.suffix in SUFFIXES
    }
    start = "docs/viewer/index.html"
    if start not in pages:
        raise Failure("the page is not installed: install sparsefmt anew", 2)
    page = pages[start].decode().replace(NO_REQUESTS, "connect-src 'self'")
    shown = html.escape("".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in name))
    beside = f'<meta name="sparsefmt-file" content="../../file" data-name="{shown}" data-size="{size}">\n</head>'
    pages["docs/viewer/"] = page.replace("</head>", beside).encode()
    return pages


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        path = self._wanted()
        if path == "file":
            self._send_file()
        elif path is not None and path in self.server.pages:
            kind = mimetypes.types_map.get(os.path.splitext(path)[1], "text/html")
            kind = "text/javascript" if path.endswith(".js") else kind
            self._send(HTTPStatus.OK, self.server.pages[path], {"Content-Type": f"{kind}; charset=utf-8"})
        else:
            self._send(HTTPStatus.NOT_FOUND)

    def _wanted(self) -> str | None:
        """The path below the token; None for who does not know that, or came by another name of this machine.

        A page of elsewhere can have its name lead here (DNS rebinding): Host then has that name.
        """
        token, _, path = self.path.removeprefix("/").partition("/")
        known = hmac.compare_digest(token.encode(), self.server.token.encode())
        return path if known and self.headers.get("Host") in self.server.hosts else None

    def _send_file(self) -> None:
        size = self.server.size
        found = re.fullmatch(r"bytes=(\d{1,19})-(\d{1,19})", self.headers.get("Range", ""))
        start, end = (int(found[1]), int(found[2]) + 1) if found else (0, 0)
        if not start < end <= size:
            self._send(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, more={"Content-Range": f"bytes */{size}"})
            return
        self.send_response(HTTPStatus.PARTIAL_CONTENT)
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self._end_headers(end - start, {"Content-Type": "application/octet-stream"})
        while start < end:
            block = self.server.read(start, min(BLOCK, end - start))
            if not block:  # the file has become shorter: the answer stays incomplete, which the browser reports
                self.close_connection = True
                return
            self.wfile.write(block)
            start += len(block)

    def _send(self, status: HTTPStatus, body: bytes = b"", more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self._end_headers(len(body), more or {})
        self.wfile.write(body)

    def _end_headers(self, size: int, more: dict[str, str]) -> None:
        headers = {
            "Content-Length": str(size),
            "Cache-Control": "no-store",
            "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; worker-src 'self';"
            " img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }
        for name, value in {**headers, **more}.items():
            self.send_header(name, value)
        self.end_headers()

    def version_string(self) -> str:
        return "sparsefmt"

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged: the path is a secret."""
