"""Finds the patterns of zeros in tensors of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sparsefmt.checkpoints.contract import TensorFile
from sparsefmt.patterns import Pattern, mask_of_rows, pattern_of
from sparsefmt.threads import in_order

Progress = Callable[[int], object]
"""Called with the dense bytes of what has been read."""


def find_patterns(
    wanted: Sequence[tuple[TensorFile, str]], progress: Progress | None = None, threads: int | None = None
) -> list[Pattern]:
    """Read tensors, several at a time, and find their patterns.

    Args:
        wanted: files and names of tensors in them, of dtypes that can be pruned.

    Raises:
        as reading the files.
    """

    def find(each: tuple[TensorFile, str]) -> Pattern:
        file, name = each
        return pattern_of(mask_of_rows(file.rows_of(name), threads, progress))

    for file in {id(file): file for file, _ in wanted}.values():
        file.expect([name for holder, name in wanted if holder is file])
    return list(in_order(find, wanted, threads))
