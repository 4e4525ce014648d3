"""All that a page tells, before anybody has decided how."""

from __future__ import annotations

from dataclasses import dataclass, field

from sparsefmt.report.tensors import Group, Tensor


@dataclass(frozen=True)
class File:
    """A file of a model."""

    path: str
    nbytes: int
    metadata: list[tuple[str, str]]


@dataclass(frozen=True)
class Speed:
    """How products were timed.

    Attributes:
        machine: the processor, as people call it.
        threads: of ours.
        dense: names of what makes dense products.
        left_out: tensors that are dense, and were not timed.
    """

    machine: str
    threads: int
    dense: list[str]
    left_out: int


@dataclass(frozen=True)
class Comparison:
    """What was compared with another model, beside what tensors themselves have in `change`.

    Attributes:
        path: of the other model.
        sentences: on tensors that only one has, or whose shapes differ.
        compared: names of all others.
    """

    path: str
    sentences: list[str]
    compared: list[str]


@dataclass
class Contents:
    """A model, and what was found out about it.

    Attributes:
        title: a name for it.
        kind: of its files, in words.
        is_ours: whether they are .sparsefmt already.
        made_nbytes: what the files would have that sparsefmt makes of them, or have.
        groups: of all tensors.
        tied: names of tensors that have another name, too.
        special: sentences on elements that are not finite, or -0.0.
        refused: why it cannot be stored as .sparsefmt; "" if it can.
    """

    title: str
    kind: str
    is_ours: bool
    files: list[File]
    made_nbytes: int
    groups: list[Group]
    tied: int = 0
    special: list[str] = field(default_factory=list)
    refused: str = ""
    speed: Speed | None = None
    comparison: Comparison | None = None

    @property
    def on_disk(self) -> int:
        return sum(file.nbytes for file in self.files)

    @property
    def tensors(self) -> list[Tensor]:
        return [tensor for group in self.groups for tensor in group.tensors]
