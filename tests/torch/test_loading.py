"""load_into and load_model: which layers become sparse, what stays tied, what is refused, how much memory it takes."""

from __future__ import annotations

import copy
import gc
import json
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from helpers import first_always
from torch_helpers import conv1d, same
from torch_models import SPARSE, TOKENS, Model, check_equal, meta_model, pruned_model, sparse_layers

import sparsefmt
from sparsefmt import FormatError, SparseTensor
from sparsefmt.torch import SparseLinear, load_into, load_model, make_dense, save_model, sparsify, tensors_of

pytestmark = pytest.mark.usefixtures("small_layers")

DENSE = {
    "block.self_attn.in_proj_weight": "it is not the weight of a linear layer",
    "block.self_attn.out_proj": ("it is a NonDynamicallyQuantizableLinear, whose weight is used without calling it"),
    "embedding.weight": "it belongs to a module of class Embedding, not to a linear layer",
    "head": "its weight is also embedding.weight",
}


@pytest.mark.parametrize("layout", ["auto", "bitmask", "permuted"])
@pytest.mark.parametrize("backend", ["mmap", "pread"])
def test_loaded_into_an_ordinary_model(saved, backend, layout):
    model, path = saved
    other = pruned_model(1)
    bias, embedding = other.up.bias, other.embedding.weight
    result = load_into(other, path, layout=layout, backend=backend)
    assert result[:4] == (SPARSE, [], [], DENSE)
    assert sparse_layers(other) == SPARSE
    check_equal(other, model)
    # what was there is filled, and not replaced
    assert other.up.bias is bias
    assert other.embedding.weight is embedding is other.head.weight
    assert other.first.weight_arrays is other.second.weight_arrays
    assert not other.up.training
    if layout != "auto":
        assert other.up.weight.tensor.layout == layout


def test_loaded_into_a_model_without_data(saved):
    model, path = saved
    other = meta_model()
    with torch.device("meta"):
        # where things are made has no say in where they are loaded
        assert load_into(other, path).sparse == SPARSE
    other.not_saved = torch.ones(64)
    check_equal(other, model)
    assert other.embedding.weight is other.head.weight
    assert isinstance(other.embedding.weight, torch.nn.Parameter)
    assert other.embedding.weight.requires_grad
    assert not any(tensor.is_meta for tensor in other.state_dict().values())


def test_loaded_twice_fills_what_is_sparse_already(saved):
    model, path = saved
    other = meta_model()
    load_into(other, path)
    layer = other.up
    with torch.no_grad():
        other.up.bias.zero_()
    assert load_into(other, path).sparse == SPARSE
    assert other.up is layer
    other.not_saved = torch.ones(64)
    check_equal(other, model)


def test_a_sparse_layer_takes_a_weight_that_is_stored_dense(tmp_path):
    linear = torch.nn.Linear(64, 64)
    save_model(torch.nn.Sequential(linear), tmp_path / "model.sparsefmt")
    model = torch.nn.Sequential(SparseLinear(64, 64))
    assert load_into(model, tmp_path / "model.sparsefmt").sparse == ["0"]
    assert same(model[0].weight.to_dense(), linear.weight)


def test_a_file_of_another_dtype(tmp_path):
    """Sparse weights keep the dtype of the file; what the model has keeps its own."""
    model = pruned_model().bfloat16()
    save_model(model, tmp_path / "model.sparsefmt")
    ordinary = pruned_model(1)
    load_into(ordinary, tmp_path / "model.sparsefmt")
    assert ordinary.up.weight.dtype == torch.bfloat16
    assert ordinary.up.bias.dtype == ordinary.embedding.weight.dtype == torch.float32
    assert ordinary(TOKENS).dtype == torch.float32
    meta = meta_model()
    load_into(meta, tmp_path / "model.sparsefmt")
    assert {tensor.dtype for tensor in meta.parameters()} == {torch.bfloat16}
    # and what the layers give has the dtype of what they get
    assert meta.up(torch.randn(64)).dtype == torch.float32


def test_only_what_is_included(saved):
    model, path = saved
    other = pruned_model(1)
    assert load_into(other, path, include=["block.*", "up"]).sparse == ["block.linear1", "block.linear2", "up"]
    assert type(other.down) is torch.nn.Linear
    check_equal(other, model)
    # a weight of two layers is sparse in both or in none
    assert load_into(pruned_model(1), path, include="first").sparse == []
    with pytest.raises(TypeError, match="include"):
        load_into(other, path, include=[3])


def test_names_that_do_not_fit(saved):
    path = saved[1]

    class Other(Model):
        def __init__(self) -> None:
            super().__init__()
            self.up = torch.nn.Linear(64, 127)
            self.more = torch.nn.Linear(2, 2)
            del self.norm

    other = Other()
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(RuntimeError) as error:
        load_into(other, path)
    text = str(error.value)
    assert text.startswith("Error(s) in loading state_dict for Other:")
    assert 'Missing key(s) in state_dict: "more.bias", "more.weight".' in text
    assert '"norm.bias"' in text.split("Unexpected key(s) in state_dict: ")[1]
    assert "size mismatch for up.weight" in text
    assert "torch.Size([128, 64])" in text
    assert "torch.Size([127, 64])" in text
    assert "size mismatch for up.bias" in text
    assert str(path) in text
    # nothing has been changed
    assert not sparse_layers(other)
    assert all(same(tensor, before[name]) for name, tensor in other.state_dict().items())
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_into(other, path, strict=False)
    other.up = torch.nn.Linear(64, 128)
    result = load_into(other, path, strict=False)
    assert result.missing_keys == ["more.bias", "more.weight"]
    assert [name.split(".")[0] for name in result.unexpected_keys] == ["norm"] * 5
    assert result.sparse == SPARSE


def test_one_name_of_a_tied_parameter_is_enough_and_two_must_be_one_tensor(tmp_path):
    model = pruned_model()
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    del tensors["first.weight"], tensors["embedding.weight"]
    sparsefmt.save_file(tensors, tmp_path / "one.sparsefmt")
    other = meta_model()
    assert load_into(other, tmp_path / "one.sparsefmt").sparse == SPARSE
    other.not_saved = torch.ones(64)
    check_equal(other, model)
    # tied in the file
    tensors["first.weight"] = tensors["second.weight"]
    sparsefmt.save_file(tensors, tmp_path / "tied.sparsefmt")
    assert load_into(other, tmp_path / "tied.sparsefmt").unexpected_keys == []
    # two
    tensors["embedding.weight"] = np.ones((50, 64), np.float32)
    sparsefmt.save_file(tensors, tmp_path / "two.sparsefmt")
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "head.weight"'):
        load_into(other, tmp_path / "two.sparsefmt")


def test_layers_tied_in_the_file_alone_share_their_weights(tmp_path):
    weight = np.diag(np.arange(1, 65, dtype=np.float32))
    sparsefmt.save_file({"0.weight": weight, "1.weight": weight}, tmp_path / "model.sparsefmt")
    model = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False), torch.nn.Linear(64, 64, bias=False))
    assert load_into(model, tmp_path / "model.sparsefmt").sparse == ["0", "1"]
    assert model[0].weight_arrays is model[1].weight_arrays


def test_a_module_with_two_names_stays_one(tmp_path):
    layer = torch.nn.Linear(64, 64)
    torch.nn.utils.prune.l1_unstructured(layer, "weight", 0.9)
    torch.nn.utils.prune.remove(layer, "weight")
    model = torch.nn.Sequential(layer, torch.nn.ReLU(), layer)
    save_model(model, tmp_path / "model.sparsefmt")
    assert load_into(model, tmp_path / "model.sparsefmt").sparse == ["0", "2"]
    assert model[0] is model[2]
    assert isinstance(model[0], SparseLinear)


def test_a_linear_layer_that_is_the_model_is_loaded_dense(tmp_path):
    layer = torch.nn.Linear(64, 64)
    with torch.no_grad():
        layer.weight[1:] = 0
    save_model(layer, tmp_path / "model.sparsefmt")
    other = torch.nn.Linear(64, 64)
    assert load_into(other, tmp_path / "model.sparsefmt").sparse == []
    assert same(other.weight, layer.weight)


def test_conv1d_layers_are_turned(tmp_path):
    model = torch.nn.Sequential(conv1d(200, 100))
    save_model(model, tmp_path / "model.sparsefmt")
    x = torch.randn(3, 200)
    expected = x @ model[0].weight + model[0].bias
    other = torch.nn.Sequential(conv1d(200, 100)).to("meta")
    assert load_into(other, tmp_path / "model.sparsefmt").sparse == ["0"]
    assert other[0].transposed
    torch.testing.assert_close(other[0](x), expected, rtol=1e-5, atol=1e-5)
    assert same(torch.from_numpy(tensors_of(other)["0.weight"].todense()), model[0].weight)
    load_into(other, tmp_path / "model.sparsefmt")
    torch.testing.assert_close(other[0](x), expected, rtol=1e-5, atol=1e-5)
    for state in (model.state_dict(), tensors_of(other)):
        other[0] = SparseLinear(200, 100, transposed=True)
        other.load_state_dict(state)
        torch.testing.assert_close(other[0](x), expected, rtol=1e-5, atol=1e-5)
    assert list(sparsify(model).sparse) == ["0"]
    torch.testing.assert_close(model[0](x), expected, rtol=1e-5, atol=1e-5)


def test_raw_files_are_mapped_and_not_copied(tmp_path):
    model = pruned_model()
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    sparsefmt.save_file(tensors, tmp_path / "model.sparsefmt", codec="raw")
    other = meta_model()
    load_into(other, tmp_path / "model.sparsefmt")
    mapped = [
        tuple(int(address, 16) for address in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith("model.sparsefmt")
    ]
    address = other.up.weight_arrays.data_ptr()
    assert any(begin <= address < end for begin, end in mapped)
    other.not_saved = torch.ones(64)
    check_equal(other, model)
    # a copy of such a module has memory of its own once it is pickled
    state = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    copied = copy.deepcopy(other)
    copied.load_state_dict(state)
    check_equal(copied, model)


def shards(folder: Path, model: torch.nn.Module) -> None:
    """The model in two files with an index."""
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05d}-of-00002.sparsefmt"
        sparsefmt.save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.sparsefmt.index.json").write_text(json.dumps(index))


def test_a_folder_of_shards(tmp_path):
    model = pruned_model()
    model.head = torch.nn.Linear(64, 50, bias=False)
    model.second = torch.nn.Linear(64, 64)
    shards(tmp_path, model)
    for path in (tmp_path, str(tmp_path), tmp_path / "model.sparsefmt.index.json"):
        other = pruned_model(1)
        other.head = torch.nn.Linear(64, 50, bias=False)
        other.second = torch.nn.Linear(64, 64)
        assert load_into(other, path).sparse == [name for name in SPARSE if name != "second"]
        check_equal(other, model)
    (tmp_path / "model-00002-of-00002.sparsefmt").unlink()
    with pytest.raises(FormatError, match=r"model-00002-of-00002.sparsefmt.*missing"):
        load_into(other, tmp_path)
    index = {"weight_map": {"up.weight": "../model.sparsefmt"}}
    (tmp_path / "model.sparsefmt.index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match=r"'\.\./model\.sparsefmt'"):
        load_into(other, tmp_path)


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_into(Model(), tmp_path)
    with pytest.raises(FileNotFoundError):
        load_into(Model(), tmp_path / "model.sparsefmt")
    (tmp_path / "model.sparsefmt").write_bytes(b"nothing")
    with pytest.raises(FormatError):
        load_into(Model(), tmp_path / "model.sparsefmt")
    with pytest.raises(ValueError, match="layout must be"):
        load_into(Model(), tmp_path, layout="dense")


MEMORY = """
import resource, sys, torch
from sparsefmt.torch import load_into

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def model():
    return torch.nn.Sequential(*[torch.nn.Linear(2048, 2048, bias=False) for _ in range(12)])

with torch.device("meta"):
    small, large = model()[:1], model()
load_into(small, sys.argv[1], strict=False)  # kernels and libraries
small[0](torch.ones(1, 2048))
del small
before = peak()
load_into(large, sys.argv[1])
print(peak() - before, sum(layer.weight_arrays.numel() for layer in large))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted differently")
@pytest.mark.parametrize("codec", first_always(["zstd", "raw"]))
def test_loading_without_data_takes_about_the_memory_of_the_sparse_layers(codec, tmp_path):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((2048, 2048), np.float32) * (rng.random((2048, 2048)) < 0.1)
    tensors = {f"{number}.weight": np.roll(weight, number) for number in range(12)}
    sparsefmt.save_file(tensors, tmp_path / "model.sparsefmt", codec=codec)
    found = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "model.sparsefmt")], capture_output=True, text=True, check=True
    )
    taken, sparse = map(int, found.stdout.split())
    dense = 12 * weight.nbytes
    assert sparse < 0.2 * dense
    assert taken < 1.15 * sparse + 16e6 < 0.4 * dense


def test_loading_frees_each_dense_weight_as_its_layer_is_replaced(saved, monkeypatch):
    path = saved[1]
    model = pruned_model(1)
    weights = [weakref.ref(model.get_submodule(name).weight) for name in SPARSE if name != "second"]
    alive = []
    original = SparseLinear.set_weight

    def set_weight(self, weight, scale=None):
        alive.append(sum(weight() is not None for weight in weights))
        original(self, weight, scale)

    monkeypatch.setattr(SparseLinear, "set_weight", set_weight)
    gc.disable()
    try:
        assert load_into(model, path).sparse == SPARSE
    finally:
        gc.enable()
    assert alive == [5, 4, 3, 2, 1]
    assert not any(weight() is not None for weight in weights)


def test_a_state_dict_unties_nothing(saved):
    model = saved[0]
    for load in (lambda other: other.load_state_dict(model.state_dict()), lambda other: load_model(other, saved[1])):
        other = pruned_model(1)
        sparsify(other)
        load(other)
        check_equal(other, model)
        make_dense(other)
        assert other.first.weight is other.second.weight


def test_one_name_of_shared_weights_reaches_all_of_them(tmp_path):
    """Copies of a layer share its memory: a file has their weights once."""
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
    with torch.no_grad():
        model[0].weight[1:] = 0
    sparsify(model)
    model.append(copy.deepcopy(model[0]))
    save_model(model, tmp_path / "model.sparsefmt")
    expected = model[0].weight.to_dense()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.set_weight(SparseTensor.from_dense(torch.eye(64)))
    model[2].share_memory_with(model[0])
    assert load_model(model, tmp_path / "model.sparsefmt") == ([], [])
    assert torch.equal(model[0].weight.to_dense(), expected)
    assert torch.equal(model[2].weight.to_dense(), expected)
    make_dense(model)
    assert model[0].weight is not model[2].weight


def test_the_twin_of_safetensors_loads_dense_weights_into_sparse_layers(saved):
    model, path = saved
    load_into(other := meta_model(), path)
    other.not_saved = torch.ones(64)
    other.up.set_weight(SparseTensor.from_dense(np.zeros((128, 64), np.float32), "bitmask"))
    assert load_model(other, path) == ([], [])
    check_equal(other, model)


def test_save_model_keeps_sparse_layers_compressed(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(96, 64), torch.nn.ReLU(), torch.nn.Linear(64, 96, bias=False))
    torch.nn.utils.prune.l1_unstructured(model[0], "weight", 0.9)
    torch.nn.utils.prune.remove(model[0], "weight")
    weight = model[0].weight.detach().clone()
    sparsify(model)
    twin = SparseLinear.from_tensor(model[0].weight.tensor)
    twin.share_weight(model[0])
    model.append(twin)
    save_model(model, tmp_path / "a.sparsefmt", {"made by": "me"})
    with sparsefmt.open_file(tmp_path / "a.sparsefmt") as file:
        assert list(file) == ["0.bias", "0.weight", "2.weight", "3.weight"]
        assert file.reader.index.aliases == {"3.weight": "0.weight"}
        assert isinstance(file["0.weight"], SparseTensor)
        assert file.metadata() == {"made by": "me"}
    dense = torch.nn.Sequential(torch.nn.Linear(96, 64), torch.nn.ReLU(), torch.nn.Linear(64, 96, bias=False))
    dense.append(torch.nn.Linear(96, 64, bias=False))
    assert load_model(dense, tmp_path / "a.sparsefmt") == ([], [])
    assert same(dense[0].weight, weight)
    assert same(dense[3].weight, weight)
