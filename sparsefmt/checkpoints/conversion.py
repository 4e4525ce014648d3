"""Turns files of one format into the other, tensor by tensor, tile by tile. Where they go says `target_folder.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np

from sparsefmt.adapters import Rows, Survey
from sparsefmt.checkpoints import scales
from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.contract import TensorFile
from sparsefmt.checkpoints.quantizing import DequantizedFile, quantize
from sparsefmt.checkpoints.safetensors_writing import write_safetensors
from sparsefmt.checkpoints.sparsefmt_file import SparsefmtFile
from sparsefmt.checkpoints.target_folder import FilesWriter, write_checkpoint
from sparsefmt.container.entry import TensorEntry
from sparsefmt.container.file_objects import destination as writing
from sparsefmt.container.remote_path import Place
from sparsefmt.container.writer import Sink
from sparsefmt.layouts.entries import Entries
from sparsefmt.quantizing import Loss, Quantization
from sparsefmt.save_options import SaveOptions
from sparsefmt.tensor_writer import PreparedTensor, TensorWriter
from sparsefmt.threads import in_batches

_MOST_AHEAD = 1 << 22
"""Bytes of a dense tensor up to which it is prepared ahead of those before it: a few of them are held."""

Progress = Callable[[int], object]
"""Called with the dense bytes of each tile done."""


@dataclass(frozen=True)
class ConvertedTensor:
    """What became of one tensor.

    Attributes:
        name: of the tensor.
        entry: in the index; of a copy, that of what it is a copy of.
        survey: its zeros, as they were.
        is_copy: whether it has the elements of another tensor, and is stored as a copy of that.
        stored_nbytes: of all its chunks; 0 for a copy.
        sign_nbytes: of those, what the signs of negative zeros take.
        source_nbytes: of the tensor in the source; 0 for scales, which were made.
        loss: what quantizing has lost, if it was quantized.
    """

    name: str
    entry: TensorEntry
    survey: Survey
    is_copy: bool
    stored_nbytes: int
    sign_nbytes: int
    source_nbytes: int
    loss: Loss | None = None


def convert_checkpoint(
    source: Checkpoint,
    destination: Place,
    options: SaveOptions,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[ConvertedTensor]:
    """Convert safetensors, or files of torch, to .sparsefmt: a file to the file `destination`, a folder to that folder.

    Holds a few tiles in memory. On failure, all files are what they were; of a folder in a store, see `store_folder`.
    With `overwrite`, a folder holds no other model afterwards: weights and indexes of an earlier one are removed. Files
    that may be anybody's are left alone.
    Pruned weights are quantized where `source.quantization` says so.

    Raises:
        FileExistsError: the destination exists, and not `overwrite`.
        SparsefmtError: a tensor that cannot be stored, or not be quantized, a damaged source, or a config.json that
            says that the weights are quantized.
        OSError: the disk is full, a file cannot be read, the destination is the source, ….
    """
    converted: list[ConvertedTensor] = []

    def write(file: TensorFile, place: Place) -> list[str]:
        tensors = convert_file(file, place, options, source.quantization, progress)
        converted.extend(tensors)
        return [*(tensor.name for tensor in tensors), *file.aliases]

    write_checkpoint(source, destination, "sparsefmt", overwrite, FilesWriter(write))
    return converted


def export_checkpoint(
    source: Checkpoint,
    destination: Place,
    *,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Convert .sparsefmt to safetensors; otherwise as `convert_checkpoint`.

    Tied tensors are written in full, each. Scaled weights are written as elements and scales, unless the source is
    dequantized; what products would refuse of them is refused.

    Raises:
        LimitError: a file would become larger than `max_decoded_bytes` of the checkpoint.
        as `convert_checkpoint`.
    """

    def write(file: TensorFile, place: Place) -> list[str]:
        matrices = {name: file.rows_of(name) for name in file.names}
        stored = file.inner if isinstance(file, DequantizedFile) else file
        if isinstance(stored, SparsefmtFile):
            stored.reader.budget.ask(sum(matrix.dense_nbytes for matrix in matrices.values()))
        if not isinstance(file, DequantizedFile):
            scales.checked_pairs(file)
        file.expect(file.names)
        with writing(place) as sink:
            write_safetensors(sink, matrices, file.metadata, progress=progress, threads=threads)
        return file.names

    write_checkpoint(source, destination, "safetensors", overwrite, FilesWriter(write))


def convert_file(
    source: TensorFile,
    destination: Place,
    options: SaveOptions,
    quantization: Quantization | None = None,
    progress: Progress | None = None,
) -> list[ConvertedTensor]:
    """Convert one file, its tensors in the order of the source. Each is read twice: to count zeros, then to store.

    quantization: as a Checkpoint has it.
    """
    with writing(destination) as sink:
        return write_converted(source, sink, options, quantization, progress)


def write_converted(
    source: TensorFile,
    sink: Sink,
    options: SaveOptions,
    quantization: Quantization | None = None,
    progress: Progress | None = None,
) -> list[ConvertedTensor]:
    """Write what `convert_file` makes of a file to anything with `write`."""
    source.expect(source.names, times=2)
    surveys: dict[str, Survey] = {}
    made: dict[str, Rows] = {}
    losses: dict[str, Loss] = {}
    pairs = scales.checked_pairs(source)

    def again(name: str) -> Rows:
        return made[name] if name in made else source.rows_of(name)

    writer = TensorWriter(sink, source.metadata, **options.as_keywords(), again=again, progress=progress)
    for name, ahead in _prepared(source, writer, quantization is None, options.threads):
        if name in source.aliases:
            writer.add_alias(name, source.aliases[name])
            if progress:
                progress(source.rows_of(name).dense_nbytes)
            continue
        if ahead is not None:
            surveys[name] = ahead.survey
            writer.add_prepared(ahead.tensor)
            source.forget([name])
            continue
        matrix = _SurveyedRows(source.rows_of(name))
        surveys[name] = matrix.survey(options.threads)
        found = None if quantization is None else quantize(source, name, quantization, surveys[name])
        if found is None:
            writer.add(name, matrix)
            source.forget([name])
            continue
        made |= {name: found.elements, found.scale_name: found.scale}
        losses[name], pairs[name] = found.loss, found.scale_name
        for part in (name, found.scale_name):
            surveyed = _SurveyedRows(made[part])
            surveys[part] = surveyed.survey(options.threads)
            writer.add(part, surveyed)
        source.forget([name])
        if progress:
            progress(matrix.dense_nbytes - found.elements.dense_nbytes - found.scale.dense_nbytes)
    if losses and quantization is not None:
        pairs |= {alias: pairs[target] for alias, target in source.aliases.items() if target in losses}
        lost = Loss.total(losses.values()).as_metadata(quantization)
        writer.add_metadata({**scales.as_metadata(pairs), scales.VALUES: lost})
    index = writer.finish()

    def converted(name: str) -> ConvertedTensor:
        entry, is_copy = index.entry(name), name in index.copies
        sizes = (0, 0) if is_copy else (index.stored_nbytes(entry), index.sign_nbytes(entry))
        # scales were made here
        before = source.rows_of(name).dense_nbytes if name in losses or name not in made else 0
        return ConvertedTensor(name, entry, surveys[name], is_copy, *sizes, before, losses.get(name))

    return [converted(name) for name in surveys]


class _Ahead(NamedTuple):
    """A tensor that is ready to be written, and its zeros."""

    survey: Survey
    tensor: PreparedTensor


def _prepared(
    source: TensorFile, writer: TensorWriter, small_ones: bool, threads: int | None
) -> Iterator[tuple[str, _Ahead | None]]:
    """All names, and with those of small tensors, what is to be written, if `small_ones`.

    The tiles of a large tensor keep all threads busy. Small ones have a tile or a few: several are prepared at a time.
    """
    matrices = ((name, None if name in source.aliases else source.rows_of(name)) for name in source.names)

    def is_small(tensor: tuple[str, Rows | None]) -> bool:
        return small_ones and (tensor[1] is None or tensor[1].dense_nbytes <= _MOST_AHEAD)

    def nbytes(tensor: tuple[str, Rows | None]) -> int:
        return 0 if tensor[1] is None else tensor[1].dense_nbytes

    def prepared(tensor: tuple[str, Rows | None]) -> tuple[str, _Ahead | None]:
        name, rows = tensor
        if rows is None:
            return name, None
        matrix = _SurveyedRows(rows)
        return name, _Ahead(matrix.survey(threads), writer.prepare(name, matrix))

    for small, tensors in groupby(matrices, is_small):
        if small:
            yield from in_batches(prepared, tensors, nbytes, threads)
        else:
            yield from ((name, None) for name, _ in tensors)


class _SurveyedRows(Rows):
    """Rows that are surveyed once, however often it is asked."""

    def __init__(self, inner: Rows) -> None:
        super().__init__(inner.dtype, inner.shape)
        self._inner = inner
        self.is_sparse, self.is_settled = inner.is_sparse, inner.is_settled
        self._survey: Survey | None = None
        super().stack(inner.row_dims)

    def stack(self, row_dims: int) -> None:
        super().stack(row_dims)
        self._inner.stack(row_dims)
        self._survey = None

    def bits(self, begin: int, end: int) -> np.ndarray:
        return self._inner.bits(begin, end)

    def entries(self, begin: int, end: int) -> Entries:
        return self._inner.entries(begin, end)

    def survey(self, threads: int | None = None) -> Survey:
        if self._survey is None:
            self._survey = self._inner.survey(threads)
            self.in_rows = self._inner.in_rows
        return self._survey
