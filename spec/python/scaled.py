"""Sections 6.1 to 6.3 of SPEC.md: products of scaled weights, also with activations in eight bits."""

from __future__ import annotations

import json

import numpy as np
from container import Container, Entry
from faults import require
from products import fma, multiply


class Members(list):
    """The members of a JSON object: names and values, in their order."""


def pairs(container: Container) -> dict[str, str]:
    """The scales of each weight that `sparsefmt.scales` names."""
    try:
        members = json.loads(container.metadata.get("sparsefmt.scales", "{}"), object_pairs_hook=Members)
    except (ValueError, RecursionError):
        members = None
    texts = isinstance(members, Members) and all(isinstance(scales, str) for _, scales in members)
    require(texts, "scales-metadata", "`sparsefmt.scales` is no JSON object of texts")
    found = dict(members)
    require(len(found) == len(members), "scales-metadata", "`sparsefmt.scales` has the name of a weight twice")
    for weight, scales in found.items():
        for name in weight, scales:
            require(name in container.names, "scales-missing", f"{weight!r} with {scales!r}: there is no {name!r}")
    return found


def groups_of(weight: Entry, scales: Entry) -> int:
    """How many groups the columns of a weight have by its scales, whose dtype and shape are checked."""
    what = f"scales {scales.name!r} of {weight.name!r}"
    require(scales.dtype.name in ("F32", "BF16", "F16"), "scales-dtype", f"{what}: {scales.dtype.name}")
    groups = scales.shape[1] if len(scales.shape) == 2 else 1
    right = scales.shape in ((), (1,), (1, 1), (weight.rows,), (weight.rows, groups))
    right = right and groups > 0 and weight.cols % groups == 0
    require(right, "scales-shape", f"{what}: {list(scales.shape)} for {weight.rows} x {weight.cols}")
    return groups


def by_group(scales: np.ndarray, rows: int, groups: int) -> np.ndarray:
    """Scales, one after the other, as a matrix, rows x groups."""
    right = ((scales >= 0) & (scales < np.inf)).all()
    require(bool(right), "scales-value", "a scale is NaN, infinite or negative")
    return np.broadcast_to(scales.reshape(-1, groups), (rows, groups))


def multiply_floats(q: np.ndarray, scale: np.ndarray, x: np.ndarray) -> np.ndarray:
    """6.1, for one x. All are of type A."""
    groups = scale.shape[1]
    t = np.zeros(len(q), x.dtype)
    for q_of, x_of, scale_of in zip(np.hsplit(q, groups), np.split(x, groups), scale.T, strict=True):
        t = fma(multiply(q_of, x_of), scale_of, t)
    return t + x.dtype.type(0)


def multiply_integers(q: np.ndarray, scale: np.ndarray, x: np.ndarray, input_scale: np.float32 | None) -> np.ndarray:
    """6.2, for one token x of binary32; q: integers of 64 bits."""
    if not np.isfinite(x).all():
        return np.full(len(q), np.nan, np.float32)
    u = input_scale or np.abs(x).max(initial=0) / np.float32(127)
    a = np.clip(np.rint(x / u), -127, 127).astype(np.int64) if u else np.zeros(len(x), np.int64)
    groups = scale.shape[1]
    t = np.zeros(len(q), np.float32)
    for q_of, a_of, scale_of in zip(np.hsplit(q, groups), np.split(a, groups), scale.T, strict=True):
        t = fma((q_of @ a_of).astype(np.float32), scale_of, t)
    return t * u + np.float32(0)


def bytes_of(y: np.ndarray, result: str) -> bytes:
    """y, of type A, as elements of the result type."""
    if result != "BF16":
        return y.astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[result]).tobytes()
    bits = to_odd(y).view(np.uint32)  # BF16 is its upper half: to nearest, ties to even
    upper = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(y), 0x7FC0, upper).astype("<u2").tobytes()


def to_odd(y: np.ndarray) -> np.ndarray:
    """binary32 as it is; binary64 as a binary32 that rounds to fewer bits as y itself does."""
    narrow = y.astype(np.float32)
    beyond = np.abs(narrow) > np.abs(y)  # an inexact one becomes the neighbour whose last bit is 1
    inwards = narrow.view(np.uint32) - beyond
    return np.where((narrow == y) | np.isnan(y), narrow.view(np.uint32), inwards | 1).view(np.float32)
