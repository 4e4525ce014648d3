"""Whether a subclass of torch.nn.Linear computes what torch.nn.Linear computes: decided by its forward.

A wrong answer would give wrong results, so only what is certain counts. A forward of its own is accepted if it uses
nothing but the weight, the bias and products and sums of torch, by its bytecode, and gives the results of Linear for
numbers whose products and sums are exact. It is not called before its bytecode has been looked at.
"""

from __future__ import annotations

import dis
from functools import cache
from types import FunctionType, SimpleNamespace

import torch
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

_HARMLESS = frozenset(
    {
        *("__module__", "__qualname__", "__doc__", "__init__", "__annotations__", "__constants__", "__dict__"),
        *("__weakref__", "__firstlineno__", "__static_attributes__", "__classcell__", "__parameters__"),
        *("__orig_bases__", "__annotate__", "__annotations_cache__", "__annotate_func__"),
        *("forward", "extra_repr", "reset_parameters"),
    }
)
"""What a subclass may define. Whatever else it has, other code may ask for, and a SparseLinear does not have it."""

_ATTRIBUTES = frozenset(
    {"weight", "bias", "T", "mT", "t", "transpose", "matmul", "mm", "add", "linear", "nn", "functional"}
)
"""Attributes that its forward may read: those of the layer, of tensors and of torch."""

_GLOBALS = {
    "torch": torch,
    "nn": torch.nn,
    "F": torch.nn.functional,
    "functional": torch.nn.functional,
    "linear": torch.nn.functional.linear,
    "matmul": torch.matmul,
}
"""Global names that it may read, and what they must stand for."""

_OTHER_KINDS = sum(
    flag
    for flag, name in dis.COMPILER_FLAG_NAMES.items()
    if name in ("VARARGS", "VARKEYWORDS", "GENERATOR", "COROUTINE", "ITERABLE_COROUTINE", "ASYNC_GENERATOR")
)
"""Functions that take any arguments, or that return something to wait for or to go through."""

_INSTRUCTIONS = frozenset(
    {
        *("RESUME", "NOP", "CACHE", "POP_TOP", "PUSH_NULL", "COPY", "SWAP", "PRECALL", "CALL", "KW_NAMES", "CALL_KW"),
        *("BINARY_OP", "IS_OP", "JUMP_FORWARD", "RETURN_VALUE", "NOT_TAKEN", "LOAD_SMALL_INT", "EXTENDED_ARG"),
    }
)
"""What a function may do beside reading the names above: call, add and multiply, compare with None, return."""


def why_not_linear(module: torch.nn.Linear) -> str | None:
    """Why a layer may compute something else than torch.nn.Linear, or be used otherwise; None if it is one."""
    kind = type(module)
    if "forward" in module.__dict__:
        return f"it is a {kind.__name__} whose forward has been replaced"
    if kind is torch.nn.Linear:
        return None
    if issubclass(kind, NonDynamicallyQuantizableLinear):
        return f"it is a {kind.__name__}, whose weight is used without calling it"
    if issubclass(kind, LazyModuleMixin):
        return f"it is a {kind.__name__}, which has no weight yet"
    own = sorted(name for base in _between(kind) for name in base.__dict__ if name not in _HARMLESS)
    if own:
        return f"it is a {kind.__name__}, which has {own[0]} of its own"
    forward = kind.forward
    if forward is torch.nn.Linear.forward or (isinstance(forward, FunctionType) and _is_product(forward)):
        return None
    return f"it is a {kind.__name__}, whose forward is not known to be the product that torch.nn.Linear computes"


def _between(kind: type) -> list[type]:
    """A subclass of Linear and its bases, without Linear and what is below it."""
    below = set(torch.nn.Linear.__mro__)
    return [base for base in kind.__mro__ if base not in below]


@cache
def _is_product(forward: FunctionType) -> bool:
    return _uses_the_weights_alone(forward) and _computes_the_product(forward)


def _uses_the_weights_alone(forward: FunctionType) -> bool:
    """Whether a function of a layer and one input reads nothing else than weight and bias, and changes nothing."""
    code = forward.__code__
    if code.co_argcount != 2 or code.co_kwonlyargcount or forward.__defaults__ or code.co_flags & _OTHER_KINDS:
        return False
    for instruction in dis.get_instructions(code):
        name, value = instruction.opname, instruction.argval
        if name in ("LOAD_ATTR", "LOAD_METHOD"):
            allowed = value in _ATTRIBUTES
        elif name == "LOAD_GLOBAL":
            allowed = value in _GLOBALS and forward.__globals__.get(value) is _GLOBALS[value]
        elif name in ("LOAD_CONST", "RETURN_CONST"):
            allowed = value is None or (type(value) is int and value in (0, 1, -1, -2))
        else:
            allowed = name in _INSTRUCTIONS or name.startswith(("LOAD_FAST", "STORE_FAST", "POP_JUMP_"))
        if not allowed:
            return False
    return True


def _computes_the_product(forward: FunctionType) -> bool:
    """Whether it gives what torch.nn.Linear gives, for small whole numbers: exact, in whatever order they are added."""
    generator = torch.Generator(device="cpu").manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randint(-8, 9, shape, generator=generator, device="cpu").to(torch.float32)

    weight, bias = numbers(3, 5), numbers(3)
    with torch.no_grad():
        for x in (numbers(5), numbers(1, 5), numbers(4, 5), numbers(2, 3, 5)):
            for given in (None, bias):
                tensors = [x, weight] if given is None else [x, weight, given]
                before = [tensor.clone() for tensor in tensors]
                try:
                    y = forward(SimpleNamespace(weight=weight, bias=given), x)
                except Exception:
                    return False
                if not isinstance(y, torch.Tensor) or not _equal(y, torch.nn.functional.linear(before[0], *before[1:])):
                    return False
                if not all(_equal(tensor, old) for tensor, old in zip(tensors, before, strict=True)):
                    return False
    return True


def _equal(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.dtype == right.dtype and torch.equal(left, right)
