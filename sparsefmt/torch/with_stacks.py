"""WithStacks: what modules have in common that have a SparseStack where their dense class has a Parameter."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from sparsefmt.torch.stack import SparseStack


class WithStacks(torch.nn.Module):
    """Base class of modules with compressed weights in stacks. The second base of each is the dense class."""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: dict[str, Any], *others: Any) -> None:
        """Take a Parameter of the dense module too: its parts go to the layers, which are loaded after this."""
        error_messages = others[-1]
        for name, child in self._modules.items():
            weights = state_dict.get(prefix + name)
            if isinstance(child, SparseStack) and weights is not None:
                try:
                    parts = child.state_of(weights)
                except RuntimeError as error:
                    error_messages.append(f'While loading "{prefix}{name}": {error}')
                    continue
                state_dict.update({f"{prefix}{name}.{number}.weight": part for number, part in enumerate(parts)})
                del state_dict[prefix + name]
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)


class MadeOnDemand(WithStacks):
    """Base class of those whose dense class has another home, so that a subclass of both is made when one is needed.

    Attributes:
        why_no_graph: why torch.compile leaves `forward` out of its graphs, or nothing if it does not.
    """

    why_no_graph = ""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # pickle would look for the class by its name, and find none
        return _empty, (type(self).__bases__[0], dense_class(self)), dict(self.__dict__)


@cache
def sparse_class(base: Any, original: Any) -> Any:
    """The class of modules of class `original` whose weights are compressed. base: a kind of MadeOnDemand."""
    own = {"__module__": original.__module__, "__doc__": base.__doc__}
    if base.why_no_graph:
        # here, and not where `forward` is defined: it imports much of PyTorch's compiler
        own["forward"] = torch.compiler.disable(base.forward, reason=base.why_no_graph)
    return type(f"Sparse{original.__name__}", (base, original), own)


def _empty(base: Any, original: Any) -> torch.nn.Module:
    """A module without anything, for pickle and copy to fill."""
    made = sparse_class(base, original)
    return made.__new__(made)


def stacks_of(module: torch.nn.Module) -> dict[str, SparseStack]:
    """The compressed weights of a module that are in stacks, by name."""
    return {name: child for name, child in module._modules.items() if isinstance(child, SparseStack)}


def dense_class(module: WithStacks) -> type[torch.nn.Module]:
    """The class that a module had before its weights were compressed."""
    return type(module).__bases__[1]
