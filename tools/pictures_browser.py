"""What a browser shows of models, as pictures: reports, notebooks and the viewer. Chromium takes them."""

from __future__ import annotations

import html
import io
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

Files = Iterator[tuple[str, bytes]]

SCHEMES = ("light", "dark")

LAYER = "encoder.layer.0."
"""The layer that the notebook loads."""

NOTEBOOK = """<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark"><style>
body { margin: 0; padding: 18px 22px; width: 900px; box-sizing: border-box; font: 14px/1.45 system-ui, sans-serif; }
pre { margin: 0 0 10px; padding: 7px 10px; border: 1px solid #8885; border-radius: 4px; background: #8881; }
section + section { margin-top: 22px; }
</style>"""


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser.

    Raises:
        FileNotFoundError: there is none.
    """
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        raise FileNotFoundError("pictures of pages need chromium")
    # the sandbox of chromium is not for root, as whom containers run
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


def page_in(browser: Any, scheme: str, width: int, height: int) -> Any:
    page = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme).new_page()
    page.set_default_timeout(300_000)
    return page


def small(png: bytes) -> bytes:
    """The same picture in 256 colours, which takes a third of the bytes. Rare colours stay what they are."""
    from PIL import Image

    buffer = io.BytesIO()
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def report() -> Files:
    """The top of a report on two models, its zeros by layer, a group of matrices, and what has changed."""
    command = [sys.executable, "-m", "sparsefmt", "report", "pruned.safetensors", "tuned.safetensors"]
    subprocess.run([*command, "-o", "report.html", "--force"], check=True, stdout=subprocess.DEVNULL)
    parts = {
        "layers": "section[aria-labelledby=layers]",
        "group": "article",
        "compared": "section[aria-labelledby=compared]",
    }
    with chromium() as browser:
        for scheme in SCHEMES:
            page = page_in(browser, scheme, 1120, 860)
            page.goto(Path("report.html").resolve().as_uri())
            yield f"report-{scheme}.png", small(page.screenshot())
            for name, selector in parts.items():
                found = page.locator(selector, **({"has_text": "intermediate.dense"} if name == "group" else {})).first
                yield f"report-{name}-{scheme}.png", small(found.screenshot())


def notebook() -> Files:
    """What a tensor, an open file and a model that was loaded show of themselves."""
    cells = "".join(f"<section><pre>{html.escape(code)}</pre>{shown}</section>" for code, shown in _cells())
    with chromium() as browser:
        for scheme in SCHEMES:
            page = page_in(browser, scheme, 900, 400)
            page.set_content(NOTEBOOK + cells)
            yield f"notebook-{scheme}.png", small(page.screenshot(full_page=True))


def _cells() -> Iterator[tuple[str, str]]:
    import torch

    import sparsefmt
    import sparsefmt.torch

    stored = safetensors.numpy.load_file("pruned.safetensors")
    tensors = {name.removeprefix(LAYER): tensor for name, tensor in stored.items() if name.startswith(LAYER)}
    sparsefmt.save_file(tensors, "layer.sparsefmt")
    weight = sparsefmt.load_file("layer.sparsefmt")["intermediate.dense.weight"]
    yield 'sparsefmt.load_file("layer.sparsefmt")["intermediate.dense.weight"]', weight._repr_html_()
    with sparsefmt.open_file("layer.sparsefmt") as file:
        yield 'sparsefmt.open_file("layer.sparsefmt")', file._repr_html_()
    result = sparsefmt.torch.load_into(_module(tensors, torch), "layer.sparsefmt", exclude="*.key")
    yield 'sparsefmt.torch.load_into(layer, "layer.sparsefmt", exclude="*.key")', result._repr_html_()


def _module(tensors: dict[str, np.ndarray], torch: Any) -> Any:
    """A module that has these tensors as the weights of linear layers and norms."""
    root = torch.nn.Module()
    for name, tensor in tensors.items():
        path, _, kind = name.rpartition(".")
        if kind != "weight":
            continue
        parent = root
        *rooms, last = path.split(".")
        for room in rooms:
            if not hasattr(parent, room):
                parent.add_module(room, torch.nn.Module())
            parent = getattr(parent, room)
        with torch.device("meta"):
            made = torch.nn.Linear(*reversed(tensor.shape)) if tensor.ndim == 2 else torch.nn.LayerNorm(tensor.shape)
        parent.add_module(last, made)
    return root


def _half_full(weight: np.ndarray) -> tuple[float, float]:
    """A place in a matrix, from 0.0 to 1.0 in each direction, where about half of the next elements are not zero."""
    row = len(weight) // 4 // 12 * 12
    filled = [np.count_nonzero(weight[row : row + 6, col : col + 5]) for col in range(0, weight.shape[1] - 5, 3)]
    nearest = int(np.argmin(np.abs(np.array(filled) - 15)))
    return (row + 0.5) / len(weight), (3 * nearest + 0.5) / weight.shape[1]


def viewer() -> Files:
    """The page of `sparsefmt view`, with a tensor opened."""
    from sparsefmt.cli.view import Server
    from sparsefmt.container.remote_path import reading

    path, name = Path("pruned.sparsefmt"), f"{LAYER}intermediate.dense.weight"
    down, across = _half_full(safetensors.numpy.load_file("pruned.safetensors")[name])
    with chromium() as browser, closing(reading(path)) as file, Server(file, path.name) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for scheme in SCHEMES:
            page = page_in(browser, scheme, 1280, 960)
            page.goto(server.address)
            page.locator("th.bytes button").click()
            page.locator("tr", has_text=name).first.click()
            page.locator("table.values td").first.wait_for()
            page.wait_for_function("document.querySelectorAll('tr canvas.read').length > 5")
            box = page.locator("canvas.cells").bounding_box()
            page.locator("canvas.cells").hover(position={"x": across * box["width"], "y": down * box["height"]})
            page.wait_for_timeout(500)
            yield f"viewer-{scheme}.png", small(page.screenshot())
        server.shutdown()
