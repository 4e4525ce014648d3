"""What compressed-tensors writes into the quantization_config of config.json: which layer is quantized, and how.

    {"quant_method": "compressed-tensors",
     "format": "int-quantized",                      of all groups that name no other
     "config_groups": {"group_0": {
         "targets": ["Linear"],                      names of layers, "re:…" for names, or classes of layers
         "format": …,
         "weights": {"num_bits": 8, "type": "int", "symmetric": true, "strategy": "channel", "group_size": null, …},
         "input_activations": null, or {"num_bits": 8, "type": "int", "dynamic": true, "strategy": "token", …}}},
     "ignore": ["lm_head", "re:.*gate"],             layers that are not quantized
     "sparsity_config": {"format": "sparse-24-bitmask", …}}

Whatever would change a product and is not known here is refused, so that no model runs otherwise than its config says.
One thing is computed more exactly than it says: activations in eight-bit floats are not rounded to these.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sparsefmt.errors import FormatError, UnsupportedError

METHOD = "compressed-tensors"
"""Its `quant_method`."""

Strategy = Literal["tensor", "channel", "group"]
Activations = Literal["int8", "int8-static", "fp8"]

_FORMATS = {
    "int": ("int-quantized", "naive-quantized", "pack-quantized"),
    "float": ("float-quantized", "naive-quantized"),
}
"""By the type of the weights."""
_UNPACKED = "int-quantized"
"""The format of what was packed, once it has a byte for each element."""
_SPARSE = ("sparse-bitmask", "sparse-24-bitmask")

_HARMLESS = ("scale_dtype", "zp_dtype", "observer", "observer_kwargs")
"""Arguments of a quantization that say how it was found, or what the tensors say too."""
_KNOWN = ("num_bits", "type", "symmetric", "strategy", "group_size", "block_structure", "dynamic", "actorder")
_NO_ORDER = (None, False, "weight", "static")
"""Values of actorder that leave columns where they are."""
_OF_THE_MODEL = ("config_groups", "format", "ignore", "sparsity_config", "quant_method")


@dataclass(frozen=True)
class Scheme:
    """How a layer is quantized.

    Attributes:
        group: the name of its group in the config.
        dtype: of the weight, once it is unpacked: I8 or F8_E4M3.
        num_bits: of an element.
        packed: whether elements are packed in words.
        strategy, group_size: what has a scale of its own: the weight, a row, or so many columns of a row.
        activations: None where they are not quantized; "int8" by token, "int8-static" by an input scale, "fp8" in
            floats of eight bits, to which they are not rounded here.
    """

    group: str
    dtype: str
    num_bits: int
    packed: bool
    strategy: Strategy
    group_size: int | None
    activations: Activations | None


@dataclass(frozen=True)
class Quantization:
    """Which layers of a model are quantized, and how.

    Attributes:
        targets: of each group, and its scheme.
        ignore: layers that are not.
        sparsity: the format of weights that are pruned as well: "dense", or one of the bitmasks.
    """

    targets: tuple[tuple[tuple[str, ...], Scheme], ...]
    ignore: tuple[str, ...]
    sparsity: str

    def scheme_of(self, layer: str) -> Scheme | None:
        """How a linear layer is quantized, by the name that it has in the checkpoint; None if it is not.

        A name counts more than a pattern, and a pattern more than the class, which is taken to be Linear.
        """
        if any(_matches(layer, target) for target in self.ignore) or "Linear" in self.ignore:
            return None
        for fits in (_is_name, _is_pattern, _is_class):
            for targets, scheme in self.targets:
                if any(fits(layer, target) for target in targets):
                    return scheme
        return None


def parse(config: Mapping[str, Any], where: str) -> Quantization:
    """Read a quantization_config of compressed-tensors.

    Args:
        where: the path of its file, for errors.

    Raises:
        FormatError: it does not have the form of one (`quantization-config`).
        UnsupportedError: it has what would change a product and is not known (`model-quantized`); it names the group.
    """
    return _Parser(where).quantization(config)


def folded(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config for the same tensors after folding: bitmasks are what they stand for, packed ones have a byte each."""
    made = dict(config)
    if isinstance(made.get("sparsity_config"), dict) and made["sparsity_config"]:
        made["sparsity_config"] = {**made["sparsity_config"], "format": "dense"}
    if made.get("format") == "pack-quantized":
        made["format"] = _UNPACKED
    if isinstance(made.get("config_groups"), dict):
        made["config_groups"] = {
            name: {**group, "format": _UNPACKED} if group.get("format") == "pack-quantized" else dict(group)
            for name, group in made["config_groups"].items()
        }
    return made


def by_rows(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config for the same weights once layers hold them: folded, and with a scale for each row at least."""
    made = folded(config)
    for group in (made.get("config_groups") or {}).values():
        weights = group["weights"]
        is_tensor = weights.get("strategy", "tensor") == "tensor" and weights.get("group_size") is None
        if is_tensor:
            group["weights"] = {**weights, "strategy": "channel"}
    return made


class _Parser:
    """Reads a config. `where` is the file that errors name."""

    def __init__(self, where: str) -> None:
        self._where = where

    def quantization(self, config: Mapping[str, Any]) -> Quantization:
        for name, value in config.items():
            # what is not an object, and not known, says how the model was made: a version, a ratio
            if name not in _OF_THE_MODEL and isinstance(value, (dict, list)) and value:
                raise self._unknown(f"it has {name!r}")
        groups = self._object(config.get("config_groups") or {}, "config_groups")
        sparsity = self._object(config.get("sparsity_config") or {}, "sparsity_config").get("format", "dense")
        if sparsity not in ("dense", *_SPARSE):
            raise self._unknown(f"its sparsity_config has the format {sparsity!r}")
        targets = []
        for name, group in groups.items():
            scheme = self._scheme(name, self._object(group, name), config.get("format"))
            targets.append((self._patterns(group.get("targets"), f"the targets of {name!r}"), scheme))
        return Quantization(tuple(targets), self._patterns(config.get("ignore") or [], "ignore"), sparsity)

    def _scheme(self, name: str, group: Mapping[str, Any], of_all: object) -> Scheme:
        for key, value in group.items():
            if key not in ("targets", "weights", "input_activations", "format") and value is not None:
                raise self._unknown(f"group {name!r} has {key!r}")
        inputs = group.get("input_activations")
        if group.get("weights") is None:
            raise self._unknown(f"group {name!r} has no weights that are quantized")
        weights = self._arguments(f"the weights of {name!r}", group["weights"])
        found = group.get("format") or of_all
        kind = weights.get("type", "int")
        if kind not in _FORMATS or found not in _FORMATS[kind]:
            raise self._unknown(f"the weights of {name!r} are of type {kind!r} in the format {found!r}")
        packed, num_bits = found == "pack-quantized", weights.get("num_bits", 8)
        widths = (4, 8) if packed else (8,) if kind == "float" else tuple(range(2, 9))
        if num_bits not in widths or isinstance(num_bits, bool):
            raise self._unknown(f"the weights of {name!r} have {num_bits!r} bits in the format {found!r}")
        if weights.get("dynamic"):
            raise self._unknown(f"the weights of {name!r} are quantized anew each time (dynamic)")
        strategy, size = self._strategy(f"the weights of {name!r}", weights, ("tensor", "channel", "group"))
        activations = None if inputs is None else self._activations(name, kind, inputs)
        dtype = "I8" if kind == "int" else "F8_E4M3"
        return Scheme(name, dtype, num_bits, packed, strategy, size, activations)  # type: ignore[arg-type]

    def _activations(self, name: str, kind: str, arguments: object) -> Activations:
        what = f"the activations of {name!r}"
        inputs = self._arguments(what, arguments)
        of, num_bits = inputs.get("type", "int"), inputs.get("num_bits", 8)
        if of != kind or num_bits != 8:
            raise self._unknown(f"{what} are of type {of!r} and {num_bits!r} bits, and the weights of type {kind!r}")
        strategy, _ = self._strategy(what, inputs, ("token", "tensor"))
        if kind == "float":
            return "fp8"
        if inputs.get("dynamic") is True and strategy == "token":
            return "int8"
        if not inputs.get("dynamic") and strategy == "tensor":
            return "int8-static"
        raise self._unknown(f"{what} have the strategy {strategy!r} and dynamic {inputs.get('dynamic')!r}")

    def _arguments(self, what: str, arguments: object) -> Mapping[str, Any]:
        """The arguments of a quantization, those that are refused whatever it is of aside."""
        given = self._object(arguments, what)
        for key, value in given.items():
            if key not in (*_KNOWN, *_HARMLESS) and value is not None:
                raise self._unknown(f"{what} have {key!r}")
        if given.get("symmetric", True) is not True:
            raise self._unknown(f"{what} are not symmetric: zero points other than 0")
        if given.get("actorder") not in _NO_ORDER:
            raise self._unknown(f"{what} have columns in another order: actorder {given['actorder']!r}")
        if given.get("block_structure") is not None:
            raise self._unknown(f"{what} have scales for blocks of {given['block_structure']!r}")
        return given

    def _strategy(self, what: str, given: Mapping[str, Any], known: tuple[str, ...]) -> tuple[str, int | None]:
        strategy, size = given.get("strategy"), given.get("group_size")
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < -1):
            raise self._invalid(f"{what} have the group_size {size!r}")
        if strategy is None:
            strategy = "tensor" if size is None else "channel" if size == -1 else "group"
        if strategy not in known:
            raise self._unknown(f"{what} have the strategy {strategy!r}")
        if strategy == "group" and (size is None or size < 1):
            raise self._invalid(f"{what} have the strategy 'group' and the group_size {size!r}")
        return strategy, size if strategy == "group" else None

    def _object(self, value: object, what: str) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise self._invalid(f"{what} is {value!r}, not an object")
        return value

    def _patterns(self, value: object, what: str) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(pattern, str) for pattern in value):
            raise self._invalid(f"{what} is {value!r}, not a list of texts")
        for pattern in value:
            if pattern.startswith(_PATTERN):
                self._check_pattern(pattern)
        return tuple(value)

    def _check_pattern(self, pattern: str) -> None:
        if len(pattern) > _MAX_PATTERN or _REPEATED_REPETITION.search(pattern):
            raise self._unknown(f"the pattern {pattern[:_MAX_PATTERN]!r} may take forever to compare")
        try:
            re.compile(pattern.removeprefix(_PATTERN))
        except (re.error, OverflowError, RecursionError) as error:
            raise self._invalid(f"the pattern {pattern!r} is not a regular expression: {error}") from None

    def _invalid(self, message: str) -> FormatError:
        return FormatError("quantization-config", f"{self._where}: the quantization_config: {message}")

    def _unknown(self, message: str) -> UnsupportedError:
        return UnsupportedError(
            "model-quantized", f"{self._where}: the weights are quantized by {METHOD!r} otherwise than known: {message}"
        )


_PATTERN = "re:"
_MAX_PATTERN = 400
_REPEATED_REPETITION = re.compile(r"[*+}][^()]*\)\s*[*+{]")
"""A repetition of what ends with a group that has one: its time doubles with each letter of a name."""


def _is_name(layer: str, target: str) -> bool:
    return target == layer


def _is_pattern(layer: str, target: str) -> bool:
    return target.startswith(_PATTERN) and re.match(target.removeprefix(_PATTERN), layer) is not None


def _is_class(layer: str, target: str) -> bool:
    return target == "Linear"


def _matches(layer: str, target: str) -> bool:
    return _is_name(layer, target) or _is_pattern(layer, target)
