"""`sparsefmt view`: what its server gives to whom. That browsers show it is in test_viewer_page.py."""

from __future__ import annotations

import contextlib
import functools
import http.client
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, fail

import sparsefmt
from sparsefmt.cli.view import FOLDERS, HOST, NO_REQUESTS, Server
from sparsefmt.container.remote_path import place_of, reading


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a model.sparsefmt"
    sparsefmt.save_file({"w": np.eye(64, dtype=np.float32)}, path)
    return path


@pytest.fixture
def server(path: Path) -> Iterator[Server]:
    with closing(reading(path)) as file, Server(file, path.name) as started:
        thread = threading.Thread(target=started.serve_forever)
        thread.start()
        yield started
        started.shutdown()
        thread.join()


def ask(server: Server, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(HOST, server.port, timeout=10)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


def test_the_file_in_ranges(server, path):
    data = path.read_bytes()
    for start, end in ((0, 16), (len(data) - 20, len(data)), (0, len(data)), (7, 8)):
        status, headers, body = ask(server, f"/{server.token}/file", Range=f"bytes={start}-{end - 1}")
        assert status == 206
        assert body == data[start:end]
        assert headers["Content-Range"] == f"bytes {start}-{end - 1}/{len(data)}"
        assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "asked",
    ["", "bytes=0-", "bytes=-5", "bytes=5-4", "bytes=0-99999999", "bytes=0-1,3-4", "bytes=0-" + "9" * 30, "lines=0-1"],
)
def test_other_ranges(server, asked):
    status, headers, body = ask(server, f"/{server.token}/file", Range=asked)
    assert (status, body) == (416, b"")
    assert headers["Content-Range"] == f"bytes */{server.size}"


def test_the_page_says_which_file_is_beside_it(server, path):
    status, headers, body = ask(server, f"/{server.token}/docs/viewer/")
    page = body.decode()
    assert status == 200
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert f'content="../../file" data-name="a model.sparsefmt" data-size="{path.stat().st_size}"' in page
    assert NO_REQUESTS not in page
    assert "connect-src 'self'" in page
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


def test_all_files_of_the_page(server):
    """Each module that one of them imports is there, as JavaScript."""
    seen, left = set(), {"docs/viewer/main.js", "docs/viewer/worker.js"}
    while left:
        name = left.pop()
        seen.add(name)
        status, headers, body = ask(server, f"/{server.token}/{name}")
        assert status == 200, name
        assert headers["Content-Type"] == "text/javascript; charset=utf-8"
        for imported in re.findall(
            r'^\s*(?:import|\} from|import .* from) "(.*?)";|from "(\..*?)";', body.decode(), re.M
        ):
            module = (ROOT / name).parent / (imported[0] or imported[1])
            left |= {module.resolve().relative_to(ROOT).as_posix()} - seen
    assert len(seen) > 12
    assert ask(server, f"/{server.token}/docs/viewer/viewer.css")[1]["Content-Type"] == "text/css; charset=utf-8"


def test_nothing_else(server, path):
    token = server.token
    wrong = token[:-1] + ("y" if token.endswith("x") else "x")
    others = [
        "/",
        "/file",
        "/docs/viewer/",
        f"/{token}",
        f"/{token}/",
        f"/{wrong}/file",
        "/x/../file",
    ]
    others += [
        f"/{token}/{name}"
        for name in ("docs/viewer/../../pyproject.toml", "spec/SPEC.md", "model.sparsefmt", "spec/js/package.json")
    ]
    others += [f"/{token}/docs/viewer/%2e%2e/%2e%2e/README.md", f"/{token}/{path.parent}"]
    for other in others:
        assert ask(server, other, Range="bytes=0-3")[0] == 404, other
    assert ask(server, f"/{token}/file", "POST", Range="bytes=0-3")[0] == 501


def test_under_other_names(server):
    """A page of elsewhere whose name was made to lead here learns nothing, even with the path."""
    for host in ("example.com", f"example.com:{server.port}", HOST, "", f"{HOST}:{server.port}.example.com"):
        assert ask(server, f"/{server.token}/docs/viewer/", Host=host)[0] == 404
    assert ask(server, f"/{server.token}/docs/viewer/", Host=f"localhost:{server.port}")[0] == 200


def test_the_address_is_new_each_time_and_of_this_machine(path):
    with closing(reading(path)) as file, Server(file, path.name) as one, Server(file, path.name) as other:
        assert one.token != other.token
        assert len(one.token) >= 32
        assert one.server_address[0] == "127.0.0.1"


def test_names_are_text(path):
    with closing(reading(path)) as file, Server(file, 'a"><script>alert(1)</script>\u202e.sparsefmt') as server:
        page = server.pages["docs/viewer/"].decode()
    assert "<script>alert" not in page
    assert "\u202e" not in page
    assert 'data-name="a&quot;&gt;&lt;script&gt;alert(1)&lt;/script&gt;\ufffd.sparsefmt"' in page


def test_a_file_behind_a_url(path):
    files = pytest.importorskip("fsspec").filesystem("memory")
    files.pipe_file("/view/a model.sparsefmt", path.read_bytes())
    place = place_of("memory://view/a model.sparsefmt")
    with closing(reading(place)) as file, Server(file, place.name) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        status, _, body = ask(server, f"/{server.token}/file", Range="bytes=1-3")
        server.shutdown()
    files.store.clear()
    assert (status, body) == (206, b"SPF")


def test_a_file_that_becomes_shorter(server, path):
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(10)
    with pytest.raises(http.client.IncompleteRead):
        ask(server, f"/{server.token}/file", Range=f"bytes=0-{size - 1}")


@pytest.mark.slow
def test_the_command(path):
    """It prints the address, serves, and ends with Ctrl-C."""
    command = [sys.executable, "-m", "sparsefmt", "view", str(path), "--no-browser"]
    # shells let what they start in the background ignore Ctrl-C, and so would all below it
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, preexec_fn=heed, **pipes) as process, contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        assert process.stdout is not None
        found = re.fullmatch(
            r".*a model\.sparsefmt: http://127\.0\.0\.1:(\d+)(/[\w-]{32,}/)docs/viewer/\n", process.stdout.readline()
        )
        assert found
        assert process.stdout.readline() == "Ctrl-C stops it\n"
        connection = http.client.HTTPConnection(HOST, int(found[1]), timeout=10)
        connection.request("GET", f"{found[2]}file", headers={"Range": "bytes=1-3"})
        assert connection.getresponse().read() == b"SPF"
        connection.close()
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=30)
    assert (process.returncode, printed, errors) == (0, "\n", "")


def test_what_cannot_be_shown(tmp_path, path):
    assert "No such file" in fail(2, "view", tmp_path / "none.sparsefmt", "--no-browser")
    assert "is a folder" in fail(2, "view", tmp_path, "--no-browser")
    with socket.create_server((HOST, 0)) as taken:
        assert "in use" in fail(2, "view", path, "--no-browser", "--port", taken.getsockname()[1])


def test_the_page_forbids_itself_all_requests():
    """As it stands in the repository. Its modules ask for nothing, but for the one that reads what is served."""
    page = (ROOT / "docs" / "viewer" / "index.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', page)[1]
    assert policy.startswith("default-src 'none';")
    assert NO_REQUESTS in policy
    assert "unsafe" not in policy
    asking = {
        file.name
        for folder in FOLDERS
        for file in (ROOT / folder).glob("*.js")
        if re.search(
            r"\bfetch\(|XMLHttpRequest|WebSocket|sendBeacon|EventSource|innerHTML|insertAdjacentHTML|eval\(",
            file.read_text(),
        )
    }
    assert asking == {"http_source.js"}
    assert not re.search(r"https?://", page)
