"""Coverage-guided fuzzing of the library: open, load, check, slice, multiply, save again, whatever the bytes are.

    python -m tools.fuzz.reader [--seconds 60] [--count N] [--seed 0] [--keep FOLDER] [--interpreted]
    python -m tools.fuzz.reader [--interpreted] FILE …      what it makes of these: the way to reproduce a finding

atheris (libFuzzer) starts from the small files of spec/vectors, good and bad, from each tensor of the larger ones in a
file of its own, and from random files, and keeps what reaches new code of sparsefmt. Most mutations take a file apart,
change a chunk, a model, the content of a zstd frame, a number, a name or the structure of the index, and lay it out
again with offsets and checksums that are right, so that the damage reaches codecs, layouts and kernels.

A file has to give tensors, or a SparsefmtError. What gives tensors is read in every layout, sliced, multiplied by a
vector and by a batch, and saved and read again. A finding is any other exception; a death of the process; an input that
takes too long or too much memory; bits that depend on the layout, on the slice or on the batch, or that are lost when
saved; a product that is not that of spec/python; an index that is not canonical. Findings go to the folder given by
--keep, with what was wrong with them.

Jitted passes are compiled with bounds checks (NUMBA_BOUNDSCHECK) in a cache of their own, .cache/fuzz_reader. numba
checks indices of arrays only. What works on addresses is not checked: the kernels' loads and stores
(`kernels/simd.py`, `kernels/expand.py`), what moves elements between dense rows and layouts, of tiles that have been
checked (`layouts/jitted/registers.py`), masks of whole slices on their way to rows (`positions/jitted/masks.py`), and
of `codecs/rans/jitted/` `rans_wide.py`, `rans_avx2.py`, `split_wide.py` and `elements.contexts_of_few_classes`.
SPARSEFMT_ISA=portable has other passes of `codecs/` in their place, which are checked.

libFuzzer sees no branches of compiled code. With --interpreted, passes that decode and check are interpreted, so that
it does; other passes and the kernels stay compiled, since they work on vectors and addresses, and files are smaller,
since that is some hundred times slower.

Needs atheris, of which there are wheels for Linux on x86-64. Exit status: 0 if nothing was found, 1 if something was,
2 if there is no atheris.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import xxhash

from tools import ROOT
from tools.fuzz.asked import Asked, add_options, asked
from tools.fuzz.mutations import MUTATIONS
from tools.fuzz.reader_checks import judge
from tools.fuzz.reader_files import (
    COMPILED,
    CROSSOVERS,
    INTERPRETED,
    OWN_MUTATIONS,
    Sizes,
    can_be_taken_apart,
    mutated,
    mutations_guided_by,
    seeds,
)

MOST_MEMORY = 1 << 33
"""Bytes of addresses that the process may use."""

MOST_SECONDS_OF_ALL = 60
"""By the clock, for one input, compiling included."""

MOST_DEATHS = 10
"""Of the process that reads, after which a run ends."""


# The process that reads

WITH_JITTED_CODE = re.compile(r"^\s*(from|import) (numba|llvmlite|sparsefmt\.(jit|bits_of_words))\b", re.MULTILINE)

PASSES = {
    "sparsefmt.codecs.rans.jitted.models": ("get_tree", "get_frequencies", "get_positive"),
    "sparsefmt.codecs.rans.jitted.rans": ("decode_symbols",),
    "sparsefmt.codecs.rans.jitted.elements": ("join", "contexts_of"),
    "sparsefmt.codecs.rans.jitted.masks": ("contexts_in_slices", "restore_copies", "join"),
    "sparsefmt.layouts.jitted.bitmask": ("check",),
    "sparsefmt.layouts.jitted.gaps": ("check",),
    "sparsefmt.layouts.jitted.permuted": ("check_columns", "check_rows"),
    "sparsefmt.positions.jitted.masks": ("offsets", "from_row_bytes"),
}
"""Passes that decode and check, which --interpreted interprets."""

INTRINSICS: dict[str, Callable[..., Any]] = {
    "popcount": lambda word: np.int64(int(word).bit_count()),
    "lowest_bit": lambda word: np.int64((int(word) & -int(word)).bit_length() - 1),
    "four_of": lambda array, index: array[index : index + 4].astype(np.uint16).view(np.uint64)[0],
    "on_stack": np.zeros,
    "smaller": min,
    "larger": max,
}
"""What stands for intrinsics in interpreted passes."""

PARTS = ("adapters", "codecs", "container", "kernels", "layouts", "positions")
"""Folders of what reads, checks, multiplies and saves."""

PROGRAM = """
import json, sys
import atheris
job = json.loads(sys.argv[1])
sys.path.insert(0, job["root"])
with atheris.instrument_imports(include=["sparsefmt"], exclude=job["not_instrumented"]):
    from tools.fuzz import reader as fuzz_reader
    fuzz_reader.import_all()
fuzz_reader.fuzz(job)
"""
"""The program of that process: what is instrumented has to be imported there."""


def modules() -> dict[str, str]:
    """Names of the modules that read, check, multiply and save, and their texts."""
    folder = ROOT / "sparsefmt"
    found = [*folder.glob("*.py"), *(path for part in PARTS for path in (folder / part).rglob("*.py"))]
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in found}
    return {name: path.read_text() for path, name in names.items() if not name.endswith(("__main__", "torch"))}


def import_all() -> None:
    """Also what the library imports on first use only."""
    for name in modules():
        importlib.import_module(name)


def interpret(instrumented: Callable[[FunctionType], Callable[..., Any]]) -> None:
    """Put functions in the place of the PASSES; compiled ones that are left go on calling compiled ones."""
    for module_name, passes in PASSES.items():
        module = importlib.import_module(module_name)
        names = dict(vars(module))
        for name, value in vars(module).items():
            if hasattr(value, "py_func"):
                of_pass = value.py_func
                names[name] = instrumented(FunctionType(of_pass.__code__, names, name, of_pass.__defaults__))
            elif name in INTRINSICS:
                names[name] = INTRINSICS[name]
        for name in passes:
            setattr(module, name, names[name])


def fuzz(job: dict[str, Any]) -> None:
    """Read inputs until libFuzzer ends the process. Writes their outcomes to a file, and a file for each finding."""
    import atheris

    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, resource.RLIM_INFINITY))
    np.seterr(all="ignore")  # interpreted passes would warn where compiled ones overflow, as they are meant to
    folder, sizes = Path(job["folder"]), Sizes(*job["sizes"])
    if job["interpreted"]:
        interpret(atheris.instrument_func)
    starting = [path.read_bytes() for path in sorted((folder / "seeds").iterdir())]
    others = list(filter(can_be_taken_apart, starting))
    known, kinds = set(starting), set()
    outcomes = os.open(folder / "outcomes", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def read(data: bytes) -> None:
        outcome, what = judge(data, sizes.decoded)
        os.write(outcomes, f"{'seed' if data in known else 'mutated'} {outcome}\n".encode())
        # of findings in the same line of the library, one is enough
        kind = tuple(re.findall(r'File "\S+sparsefmt/(\S+)", line (\d+)', what)) or what
        if what and kind not in kinds:
            kinds.add(kind)
            keep_finding(folder / "findings", data, what)

    # looked up when called: atheris exchanges it when it starts
    guided = mutations_guided_by(lambda data, max_size: atheris.Mutate(data, max_size))
    mutations = [*MUTATIONS, *OWN_MUTATIONS, *guided]

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = np.random.default_rng(seed)
        changed = mutated(mutations, rng, data, others[rng.integers(len(others))], max_size)
        return atheris.Mutate(data, max_size) if changed is None else changed

    def cross(data: bytes, other: bytes, max_size: int, seed: int) -> bytes:
        changed = mutated(CROSSOVERS, np.random.default_rng(seed), data, other, max_size)
        return data[:max_size] if changed is None else changed

    for data in starting:
        judge(data, sizes.decoded)  # compiles what most inputs will use
    atheris.Setup(["fuzz_reader", *job["arguments"]], read, custom_mutator=mutate, custom_crossover=cross)
    atheris.Fuzz()


def keep_finding(folder: Path, data: bytes, what: str) -> None:
    name = xxhash.xxh64_hexdigest(data)
    (folder / f"{name}.sparsefmt").write_bytes(data)
    (folder / f"{name}.txt").write_text(what)


# The process that starts it


@dataclass
class Figures:
    """What a run counts."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """Of mutated inputs: "read", codes, "finding"."""
    seeds: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    """What they are, and where they are kept."""
    deaths: int = 0
    seconds: float = 0.0
    coverage: int = 0
    features: int = 0
    kept: int = 0
    """Inputs that libFuzzer kept for what they reached."""

    @property
    def inputs(self) -> int:
        return self.outcomes.total() + self.seeds.total()

    def text(self) -> str:
        refused = {code: n for code, n in self.outcomes.most_common() if code not in ("read", "finding")}
        mutated = self.outcomes.total()
        codes = "".join(f"\n  {count:>10,}  {code}" for code, count in refused.items())
        return "\n".join(
            [
                f"inputs                   {self.inputs:>12,}  in {self.seconds:,.0f} s",
                f"  to start from          {self.seeds.total():>12,}, {self.seeds['read']:,} of them read",
                f"  mutated                {mutated:>12,}",
                f"    read, and all equal  {self.outcomes['read']:>12,}",
                f"    refused              {sum(refused.values()):>12,}, for {len(refused)} faults",
                f"coverage                 {self.coverage:>12,} edges, {self.features:,} features",
                f"  inputs kept for it     {self.kept:>12,}",
                f"deaths of the process    {self.deaths:>12,}",
                f"findings                 {len(self.findings):>12,}",
                f"refused mutated inputs by code:{codes}",
            ]
        )


def run(
    asked: Asked, interpreted: bool = False, starting: Sequence[bytes] | None = None, program: str = PROGRAM
) -> Figures:
    """Fuzz in a process of its own, and in another if it died, until the count or the time is over.

    Args:
        starting: files to start from, instead of `seeds`.
        program: what the process runs.
    """
    figures, started, sizes = Figures(), time.monotonic(), sizes_of(interpreted)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("seeds", "corpus", "findings"):
            (folder / part).mkdir()
        for number, data in enumerate(seeds(asked.seed, sizes.file) if starting is None else starting):
            (folder / "seeds" / f"{number:04}.sparsefmt").write_bytes(data)
        while figures.deaths < MOST_DEATHS:
            left = asked.seconds - (time.monotonic() - started)
            runs = None if asked.count is None else max(0, asked.count - figures.inputs)
            if left <= 0 or runs == 0:
                break
            job = job_of(folder, Asked(asked.seed + figures.deaths, runs, left), interpreted)
            if not dies(job, program, figures):
                break
        figures.seconds = time.monotonic() - started
        collect_findings(folder / "findings", asked.keep, figures)
    return figures


def sizes_of(interpreted: bool) -> Sizes:
    return INTERPRETED if interpreted else COMPILED


def job_of(folder: Path, asked: Asked, interpreted: bool) -> dict[str, Any]:
    """What the process needs to know."""
    sizes, runs = sizes_of(interpreted), -1 if asked.count is None else asked.count
    arguments = [
        *(str(folder / "corpus"), str(folder / "seeds"), f"-artifact_prefix={folder}/findings/"),
        *(f"-seed={asked.seed + 1}", f"-runs={runs}", f"-max_total_time={max(1, round(asked.seconds))}"),
        f"-max_len={sizes.file}",
        *(f"-timeout={MOST_SECONDS_OF_ALL}", "-report_slow_units=1000", "-rss_limit_mb=4096", "-reload=0"),
        "-mutate_depth=2",  # of more mutations, one leaves nothing that can be taken apart
    ]
    return {
        "root": str(ROOT),
        "not_instrumented": [name for name, text in modules().items() if WITH_JITTED_CODE.search(text)],
        "folder": str(folder),
        "sizes": sizes,
        "interpreted": interpreted,
        "arguments": arguments,
    }


def environment(interpreted: bool) -> dict[str, str]:
    """With bounds checks, in a cache of their own: numba's does not tell code with them from code without."""
    variables = {
        **os.environ,
        "NUMBA_BOUNDSCHECK": "1",
        "NUMBA_CACHE_DIR": str(ROOT / ".cache" / "fuzz_reader"),
        "SPARSEFMT_NUM_THREADS": "1",
    }
    # passes in place of those that work on addresses
    return {**variables, "SPARSEFMT_ISA": "portable"} if interpreted else variables


def dies(job: dict[str, Any], program: str, figures: Figures) -> bool:
    """Whether the process dies before it is done. Adds what it did to the figures."""
    folder = Path(job["folder"])
    outcomes = folder / "outcomes"
    outcomes.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(job)],
        env=environment(job["interpreted"]),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    for line in outcomes.read_text().splitlines() if outcomes.exists() else ():
        origin, outcome = line.split()
        (figures.seeds if origin == "seed" else figures.outcomes)[outcome] += 1
    for found in re.finditer(r"cov: (\d+) ft: (\d+) corp: (\d+)", done.stderr):
        figures.coverage, figures.features, figures.kept = map(int, found.groups())
    if done.returncode == 0:
        return False
    figures.deaths += 1
    said = [line for line in done.stderr.splitlines() if not line.startswith(("INFO", "#", "WARNING"))]
    text = "\n".join([f"the process died with {done.returncode}", *said[-60:]])
    (folder / "findings" / f"death-{figures.deaths}.txt").write_text(text)
    return True


def collect_findings(folder: Path, keep: Path | None, figures: Figures) -> None:
    """Move them to where they are kept. libFuzzer writes the input of a death to a file of its own."""
    for path in sorted(folder.iterdir()):
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, keep)
        if path.suffix == ".txt":
            figures.findings.append(f"{path.stem}: {path.read_text()}")


def read_files(files: Sequence[Path], interpreted: bool) -> int:
    """Print what becomes of each, with bounds checks. A death of this process is a finding, too."""
    if os.environ.get("NUMBA_BOUNDSCHECK") != "1":
        return 1 if subprocess.run([sys.executable, *sys.argv], env=environment(interpreted)).returncode else 0
    if interpreted:
        interpret(lambda function: function)
    found = False
    for path in files:
        outcome, what = judge(path.read_bytes(), sizes_of(interpreted).decoded)
        print(f"{path}: {outcome}\n{what}".strip(), flush=True)
        found |= outcome == "finding"
    return int(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="read these, and do not fuzz")
    add_options(parser)
    parser.add_argument("--interpreted", action="store_true", help="interpret the passes that decode and check")
    options = parser.parse_args()
    if options.files:
        return read_files(options.files, options.interpreted)
    if importlib.util.find_spec("atheris") is None:
        print("no atheris: python -m pip install atheris", file=sys.stderr)
        return 2
    figures = run(asked(options), options.interpreted)
    print(figures.text())
    for finding in figures.findings:
        print(f"\n{finding}")
    if figures.findings and options.keep is None:
        print("\nto keep the files of the findings, run it again with --keep FOLDER")
    elif figures.findings:
        mode = " --interpreted" if options.interpreted else ""
        print(f"\nto reproduce: python -m tools.fuzz.reader{mode} FILE, with a file of {options.keep}")
    return 1 if figures.findings else 0


if __name__ == "__main__":
    sys.exit(main())
