"""Files are never larger than those of safetensors if their chunks are small, and hardly ever if some are large."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.numpy
from helpers import examples
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsefmt
from sparsefmt.container.chunks import LARGE
from sparsefmt.layouts import heights
from tools.small_net import tensors as small_net

CODECS = ["raw", "auto"]
DTYPES = [
    "bool",
    "uint8",
    "int8",
    "int16",
    "uint16",
    "float16",
    "int32",
    "uint32",
    "float32",
    "int64",
    "uint64",
    "float64",
]
PADDING = 64 - 16
"""Before the first chunk, if that is to be mapped. Preamble, index and trailer take about as much less than a header of
safetensors as those of a tensor take more."""

OF_A_TILE = 8 + 4
"""A checksum and a raw size: bytes that a tile takes, of which safetensors has no counterpart."""

KEY = 1 + len("tile_rows") + 1 + 5
"""In the entry of a tensor of several tiles."""


def sizes(
    tensors: dict[str, np.ndarray], codec: str, metadata: dict[str, str] | None = None, layout: str = "auto"
) -> tuple[int, int]:
    """Bytes of a file, and of that of safetensors."""
    ours = sparsefmt.save(tensors, metadata, codec=codec, layout=layout, threads=1)
    return len(ours), len(safetensors.numpy.save(tensors, metadata))


def random(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0, sparsity: float = 0.0) -> np.ndarray:
    """Of bits that no codec makes fewer."""
    rng = np.random.default_rng(seed)
    width = np.dtype(dtype).itemsize
    count = int(np.prod(shape, dtype=np.int64))
    made = np.frombuffer(rng.bytes(count * width), dtype).reshape(shape).copy()
    made[rng.random(shape) < sparsity] = 0
    return made


SMALL = {
    "a scalar": {"a": np.array(7, np.uint8)},
    "a scalar of 64 bits": {"a": np.array(7, np.int64)},
    "a vector": {"a": random((10,))},
    "a vector without elements": {"a": random((0,))},
    "two tensors": {"bias": random((8,)), "weight": random((8, 10))},
    "five scalars": {f"s{n}": random((), seed=n) for n in range(5)},
    "a thousand scalars": {f"s{n}": random((), seed=n) for n in range(1000)},
    "a thousand vectors of odd lengths": {f"v{n}": random(((3, 5, 7)[n % 3],), "int8", n) for n in range(1000)},
    "pairs of LoRA": {
        f"layers.{n}.{part}.lora_{side}.weight": random((4, 64) if side == "A" else (64, 4), "float16", n)
        for n in range(20)
        for part in ("q_proj", "v_proj")
        for side in "AB"
    },
    "batch norm": {
        f"layers.{n}.{part}": np.array(n, np.int64) if part == "num_batches_tracked" else random((64,), seed=n)
        for n in range(50)
        for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    },
    "a matrix": {"w": random((64, 64), "float16")},
    "a matrix of 16 KiB": {"w": random((64, 64))},
    "every dtype": {dtype: np.ones((3,), dtype) for dtype in DTYPES},
    "every dtype, scalars": {dtype: np.ones((), dtype) for dtype in DTYPES},
}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", SMALL)
def test_small_tensors(name, codec):
    ours, theirs = sizes(SMALL[name], codec)
    assert ours <= theirs
    ours, theirs = sizes(SMALL[name], codec, {"format": "pt"})
    assert ours <= theirs


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("sparsity", [0.0, 0.7])
def test_a_net(codec, sparsity):
    """Convolutions, vectors and counters of batch norm."""
    ours, theirs = sizes(small_net(sparsity, 0), codec)
    assert ours < theirs


def test_no_tensor():
    """The one file of small tensors, or none, that is larger: preamble, trailer, and an index of nothing. One scalar is
    enough to make up for it."""
    assert sizes({}, "raw") == (41, 16)
    assert sizes({"a": np.array(7, np.uint8)}, "raw") == (61, 65)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "shape", [(LARGE // 4,), (LARGE // 4 + 1,), (181, 181), (256, 256), (50257,), (1024, 1100), (3, 700_000)]
)
def test_a_tensor_that_is_mapped(shape, codec):
    """At most padding before it, and a checksum for each of its tiles."""
    tiles = -(-shape[0] // heights.tile_rows(shape[0], int(np.prod(shape[1:]))))
    ours, theirs = sizes({"w": random(shape)}, codec, layout="dense")
    assert ours <= theirs + PADDING + OF_A_TILE * (tiles - 1) + (KEY if tiles > 1 else 0)


def test_two_tensors_that_are_mapped():
    """An entry takes less than a line of JSON, by more than the padding of both."""
    assert sizes({"w": random((256, 256))}, "raw") == (262_262, 262_224)
    ours, theirs = sizes({f"w{n}": random((256, 256), seed=n) for n in range(2)}, "raw")
    assert ours < theirs


def test_many_large_tensors_of_any_size():
    """What the padding of one takes, its entry and those of others have saved."""
    for first, second in ((1, LARGE), (LARGE + 1, LARGE), (LARGE - 1, LARGE), (LARGE + 8, LARGE + 64)):
        tensors = {f"w{n}": random(((first, second)[n % 2],), "uint8", n) for n in range(20)}
        ours, theirs = sizes(tensors, "raw")
        assert ours <= theirs


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40)


@st.composite
def checkpoints(draw: st.DrawFn) -> dict[str, np.ndarray]:
    """Of tensors of less than LARGE bytes: any bits, few values, zeros among them."""
    made = {}
    dtypes = draw(st.lists(st.sampled_from(DTYPES), min_size=1, max_size=3))
    for name in draw(st.lists(names, min_size=1, max_size=20, unique=True)):
        dtype = draw(st.sampled_from(dtypes))
        kind = draw(st.integers(0, 9))
        if kind < 6:
            shape = tuple(draw(st.lists(st.integers(0, 9), max_size=4)))
        elif kind < 8:
            shape = (draw(st.integers(1, 3000)),)
        else:
            shape = (draw(st.integers(1, 60)), draw(st.integers(1, 60)))
        array = random(shape, "uint8" if dtype == "bool" else dtype, draw(st.integers(0, 3)))
        match draw(st.integers(0, 3)):
            case 0:
                array = (array.view(np.uint8) % 5).view(array.dtype) if array.ndim else array
            case 1:
                array = np.where(random(shape, "uint8", 9) < 180, array.dtype.type(0), array)
        made[name] = np.asarray(array % 2 == 1 if dtype == "bool" else array)
    return made


@pytest.mark.parametrize("codec", CODECS)
@settings(max_examples=examples(150), deadline=None)
@given(data=st.data())
def test_drawn_checkpoints(codec, data):
    tensors = data.draw(checkpoints())
    metadata = data.draw(st.none() | st.dictionaries(names, st.text(max_size=20), max_size=3))
    ours, theirs = sizes(tensors, codec, metadata)
    assert ours <= theirs
