"""Attributes that are computed once for each object, when they are first asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

Value = TypeVar("Value")


class computed_once(Generic[Value]):
    """functools.cached_property without a lock: up to Python 3.11, that has one for all objects of a class, and a child
    forked while another thread holds it would wait for it forever.

    Two threads that ask at the same time may both compute the value; either is right.
    """

    def __init__(self, compute: Callable[[Any], Value]) -> None:
        self._compute = compute
        self._name = compute.__name__
        self.__doc__ = compute.__doc__

    @overload
    def __get__(self, owner: None, owner_type: type) -> computed_once[Value]: ...

    @overload
    def __get__(self, owner: object, owner_type: type) -> Value: ...

    def __get__(self, owner: object | None, owner_type: type) -> computed_once[Value] | Value:
        if owner is None:
            return self
        # from now on found before this descriptor is
        value = owner.__dict__[self._name] = self._compute(owner)
        return value
