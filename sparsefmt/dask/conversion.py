"""A checkpoint converted by a cluster: a task for each of its files, the code and the bytes of one machine.

The client reads the headers of all files, has each converted by a worker, looks at the index of each result, and writes
what belongs to the folder as a whole in the end. Workers see what the client sees, a shared file system or a store.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import xxhash

import sparsefmt
from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.contract import TensorFile
from sparsefmt.checkpoints.conversion import ConvertedTensor
from sparsefmt.checkpoints.target_folder import FilesWriter, write_checkpoint
from sparsefmt.container.atomic import TEMPORARY_SUFFIX
from sparsefmt.container.remote_path import Place, place_of
from sparsefmt.dask.clients import client_of
from sparsefmt.dask.running import News, OnCluster, run
from sparsefmt.dask.shards import ShardDone, ShardTask, convert_shard, found_done, index_of
from sparsefmt.dask.source_files import SourceFile, seen_by_all
from sparsefmt.quantizing import Quantization
from sparsefmt.save_options import NegativeZeros, SaveOptions
from sparsefmt.urls import is_url


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    client: Any = None,
    *,
    layout: str = "auto",
    codec: str = "auto",
    negative_zeros: NegativeZeros = "keep",
    values: str | None = None,
    group_size: int | None = None,
    scale: str = "absmax",
    fold: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    retries: int = 3,
    storage_options: Mapping[str, Any] | None = None,
) -> None:
    """Convert a checkpoint to .sparsefmt on a cluster. The files are, byte for byte, those of `sparsefmt convert`.

    Each file of the source is a task of its own, which streams: a worker needs a few tiles of memory for each of its
    threads, whatever the size of the file. Nothing takes its place before all files are whole and were read again. If
    the client is cut off, or a shard cannot be converted, what was finished stays aside; the next call with the same
    source and options goes on from there, and a conversion without a cluster removes it.

    Args:
        source: a file, a folder, or the index of shards, as workers see it, too: a path or a URL.
        destination: a file, or a folder, which then has all that belongs to the model: a path or a URL.
        client: of distributed; the address of a scheduler; "local" for worker processes of this machine; by default the
            present client, and if there is none, "local".
        layout, codec, negative_zeros: as in `sparsefmt.save_file`.
        values, group_size, scale, fold: as the options of `sparsefmt convert`.
        overwrite: replace what is there; of a folder, the weights of the model in it.
        threads: that work on one file; by default one, since a worker has as many files at a time as it has threads.
        retries: how often a file is tried again after an error of a network or a store.
        storage_options: for URLs, what fsspec's file systems take. They go to the workers.

    Raises:
        FileExistsError: the destination exists, and not `overwrite`.
        SparsefmtError: a tensor that cannot be stored, a damaged source, a worker with another version.
        OSError: a file cannot be read or written, a worker died again and again, no scheduler answers.
        ValueError: an option that does not exist.

    Example:
        >>> sparsefmt.dask.convert("llama-pruned", "llama-pruned-sparsefmt", "tcp://scheduler:8786")
    """
    options = SaveOptions(layout, codec, negative_zeros, threads=threads)
    quantization = Quantization.of(values, group_size, scale)
    places = [place_of(place, storage_options if is_url(place) else None) for place in (source, destination)]
    with Checkpoint(places[0], ["safetensors", "torch"]) as checkpoint:
        if fold:
            checkpoint.fold()
        checkpoint.quantization = quantization
        with client_of(client, len(checkpoint.files)) as found:
            convert_checkpoint(checkpoint, places[1], options, OnCluster(found, retries), overwrite=overwrite)


def convert_checkpoint(
    source: Checkpoint,
    destination: Place,
    options: SaveOptions,
    where: OnCluster,
    *,
    overwrite: bool = False,
) -> list[ConvertedTensor]:
    """As `checkpoints.conversion.convert_checkpoint`, on a cluster."""
    writer = _ClusterWriter(source, options, where)
    write_checkpoint(source, seen_by_all(destination), "sparsefmt", overwrite, writer)
    writer.remove_notes()
    return writer.converted


class _ClusterWriter(FilesWriter):
    """Has workers write the files of a checkpoint.

    Attributes:
        key: of a conversion of these files with these options, as of a StagedFolder.
        converted: what became of all tensors, once they are written.
    """

    def __init__(self, source: Checkpoint, options: SaveOptions, where: OnCluster) -> None:
        self._where = where
        self._is_folder = source.is_folder
        self._tasks = {file.path: _task_of(source, file, options) for file in source.files}
        self._nbytes = {self._tasks[file.path].fingerprint: _dense_nbytes(file) for file in source.files}
        self._states: list[Place] = []
        self.key = _checksum([task.fingerprint for task in self._tasks.values()])[:16]
        self.converted: list[ConvertedTensor] = []

    def __call__(self, files: Sequence[tuple[TensorFile, Place]]) -> list[list[str]]:
        tasks = []
        for file, place in files:
            state = self._state_of(place) if self._is_folder else None
            tasks.append(self._tasks[file.path].with_places(place, state))
        self._states = [task.state for task in tasks if task.state is not None]
        done = self._all_done(tasks)
        names = []
        for (file, place), task in zip(files, tasks, strict=True):
            found = done[task.fingerprint]
            tensors = found.converted(index_of(place, found))
            self.converted.extend(tensors)
            names.append([*(tensor.name for tensor in tensors), *file.aliases])
        return names

    def remove_notes(self) -> None:
        """Remove what was noted in a store; in a folder of this machine, that went with the files aside."""
        for state in self._states:
            with suppress(OSError):
                state.unlink()

    def _state_of(self, place: Place) -> Place:
        if isinstance(place, Path):
            return place.with_name(f"{place.name}.json")  # aside already
        return place.parent / f".converting-{self.key}{TEMPORARY_SUFFIX}" / f"{place.name}.json"

    def _all_done(self, tasks: Sequence[ShardTask]) -> dict[str, ShardDone]:
        done: dict[str, ShardDone] = {}
        sizes = self._nbytes
        news = News(sizes, self._where.progress)
        for task in tasks:
            found = found_done(task)
            if found is not None:
                done[task.fingerprint] = found
                news.finished(task.fingerprint)
        left = [task for task in tasks if task.fingerprint not in done]
        # the largest first, so that no worker has one to itself in the end
        left.sort(key=lambda task: -sizes[task.fingerprint])
        with news.heard(self._where.client) as topic:
            named = {str(task.destination): replace(task, topic=topic) for task in left}
            for task, found in run(convert_shard, named, self._where):
                index_of(task.destination, found)
                done[task.fingerprint] = found
                news.finished(task.fingerprint)
        return done


def _task_of(source: Checkpoint, file: TensorFile, options: SaveOptions) -> ShardTask:
    """The task for a file, which does not know yet where it writes."""
    of = SourceFile.of(file, source.file_format)
    folding = of.folding
    task = ShardTask(of, options, source.quantization, None)
    others = [] if folding is None else sorted({(str(o.place), o.header, o.stamp) for o in folding.elsewhere.values()})
    said = [
        *(sparsefmt.__version__, str(of.place), of.header, of.stamp, others),
        [] if folding is None else [list(asdict(group).values()) for group in folding.groups],
        sorted(folding.dropped if folding else ()),
        *(options.layout, options.codec, options.negative_zeros, options.row_dims),
        None if source.quantization is None else asdict(source.quantization),
    ]
    return replace(task, fingerprint=_checksum(said))


def _dense_nbytes(file: TensorFile) -> int:
    return sum(file.rows_of(name).dense_nbytes for name in file.names)


def _checksum(said: Any) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(said).encode())
