"""A net of many small tensors takes little beside its elements."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from helpers import same_bits

import sparsefmt
from sparsefmt.container.sources import Memory
from sparsefmt.sparse_file import SparseFile
from tools import small_net


def test_it_writes_a_net(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.safetensors"
    small_net.main.main([str(path), "--sparsity", "0.9"], standalone_mode=False)
    assert "314 tensors, 3,540,317 elements" in capsys.readouterr().out
    made = safetensors.numpy.load_file(path)
    head = made["head.convolution.weight"]
    assert abs(np.mean(head == 0) - 0.9) < 1e-3
    assert np.count_nonzero(made["blocks.3.depthwise.convolution.weight"])


@pytest.mark.parametrize("codec", ["auto", "raw", "zstd", "rans"])
def test_what_an_entry_takes(codec: str) -> None:
    """At most 80 bytes a tensor beside its name, whether the index is coded or not; and never more than safetensors."""
    net = {name: array for name, array in small_net.tensors(0.7, 0).items() if array.size < 20_000}
    data = sparsefmt.save(net, codec=codec)
    loaded = sparsefmt.load(data)
    for name, array in loaded.items():
        assert same_bits(np.asarray(array), net[name])
    reader = SparseFile(Memory(data)).reader
    beside = len(data) - int(reader.index.chunks["stored"].sum()) - sum(map(len, net))
    assert beside < 80 * len(net)
    assert len(data) < len(safetensors.numpy.save(net))


SMALL = {
    "scalars": {f"layers.{n}.num_batches_tracked": np.array(n, np.int64) for n in range(50)},
    "vectors of 16": {f"layers.{n}.bias": np.arange(n, n + 16, dtype=np.float32) for n in range(50)},
    "pairs of LoRA": {
        f"layers.{n}.q_proj.lora_{part}.weight": np.random.default_rng(n).standard_normal(shape).astype(np.float16)
        for n in range(20)
        for part, shape in (("A", (8, 64)), ("B", (64, 8)))
    },
    "odd sizes": {f"{n}": np.random.default_rng(n).integers(0, 256, 8 * n + 1, np.uint8) for n in range(50)},
}


@pytest.mark.parametrize("codec", ["auto", "raw", "zstd", "rans"])
@pytest.mark.parametrize("tensors", SMALL.values(), ids=SMALL)
def test_no_larger_than_safetensors(tensors: dict[str, np.ndarray], codec: str) -> None:
    assert len(sparsefmt.save(tensors, codec=codec)) <= len(safetensors.numpy.save(tensors))
