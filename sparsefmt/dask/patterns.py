"""Patterns of zeros found by a cluster: a task for each file of a checkpoint."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import sparsefmt
from sparsefmt.checkpoints import found_patterns
from sparsefmt.checkpoints.contract import TensorFile
from sparsefmt.checkpoints.formats import FileFormat
from sparsefmt.dask.running import News, OnCluster, check_version, run, teller
from sparsefmt.dask.source_files import SourceFile
from sparsefmt.patterns import Pattern


def find_patterns(
    wanted: Sequence[tuple[TensorFile, str]], file_format: FileFormat, threads: int | None, where: OnCluster
) -> list[Pattern]:
    """As `checkpoints.found_patterns.find_patterns`, on a cluster. threads: for each file, by default 1."""
    names, files = defaultdict(list), {}
    sizes: dict[str, int] = defaultdict(int)
    for file, name in wanted:
        files[str(file.path)] = file
        names[str(file.path)].append(name)
        sizes[str(file.path)] += file.rows_of(name).dense_nbytes
    tasks = {
        path: FileTask(SourceFile.of(files[path], file_format), tuple(names[path]), threads or 1)
        # the largest first, so that no worker has one to itself in the end
        for path in sorted(files, key=lambda path: -sizes[path])
    }
    news = News(sizes, where.progress)
    found: dict[tuple[str, str], Pattern] = {}
    with news.heard(where.client) as topic:
        told = {path: replace(task, topic=topic) for path, task in tasks.items()}
        for task, patterns in run(patterns_in_file, told, where):
            path = task.source.called
            found |= {(path, name): pattern for name, pattern in zip(task.names, patterns, strict=True)}
            news.finished(path)
    return [found[str(file.path), name] for file, name in wanted]


@dataclass(frozen=True)
class FileTask:
    """All that a worker has to know to find patterns in a file.

    Attributes:
        source: the file.
        names: of the tensors that are read.
        threads: that read them.
        topic: where the dense bytes that are done are told; "" for nowhere.
    """

    source: SourceFile
    names: tuple[str, ...]
    threads: int
    topic: str = ""
    version: str = sparsefmt.__version__


def patterns_in_file(task: FileTask) -> list[Pattern]:
    """The patterns of tensors of a file, in order. Runs on a worker; holds the mask of a tensor for each thread.

    Raises:
        UnsupportedError: the worker has another version of sparsefmt (`worker-version`).
        FormatError: the file has been replaced meanwhile (`file-changed`), or is damaged.
        OSError: it cannot be read.
    """
    check_version(task.version)
    with task.source.called_by_client(), task.source.opened() as file:
        tell = teller(task.topic, task.source.called)
        return found_patterns.find_patterns([(file, name) for name in task.names], tell, task.threads)
