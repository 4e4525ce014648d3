"""Read mutated files with the library and with spec/c/sparsefmt.h, and compare what they say.

    python -m tools.fuzz.c_reader [--seconds 60] [--count N] [--seed 0] [--keep FOLDER] [--no-sanitizers] [--zstd PATH]

Small files of all layouts, codecs and dtypes, and single tensors of spec/vectors/good, are damaged: bits, bytes,
lengths, splices, numbers and names of the index, chunks and models, mostly with checksums and offsets made right again,
so that the damage reaches the code behind them. The C reader, built with the address and undefined behaviour
sanitizers, answers from a process of its own. Both readers have to refuse a file, or to find the same names, dtypes,
shapes, layouts, counts, dense bytes and products in it. Files that disagree go to the folder given by --keep.

Needs gcc or cc. Codec zstd takes part if there is a libzstd of the version that the library uses: another one may
decode frames that this one refuses, or decode invalid frames to other bytes. Exit status: 0 if the readers agree on all
files; 1 if not, or if the C reader stopped; 2 if there is no compiler.

    python -m tools.fuzz.c_reader --corpus FOLDER

only writes small files to start from, for libFuzzer (spec/c/fuzz_target.h): each tensor of spec/vectors/good by itself,
the files of spec/vectors/bad, and random ones.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tools.fuzz.asked import Asked, add_options, asked
from tools.fuzz.c_process import CReader, compiler, find_zstd, has_sanitizers, is_same_zstd
from tools.fuzz.library_answers import ask_library
from tools.fuzz.mutations import MUTATIONS, NOTHING_TO_MUTATE
from tools.fuzz.small_files import CODECS, seeds, write_corpus

MOST_MEMORY = 1 << 33
"""Bytes of addresses that this program may use, so that a file that claims too much shows as an error."""


@dataclass
class Figures:
    """What a run counts."""

    tried: int = 0
    accepted: int = 0
    refused: int = 0
    too_large: int = 0
    disagreements: int = 0
    codes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Codes of the C reader and of the library, where they differ."""
    refusals: Counter[str] = field(default_factory=Counter)

    def add(self, of_c: str, of_library: str) -> bool:
        """Counts what both say of a file. Whether they agree."""
        self.tried += 1
        refused = "\n" not in of_c, "\n" not in of_library
        if refused == (True, True) and not of_library.startswith("raised") and of_c != "stopped":
            self.refused += 1
            self.refusals[of_library] += 1
            if of_c != of_library:
                self.codes[of_c, of_library] += 1
        elif of_c == of_library:
            self.accepted += 1
        else:
            self.disagreements += 1
            return False
        return True

    def text(self) -> str:
        lines = [
            f"files tried                     {self.tried:>10,}",
            f"accepted by both, equal         {self.accepted:>10,}",
            f"refused by both                 {self.refused:>10,}, for {len(self.refusals)} faults",
            f"  of these with another code    {sum(self.codes.values()):>10,}",
            f"too large, read by neither      {self.too_large:>10,}",
            f"disagreements                   {self.disagreements:>10,}",
        ]
        pairs = [f"  {count:>8,}  C {c}, library {library}" for (c, library), count in self.codes.most_common(40)]
        return "\n".join(lines + (["other codes:", *pairs] if pairs else []))


def compare(reader: CReader, data: bytes, figures: Figures) -> tuple[str, str] | None:
    """Ask both. What they say, if they disagree."""
    of_c = reader.ask(data)
    if of_c == "memory":
        figures.tried += 1
        figures.too_large += 1
        return None
    of_library = ask_library(data)
    return None if figures.add(of_c, of_library) else (of_c, of_library)


def run(reader: CReader, asked: Asked, codecs: Sequence[str]) -> Figures:
    """Mutates and compares, until the count or the time is over."""
    rng, figures, end = np.random.default_rng(asked.seed), Figures(), time.monotonic() + asked.seconds
    files: list[bytes] = []
    while (asked.count is None or figures.tried < asked.count) and time.monotonic() < end:
        if figures.tried % 20_000 == 0:
            files = seeds(rng, 200, codecs)
        data, other = files[rng.integers(len(files))], files[rng.integers(len(files))]
        for _ in range(int(rng.choice([1, 1, 1, 2]))):
            mutation = MUTATIONS[rng.integers(len(MUTATIONS))]
            try:
                data = mutation(rng, data, other)
            except NOTHING_TO_MUTATE:
                break  # the first mutation left nothing to take apart
        different = compare(reader, data, figures)
        if different is None:
            continue
        print(f"file {figures.tried}: C {different[0]!r}, library {different[1]!r}", flush=True)
        if asked.keep is not None:
            asked.keep.mkdir(parents=True, exist_ok=True)
            (asked.keep / f"seed{asked.seed}-{figures.tried}.sparsefmt").write_bytes(data)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--no-sanitizers", action="store_true")
    parser.add_argument("--zstd", default=find_zstd(), help="libzstd for the C reader, a path with a slash in it")
    parser.add_argument("--corpus", type=Path, help="only write files to start from to this folder")
    options = parser.parse_args()
    if options.corpus is not None:
        print(f"{write_corpus(options.corpus, options.seed)} files in {options.corpus}")
        return 0
    if compiler() is None:
        print("no C compiler: install gcc, or another that is called cc", file=sys.stderr)
        return 2
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, resource.RLIM_INFINITY))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reader = CReader(folder, not options.no_sanitizers and has_sanitizers(folder), options.zstd)
        codecs = CODECS if is_same_zstd(options.zstd) else ("raw", "rans")
        if codecs != CODECS:
            print(f"without codec zstd, which {options.zstd or 'no library'} may decode in another way")
        figures = run(reader, asked(options), codecs)
        status = reader.close()
    print(figures.text())
    return 1 if figures.disagreements or status else 0


if __name__ == "__main__":
    sys.exit(main())
