"""README.md of a converted model: a section that says how it is loaded, since nothing but sparsefmt reads its weights.

    ---
    license: mit                 front matter of a model card, if there is one, stays first
    ---
    # Title                      and so does a title
    <!-- sparsefmt: how to load -->
    ...
    <!-- sparsefmt: end -->

What stands between the markers is replaced when the model is converted again, and removed when its weights become
safetensors. Everything else stays, to the byte.
"""

from __future__ import annotations

import re
from typing import Any

README = "README.md"

HOW_TO_LOAD = (
    "pip install 'sparsefmt[transformers]', and `import sparsefmt.transformers` before from_pretrained. Do not delete"
    " this quantization_config: the weights are .sparsefmt files"
)
"""What a quantization_config says, to whom prints it."""

_BEGIN, _END = "<!-- sparsefmt: how to load -->", "<!-- sparsefmt: end -->"
_SECTION = re.compile(rf"{re.escape(_BEGIN)}(?:(?!{re.escape(_BEGIN)}).)*?{re.escape(_END)}(?:\r?\n){{0,2}}", re.DOTALL)
_HEAD = re.compile(
    r"\ufeff?(?:---[ \t]*\r?\n(?:.*?\r?\n)??---[ \t]*(?:\r?\n|\Z))?"  # front matter
    r"(?:[ \t]*\r?\n)*(?:# [^\n]*(?:\n|\Z))?(?:[ \t]*\r?\n)*",  # blank lines, and a title
    re.DOTALL,
)
"""What stays before the section; each part may be missing."""

_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def with_section(card: bytes, config: dict[str, Any], *, sentences: bool = False) -> bytes:
    """A model card with the section, in place of one that it has; b"" for a card that is to be made.

    Args:
        config: of the model; it names the class to load it with.
        sentences: whether it is a model of sentence-transformers.
    """
    text = _without(_decoded(card))
    newline = "\r\n" if "\r\n" in text else "\n"
    section = _section(config, sentences).replace("\n", newline)
    head = _HEAD.match(text)
    before = "" if head is None else head.group()
    if before and not before.endswith("\n"):
        before += newline
    rest = text[len(before) :] if text.startswith(before) else ""
    return _encoded(before + section + (newline + rest if rest else ""))


def without_section(card: bytes) -> bytes:
    """The card as it was; b"" if there was none."""
    return _encoded(_without(_decoded(card)))


def has_section(card: bytes) -> bool:
    """Whether the section is in a card."""
    return _SECTION.search(_decoded(card)) is not None


def _section(config: dict[str, Any], sentences: bool) -> str:
    package, name = ("sentence_transformers", "SentenceTransformer") if sentences else ("transformers", _class(config))
    load = f'{name}("this-folder")' if sentences else f'{name}.from_pretrained("this-folder")'
    return (
        f"{_BEGIN}\n"
        "## How to load it\n"
        "\n"
        "The weights are .sparsefmt files: pruned layers stay compressed, on the disk and in memory. They take\n"
        "`pip install 'sparsefmt[transformers]'` and one import:\n"
        "\n"
        "```python\n"
        f"from {package} import {name}\n"
        "import sparsefmt.transformers  # without it, the weights are not found\n"
        "\n"
        f"model = {load}\n"
        "```\n"
        "\n"
        "`sparsefmt export` makes ordinary safetensors of this folder.\n"
        f"{_END}\n"
    )


def _class(config: dict[str, Any]) -> str:
    """The class that loads a model: the one that it was, if that is transformers' own."""
    architectures = config.get("architectures")
    if config.get("auto_map") or not isinstance(architectures, list) or not architectures:
        return "AutoModel"
    name = architectures[0]
    return name if isinstance(name, str) and _PLAIN_NAME.fullmatch(name) else "AutoModel"


def _without(text: str) -> str:
    return _SECTION.sub("", text)


def _decoded(card: bytes) -> str:
    return card.decode("utf-8", "surrogateescape")


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
