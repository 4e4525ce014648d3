"""The section of a README.md that says how a converted model is loaded."""

from __future__ import annotations

import ast
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sparsefmt.checkpoints.cards import has_section, with_section, without_section

CONFIG: dict[str, Any] = {"architectures": ["LlamaForCausalLM"]}
FRONT = "---\nlicense: mit\ntags:\n- pruned\n---\n"

pieces = st.sampled_from(
    [
        "---\n",
        "license: mit\n",
        "# Title\n",
        "\n",
        "text\n",
        "\r\n",
        "## How to load it\n",
        "---",
        "é",
        "<!-- sparsefmt: end -->\n",
    ]
)
cards = st.lists(pieces, max_size=12).map("".join).map(str.encode) | st.binary(max_size=200)


@given(card=cards)
@example(card=b"")
@example(card=b"<!-- sparsefmt: how to load -->\nwithout an end\n")
@example(card=b"---\nnever ends\n")
def test_there_and_back(card: bytes) -> None:
    made = with_section(card, CONFIG)
    assert has_section(made)
    # again: replaced, not repeated
    assert with_section(made, CONFIG) == made
    # what was there is there still, but for a line that had no end
    assert without_section(made) in (card, card + b"\n", card + b"\r\n")
    assert not has_section(without_section(made))


@pytest.mark.parametrize(
    ("card", "before"),
    [
        ("", ""),
        ("text\n", ""),
        ("# Title\n\ntext\n", "# Title\n\n"),
        (FRONT + "# Title\n\ntext\n", FRONT + "# Title\n\n"),
        (FRONT + "\ntext\n", FRONT + "\n"),
        (FRONT.replace("\n", "\r\n") + "# Title\r\ntext\r\n", FRONT.replace("\n", "\r\n") + "# Title\r\n"),
        ("text\n" + FRONT, ""),
    ],
)
def test_front_matter_and_title_stay_first(card: str, before: str) -> None:
    made = with_section(card.encode(), CONFIG).decode()
    assert made.startswith(before + "<!-- sparsefmt: how to load -->")
    assert made.endswith(card[len(before) :])
    assert ("\r\n" in card) == ("\r\n" in made)
    if "\r\n" in card:
        assert made.count("\n") == made.count("\r\n")


def test_an_older_section_is_replaced_wherever_it_is() -> None:
    card = b"one\n<!-- sparsefmt: how to load -->\nold words\n<!-- sparsefmt: end -->\ntwo\n"
    made = with_section(card, CONFIG)
    assert b"old words" not in made
    assert made.count(b"<!-- sparsefmt: how to load -->") == 1
    assert without_section(made) == b"one\ntwo\n"


@pytest.mark.parametrize(
    ("config", "sentences", "lines"),
    [
        (CONFIG, False, ("from transformers import LlamaForCausalLM", "LlamaForCausalLM.from_pretrained(")),
        ({}, False, ("from transformers import AutoModel", "AutoModel.from_pretrained(")),
        ({"architectures": []}, False, ("from transformers import AutoModel", "AutoModel.from_pretrained(")),
        ({"architectures": "x"}, False, ("from transformers import AutoModel", "AutoModel.from_pretrained(")),
        (
            {"architectures": ["x; import os"]},
            False,
            ("from transformers import AutoModel", "AutoModel.from_pretrained("),
        ),
        (
            {**CONFIG, "auto_map": {"AutoModel": "own.Own"}},
            False,
            ("from transformers import AutoModel", "AutoModel.from_"),
        ),
        (CONFIG, True, ("from sentence_transformers import SentenceTransformer", "SentenceTransformer(")),
    ],
)
def test_the_lines_that_load_it(config: dict[str, Any], sentences: bool, lines: tuple[str, str]) -> None:
    text = with_section(b"", config, sentences=sentences).decode()
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    ast.parse(code)
    assert "import sparsefmt.transformers" in code
    assert all(line in code for line in lines)
