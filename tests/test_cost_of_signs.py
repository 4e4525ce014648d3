"""Signs of pruned zeros that take a large part of a file: whoever saves is told, once."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import run_command, weights

import sparsefmt
import sparsefmt.numpy
import sparsefmt.torch
from sparsefmt import cost_of_signs
from sparsefmt.container.index import Index

MANY = weights(np.random.default_rng(0), (256, 512), np.float32, 0.999, negative_zeros=True)
FEW = weights(np.random.default_rng(0), (256, 512), np.float32, 0.5, negative_zeros=True)
NONE = np.where(MANY == 0, np.float32(0), MANY)


def a_model(weight: np.ndarray = MANY) -> torch.nn.Module:
    model = torch.nn.Linear(512, 256, bias=False)
    model.weight.data = torch.from_numpy(weight)
    return model


SAVING: dict[str, Callable[..., Any]] = {
    "save": lambda array, path, **options: sparsefmt.save({"weight": array}, **options),
    "save_file": lambda array, path, **options: sparsefmt.save_file({"weight": array}, path, **options),
    "file object": lambda array, path, **options: sparsefmt.save_file({"weight": array}, io.BytesIO(), **options),
    "numpy.save": lambda array, path, **options: sparsefmt.numpy.save({"weight": array}, **options),
    "numpy.save_file": lambda array, path, **options: sparsefmt.numpy.save_file({"weight": array}, path, **options),
    "torch.save": lambda array, path, **options: sparsefmt.torch.save({"weight": torch.from_numpy(array)}, **options),
    "torch.save_file": lambda array, path, **options: sparsefmt.torch.save_file(
        {"weight": torch.from_numpy(array)}, path, **options
    ),
    "torch.save_model": lambda array, path, **options: sparsefmt.torch.save_model(a_model(array), path, **options),
}


def warned(call: Callable[[], object]) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return caught


@pytest.mark.parametrize("name", SAVING)
def test_each_function_that_saves_warns_once(name, tmp_path):
    path = tmp_path / "model.sparsefmt"
    save = SAVING[name]
    (caught,) = warned(lambda: save(MANY, path))
    assert caught.category is UserWarning
    assert 'negative_zeros="drop" leaves them out' in str(caught.message)
    assert caught.filename == __file__
    for array, options in ((MANY, {"negative_zeros": "drop"}), (FEW, {}), (NONE, {})):
        assert not warned(lambda array=array, options=options: save(array, path, **options))


def test_the_numbers_are_those_of_the_file(tmp_path):
    path = tmp_path / "model.sparsefmt"
    tensors = {"a": MANY, "b": MANY[::-1].copy(), "dense": FEW[0]}
    (caught,) = warned(lambda: sparsefmt.save_file(tensors, path))
    without = tmp_path / "without.sparsefmt"
    sparsefmt.save_file(tensors, without, negative_zeros="drop")
    written, smaller = path.stat().st_size, without.stat().st_size
    with sparsefmt.open_file(path) as file:
        index = file.reader.index
        found = sum(
            int(index.chunk(entry, tile, "negative_zeros")["stored"])
            for entry in index.tensors.values()
            if "negative_zeros" in entry.codecs
            for tile in range(entry.tiles)
        )
        assert found == sum(map(index.sign_nbytes, index.tensors.values()))
    # the rest is padding, and what the index says of the arrays
    assert 0 < written - smaller - found < 1000
    assert f"{found:,} of {written:,} bytes" in str(caught.message)
    assert f"{found / written:.0%} of what was saved" in str(caught.message)


@pytest.mark.parametrize(("cost", "written", "worth_it"), [(0, 0, False), (333, 1000, False), (334, 1000, True)])
def test_a_third_is_the_rule(cost, written, worth_it):
    assert (cost_of_signs.note(cost, written, "this") is not None) == worth_it


def test_nothing_was_saved():
    assert not warned(lambda: cost_of_signs.warn(Index(), 100))
    assert not warned(lambda: sparsefmt.save({}))


def test_convert_says_it_in_its_own_words(tmp_path: Path):
    import safetensors.numpy

    for array, words in (
        (MANY, "--negative-zeros drop leaves them out, if 0.0 is as good"),
        (FEW, "--negative-zeros drop"),
    ):
        safetensors.numpy.save_file({"w": array}, tmp_path / "m.safetensors")
        result = run_command("convert", tmp_path / "m.safetensors", "--force")
        assert result.exit_code == 0
        assert words in result.stdout
        assert result.stdout.count("--negative-zeros drop") == 1
        assert "Warning" not in result.stderr
