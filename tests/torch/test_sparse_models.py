"""load_into and sparsify: which layers become sparse, what stays tied, what is refused, how much memory it takes."""

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
from torch_helpers import conv1d, same

import sparsefmt
from sparsefmt import FormatError, SparseTensor
from sparsefmt.torch import SparseLinear, load_into, load_model, make_dense, save_model, sparsify, tensors_of
from sparsefmt.torch.models import MIN_SPARSITY

pytestmark = pytest.mark.usefixtures("small_layers")


class Model(torch.nn.Module):
    """Layers of all kinds: plain, without bias, tied to an embedding, tied to each other, used without being called."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(50, 64)
        self.up = torch.nn.Linear(64, 128)
        self.down = torch.nn.Linear(128, 64, bias=False)
        self.block = torch.nn.TransformerEncoderLayer(64, 4, 96, batch_first=True)
        self.first = torch.nn.Linear(64, 64)
        self.second = torch.nn.Linear(64, 64)
        self.second.weight = self.first.weight
        self.norm = torch.nn.BatchNorm1d(64)
        self.register_buffer("scale", torch.full((64,), 2.0))
        self.register_buffer("not_saved", torch.ones(64), persistent=False)
        self.head = torch.nn.Linear(64, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        x = self.block(x + self.down(torch.relu(self.up(x))))
        x = self.norm(self.second(self.first(x)).transpose(1, 2)).transpose(1, 2)
        return self.head(x * self.scale)


SPARSE = ["block.linear1", "block.linear2", "down", "first", "second", "up"]
DENSE = {
    "block.self_attn.in_proj_weight": "it is not the weight of a linear layer",
    "block.self_attn.out_proj": ("it is a NonDynamicallyQuantizableLinear, whose weight is used without calling it"),
    "embedding.weight": "it belongs to a module of class Embedding, not to a linear layer",
    "head": "its weight is also embedding.weight",
}
TOKENS = torch.arange(21).reshape(3, 7)


def pruned_model(seed: int = 0, sparsity: float = 0.8) -> Model:
    torch.manual_seed(seed)
    model = Model().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter[torch.rand_like(parameter) < sparsity] = 0
        model.norm.running_mean.normal_()
    return model


def meta_model(kind: type[torch.nn.Module] = Model) -> torch.nn.Module:
    with torch.device("meta"):
        return kind().eval()


@pytest.fixture
def saved(tmp_path):
    """A model and its file."""
    model = pruned_model()
    save_model(model, tmp_path / "model.sparsefmt")
    return model, tmp_path / "model.sparsefmt"


def check_equal(loaded: torch.nn.Module, model: torch.nn.Module) -> None:
    """The weights are the same to the bit, and results nearly."""
    expected = model.state_dict()
    found = tensors_of(loaded)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        if isinstance(tensor, SparseTensor):
            assert np.array_equal(tensor.todense().view(np.uint32), expected[name].numpy().view(np.uint32)), name
        else:
            assert same(tensor, expected[name]), name
    with torch.no_grad():
        torch.testing.assert_close(loaded(TOKENS), model(TOKENS), rtol=1e-4, atol=1e-4)


def sparse_layers(model: torch.nn.Module) -> list[str]:
    return sorted(
        name for name, module in model.named_modules(remove_duplicate=False) if isinstance(module, SparseLinear)
    )


# load_into


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
@pytest.mark.parametrize("codec", ["raw", "zstd"])
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


# sparsify


def test_sparsify_replaces_what_is_pruned():
    model = pruned_model()
    expected = copy.deepcopy(model)
    result = sparsify(model)
    assert sorted(result.sparse) == SPARSE == sparse_layers(model)
    assert result.sparse["up"] is model.up
    assert set(result.dense) == {"block.self_attn.out_proj", "head"}
    assert "NonDynamicallyQuantizableLinear" in result.dense["block.self_attn.out_proj"]
    assert "embedding.weight" in result.dense["head"]
    assert model.first.weight_arrays is model.second.weight_arrays
    assert model.first.bias is not model.second.bias
    check_equal(model, expected)
    # once more: nothing is left
    again = sparsify(model)
    assert not again.sparse
    assert set(again.dense) == set(result.dense)


def test_sparsify_by_sparsity_and_name():
    def model() -> torch.nn.Sequential:
        made = torch.nn.Sequential(*[torch.nn.Linear(64, 64) for _ in range(4)])
        for number, sparsity in enumerate((0.0, 0.3, 0.5, 0.9)):
            torch.nn.utils.prune.random_unstructured(made[number], "weight", sparsity)
        return made

    assert 0.3 < MIN_SPARSITY < 0.5
    assert sorted(sparsify(model()).sparse) == ["2", "3"]
    assert sorted(sparsify(model(), min_sparsity=0.6).sparse) == ["3"]
    assert sorted(sparsify(model(), include="[02]").sparse) == ["2"]
    result = sparsify(model(), min_sparsity=0.0)
    assert sorted(result.sparse) == ["1", "2", "3"]
    assert result.dense == {"0": "no sparse layout makes it 10 % smaller"}
    layers = sparsify(model(), layout="permuted").sparse
    assert {layer.weight.tensor.layout for layer in layers.values()} == {"permuted"}
    assert sparsify(model()).dense["1"] == "30.0% of its weight is zero, which is less than 40.0%"
    with pytest.raises(ValueError, match="layout must be"):
        sparsify(model(), layout="dense")


def test_sparsify_keeps_what_cannot_be_replaced():
    layer = torch.nn.Linear(8, 8)
    with torch.no_grad():
        layer.weight.zero_()
    assert sparsify(layer).dense == {"": "it is the model itself: use SparseLinear.from_linear"}
    model = torch.nn.Sequential(torch.nn.Linear(8, 8, device="meta"), layer)
    with pytest.raises(RuntimeError, match=r"0\.weight is on meta"):
        sparsify(model)
    assert model[1] is layer


class Adapter(torch.nn.Module):
    """A layer with an adapter of low rank beside it, as LoRA starts: the second factor is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = torch.nn.Linear(64, 64)
        self.base_layer.requires_grad_(False)
        self.lora_A = torch.nn.Linear(64, 8, bias=False)
        self.lora_B = torch.nn.Linear(8, 64, bias=False)
        with torch.no_grad():
            self.base_layer.weight[torch.rand(64, 64) < 0.8] = 0
            self.lora_B.weight.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


def test_layers_that_start_from_zero_are_left_to_be_trained(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(Adapter(), torch.nn.ReLU(), Adapter())
    result = sparsify(model)
    assert set(result.sparse) == {"0.base_layer", "2.base_layer"}
    for name in ("0.lora_B", "2.lora_B"):
        assert (
            result.dense[name] == "all of its weight is zero and requires_grad is True: it may be about to be trained"
        )
    x = torch.randn(16, 64)
    optimizer = torch.optim.Adam([parameter for parameter in model.parameters() if parameter.requires_grad], 0.01)
    losses = []
    for _ in range(5):
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]
    assert model[0].lora_B.weight.count_nonzero()
    # the same, loaded into a model that is to be trained; one that is frozen has nothing to wait for
    save_model(torch.nn.Sequential(Adapter()), tmp_path / "model.sparsefmt")
    other = torch.nn.Sequential(Adapter())
    loaded = load_into(other, tmp_path / "model.sparsefmt")
    assert loaded.sparse == ["0.base_layer"]
    assert "about to be trained" in loaded.dense["0.lora_B"]
    frozen = torch.nn.Sequential(Adapter()).requires_grad_(False)
    assert load_into(frozen, tmp_path / "model.sparsefmt").sparse == ["0.base_layer", "0.lora_B"]
    assert sorted(sparsify(torch.nn.Sequential(Adapter()).requires_grad_(False)).sparse) == ["0.base_layer", "0.lora_B"]


@pytest.mark.parametrize("masked", [False, True])
def test_one_dense_weight_at_a_time_is_there_beside_its_compressed_form(monkeypatch, masked):
    model = torch.nn.Sequential(*[torch.nn.Linear(64, 64) for _ in range(8)])
    model[3].weight = model[2].weight
    model.append(model[1])
    for layer in model[:7]:
        if layer is not model[3]:
            torch.nn.utils.prune.random_unstructured(layer, "weight", 0.8)
            if not masked:
                torch.nn.utils.prune.remove(layer, "weight")
    model[3].weight = model[2].weight_orig if masked else model[2].weight
    weights = [weakref.ref(parameter) for name, parameter in model.named_parameters() if "weight" in name]
    assert len(weights) == 7
    del layer
    alive = []
    original = SparseLinear.from_linear.__func__

    def from_linear(cls, *arguments):
        alive.append(sum(weight() is not None for weight in weights))
        return original(cls, *arguments)

    monkeypatch.setattr(SparseLinear, "from_linear", classmethod(from_linear))
    gc.disable()
    try:
        result = sparsify(model)
    finally:
        gc.enable()
    # the last layer is not pruned; a weight that is masked in one layer and plain in another stays for the latter
    assert alive == [7, 6, 5, 5, 4, 3] if masked else [7, 6, 5, 4, 3, 2]
    assert len(alive) == len({id(layer.weight_arrays) for layer in result.sparse.values()}) == 6
    assert sum(weight() is not None for weight in weights) == (2 if masked else 1)


def test_loading_frees_each_dense_weight_as_its_layer_is_replaced(saved, monkeypatch):
    path = saved[1]
    model = pruned_model(1)
    weights = [weakref.ref(model.get_submodule(name).weight) for name in SPARSE if name != "second"]
    alive = []
    original = SparseLinear.set_weight

    def set_weight(self, weight):
        alive.append(sum(weight() is not None for weight in weights))
        original(self, weight)

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


def test_layers_that_share_a_weight_are_sparse_together_or_not_at_all():
    model = pruned_model()
    result = sparsify(model, exclude="second")
    assert sorted(result.sparse) == [name for name in SPARSE if name not in ("first", "second")]
    assert result.dense["first"] == "its weight is also second.weight"
    assert result.dense["second"] == "it is excluded"
    assert model.first.weight is model.second.weight


def test_tensors_that_a_sparse_layer_has_not_are_not_lost():
    model = torch.nn.Sequential(*[torch.nn.Linear(64, 64) for _ in range(4)])
    for layer in model:
        torch.nn.utils.prune.random_unstructured(layer, "weight", 0.8)
        torch.nn.utils.prune.remove(layer, "weight")
    torch.nn.utils.weight_norm(model[0])
    torch.nn.utils.parametrizations.weight_norm(model[1])
    model[2].register_buffer("scale", torch.ones(64))
    result = sparsify(model)
    assert list(result.sparse) == ["3"]
    assert result.dense["0"] == "it has weight_g, weight_v beside its weight and bias"
    assert result.dense["2"] == "it has scale beside its weight and bias"
    assert "ParametrizedLinear" in result.dense["1"]


# make_dense


def test_a_model_is_made_dense_as_it_was(tmp_path):
    model = pruned_model()
    model.up.weight.requires_grad_(False)
    model.block.linear1.train()
    expected = copy.deepcopy(model)
    for dtype in (None, torch.float64):
        for load in (False, True):
            other = copy.deepcopy(expected)
            if load:
                save_model(other, tmp_path / "model.sparsefmt")
                load_into(other, tmp_path / "model.sparsefmt")
            else:
                sparsify(other)
            biases = {name: parameter for name, parameter in other.named_parameters() if name.endswith("bias")}
            # copied, and cast, whatever is shared stays so
            again = copy.deepcopy(other).to(torch.float64).to(torch.float32)
            assert sparse_layers(other) == sparse_layers(again) == SPARSE
            for changed in (other, again):
                make_dense(changed, dtype)
                assert not sparse_layers(changed)
                assert changed.first.weight is changed.second.weight
                assert [name for name, _ in changed.named_parameters()] == [
                    name for name, _ in expected.named_parameters()
                ]
                for (name, parameter), (_, before) in zip(
                    changed.named_parameters(), expected.named_parameters(), strict=True
                ):
                    assert parameter.requires_grad == before.requires_grad == (name != "up.weight")
                    assert parameter.device == before.device
                    assert torch.equal(parameter.float(), before)
                assert changed.up.weight.dtype == dtype or torch.float32
                assert [module.training for module in changed.modules()] == [
                    module.training for module in expected.modules()
                ]
            assert all(dict(other.named_parameters())[name] is bias for name, bias in biases.items())
    again.float()(TOKENS).square().mean().backward()
    assert again.down.weight.grad.count_nonzero()
    assert again.up.weight.grad is None


def test_layers_that_only_happen_to_share_memory_are_not_tied(tmp_path):
    """Tied in a file, or copies of one layer: they would have been trained apart."""
    weight = np.diag(np.arange(1, 65, dtype=np.float32))
    sparsefmt.save_file({"0.weight": weight, "1.weight": weight}, tmp_path / "model.sparsefmt")
    model = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False), torch.nn.Linear(64, 64, bias=False))
    load_into(model, tmp_path / "model.sparsefmt")
    model.append(copy.deepcopy(model[0]))
    assert model[0].weight_arrays is model[1].weight_arrays is model[2].weight_arrays
    make_dense(model)
    assert len({layer.weight.data_ptr() for layer in model}) == 3
    assert all(layer.weight.detach().equal(torch.from_numpy(weight)) for layer in model)


def test_what_cannot_be_made_dense():
    with pytest.raises(TypeError, match="replaced in itself"):
        make_dense(SparseLinear(2, 2))
    with pytest.raises(RuntimeError, match="no weights yet"):
        make_dense(torch.nn.Sequential(SparseLinear(2, 2)))


def test_layers_pruned_alike_or_differently_and_shared():
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
    model[1].weight = model[0].weight
    model[2].weight = model[0].weight
    torch.nn.utils.prune.random_unstructured(model[0], "weight", 0.8)
    torch.nn.utils.prune.random_unstructured(model[1], "weight", 0.9)
    expected = [(layer.weight_orig * layer.weight_mask).detach() for layer in model[:2]]
    result = sparsify(model)
    assert list(result.sparse) == ["0", "1"]
    for layer, weight in zip(model[:2], expected, strict=True):
        assert torch.equal(layer.weight.to_dense(), weight)


def test_a_model_trains_what_is_not_sparse():
    model = pruned_model()
    sparsify(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = model(TOKENS).detach()
    loss = model(TOKENS).square().mean()
    loss.backward()
    optimizer.step()
    assert model(TOKENS).square().mean() < loss
    assert not torch.equal(model(TOKENS), before)


def test_tensors_of_a_model_are_what_a_file_has(saved, tmp_path):
    model, path = saved
    load_into(other := meta_model(), path)
    tensors = tensors_of(other)
    load_into(filled := meta_model(), path)
    with torch.no_grad():
        filled.up.bias.zero_()
    filled.up.set_weight(filled.up.weight.tensor.to_layout("bitmask"))
    filled.load_state_dict(tensors)
    filled.not_saved = torch.ones(64)
    check_equal(filled, model)
    assert tensors["first.weight"] is tensors["second.weight"]
    assert tensors["up.weight"] is other.up.weight.tensor
    arrays = {name: tensor if isinstance(tensor, SparseTensor) else tensor.numpy() for name, tensor in tensors.items()}
    sparsefmt.save_file(arrays, tmp_path / "again.sparsefmt")
    load_into(again := meta_model(), tmp_path / "again.sparsefmt")
    again.not_saved = torch.ones(64)
    check_equal(again, model)


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
