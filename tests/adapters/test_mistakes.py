"""What is handed in by mistake in the place of tensors, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_opening import TENSORS

import sparsefmt
import sparsefmt.numpy
import sparsefmt.torch
from sparsefmt import FormatError, SparsefmtError

MISTAKES: list[tuple[Any, str]] = [
    (None, "it is None: leave it out"),
    ({"a": np.zeros(3)}, "it is a dict: give its tensors names of their own"),
    ([np.zeros(3), np.zeros(4)], "it is a list of tensors: give each a name"),
    ((np.zeros((2, 2)), np.zeros((2, 2))), "it is a tuple of tensors: give each a name"),
    ([torch.zeros(3)], "it is a list of tensors: give each a name"),
    ([1.0, None], "it is a list that holds a NoneType"),
    ("text", "it is text: metadata keeps texts"),
    (Path("x"), "it is a path: load the file"),
    (torch.nn.Linear(2, 2), r"it is a torch Module: store the tensors of its state_dict\(\)"),
    ({1.0}, "its type is set, "),
    ((number for number in range(3)), "its type is generator, "),
    (object(), "its type is object, "),
    (np.array([None, {}]), "it is an array of Python objects: cast it to a dtype of numbers"),
]


@pytest.mark.parametrize(("value", "message"), MISTAKES, ids=lambda case: str(case)[:20])
def test_values_that_are_not_tensors(value, message, tmp_path):
    for save in (sparsefmt.save, sparsefmt.numpy.save):
        with pytest.raises(SparsefmtError, match=message) as caught:
            save({"layer.w": value})
        assert caught.value.tensor == "layer.w"
        assert "BF16" not in str(caught.value)
    if not isinstance(value, np.ndarray):
        with pytest.raises(FormatError, match=message) as caught:
            sparsefmt.torch.save({"layer.w": value})
        assert caught.value.tensor == "layer.w"


def test_lists_of_numbers_are_arrays():
    assert sparsefmt.load(sparsefmt.save({"w": [[1, 2], [3, 4]], "s": 2.5, "r": range(3)}))["w"].tolist() == [
        [1, 2],
        [3, 4],
    ]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (torch.nn.Linear(2, 2), r"not Linear: give model.state_dict\(\), or use sparsefmt.torch.save_model"),
        ([np.zeros(3)], "not list: give each a name"),
        (np.zeros(3), "not ndarray: give it a name"),
        ("model.sparsefmt", "not str: the dict comes first, then the file"),
        (None, "not NoneType"),
    ],
)
def test_what_is_not_a_dict_of_tensors(tensors, message, tmp_path):
    for module in (sparsefmt, sparsefmt.numpy, sparsefmt.torch):
        for save in (module.save, lambda value, module=module: module.save_file(value, tmp_path / "w")):
            with pytest.raises(FormatError, match=message):
                save(tensors)
    with pytest.raises(FormatError, match="the dict comes first"):
        sparsefmt.save_file("model.sparsefmt", TENSORS)
    assert not list(tmp_path.iterdir())
