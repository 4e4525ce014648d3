"""Rows of tables, one for all tensors that have the same role in different layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from sparsefmt.in_words import pattern

Tensor = TypeVar("Tensor")

MOST_ROWS = 40
"""The most rows of a table. If there are more groups, the largest are shown."""


def grouped(
    tensors: Iterable[Tensor], name_and_kind: Callable[[Tensor], tuple[str, object]], nbytes: Callable[[Tensor], int]
) -> list[tuple[str, list[Tensor]]]:
    """Labels of rows, and the tensors of each, in the order in which they come.

    A row is for tensors of one kind whose names differ in numbers only. If there are more than MOST_ROWS, the last row
    is for all tensors of the smallest groups.
    """
    groups: dict[tuple[str, object], list[Tensor]] = {}
    for tensor in tensors:
        name, kind = name_and_kind(tensor)
        groups.setdefault((pattern(name), kind), []).append(tensor)
    smaller: list[list[Tensor]] = []
    if len(groups) > MOST_ROWS:
        by_size = sorted(groups, key=lambda key: sum(map(nbytes, groups[key])), reverse=True)
        dropped = set(by_size[MOST_ROWS - 1 :])
        smaller = [group for key, group in groups.items() if key in dropped]
        groups = {key: group for key, group in groups.items() if key not in dropped}
    rows = [(label if len(group) > 1 else name_and_kind(group[0])[0], group) for (label, _), group in groups.items()]
    if smaller:
        rows.append((f"{len(smaller)} smaller groups", [tensor for group in smaller for tensor in group]))
    return rows


def common(texts: Iterable[str]) -> str:
    """The text, if all are the same."""
    distinct = set(texts)
    return distinct.pop() if len(distinct) == 1 else "mixed"
