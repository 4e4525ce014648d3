"""WithStacks: what modules have in common that have a SparseStack where their dense class has a Parameter."""

from __future__ import annotations

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


def stacks_of(module: torch.nn.Module) -> dict[str, SparseStack]:
    """The compressed weights of a module that are in stacks, by name."""
    return {name: child for name, child in module._modules.items() if isinstance(child, SparseStack)}


def dense_class(module: WithStacks) -> type[torch.nn.Module]:
    """The class that a module had before its weights were compressed."""
    return type(module).__bases__[1]
