"""The quantization_config of compressed-tensors: which layer is quantized how, and what is refused."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from quantized_checkpoints import BY_TOKEN, FP8, KINDS, STATIC

from sparsefmt import FormatError, SparsefmtError, UnsupportedError
from sparsefmt.checkpoints.compressed_tensors import Scheme, folded, parse

INT8 = KINDS["int8"]


def group(targets: list[str], **weights: Any) -> dict[str, Any]:
    return {"targets": targets, "weights": INT8.arguments | weights}


def refused(config: dict[str, Any], match: str, kind: type[SparsefmtError] = UnsupportedError) -> None:
    with pytest.raises(kind, match=match) as caught:
        parse(config, "there/config.json")
    assert "there/config.json" in str(caught.value)
    assert caught.value.code == ("model-quantized" if kind is UnsupportedError else "quantization-config")


@pytest.mark.parametrize(
    ("kind", "scheme"),
    [
        ("int8", Scheme("group_0", "I8", 8, False, "channel", None, "int8")),
        ("int8-static", Scheme("group_0", "I8", 8, False, "tensor", None, "int8-static")),
        ("int8-groups", Scheme("group_0", "I8", 8, False, "group", 32, None)),
        ("fp8", Scheme("group_0", "F8_E4M3", 8, False, "channel", None, "fp8")),
        ("fp8-static", Scheme("group_0", "F8_E4M3", 8, False, "tensor", None, "fp8")),
        ("packed", Scheme("group_0", "I8", 4, True, "group", 32, None)),
    ],
)
def test_kinds(kind: str, scheme: Scheme) -> None:
    quantization = parse(KINDS[kind].config(), "config.json")
    assert quantization.scheme_of("model.layers.0.mlp.up_proj") == scheme
    assert quantization.scheme_of("lm_head") is None
    assert quantization.sparsity == "dense"


def test_names_count_more_than_patterns_and_patterns_more_than_classes() -> None:
    groups = {
        "class": group(["Linear"]),
        "pattern": group(["re:.*down_proj$", "re:model[.]layers[.]3"], num_bits=6),
        "name": group(["model.layers.3.mlp.down_proj"], num_bits=5),
    }
    config = INT8.config(config_groups=groups, ignore=["lm_head", "re:.*[.]gate", "model.layers.7.mlp.up_proj"])
    schemes = parse(config, "config.json").scheme_of
    expected = {
        "model.layers.3.mlp.down_proj": "name",
        "model.layers.2.mlp.down_proj": "pattern",
        "model.layers.2.mlp.down_proj.more": "class",
        "model.layers.3.mlp.up_proj": "pattern",
        # a pattern is for the beginning of a name
        "x.model.layers.3.mlp.up_proj": "class",
        "lm_head": None,
        "x.lm_head": "class",
        "model.layers.3.gate.more": None,
        "model.layers.7.mlp.up_proj": None,
    }
    assert {layer: getattr(schemes(layer), "group", None) for layer in expected} == expected


def test_layers_that_no_group_is_for() -> None:
    quantization = parse(INT8.config(config_groups={"g": group(["re:.*mlp.*", "Embedding"])}), "config.json")
    assert quantization.scheme_of("model.layers.0.self_attn.q_proj") is None
    assert parse(INT8.config(ignore=["Linear"]), "config.json").scheme_of("a") is None
    assert parse(INT8.config(ignore=None), "config.json").scheme_of("lm_head") is not None


def test_a_format_for_each_group() -> None:
    groups = {
        "a": group(["re:.*attn.*"]) | {"format": "naive-quantized"},
        "b": group(["Linear"], num_bits=4, strategy="group", group_size=128) | {"format": "pack-quantized"},
        "c": group(["lm_head"], **FP8) | {"format": "float-quantized"},
    }
    schemes = parse(INT8.config(config_groups=groups, format="mixed-precision", ignore=[]), "config.json").scheme_of
    found = [schemes(layer) for layer in ("x.attn", "x.mlp", "lm_head")]
    assert [(scheme.dtype, scheme.num_bits, scheme.packed) for scheme in found if scheme is not None] == [
        ("I8", 8, False),
        ("I8", 4, True),
        ("F8_E4M3", 8, False),
    ]


def test_the_strategy_follows_from_the_size_of_groups() -> None:
    for size, expected in ((None, ("tensor", None)), (-1, ("channel", None)), (128, ("group", 128))):
        groups = {"g": group(["Linear"], strategy=None, group_size=size)}
        scheme = parse(INT8.config(config_groups=groups), "config.json").scheme_of("a")
        assert scheme is not None
        assert (scheme.strategy, scheme.group_size) == expected


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        ({"symmetric": False}, "the weights of 'group_0' are not symmetric"),
        ({"actorder": "group"}, "actorder 'group'"),
        ({"actorder": True}, "actorder True"),
        ({"strategy": "block", "block_structure": [128, 128]}, "scales for blocks"),
        ({"strategy": "tensor_group", "group_size": 16}, "strategy 'tensor_group'"),
        ({"strategy": "token"}, "strategy 'token'"),
        ({"dynamic": True}, "dynamic"),
        ({"num_bits": 16}, "16 bits in the format 'int-quantized'"),
        ({"num_bits": True}, "True bits"),
        ({"num_bits": "8"}, "'8' bits"),
        ({"type": "float"}, "type 'float' in the format 'int-quantized'"),
        ({"type": "complex"}, "type 'complex'"),
        ({"rotation": "hadamard"}, "have 'rotation'"),
    ],
)
def test_weights_that_are_refused(weights: dict[str, Any], match: str) -> None:
    refused(INT8.config(config_groups={"group_0": group(["Linear"], **weights)}), match)


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        (BY_TOKEN | {"symmetric": False}, "the activations of 'group_0' are not symmetric"),
        (BY_TOKEN | {"num_bits": 4}, "4 bits"),
        (BY_TOKEN | FP8, "type 'float' and 8 bits, and the weights of type 'int'"),
        (BY_TOKEN | {"strategy": "tensor"}, "strategy 'tensor' and dynamic True"),
        (BY_TOKEN | {"dynamic": "local"}, "dynamic 'local'"),
        (STATIC | {"strategy": "token"}, "strategy 'token' and dynamic False"),
        (STATIC | {"strategy": "group", "group_size": 32}, "strategy 'group'"),
    ],
)
def test_activations_that_are_refused(inputs: dict[str, Any], match: str) -> None:
    refused(INT8.config(config_groups={"group_0": group(["Linear"]) | {"input_activations": inputs}}), match)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"format": "marlin-24"}, "format 'marlin-24'"),
        ({"format": "nvfp4-pack-quantized"}, "nvfp4"),
        ({"format": "dense"}, "format 'dense'"),
        ({"format": "mixed-precision"}, "mixed-precision"),
        ({"kv_cache_scheme": {"num_bits": 8}}, "it has 'kv_cache_scheme'"),
        ({"transform_config": {"config_groups": {}}}, "it has 'transform_config'"),
        ({"sparsity_config": {"format": "sparse-24-bytemask"}}, "sparse-24-bytemask"),
        ({"config_groups": {"g": group(["Linear"]) | {"output_activations": STATIC}}}, "'output_activations'"),
        ({"config_groups": {"g": {"targets": ["Linear"], "input_activations": STATIC}}}, "no weights"),
        ({"ignore": ["re:(a+)+b"]}, "may take forever"),
        ({"ignore": ["re:" + "a" * 1000]}, "may take forever"),
    ],
)
def test_models_that_are_refused(changes: dict[str, Any], match: str) -> None:
    refused(INT8.config(**changes), match)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"config_groups": [1]}, "config_groups is"),
        ({"config_groups": {"W8A8": ["Linear"]}}, "W8A8 is"),
        ({"config_groups": {"g": {"weights": {"num_bits": 8}}}}, "the targets of 'g' is None"),
        ({"config_groups": {"g": {"targets": "Linear", "weights": {}}}}, "not a list of texts"),
        ({"config_groups": {"g": group(["Linear"], group_size="8")}}, "group_size '8'"),
        ({"config_groups": {"g": group(["Linear"], strategy="group")}}, "group_size None"),
        ({"config_groups": {"g": group(["Linear"], strategy="group", group_size=0)}}, "group_size 0"),
        ({"config_groups": {"g": {"targets": ["Linear"], "weights": 8}}}, "the weights of 'g' is 8"),
        ({"ignore": "lm_head"}, "ignore is"),
        ({"ignore": [1]}, "ignore is"),
        ({"ignore": ["re:["]}, "not a regular expression"),
        ({"sparsity_config": "dense"}, "sparsity_config is"),
    ],
)
def test_what_is_no_config(changes: dict[str, Any], match: str) -> None:
    refused(INT8.config(**changes), re.escape(match) if "(" not in match else match, FormatError)


def test_what_says_how_the_model_was_made_is_not_looked_at() -> None:
    parse(INT8.config(provider="somebody", iterations=200, is_good=True, transform_config={}), "config.json")


def test_the_config_of_folded_tensors_is_one_too() -> None:
    config = KINDS["packed"].config(sparsity_config={"format": "sparse-bitmask", "global_sparsity": 0.5})
    config["config_groups"]["group_0"]["format"] = "pack-quantized"
    before = copy.deepcopy(config)
    made = folded(config)
    assert config == before
    scheme = parse(made, "config.json").scheme_of("a")
    assert scheme == Scheme("group_0", "I8", 4, False, "group", 32, None)
    assert made["sparsity_config"] == {"format": "dense", "global_sparsity": 0.5}
    assert list(made) == list(config)
