"""What people do with a loaded model beside running it: evaluate it by a Trainer, give it more words, save a state."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, BartConfig, Trainer, TrainingArguments
from transformers_models import TOKENS, convert, output, prune, same_weights

from sparsefmt.torch import SparseLinear, sparsify, tensors_of

pytestmark = pytest.mark.usefixtures("small_layers")


def trainer_of(model: Any, folder: Path) -> Trainer:
    texts = [{"input_ids": text, "labels": text} for text in TOKENS]
    arguments = TrainingArguments(
        str(folder), use_cpu=True, report_to=[], disable_tqdm=True, max_steps=3, learning_rate=1e-2
    )
    return Trainer(model, arguments, train_dataset=texts, eval_dataset=texts)


class TestTrainer:
    @pytest.mark.slow
    def test_it_evaluates(
        self, models: dict[str, Any], folders: dict[str, tuple[Path, Path]], tmp_path: Path, messages: list[str]
    ) -> None:
        model = AutoModelForCausalLM.from_pretrained(folders["llama"][1])
        found = trainer_of(model, tmp_path).evaluate()["eval_loss"]
        expected = trainer_of(copy.deepcopy(models["llama"]), tmp_path).evaluate()["eval_loss"]
        assert found == pytest.approx(expected, abs=1e-5)
        (said,) = [text for text in messages if "Trainer" in text]
        assert "weights of 15 SparseLinear layers are not trained" in said
        assert "model.dequantize()" in said

    @pytest.mark.slow
    def test_it_trains_what_is_no_weight_of_a_sparse_layer(
        self, folders: dict[str, tuple[Path, Path]], tmp_path: Path
    ) -> None:
        model = AutoModelForCausalLM.from_pretrained(folders["llama"][1])
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        trainer_of(model, tmp_path).train()
        changed = {name for name, tensor in model.state_dict().items() if not tensor.equal(before[name])}
        assert changed == {name for name, _ in model.named_parameters()}

    def test_a_copy_and_a_dense_model_have_no_frozen_weights(
        self, folders: dict[str, tuple[Path, Path]], messages: list[str]
    ) -> None:
        model = AutoModelForCausalLM.from_pretrained(folders["llama"][1])
        quantizer = model.hf_quantizer
        model.dequantize()
        assert quantizer.is_trainable
        assert quantizer.is_qat_trainable
        del model
        assert quantizer.is_qat_trainable
        assert not [text for text in messages if "Trainer" in text]


class TestMoreWords:
    @pytest.mark.parametrize("words", [100, 90])
    @pytest.mark.parametrize("mean_resizing", [True, False])
    def test_an_output_layer_grows_and_shrinks(
        self, words: int, mean_resizing: bool, models: dict[str, Any], folders: dict[str, tuple[Path, Path]]
    ) -> None:
        dense = copy.deepcopy(models["llama"])
        model = AutoModelForCausalLM.from_pretrained(folders["llama"][1])
        for each in (dense, model):
            torch.manual_seed(0)
            each.resize_token_embeddings(words, mean_resizing=mean_resizing)
        head = model.lm_head
        assert isinstance(head, SparseLinear)
        assert head.weight.tensor.layout != "dense"
        assert head.weight.to_dense().equal(dense.lm_head.weight)
        assert (head.out_features, model.config.vocab_size, head.name) == (words, words, "lm_head")
        assert head.weight_requires_grad
        short = TOKENS % 90
        with torch.no_grad():
            torch.testing.assert_close(model(short).logits, dense(short).logits, atol=1e-5, rtol=1e-5)

    def test_it_is_saved_and_loaded(self, folders: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(folders["llama"][1])
        model.resize_token_embeddings(100)
        model.save_pretrained(tmp_path)
        again = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert output(again).equal(output(model))
        assert output(again).shape[-1] == 100

    def test_the_same_number_changes_nothing(self, folders: dict[str, tuple[Path, Path]]) -> None:
        model = AutoModelForCausalLM.from_pretrained(folders["llama"][1])
        head = model.lm_head
        model.resize_token_embeddings(96)
        assert model.lm_head is head
        assert model.resize_token_embeddings() is model.get_input_embeddings()
        assert model.lm_head is head

    def test_tied_embeddings_are_dense_anyway(self, folders: dict[str, tuple[Path, Path]]) -> None:
        model = AutoModelForCausalLM.from_pretrained(folders["tied"][1])
        model.resize_token_embeddings(100)
        assert model.lm_head.weight is model.get_input_embeddings().weight
        assert output(model).shape[-1] == 100

    def test_with_a_buffer_for_words(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        size = {"d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 96}
        config = BartConfig(**size, encoder_ffn_dim=64, decoder_ffn_dim=64, tie_word_embeddings=False)
        dense = prune(AutoModelForSeq2SeqLM.from_config(config))
        dense.save_pretrained(tmp_path / "dense")
        model = AutoModelForSeq2SeqLM.from_pretrained(convert(tmp_path / "dense", tmp_path / "sparse"))
        model.resize_token_embeddings(100)
        assert model.final_logits_bias.shape == (1, 100)
        assert model(TOKENS).logits.shape[-1] == 100

    def test_weights_of_16_bits_stay_so(self, models: dict[str, Any]) -> None:
        model = copy.deepcopy(models["llama"]).bfloat16()
        sparsify(model, compute_dtype="float32", layout="bitmask")
        model.resize_token_embeddings(100)
        assert model.lm_head.weight.dtype == torch.float32
        assert model.lm_head.weight.tensor.dtype == "bfloat16"
        assert model.lm_head.weight.tensor.layout == "bitmask"

    def test_scaled_weights_become_dense_and_the_log_says_so(self, models: dict[str, Any], messages: list[str]) -> None:
        model = copy.deepcopy(models["llama"])
        sparsify(model, values="int8")
        expected = model.lm_head.weight.to_dense()
        model.resize_token_embeddings(100)
        assert type(model.lm_head) is torch.nn.Linear
        assert model.lm_head.weight[:96].equal(expected)
        assert [text for text in messages if "scaled weights, and is dense now" in text]

    def test_after_an_error_the_layer_is_what_it_was(self, folders: dict[str, tuple[Path, Path]]) -> None:
        model = AutoModelForCausalLM.from_pretrained(folders["llama"][1])
        head = model.lm_head
        with pytest.raises(ValueError, match="not and integer"):
            model.resize_token_embeddings(100, pad_to_multiple_of=1.5)
        assert model.lm_head is head


class TestStateDict:
    @pytest.fixture
    def model(self, folders: dict[str, tuple[Path, Path]]) -> Any:
        return AutoModelForCausalLM.from_pretrained(folders["llama"][1])

    def test_its_own_is_what_is_saved_without(
        self, model: Any, folders: dict[str, tuple[Path, Path]], tmp_path: Path
    ) -> None:
        for name, state in {
            "own": model.state_dict(),
            "copied": {key: tensor.clone() for key, tensor in model.state_dict().items()},
            "tensors": tensors_of(model),
        }.items():
            model.save_pretrained(tmp_path / name, state_dict=state)
            assert same_weights(tmp_path / name, folders["llama"][1]), name

    def test_dense_weights_are_compressed_as_they_are_written(
        self, model: Any, folders: dict[str, tuple[Path, Path]], models: dict[str, Any], tmp_path: Path
    ) -> None:
        model.save_pretrained(tmp_path, state_dict=models["llama"].state_dict())
        assert same_weights(tmp_path, folders["llama"][1])
        assert (tmp_path / "model.sparsefmt").stat().st_size == (folders["llama"][1] / "model.sparsefmt").stat().st_size

    def test_other_values_are_saved_and_the_model_stays(self, model: Any, tmp_path: Path) -> None:
        other = copy.deepcopy(model)
        other.lm_head.weight.mul_(2)
        with torch.no_grad():
            other.model.norm.weight.fill_(3)
        before = output(model)
        model.save_pretrained(tmp_path, state_dict=other.state_dict())
        again = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert output(again).equal(output(other))
        assert output(model).equal(before)

    def test_a_part_is_saved_as_a_part(self, model: Any, tmp_path: Path) -> None:
        state = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("lm_head")}
        model.save_pretrained(tmp_path, state_dict=state)
        _, found = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
        assert "model.norm.weight" in found["missing_keys"]
        assert "lm_head.weight" not in found["missing_keys"]

    def test_scaled_weights(self, models: dict[str, Any], tmp_path: Path) -> None:
        model = copy.deepcopy(models["llama"])
        sparsify(model, values="int8")
        for name, state in {
            "without": None,
            "own": model.state_dict(),
            "copied": {key: tensor.clone() for key, tensor in model.state_dict().items()},
            "tensors": tensors_of(model),
        }.items():
            model.save_pretrained(tmp_path / name, state_dict=state)
            assert same_weights(tmp_path / name, tmp_path / "without"), name
            assert output(AutoModelForCausalLM.from_pretrained(tmp_path / name)).equal(output(model))

    def test_half_a_weight_is_refused(self, model: Any, tmp_path: Path) -> None:
        for lacked in ("weight_table", "weight_arrays"):
            state = model.state_dict()
            del state[f"lm_head.{lacked}"]
            with pytest.raises(ValueError, match=rf"state_dict has 'lm_head\.\w+', and lacks 'lm_head\.{lacked}'"):
                model.save_pretrained(tmp_path, state_dict=state)
        assert not list(tmp_path.iterdir())

    def test_buffers_of_another_layer_are_refused(self, model: Any, tmp_path: Path) -> None:
        state = model.state_dict()
        state["lm_head.weight_table"] = state["model.layers.0.mlp.down_proj.weight_table"]
        with pytest.raises(ValueError, match=r"state_dict: lm_head\.weight: "):
            model.save_pretrained(tmp_path, state_dict=state)

    def test_experts(self, models: dict[str, Any], tmp_path: Path) -> None:
        model = copy.deepcopy(models["mixtral"])
        for parameter in model.parameters():
            if parameter.dim() == 3:
                parameter.data *= torch.rand(parameter.shape) < 0.2
        sparsify(model)
        model.save_pretrained(tmp_path / "without")
        copied = {key: part.clone() for key, part in model.state_dict().items()}
        for name, state in {"copied": copied, "tensors": tensors_of(model)}.items():
            model.save_pretrained(tmp_path / name, state_dict=state)
            assert same_weights(tmp_path / name, tmp_path / "without"), name
        lacking = {key: part for key, part in copied.items() if "layers.0.mlp.experts.gate_up_proj.1." not in key}
        assert len(lacking) < len(copied)
        with pytest.raises(ValueError, match=r"state_dict has experts of '.*gate_up_proj', and lacks number 1"):
            model.save_pretrained(tmp_path / "lacking", state_dict=lacking)

    def test_conv1d(self, folders: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(folders["gpt2"][1])
        # a copy of what is tied would be a weight of its own
        state = {key: part.clone() for key, part in model.state_dict().items() if key != "lm_head.weight"}
        model.save_pretrained(tmp_path, state_dict=state)
        assert same_weights(tmp_path, folders["gpt2"][1])
