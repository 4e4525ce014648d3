"""The files of a quantized checkpoint as loaders read them: tensors folded, and scales with their weights."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import ExitStack

from sparsefmt.adapters import Rows
from sparsefmt.checkpoints.compressed_tensors import Quantization
from sparsefmt.checkpoints.contract import TensorFile
from sparsefmt.checkpoints.folding import folded_files
from sparsefmt.checkpoints.formats import expect_format
from sparsefmt.checkpoints.quantized import quantized_weights
from sparsefmt.checkpoints.safetensors_file import SafetensorsFile
from sparsefmt.checkpoints.scales import scales_in
from sparsefmt.checkpoints.sparsefmt_file import SparsefmtFile
from sparsefmt.container.remote_path import Place, place_of
from sparsefmt.errors import in_file
from sparsefmt.urls import Url


class QuantizedFiles:
    """Open files of a checkpoint whose config.json says which weights are quantized.

    Attributes:
        weights: those that are, by their names.
        stored: names of tensors that a file has under the name that they have here; others are made of several.

    Args:
        paths: all files of the checkpoint, safetensors or .sparsefmt.
        quantization: what config.json says.
        max_decoded_bytes: of each .sparsefmt file, as in `sparsefmt.load_file`.

    Raises:
        as opening the files, `folded_files` and `quantized_weights`.
    """

    def __init__(
        self,
        paths: Collection[str | os.PathLike[str] | Url],
        quantization: Quantization,
        max_decoded_bytes: int | None = None,
    ) -> None:
        with ExitStack() as stack:
            opened = [stack.enter_context(_opened(place_of(path), max_decoded_bytes)) for path in paths]
            self.stored = {name for file in opened for name in file.names}
            self._files = folded_files(opened)
            self.holder = {name: file for file in self._files for name in file.names}
            # these may be of layers that were quantized later than the others
            scaled = {name for file in opened for name in scales_in(file.metadata, file.names)}
            self.weights = quantized_weights(self.holder, quantization, scaled)
            self._others = {name for weight in self.weights.values() for name in weight.others}
            self._stack = stack.pop_all()

    def rows_of(self, name: str) -> Rows:
        """A tensor, to be read a run of rows at a time."""
        return self.holder[name].rows_of(name)

    def names_in(self, path: str | os.PathLike[str] | Url) -> list[str]:
        """Names of the tensors of one of the files, but for what belongs to a weight. Parts of one are that one."""
        [file] = [file for file in self._files if file.path == place_of(path)]
        return [name for name in file.names if name not in self._others]

    def close(self) -> None:
        """Let go of the files."""
        self._stack.close()


def _opened(path: Place, max_decoded_bytes: int | None) -> TensorFile:
    with in_file(path):
        if expect_format(path, ["safetensors", "sparsefmt"]) == "sparsefmt":
            return SparsefmtFile(path, max_decoded_bytes)
        return SafetensorsFile(path)
