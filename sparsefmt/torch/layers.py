"""The layers of a model: which can become a SparseLinear, where they are, and with whom they share their weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

import torch

from sparsefmt.torch.linear import SparseLinear, is_conv1d

Patterns = str | Iterable[str] | None
"""Names of modules, in which `*` stands for anything; None for all names."""


def is_replaceable(module: torch.nn.Module) -> bool:
    """Whether a layer can become a SparseLinear: a torch.nn.Linear itself, or a Conv1D of transformers.

    Others use the weights of subclasses of Linear without calling them, as torch.nn.MultiheadAttention does.
    """
    return type(module) is torch.nn.Linear or is_conv1d(module)


def modules_with_names(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """All modules of a model, one that has several names under each of them."""
    return model.named_modules(remove_duplicate=False)


def replace(model: torch.nn.Module, old: torch.nn.Module, new: torch.nn.Module) -> None:
    """Put a module wherever in the model the old one is."""
    for parent in model.modules():
        for attribute, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, attribute, new)


def users_of_parameters(model: torch.nn.Module) -> dict[int, list[tuple[str, torch.nn.Module]]]:
    """For each Parameter, by id, the names that it has in the model, and the modules that hold it there."""
    users: dict[int, list[tuple[str, torch.nn.Module]]] = {}
    for prefix, module in modules_with_names(model):
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                users.setdefault(id(parameter), []).append((joined(prefix, attribute), module))
    return users


def matcher(include: Patterns) -> list[str]:
    """The patterns as a list. Raises TypeError for what are none."""
    patterns = ["*"] if include is None else [include] if isinstance(include, str) else list(include)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(f"include must be a pattern of module names, or several, not {include!r}")
    return patterns


def matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def expect_cpu(name: str, tensor: torch.Tensor, *also: str) -> None:
    """Refuse weights on other devices. Raises RuntimeError."""
    if tensor.device.type not in ("cpu", *also):
        raise RuntimeError(
            f"{name} is on {tensor.device}, and a SparseLinear computes on the CPU: move the model there first"
        )


def joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def is_linear(module: torch.nn.Module) -> bool:
    """Whether a module is a linear layer of any kind."""
    return isinstance(module, (torch.nn.Linear, SparseLinear)) or is_conv1d(module)
