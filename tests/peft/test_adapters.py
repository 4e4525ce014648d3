"""Adapters of PEFT on models with SparseLinear layers, against the same adapters on the dense model."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys
from typing import Any

import pytest
import torch
from helpers import first_always
from packaging.version import Version
from torch_helpers import raw

import sparsefmt.torch
from sparsefmt.torch import SparseLinear, make_dense, make_trainable, sparsify

peft = pytest.importorskip("peft", reason="peft is not installed")
transformers = pytest.importorskip("transformers", reason="peft needs transformers")

from experts_models import TOKENS  # noqa: E402
from experts_models import model_of as experts_model  # noqa: E402
from transformers.pytorch_utils import Conv1D  # noqa: E402

from sparsefmt.peft import SparseIA3Linear, SparseLoraLinear, merge_and_unload, merging  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("error:.*[Uu]nsupported layer"),
    # PEFT's own, of the biases of LoRA and of merging
    pytest.mark.filterwarnings("ignore:.*LoRA tensor.s. have invalid shape"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set"),
    pytest.mark.filterwarnings("ignore:Already following adapters were merged"),
    pytest.mark.filterwarnings("ignore:aLoRA is currently only supported"),
]


class Model(torch.nn.Module):
    """Two pruned layers, one of them a Conv1D, and a dense head."""

    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(48, 80)
        self.down = Conv1D(32, 80)
        self.head = torch.nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.down(torch.relu(self.up(x)))))


def dense_model(dtype: torch.dtype = torch.float32) -> Model:
    torch.manual_seed(0)
    model = Model()
    with torch.no_grad():
        model.down.weight.normal_(std=0.1)
        for layer in (model.up, model.down):
            layer.weight.mul_(torch.rand(layer.weight.shape) < 0.3)
            layer.bias.normal_()
    return model.to(dtype)


def sparse_model(dtype: torch.dtype = torch.float32, **options: Any) -> Model:
    model = dense_model(dtype)
    assert sorted(sparsify(model, min_size=0, **options).sparse) == ["down", "up"]
    return model


def lora(**options: Any) -> Any:
    return peft.LoraConfig(r=4, lora_alpha=6, target_modules=["up", "down"], **options)


def ia3(**options: Any) -> Any:
    return peft.IA3Config(target_modules=["up", "down"], feedforward_modules=["down"], **options)


def adapted(model: Model, config: Any, seed: int = 1) -> Any:
    """The model with adapters that do something, the same whatever the model."""
    made = peft.get_peft_model(model, copy.deepcopy(config))
    fill(made, seed)
    return made


def fill(model: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_magnitude" in name or "ia3_l" in name:
                parameter.mul_(torch.rand(parameter.shape, generator=generator) + 0.5)
            elif "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)


X = torch.randn(6, 48, generator=torch.Generator().manual_seed(3))
CONFIGS = {
    "lora": lora(),
    "bias": lora(lora_bias=True),
    "dora": lora(use_dora=True),
    "rank": lora(use_rslora=True, rank_pattern={"up": 7}),
    "ia3": ia3(),
}
config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def layers_of(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, (SparseLoraLinear, SparseIA3Linear))]


def zeros_of(model: Model) -> list[torch.Tensor]:
    return [layer.weight == 0 for layer in _two(model)]


def _two(model: Model) -> list[Any]:
    return [model.up, model.down]


def steps(model: Any, count: int = 5) -> list[float]:
    """Losses of some steps of training."""
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01)
    target = torch.randn(6, 10, generator=torch.Generator().manual_seed(4))
    losses = []
    for _ in range(count):
        loss = torch.nn.functional.mse_loss(model(X), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@config
def test_they_compute_and_train_as_on_the_dense_model(config):
    sparse, dense = adapted(sparse_model(), config), adapted(dense_model(), config)
    assert len(layers_of(sparse)) == 2
    assert not layers_of(dense)
    assert sparse.state_dict().keys() - dense.state_dict().keys() == {
        f"base_model.model.{layer}.base_layer.weight_{part}" for layer in ("up", "down") for part in ("arrays", "table")
    }
    torch.testing.assert_close(sparse(X), dense(X), rtol=1e-4, atol=1e-5)
    before = [raw(layer.base_layer.weight_arrays) for layer in layers_of(sparse)]
    ours, theirs = steps(sparse), steps(dense)
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert all(after < before for before, after in itertools.pairwise(ours))
    assert [raw(layer.base_layer.weight_arrays) for layer in layers_of(sparse)] == before
    trained = [name for name, parameter in sparse.named_parameters() if parameter.requires_grad]
    assert trained == [name for name, parameter in dense.named_parameters() if parameter.requires_grad]
    state, expected = (peft.get_peft_model_state_dict(model) for model in (sparse, dense))
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)


@config
def test_saved_adapters_are_loaded_on_either_model(config, tmp_path):
    first = adapted(sparse_model(), config).eval()
    first.save_pretrained(tmp_path / "adapter")
    for base in (sparse_model(), dense_model()):
        loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        torch.testing.assert_close(loaded(X), first(X), rtol=1e-4, atol=1e-5)
    peft_state = peft.get_peft_model_state_dict
    assert all(torch.equal(peft_state(loaded)[name], tensor) for name, tensor in peft_state(first).items())


@config
def test_merged_into_dense_layers_they_compute_the_same(config):
    model = adapted(sparse_model(), config).eval()
    expected = model(X)
    merged = merge_and_unload(model, keep_zeros=False, safe_merge=True)
    assert [type(layer) for layer in _two(merged)] == [torch.nn.Linear, Conv1D]
    torch.testing.assert_close(merged(X), expected, rtol=1e-4, atol=1e-5)
    reference = adapted(dense_model(), config).eval().merge_and_unload()
    for ours, theirs in zip(_two(merged), _two(reference), strict=True):
        torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.bias, theirs.bias)


@config
def test_merged_with_the_zeros_kept_they_are_the_masked_sum(config):
    zeros = zeros_of(dense_model())
    reference = adapted(dense_model(), config).eval().merge_and_unload()
    merged = merge_and_unload(adapted(sparse_model(), config).eval(), keep_zeros=True)
    with torch.no_grad():
        for ours, theirs, mask in zip(_two(merged), _two(reference), zeros, strict=True):
            assert isinstance(ours, SparseLinear)
            theirs.weight.masked_fill_(mask, 0)
            assert torch.equal(ours.weight.to_dense() == 0, mask)
            torch.testing.assert_close(ours.weight.to_dense(), theirs.weight, rtol=1e-4, atol=1e-5)
    assert not layers_of(merged)
    torch.testing.assert_close(merged(X), reference(X), rtol=1e-4, atol=1e-5)


@config
@pytest.mark.parametrize("keep_zeros", [True, False])
def test_unmerged_they_have_the_same_bits_as_before(config, keep_zeros):
    model = adapted(sparse_model(), config).eval()
    expected, state = model(X), {name: raw(tensor) for name, tensor in model.state_dict().items()}
    with merging(keep_zeros=keep_zeros):
        model.merge_adapter()
    assert all(layer.merged for layer in layers_of(model))
    merged = model(X)
    assert not torch.equal(merged, expected)
    again = copy.deepcopy(model)
    assert torch.equal(again(X), merged)
    for made in (model, again):
        made.unmerge_adapter()
        assert {name: raw(tensor) for name, tensor in made.state_dict().items()} == state
        assert torch.equal(made(X), expected)
    with pytest.warns(UserWarning, match="Already unmerged"):
        model.unmerge_adapter()


def test_merging_is_refused_before_anything_is_merged_unless_somebody_decides():
    model = sparse_model()
    config = peft.LoraConfig(r=4, target_modules="all-linear")
    model = adapted(torch.nn.Sequential(torch.nn.Linear(48, 48), model), config).eval()
    expected = model(X)
    for merge in (model.merge_and_unload, model.merge_adapter, layers_of(model)[0].merge):
        with pytest.raises(RuntimeError, match=r"'up' is pruned and compressed.*keep_zeros=True.*keep_zeros=False"):
            merge()
    assert torch.equal(model(X), expected)
    assert len(layers_of(model)) == 2
    layers_of(model)[0].merge(keep_zeros=True)
    assert isinstance(layers_of(model)[0].base_layer, SparseLinear)
    with model.disable_adapter():
        torch.testing.assert_close(model(X), model.base_model.model(X))
    assert not layers_of(model)[0].merged
    unloaded = model.unload()
    assert isinstance(unloaded[1].up, SparseLinear)


def test_two_adapters_are_merged_one_after_the_other():
    for options in ({}, {"use_dora": True}):
        models = [adapted(make(), lora(**options)).eval() for make in (sparse_model, dense_model)]
        for model in models:
            model.add_adapter("other", lora())
            fill(model, 5)
            model.base_model.set_adapter(["default", "other"])
        with merging(keep_zeros=False):
            for model in models:
                model.merge_adapter(["default"])
                model.merge_adapter(["other"])
        torch.testing.assert_close(models[0](X), models[1](X), rtol=1e-4, atol=1e-4)
        models[0].unmerge_adapter()
        assert all(isinstance(layer.base_layer, SparseLinear) for layer in layers_of(models[0]))


def test_all_linear_finds_what_it_finds_in_the_dense_model():
    found = []
    for model in (sparse_model(), dense_model()):
        adapted_model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear"))
        adapted_model.add_adapter("second", peft.LoraConfig(r=2, target_modules="all-linear"))
        found.append([sorted(config.target_modules) for config in adapted_model.peft_config.values()])
        assert isinstance(adapted_model.base_model.model.up.base_layer, (SparseLinear, torch.nn.Linear))
    assert found[0] == found[1] == [["down", "head", "up"]] * 2


def test_all_linear_leaves_experts_and_convolutions_alone():
    found = []
    for compressed in (False, True):
        model = experts_model("mixtral")
        model.stem = torch.nn.Conv2d(8, 16, 3)
        with torch.no_grad():
            model.stem.weight.view(-1)[:900] = 0
        if compressed:
            result = sparsify(model, min_size=0)
            assert {"stem", "model.layers.0.mlp.experts.down_proj"} <= set(result.sparse)
        config = peft.LoraConfig(r=2, target_modules="all-linear")
        adapted_model = peft.get_peft_model(model, config)
        names = [name for name, _ in adapted_model.named_modules() if name.endswith(".lora_A.default")]
        # those that PEFT puts on Parameters of dense experts aside
        found.append(sorted(name for name in names if "experts" not in name))
        assert not compressed or len(found[1]) == len(names)
        with torch.no_grad():
            assert adapted_model(input_ids=TOKENS).logits.isfinite().all()
    assert found[0] == found[1] != []


@pytest.mark.parametrize("options", [{}, {"activations": "int8"}], ids=["int8", "activations"])
def test_weights_of_eight_bits_are_a_base_like_others(options):
    model = adapted(sparse_model(values="int8", **options), lora()).eval()
    layer = model.base_model.model.up
    assert isinstance(layer, SparseLoraLinear)
    assert layer.base_layer.weight.tensor.dtype == "int8"
    before = model(X)
    losses = steps(model)
    assert all(after < before for before, after in itertools.pairwise(losses))
    expected = model.eval()(X)
    assert not torch.equal(before, expected)
    with pytest.raises(RuntimeError, match=r"int8 times scales.*keep_zeros=False"):
        merge_and_unload(model, keep_zeros=True)
    assert torch.equal(model(X), expected)
    merged = merge_and_unload(model, keep_zeros=False)
    torch.testing.assert_close(merged(X), expected, rtol=0.1 if options else 1e-4, atol=0.1 if options else 1e-5)


def test_dora_takes_the_lengths_of_float_rows_where_activations_have_eight_bits():
    model = adapted(sparse_model(values="int8", activations="int8"), lora(use_dora=True, init_lora_weights=False))
    for layer in layers_of(model):
        weight = layer.base_layer.weight.to_dense() + layer.get_delta_weight("default")
        made = layer.lora_magnitude_vector["default"]
        weights = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        lengths = torch.linalg.norm(weight, dim=0 if layer.base_layer.transposed else 1)
        torch.testing.assert_close(made.norm(layer.base_layer, *weights, layer.scaling["default"]), lengths)


def test_the_output_projection_of_attention_is_a_base_and_attention_is_none():
    model = torch.nn.ModuleDict({"attention": torch.nn.MultiheadAttention(32, 4)})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= torch.rand_like(parameter) < 0.2
    sparsify(model, min_size=0)
    with pytest.raises(ValueError, match="Only same embed"):
        peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(target_modules=["attention"]))
    attention = peft.get_peft_model(model, peft.LoraConfig(target_modules=["out_proj"])).base_model.model["attention"]
    assert isinstance(attention.out_proj, SparseLoraLinear)
    x = torch.ones(3, 2, 32)
    attention(x, x, x)[0].square().sum().backward()
    assert attention.out_proj.lora_B["default"].weight.grad.count_nonzero()


def test_layers_that_were_trained_are_a_base_like_others():
    model = sparse_model()
    make_trainable(model)
    model = adapted(model, lora()).eval()
    assert [name for name, p in model.named_parameters() if p.requires_grad and "values" in name] == []
    expected = model(X)
    losses = steps(model)
    assert losses[-1] < losses[0]
    model = adapted(sparse_model(), lora()).eval()
    torch.testing.assert_close(model(X), expected)
    make_trainable(model)
    zeros = model.base_model.model.up.base_layer.weight == 0
    merged = merge_and_unload(model, keep_zeros=True)
    assert type(merged.up) is SparseLinear
    assert torch.equal(merged.up.weight == 0, zeros)


def test_weights_of_sixteen_bits_have_adapters_in_float32():
    model = adapted(sparse_model(torch.bfloat16), lora())
    assert model.base_model.model.up.lora_A["default"].weight.dtype == torch.float32
    expected = model.eval()(X.bfloat16())
    assert expected.dtype == torch.bfloat16
    merged = merge_and_unload(model, keep_zeros=True)
    assert merged.up.weight.dtype == torch.bfloat16
    computing = adapted(sparse_model(torch.bfloat16, compute_dtype="float32"), lora())
    assert computing.base_model.model.up.lora_A["default"].weight.dtype == torch.float32
    merged = merge_and_unload(computing, keep_zeros=True)
    assert merged.up.weight.dtype == torch.float32
    assert merged.up.weight.tensor.dtype == "bfloat16"


@pytest.mark.parametrize("init", ["pissa", "olora", "loftq", "corda", "mica"])
def test_ways_to_begin_that_need_another_base_weight_are_refused(init):
    config = lora()
    config.init_lora_weights = init
    with pytest.raises(ValueError, match=rf"init_lora_weights='{init}' .*make_dense"):
        peft.get_peft_model(sparse_model(), config)


def test_other_variants_and_methods_are_refused():
    with pytest.raises(ValueError, match="on a SparseLinear, there are LoRA and DoRA"):
        peft.get_peft_model(sparse_model(), lora(use_dora=True, alora_invocation_tokens=[1, 2]))
    for other in (peft.LoHaConfig, peft.BOFTConfig):
        with pytest.raises((ValueError, TypeError), match=r"SparseLinear.* (is )?not supported"):
            peft.get_peft_model(sparse_model(), other(target_modules=["up"]))


def test_transformers_adds_adapters_itself():
    from transformers.integrations.peft import MIN_PEFT_VERSION
    from transformers_models import CONFIGS, prune

    model = transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"])
    sparsify(prune(model), min_size=0)
    chosen = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    if Version(peft.__version__) < Version(MIN_PEFT_VERSION):
        # this version of transformers refuses this version of PEFT; below it, this is what it calls
        peft.inject_adapter_in_model(chosen, model, "default")
    else:
        model.add_adapter(chosen)
    assert len(layers_of(model)) == 4
    assert {name.partition("lora")[1] for name, p in model.named_parameters() if p.requires_grad} == {"lora"}


def test_a_module_that_a_user_registers_comes_first():
    class Own(SparseLoraLinear):
        pass

    chosen = lora()
    chosen._register_custom_module({SparseLinear: Own})
    assert type(peft.get_peft_model(sparse_model(), chosen).base_model.model.up) is Own


def test_safe_merge_refuses_what_is_not_finite():
    model = adapted(sparse_model(), lora())
    with torch.no_grad():
        layers_of(model)[1].lora_B["default"].weight[0, 0] = float("nan")
    with merging(keep_zeros=True), pytest.raises(ValueError, match="NaNs detected"):
        layers_of(model)[1].merge(safe_merge=True)
    assert not layers_of(model)[1].merged


def test_a_layer_that_has_become_dense_is_merged_as_peft_does_it():
    for chosen in (lora(), lora(use_dora=True), ia3()):
        model = adapted(sparse_model(), chosen).eval()
        expected = model(X)
        make_dense(model)
        torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-5)
        if getattr(chosen, "use_dora", False):
            continue
        model.merge_adapter()
        torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-5)
        model.unmerge_adapter()
        torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.merge_and_unload()(X), expected, rtol=1e-4, atol=1e-5)


def test_adapters_work_with_mixed_batches_dropout_and_checkpointing():
    model = adapted(sparse_model(), lora()).eval()
    model.add_adapter("other", lora())
    fill(model, 9)
    names = ["default", "other", "__base__"] * 2
    mixed = model.base_model.model.up(X, adapter_names=names)
    for number, name in enumerate(names):
        if name == "__base__":
            expected = model.base_model.model.up.base_layer(X)
        else:
            model.set_adapter(name)
            expected = model.base_model.model.up(X)
        torch.testing.assert_close(mixed[number], expected[number], rtol=1e-4, atol=1e-5)
    for options in ({}, {"use_dora": True}):
        dropping = adapted(sparse_model(), lora(lora_dropout=0.5, **options)).train()
        x = X.clone().requires_grad_()
        torch.manual_seed(0)
        plain = dropping(x).sum()
        plain.backward()
        gradient, x.grad = x.grad, None
        torch.manual_seed(0)
        again = torch.utils.checkpoint.checkpoint(dropping, x, use_reentrant=False).sum()
        again.backward()
        assert torch.equal(again, plain)
        assert torch.equal(x.grad, gradient)


USES_IT = """
import peft, sys, torch, torch.nn.utils.prune, sparsefmt.torch
assert not any(type(finder).__module__.startswith("sparsefmt") for finder in sys.meta_path)
assert "exec_module" not in vars(peft.__spec__.loader)
model = torch.nn.Sequential(torch.nn.Linear(64, 64))
torch.nn.utils.prune.l1_unstructured(model[0], "weight", amount=0.8)
sparsefmt.torch.sparsify(model, min_size=0)
print(type(peft.get_peft_model(model, peft.LoraConfig(target_modules=["0"])).base_model.model[0]).__name__)
"""

LIGHT = """
import sys, importlib.util, sparsefmt.torch
assert importlib.util.find_spec("peft") is not None
print(sorted({"peft", "transformers", "accelerate"} & sys.modules.keys()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("order", first_always([LIGHT, "import peft", "import sparsefmt.peft"]))
def test_peft_knows_the_layers_in_whatever_order_things_are_imported(order):
    done = subprocess.run([sys.executable, "-c", f"{order}\n{USES_IT}"], capture_output=True, text=True)
    assert done.stdout == f"{'[]' + chr(10) if order == LIGHT else ''}SparseLoraLinear\n", done.stderr


def test_a_version_of_peft_that_cannot_be_served_is_named(monkeypatch):
    from sparsefmt.peft import patches
    from sparsefmt.torch import _register_with_peft

    monkeypatch.setattr(patches.tuners_utils, "_maybe_include_all_linear_layers", lambda config, net: config)
    monkeypatch.delitem(sys.modules, "sparsefmt.peft")
    with pytest.warns(UserWarning, match="PEFT will not know SparseLinear layers: .*sparsefmt.peft needs PEFT 0.21"):
        _register_with_peft()
    assert sparsefmt.torch
