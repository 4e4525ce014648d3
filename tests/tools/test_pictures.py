"""Pictures of the terminal load nothing, and those in docs/see/ show what they should."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT

import sparsefmt
from tools import pictures
from tools.pictures_terminal import picture


def text_of(svg: str) -> str:
    return "\n".join(
        "".join(element.itertext()) for element in ElementTree.fromstring(svg).iter() if "text" in element.tag
    )


def test_a_picture_shows_what_a_command_prints(tmp_path):
    path = tmp_path / "a.sparsefmt"
    sparsefmt.save_file({"<w>&": np.eye(64, dtype=np.float32)}, path)
    svg = picture(["inspect", str(path)], 100)
    text = text_of(svg).replace("\xa0", " ")
    assert "$ sparsefmt inspect" in text
    assert "<w>&" in text
    assert "98.4%" in text
    assert "url(http" not in svg
    with pytest.raises(RuntimeError):
        picture(["inspect", str(tmp_path / "none")], 100)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("inspect", ["80.0%", "bitmask", "18 tensors"]),
        ("patterns", ["2:4", "4x4 blocks", "unstructured"]),
        ("diff", ["mask", "values", "99.6%"]),
        ("bench", ["than dense", "dense bfloat16 is faster"]),
    ],
)
def test_pictures_of_the_documents(name, words):
    svg = (pictures.DOCS / f"{name}.svg").read_text()
    text = text_of(svg).replace("\xa0", " ")
    assert all(word in text for word in words)
    assert len(svg) < 50_000
    assert "url(http" not in svg


def test_the_page_shows_all_pictures():
    page = (ROOT / "docs" / "see.md").read_text()
    shown = re.findall(r"!\[[^]]+\]\(see/([^)]+)\)", page)
    assert sorted(shown) == sorted(path.name for path in pictures.DOCS.iterdir())
    assert all((pictures.DOCS / name).stat().st_size < 120_000 for name in shown)
    assert {Path(name).stem.partition("-")[0] for name in shown} == set(pictures.PICTURES)
