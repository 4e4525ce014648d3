"""SaveOptions, and options of public functions: listed wherever they are taken, and the same in all these places."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import pytest

import sparsefmt
import sparsefmt.torch
import sparsefmt.transformers
from sparsefmt.quantizing.quantization import Quantization
from sparsefmt.save_options import SaveOptions
from sparsefmt.torch.compute_dtype import ComputeDtype
from sparsefmt.torch.selection import Patterns, Selection

SAVING = [
    *(sparsefmt.save, sparsefmt.save_file, sparsefmt.TensorWriter, sparsefmt.numpy.save, sparsefmt.numpy.save_file),
    *(sparsefmt.torch.save, sparsefmt.torch.save_file, sparsefmt.torch.save_model),
]
OPENING = [
    *(sparsefmt.load, sparsefmt.load_file, sparsefmt.open_file, sparsefmt.safe_open),
    *(sparsefmt.numpy.load, sparsefmt.numpy.load_file),
    *(sparsefmt.torch.load, sparsefmt.torch.load_file, sparsefmt.torch.load_model, sparsefmt.torch.load_into),
]
COMPRESSING = [sparsefmt.torch.sparsify, sparsefmt.torch.load_into, sparsefmt.transformers.SparsefmtConfig]


def options_of(function: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """The type and the default of each parameter that has a default."""
    types = typing.get_type_hints(function.__init__ if isinstance(function, type) else function)
    parameters = inspect.signature(function).parameters.values()
    return {
        parameter.name: (types[parameter.name], parameter.default)
        for parameter in parameters
        if parameter.default is not parameter.empty
    }


def fields_of(kind: type) -> dict[str, tuple[Any, Any]]:
    """The type and the default of each field of a dataclass."""
    types = typing.get_type_hints(kind)
    return {field.name: (types[field.name], field.default) for field in fields(kind)}


def check_the_same(function: Callable[..., Any], expected: dict[str, tuple[Any, Any]]) -> None:
    """Those options of a function that are expected at all, in the order in which they are expected."""
    found = {name: option for name, option in options_of(function).items() if name in expected}
    assert found == {name: option for name, option in expected.items() if name in found}
    assert list(found) == [name for name in expected if name in found]


def name_of(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__name__}"


@pytest.mark.parametrize("function", SAVING, ids=name_of)
def test_options_of_saving_are_the_same_everywhere(function):
    check_the_same(function, fields_of(SaveOptions))
    assert {"layout", "codec", "negative_zeros"} <= options_of(function).keys()


def test_the_verbs_take_all_of_them():
    for function in (sparsefmt.save, sparsefmt.save_file, sparsefmt.TensorWriter):
        assert fields_of(SaveOptions).keys() <= options_of(function).keys()
    of_urls = {"storage_options": (Mapping[str, Any] | None, None)}
    assert options_of(sparsefmt.save) | of_urls == options_of(sparsefmt.save_file)


@pytest.mark.parametrize("function", OPENING, ids=name_of)
def test_options_of_opening_are_the_same_everywhere(function):
    expected = {"device": (Any, "cpu")} | options_of(sparsefmt.load_file)
    check_the_same(function, expected)
    assert "max_decoded_bytes" in options_of(function)


@pytest.mark.parametrize("function", COMPRESSING, ids=name_of)
def test_options_of_compressing_are_the_same_everywhere(function):
    # patterns come as one text or several, and are kept as several
    patterns = dict.fromkeys(("include", "exclude"), (Patterns, None))
    expected = fields_of(Selection) | patterns | {"compute_dtype": (ComputeDtype, None)}
    # one object within, of what users say by three options
    activations = expected.pop("activations")
    assert expected.pop("quantization") == (Quantization | None, None)
    expected |= {"values": (str | None, None), "group_size": (int | None, None), "scale": (str, "absmax")}
    expected["activations"] = activations
    check_the_same(function, expected)
    assert expected.keys() <= options_of(function).keys()


@pytest.mark.parametrize("function", [*SAVING, *OPENING, *COMPRESSING], ids=name_of)
def test_signatures_show_every_option(function):
    """So that `help` and editors do: nothing is taken as **others but by transformers' own classes."""
    parameters = inspect.signature(function).parameters.values()
    kinds = {parameter.kind for parameter in parameters}
    assert inspect.Parameter.VAR_KEYWORD not in kinds or function is sparsefmt.transformers.SparsefmtConfig
    documented = inspect.getdoc(function)
    assert documented is not None
    if "Args:" in documented:
        for parameter in parameters:
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
                assert re.search(rf"^    (\w+, )*{parameter.name}(, \w+)*:", documented, re.M), parameter.name


def test_options_are_checked_as_they_are_made():
    with pytest.raises(ValueError, match="layout must be"):
        SaveOptions(layout="csr")
    with pytest.raises(ValueError, match="negative_zeros must be"):
        SaveOptions(negative_zeros="maybe")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="row_dims takes"):
        SaveOptions(row_dims="two")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="1 or more"):
        SaveOptions(row_dims={"w": 0})
