"""What `load_into` does with a model: which tensor of the files goes where, and what stands against it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import torch

from sparsefmt.errors import in_file
from sparsefmt.torch.attention import note_output_projections
from sparsefmt.torch.expert_kinds import projection_of
from sparsefmt.torch.layers import Holder, expect_cpu, is_layer, modules_with_names
from sparsefmt.torch.linear import SparseLinear
from sparsefmt.torch.scales import expect_int8
from sparsefmt.torch.selection import Selection, why_dense
from sparsefmt.torch.stored_tensors import Stored
from sparsefmt.torch.summary import Quantizing
from sparsefmt.torch.with_stacks import stacks_of


@dataclass
class Plan:
    """What goes where, and what stands against it.

    Attributes:
        weights: of linear layers, with the holders of each: compressed if they are pruned.
        stacks: of experts, each with its holder: compressed if they are pruned.
        dense: other tensors, with the holders of each.
        sparse: names of layers that are a SparseLinear once all is loaded.
        reasons: names of what is dense, and why.
        noting: whether float32 tensors that are filled with 16 bits shall be stored in these again.
        quantizing: what quantizing has lost, and what was left out; None if nothing is to be quantized.
    """

    weights: list[tuple[Stored, list[Holder]]] = field(default_factory=list)
    stacks: list[tuple[Stored, Holder]] = field(default_factory=list)
    dense: list[tuple[Stored, list[Holder]]] = field(default_factory=list)
    sparse: set[str] = field(default_factory=set)
    reasons: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatches: list[str] = field(default_factory=list)
    noting: bool = False
    quantizing: Quantizing | None = None


def planned(model: torch.nn.Module, stored: dict[str, Stored], selection: Selection) -> Plan:
    note_output_projections(model)
    plan = Plan()
    used = set()
    not_found = []
    for holders in _holders(model):
        found = [stored[holder.key] for holder in holders if holder.key in stored]
        used |= {holder.key for holder in holders}
        if not found:
            not_found.append(holders)
            continue
        tensor = found[0]
        # a second tensor for the same parameter has no place, unless it is the same one
        plan.unexpected += [other.name for other in found if other.identity != tensor.identity]
        expected = _expected_shape(holders[0])
        if tensor.shape != expected:
            plan.mismatches.append(
                f"size mismatch for {tensor.name}: copying a param with shape {torch.Size(tensor.shape)} from"
                f" {str(tensor.path)!r}, the shape in current model is {torch.Size(expected)}."
            )
            continue
        reasons = {} if is_sparse(holders[0]) else why_dense(holders, selection)
        if reasons:
            plan.dense.append((tensor, holders))
            plan.reasons |= {
                name: reason for name, reason in reasons.items() if _is_worth_a_word(name, tensor, holders)
            }
        elif projection_of(holders[0].module, holders[0].attribute) is not None:
            plan.stacks.append((tensor, holders[0]))
        else:
            plan.weights.append((tensor, holders))
    for holders in not_found:
        sharing = [others for _, others in plan.weights if _share_weights(others[0].module, holders[0].module)]
        if sharing and holders[0].attribute == "weight":
            sharing[0].extend(holders)
        else:
            plan.missing += [holder.key for holder in holders]
            for holder in holders:
                if holder.attribute == "weight" and is_layer(holder.module) and not is_sparse(holder):
                    plan.reasons[holder.layer] = "its weight is not in the file"
    plan.unexpected += [name for name in stored if name not in used]
    plan.missing.sort()
    plan.unexpected.sort()
    return plan


def _is_worth_a_word(name: str, stored: Stored, holders: list[Holder]) -> bool:
    """Whether to say why a tensor is dense: linear layers always, parameters of others if they are stored sparse."""
    if any(holder.key == name for holder in holders):
        return stored.is_stored_sparse and holders[0].attribute in holders[0].module._parameters
    return True


def names_of(model: torch.nn.Module) -> set[str]:
    """All names that `state_dict` of the dense model would have."""
    return {holder.key for holders in _holders(model) for holder in holders}


def _holders(model: torch.nn.Module) -> list[list[Holder]]:
    """All names that `state_dict` of the dense model would have, those of one tensor together."""
    groups: dict[int, list[Holder]] = {}
    of_experts = {layer for module in model.modules() for stack in stacks_of(module).values() for layer in stack}
    for layer, module in modules_with_names(model):
        tensors: dict[str, torch.Tensor | None] = dict(module._parameters)
        for name, stack in stacks_of(module).items():
            groups.setdefault(id(stack), []).append(Holder(layer, module, name))
        if module in of_experts:
            continue
        if isinstance(module, SparseLinear):
            groups.setdefault(id(module), []).append(Holder(layer, module, "weight"))
        else:
            persistent = module._buffers.keys() - module._non_persistent_buffers_set
            tensors |= {name: module._buffers[name] for name in module._buffers if name in persistent}
        for name, tensor in tensors.items():
            if tensor is not None:
                groups.setdefault(id(tensor), []).append(Holder(layer, module, name))
    return list(groups.values())


def _share_weights(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    """Whether these are two sparse layers with the same weights."""
    return (
        isinstance(first, SparseLinear)
        and isinstance(second, SparseLinear)
        and first.has_weight
        and first.weight_arrays is second.weight_arrays
        and first.transposed == second.transposed
    )


def is_sparse(holder: Holder) -> bool:
    """Whether this is the weight of a layer that is a SparseLinear already, or of experts in a SparseStack."""
    if holder.attribute in stacks_of(holder.module):
        return True
    return isinstance(holder.module, SparseLinear) and holder.attribute == "weight"


def _expected_shape(holder: Holder) -> tuple[int, ...]:
    module = holder.module
    stack = stacks_of(module).get(holder.attribute)
    if stack is not None:
        return tuple(stack.shape)
    if isinstance(module, SparseLinear) and is_sparse(holder):
        return tuple(module.weight_shape)
    return tuple(held(holder).shape)


def held(holder: Holder) -> torch.Tensor:
    """The tensor that a module holds. Not by getattr: a module may have a property of that name."""
    parameter = holder.module._parameters.get(holder.attribute)
    tensor = holder.module._buffers[holder.attribute] if parameter is None else parameter
    assert tensor is not None
    return tensor


def expect_fit(model: torch.nn.Module, plan: Plan, path: str | os.PathLike[str], strict: bool) -> None:
    lines = []
    if strict:
        for what, names in (("Unexpected", plan.unexpected), ("Missing", plan.missing)):
            if names:
                lines.append(f"{what} key(s) in state_dict: " + ", ".join(f'"{name}"' for name in names) + ".")
    lines += plan.mismatches
    if lines:
        first = f"Error(s) in loading state_dict for {type(model).__name__}:"
        raise RuntimeError("\n    ".join([first, *lines, f"in {os.fspath(path)!r}"]))
    for _, holders in plan.weights:
        for holder in holders:
            if not isinstance(holder.module, SparseLinear):
                expect_cpu(holder.key, held(holder), "meta")
    for _, holder in plan.stacks:
        if not is_sparse(holder):
            expect_cpu(holder.key, held(holder), "meta")


def expect_activations(plan: Plan, selection: Selection) -> None:
    """Refuse activations in eight bits that no weight of the plan can have. Raises ValueError."""
    if not selection.rounds_activations:
        return
    scaled = [stored for stored, _ in plan.weights if stored.is_scaled]
    for stored in scaled:
        with in_file(stored.path):
            expect_int8(selection.activations, stored.dtype.name, stored.name)
    if not scaled and selection.quantization is None:
        raise ValueError(
            "activations='int8' is for scaled weights of int8, which the files do not have: give values='int8'"
        )
