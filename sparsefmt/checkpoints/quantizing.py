"""Tensors of a checkpoint quantized as they are converted, and the way back: which, and what is stored for each."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from sparsefmt.adapters import Rows, Survey, rows_of
from sparsefmt.checkpoints.contract import TensorFile
from sparsefmt.checkpoints.scales import KEYS, checked_pairs, input_scale_name, read_scales, scale_name
from sparsefmt.errors import FormatError, in_tensor
from sparsefmt.quantizing import Loss, Quantization, dequantized, quantized
from sparsefmt.quantizing.rows import FLOATS

MIN_SPARSITY = 0.4
"""Share of zeros from which on a matrix is taken for pruned, as `sparsify` does."""

_WEIGHT = re.compile(r"(^|\.)weight$")
_EMBEDDING = re.compile(r"embed|(^|\.)(wte|wpe|shared)\.weight$", re.IGNORECASE)
"""What models call tables that are looked up, and not multiplied by."""


@dataclass(frozen=True)
class Quantized:
    """What is stored in the place of a weight.

    Attributes:
        elements: the rows to store under its name.
        scale_name, scale: the tensor beside it: float32 (rows, groups).
        loss: what rounding lost.
    """

    elements: Rows
    scale_name: str
    scale: Rows
    loss: Loss


def quantize(file: TensorFile, name: str, how: Quantization, survey: Survey) -> Quantized | None:
    """What to store in the place of a tensor of a file; None to store it as it is.

    Quantized are pruned matrices of floats that are called "weight" or "X.weight", but for those that are embeddings by
    one of their names.

    Raises:
        FormatError: the name of the scales is taken; weights that are not finite.
        UnsupportedError: groups do not divide the columns.
    """
    matrix = file.rows_of(name)
    names = [name, *(alias for alias, target in file.aliases.items() if target == name)]
    is_weight = all(_WEIGHT.search(called) and not _EMBEDDING.search(called) for called in names)
    if not is_weight or matrix.dtype.name not in FLOATS or len(matrix.shape) != 2:
        return None
    elements = matrix.rows * matrix.cols
    if not elements or survey.nnz > (1 - MIN_SPARSITY) * elements:
        return None
    scale = scale_name(name)
    if scale in file.names:
        raise FormatError("scales-name", f"its scales would be called {scale!r}, as another tensor is", tensor=name)
    with in_tensor(name):
        made = quantized(matrix, how)
    return Quantized(made.rows, scale, rows_of(made.scale), made.loss)


class DequantizedFile(TensorFile):
    """A file with elements times scales, in float32, in the place of its scaled weights.

    Attributes:
        inner: the file as it is.

    Raises:
        FormatError: the metadata is damaged, or a weight and its scales do not fit.
    """

    def __init__(self, inner: TensorFile) -> None:
        pairs = checked_pairs(inner)
        without = {*pairs.values(), *map(input_scale_name, pairs)}
        self.inner, self.path, self.nbytes, self.notes = inner, inner.path, inner.nbytes, inner.notes
        self.names = [name for name in inner.names if name not in without]
        self.aliases = inner.aliases
        self.metadata = {key: text for key, text in inner.metadata.items() if key not in KEYS}
        self._scales = {weight: read_scales(inner, weight, scale) for weight, scale in pairs.items()}

    def rows_of(self, name: str) -> Rows:
        rows = self.inner.rows_of(name)
        return dequantized(rows, self._scales[name]) if name in self._scales else rows

    def expect(self, names: Iterable[str], times: int = 1) -> None:
        self.inner.expect(names, times)

    def forget(self, names: Iterable[str]) -> None:
        self.inner.forget(names)

    def close(self) -> None:
        self.inner.close()
