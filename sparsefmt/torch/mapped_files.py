"""Finds files of dense weights that would stay mapped as a whole for the few tensors that are not compressed.

safetensors maps a file, and the tensors of a model are views of the mapping. While one of them lives, all pages of the
file that were read count as memory of the process, those of compressed weights as well.
"""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path

import torch

_MAPS = Path("/proc/self/maps")
"""Where Linux says what is mapped. Elsewhere, files stay mapped."""


class MappedFiles:
    """The mapped files that held weights which are compressed now."""

    def __init__(self) -> None:
        self._compressed: list[tuple[int, int]] = []

    def compressed(self, weight: torch.Tensor) -> None:
        """This dense weight is about to be replaced by a compressed one."""
        if weight.device.type == "cpu":
            self._compressed.append((weight.data_ptr(), weight.nbytes))

    def release(self, model: torch.nn.Module) -> None:
        """Copy what a model still has of a file into memory of its own, where more of the file has been compressed.

        Parameters and buffers stay the objects that they are, and share memory where they did.

        Cost: a copy of those tensors, and reading the list of mappings; next to nothing if nothing was compressed.
        """
        if not self._compressed:
            return
        ranges = _mapped_ranges()
        gone = dict.fromkeys(ranges, 0)
        for address, nbytes in self._compressed:
            found = _range_of(address, ranges)
            if found is not None:
                gone[found] += nbytes
        self._compressed.clear()
        left: dict[tuple[int, int], dict[int, torch.Tensor]] = {}
        for tensor in (*model.parameters(), *model.buffers()):
            if type(tensor) in (torch.Tensor, torch.nn.Parameter) and _has_memory(tensor):
                found = _range_of(tensor.data_ptr(), ranges)
                if found is not None and gone[found]:
                    left.setdefault(found, {})[id(tensor)] = tensor
        for found, tensors in left.items():
            if gone[found] >= sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors.values()}.values()):
                _copy(list(tensors.values()))


def _has_memory(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.layout == torch.strided and tensor.numel() > 0


def _copy(tensors: list[torch.Tensor]) -> None:
    """Give each memory of its own; the same to those that had the same."""
    made: dict[tuple[object, ...], torch.Tensor] = {}
    for tensor in tensors:
        key = tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
        if key not in made:
            made[key] = tensor.detach().clone()
        tensor.data = made[key]


def _mapped_ranges() -> list[tuple[int, int]]:
    """Addresses (begin, end) of the files that are mapped, ascending."""
    try:
        lines = _MAPS.read_text().splitlines()
    except OSError:
        return []
    ranges = []
    for line in lines:
        addresses, _, _, _, inode, *_ = line.split(maxsplit=5)
        if inode != "0":
            begin, end = addresses.split("-")
            ranges.append((int(begin, 16), int(end, 16)))
    return ranges


def _range_of(address: int, ranges: list[tuple[int, int]]) -> tuple[int, int] | None:
    number = bisect_right(ranges, (address, 1 << 64)) - 1
    return ranges[number] if number >= 0 and address < ranges[number][1] else None
