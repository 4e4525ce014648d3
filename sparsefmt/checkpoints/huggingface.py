"""The folder of a Hugging Face model: what lies beside the weights, and what config.json says about them.

    config.json                    {"model_type": …, "quantization_config": {"quant_method": "sparsefmt", …}}
    model.sparsefmt                or shards with model.sparsefmt.index.json
    README.md                      with a section that says how to load it: see `cards`
    generation_config.json, tokenizer.json, 1_Pooling/config.json, …

A folder is one of a model if it has a config.json. All its files belong to the model, but for those that hold weights
and those that are hidden. A sub-folder that modules.json of sentence-transformers names belongs to it with its weights.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsefmt.checkpoints import cards, compressed_tensors
from sparsefmt.checkpoints.compressed_tensors import Quantization
from sparsefmt.container.file_objects import destination
from sparsefmt.container.remote_path import Place, RemotePath, copy, is_same
from sparsefmt.errors import FormatError, UnsupportedError

CONFIG = "config.json"
QUANTIZATION = "quantization_config"
METHOD = "sparsefmt"
"""The `quant_method` under which `sparsefmt.transformers` registers itself."""
HINT = "how_to_load"
"""The key of a text for people: whatever it says, readers do not mind."""
SCHEMES = "compressed_tensors"
"""The key of the quantization_config that a checkpoint of compressed-tensors had: how its weights are quantized."""

SENTENCE_TRANSFORMERS = "modules.json"
"""A folder that has this file is one of sentence-transformers."""
_WEIGHTS = (
    ".safetensors",
    ".sparsefmt",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".onnx",
    ".onnx_data",
    ".gguf",
)
_INDEX = ".index.json"
_MAX_CONFIG_BYTES = 1 << 26


@dataclass(frozen=True)
class ModelFolder:
    """A folder with a config.json.

    Attributes:
        path: the folder.
        config: the content of config.json, in its order.
        companions: the other files that belong to the model, by their paths below the folder, sorted.
        left_out: files with weights, likewise; those that are being converted are among them.
    """

    path: Place
    config: dict[str, Any]
    companions: list[Path]
    left_out: list[Path]

    def config_for_sparsefmt(self, folded: bool = False) -> bytes:
        """config.json for a folder of .sparsefmt weights: the same keys in their order, then the quantization_config.

        Args:
            folded: whether bitmasks and packed elements of compressed-tensors were read as the tensors that they stand
                for.

        Raises:
            UnsupportedError: the weights are quantized otherwise than is known, by another method or in another way.
        """
        found = self.config.get(QUANTIZATION)
        settings: dict[str, Any] = {"quant_method": METHOD, HINT: cards.HOW_TO_LOAD}
        quantization, schemes = self.quantization, _schemes(found)
        if quantization is not None and schemes is not None:
            is_readable = folded or quantization.sparsity == "dense"
            settings[SCHEMES] = compressed_tensors.folded(schemes) if folded else schemes
        else:
            is_readable = found is None or _is_replaceable(found, folded)
        if not is_readable:
            method = found.get("quant_method") if isinstance(found, dict) else found
            raise UnsupportedError(
                "model-quantized",
                f"{self.path / CONFIG}: the weights are quantized by {method!r}, so that sparsefmt.transformers could"
                " not run them. Name a file of weights or its index, to convert the weights alone; --fold reads"
                " bitmasks of compressed-tensors",
            )
        return _encode({**self.config, QUANTIZATION: settings})

    def config_for_safetensors(self) -> bytes:
        """config.json for a folder of safetensors: without what `config_for_sparsefmt` added."""
        found = self.config.get(QUANTIZATION)
        if isinstance(found, dict) and found.get("quant_method") == METHOD:
            if SCHEMES in found:
                return _encode({**self.config, QUANTIZATION: found[SCHEMES]})
            return _encode({key: value for key, value in self.config.items() if key != QUANTIZATION})
        return _encode(self.config)

    @property
    def quantization(self) -> Quantization | None:
        """How weights are quantized, by compressed-tensors; None if they are not, or by another method.

        Raises:
            as `compressed_tensors.parse`.
        """
        return quantization_of(self.config, self.path / CONFIG)

    def card_for_sparsefmt(self, old: bytes) -> bytes:
        """README.md for a folder of .sparsefmt weights. old: the one that it takes the place of; b"" for none."""
        return cards.with_section(old, self.config, sentences=(self.path / SENTENCE_TRANSFORMERS).is_file())

    @property
    def card(self) -> Path:
        """README.md below the folder, by the name that it has; there may be none."""
        named = [path for path in self.companions if str(path).lower() == cards.README.lower()]
        return named[0] if named else Path(cards.README)


def read_model_folder(path: Place, besides: Place | None = None) -> ModelFolder | None:
    """What a folder has beside its weights; None if it has no config.json.

    Links to files are followed, as the caches of Hugging Face are made of them. Links to folders are not.

    Args:
        path: the folder.
        besides: a folder that is not part of it even if it lies in it.

    Raises:
        FormatError: config.json is not a JSON object.
        OSError: it cannot be read.
    """
    if not (path / CONFIG).is_file():
        return None
    config = _read_object(path / CONFIG)
    whole = _modules(path)
    companions: list[Path] = []
    left_out: list[Path] = []
    for file in _visible_files(path, Path(), besides):
        if file == Path(CONFIG):
            continue
        keep = not is_weights(file.name) or any(module in file.parents for module in whole)
        (companions if keep else left_out).append(file)
    return ModelFolder(path, config, sorted(companions), sorted(left_out))


def is_weights(name: str) -> bool:
    """Whether a file of this name holds weights, or is the index of such files."""
    return name.removesuffix(_INDEX).endswith(_WEIGHTS)


def is_method(folder: Place) -> bool:
    """Whether config.json of a folder says that the weights are .sparsefmt."""
    try:
        found = _read_object(folder / CONFIG).get(QUANTIZATION)
    except (FormatError, OSError):
        return False
    return isinstance(found, dict) and found.get("quant_method") == METHOD


def quantization_of(config: dict[str, Any], path: Place) -> Quantization | None:
    """How the weights of a model are quantized, by the content of its config.json, before or after it was converted.

    Args:
        path: of that file, for errors.

    Returns:
        None if they are not quantized, or by another method.

    Raises:
        as `compressed_tensors.parse`.
    """
    schemes = _schemes(config.get(QUANTIZATION))
    return None if schemes is None else compressed_tensors.parse(schemes, str(path))


def quantization_beside(path: Place) -> Quantization | None:
    """How the weights of a model are quantized, by the config.json of its folder.

    Args:
        path: the folder, or a file in it.

    Returns:
        None if there is no config.json of a model, or if it does not say so.

    Raises:
        as `compressed_tensors.parse`.
    """
    folder = path if path.is_dir() else path.parent
    try:
        config = _read_object(folder / CONFIG)
    except (FormatError, OSError):
        return None
    return quantization_of(config, folder / CONFIG)


def copy_file(source: Place, target: Place) -> None:
    """Copy the content of a file; the old one, if any, is replaced at once."""
    with destination(target) as sink:
        copy(source, sink)


def _schemes(found: Any) -> dict[str, Any] | None:
    """What a quantization_config has of compressed-tensors, if it says that weights are quantized."""
    if isinstance(found, dict) and found.get("quant_method") == METHOD:
        found = found.get(SCHEMES)
    if not isinstance(found, dict) or found.get("quant_method") != compressed_tensors.METHOD:
        return None
    return found if found.get("config_groups") else None


def _is_replaceable(found: Any, folded: bool) -> bool:
    """Whether a quantization_config says nothing that is needed to understand the weights."""
    if not isinstance(found, dict):
        return False
    if found.get("quant_method") == compressed_tensors.METHOD:
        # a pruned model that is not quantized: it says how many zeros there are, and that they are stored
        sparsity = found.get("sparsity_config") or {}
        understood = ("dense", "sparse-bitmask", "sparse-24-bitmask") if folded else ("dense",)
        return not found.get("config_groups") and sparsity.get("format", "dense") in understood
    return found.get("quant_method") == METHOD


def _visible_files(root: Place, below: Path, besides: Place | None) -> Iterator[Path]:
    if isinstance(root, RemotePath):
        for remote in (root / below).iterdir():
            if remote.name.startswith("."):
                continue
            if not remote.is_dir():
                yield below / remote.name
            elif remote != besides:
                yield from _visible_files(root, below / remote.name, besides)
        return
    with os.scandir(root / below) as entries:
        for entry in entries:
            path = below / entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                if besides is None or not besides.exists() or not is_same(Path(entry.path), besides):
                    yield from _visible_files(root, path, besides)
            elif entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path)):
                # a link that leads nowhere is an error when it is copied: the folder is incomplete
                yield path


def _modules(folder: Place) -> set[Path]:
    """Sub-folders that are modules of a sentence-transformers model."""
    try:
        modules = json.loads((folder / SENTENCE_TRANSFORMERS).read_bytes())
        return {Path(module["path"]) for module in modules if module["path"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _read_object(path: Place) -> dict[str, Any]:
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise FormatError("model-config", f"{path}: it is too large for a config.json")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FormatError("model-config", f"{path}: it is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise FormatError("model-config", f"{path}: it holds no JSON object")
    return content


def _encode(config: dict[str, Any]) -> bytes:
    # as the transformers library writes it
    return (json.dumps(config, indent=2) + "\n").encode()
