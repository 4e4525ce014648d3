"""from_pretrained of checkpoints that compressed-tensors has quantized: layers with scales, as the config says."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import first_always, succeed
from quantized_checkpoints import INPUT_SCALE, KINDS, Kind, save_file, save_folder, two_of_four
from tensor_groups import dense as elements_of
from tensor_groups import spelled
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers_models import output

from sparsefmt import FormatError, UnsupportedError
from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.conversion import convert_checkpoint
from sparsefmt.save_options import SaveOptions
from sparsefmt.torch import SparseLinear, load_into, save_model
from sparsefmt.transformers import SparsefmtConfig

LLAMA = LlamaConfig(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    pad_token_id=0,
    dtype=torch.float32,
)


@pytest.fixture(scope="session")
def dense() -> Any:
    """A Llama whose layers have two of four weights, all but the last one."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LLAMA).eval()
    for number, module in enumerate(layers_of(model).values()):
        rows, cols = module.weight.shape
        module.weight.data = torch.from_numpy(two_of_four(rows, cols, number)) * 0.05
    return model


def layers_of(model: torch.nn.Module, kind: type = torch.nn.Linear) -> dict[str, Any]:
    """The layers that are quantized."""
    return {name: module for name, module in model.named_modules() if isinstance(module, kind) and name != "lm_head"}


def save(dense: Any, kind: Kind, folder: Path, shards: int = 1, **config: Any) -> Path:
    """A folder of the model as compressed-tensors has it."""
    tensors = {name: tensor.numpy() for name, tensor in dense.state_dict().items()}
    for layer in layers_of(dense):
        tensors |= kind.tensors(layer, tensors.pop(f"{layer}.weight"))
    save_folder(folder, tensors, {}, shards)
    content = json.loads(LLAMA.to_json_string()) | {"quantization_config": kind.config(**config)}
    (folder / "config.json").write_text(json.dumps(content | {"architectures": ["LlamaForCausalLM"]}, indent=2))
    return folder


def convert(source: Path, target: Path, fold: bool) -> Path:
    with Checkpoint(source, ["safetensors"]) as checkpoint:
        if fold:
            checkpoint.fold()
        convert_checkpoint(checkpoint, target, SaveOptions())
    return target


def load(folder: Path, **settings: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=SparsefmtConfig(**settings)).eval()


def expected_model(dense: Any, kind: Kind) -> Any:
    """The dense model with the weights that elements and scales stand for."""
    model = copy.deepcopy(dense)
    for module in layers_of(model).values():
        weight = module.weight.data.numpy()
        module.weight.data = torch.from_numpy(kind.dequantized(weight).astype(np.float32))
    return model


def in_eight_bits(kind: Kind) -> bool:
    return kind.format == "int-quantized" and kind.inputs is not None


def round_inputs(model: Any, kind: Kind) -> None:
    """Let the dense layers round their inputs to eight bits, naively."""

    def rounded(module: Any, inputs: tuple[torch.Tensor]) -> torch.Tensor:
        [x] = inputs
        scale = x.abs().amax(dim=-1, keepdim=True) / 127
        if kind.inputs is not None and not kind.inputs["dynamic"]:
            scale = torch.full_like(scale, float(INPUT_SCALE[0]))
        return torch.clamp(torch.round(x / scale), -127, 127) * scale

    for module in layers_of(model).values():
        module.register_forward_pre_hook(rounded)


def close(found: torch.Tensor, expected: torch.Tensor, part: float) -> bool:
    """Whether two tensors differ by no more than a part of the largest element."""
    return float((found - expected).abs().max()) <= part * float(expected.abs().max())


@pytest.fixture(params=list(KINDS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


class TestLoading:
    @pytest.mark.parametrize("shards", first_always([3, 1]))
    def test_logits_are_those_of_the_dense_model(self, dense: Any, name: str, shards: int, tmp_path: Path) -> None:
        """From safetensors, and from .sparsefmt, folded and not."""
        kind = KINDS[name]
        source = save(dense, kind, tmp_path / "source", shards)
        folders = [source, convert(source, tmp_path / "folded", fold=True)]
        if kind.sparsity == "dense":
            folders.append(convert(source, tmp_path / "as-it-was", fold=False))
        exact = expected_model(dense, kind)
        if in_eight_bits(kind):
            round_inputs(exact, kind)
        expected = output(exact)
        found = []
        for folder in folders:
            model = load(folder)
            check_layers(model, dense, kind)
            found.append(output(model))
            # a rounding to eight bits may go the other way, and then makes a difference
            assert close(found[-1], expected, 0.02 if in_eight_bits(kind) else 1e-5)
        assert all(torch.equal(logits, found[0]) for logits in found)

    def test_a_converted_folder_needs_no_argument(self, dense: Any, tmp_path: Path) -> None:
        for name in ("int8", "packed"):
            source = save(dense, KINDS[name], tmp_path / name)
            folder = convert(source, tmp_path / f"{name}-sparse", fold=name == "packed")
            model = AutoModelForCausalLM.from_pretrained(folder).eval()
            check_layers(model, dense, KINDS[name])
            assert torch.equal(output(model), output(load(source)))

    def test_in_bfloat16(self, dense: Any, name: str, tmp_path: Path) -> None:
        """Elements and scales are what they are in any dtype."""
        kind = KINDS[name]
        source = save(dense, kind, tmp_path / "source")
        config = SparsefmtConfig()
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16, quantization_config=config).eval()
        check_layers(model, dense, kind)
        for layer, module in layers_of(model, SparseLinear).items():
            exact = torch.from_numpy(kind.dequantized(dense.get_submodule(layer).weight.detach().numpy()))
            assert module.weight.dtype == torch.bfloat16
            assert close(module.weight.to_dense().double(), exact, 2**-8)
        logits = output(model)
        assert logits.dtype == torch.bfloat16
        reference = expected_model(dense, kind).to(torch.bfloat16)
        if in_eight_bits(kind):
            round_inputs(reference, kind)
        assert close(logits.float(), output(reference).float(), 0.1)

    def test_layers_that_are_not_quantized(self, dense: Any, tmp_path: Path) -> None:
        """Those that `ignore` names, and those that the caller leaves out."""
        kind = KINDS["int8-groups"]
        model = load(save(dense, kind, tmp_path / "a"), exclude="*.down_proj")
        assert type(model.lm_head) is torch.nn.Linear
        for layer, module in layers_of(dense).items():
            found = model.get_submodule(layer)
            if layer.endswith("down_proj"):
                assert type(found) is torch.nn.Linear
                exact = torch.from_numpy(kind.dequantized(module.weight.detach().numpy()).astype(np.float32))
                assert torch.equal(found.weight, exact)
                assert model.hf_quantizer.result.dense[layer] == "it is excluded"
            else:
                assert isinstance(found, SparseLinear)

    def test_dense_weights_stay_of_one_byte(self, dense: Any, tmp_path: Path) -> None:
        full = copy.deepcopy(dense)
        for module in layers_of(full).values():
            module.weight.data += 0.1
        model = load(save(full, KINDS["int8"], tmp_path / "full"))
        for module in layers_of(model, SparseLinear).values():
            assert module.weight.tensor.layout == "dense"
            assert module.weight.tensor.nbytes == module.in_features * module.out_features
        assert len(layers_of(model, SparseLinear)) == len(layers_of(dense))

    def test_layouts(self, dense: Any, tmp_path: Path) -> None:
        source = save(dense, KINDS["fp8"], tmp_path / "a")
        outputs = []
        for layout in ("auto", "bitmask", "permuted"):
            model = load(source, layout=layout)
            outputs.append(output(model))
            found = {module.weight.tensor.layout for module in layers_of(model, SparseLinear).values()}
            assert layout == "auto" or found == {layout}
        assert all(torch.equal(logits, outputs[0]) for logits in outputs)

    def test_pruned_and_not_quantized_bitmasks(self, dense: Any, tmp_path: Path) -> None:
        """Without config groups, a bitmask is all that there is to read."""
        kind = KINDS["fp8-two-of-four"]
        source = save(dense, kind, tmp_path / "source", config_groups={})
        tensors = {name: tensor.numpy() for name, tensor in dense.state_dict().items()}
        for layer in layers_of(dense):
            tensors |= spelled(tensors.pop(f"{layer}.weight"), layer)
        save_file(source / "model.safetensors", tensors)
        model = load(source, min_size=0)
        assert torch.equal(output(model), output(load_dense(dense, tmp_path)))
        assert layers_of(model, SparseLinear)

    def test_compute_dtype(self, dense: Any, tmp_path: Path) -> None:
        source = save(dense, KINDS["int8-groups"], tmp_path / "a")
        config = SparsefmtConfig(compute_dtype="float32")
        for dtype in (torch.bfloat16, torch.float32):
            model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, quantization_config=config).eval()
            assert output(model).dtype == torch.float32

    def test_dequantize(self, dense: Any, tmp_path: Path) -> None:
        kind = KINDS["int8"]
        model = load(save(dense, kind, tmp_path / "a")).dequantize()
        assert not layers_of(model, SparseLinear)
        assert close(output(model), output(expected_model(dense, kind)), 1e-6)


def load_dense(dense: Any, tmp_path: Path) -> Any:
    dense.save_pretrained(tmp_path / "dense")
    return load(tmp_path / "dense", min_size=0)


def check_layers(model: Any, dense: Any, kind: Kind) -> None:
    """Every layer has the elements of the file, its scales, and what the config says of activations."""
    assert type(model.lm_head) is torch.nn.Linear
    found = layers_of(model, SparseLinear)
    assert found.keys() == layers_of(dense).keys()
    for layer, module in found.items():
        elements, scales = kind.quantized(dense.get_submodule(layer).weight.detach().numpy())
        assert np.array_equal(module.weight.tensor.todense().view(np.uint8), elements.view(np.uint8))
        held = np.broadcast_to(scales.astype(np.float32), module.weight_scale.shape)
        assert module.weight_scale.dtype == torch.float32
        assert np.array_equal(module.weight_scale.numpy(), held)
        assert module.activations == ("int8" if in_eight_bits(kind) else None)
        is_static = in_eight_bits(kind) and kind.inputs is not None and not kind.inputs["dynamic"]
        assert (module.input_scale is None) != is_static
        if is_static:
            assert float(module.input_scale) == float(INPUT_SCALE[0])


class TestSaving:
    @pytest.mark.parametrize("name", ["int8", "int8-static", "fp8-static", "packed", "fp8-two-of-four"])
    def test_there_and_back(self, dense: Any, name: str, tmp_path: Path) -> None:
        kind = KINDS[name]
        model = load(save(dense, kind, tmp_path / "source"))
        model.save_pretrained(tmp_path / "saved")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
        check_layers(again, dense, kind)
        assert torch.equal(output(again), output(model))

    def test_what_is_saved_is_a_checkpoint_of_compressed_tensors_once_exported(
        self, dense: Any, tmp_path: Path
    ) -> None:
        for name in ("int8-static", "packed"):
            model = load(save(dense, KINDS[name], tmp_path / name))
            model.save_pretrained(tmp_path / f"{name}-saved")
            succeed("export", tmp_path / f"{name}-saved", tmp_path / f"{name}-back")
            assert torch.equal(output(load(tmp_path / f"{name}-back")), output(model))


class TestRefused:
    def test_what_does_not_fit(self, dense: Any, tmp_path: Path) -> None:
        kind = KINDS["int8"]
        source = save(dense, kind, tmp_path / "a", ignore=[])
        # lm_head is a float matrix without scales: it is what it is
        assert type(load(source).lm_head) is torch.nn.Linear
        source = save(dense, kind, tmp_path / "b", ignore=["lm_head", "re:.*q_proj"])
        with pytest.raises(FormatError, match="no group of the config is for it"):
            load(source)
        source = save(dense, kind, tmp_path / "c", format="marlin-24")
        with pytest.raises(UnsupportedError, match="marlin-24"):
            load(source)

    def test_both_tensors_are_named(self, dense: Any, tmp_path: Path) -> None:
        source = save(dense, KINDS["int8"], tmp_path / "a")
        layer = "model.layers.1.mlp.up_proj"
        with Checkpoint(source, ["safetensors"]) as checkpoint:
            tensors = {name: elements_of(checkpoint.files[0], name).copy() for name in checkpoint.names}
        tensors[f"{layer}.weight_scale"][3] = -1
        save_file(source / "model.safetensors", tensors)
        with pytest.raises(FormatError, match=rf"'{layer}\.weight': .*'{layer}\.weight_scale'"):
            load(source)
        del tensors[f"{layer}.weight_scale"]
        save_file(source / "model.safetensors", tensors)
        with pytest.raises(
            FormatError, match=rf"'{layer}\.weight': its scales, '{layer}\.weight_scale', are not there"
        ):
            load(source)

    def test_files_of_torch(self, dense: Any, tmp_path: Path) -> None:
        source = save(dense, KINDS["int8"], tmp_path / "a")
        (source / "model.safetensors").unlink()
        torch.save(dense.state_dict(), source / "pytorch_model.bin")
        with pytest.raises(ValueError, match="are read from safetensors"):
            load(source)


def test_the_config_that_a_caller_gives_is_not_changed(dense: Any, tmp_path: Path) -> None:
    config = SparsefmtConfig(layout="bitmask")
    for name in ("int8", "packed"):
        source = save(dense, KINDS[name], tmp_path / name)
        model = AutoModelForCausalLM.from_pretrained(source, quantization_config=config)
        assert model.config.quantization_config.layout == "bitmask"
    assert config.compressed_tensors is None
    assert SparsefmtConfig.from_dict(model.config.quantization_config.to_dict()).quantization is not None


class TestLoadInto:
    """`load_into` of a model that is there, or on device "meta"."""

    @pytest.mark.parametrize("shards", first_always([3, 1]))
    def test_the_same_layers(self, dense: Any, name: str, shards: int, tmp_path: Path) -> None:
        kind = KINDS[name]
        source = save(dense, kind, tmp_path / "source", shards)
        folders = [source, convert(source, tmp_path / "folded", fold=True)]
        if kind.sparsity == "dense":
            folders.append(convert(source, tmp_path / "as-it-was", fold=False))
        expected = output(load(source))
        for folder in folders:
            model = AutoModelForCausalLM.from_config(LLAMA).eval()
            result = load_into(model, folder)
            assert set(result.sparse) == set(layers_of(dense))
            check_layers(model, dense, kind)
            assert torch.equal(output(model), expected)

    def test_a_file_in_the_folder_and_its_index(self, dense: Any, tmp_path: Path) -> None:
        source = save(dense, KINDS["int8"], tmp_path / "one")
        shards = save(dense, KINDS["int8"], tmp_path / "three", 3)
        for path in (source / "model.safetensors", shards / "model.safetensors.index.json"):
            model = AutoModelForCausalLM.from_config(LLAMA).eval()
            load_into(model, path)
            check_layers(model, dense, KINDS["int8"])

    def test_excluded_layers_are_multiplied_out(self, dense: Any, tmp_path: Path) -> None:
        kind = KINDS["packed"]
        model = copy.deepcopy(dense)
        result = load_into(model, save(dense, kind, tmp_path / "a"), exclude="*.q_proj")
        layer = "model.layers.0.self_attn.q_proj"
        exact = kind.dequantized(dense.get_submodule(layer).weight.detach().numpy()).astype(np.float32)
        assert torch.equal(model.get_submodule(layer).weight.detach(), torch.from_numpy(exact))
        assert result.dense[layer] == "it is excluded"

    def test_what_is_refused(self, dense: Any, tmp_path: Path) -> None:
        source = save(dense, KINDS["int8"], tmp_path / "a", format="marlin-24")
        before = copy.deepcopy(dense)
        with pytest.raises(UnsupportedError, match="marlin-24"):
            load_into(before, source)
        source = save(dense, KINDS["int8"], tmp_path / "b", ignore=["lm_head", "re:.*v_proj"])
        with pytest.raises(FormatError, match=r"'model\.layers\.0\.self_attn\.v_proj\.weight_scale', are there"):
            load_into(before, source)
        # safetensors that are not quantized are to be converted
        dense.save_pretrained(tmp_path / "dense")
        with pytest.raises((FormatError, FileNotFoundError), match="sparsefmt"):
            load_into(before, tmp_path / "dense")
        assert torch.equal(output(before), output(dense))

    def test_a_config_of_something_else_beside_a_file(self, dense: Any, tmp_path: Path) -> None:
        save_model(dense, tmp_path / "model.sparsefmt")
        for text in ("{", "[]", '{"quantization_config": 3}', '{"quantization_config": {"quant_method": "gptq"}}'):
            (tmp_path / "config.json").write_text(text)
            load_into(copy.deepcopy(dense), tmp_path / "model.sparsefmt", strict=False)
