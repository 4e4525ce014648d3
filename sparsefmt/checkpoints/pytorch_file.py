"""Checkpoints that torch.save wrote: .bin, .pt, .pth. Nothing in them is run: torch.load with weights_only=True.

Only tensors are taken. A checkpoint of training has them below a key, beside other things:

    {"epoch": 3, "state_dict": {"layer.weight": …, "layer.bias": …}, "optimizer": {…}}

Tensors deeper down get the keys on the way as their name: {"encoder": {"weight": …}} has "encoder.weight".
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsefmt.adapters import Rows, identity_of, rows_of
from sparsefmt.checkpoints.contract import TensorFile, expect_regular_file
from sparsefmt.checkpoints.foreign import FOREIGN
from sparsefmt.container.remote_path import RemotePath, place_of
from sparsefmt.errors import FormatError, LimitError, SparsefmtError, UnsupportedError
from sparsefmt.limits import MAX_TENSORS
from sparsefmt.urls import Url

if TYPE_CHECKING:
    import torch

CONTAINERS = ("state_dict", "model_state_dict", "model", "module", "params_ema", "params", "net", "network", "weights")
"""Keys below which checkpoints of training have the tensors of the model; the first that is there counts."""

_MOST_NAMED = 5
"""Of what was skipped."""

_MOST_LOOKS = MAX_TENSORS
"""A pickle of a few bytes can hold one list within another so often that no end would be seen."""


class TorchFile(TensorFile):
    """An open checkpoint of torch. Its tensors are mapped, and read when they are asked for.

    Files of the old form, from before torch 1.6, cannot be mapped and are loaded as a whole.

    Attributes:
        names: in the order of the checkpoint.
        aliases: names of tensors that are another one, in the same memory; that one comes before.

    Raises:
        FormatError: it is damaged or has no tensor; or torch is not installed (`file-foreign`).
        UnsupportedError: it has things that torch does not load without running code from the file.
            A URL (`remote-torch`).
        OSError: it cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str] | Url) -> None:
        place = place_of(path)
        if isinstance(place, RemotePath):
            raise UnsupportedError(
                "remote-torch", "a checkpoint of PyTorch is not read by its URL: download it first", path=str(place)
            )
        expect_regular_file(place)
        self.path: Path = place
        self.nbytes = self.path.stat().st_size
        # as model files of torch say it in safetensors, where transformers looks for it
        self.metadata = {"format": "pt"}
        found = _Found(self.path)
        try:
            found.take(_load(self.path))
        except RecursionError:
            raise FormatError("checkpoint-invalid", f"{self.path}: it is nested too deeply") from None
        if not found.tensors:
            raise FormatError("checkpoint-empty", f"{self.path}: there is no tensor in it")
        self._tensors = found.tensors
        self.names = list(self._tensors)
        self.aliases = _aliases(self._tensors)
        self.notes = found.notes()

    def rows_of(self, name: str) -> Rows:
        try:
            return rows_of(self._tensors[name])
        except SparsefmtError as error:
            raise error.within(name) from None
        except NotImplementedError:
            raise UnsupportedError("tensor-data", 'it has no data, of device "meta"', tensor=name) from None

    def close(self) -> None:
        self._tensors = {}


def _load(path: Path) -> Any:
    """What torch.load gives, mapped if that is possible."""
    try:
        import torch
    except ImportError:
        raise FormatError(
            FOREIGN, f"{path}: a PyTorch checkpoint, to read which torch is needed: pip install torch"
        ) from None
    with open(path, "rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
            except RuntimeError as error:
                # file systems that cannot map files; then it takes the memory of all tensors
                if not (is_archive and "unable to mmap" in str(error)):
                    raise
                return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can make anything of it
        raise _refused(path, str(error)) from None


def _refused(path: Path, reason: str) -> SparsefmtError:
    if "TorchScript" in reason:
        return UnsupportedError(
            "checkpoint-script",
            f"{path}: it is a TorchScript program, not a checkpoint: torch.save(torch.jit.load({path.name!r})"
            ".state_dict(), 'weights.pt') makes one",
        )
    if found := re.search(r"GLOBAL (\S+)", reason):
        return UnsupportedError(
            "checkpoint-pickle",
            f"{path}: it has a {found[1]}, and not only tensors, so that loading it could run code from the file. Have"
            " its author save the tensors alone: torch.save(model.state_dict(), path)",
        )
    # between advice of torch that has nothing to do with this file
    told = re.search(r"WeightsUnpickler error:\s*(.+)", reason)
    short = told[1] if told else reason.strip().partition("\n")[0].partition(" In PyTorch 2.6")[0]
    return FormatError("checkpoint-invalid", f"{path}: torch cannot read it, it may be damaged: {short[:200]}")


class _Found:
    """What is in a checkpoint.

    Attributes:
        tensors: by their names.
        container: the keys below which they were; "" if they were not below any.
        skipped: names of what is neither a tensor nor has any.
    """

    def __init__(self, path: Path) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.container = ""
        self.skipped: list[str] = []
        self._path = path
        self._looked_at = 0

    def take(self, content: Any) -> None:
        """Find the tensors of the model, and remember what else is there."""
        key = self._container_in(content) if isinstance(content, Mapping) else None
        if key is None:
            self._collect(content, "")
            return
        self.skipped += [f"{self.container}{other}" for other in content if other != key]
        self.container += f"{key}."
        self.take(content[key])

    def _container_in(self, content: Mapping[Any, Any]) -> str | None:
        for key in CONTAINERS:
            if isinstance(content.get(key), Mapping) and self._has_tensor(content[key]):
                return key
        return None

    def _collect(self, content: Any, name: str) -> None:
        if _is_tensor(content):
            self._expect_new(name or "tensor")
            self.tensors[name or "tensor"] = content
            return
        if not self._has_tensor(content):
            self.skipped.append(f"{self.container}{name}")
            return
        for key, value in _children(content):
            self._collect(value, f"{name}.{key}" if name else str(key))

    def _expect_new(self, name: str) -> None:
        if name in self.tensors:
            raise FormatError("checkpoint-tensor-duplicate", f"{self._path}: two tensors have this name", tensor=name)

    def _has_tensor(self, content: Any) -> bool:
        # a list that has itself in it, or one list many times, costs a pickle nothing
        self._looked_at += 1
        if self._looked_at > _MOST_LOOKS:
            raise LimitError("checkpoint-limit", f"{self._path}: it is nested in too many ways")
        return _is_tensor(content) or any(self._has_tensor(value) for _, value in _children(content))

    def notes(self) -> list[str]:
        """What a user should know of how the file was read."""
        notes = []
        if self.container:
            notes.append(f"{self._path.name}: the tensors below {self.container[:-1]!r} were taken.")
        if self.skipped:
            others = len(self.skipped) - _MOST_NAMED
            named = ", ".join(map(repr, self.skipped[:_MOST_NAMED])) + (f" and {others:,} more" if others > 0 else "")
            notes.append(f"{self._path.name}: skipped, since it is not a part of the model or no tensor: {named}")
        return notes


def _children(content: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(content, Mapping):
        return content.items()
    return enumerate(content) if isinstance(content, (list, tuple)) else ()


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _aliases(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    first: dict[object, str] = {}
    owners = {name: first.setdefault(identity_of(tensor), name) for name, tensor in tensors.items()}
    return {name: owner for name, owner in owners.items() if owner != name}
