"""Verifies the files of a checkpoint, alone or against the tensors of another one, and says what was found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sparsefmt.checkpoints import comparison, huggingface
from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.contract import TensorFile
from sparsefmt.checkpoints.scales import pair_faults
from sparsefmt.checkpoints.sparsefmt_file import SparsefmtFile
from sparsefmt.checkpoints.verification import Verified, Verifier, check_index
from sparsefmt.container.entry import TensorEntry
from sparsefmt.errors import SparsefmtError, in_file

Fault = SparsefmtError | str
"""An error, or a sentence."""


@dataclass
class Findings:
    """The results of verifying. They are small, whatever was read.

    Attributes:
        tensors, chunks: how many were read.
        signs: negative zeros of the other model that are 0.0 here, as the file records.
        of_names, of_indexes, of_tensors: faults. Errors name their file.
        of_pairs: of weights and their scales that do not fit, though each can be read.
    """

    tensors: int = 0
    chunks: int = 0
    signs: int = 0
    of_names: list[str] = field(default_factory=list)
    of_indexes: list[SparsefmtError] = field(default_factory=list)
    of_tensors: list[Fault] = field(default_factory=list)
    of_pairs: list[SparsefmtError] = field(default_factory=list)

    def __add__(self, other: Findings) -> Findings:
        return Findings(
            self.tensors + other.tensors,
            self.chunks + other.chunks,
            self.signs + other.signs,
            self.of_names + other.of_names,
            self.of_indexes + other.of_indexes,
            self.of_tensors + other.of_tensors,
            self.of_pairs + other.of_pairs,
        )

    @property
    def faults(self) -> list[Fault]:
        return [*self.of_names, *self.of_indexes, *self.of_tensors, *self.of_pairs]


class Pass(NamedTuple):
    """A tensor that is read, and its name in the model that it is compared with, if it is.

    A tensor is read once for its first name, and once for each tied name that is compared: these are rare.
    """

    file: SparsefmtFile
    entry: TensorEntry
    name: str


class Verification:
    """A checkpoint that is to be verified, and what of another one it is compared with.

    Attributes:
        of_names: sentences on tensors that cannot be compared.
        comparable: which file of the other model has a tensor, by the names of those that can.
    """

    def __init__(self, ours: Checkpoint, theirs: Checkpoint | None = None) -> None:
        self.ours, self.theirs = ours, theirs
        self.of_names, names = comparison.compare_names(ours, theirs) if theirs is not None else ([], set())
        self.comparable = {name: theirs.holder[name] for name in names} if theirs is not None else {}

    @property
    def nbytes(self) -> int:
        """Of what is read, when dense."""
        return nbytes_of(self.ours.files, self.comparable)

    def run(self, verifier: Verifier) -> Findings:
        """As `verify_files`."""
        if self.theirs is not None:
            self.theirs.expect()
        return self.completed(verify_files(self.ours.files, self.comparable, verifier))

    def completed(self, found: Findings) -> Findings:
        """What was found in the files, with what is said of all of them: of names, and of weights that config.json has
        for quantized ones. Of these, if nothing else is wrong; and the first fault alone."""
        found = Findings(of_names=self.of_names) + found
        if self.ours.is_folder and not (found.of_tensors or found.of_pairs):
            try:
                quantization = huggingface.quantization_beside(self.ours.path)
                if quantization is not None:
                    self.ours.check_quantized(quantization)
            except SparsefmtError as error:
                found.of_pairs.append(error)
        return found


def nbytes_of(files: Iterable[TensorFile], comparable: Mapping[str, TensorFile]) -> int:
    """Dense bytes of what is read to verify these files."""
    return sum(each.entry.dense_nbytes for each in passes_of(files, comparable))


def passes_of(files: Iterable[TensorFile], comparable: Mapping[str, TensorFile]) -> list[Pass]:
    """All that has to be read to verify these files. comparable: which file of the other model has a tensor."""
    passes = []
    for file in files:
        if not isinstance(file, SparsefmtFile):
            continue
        index, tied = file.reader.index, defaultdict(list)
        for name in index.aliases:
            if name in comparable:
                tied[index.entry(name).name].append(name)
        for entry in index.tensors.values():
            passes += [Pass(file, entry, name) for name in (entry.name, *tied[entry.name])]
    return passes


def verify_files(files: Sequence[TensorFile], comparable: Mapping[str, TensorFile], verifier: Verifier) -> Findings:
    """Verify files, and compare each of their tensors with that of its name in the other model, if it is `comparable`.

    After a fault of a tensor, nothing more is said of it.

    Args:
        comparable: which file of the other model has a tensor, by its name. Dtypes and shapes are equal.
    """
    passes = passes_of(files, comparable)
    tensors = [
        Verified(file.reader, entry, comparable[name].rows_of(name) if name in comparable else None)
        for file, entry, name in passes
    ]
    found, bad, damaged = Findings(), set(), set()
    if verifier.strict:
        found.of_indexes = _index_faults(files)
    for (file, entry, name), tensor, result in zip(passes, tensors, verifier.verify_all(tensors), strict=True):
        if name == entry.name:
            found.tensors += 1
            found.chunks += entry.chunk_count
        if id(entry) in bad:
            continue
        if isinstance(result, SparsefmtError):
            found.of_tensors.append(_named(result, file))
            bad.add(id(entry))
            damaged.add(entry.name)
            continue
        if result.elements:
            found.of_tensors.append(comparison.describe(name, entry.dtype, entry.shape, result))
        if tensor.against is not None and result.signs != entry.negative_zeros_dropped:
            found.of_tensors.append(
                f"tensor {name!r}: {result.signs:,} negative zeros are 0.0 here, and the file records "
                f"{entry.negative_zeros_dropped:,}"
            )
        found.signs += result.signs
    for each in files:
        found.of_pairs += [_named(fault, each) for fault in pair_faults(each, damaged)]
    return found


def _index_faults(files: Sequence[TensorFile]) -> list[SparsefmtError]:
    faults = []
    for file in files:
        if isinstance(file, SparsefmtFile):
            try:
                check_index(file.reader)
            except SparsefmtError as error:
                faults.append(_named(error, file))
    return faults


def _named(error: SparsefmtError, file: TensorFile) -> SparsefmtError:
    """The error with the name of its file."""
    try:
        with in_file(file.path):
            raise error
    except SparsefmtError as named:
        return named.with_traceback(None)
