"""Cycles of the kernels' hot loops on processors that need not be at hand, by LLVM's models of them.

    python -m tools.bench.cycles                                          all kernels, for ARM beside AMD's Zen 3
    python -m tools.bench.cycles --cpu neoverse-v1 --kernel bitmask_one_token --kernel bitmask_panel
    python -m tools.bench.cycles --csv cycles.csv

Kernels are compiled by numba's own LLVM (llvmlite) for each processor: for ARM the portable ones with NEON, for Zen 3
those with AVX2. llvm-mca then says how many cycles the hottest loop of each takes if all that it reads is in the
first-level cache and no branch is mispredicted. So this finds code that was compiled badly, and not how fast a product
is.

What is counted is a multiply-add, which is a nonzero (`permuted`) or a position (`bitmask`, `dense`) for one token, or
an element that is written. A loop is red if it calls a function, spills (stores to or loads from the stack), multiplies
single floats where others multiply vectors, or is slow: it takes more than 2.5 times the cycles of Zen 3, whose vectors
are twice as wide.

llvm-mca of LLVM 17 or later is needed (Debian and Ubuntu: package llvm-19; LLVM_MCA=PATH names another): older ones
have models of older cores.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import click
from rich.console import Console
from rich.table import Table

from tools.bench.cycles_code import ELEMENT, PROCESSORS, X86, kernels
from tools.bench.harness import wide_console

OLDEST_LLVM = 17
PACKAGE = "llvm-19"
"""Debian's, with llvm-mca."""

BASELINE = "znver3"
MOST = 2.5
"""Times the cycles of BASELINE from which on a loop is red."""

ITERATIONS = 200


class NoMCA(Exception):
    """llvm-mca is missing or too old; says what to install."""


@dataclass(frozen=True)
class Found:
    """What a hot loop has, and takes.

    Attributes:
        unit: what is counted, of which there are `units` in one turn of the loop.
        cycles: for one unit.
        spills: stores to the stack and loads from it.
        scalar: fused multiply-adds of single floats, in one turn.
    """

    cpu: str
    kernel: str
    kind: str
    unit: str
    units: int
    instructions: int
    cycles: float
    calls: int
    spills: int
    scalar: int

    def faults(self, baseline: float) -> list[str]:
        """Why it is red, if it is."""
        named = (("call", self.calls), ("spill", self.spills), ("scalar fma", self.scalar))
        found = [f"{number} {name}{'s' if number > 1 else ''}" for name, number in named if number]
        return [*found, "slow"] if self.cycles > MOST * baseline else found


@cache
def mca() -> str:
    """The newest llvm-mca. Raises NoMCA."""
    named = os.environ.get("LLVM_MCA")
    places = [named] if named else [*map(str, Path("/usr/lib").glob("llvm-*/bin/llvm-mca")), shutil.which("llvm-mca")]
    versions = {}
    for place in filter(None, places):
        try:
            said = subprocess.run([place, "--version"], capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            continue
        version = re.search(r"LLVM version (\d+)", said)
        versions[int(version[1]) if version else 0] = place
    if not versions or max(versions) < OLDEST_LLVM:
        has = f"llvm-mca here is of LLVM {max(versions)}" if versions else "llvm-mca is missing"
        raise NoMCA(f"{has}; LLVM {OLDEST_LLVM} or later is needed, such as Debian's package {PACKAGE}")
    return versions[max(versions)]


def assemblies(cpu: str, names: list[str]) -> dict[str, str]:
    """Assembly of kernels, named as in `kernel/kind`, for a processor."""
    done = subprocess.run(
        [sys.executable, "-m", "tools.bench.cycles_code", cpu, *names], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise click.ClickException(f"kernels could not be compiled for {cpu}:\n{done.stderr}")
    found: dict[str, str] = json.loads(done.stdout)
    return found


_LABEL = re.compile(r"([.\w]+):")
_BRANCH = re.compile(r"(?P<how>j\w+|b|b\.\w+|cbn?z|tbn?z) .*?(?P<target>\.\w+)$")
_END = re.compile(r"(ret|jmp|b|br|ud2|brk)\b(?!\.)")


class _Block:
    """Instructions that are run one after the other, and the blocks that may come next. `entry`: of a function."""

    def __init__(self, entry: bool = False) -> None:
        self.lines: list[str] = []
        self.next: list[int] = []
        self.entry = entry


def _blocks(assembly: str) -> list[_Block]:
    """The basic blocks of a file's functions, as they lie."""
    blocks, labels, targets = [_Block(entry=True)], {}, []
    for line in assembly.splitlines():
        text = re.sub(r"\s*(//| # ).*|^\s*#.*", "", line).strip().replace("\t", " ")
        if label := _LABEL.match(line):
            labels[label[1]] = len(blocks)
            blocks.append(_Block(entry=not label[1].startswith(".")))
        elif line.startswith("\t") and text and not text.startswith("."):
            blocks[-1].lines.append(text)
            if branch := _BRANCH.match(text):
                targets.append((len(blocks) - 1, branch["target"]))
                blocks.append(_Block())
    for number, block in enumerate(blocks[:-1]):
        if not block.lines or not _END.match(block.lines[-1]):
            block.next.append(number + 1)
    for number, target in targets:
        if target in labels:
            blocks[number].next.append(labels[target])
    return blocks


class Loop(NamedTuple):
    """Instructions of a loop, those of the loops in it included, and without these; in how many loops it lies, with
    itself."""

    lines: list[str]
    own: list[str]
    depth: int


def loops_of(assembly: str) -> list[Loop]:
    """All loops."""
    blocks = _blocks(assembly)
    everything, waiting = set[int](), [number for number, block in enumerate(blocks) if block.entry]
    while waiting:
        if (number := waiting.pop()) not in everything:
            everything.add(number)
            waiting += blocks[number].next
    before: dict[int, list[int]] = {number: [] for number in everything}
    for number in everything:
        for following in blocks[number].next:
            before[following].append(number)
    # blocks through which every way to a block leads
    ways = {number: {number} if blocks[number].entry else everything for number in everything}
    changed = True
    while changed:
        changed = False
        for number in everything:
            if not blocks[number].entry:
                found = set.intersection(*(ways[other] for other in before[number])) | {number}
                changed |= found != ways[number]
                ways[number] = found
    loops: dict[int, set[int]] = {}
    for number in sorted(everything):
        for head in blocks[number].next:
            if head in ways[number]:
                body, waiting = loops.setdefault(head, {head}), [number]
                while waiting:
                    if (one := waiting.pop()) not in body:
                        body.add(one)
                        waiting += before[one]
    bodies = list(loops.values())

    def lines(numbers: set[int]) -> list[str]:
        return [line for number in sorted(numbers) for line in blocks[number].lines]

    return [
        Loop(
            lines(body),
            lines(body.difference(*(other for other in bodies if other < body))),
            sum(body <= other for other in bodies),
        )
        for body in bodies
    ]


def _lanes(line: str, x86: bool) -> int:
    """Floats that a fused multiply-add takes, or products of bytes that are added up; 0 for other instructions."""
    if x86:
        if line.startswith("vpmaddubsw"):
            return 32 if "%ymm" in line else 16
        if not re.match(r"vfn?madd\d+", line):
            return 0
        if re.match(r"vfn?madd\d+s", line):
            return 1
        return 8 if "%ymm" in line else 16 if "%zmm" in line else 4
    if line.startswith("sdot"):
        return 16
    if re.match(r"fml[as] ", line):
        vector = re.search(r"v\d+\.(\d)([sd])", line)
        return int(vector[1]) if vector else 1
    return 1 if line.startswith("fmadd") else 0


def _stored_bytes(line: str, x86: bool) -> int:
    """Bytes of vectors or floats that an instruction writes, not to the stack."""
    if on_stack(line, x86):
        return 0
    if x86:
        store = re.match(r"v?mov\w+ (%[xyz]mm)\d+, .*\(|vextract\w+ \$\d, (%)ymm\d+, .*\(", line)
        if not store:
            return 0
        if store[2]:
            return 16
        wide = {"%xmm": 16, "%ymm": 32, "%zmm": 64}[store[1]]
        return {"ss": 4, "lp": 8, "hp": 8}.get(line.split()[0][-2:], 8 if line.split()[0].endswith("sd") else wide)
    size = {"q": 16, "d": 8, "s": 4, "w": 4}
    if single := re.match(r"(st(?:u?r|p)) ([qdsw])", line):
        return size[single[2]] * (2 if single[1] == "stp" else 1)
    if lane := re.match(r"st1 \{ v\d+\.([sd]) \}", line):
        return size[lane[1]]
    if several := re.match(r"st([1-4]) \{(.*)\}", line):
        return sum(16 if "16b" in v or "4s" in v or "2d" in v or "8h" in v else 8 for v in several[2].split(","))
    return 0


def on_stack(line: str, x86: bool) -> bool:
    """Whether an instruction reads or writes at the stack pointer: a spill, in a loop."""
    return bool(re.search(r"\(%rsp[,)]" if x86 else r"\[sp\b", line)) and not line.startswith("lea")


def hottest(assembly: str, unit: str, x86: bool) -> list[str]:
    """The loop that itself has the most of what is counted; of several, that which lies deepest."""

    def amount(loop: Loop) -> tuple[int, int, int]:
        return units_of(loop.own, unit, x86), loop.depth, -len(loop.lines)

    return max(loops_of(assembly), key=amount).lines


def units_of(loop: list[str], unit: str, x86: bool) -> int:
    if unit == ELEMENT:
        return sum(_stored_bytes(line, x86) for line in loop) // 4
    return sum(_lanes(line, x86) for line in loop)


def cycles_of(loop: list[str], cpu: str) -> float:
    """Cycles of one turn of a loop, by llvm-mca."""
    triple, features, model = PROCESSORS[cpu]
    command = [mca(), f"-mtriple={triple}", f"-mcpu={model}", f"-iterations={ITERATIONS}", "-json"]
    if features:
        command.append(f"-mattr={features}")
    # jumps lead nowhere: a label for each
    targets = {match for line in loop for match in re.findall(r"\.L\w+", line)}
    text = "\n".join([*loop, *(f"{target}:" for target in targets if target.startswith(".LBB"))])
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"llvm-mca for {cpu}:\n{done.stderr}")
    (region,) = json.loads(done.stdout)["CodeRegions"]
    return float(region["SummaryView"]["TotalCycles"]) / ITERATIONS


def measure(cpu: str, name: str, assembly: str, unit: str) -> Found:
    """Look at the hottest loop of a kernel."""
    x86 = PROCESSORS[cpu].triple == X86
    loop = hottest(assembly, unit, x86)
    kernel, kind = name.split("/")
    units = units_of(loop, unit, x86)
    return Found(
        cpu, kernel, kind, unit, units, len(loop),
        cycles_of(loop, cpu) / max(1, units),
        calls=sum(bool(re.match(r"call|blr? ", line)) for line in loop),
        spills=sum(on_stack(line, x86) for line in loop),
        scalar=sum(_lanes(line, x86) == 1 for line in loop),
    )  # fmt: skip


def show(found: list[Found], console: Console) -> int:
    """A table: cycles of each processor, and what is red. Returns how many loops are red."""
    by_name: dict[tuple[str, str], dict[str, Found]] = {}
    for one in found:
        by_name.setdefault((one.kernel, one.kind), {})[one.cpu] = one
    cpus = [cpu for cpu in PROCESSORS if any(one.cpu == cpu for one in found) and cpu != BASELINE]
    table = Table("loop", "values", "cycles for each", BASELINE, *cpus)
    count = 0
    for (kernel, kind), by_cpu in by_name.items():
        base = by_cpu[BASELINE]
        cells = []
        for cpu in cpus:
            one = by_cpu[cpu]
            red = one.faults(base.cycles)
            count += bool(red)
            text = f"{one.cycles:.3f} ({one.cycles / base.cycles:.1f})"
            cells.append(f"[red]{', '.join([text, *red])}[/red]" if red else text)
        table.add_row(kernel, kind, base.unit, f"{base.cycles:.3f}", *cells)
    console.print(table)
    return count


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--cpu", "cpus", multiple=True, type=click.Choice([cpu for cpu in PROCESSORS if cpu != BASELINE]))
@click.option("--kernel", "wanted", multiple=True, help="Names of loops, all by default.")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(["F32", "BF16", "F16", "INT8", "DOTS"]))
@click.option("--csv", "csv_path", type=click.Path(dir_okay=False, path_type=Path))
def main(cpus: tuple[str, ...], wanted: tuple[str, ...], kinds: tuple[str, ...], csv_path: Path | None) -> None:
    try:
        tool = mca()
    except NoMCA as error:
        raise click.ClickException(str(error)) from error
    table = kernels()
    if unknown := set(wanted) - set(table):
        raise click.BadParameter(f"{', '.join(sorted(unknown))}: there are {', '.join(table)}", param_hint="--kernel")
    names = [
        f"{name}/{kind}"
        for name, kernel in table.items()
        for kind in kernel.kinds
        if (not wanted or name in wanted) and (not kinds or kind in kinds)
    ]
    found = []
    for cpu in (BASELINE, *(cpus or [cpu for cpu in PROCESSORS if cpu != BASELINE])):
        for name, assembly in assemblies(cpu, names).items():
            found.append(measure(cpu, name, assembly, table[name.split("/")[0]].unit))
    console = wide_console()
    console.print(f"Compiled by llvmlite, counted by {tool}.")
    red = show(found, console)
    console.print(f"{red} loops are red.")
    if csv_path is not None:
        with csv_path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(asdict(found[0])))
            writer.writeheader()
            writer.writerows(map(asdict, found))


if __name__ == "__main__":
    main()
