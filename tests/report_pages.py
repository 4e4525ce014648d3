"""Reads the pages of `sparsefmt report`."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "wbr", "img", "br", "path", "use", "rect"}


class ReportPage(HTMLParser):
    """What a page says.

    Attributes:
        tables: rows of texts, by the class of the table.
        texts: all texts, in order, without what is for machines.
        tags: names of all elements, in order.
        attributes: all attributes, in order.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self._goes_on = False
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attributes]
        self._goes_on = tag == "wbr"
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            label = dict(attributes).get("class") or ""
            self._rows = self.tables.setdefault(label, [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._goes_on = False
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attributes]

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["style"]:
            return
        if self._goes_on:
            self.texts[-1] += data
        else:
            self.texts.append(data)
        self._goes_on = False
        if {"td", "th"} & set(self._open):
            self._rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def group(self, name: str) -> dict[str, str]:
        """The row of a group of tensors in the table of bytes, by heading."""
        heading, *rows = self.tables["overview"]
        [row] = [row for row in rows if row[0].startswith(name)]
        return dict(zip(heading, row, strict=True))
