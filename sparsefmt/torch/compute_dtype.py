"""compute_dtype="float32": compressed weights keep their 16 bits, and everything that computes is float32.

On a processor without instructions for bfloat16, a bfloat16 model reads prompts and batches as fast as a float32 one
so, and its compressed weights take what they take in bfloat16. The products take float32 activations with weights of 16
bits, and widen these in registers.

To code, the model is a float32 model: its parameters and buffers are float32, and so is `layer.weight` of a
SparseLinear, whose `weight.tensor` has the 16 bits. Widening is exact. What is stored has the 16 bits again: see
widened.py.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import torch

from sparsefmt.torch.linear import SparseLinear
from sparsefmt.torch.widened import SIXTEEN_BITS, note, noted

ComputeDtype = str | torch.dtype | None
"""What callers give: None, "float32" or torch.float32."""

_INSTRUCTIONS = {
    torch.bfloat16: {"avx512_bf16", "amx_bf16", "avx10_2", "bf16"},
    torch.float16: {"avx512_fp16", "amx_fp16", "avx10_2", "asimdhp"},
}
"""What Linux calls the instructions that multiply in a dtype."""

_CPUINFO = Path("/proc/cpuinfo")

_hinted: set[str] = set()
"""Of this process. Not empty once the hint has been given."""


def checked(compute_dtype: object) -> torch.dtype | None:
    """The argument of public functions as a dtype. Raises ValueError."""
    if compute_dtype is None:
        return None
    if compute_dtype in ("float32", torch.float32):
        return torch.float32
    raise ValueError(f"compute_dtype must be None, 'float32' or torch.float32, not {compute_dtype!r}")


def widen(model: torch.nn.Module) -> None:
    """Let a model compute in float32: its parameters and buffers of 16 bits become float32, in place.

    They stay the objects that they are, and stay tied. Weights of SparseLinear layers, in layout "dense" too, keep
    their elements, and are float32 to code.

    Cost: one tensor at a time is there twice.
    """
    for module in model.modules():
        if isinstance(module, SparseLinear):
            module.compute_dtype = torch.float32
        for attribute, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and tensor.dtype in SIXTEEN_BITS:
                note(module, attribute, tensor.dtype)
    made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def widened(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype not in SIXTEEN_BITS:
            return tensor
        if isinstance(tensor, torch.nn.Parameter):
            # its memory is replaced, and it stays what others share
            return tensor.float()
        return made.setdefault(id(tensor), (tensor, tensor.float()))[1]

    model._apply(widened)


def narrow(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Give the parameters and buffers that `widen` made float32 a dtype of 16 bits, in place. Rounds what has changed.

    SparseLinear layers stay as they are.
    """
    widened = {
        id(tensor): tensor
        for module in model.modules()
        for attribute in noted(module)
        for tensor in (module._parameters.get(attribute), module._buffers.get(attribute))
        if tensor is not None and tensor.dtype == torch.float32
    }
    model._apply(lambda tensor: tensor.to(dtype) if id(tensor) in widened else tensor)


def hint(model: torch.nn.Module, remedy: str) -> str | None:
    """A sentence for a model that would be faster with activations in float32; None if it would not.

    It is given once a process: where weights of 16 bits are compressed, the rest of the model has the same dtype, and
    the processor has no instructions for that.

    Args:
        remedy: what to call, as the sentence ends with it.
    """
    if _hinted:
        return None
    compressed = {module._dtype for module in model.modules() if isinstance(module, SparseLinear)}
    rest = {tensor.dtype for tensor in (*model.parameters(), *model.buffers())}
    for dtype in SIXTEEN_BITS:
        if dtype in compressed & rest and lacks_instructions(dtype):
            _hinted.add(remedy)
            name = str(dtype).removeprefix("torch.")
            return (
                f"this processor has no instructions for {name}: prompts and batches are faster where the model"
                f" computes in float32, with its compressed weights still in 16 bits: {remedy}"
            )
    return None


def lacks_instructions(dtype: torch.dtype) -> bool:
    """Whether the processor is known to have no instructions that multiply in a dtype of 16 bits."""
    flags = _processor_flags()
    return flags is not None and not _INSTRUCTIONS[dtype] & flags


@cache
def _processor_flags() -> frozenset[str] | None:
    """What Linux says that the processor has; None elsewhere."""
    try:
        text = _CPUINFO.read_text()
    except OSError:
        return None
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return None if found is None else frozenset(found.group(1).split())
