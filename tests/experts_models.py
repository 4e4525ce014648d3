"""Small models of every kind of experts that transformers has, pruned."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

_LLAMA = {
    **{"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1},
    "eos_token_id": 2,
}
_FOUR = {"num_local_experts": 4, "num_experts_per_tok": 2}
_QWEN = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "head_dim": 16}
_SHARED = {"shared_expert_intermediate_size": 48}
CONFIGS: dict[str, dict[str, Any]] = {
    "mixtral": _LLAMA | _FOUR,
    "phimoe": _LLAMA | _FOUR,
    "granitemoe": _LLAMA | _FOUR,
    "olmoe": _LLAMA | {"num_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": _LLAMA | _QWEN | _SHARED,
    "qwen3_moe": _LLAMA | _QWEN,
    "qwen3_next": _LLAMA
    | _QWEN
    | _SHARED
    | {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16}
    | {"layer_types": ["linear_attention", "full_attention"]},
    "deepseek_v3": _LLAMA
    | {"num_key_value_heads": 4, "moe_intermediate_size": 48, "n_routed_experts": 8, "num_experts_per_tok": 2}
    | {"n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 48, "kv_lora_rank": 32}
    | {"qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16, "n_shared_experts": 1},
    "gpt_oss": _LLAMA | _FOUR | {"head_dim": 16},
    "llama4_text": _LLAMA | _FOUR | {"head_dim": 16, "intermediate_size_mlp": 96, "num_experts_per_tok": 1},
    "jamba": _LLAMA
    | {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
    | {"num_experts": 2, "use_mamba_kernels": False, "mamba_d_state": 8, "mamba_dt_rank": 8},
    "dbrx": {"vocab_size": 96, "d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}
    | {"ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 64}}
    | {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0}},
}
TOKENS = torch.arange(3, 23).reshape(2, 10)


def model_of(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """A model with random weights, the same each time. Of matrices in its blocks, 70 % are zeros of either sign."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **CONFIGS[name])).eval()
    prune(parameter for key, parameter in model.named_parameters() if is_pruned(key, parameter))
    return model.to(dtype)


def is_pruned(name: str, parameter: torch.Tensor) -> bool:
    """Whether this is a matrix or a stack that people prune: no embedding, router, convolution or bias."""
    kept = ("embed", "wte", "router", "gate.weight", "conv1d", "A_log", "_bias", "shared_expert_gate")
    return parameter.dim() > 1 and not any(part in name for part in kept)


def prune(parameters: Iterable[torch.Tensor], sparsity: float = 0.7) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in parameters:
        kept = torch.rand(parameter.shape, generator=generator) >= sparsity
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.05 * kept)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def same_state(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Whether two states have the same names, dtypes and bits."""
    return left.keys() == right.keys() and all(
        tensor.dtype == right[name].dtype
        and torch.equal(
            tensor.contiguous().view(-1).view(torch.uint8), right[name].contiguous().view(-1).view(torch.uint8)
        )
        for name, tensor in left.items()
    )
