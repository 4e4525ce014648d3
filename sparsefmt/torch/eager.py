"""Whether anybody would notice that a product did not go through torch's dispatcher, which takes longer than it does.

The operator (operator.py) is what compilers and exporters trace, what autograd differentiates, what modes of torch and
subclasses of tensors see. A call in which none of them is active may do the same work directly.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.modules.module import _has_any_global_hook

try:
    from torch._C import _get_tracing_state, _len_torch_dispatch_stack, _len_torch_function_stack
    from torch._C._functorch import maybe_current_level

    _WATCHERS: tuple[Callable[[], object], ...] = (
        _len_torch_dispatch_stack,
        _len_torch_function_stack,
        _get_tracing_state,
        maybe_current_level,
    )
    """What is active of modes that see operators, of modes that see functions, of torch.jit.trace and of transforms
    such as vmap; nothing, if they return 0 or None."""
except ImportError:  # a torch that has other names for them
    _WATCHERS = (lambda: True,)

_PLAIN = (torch.Tensor, torch.nn.Parameter)


def is_unwatched(x: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether the product of x may be made directly: without gradients, seen by nobody but the caller.

    Not for code that torch.compile traces.
    """
    if type(x) not in _PLAIN:
        return False
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return False
    return not any(watcher() for watcher in _WATCHERS)


def is_just_called(module: torch.nn.Module) -> bool:
    """Whether a call of a module is its class's forward, and nothing else: no hooks, nothing put over it."""
    own = module.__dict__
    return not (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or own.get("_compiled_call_impl")
        or "forward" in own
        or _has_any_global_hook()
    )
