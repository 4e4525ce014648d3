"""Tiny models with random weights, of the architectures that are pruned: built from configs, nothing is downloaded.

Each has two layers or so, and the oddities of its architecture: fused projections, experts, convolutions, weights that
several modules share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

HIDDEN, INNER, LAYERS, HEADS, WORDS = 128, 256, 2, 4, 512
"""Features, features inside a layer, layers, heads of attention, and words, of nearly all of them."""


class Tiny(NamedTuple):
    """A model as it was built.

    Attributes:
        model: with random weights, dense.
        inputs: what its forward is called with.
        generates: whether it generates text.
    """

    model: Any
    inputs: dict[str, torch.Tensor]
    generates: bool


_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SHAPE = {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
_LLAMA = {"vocab_size": WORDS, **_SHAPE, "num_key_value_heads": 2, "max_position_embeddings": 256, **_IDS}
_HEAD = {**_LLAMA, "head_dim": 32}
_BERT = {"vocab_size": WORDS, **_SHAPE, "max_position_embeddings": 128}
_GPT2 = {"vocab_size": WORDS, "n_positions": 128, "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, **_IDS}
_T5 = {
    **{"vocab_size": WORDS, "d_model": HIDDEN, "d_kv": 32, "d_ff": INNER, "num_layers": LAYERS, "num_heads": HEADS},
    **{"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2},
}
_BART = {
    **{"vocab_size": WORDS, "d_model": HIDDEN, "max_position_embeddings": 128, **_IDS, "decoder_start_token_id": 1},
    **{"encoder_layers": LAYERS, "encoder_attention_heads": HEADS, "encoder_ffn_dim": INNER, "forced_eos_token_id": 2},
    **{"decoder_layers": LAYERS, "decoder_attention_heads": HEADS, "decoder_ffn_dim": INNER},
}
_VIT = {**_SHAPE, "image_size": 32, "patch_size": 8}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
_LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}


def _without(settings: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


def _numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _tokens(count: int = 12, least: int = 3, most: int = WORDS) -> torch.Tensor:
    return torch.randint(least, most, (2, count), generator=torch.Generator().manual_seed(0))


def _text() -> dict[str, torch.Tensor]:
    return {"input_ids": _tokens()}


def _pair() -> dict[str, torch.Tensor]:
    return {"input_ids": _tokens(), "decoder_input_ids": _tokens(6)}


def _image(size: int = 32) -> dict[str, torch.Tensor]:
    return {"pixel_values": _numbers(2, 3, size, size)}


def _big_image() -> dict[str, torch.Tensor]:
    return _image(64)


def _sound() -> dict[str, torch.Tensor]:
    return {"input_values": _numbers(2, 4000)}


def _text_and_image() -> dict[str, torch.Tensor]:
    return {**_text(), **_image()}


def _config(name: str, **settings: Any) -> Any:
    return AutoConfig.for_model(name, **settings)


def _causal(name: str, **settings: Any) -> Callable[[], Tiny]:
    return lambda: Tiny(AutoModelForCausalLM.from_config(_config(name, **settings)), _text(), True)


def _from_text(name: str, kind: Any = AutoModel, **settings: Any) -> Callable[[], Tiny]:
    return lambda: Tiny(kind.from_config(_config(name, **settings)), _text(), False)


def _translating(name: str, **settings: Any) -> Callable[[], Tiny]:
    return lambda: Tiny(AutoModelForSeq2SeqLM.from_config(_config(name, **settings)), _pair(), True)


def _seeing(
    name: str,
    inputs: Callable[[], dict[str, torch.Tensor]] = _image,
    kind: Any = AutoModelForImageClassification,
    **settings: Any,
) -> Callable[[], Tiny]:
    return lambda: Tiny(kind.from_config(_config(name, **settings)), inputs(), False)


def _hearing(name: str, model: str, **settings: Any) -> Callable[[], Tiny]:
    convolutions = {
        **{"conv_dim": [32, 32, 32], "conv_stride": [5, 2, 2], "conv_kernel": [10, 3, 3]},
        **{"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4},
    }

    def make() -> Tiny:
        config = _config(name, vocab_size=32, **_SHAPE, **convolutions, **settings)
        return Tiny(getattr(transformers, model)(config), _sound(), False)

    return make


def _whisper() -> Tiny:
    config = _config(
        "whisper",
        **_without(_BART, "max_position_embeddings", "forced_eos_token_id"),
        num_mel_bins=16,
        max_source_positions=50,
        max_target_positions=64,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    inputs = {"input_features": _numbers(2, 16, 100), "decoder_input_ids": _tokens(6)}
    return Tiny(transformers.WhisperForConditionalGeneration(config), inputs, True)


def _moonshine() -> Tiny:
    halves = {
        **{"encoder_num_hidden_layers": LAYERS, "encoder_num_attention_heads": HEADS},
        **{"decoder_num_hidden_layers": LAYERS, "decoder_num_attention_heads": HEADS},
    }
    config = _config(
        "moonshine",
        vocab_size=WORDS,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        max_position_embeddings=128,
        **halves,
    )
    inputs = {"input_values": _numbers(2, 8000), "decoder_input_ids": _tokens(6)}
    return Tiny(transformers.MoonshineForConditionalGeneration(config), inputs, True)


def _clip() -> Tiny:
    text = {**_BERT, "max_position_embeddings": 77, **_IDS}
    config = transformers.CLIPConfig(text_config=text, vision_config=_VIT, projection_dim=64)
    return Tiny(transformers.CLIPModel(config), _text_and_image(), False)


def _siglip() -> Tiny:
    text = {**_BERT, "max_position_embeddings": 64}
    config = transformers.SiglipConfig(text_config=text, vision_config=_VIT)
    return Tiny(transformers.SiglipModel(config), _text_and_image(), False)


def _blip() -> Tiny:
    text = {**_BERT, "max_position_embeddings": 64, "encoder_hidden_size": HIDDEN, **_IDS, "sep_token_id": 2}
    config = transformers.BlipConfig(text_config=text, vision_config=_VIT, projection_dim=64)
    return Tiny(transformers.BlipForConditionalGeneration(config), _text_and_image(), False)


def _text_with_image(image: int, begin: int) -> dict[str, torch.Tensor]:
    """A text in which some tokens stand for an image. image: how many; begin: the first."""
    ids = _tokens(24, least=9)
    ids[:, begin : begin + image] = 3
    return {"input_ids": ids, **_image()}


def _llava() -> Tiny:
    config = transformers.LlavaConfig(
        text_config={"model_type": "llama", **_LLAMA},
        vision_config={"model_type": "clip_vision_model", **_VIT},
        image_token_id=3,
        vision_feature_layer=-1,
    )
    return Tiny(transformers.LlavaForConditionalGeneration(config), _text_with_image(16, 2), True)


def _gemma3() -> Tiny:
    config = transformers.Gemma3Config(
        text_config=_HEAD,
        vision_config=_VIT,
        mm_tokens_per_image=4,
        image_token_id=3,
        boi_token_index=4,
        eoi_token_index=5,
    )
    inputs = _text_with_image(4, 2)
    inputs["token_type_ids"] = (inputs["input_ids"] == 3).long()
    return Tiny(transformers.Gemma3ForConditionalGeneration(config), inputs, True)


def _qwen2_vl() -> Tiny:
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e6}
    config = transformers.Qwen2VLConfig(
        text_config={**_LLAMA, "rope_parameters": rope},
        vision_config={
            **{"depth": LAYERS, "embed_dim": HIDDEN, "num_heads": HEADS, "hidden_size": HIDDEN},
            **{"patch_size": 8, "mlp_ratio": 2},
        },
    )
    return Tiny(transformers.Qwen2VLForConditionalGeneration(config), _text(), True)


def _encoder_decoder() -> Tiny:
    decoder = transformers.BertConfig(**_BERT, is_decoder=True, add_cross_attention=True)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(transformers.BertConfig(**_BERT), decoder)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    return Tiny(transformers.EncoderDecoderModel(config=config), _pair(), True)


def _vision_encoder_decoder() -> Tiny:
    decoder = transformers.GPT2Config(**_GPT2, add_cross_attention=True)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(**_VIT), decoder
    )
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    model = transformers.VisionEncoderDecoderModel(config=config)
    return Tiny(model, {**_image(), "decoder_input_ids": _tokens(6)}, True)


def _dbrx() -> Tiny:
    config = _config(
        "dbrx",
        vocab_size=WORDS,
        d_model=HIDDEN,
        n_layers=LAYERS,
        n_heads=HEADS,
        max_seq_len=128,
        ffn_config={"ffn_hidden_size": INNER, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": HIDDEN},
        attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
    )
    return Tiny(AutoModelForCausalLM.from_config(config), _text(), True)


def _esm() -> Tiny:
    config = _config("esm", **{**_BERT, "vocab_size": 33}, pad_token_id=1, mask_token_id=2)
    return Tiny(AutoModelForMaskedLM.from_config(config), {"input_ids": _tokens(most=33)}, False)


def _segformer() -> Tiny:
    config = _config(
        "segformer",
        hidden_sizes=[32, 64],
        depths=[1, 1],
        num_encoder_blocks=2,
        sr_ratios=[4, 2],
        num_attention_heads=[1, 2],
        patch_sizes=[7, 3],
        strides=[4, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=64,
    )
    return Tiny(transformers.SegformerForSemanticSegmentation(config), _big_image(), False)


_ALL_HEADS = {**_LLAMA, "num_key_value_heads": HEADS}
_DISTIL = {
    **{"vocab_size": WORDS, "dim": HIDDEN, "hidden_dim": INNER, "n_layers": LAYERS, "n_heads": HEADS},
    "max_position_embeddings": 128,
}
_WITHOUT_GROUPS = _without(_LLAMA, "num_key_value_heads")
_NEO = {
    **_without(_WITHOUT_GROUPS, "num_hidden_layers", "num_attention_heads"),
    **{"num_layers": LAYERS, "num_heads": HEADS, "attention_types": [[["global", "local"], 1]]},
}
_CLASSES, _WORDS_OF = AutoModelForSequenceClassification, AutoModelForMaskedLM

MODELS: dict[str, Callable[[], Tiny]] = {
    # decoders
    "llama": _causal("llama", **_LLAMA),
    "llama-tied": _causal("llama", **_LLAMA, tie_word_embeddings=True),
    "qwen2": _causal("qwen2", **_LLAMA),
    "qwen3": _causal("qwen3", **_HEAD),
    "mistral": _causal("mistral", **_HEAD),
    "gemma2": _causal("gemma2", **_HEAD),
    "gemma3_text": _causal("gemma3_text", **_HEAD),
    "phi": _causal("phi", **_LLAMA),
    "phi3": _causal("phi3", **_LLAMA),
    "gpt2": _causal("gpt2", **_GPT2),
    "gpt_neo": _causal("gpt_neo", **_NEO),
    "gptj": _causal("gptj", **_GPT2, rotary_dim=16),
    "gpt_neox": _causal("gpt_neox", **_WITHOUT_GROUPS),
    "opt": _causal(
        "opt",
        vocab_size=WORDS,
        hidden_size=HIDDEN,
        ffn_dim=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=128,
        word_embed_proj_dim=HIDDEN,
    ),
    "falcon": _causal(
        "falcon", vocab_size=WORDS, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS, **_IDS
    ),
    "bloom": _causal("bloom", vocab_size=WORDS, hidden_size=HIDDEN, n_layer=LAYERS, n_head=HEADS),
    "mpt": _causal("mpt", vocab_size=WORDS, d_model=HIDDEN, n_layers=LAYERS, n_heads=HEADS, max_seq_len=128),
    "starcoder2": _causal("starcoder2", **_LLAMA),
    "stablelm": _causal("stablelm", **_LLAMA),
    "cohere": _causal("cohere", **_LLAMA),
    "olmo2": _causal("olmo2", **_LLAMA),
    "granite": _causal("granite", **_LLAMA),
    "glm4": _causal("glm4", **_HEAD),
    "smollm3": _causal("smollm3", **_LLAMA),
    "nemotron": _causal("nemotron", **_LLAMA),
    "lfm2": _causal(
        "lfm2", **{**_LLAMA, "num_hidden_layers": 4}, layer_types=["conv", "full_attention", "conv", "full_attention"]
    ),
    # with states in place of attention
    "mamba": _causal("mamba", vocab_size=WORDS, hidden_size=HIDDEN, num_hidden_layers=LAYERS, state_size=8),
    "mamba2": _causal(
        "mamba2",
        vocab_size=WORDS,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        state_size=16,
        num_heads=8,
        head_dim=32,
        n_groups=1,
        chunk_size=8,
    ),
    "rwkv": _causal("rwkv", vocab_size=WORDS, hidden_size=HIDDEN, num_hidden_layers=LAYERS, context_length=64),
    "recurrent_gemma": _causal("recurrent_gemma", **{**_HEAD, "num_hidden_layers": 3}, lru_width=HIDDEN),
    "jamba": _causal(
        "jamba",
        **_LLAMA,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=2,
        use_mamba_kernels=False,
        mamba_d_state=8,
        mamba_dt_rank=8,
    ),
    # mixtures of experts
    "mixtral": _causal("mixtral", **_LLAMA, **_LOCAL_EXPERTS),
    "qwen2_moe": _causal(
        "qwen2_moe", **_LLAMA, **_EXPERTS, moe_intermediate_size=64, shared_expert_intermediate_size=128
    ),
    "qwen3_moe": _causal("qwen3_moe", **_HEAD, **_EXPERTS, moe_intermediate_size=64),
    "qwen3_next": _causal(
        "qwen3_next",
        **_HEAD,
        **_EXPERTS,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        moe_intermediate_size=64,
        shared_expert_intermediate_size=64,
        layer_types=["linear_attention", "full_attention"],
    ),
    "olmoe": _causal("olmoe", **_LLAMA, **_EXPERTS),
    "deepseek_v3": _causal(
        "deepseek_v3",
        **_ALL_HEADS,
        moe_intermediate_size=64,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=64,
        kv_lora_rank=32,
        qk_rope_head_dim=16,
        qk_nope_head_dim=16,
        v_head_dim=32,
        n_shared_experts=1,
    ),
    "gpt_oss": _causal("gpt_oss", **_HEAD, **_LOCAL_EXPERTS),
    "llama4_text": _causal(
        "llama4_text", **_HEAD, intermediate_size_mlp=INNER, num_local_experts=4, num_experts_per_tok=1
    ),
    "granitemoe": _causal("granitemoe", **_LLAMA, **_LOCAL_EXPERTS),
    "phimoe": _causal("phimoe", **_LLAMA, **_LOCAL_EXPERTS),
    "dbrx": _dbrx,
    # encoders
    "bert": _from_text("bert", _CLASSES, **_BERT),
    "bert-words": _from_text("bert", _WORDS_OF, **_BERT),
    "bert-alone": _from_text("bert", **_BERT),
    "roberta": _from_text("roberta", _CLASSES, **_BERT),
    "xlm-roberta": _from_text("xlm-roberta", _WORDS_OF, **_BERT),
    "distilbert": _from_text("distilbert", _CLASSES, **_DISTIL),
    "albert": _from_text("albert", _CLASSES, **_BERT, embedding_size=64),
    "electra": _from_text("electra", _CLASSES, **_BERT, embedding_size=64),
    "deberta-v2": _from_text("deberta-v2", _CLASSES, **_BERT, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "modernbert": _from_text("modernbert", _WORDS_OF, **_BERT, **_IDS, cls_token_id=1, sep_token_id=2),
    "mpnet": _from_text("mpnet", **_BERT),
    "mobilebert": _from_text(
        "mobilebert",
        _WORDS_OF,
        **_BERT,
        embedding_size=64,
        intra_bottleneck_size=64,
        true_hidden_size=64,
    ),
    "xlnet": _from_text("xlnet", vocab_size=WORDS, d_model=HIDDEN, n_layer=LAYERS, n_head=HEADS, d_inner=INNER),
    "esm": _esm,
    # encoders with decoders
    "t5": _translating("t5", **_T5),
    "t5-gated": _translating("t5", **_T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "mt5": _translating("mt5", **_T5),
    "bart": _translating("bart", **_BART),
    "marian": _translating("marian", **_BART),
    "pegasus": _translating("pegasus", **_BART),
    "m2m_100": _translating("m2m_100", **_BART),
    "encoder-decoder": _encoder_decoder,
    # images
    "vit": _seeing("vit", **_VIT),
    "beit": _seeing("beit", **_VIT),
    "dinov2": _seeing("dinov2", **{**_VIT, "mlp_ratio": 2}),
    "swin": _seeing(
        "swin", _big_image, image_size=64, patch_size=4, embed_dim=64, depths=[1, 1], num_heads=[2, 4], window_size=4
    ),
    "convnext": _seeing("convnext", _big_image, hidden_sizes=[64, 128], depths=[1, 1], num_stages=2),
    "resnet": _seeing("resnet", _big_image, embedding_size=32, hidden_sizes=[64, 128], depths=[1, 1]),
    "mobilenet_v2": _seeing("mobilenet_v2", _big_image, image_size=64, depth_multiplier=0.5),
    "regnet": _seeing(
        "regnet", _big_image, embedding_size=32, hidden_sizes=[64, 64, 96, 128], depths=[1, 1, 1, 1], groups_width=32
    ),
    "convnextv2": _seeing("convnextv2", _big_image, hidden_sizes=[64, 128], depths=[1, 1], num_stages=2),
    "segformer": _segformer,
    # images and text
    "clip": _clip,
    "siglip": _siglip,
    "blip": _blip,
    "llava": _llava,
    "gemma3": _gemma3,
    "qwen2_vl": _qwen2_vl,
    "vision-encoder-decoder": _vision_encoder_decoder,
    # sound
    "whisper": _whisper,
    "moonshine": _moonshine,
    "wav2vec2": _hearing("wav2vec2", "Wav2Vec2ForCTC"),
    "hubert": _hearing("hubert", "HubertForCTC"),
    "wavlm": _hearing("wavlm", "WavLMForCTC"),
}
