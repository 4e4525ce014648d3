"""Checkpoints that spell one tensor in several, read as if they had the one.

    X_orig, X_mask                                                 torch.nn.utils.prune: X is their product
    X.compressed, X.bitmask, X.shape, X.row_offsets                compressed-tensors, "sparse-bitmask"
    X.compressed, X.bitmask, X.shape                               compressed-tensors, "sparse-24-bitmask"
    X.weight_packed, X.weight_shape                                compressed-tensors, "pack-quantized"

The first versions of compressed-tensors put the endings of bitmasks behind the whole name (layer.weight.compressed),
later ones behind the name of the layer (layer.compressed), whose only such tensor is its weight. Scales stand beside
what is quantized, however that is spelled, and stay the tensors that they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from sparsefmt.adapters import Rows
from sparsefmt.checkpoints import quantized
from sparsefmt.checkpoints.bitmasks import BitmaskRows
from sparsefmt.checkpoints.contract import TensorFile
from sparsefmt.checkpoints.masks import MaskedRows, masked_pairs
from sparsefmt.checkpoints.packed import PackedRows
from sparsefmt.errors import FormatError, SparsefmtError

Spelling = Literal["mask", "sparse-bitmask", "sparse-24-bitmask", "packed"]

_WHOLE_NAMES = ("weight", "bias")
_ENDINGS = (".compressed", ".bitmask", ".shape", ".row_offsets")
_PACKED, _SHAPE = ".weight_packed", ".weight_shape"


@dataclass(frozen=True)
class Group:
    """Tensors that together are one.

    Attributes:
        name: of the one tensor.
        spelling: what they are.
        parts: their names: original and mask; or compressed, bitmask, shape, and row_offsets if there are such; or
            packed and shape.
    """

    name: str
    spelling: Spelling
    parts: tuple[str, ...]


class FoldedFile(TensorFile):
    """A file of tensors, groups of which are read as one tensor each.

    Attributes:
        inner, groups, elsewhere, dropped: what it is made of.

    Args:
        file: the file. It is closed with this one.
        groups: those whose first part is in the file.
        elsewhere: parts of groups that are in other files, by their names.
        dropped: names in the file that are parts of any group.
    """

    def __init__(
        self, file: TensorFile, groups: Sequence[Group], elsewhere: dict[str, TensorFile], dropped: Iterable[str]
    ) -> None:
        self.path = file.path
        self.metadata = file.metadata
        self.nbytes = file.nbytes
        self.inner, self.groups = file, groups
        self.elsewhere, self.dropped = elsewhere, frozenset(dropped)
        self._groups = {group.name: group for group in groups}
        first = {group.parts[0]: group.name for group in groups}
        self.names = [first.get(name, name) for name in file.names if name in first or name not in self.dropped]
        self._plain = set(self.names) - set(self._groups)
        self.aliases = {name: target for name, target in file.aliases.items() if {name, target} <= self._plain}
        self.notes = file.notes

    def rows_of(self, name: str) -> Rows:
        if name in self._plain:
            return self.inner.rows_of(name)
        group = self._groups[name]
        parts = [self.elsewhere.get(part, self.inner).rows_of(part) for part in group.parts]
        try:
            if group.spelling == "mask":
                return MaskedRows(*parts)
            if group.spelling == "packed":
                return PackedRows(name, *parts)
            compressed, bitmask, shape, *row_offsets = parts
            return BitmaskRows(name, shape, bitmask, compressed, *row_offsets)
        except SparsefmtError as error:
            raise error.within(name) from None

    def expect(self, names: Iterable[str], times: int = 1) -> None:
        self.inner.expect(self._inner_parts(names), times)

    def forget(self, names: Iterable[str]) -> None:
        self.inner.forget(self._inner_parts(names))

    def _inner_parts(self, names: Iterable[str]) -> list[str]:
        """The tensors of the file itself that these are made of."""
        parts = (self._groups[name].parts if name in self._groups else (name,) for name in names)
        return [part for each in parts for part in each if part not in self.elsewhere]

    def close(self) -> None:
        self.inner.close()


def foldable(names: Iterable[str]) -> list[Group]:
    """The groups among the names of a checkpoint, those of all its files together. Only names are looked at."""
    known = dict.fromkeys(names)
    groups = [Group(name, "mask", parts) for name, parts in masked_pairs(known).items()]
    stems = [stem for stem in _stems(known) if all(stem + ending in known for ending in _ENDINGS[:3])]
    is_old = any(stem.rpartition(".")[2] in _WHOLE_NAMES for stem in stems)
    for stem in stems:
        parts = tuple(stem + ending for ending in _ENDINGS if stem + ending in known)
        spelling: Spelling = "sparse-bitmask" if len(parts) == len(_ENDINGS) else "sparse-24-bitmask"
        groups.append(Group(stem if is_old else f"{stem}.weight", spelling, parts))
    packed = [name.removesuffix(_PACKED) for name in known if name.endswith(_PACKED)]
    return groups + [
        Group(f"{stem}.weight", "packed", (stem + _PACKED, stem + _SHAPE)) for stem in packed if stem + _SHAPE in known
    ]


def folded(file: TensorFile) -> TensorFile:
    """The same file, with each group of tensors that are one as that one. The file itself if it has no group.

    Raises:
        FormatError: a group lacks a part, or its name is taken; it names the tensor. A group whose tensors do not fit
            each other is noticed by `adapters`, or when it is read.
    """
    return folded_files([file])[0]


def folded_files(files: Sequence[TensorFile]) -> list[TensorFile]:
    """As `folded`, for the files of one checkpoint: parts of a group may be in different files.

    The one tensor belongs to the file that has the first part, its original or its compressed elements. All files must
    be open as long as one of them is read.
    """
    holder = {name: file for file in files for name in file.names}
    groups = foldable(holder)
    parts = {part for group in groups for part in group.parts}
    _check_names(holder, groups, parts)
    _check_packed(holder, groups)
    if not groups:
        return list(files)
    return [_folded_file(file, groups, holder, parts) for file in files]


def _folded_file(file: TensorFile, groups: list[Group], holder: dict[str, TensorFile], parts: set[str]) -> TensorFile:
    own = [group for group in groups if holder[group.parts[0]] is file]
    elsewhere = {part: holder[part] for group in own for part in group.parts if holder[part] is not file}
    return FoldedFile(file, own, elsewhere, parts.intersection(file.names))


def _stems(names: Iterable[str]) -> list[str]:
    """What stands before .compressed or .bitmask, each once, in order."""
    stems = (name.removesuffix(ending) for name in names for ending in _ENDINGS[:2] if name.endswith(ending))
    return list(dict.fromkeys(stems))


def _check_names(names: dict[str, TensorFile], groups: list[Group], parts: set[str]) -> None:
    whole = {part.rpartition(".")[0] for part in parts if part.endswith(_ENDINGS)}
    for stem in _stems(names):
        present = [stem + ending for ending in _ENDINGS if stem + ending in names]
        if stem not in whole and len(present) > 1:
            missing = next(stem + ending for ending in _ENDINGS if stem + ending not in names)
            raise FormatError(
                "fold-incomplete", f"{' and '.join(map(repr, present))} are there, and {missing!r} is not", tensor=stem
            )
    taken = set(names) - parts
    for group in groups:
        if group.name in taken:
            raise FormatError(
                "fold-name", f"it is there beside {group.parts[0]!r}, which would become it", tensor=group.name
            )
        taken.add(group.name)


def _check_packed(names: dict[str, TensorFile], groups: list[Group]) -> None:
    """Refuse words that stand for something else than what they are unpacked to, and halves of pairs."""
    for name, file in names.items():
        if name.endswith(_SHAPE) and (other := name.removesuffix(_SHAPE) + _PACKED) not in names:
            raise FormatError("fold-incomplete", f"it is there, and {other!r} is not", tensor=name)
        # other formats of 4 bits pack bytes, and have no shape
        if name.endswith(_PACKED) and file.rows_of(name).dtype.name == "I32":
            other = name.removesuffix(_PACKED) + _SHAPE
            if other not in names:
                raise FormatError("fold-incomplete", f"it is there, and {other!r} is not", tensor=name)
    for group in groups:
        if group.spelling == "packed":
            quantized.expect_symmetric(names, group.name)
