"""tools/pictures.py: pictures of the terminal, that load nothing; and those in docs/, which show what they should."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from helpers import ROOT

import sparsefmt
from tools import pictures


def text_of(svg: str) -> str:
    return "\n".join(
        "".join(element.itertext()) for element in ElementTree.fromstring(svg).iter() if "text" in element.tag
    )


def test_a_picture_shows_what_a_command_prints(tmp_path):
    path = tmp_path / "a.sparsefmt"
    sparsefmt.save_file({"<w>&": np.eye(64, dtype=np.float32)}, path)
    svg = pictures.picture(["inspect", str(path)], 100)
    text = text_of(svg).replace("\xa0", " ")
    assert "$ sparsefmt inspect" in text
    assert "<w>&" in text
    assert "98.4%" in text
    assert "url(http" not in svg
    with pytest.raises(RuntimeError):
        pictures.picture(["inspect", str(tmp_path / "none")])


@pytest.mark.parametrize(
    ("name", "words"), [("inspect", ["2:4", "4x4 blocks", "unstructured"]), ("diff", ["mask", "values", "99.6%"])]
)
def test_pictures_of_the_documents(name, words):
    svg = (ROOT / "docs" / f"{name}.svg").read_text()
    text = text_of(svg).replace("\xa0", " ")
    assert all(word in text for word in words)
    assert f"![A terminal with sparsefmt {name}" in (ROOT / "docs" / "guide.md").read_text()
    assert len(svg) < 50_000
    assert "url(http" not in svg
