"""One model, taken through the whole path: pruned, saved, converted, loaded, run, saved again, made dense, exported."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch.utils._pytree import tree_flatten
from transformers.pytorch_utils import Conv1D

import sparsefmt.torch
import sparsefmt.transformers
from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.conversion import convert_checkpoint, export_checkpoint
from sparsefmt.save_options import SaveOptions
from tools.zoo_models import Tiny

SPARSITY = 0.7
"""Of each weight that is pruned, the part that becomes zero, of either sign."""

SMALLEST = 16
"""Rows and columns that a parameter of another module than a linear layer must exceed to be taken for a weight."""

LARGEST_DIFFERENCE = 1e-4
"""Of logits, in standard deviations of the dense model's: sums are added in another order, and that is all."""

_NO_WEIGHTS = ("position", "bias", "A_log", "embed", "table")
"""Parts of names of matrices that nobody prunes."""


@dataclass
class Outcome:
    """What came of one model. Texts are "bits" where every bit is the same, and "-" where there is nothing to do.

    Attributes:
        name: of the model.
        pruned: number of weights that were pruned.
        share: part of their elements that is compressed in memory.
        difference: the largest one of logits, in standard deviations of the dense model's.
        generates: "same" tokens, or "others".
        saved: what `save_pretrained` writes of the loaded model, beside the file that it was loaded from.
        dequantized: the weights after `dequantize()`, beside those of the dense model.
        exported: what `sparsefmt export` writes, beside the safetensors that were converted.
        dense: pruned weights that stay dense, and why, as the library says.
        silent: pruned weights that stay dense without a word.
        warned: warnings of the library while the model ran, that its code uses weights without their layers.
        failed: where the path ended, and with which error; None if it did not.
    """

    name: str
    pruned: int = 0
    share: float = 0.0
    difference: float | None = None
    generates: str = "-"
    saved: str = "-"
    dequantized: str = "-"
    exported: str = "-"
    dense: dict[str, str] | None = None
    silent: list[str] | None = None
    warned: int = 0
    failed: str | None = None

    @property
    def wrong(self) -> list[str]:
        """What is not as it shall be."""
        found = [] if self.failed is None else [self.failed]
        found += [f"{name} stays dense without a word" for name in self.silent or []]
        if self.difference is not None and not self.difference <= LARGEST_DIFFERENCE:
            found.append(f"logits differ by {self.difference:.1e} standard deviations")
        if self.generates == "others":
            found.append("it generates other tokens")
        for what in ("saved", "dequantized", "exported"):
            text = getattr(self, what)
            if text not in ("bits", "-"):
                found.append(f"{what}: {text}")
        return found

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "wrong": self.wrong}


def walk(name: str, make: Callable[[], Tiny], folder: Path) -> Outcome:
    """Take one model through the path.

    Args:
        make: builds it.
        folder: an empty folder, which has five copies of the model in the end.

    Returns:
        what came of it, with the error that ended the path, if one did: nothing is raised.

    Cost: seconds, and the memory of a few tiny models.
    """
    outcome = Outcome(name)
    stage = "build"
    try:
        for stage in _stages(outcome, make, folder):  # noqa: B007
            pass
    except Exception as error:
        text = " ".join(str(error).split())
        outcome.failed = f"{stage}: {type(error).__name__}: {text[:300]}"
    return outcome


def _stages(outcome: Outcome, make: Callable[[], Tiny], folder: Path) -> Iterator[str]:
    """Do everything, and say before each stage which one comes."""
    torch.manual_seed(0)
    dense, inputs, generates = make()
    dense.eval()
    weights = pruned_weights(dense)
    outcome.pruned = len(weights)
    for number, weight in enumerate(weights.values()):
        prune(weight, number)
    yield "save"
    dense.save_pretrained(folder / "dense")
    yield "convert"
    with Checkpoint(folder / "dense", ["safetensors"]) as checkpoint:
        convert_checkpoint(checkpoint, folder / "sparse", SaveOptions())
    yield "load"
    settings = sparsefmt.transformers.SparsefmtConfig(min_size=0)
    model = type(dense).from_pretrained(folder / "sparse", quantization_config=settings).eval()
    _note_share(outcome, weights, model)
    yield "run"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outcome.difference = difference(_run(dense, inputs), _run(model, inputs))
    outcome.warned = sum("SparseLinear" in str(warning.message) for warning in caught)
    if generates:
        yield "generate"
        expected, found = (_generated(of, inputs) for of in (dense, model))
        outcome.generates = "same" if torch.equal(expected, found) else "others"
    yield "save again"
    model.save_pretrained(folder / "again")
    outcome.saved = _compared(_stored(folder / "sparse"), _stored(folder / "again"))
    yield "load again"
    again = type(dense).from_pretrained(folder / "again", quantization_config=settings)
    if difference(_run(model, inputs), _run(again.eval(), inputs)) != 0:
        outcome.saved = "loaded again, it gives other logits"
    yield "dequantize"
    model.dequantize()
    outcome.dequantized = _compared(dense.state_dict(), model.state_dict())
    yield "save dequantized"
    model.save_pretrained(folder / "dequantized")
    yield "export"
    with Checkpoint(folder / "sparse", ["sparsefmt"]) as checkpoint:
        export_checkpoint(checkpoint, folder / "exported")
    outcome.exported = _compared(_stored(folder / "dense"), _stored(folder / "exported"))
    yield "load exported"
    type(dense).from_pretrained(folder / "exported")


def pruned_weights(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that somebody prunes, by name: weights of linear layers, of experts, and of whatever else is used
    as such. Embeddings, what is tied to one, and convolutions in groups, of three dimensions or with weight norms are
    left alone."""
    modules = dict(model.named_modules())
    embeddings = {
        id(parameter)
        for module in modules.values()
        if isinstance(module, torch.nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }
    return {
        f"{name}.{attribute}" if name else attribute: parameter
        for name, module in modules.items()
        for attribute, parameter in module.named_parameters(recurse=False)
        if id(parameter) not in embeddings and _is_weight(module, attribute, parameter)
    }


def _is_weight(module: torch.nn.Module, attribute: str, parameter: torch.nn.Parameter) -> bool:
    if isinstance(module, (torch.nn.Linear, Conv1D)):
        return attribute == "weight"
    if type(module) in (torch.nn.Conv1d, torch.nn.Conv2d):
        return attribute == "weight" and module.groups == 1
    if isinstance(module, (torch.nn.modules.conv._ConvNd, torch.nn.Embedding)) or "ParametrizedConv" in str(
        type(module)
    ):
        return False
    if parameter.dim() == 3:
        return min(parameter.shape) > 1
    return (
        parameter.dim() == 2 and min(parameter.shape) > SMALLEST and not any(map(attribute.__contains__, _NO_WEIGHTS))
    )


def prune(weight: torch.nn.Parameter, seed: int) -> None:
    """Set the least elements to zeros, half of them to -0.0, in place."""
    with torch.no_grad():
        count = int(weight.numel() * SPARSITY)
        if not count:
            return
        least = weight.abs().flatten().kthvalue(count).values
        signs = torch.randint(2, weight.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        weight.copy_(torch.where(weight.abs() <= least, torch.zeros_like(weight) * signs, weight))


def _note_share(outcome: Outcome, weights: dict[str, torch.nn.Parameter], model: Any) -> None:
    """How many of the pruned elements are compressed, and what the library says of the others."""
    held = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    dense = {
        name: weight.numel()
        for name, weight in weights.items()
        if name in held and held[name].is_floating_point() and held[name].numel() == weight.numel()
    }
    size = sum(weight.numel() for weight in weights.values())
    outcome.share = 1 - sum(dense.values()) / size if size else 1.0
    reasons = model.hf_quantizer.result.dense | model.hf_quantizer.result.summary.surprises
    outcome.dense, outcome.silent = {}, []
    for name in dense:
        reason = reasons.get(name) or reasons.get(name.rpartition(".")[0])
        if reason is None:
            outcome.silent.append(name)
        else:
            outcome.dense[name] = reason


def _run(model: Any, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """All numbers that a model gives."""
    torch.manual_seed(0)
    with torch.no_grad():
        made = model(**inputs)
    tensors = tree_flatten(dict(made))[0]
    return [part for part in tensors if isinstance(part, torch.Tensor) and part.is_floating_point()]


def difference(expected: list[torch.Tensor], found: list[torch.Tensor]) -> float:
    """The largest difference of two lists of tensors, in standard deviations of the first; inf if shapes differ."""
    if [part.shape for part in expected] != [part.shape for part in found]:
        return math.inf
    differences = [0.0]
    for left, right in zip(expected, found, strict=True):
        left, right = left.double(), right.double()
        if not torch.equal(left.isfinite(), right.isfinite()):
            return math.inf
        finite = left.isfinite()
        if left.numel() and (left.isnan().any() or not finite.any()):
            # nothing could be compared
            return math.inf
        left, right = left[finite], right[finite]
        if left.numel() > 1 and not torch.equal(left, right):
            differences.append(float((left - right).abs().max() / left.std().clamp_min(1e-30)))
    return max(differences)


def _generated(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    given = {name: value for name, value in inputs.items() if not name.startswith("decoder_")}
    if "attention_mask" not in given and "input_ids" in given:
        given["attention_mask"] = torch.ones_like(given["input_ids"])
    return model.generate(**given, max_new_tokens=6, do_sample=False)


def _stored(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of all files in a folder, of either format."""
    tensors: dict[str, torch.Tensor] = {}
    for path in folder.iterdir():
        if path.suffix == ".safetensors":
            tensors |= safetensors.torch.load_file(path)
        elif path.suffix == ".sparsefmt":
            tensors |= sparsefmt.torch.load_file(path)
    return tensors


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _compared(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> str:
    """ "bits", or the first difference."""
    for name in sorted(expected.keys() ^ found.keys()):
        return f"{name} is {'missing' if name in expected else 'new'}"
    for name, tensor in expected.items():
        other = found[name]
        if (tensor.dtype, tensor.shape) != (other.dtype, other.shape):
            return f"{name} is {other.dtype} {tuple(other.shape)}, and was {tensor.dtype} {tuple(tensor.shape)}"
        if tensor.numel() and _bits(tensor) != _bits(other):
            return f"{name} has other bits"
    return "bits"
