"""Files whose `permuted` tensors have the form that is asked for, whichever takes fewer bytes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

import sparsefmt
from sparsefmt.layouts import FORMS, sizes

LAYOUTS = {"dense": "dense", "bitmask": "bitmask", "permuted": "columns", "gaps": "gaps"}
"""Forms of layouts by what files are called that have them."""


def choosing(form: str) -> AbstractContextManager[object]:
    """While this is entered, `permuted` means the form "columns" or "gaps"; with any other it means what it does."""
    if FORMS[form].name != "permuted":
        return nullcontext()
    return mock.patch.object(sizes.Filling, "permuted", FORMS[form])


def save(tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None, *, form: str, **options: Any) -> bytes:
    """What `sparsefmt.save` gives with the layout of this form."""
    with choosing(form):
        return sparsefmt.save(tensors, metadata, layout=FORMS[form].name, **options)
