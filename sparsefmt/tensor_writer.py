"""TensorWriter: it chooses layouts and tiles for tensors, finds those with equal elements, and writes a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from sparsefmt.adapters import Rows, Survey, rows_of
from sparsefmt.container.entry import TensorEntry
from sparsefmt.container.in_progress import Contents
from sparsefmt.container.index import Index
from sparsefmt.container.names import check_name
from sparsefmt.container.writer import EncodedTensor, Sink, Writer
from sparsefmt.equal_tensors import EqualTensors, Fingerprint, fingerprint_of
from sparsefmt.errors import in_tensor
from sparsefmt.layouts import auto, heights
from sparsefmt.layouts.sizes import Stored
from sparsefmt.layouts.tile import Tile
from sparsefmt.layouts.tiling import Tiling
from sparsefmt.save_options import NegativeZeros, RowDims, SaveOptions
from sparsefmt.tensor import SparseTensor


class _Choice(NamedTuple):
    """A tensor that is to be stored.

    Attributes:
        fingerprint: None if nobody looks for equal tensors.
    """

    options: SaveOptions
    matrix: Rows
    survey: Survey
    fingerprint: Fingerprint | None

    def stored(self) -> tuple[Tiling, Contents]:
        """How it is stored."""
        options, matrix, (nnz, negatives, _) = self.options, self.matrix, self.survey
        drop = options.drops_signs
        layout = auto.layout_for(options.layout, options.purpose, matrix.shape, matrix.filling(self.survey))
        tiling = matrix.tiling(layout, nnz if drop else nnz + negatives)
        contents = Contents(
            matrix.tile_maker(tiling, drop),
            nnz=nnz if tiling.layout.sparse else None,
            negative_zeros=tiling.layout.sparse and negatives > 0 and not drop,
            negative_zeros_dropped=negatives if drop else 0,
        )
        return tiling, contents


class PreparedTensor(NamedTuple):
    """A tensor that has been encoded, and is to be written."""

    name: str
    choice: _Choice
    encoded: EncodedTensor


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

    Raises:
        as `sparsefmt.save_file`. A file in which writing a tensor has failed cannot be finished.

    Cost: memory for a few tiles, and for the index.

    Example:
        >>> with open("model.sparsefmt", "wb") as sink:
        ...     writer = sparsefmt.TensorWriter(sink)
        ...     entry = writer.add("weight", weight)
        ...     index = writer.finish()
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
        self._options = SaveOptions(layout, codec, negative_zeros, row_dims, threads)
        self._writer = Writer(sink, codec=codec, metadata=metadata, thread_count=threads, progress=progress)
        self._equal = None if again is None else EqualTensors(again)

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

    def prepare(self, name: str, matrix: Rows) -> PreparedTensor:
        """All that `add` does but for writing: any thread may do it ahead, for a small tensor. Errors name it."""
        check_name(name)
        with in_tensor(name):
            choice = self._choose(name, matrix)
            return PreparedTensor(name, choice, self._writer.encode(name, *choice.stored()))

    def add_prepared(self, prepared: PreparedTensor) -> TensorEntry:
        """Write what `prepare` gave. Returns and raises as `add`."""
        name, choice, encoded = prepared
        with in_tensor(name):
            target = self._equal_to(name, choice)
            return self._writer.add_encoded(encoded) if target is None else self._writer.add_copy(name, target)

    def add_alias(self, name: str, target: str) -> None:
        """Give the tensor written as `target` a second name."""
        self._writer.add_alias(name, target)

    def add_metadata(self, texts: Mapping[str, str]) -> None:
        """Keep further texts with the tensors, which take the place of those that are called the same."""
        self._writer.add_metadata(texts)

    def finish(self) -> Index:
        """Write the end of the file, and return its index."""
        return self._writer.finish()

    @property
    def written(self) -> int:
        """Bytes that the sink has got so far."""
        return self._writer.written

    def expect_names(self, tensors: Mapping[str, Any]) -> None:
        """Raise ValueError if `row_dims` names a tensor that is not among these."""
        row_dims = self._options.row_dims
        names = row_dims if isinstance(row_dims, Mapping) else ()
        for name in names:
            if name not in tensors:
                raise ValueError(f"row_dims names {name!r}, which is not a tensor here")

    def _row_dims_of(self, name: str, matrix: Rows) -> int:
        wanted = self._options.row_dims
        if isinstance(wanted, int):
            return wanted if heights.can_be_stack(wanted, matrix.shape, matrix.dtype) else 1
        if wanted is not None and name in wanted:
            heights.expect_row_dims(wanted[name], matrix.shape, matrix.dtype)
            return wanted[name]
        return matrix.row_dims

    def _add_dense(self, name: str, matrix: Rows) -> TensorEntry:
        choice = self._choose(name, matrix)
        target = self._equal_to(name, choice)
        if target is not None:
            return self._writer.add_copy(name, target)
        return self._writer.add(name, *choice.stored())

    def _equal_to(self, name: str, choice: _Choice) -> str | None:
        return self._equal.find(name, choice.matrix, choice.fingerprint) if self._equal else None

    def _choose(self, name: str, matrix: Rows) -> _Choice:
        """How a dense tensor is stored, after one read of it."""
        options, drop = self._options, self._options.drops_signs
        row_dims = self._row_dims_of(name, matrix)
        if row_dims != matrix.row_dims:
            matrix.stack(row_dims)
        survey = Survey(0, 0, Stored(0, 0))
        if drop or auto.may_be_sparse(options.layout, matrix.dtype, matrix.shape, matrix.cols):
            survey = matrix.survey(options.threads)
        return _Choice(options, matrix, survey, fingerprint_of(matrix, survey) if self._equal else None)

    def _add_laid_out(self, name: str, tensor: SparseTensor) -> TensorEntry:
        """Write a tensor that is laid out already, tile by tile. It is not made dense between sparse layouts."""
        options, drop = self._options, self._options.drops_signs
        layout = auto.layout_for(options.layout, options.purpose, tensor.shape, tensor.filling(), is_sparse=True)
        if not layout.sparse:
            return self._add_dense(name, rows_of(tensor))
        tiling = tensor.tiling.with_layout(layout)
        signs = (tensor.tile(number).negative_zeros for number in range(tiling.tiles))
        negatives = sum(int(np.bitwise_count(array).sum()) for array in signs if array is not None)
        keep = negatives > 0 and not drop

        def make_tile(number: int) -> Tile:
            tile = tensor.tile(number).to_layout(tiling.layout)
            return tile if keep else tile.with_negative_zeros(None)

        dropped = negatives if drop else 0
        contents = Contents(make_tile, nnz=tensor.nnz, negative_zeros=keep, negative_zeros_dropped=dropped)
        return self._writer.add(name, tiling, contents)
