"""An open file keeps the coders that it needs again, and no more."""

from __future__ import annotations

from collections import Counter
from io import BytesIO

import numpy as np
import pytest
from helpers import dense, pruned, same_bits

import sparsefmt
from sparsefmt.codecs import CODECS
from sparsefmt.codecs.contract import ArrayInfo, Coder
from sparsefmt.container.array_reader import MOST_CODERS
from sparsefmt.dtypes import DTYPES

ROWS, COLS = 6000, 500
"""Three tiles and more."""


@pytest.fixture
def made(monkeypatch) -> Counter[bytes]:
    """How often a coder was made of each model."""
    models: Counter[bytes] = Counter()
    real = CODECS["rans"].coder

    def counted(model: bytes, info: ArrayInfo) -> Coder:
        models[model] += 1
        return real(model, info)

    monkeypatch.setattr(CODECS["rans"], "coder", counted)
    return models


def saved(rng: np.random.Generator, names: list[str], rows: int = ROWS) -> tuple[dict[str, np.ndarray], bytes]:
    tensors = {}
    for number, name in enumerate(names):
        # of few bits and uneven, so that both values and masks are coded, those of each tensor by a model of their own
        tensors[name] = (pruned(rng, (rows, COLS), DTYPES["U16"], 0.6 + 0.01 * number) & 0xF0).astype(np.uint16)
    return tensors, sparsefmt.save(tensors, layout="bitmask", codec="rans")


@pytest.mark.parametrize("threads", [1, 3])
def test_a_model_is_read_once_for_all_tiles_and_parts(made, threads):
    tensors, data = saved(np.random.default_rng(1), ["w"])
    made.clear()
    with sparsefmt.open_file(BytesIO(data), threads=threads) as file:
        entry = file.reader.index.entry("w")
        assert entry.tiles > 2
        assert set(entry.models) == {"mask", "values"}
        file.reader.tile(entry, 0)  # threads that need the same model at the same moment may each read it
        for row in range(0, ROWS, 500):
            assert same_bits(dense(file.get_slice("w")[row : row + 3]), tensors["w"][row : row + 3])
        assert same_bits(dense(file.load("w")), tensors["w"])
    assert made == Counter(entry.models.values())


def test_models_of_many_tensors_are_let_go(made):
    names = [f"w{number}" for number in range(MOST_CODERS)]
    _, data = saved(np.random.default_rng(2), names, 60)
    made.clear()
    with sparsefmt.open_file(BytesIO(data)) as file:
        for _ in range(2):
            for name in names:
                file.load(name)
        models = [model for name in names for model in file.reader.index.entry(name).models.values()]
        assert len(set(models)) > MOST_CODERS
        assert set(made.values()) == {2}


def test_writing_reads_no_model(made):
    """What makes a model gives the coder, too, whether the codec was chosen by name or by trying."""
    tensors, _ = saved(np.random.default_rng(4), ["w"], 60)
    sparsefmt.save(tensors, layout="bitmask", codec="rans")
    assert not made
