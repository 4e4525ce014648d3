"""TensorWriter: it chooses layouts and tiles for tensors, finds those with equal elements, and writes a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from sparsefmt.adapters import Rows, Survey, rows_of
from sparsefmt.container.entry import TensorEntry
from sparsefmt.container.in_progress import Contents
from sparsefmt.container.index import Index
from sparsefmt.container.names import check_name
from sparsefmt.container.writer import Sink, Writer
from sparsefmt.equal_tensors import EqualTensors
from sparsefmt.errors import in_tensor
from sparsefmt.layouts import auto, heights
from sparsefmt.layouts.auto import Stored
from sparsefmt.layouts.tile import Tile
from sparsefmt.tensor import SparseTensor

NegativeZeros = Literal["keep", "drop"]

RowDims = int | Mapping[str, int] | None
"""How many leading dimensions make rows: of every tensor that has more, or by name; None for what is usual."""


class TensorWriter:
    """Writes tensors to a sink in one pass. The verbs and `sparsefmt convert` use it.

    Call `add` for each tensor, in the order in which they shall be in the file, then `finish`. A tensor is no longer
    needed once `add` has returned.

    Args:
        sink: anything with `write`, at its start.
        metadata, layout, codec, negative_zeros, row_dims, threads: as in `sparsefmt.save_file`.
        again: gives a tensor that was added before, by its name, as it was. With it, a tensor that has the same
            elements as an earlier one is stored as a copy of that.
        progress: called with the dense bytes of each tile once it is written; those of a tensor add up to its own.
    """

    def __init__(
        self,
        sink: Sink,
        metadata: Mapping[str, str] | None = None,
        *,
        layout: str = "auto",
        codec: str = "auto",
        negative_zeros: NegativeZeros = "keep",
        row_dims: RowDims = None,
        threads: int | None = None,
        again: Callable[[str], Any] | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> None:
        auto.expect_name(layout)
        if negative_zeros not in ("keep", "drop"):
            raise ValueError(f"negative_zeros must be 'keep' or 'drop', not {negative_zeros!r}")
        self._writer = Writer(sink, codec=codec, metadata=metadata, thread_count=threads, progress=progress)
        self._layout = layout
        self._purpose: auto.Purpose = "raw" if codec == "raw" else "coded"
        _expect_row_dims(row_dims)
        self._drop = negative_zeros == "drop"
        self._row_dims = row_dims
        self._threads = threads
        self._equal = None if again is None else EqualTensors(lambda name: rows_of(again(name)))

    def add(self, name: str, value: Rows | SparseTensor | Any) -> TensorEntry:
        """Write one tensor: a SparseTensor, or an array or tensor of another library. Errors name the tensor.

        Returns:
            its entry in the index; that of the tensor that it is a copy of, if it is stored as one.
        """
        check_name(name)
        with in_tensor(name):
            if isinstance(value, SparseTensor) and value.layout != "dense":
                return self._add_laid_out(name, value)
            return self._add_dense(name, rows_of(value))

    def add_alias(self, name: str, target: str) -> None:
        """Give the tensor written as `target` a second name."""
        self._writer.add_alias(name, target)

    def finish(self) -> Index:
        """Write the end of the file, and return its index."""
        return self._writer.finish()

    @property
    def written(self) -> int:
        """Bytes that the sink has got so far."""
        return self._writer.written

    def expect_names(self, tensors: Mapping[str, Any]) -> None:
        """Raise ValueError if `row_dims` names what is none of these tensors."""
        names = self._row_dims if isinstance(self._row_dims, Mapping) else ()
        for name in names:
            if name not in tensors:
                raise ValueError(f"row_dims names {name!r}, which is no tensor here")

    def _row_dims_of(self, name: str, matrix: Rows) -> int:
        if isinstance(self._row_dims, int):
            return self._row_dims if heights.can_be_stack(self._row_dims, matrix.shape, matrix.dtype) else 1
        if self._row_dims is not None and name in self._row_dims:
            heights.expect_row_dims(self._row_dims[name], matrix.shape, matrix.dtype)
            return self._row_dims[name]
        return matrix.row_dims

    def _add_dense(self, name: str, matrix: Rows) -> TensorEntry:
        row_dims = self._row_dims_of(name, matrix)
        if row_dims != matrix.row_dims:
            matrix.stack(row_dims)
        survey = Survey(0, 0, Stored(0, 0))
        if self._drop or auto.may_be_sparse(self._layout, matrix.dtype, matrix.shape, matrix.cols):
            survey = matrix.survey(self._threads)
        target = self._equal.find(name, matrix, survey) if self._equal else None
        if target is not None:
            return self._writer.add_copy(name, target)
        nnz, negatives = survey.nnz, survey.negative_zeros
        layout = auto.layout_for(self._layout, self._purpose, matrix.shape, matrix.filling(survey))
        tiling = matrix.tiling(layout, nnz if self._drop else nnz + negatives)
        contents = Contents(
            matrix.tile_maker(tiling, self._drop),
            nnz=nnz if tiling.layout.sparse else None,
            negative_zeros=tiling.layout.sparse and negatives > 0 and not self._drop,
            negative_zeros_dropped=negatives if self._drop else 0,
        )
        return self._writer.add(name, tiling, contents)

    def _add_laid_out(self, name: str, tensor: SparseTensor) -> TensorEntry:
        """Write a tensor that is laid out already, tile by tile. It is not made dense between sparse layouts."""
        layout = auto.layout_for(self._layout, self._purpose, tensor.shape, tensor.filling(), is_sparse=True)
        if not layout.sparse:
            return self._add_dense(name, rows_of(tensor))
        tiling = tensor.tiling.with_layout(layout)
        signs = (tensor.tile(number).negative_zeros for number in range(tiling.tiles))
        negatives = sum(int(np.bitwise_count(array).sum()) for array in signs if array is not None)
        keep = negatives > 0 and not self._drop

        def make_tile(number: int) -> Tile:
            tile = tensor.tile(number).to_layout(tiling.layout)
            return tile if keep else tile.with_negative_zeros(None)

        dropped = negatives if self._drop else 0
        contents = Contents(make_tile, nnz=tensor.nnz, negative_zeros=keep, negative_zeros_dropped=dropped)
        return self._writer.add(name, tiling, contents)


def _expect_row_dims(row_dims: object) -> None:
    """Raise TypeError or ValueError if this says nothing about dimensions."""
    numbers = row_dims.values() if isinstance(row_dims, Mapping) else () if row_dims is None else (row_dims,)
    for number in numbers:
        if type(number) is not int:
            raise TypeError(f"row_dims takes a number of dimensions, or numbers by name, not {number!r}")
        if number < 1:
            raise ValueError(f"row_dims must be 1 or more, not {number}")
