"""What a page tells of: tensors, and groups of tensors that have the same role in different layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sparsefmt.adapters import Rows
from sparsefmt.dtypes import DTYPES, DType
from sparsefmt.patterns import Change, Pattern, is_looked_at
from sparsefmt.report.figures import Figures


@dataclass(frozen=True)
class Stored:
    """What sparsefmt makes of a tensor.

    Attributes:
        file_nbytes: in a file, chunks alone; 0 for a copy of another tensor.
        file_layout: the layout there, with its form.
        memory_nbytes: of its arrays, once it is loaded to be multiplied.
        memory_layout: the layout there.
        reason: why it stays dense; "" if it does not.
    """

    file_nbytes: int
    file_layout: str
    memory_nbytes: int
    memory_layout: str
    reason: str = ""


@dataclass(frozen=True)
class Times:
    """Seconds of the products of a tensor.

    Attributes:
        batch: rows of activations.
        seconds: as sparsefmt multiplies it.
        dense_seconds: of the fastest dense product.
        dense: which one that was.
    """

    batch: int
    seconds: float
    dense_seconds: float
    dense: str

    @property
    def is_slower(self) -> bool:
        return self.seconds > self.dense_seconds


@dataclass
class Tensor:
    """A tensor of a model.

    Attributes:
        open_rows: gives the tensor to be read, anew each time.
        pattern: once it was read, unless its dtype cannot be pruned.
        stored: once that was found out.
        change: what became of it in another model, if it is compared with one.
        times: if it was timed, or one that is alike.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    row_dims: int
    dense_nbytes: int
    elements: int
    open_rows: Callable[[], Rows]
    pattern: Pattern | None = None
    stored: Stored | None = None
    change: Change | None = None
    times: list[Times] = field(default_factory=list)

    @property
    def is_readable(self) -> bool:
        return is_looked_at(DTYPES[self.dtype.name])

    @property
    def zeros(self) -> int:
        return self.pattern.zeros if self.pattern else 0


@dataclass
class Group:
    """Tensors that have the same role.

    Attributes:
        label: their name, with * where they differ.
        is_alike: whether all have one dtype and shape; not so for what is left of many small groups.
        figures: of all of them together; None if they are not alike, or cannot be pruned.
    """

    label: str
    tensors: list[Tensor]
    figures: Figures | None = None

    @property
    def is_alike(self) -> bool:
        return len({(tensor.dtype, tensor.shape, tensor.row_dims) for tensor in self.tensors}) == 1

    @property
    def has_figures(self) -> bool:
        """Whether it has, as far as its tensors are readable: they are alike, and matrices with elements."""
        return self.is_alike and len(self.tensors[0].shape) > 1 and self.elements > 0

    @property
    def dense_nbytes(self) -> int:
        return sum(tensor.dense_nbytes for tensor in self.tensors)

    @property
    def elements(self) -> int:
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def readable_elements(self) -> int:
        return sum(tensor.elements for tensor in self.tensors if tensor.is_readable)

    @property
    def zeros(self) -> int:
        return sum(tensor.zeros for tensor in self.tensors)
