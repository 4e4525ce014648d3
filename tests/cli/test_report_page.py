"""The page of `sparsefmt report` in a browser: chromium, without a window. Screenshots are left in `tmp_path`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from helpers import succeed

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
pytest.importorskip("jinja2", reason="no jinja2")
pytest.importorskip("matplotlib", reason="no matplotlib")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no chromium")]

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 800}

CONTRAST = """
() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = color => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].map(part => part / 255);
  };
  const light = color => {
    const [r, g, b] = color.map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    for (let each = element; each; each = each.parentElement) {
      const color = rgba(getComputedStyle(each).backgroundColor);
      if (color[3] === 1) return color;
    }
    return [1, 1, 1, 1];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest(".unseen, .skip")) continue;
    const style = getComputedStyle(element);
    const ink = rgba(element.closest("svg") ? style.fill : style.color);
    const [one, two] = [light(ink.slice(0, 3)), light(behind(element).slice(0, 3))].sort((a, b) => b - a);
    const contrast = (one + 0.05) / (two + 0.05);
    if (contrast < 4.5) found.push(`${walker.currentNode.data.trim()}: ${contrast.toFixed(2)}`);
  }
  return found;
}
"""
"""Texts that are hard to read: the rule is that of WCAG, level AA."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    # the sandbox of chromium is not for root, as whom containers run
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield started
        started.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on a model with several patterns, compared with another, and timed."""
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(1)
    model: dict[str, np.ndarray] = {
        "embed.weight": rng.normal(0, 1, (2000, 256)).astype(np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "nan": np.full((64, 64), np.nan, np.float32),
        "<img src=x onerror=alert(1)>": np.ones((64, 64), np.float32),
        "a\u202egnp.evil" + "x" * 5000: np.eye(64, dtype=np.float32),
    }
    for layer in range(30):
        weight = rng.normal(0, 1, (256, 256)).astype(np.float32)
        model[f"layers.{layer}.attention.query.weight"] = np.where(
            (rng.random((256, 64, 4)).argsort(2) < 2).reshape(256, 256), weight, 0
        )
        threshold = np.quantile(np.abs(weight), layer / 30)
        model[f"layers.{layer}.mlp.up_proj.weight"] = np.where(np.abs(weight) > threshold, weight, 0)
        kept = np.kron(rng.random((64, 64)) < 0.25, np.ones((4, 4))) > 0
        model[f"layers.{layer}.mlp.down_proj.weight"] = np.where(kept, weight, 0)
        model[f"layers.{layer}.norm.weight"] = np.ones(256, np.float32)
    safetensors.numpy.save_file(model, folder / "before.safetensors", metadata={"made by": "a test"})
    for layer in range(30):
        model[f"layers.{layer}.attention.query.weight"] = model[f"layers.{layer}.attention.query.weight"] * 1.01
    model["layers.0.mlp.up_proj.weight"][:9] = 0.5
    del model["empty"]
    safetensors.numpy.save_file(model, folder / "after.safetensors")
    target = folder / "report.html"
    succeed("report", folder / "before.safetensors", folder / "after.safetensors", "-o", target, "--bench")
    return target


class Opened:
    """A page, and what it said and asked for behind the scenes."""

    def __init__(self, browser: Any, path: Path, size: dict[str, int], scheme: str) -> None:
        self.context = browser.new_context(viewport=size, color_scheme=scheme, java_script_enabled=True)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(f"dialog {dialog.message}"))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())

    def close(self, path: Path) -> None:
        self.context.close()
        assert self.said == []
        assert [url for url in self.asked if not url.startswith("data:")] == [path.as_uri()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_it_can_be_read(browser: Any, page: Path, size: dict[str, int], scheme: str, tmp_path: Path) -> None:
    opened = Opened(browser, page, size, scheme)
    shown = opened.page
    shown.screenshot(path=tmp_path / "page.png", full_page=True)
    assert shown.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert shown.evaluate(CONTRAST) == []
    if size == PHONE:  # names have all of the width
        assert shown.evaluate(
            "[...document.querySelectorAll('.overview tbody th')].every(each => each.clientWidth > 300)"
        )
    for heading in ("What was found", "Where the bytes are", "Zeros by layer and projection", "Speed on this machine"):
        assert shown.get_by_role("heading", name=heading).is_visible()
    # pictures and charts are there, and have words for those who cannot see them
    assert shown.locator("article").count() >= 5
    assert shown.evaluate("[...document.images].every(image => image.naturalWidth > 0 && image.alt)")
    assert shown.locator("svg.chart").count() >= 8
    assert shown.evaluate(
        "[...document.querySelectorAll('svg')].every(each => each.getAttribute('role') == 'img' && "
        "each.getAttribute('aria-label') && each.getBoundingClientRect().width > 150)"
    )
    assert shown.evaluate(
        "(ids => ids.length == new Set(ids).size)([...document.querySelectorAll('[id]')].map(each => each.id))"
    )
    # charts stay within their frames
    assert shown.evaluate(
        "[...document.querySelectorAll('svg.chart')].every(chart => { const box = chart.getBoundingClientRect(); "
        "return [...chart.querySelectorAll('text')].every(text => { const own = text.getBoundingClientRect(); "
        "return own.left > box.left - 4 && own.right < box.right + 4 && own.bottom < box.bottom + 4; }); })"
    )
    opened.close(page)


def test_without_a_mouse(browser: Any, page: Path) -> None:
    opened = Opened(browser, page, DESKTOP, "light")
    shown = opened.page
    shown.keyboard.press("Tab")
    assert shown.evaluate("document.activeElement.textContent") == "Skip to the groups of tensors"
    shown.keyboard.press("Enter")
    assert shown.evaluate("location.hash") == "#groups"
    link = shown.locator(".overview a", has_text="mlp.up_proj")
    link.focus()
    shown.keyboard.press("Enter")
    target = shown.evaluate("document.querySelector(location.hash).querySelector('h3').textContent")
    assert target == "layers.*.mlp.up_proj.weight"
    shown.locator("summary").first.focus()
    shown.keyboard.press("Enter")
    assert shown.locator("table.all tbody tr").count() == 125
    assert shown.locator("table.all").is_visible()
    # what is wider than the page is scrolled with keys
    assert shown.evaluate("[...document.querySelectorAll('.scroll')].every(each => each.tabIndex == 0)")
    opened.close(page)


def test_without_scripts(browser: Any, page: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    shown = context.new_page()
    shown.goto(page.as_uri())
    assert shown.get_by_role("heading", name="Where the bytes are").is_visible()
    context.close()


@pytest.mark.thorough
def test_in_print(browser: Any, page: Path, tmp_path: Path) -> None:
    """On paper, it is dark on white, whatever the screen has, and nothing is cut off at the right."""
    opened = Opened(browser, page, DESKTOP, "dark")
    opened.page.pdf(path=tmp_path / "page.pdf", format="A4")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    # the width of a sheet of A4 without its margins
    opened.page.set_viewport_size({"width": 688, "height": 1000})
    opened.page.emulate_media(media="print")
    opened.page.screenshot(path=tmp_path / "print.png", full_page=True)
    assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert opened.page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 36, 48)"
    assert opened.page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
    assert opened.page.evaluate(CONTRAST) == []
    opened.close(page)
