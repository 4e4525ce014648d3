"""The memory that a model takes, measured in a fresh process by `model.py`. Imported by the tool, and run by it.

The process first loads and runs a tiny model of the same kind, so that all code is there and all kernels are compiled.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch

from tools.bench.harness import STATUS, reset_peak, status
from tools.bench.model_cases import Contender, Subject, answer, set_threads


@dataclass(frozen=True)
class Growth:
    """Bytes of resident memory more than before the model was loaded.

    Attributes:
        private: once the model has run, and each tensor has been read: memory of its own.
        mapped: likewise, pages of mapped files, which processes share, and which the system may drop.
        peak: the most on the way there, of both.
    """

    private: int
    mapped: int
    peak: int


def in_fresh_process(subject: Subject, contender: Contender, threads: int) -> Growth | None:
    """None where the system does not say."""
    if not STATUS.exists():
        return None
    request = asdict(subject) | {"folder": str(subject.folder), "contenders": [asdict(contender)]}
    command = [sys.executable, "-m", "tools.bench.model_memory", json.dumps(request), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"a process failed:\n{done.stderr}")
    return Growth(**json.loads(done.stdout.splitlines()[-1]))


def measured(subject: Subject) -> Growth:
    """Load the only contender of a subject, and run it."""
    (contender,) = subject.contenders
    answer(subject, subject.load(contender, tiny=True))
    gc.collect()
    reset_peak()
    before = status()
    model = subject.load(contender)
    answer(subject, model)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.sum()
    after = status()
    private, mapped = (after[field] - before[field] for field in ("RssAnon", "RssFile"))
    return Growth(private, mapped, after["VmHWM"] - before["VmRSS"])


def main() -> None:
    request = json.loads(sys.argv[1])
    contender = Contender(**request["contenders"][0])
    subject = Subject(**{**request, "folder": Path(request["folder"]), "contenders": (contender,)})
    set_threads(int(sys.argv[2]))
    with torch.no_grad():
        print(json.dumps(asdict(measured(subject))))


if __name__ == "__main__":
    main()
