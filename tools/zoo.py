"""Take tiny models of many architectures through the whole path, and print what came of each.

    python -m tools.zoo                                every model, in a few minutes
    python -m tools.zoo --only mixtral --only resnet   some of them
    python -m tools.zoo --json > zoo.json

Needs `pip install torch transformers`. Nothing is downloaded: `zoo_models.py` builds models from their configs, with
random weights. `zoo_path.py` has the path.

Each is pruned to 70 %, saved as safetensors, converted, and loaded with its weights compressed. Then its logits are
compared with those of the dense model, and it generates; it is saved again, made dense again, and exported. The exit
code is 1 if a model fails, if bits are lost, or if a pruned weight stays dense and nothing says so.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
import transformers
from rich.console import Console
from rich.table import Table

from tools.zoo_models import MODELS
from tools.zoo_path import Outcome, walk


@click.command(help=(__doc__ or "").partition("\n\n")[0])
@click.option("--only", type=click.Choice(list(MODELS)), multiple=True, metavar="NAME", help="This model; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects instead of a table.")
def main(only: tuple[str, ...], as_json: bool) -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    outcomes: list[Outcome] = []
    for name in only or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            outcome = walk(name, MODELS[name], Path(folder))
        outcomes.append(outcome)
        for text in outcome.wrong:
            print(f"{name}: {text}", file=sys.stderr, flush=True)
    if as_json:
        print(json.dumps([outcome.as_json() for outcome in outcomes], indent=2))
    else:
        Console().print(table(outcomes))
    if any(outcome.wrong for outcome in outcomes):
        sys.exit(1)


def table(outcomes: Sequence[Outcome]) -> Table:
    """A row for each model."""
    made = Table(padding=(0, 0, 0, 1))
    made.add_column("model", no_wrap=True)
    for heading in ("pruned", "compressed", "logits"):
        made.add_column(heading, justify="right", no_wrap=True)
    for heading in ("generates", "saved again", "dequantized", "exported", "dense"):
        made.add_column(heading, overflow="fold")
    for outcome in outcomes:
        made.add_row(*_cells(outcome))
    return made


def _cells(outcome: Outcome) -> list[str]:
    if outcome.failed is not None:
        return [outcome.name, str(outcome.pruned), "", "", "", "", "", "", outcome.failed]
    reasons = dict.fromkeys((outcome.dense or {}).values())
    said = "; ".join([*reasons, *(f"{name}, without a word" for name in outcome.silent or [])])
    return [
        outcome.name,
        str(outcome.pruned),
        share(outcome.share),
        "-" if outcome.difference is None else f"{outcome.difference:.1e}",
        outcome.generates,
        outcome.saved,
        outcome.dequantized,
        outcome.exported,
        said,
    ]


def share(part: float) -> str:
    """In percent, rounded down, so that 100 % is all."""
    return f"{int(100 * part)} %"


if __name__ == "__main__":
    main()
