"""Everything that is replaced in PEFT, once, when `sparsefmt.peft` is imported.

PEFT has a registration of custom modules, and it is one of each LoraConfig, private, and made after the config: a
config that comes from a file of `save_pretrained` never has it. So it is done for each config, where it is first
looked at. For everything that is not ours, the wrappers call what was there:

    LoraModel._create_new_module                     registers SparseLoraLinear for SparseLinear with the config that
                                                     it gets, unless something else is registered there
    IA3Model._create_new_module                      makes a SparseIA3Linear, since IA3 has no registration
    tuners_utils._maybe_include_all_linear_layers    has `target_modules="all-linear"` find SparseLinear layers
    BaseTuner._check_merge_allowed                   refuses to merge before anything is merged, where a layer would
                                                     refuse it halfway
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import peft
import torch
from peft.tuners import tuners_utils
from peft.tuners.ia3.model import IA3Model
from peft.tuners.lora.model import LoraModel
from peft.tuners.tuners_utils import BaseTuner

from sparsefmt.errors import UnsupportedError
from sparsefmt.peft.ia3 import SparseIA3Linear
from sparsefmt.peft.lora import SparseLoraLinear, is_sparse_target
from sparsefmt.peft.merging import MergedIntoSparse, expect_decision
from sparsefmt.torch.convolution import SparseConvolution
from sparsefmt.torch.linear import SparseLinear
from sparsefmt.torch.stack import SparseStack

_MARK = "_of_sparsefmt"

_ARGUMENTS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "LoraModel._create_new_module": (LoraModel, ("lora_config", "adapter_name", "target")),
    "IA3Model._create_new_module": (IA3Model, ("ia3_config", "adapter_name", "target")),
    "tuners_utils._maybe_include_all_linear_layers": (tuners_utils, ("peft_config", "model")),
    "BaseTuner._check_merge_allowed": (BaseTuner, ("self",)),
}
"""The functions, and the arguments that they are called with."""


def install() -> None:
    """Put the wrappers where they belong. Once: a second call does nothing.

    Raises:
        UnsupportedError: this version of PEFT has no such functions, or other arguments.
    """
    if hasattr(tuners_utils._maybe_include_all_linear_layers, _MARK):
        return
    for name, (owner, arguments) in _ARGUMENTS.items():
        function = getattr(owner, name.partition(".")[2], None)
        if function is None or tuple(inspect.signature(function).parameters)[: len(arguments)] != arguments:
            raise UnsupportedError(
                "peft-version",
                f"sparsefmt.peft needs PEFT 0.21 or one like it: {peft.__version__} has no {name} with arguments"
                f" {', '.join(arguments)}",
            )
    for owner, create in ((LoraModel, _create_lora), (IA3Model, _create_ia3)):
        setattr(owner, "_create_new_module", staticmethod(_wrapped(owner._create_new_module, create)))  # noqa: B010
    setattr(BaseTuner, "_check_merge_allowed", _wrapped(BaseTuner._check_merge_allowed, _check_merge))  # noqa: B010
    find = tuners_utils._maybe_include_all_linear_layers
    wrapped = _wrapped(find, _include_all_linear_layers)
    # modules of PEFT that were imported before have it by its name
    for name, module in list(sys.modules.items()):
        if name.startswith("peft.") and getattr(module, "_maybe_include_all_linear_layers", None) is find:
            setattr(module, "_maybe_include_all_linear_layers", wrapped)  # noqa: B010


def _wrapped(function: Callable[..., Any], wrapper: Callable[..., Any]) -> Callable[..., Any]:
    """A function in whose place `wrapper` is called, with it as its first argument."""

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        return wrapper(function, *args, **kwargs)

    setattr(called, _MARK, True)
    return called


def _create_lora(create: Callable[..., Any], lora_config: Any, adapter_name: str, target: Any, **options: Any) -> Any:
    if is_sparse_target(target) and SparseLinear not in (lora_config._custom_modules or {}):
        lora_config._register_custom_module({SparseLinear: SparseLoraLinear})
    return create(lora_config, adapter_name, target, **options)


def _create_ia3(create: Callable[..., Any], ia3_config: Any, adapter_name: str, target: Any, **options: Any) -> Any:
    if not is_sparse_target(target):
        return create(ia3_config, adapter_name, target, **options)
    return SparseIA3Linear(target, adapter_name, config=ia3_config, is_feedforward=options.get("is_feedforward", False))


def _include_all_linear_layers(include: Callable[..., Any], peft_config: Any, model: torch.nn.Module) -> Any:
    with _dense_stand_ins(model):
        return include(peft_config, model)


@contextmanager
def _dense_stand_ins(model: torch.nn.Module) -> Iterator[None]:
    """A model with a torch.nn.Linear of no size for each SparseLinear, so that PEFT's own rules select among them.

    The weights of experts are no linear layers in the dense model, and are none here. Neither are convolutions.
    """
    made: dict[int, torch.nn.Module] = {}
    places = []
    for parent in model.modules():
        if isinstance(parent, SparseStack):
            continue
        for attribute, child in parent._modules.items():
            if isinstance(child, SparseLinear) and not isinstance(child, SparseConvolution):
                stand_in = made.setdefault(id(child), torch.nn.Linear(1, 1, bias=False, device="meta"))
                places.append((parent, attribute, child, stand_in))
    try:
        for parent, attribute, _, stand_in in places:
            parent._modules[attribute] = stand_in
        yield
    finally:
        for parent, attribute, child, _ in places:
            parent._modules[attribute] = child


def _check_merge(check: Callable[..., Any], tuner: BaseTuner) -> Any:
    for module in tuner.model.modules():
        if isinstance(module, MergedIntoSparse) and module.is_sparse:
            expect_decision([module.unmerged_layer], None, by_itself=isinstance(module, SparseIA3Linear))
    return check(tuner)
