"""docs/viewer/ in a browser: Debian's chromium, without a window. Screenshots are left in folders of `tmp_path`."""

from __future__ import annotations

import functools
import http.server
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
import pytest
from helpers import ROOT

import sparsefmt
from sparsefmt.cli.view import Server
from sparsefmt.container.remote_path import reading
from tools.taken_apart import places, split

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no chromium")]

expect: Any = playwright.expect
expect.set_options(timeout=60_000)
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 780}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    # the sandbox of chromium is not for root, as whom containers run
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield started
        started.close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The page as any server of files serves it."""
    handler = functools.partial(_Quiet, directory=str(ROOT))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/docs/viewer/"
        server.shutdown()


class Page:
    """A page, and what it said and asked for behind the scenes."""

    def __init__(self, browser: Any, size: dict[str, int] = DESKTOP, scheme: str = "light") -> None:
        self.context = browser.new_context(viewport=size, color_scheme=scheme)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.set_default_timeout(60_000)
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(f"dialog {dialog.message}"))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def open(self, address: str, path: Path | None = None) -> Any:
        self.page.goto(address)
        if path is not None:
            expect(self.page.locator("#choose")).to_be_visible()
            self.page.set_input_files("#file", path)
        return self.page

    def close(self) -> None:
        self.context.close()
        assert self.said == []


@pytest.fixture
def opened(browser) -> Iterator[Page]:
    page = Page(browser)
    yield page
    page.close()


def rows(page: Any) -> Any:
    return page.locator("tr[aria-rowindex]")


def names(page: Any) -> list[str]:
    return [name.replace("\n", "") for name in page.locator("td.name").all_inner_texts()]


def values(page: Any) -> list[list[str]]:
    """The values that are shown, with the numbers of rows and columns."""
    lines = page.locator("table.values tr").all()
    return [line.locator("th, td").all_inner_texts() for line in lines]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    rng = np.random.default_rng(4)
    pruned = rng.standard_normal((300, 200)).astype(np.float32)
    pruned[np.abs(pruned) < 1.2] = 0
    tensors = {
        "layers.10.weight": np.where(rng.random((64, 96)) < 0.3, 1.5, -0.0).astype(ml_dtypes.bfloat16),
        "layers.2.weight": pruned,
        "layers.2.bias": np.array([0, -0.0, np.nan, np.inf, -np.inf, 0.5], np.float64),
        "numbers": np.arange(-3, 3, dtype=np.int64).reshape(2, 3),
        "complex": np.array([[1 + 2j, -3.5 - 4j]], np.complex64),
        "scalar": np.float32(3),
        "empty": np.zeros((0, 7), np.float32),
        "experts": np.where(rng.random((4, 48, 64)) < 0.2, 2, 0).astype(np.float16),
        "tied": pruned.copy(),
    }
    path = tmp_path_factory.mktemp("model") / "model.sparsefmt"
    sparsefmt.save_file(tensors, path, metadata={"made by": "a test"}, row_dims={"experts": 2})
    return path, tensors


def test_a_file_is_dropped(opened, address, model, tmp_path):
    """Its tensors are in the table. From then on, the page asks for nothing."""
    path, tensors = model
    page = opened.open(address)
    expect(page.locator("#choose")).to_be_visible()
    page.screenshot(path=tmp_path / "start.png")
    before = len(opened.asked)
    dropped = page.evaluate_handle(
        """bytes => { const data = new DataTransfer();
                      data.items.add(new File([new Uint8Array(bytes)], "dropped.sparsefmt")); return data; }""",
        list(path.read_bytes()),
    )
    page.dispatch_event("main", "drop", {"dataTransfer": dropped})
    expect(rows(page)).to_have_count(len(tensors))
    # the numbers in names are in order, once all of them are there
    in_order = sorted(tensors, key=lambda name: [part.zfill(3) for part in name.split(".")])
    for _ in range(600):
        if names(page) == in_order:
            break
        page.wait_for_timeout(100)
    assert names(page) == in_order
    expect(page.locator("#file-name")).to_have_text("dropped.sparsefmt")
    expect(page.locator("#totals")).to_contain_text(f"{len(tensors)}")
    expect(page.locator("#metadata summary")).to_have_text("Metadata, 1 text")
    expect(page.locator("tr", has_text="tied")).to_contain_text("a copy of layers.2.weight")
    expect(page.locator("tr", has_text="experts")).to_contain_text("4 \u00d7 (48 \u00d7 64)")
    # the index says how many zeros sparse tensors have; of dense ones it is known once they are read
    zeros = np.count_nonzero(tensors["layers.2.weight"] == 0) / tensors["layers.2.weight"].size
    expect(page.locator("tr", has_text="layers.2.weight").first).to_contain_text(f"{100 * zeros:.1f} %")
    expect(page.locator("tr", has_text="layers.2.bias")).to_contain_text("33.3 %")
    expect(page.locator("canvas.read")).to_have_count(len(tensors) - 2)
    page.screenshot(path=tmp_path / "table.png")
    # the worker and the modules of the reader, from where the page is
    assert all(re.search(r"/(docs/viewer|spec/js)/\w+\.js$", url) for url in opened.asked[before:])


def test_values_under_the_pointer(opened, address, model, tmp_path):
    path, tensors = model
    page = opened.open(address, path)
    page.locator("tr", has_text="layers.2.weight").first.click()
    canvas = page.locator("canvas.cells")
    expect(page.locator("#cell")).to_contain_text("Rows 0\u20132, columns 0\u20131")
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.25)
    expect(page.locator("#cell")).to_contain_text("Rows 75\u201377, columns 100\u2013101")
    within = tensors["layers.2.weight"][75:78, 100:102]
    expect(page.locator("#cell")).to_contain_text(
        f"{100 * np.mean(within == 0):.1f} %".replace("100.0", "100").replace("0.0 ", "0 ")
    )
    expect(page.locator("table.values th[scope=row]").first).to_have_text("75")
    shown = values(page)
    assert shown[0][1:] == [str(column) for column in range(100, 105)]
    for line, row in zip(shown[1:], range(75, 81), strict=True):
        assert line[0] == str(row)
        found = np.array(line[1:], np.float64)
        assert np.allclose(found, tensors["layers.2.weight"][row, 100:105], rtol=0.006)
        assert ((found == 0) == (tensors["layers.2.weight"][row, 100:105] == 0)).all()
    page.screenshot(path=tmp_path / "panel.png")
    for name, expected in {
        "layers.2.bias": ["0", "-0", "NaN", "Inf", "-Inf", "0.500"],
        "numbers": ["-3", "-2", "-1", "0", "1", "2"],
        "complex": ["1+2i", "-3.50-4i"],
        "scalar": ["3"],
    }.items():
        page.locator("tr", has_text=name).click()
        expect(page.locator("#panel h2")).to_have_text(name)
        expect(page.locator("table.values td:not(:empty)")).to_have_text(expected)
    page.locator("tr", has_text="experts").click()
    page.locator("canvas.cells").hover(
        position={"x": 3, "y": page.locator("canvas.cells").bounding_box()["height"] * 0.3}
    )
    expect(page.locator("#cell")).to_contain_text("Matrix 1, row")
    page.locator("tr", has_text="empty").click()
    expect(page.locator("#panel")).to_contain_text("It has no elements.")


def test_search_sort_and_keys(opened, address, model):
    """All of it without a mouse."""
    path, tensors = model
    page = opened.open(address, path)
    expect(rows(page)).to_have_count(len(tensors))
    page.keyboard.press("/")
    page.keyboard.type("WEIGHT bf16")
    expect(rows(page)).to_have_count(1)
    expect(page.locator("#count")).to_have_text(f"1 of {len(tensors)}")
    page.locator("#search").fill("no such tensor")
    expect(page.locator("td.none")).to_have_text("No tensor matches.")
    page.locator("#search").fill("")
    expect(rows(page)).to_have_count(len(tensors))
    page.locator("th.bytes button").focus()
    page.keyboard.press("Enter")
    expect(page.locator("th.bytes")).to_have_attribute("aria-sort", "descending")
    assert names(page)[0] in ("layers.2.weight", "tied")
    page.keyboard.press("Enter")
    expect(page.locator("th.bytes")).to_have_attribute("aria-sort", "ascending")
    assert names(page)[0] == "empty"
    page.locator("th.name button").click()
    page.locator("#scroll").focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowUp")
    expect(page.locator("tr.current")).to_contain_text("scalar")
    page.keyboard.press("Home")
    for _ in range(names(page).index("layers.10.weight")):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("#panel h2")).to_have_text("layers.10.weight")
    expect(page.locator("#cell")).to_have_text("Row 0, column 0")
    page.locator("canvas.cells").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#cell")).to_have_text("Row 1, column 2")
    page.keyboard.press("Escape")
    expect(page.locator("#panel")).to_be_hidden()
    expect(page.locator("#scroll")).to_be_focused()


def test_names_are_text(opened, address, tmp_path):
    hostile = {
        "<img src=x onerror=alert(1)>": "<img src=x onerror=alert(1)>",
        "a\u202eevil": "a\\u{202e}evil",
        "line\nbreak\x1b[31m": "line\\u{a}break\\u{1b}[31m",
        "__proto__": "__proto__",
        "\ufeffmark": "\\u{feff}mark",
        "x" * 1024: "x" * 1024,
        "\u0627\u0644": "\u0627\u0644",
    }
    path = tmp_path / "hostile.sparsefmt"
    metadata = {"<script>alert(2)</script>": "<b>bold\u202e" + "m" * 100_000}
    sparsefmt.save_file({name: np.ones((2, 2), np.float32) for name in hostile}, path, metadata=metadata)
    page = opened.open(address, path)
    expect(rows(page)).to_have_count(len(hostile))
    assert set(names(page)) == set(hostile.values())
    for name in hostile.values():
        page.locator("td.name").get_by_text(name, exact=True).click()
        expect(page.locator("#panel h2")).to_have_text(name)
    page.locator("#metadata summary").click()
    expect(page.locator("#metadata dd")).to_contain_text("<b>bold\\u{202e}mmm")
    assert page.locator("img, script:not([src]), #loaded b").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.screenshot(path=tmp_path / "hostile.png")


def test_files_that_cannot_be_read(opened, address, model, tmp_path):
    """What is wrong stands in the page, and the next file can be opened."""
    path, tensors = model
    bad = ROOT / "spec" / "vectors" / "bad"
    cut = tmp_path / "cut.sparsefmt"
    cut.write_bytes(path.read_bytes()[:-1000])
    nothing = tmp_path / "nothing.sparsefmt"
    nothing.touch()
    page = opened.open(address)
    codes = {cut: "trailer-missing", nothing: "not-sparsefmt"}
    codes |= {next((bad / code).iterdir()): code for code in ("index-checksum", "index-malformed", "chunk-gap", "nnz")}
    for file, code in codes.items():
        page.set_input_files("#file", file)
        expect(page.locator("#problem, #panel .trouble, tr:has(canvas.failed)").first).to_be_visible()
        if page.locator("#problem").is_visible():
            expect(page.locator("#problem")).to_contain_text(code)
    page.screenshot(path=tmp_path / "problem.png")
    page.set_input_files("#file", path)
    expect(rows(page)).to_have_count(len(tensors))


def test_a_damaged_tensor_beside_others(opened, address, model, tmp_path):
    path, _ = model
    damaged = tmp_path / "damaged.sparsefmt"
    data = bytearray(path.read_bytes())
    _, index = split(path.read_bytes())
    start, stored, _ = max(places(msgpack.unpackb(index)[0]), key=lambda place: place[1])
    data[start + stored // 2] ^= 1
    damaged.write_bytes(data)
    page = opened.open(address)
    page.set_input_files("#file", damaged)
    expect(page.locator("canvas.failed").first).to_be_visible()
    page.locator("tr", has=page.locator("canvas.failed")).first.click()
    expect(page.locator(".trouble")).to_contain_text("chunk-checksum")
    page.screenshot(path=tmp_path / "damaged.png")
    page.locator("tr", has_text="numbers").click()
    expect(page.locator("table.values td:not(:empty)").first).to_have_text("-3")


def test_served_by_the_command(opened, model, tmp_path):
    """The index is read first, and then what is looked at: never the whole file at once."""
    tensors = {**model[1], "large": np.zeros((3000, 3000), np.float16)}
    tensors |= {f"other.{i}": np.random.default_rng(i).standard_normal((100, 100)) for i in range(4)}
    path = tmp_path / "model.sparsefmt"
    sparsefmt.save_file(tensors, path)
    reads: list[tuple[int, int]] = []
    with closing(reading(path)) as file, Server(file, path.name) as server:
        read = server.read
        server.read = lambda start, size: (reads.append((start, size)), read(start, size))[1]  # type: ignore[method-assign]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = opened.open(server.address)
        expect(rows(page)).to_have_count(len(tensors))
        # a large tensor is read when it is asked for
        expect(page.locator("canvas.read")).to_have_count(len(tensors) - 3)
        server.token = "of another command"
        page.locator("tr", has_text="large").click()
        expect(page.locator(".trouble")).to_contain_text("cannot be read any more (404)")
        server.shutdown()
    size = path.stat().st_size
    assert reads[:2] == [(0, 16), (size - 20, 20)]
    assert reads[2][0] + reads[2][1] == size - 20
    assert max(length for _, length in reads) < size / 2
    # chromium reports the request that failed, and nothing else was said
    assert all("404" in text for text in opened.said)
    opened.said.clear()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(browser, address, model, scheme, tmp_path):
    path, tensors = model
    opened = Page(browser, PHONE, scheme)
    page = opened.open(address, path)
    expect(page.locator("canvas.read")).to_have_count(len(tensors) - 2)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.screenshot(path=tmp_path / f"phone-{scheme}.png")
    page.locator("#sort").select_option("bytes")
    assert names(page)[0] in ("layers.2.weight", "tied")
    page.locator("tr", has_text="layers.10.weight").click()
    expect(page.locator("table.values td").first).to_be_visible()
    assert page.locator("#panel").bounding_box()["width"] == PHONE["width"]
    assert page.evaluate("document.querySelector('#panel').scrollWidth <= innerWidth")
    page.screenshot(path=tmp_path / f"phone-{scheme}-panel.png")
    page.get_by_role("button", name="Close").click()
    expect(page.locator("#panel")).to_be_hidden()
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) > 384) == (scheme == "light")
    opened.close()


@pytest.mark.thorough
def test_many_tensors(opened, address, tmp_path):
    """Only those that are seen are in the page."""
    path = tmp_path / "many.sparsefmt"
    one = np.ones(2, np.float32)
    sparsefmt.save_file({f"layers.{i // 100}.experts.{i % 100}.weight": one + i for i in range(6000)}, path)
    page = opened.open(address, path)
    expect(page.locator("#table")).to_have_attribute("aria-rowcount", "6001")
    expect(page.locator("canvas.read").first).to_be_visible()
    assert rows(page).count() < 60
    page.locator("#scroll").focus()
    page.keyboard.press("End")
    expect(page.locator("tr.current")).to_contain_text("layers.59.experts.99.weight")
    page.locator("#search").fill("layers.33. .77.")
    expect(rows(page)).to_have_count(1)
    page.keyboard.press("Escape")
