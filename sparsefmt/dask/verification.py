"""A checkpoint verified by a cluster: a task for each of its files, which finds what one machine would find."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any

import sparsefmt
from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.contract import TensorFile
from sparsefmt.checkpoints.verification import Verifier
from sparsefmt.checkpoints.verified_files import Findings, Verification, nbytes_of, verify_files
from sparsefmt.container.remote_path import place_of
from sparsefmt.dask.clients import client_of
from sparsefmt.dask.running import News, OnCluster, check_version, run, teller
from sparsefmt.dask.source_files import SourceFile
from sparsefmt.errors import SparsefmtError
from sparsefmt.urls import is_url


def verify(
    place: str | os.PathLike[str],
    client: Any = None,
    *,
    against: str | os.PathLike[str] | None = None,
    strict: bool = False,
    fold: bool = False,
    max_decoded_bytes: int | None = None,
    threads: int | None = None,
    retries: int = 3,
    storage_options: Mapping[str, Any] | None = None,
) -> list[str]:
    """Verify a .sparsefmt file or a folder of them on a cluster, as `sparsefmt verify` does, each file by a worker.

    Args:
        place: a file, a folder, or the index of shards, as workers see it, too: a path or a URL.
        client: as in `sparsefmt.dask.convert`.
        against: compare names, dtypes, shapes and every bit with this file or folder, of any format.
        strict, fold: as the options of `sparsefmt verify`.
        max_decoded_bytes: of each .sparsefmt file, as in `sparsefmt.load_file`.
        threads: that work on one file; by default one.
        retries: how often a file is tried again after an error of a network or a store.
        storage_options: for URLs, what fsspec's file systems take. They go to the workers.

    Returns:
        a sentence for each fault; none if all is well.

    Raises:
        SparsefmtError: an index is damaged, files and index of a folder disagree, a worker has another version.
        OSError: a file cannot be read, a worker died again and again, no scheduler answers.

    Cost: each chunk is read and decoded once; a worker holds a few tiles for each of its threads.

    Example:
        >>> sparsefmt.dask.verify("llama-pruned-sparsefmt", "tcp://scheduler:8786", against="llama-pruned")
        []
    """
    with ExitStack() as stack:

        def opened(given: str | os.PathLike[str], *formats: Any) -> Checkpoint:
            options = storage_options if is_url(given) else None
            return stack.enter_context(Checkpoint(place_of(given, options), formats, max_decoded_bytes))

        ours = opened(place, "sparsefmt")
        theirs = None if against is None else opened(against, "safetensors", "sparsefmt", "torch")
        if theirs is not None and fold:
            theirs.fold()
        found = stack.enter_context(client_of(client, len(ours.files)))
        verification = Verification(ours, theirs)
        faults = verify_checkpoint(verification, Verifier(strict, threads=threads), OnCluster(found, retries)).faults
        return list(map(str, faults))


def verify_checkpoint(verification: Verification, verifier: Verifier, where: OnCluster) -> Findings:
    """As `Verification.run`, on a cluster. The verifier's threads are for each file, by default 1."""
    ours, theirs, holders = verification.ours, verification.theirs, verification.comparable
    tasks, sizes = {}, {}
    known: dict[int, SourceFile] = {}

    def seen(file: TensorFile) -> SourceFile:
        if id(file) not in known:
            known[id(file)] = SourceFile.of(file, theirs.file_format if theirs is not None else "sparsefmt")
        return known[id(file)]

    for file in ours.files:
        name = str(file.path)
        comparable = {tensor: holders[tensor] for tensor in file.names if tensor in holders}
        others = list({id(other): other for other in comparable.values()}.values())
        numbers = {id(other): number for number, other in enumerate(others)}
        tasks[name] = FileTask(
            SourceFile.of(file, ours.file_format),
            tuple(map(seen, others)),
            {tensor: numbers[id(other)] for tensor, other in comparable.items()},
            (verifier.strict, verifier.threads or 1),
        )
        sizes[name] = nbytes_of([file], comparable)
    news = News(sizes, verifier.progress)
    found: dict[str, Findings] = {}
    with news.heard(where.client) as topic:
        # the largest first, so that no worker has one to itself in the end
        told = {name: replace(tasks[name], topic=topic) for name in sorted(tasks, key=lambda name: -sizes[name])}
        for task, findings in run(verify_file, told, where):
            name = task.source.called
            found[name] = findings
            news.finished(name)
    return verification.completed(reduce(add, (found[str(file.path)] for file in ours.files), Findings()))


@dataclass(frozen=True)
class FileTask:
    """All that a worker has to know to verify a file.

    Attributes:
        source: the file.
        others: those of another model that have tensors of these names.
        comparable: which of them has a tensor, by its name.
        how: `strict` and `threads` of the Verifier.
        topic: where the dense bytes that are done are told; "" for nowhere.
    """

    source: SourceFile
    others: tuple[SourceFile, ...]
    comparable: dict[str, int]
    how: tuple[bool, int]
    topic: str = ""
    version: str = sparsefmt.__version__


def verify_file(task: FileTask) -> Findings:
    """Verify a file, and compare its tensors. Runs on a worker; holds a few tiles.

    Raises:
        UnsupportedError: the worker has another version of sparsefmt (`worker-version`).
        FormatError: a file has been replaced meanwhile (`file-changed`).
        OSError: a file cannot be read.
    """
    check_version(task.version)
    strict, threads = task.how
    with ExitStack() as stack:
        stack.enter_context(task.source.called_by_client())
        file = stack.enter_context(task.source.opened())
        others = [stack.enter_context(other.opened()) for other in task.others]
        comparable = {name: others[number] for name, number in task.comparable.items()}
        for other in others:
            other.expect([name for name, holder in comparable.items() if holder is other])
        verifier = Verifier(strict, teller(task.topic, task.source.called), threads)
        found = verify_files([file], comparable, verifier)
    for fault in found.faults:
        for source in (task.source, *task.others):
            if isinstance(fault, SparsefmtError):
                source.rename_in(fault)
    return found
