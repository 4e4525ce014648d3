"""What notebooks show of files and of layers: all that a person asks for, and text where names are markup."""

from __future__ import annotations

import pickle
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

import sparsefmt
import sparsefmt.torch
from sparsefmt import notebooks
from sparsefmt.torch import SparseLinear

NAME = '<script>alert("1")</script>&amp;\x1b[2J\u202e\'"'


class Page(HTMLParser):
    """The texts of a page and the names of its elements. Any element left open is a fault."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.elements: list[str] = []
        self._open: list[str] = []
        self.feed(content)
        self.close()
        assert self._open == []
        assert set(self.elements) <= {"div", "br", "img", "table", "thead", "tbody", "tr", "th", "td"}

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append(tag)
        assert {name for name, _ in attrs} <= {"style", "alt", "src"}
        if tag not in ("br", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def pruned(*shape: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(shape) < 0.2, rng.standard_normal(shape), 0).astype(np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a<b>&.sparsefmt"
    tied = pruned(64, 128, seed=5)
    tensors = {"w": pruned(256, 512), NAME: tied, "tied": tied, "norm": np.ones(7, np.float32)}
    sparsefmt.save_file(tensors | {"scalar": np.array(2.0), "empty": np.zeros((0, 4))}, path)
    return path


def test_a_file_shows_its_tensors_without_reading_any(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsefmt.container.reader.Reader.tile", None)
    with sparsefmt.open_file(path) as file:
        shown = file._repr_html_()
        entry = file.reader.index.tensors["w"]
    page = Page(shown)
    assert page.texts[:2] == [f"SparseFile {path}", "6 tensors"]
    start = page.texts.index("w")
    zeros = f"{1 - entry.nnz / entry.elements:.1%}"
    assert page.texts[start : start + 5] == ["w", "256x512", "F32", entry.layout.name, zeros]
    assert page.texts[start + 6] == f"{4 * 256 * 512:,}"
    assert {"scalar", "empty", "norm"} <= set(page.texts)
    assert not {"\x1b", "\u202e"} & set(shown)
    # of two names of one tensor, one has a row and one a line
    hostile = '<script>alert("1")</script>&amp;\\x1b[2J\\u202e\'"'
    assert sum(hostile in each for each in page.texts) == 2
    assert file._repr_html_() == shown  # closed
    assert pickle.loads(pickle.dumps(sparsefmt.open_file(path)))._repr_html_() == shown


def test_a_pickled_file_that_is_gone_shows_why(path: Path) -> None:
    again = pickle.loads(pickle.dumps(sparsefmt.open_file(path)))
    path.unlink()
    assert "No such file" in "".join(Page(again._repr_html_()).texts)


@pytest.mark.parametrize("framework", ["np", "pt"])
def test_safe_open_shows_the_same(path: Path, framework: str) -> None:
    with sparsefmt.safe_open(path, framework) as file:
        assert file._repr_html_() == sparsefmt.open_file(path)._repr_html_()
    assert "closed" in Page(file._repr_html_()).texts[0]


def test_of_many_tensors_the_largest_are_shown(tmp_path: Path) -> None:
    tensors = {f"w{number:03d}": pruned(4, 4 + number) for number in range(100)}
    sparsefmt.save_file(tensors, tmp_path / "a.sparsefmt", codec="raw")
    texts = Page(sparsefmt.open_file(tmp_path / "a.sparsefmt")._repr_html_()).texts
    names = [each for each in texts if re.fullmatch(r"w\d+", each)]
    assert names == [f"w{number:03d}" for number in range(100 - notebooks.MOST_ROWS, 100)]
    assert f"and {100 - notebooks.MOST_ROWS} smaller" in texts
    sparsefmt.save_file({}, tmp_path / "none.sparsefmt")
    assert "0 tensors" in Page(sparsefmt.open_file(tmp_path / "none.sparsefmt")._repr_html_()).texts


def layer(seed: int = 1) -> torch.nn.Linear:
    made = torch.nn.Linear(512, 256)
    made.weight.data = torch.from_numpy(pruned(256, 512, seed=seed))
    return made


def test_a_layer_shows_its_weights() -> None:
    made = SparseLinear.from_linear(layer())
    made.name = "<b>"
    page = Page(made._repr_html_())
    tensor = made.sparse_tensor()
    assert page.texts[0] == "SparseLinear '<b>', 512 to 256"
    assert {"bias=True", f"layout={tensor.layout}", f"{tensor.nbytes:,} of {4 * 256 * 512:,} bytes"} <= set(page.texts)
    assert page.elements.count("img") == 1
    empty = Page(SparseLinear(4, 4, device="meta")._repr_html_())
    assert "without weights" in empty.texts
    assert "img" not in empty.elements


def test_what_sparsify_did_is_a_table_with_pictures() -> None:
    model = torch.nn.Sequential(layer(1), layer(2), torch.nn.Linear(256, 4))
    model.add_module("<i>x", layer(3))
    result = sparsefmt.torch.sparsify(model)
    page = Page(result._repr_html_())
    assert page.texts[0].startswith("3 of 4 linear layers compressed")
    assert page.elements.count("img") == 3
    start = page.texts.index("<i>x")
    tensor = result.sparse["<i>x"].sparse_tensor()
    assert page.texts[start + 1 : start + 5] == ["256x512", "float32", tensor.layout, f"{tensor.sparsity:.1%}"]
    nothing = sparsefmt.torch.sparsify(torch.nn.Sequential(torch.nn.Linear(4, 4)))
    shown = Page(nothing._repr_html_())
    assert shown.elements.count("table") == 1
    assert shown.texts[1:] == ["stays dense", "why", "1", "0", nothing.dense["0"]]


def test_large_models_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebooks, "MOST_DRAWN", 256 * 512 + 1)
    model = torch.nn.Sequential(layer(1), layer(2))
    page = Page(sparsefmt.torch.sparsify(model)._repr_html_())
    assert page.elements.count("img") == 1


def test_what_loading_did_is_tables(tmp_path: Path) -> None:
    """Of the layers, and of what stays dense and why; names that only the file or the model has stand below."""
    saved = torch.nn.Sequential(layer(1), torch.nn.Linear(256, 4))
    tensors = {name: tensor.numpy() for name, tensor in saved.state_dict().items()} | {NAME: np.ones(3, np.float32)}
    sparsefmt.save_file(tensors, tmp_path / "a.sparsefmt")
    model = torch.nn.Sequential(torch.nn.Linear(512, 256), torch.nn.Linear(256, 4), torch.nn.LayerNorm(4))
    result = sparsefmt.torch.load_into(model, tmp_path / "a.sparsefmt", strict=False)
    page = Page(result._repr_html_())
    assert page.texts[0].startswith("1 of 2 linear layers compressed")
    assert page.elements.count("table") == 3
    assert page.elements.count("img") == 1
    tensor = result.layers["0"].sparse_tensor()
    start = page.texts.index("256x512")
    assert page.texts[start - 1 : start + 4] == ["0", "256x512", "float32", tensor.layout, f"{tensor.sparsity:.1%}"]
    start = page.texts.index("stays dense")
    assert page.texts[start + 2 : start + 5] == ["1", "1", result.dense["1"]]
    start = page.texts.index("names without a match")
    hostile = '<script>alert("1")</script>&amp;\\x1b[2J\\u202e\'"'
    expected = ["2", "2.bias", "2.weight", "missing in the files", "1", hostile, "unexpected in the files"]
    assert page.texts[start + 2 :] == expected


def test_of_many_names_some_are_shown() -> None:
    many = notebooks.names("stays dense", {f"why {number}": ["a", "b"] for number in range(notebooks.MOST_ROWS + 2)})
    assert Page(many).texts[-1] == "and 4 more for other reasons"
    page = Page(notebooks.names("stays dense", {"<why>": [f"layer{number}" for number in range(6)], "b": ["c"]}))
    assert page.texts == [
        "stays dense",
        "why",
        "6",
        "layer0",
        "layer1",
        "layer2",
        "layer3",
        "and 2 more",
        "<why>",
        "1",
        "c",
        "b",
    ]


def test_shares_are_not_rounded_to_all_or_nothing() -> None:
    assert [notebooks.percent(share) for share in (0.0, 1e-9, 0.5, 1 - 1e-9, 1.0)] == [
        "0.0%",
        "0.1%",
        "50.0%",
        "99.9%",
        "100.0%",
    ]
