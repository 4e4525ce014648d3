"""A page on a checkpoint that a cluster reads: a task for each file, which counts; the client adds up, and draws."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import sparsefmt
from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.contract import TensorFile
from sparsefmt.container.file_objects import destination
from sparsefmt.container.remote_path import place_of
from sparsefmt.dask.clients import client_of
from sparsefmt.dask.running import News, OnCluster, check_version, run, teller
from sparsefmt.dask.source_files import SourceFile
from sparsefmt.patterns import Change, Pattern, change_of
from sparsefmt.report.contents import Contents
from sparsefmt.report.figures import Figures
from sparsefmt.report.gathering import (
    Compressed,
    add_compressed,
    add_notes,
    compress,
    contents_of,
    expect_new,
    look_at_some,
    models_for,
    tensor_of,
)
from sparsefmt.report.page import page_of
from sparsefmt.urls import is_url


def report(
    model: str | os.PathLike[str],
    page: str | os.PathLike[str],
    client: Any = None,
    *,
    other: str | os.PathLike[str] | None = None,
    fold: bool = False,
    max_decoded_bytes: int | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    retries: int = 3,
    storage_options: Mapping[str, Any] | None = None,
) -> None:
    """Make a page on a model, whose files a cluster reads. It is, byte for byte, the page of `sparsefmt report`.

    Args:
        model: a file, a folder, or the index of shards, as workers see it, too: a path or a URL.
        page: the HTML file to write: a path or a URL.
        client: as in `sparsefmt.dask.convert`.
        other: a later state of the model: the page then says, too, what has changed.
        fold: as the option of `sparsefmt report`.
        max_decoded_bytes: of each .sparsefmt file, as in `sparsefmt.load_file`.
        overwrite: replace a page that is there.
        threads: that work on one file; by default one.
        retries: how often a file is tried again after an error of a network or a store.
        storage_options: for URLs, what fsspec's file systems take. They go to the workers.

    Raises:
        FileExistsError: the page exists, and not `overwrite`.
        SparsefmtError: a file is damaged, files and index of a folder disagree, a worker has another version.
        OSError: a file cannot be read or written, a worker died again and again, no scheduler answers.
        ImportError: jinja2 or matplotlib is missing; the client alone needs them.

    Cost: as `sparsefmt report`, the files divided among the workers; each holds a bit for each element of the largest
        few tensors, a few tiles, and what was counted. The client draws.

    Example:
        >>> sparsefmt.dask.report("s3://models/llama-pruned", "llama.html", "tcp://scheduler:8786")
    """
    import jinja2  # noqa: F401
    import matplotlib  # noqa: F401

    given = [page, model] if other is None else [page, model, other]
    target, *places = [place_of(place, storage_options if is_url(place) else None) for place in given]
    expect_new(target, overwrite)
    with models_for(target, places, fold, max_decoded_bytes) as models:
        contents = contents_of(*models)
        with client_of(client, len(models[0].files)) as found:
            gather(models, contents, threads, OnCluster(found, retries))
    drawn = page_of(contents).encode()
    with destination(target) as file:
        file.write(drawn)


def gather(models: Sequence[Checkpoint], contents: Contents, threads: int | None, where: OnCluster) -> None:
    """Read all tensors on a cluster, and add to the contents of a page what one machine would add.

    Args:
        models: that the page is on, and, if that is compared with another one, the other.
        contents: of a page of which no tensor has been read.
        threads: for each file, by default 1.
    """
    model = models[0]
    tasks = _tasks_for(models, contents, threads or 1)
    sizes = {name: task.nbytes for name, task in tasks.items()}
    news = News(sizes, where.progress)
    by_name = {tensor.name: tensor for tensor in contents.tensors}
    places = [{tensor.name: place for place, tensor in enumerate(group.tensors)} for group in contents.groups]
    made: dict[str, Compressed] = {}
    with news.heard(where.client) as topic:
        # the largest first, so that no worker has one to itself in the end
        told = {name: replace(tasks[name], topic=topic) for name in sorted(tasks, key=lambda name: -sizes[name])}
        for task, found in run(read_file, told, where):
            for name, pattern in found.patterns.items():
                by_name[name].pattern = pattern
            for name, change in found.changes.items():
                by_name[name].change = change
            for number, figures in found.figures.items():
                group = contents.groups[number]
                if group.figures is None:
                    group.figures = figures
                else:
                    group.figures.merge(figures, places[number])
            made[task.source.called] = found.made
            news.finished(task.source.called)
    add_notes(contents)
    add_compressed(contents, (made[str(file.path)] for file in model.files))


def _tasks_for(models: Sequence[Checkpoint], contents: Contents, threads: int) -> dict[str, FileTask]:
    """A task for each file of the first model, by its path."""
    model, other = models[0], models[-1]
    known: dict[int, SourceFile] = {}

    def seen(file: TensorFile) -> SourceFile:
        if id(file) not in known:
            known[id(file)] = SourceFile.of(file, other.file_format)
        return known[id(file)]

    tasks = {str(file.path): FileTask(SourceFile.of(file, model.file_format), threads) for file in model.files}
    for number, group in enumerate(contents.groups):
        for tensor in group.tensors:
            task = tasks[str(model.holder[tensor.name].path)]
            task.nbytes += tensor.dense_nbytes if contents.is_ours else 0
            if tensor.is_readable:
                task.groups.setdefault(number, []).append(tensor.name)
                task.nbytes += tensor.dense_nbytes
                if group.has_figures:
                    task.with_figures.add(number)
    for name in contents.comparison.compared if contents.comparison else ():
        file = model.holder[name]
        task = tasks[str(file.path)]
        task.comparable[name] = seen(other.holder[name])
        task.nbytes += file.rows_of(name).dense_nbytes
    if not contents.is_ours:
        for file in model.files:
            tasks[str(file.path)].nbytes += sum(file.rows_of(name).dense_nbytes for name in file.names)
    return tasks


@dataclass
class FileTask:
    """All that a worker has to know to read a file for a page.

    Attributes:
        source: the file.
        threads: that read it.
        groups: names of the tensors to be looked at, in their order, by the number of their group.
        with_figures: numbers of groups that have figures.
        comparable: files of another model that have tensors of these names.
        nbytes: dense bytes of what is read, compared and compressed.
        topic: where the dense bytes that are done are told; "" for nowhere.
    """

    source: SourceFile
    threads: int
    groups: dict[int, list[str]] = field(default_factory=dict)
    with_figures: set[int] = field(default_factory=set)
    comparable: dict[str, SourceFile] = field(default_factory=dict)
    nbytes: int = 0
    topic: str = ""
    version: str = sparsefmt.__version__


@dataclass
class FileFound:
    """What a worker found in a file. It is small, whatever was read.

    Attributes:
        patterns, changes: of tensors, by name.
        figures: of the tensors of a group that are in this file, by the number of the group.
        made: what sparsefmt makes of the file.
    """

    patterns: dict[str, Pattern]
    changes: dict[str, Change]
    figures: dict[int, Figures]
    made: Compressed


def read_file(task: FileTask) -> FileFound:
    """Read a file for a page. Runs on a worker; holds the mask of a tensor for each thread, and a few tiles.

    Raises:
        UnsupportedError: the worker has another version of sparsefmt (`worker-version`).
        FormatError: a file has been replaced meanwhile (`file-changed`), or is damaged.
        OSError: a file cannot be read.
    """
    check_version(task.version)
    tell = teller(task.topic, task.source.called)
    found = FileFound({}, {}, {}, Compressed(0, {}))
    with ExitStack() as stack:
        stack.enter_context(task.source.called_by_client())
        file = stack.enter_context(task.source.opened())
        file.expect([name for names in task.groups.values() for name in names])
        for number, names in task.groups.items():
            tensors = [tensor_of(file, name) for name in names]
            figures = look_at_some(tensors, number in task.with_figures, task.threads, tell)
            if figures is not None:
                found.figures[number] = figures
            found.patterns |= {tensor.name: tensor.pattern for tensor in tensors if tensor.pattern is not None}
        others = {other: stack.enter_context(other.opened()) for other in set(task.comparable.values())}
        for other, opened in others.items():
            opened.expect([name for name, holder in task.comparable.items() if holder == other])
        for name, other in task.comparable.items():
            rows = others[other].rows_of(name)
            found.changes[name] = change_of(file.rows_of(name), rows, progress=tell, threads=task.threads)
        found.made = compress(file, task.threads, tell)
    if found.made.refusal is not None:
        task.source.rename_in(found.made.refusal)
    return found
