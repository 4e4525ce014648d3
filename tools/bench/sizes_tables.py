"""The tables that `sizes.py` prints: a table for each file, and one that compares the files.

The tool imports this file; it is not a program.
"""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tools.bench.sizes_bounds import BY_DENSITY, INDEPENDENT
from tools.bench.sizes_rows import Row

OURS = "sparsefmt auto"

PCODEC = ("pcodec dense", "bitmap + zstd + pcodec")


def ratios(rows: list[Row]) -> dict[str, tuple[str, float]]:
    """Of one file: what ours is compared with, and our bytes over those."""
    sizes = {row.contender: row.bytes for row in rows}
    peers = {row.contender: row.bytes for row in rows if row.kind == "peer"}
    if OURS not in sizes:
        return {}
    rivals = {"the smallest peer": min(peers, key=peers.__getitem__)} if peers else {}
    if set(PCODEC) <= set(sizes):
        rivals["pcodec, with or without bitmap"] = min(PCODEC, key=sizes.__getitem__)
    rivals |= {name: name for name in (INDEPENDENT, BY_DENSITY)}
    return {what: (name, sizes[OURS] / sizes[name]) for what, name in rivals.items()}


def summary(rows: list[Row]) -> str:
    """Of one file: ours beside the smallest peer and the bounds."""
    found = ratios(rows)
    parts = []
    if "the smallest peer" in found:
        name, ratio = found["the smallest peer"]
        parts.append(f"{abs(1 - ratio):.1%} {'smaller' if ratio <= 1 else 'larger'} than the smallest peer ({name})")
    parts += [f"{ratio:.3f} x {name}" for name, ratio in found.values() if name.startswith("bound")]
    return f"{OURS}: {', '.join(parts)}" if parts else ""


def print_table(console: Console, rows: list[Row], memory: bool) -> None:
    first = rows[0]
    size = f"{first.tensors} tensor(s), {first.dense_bytes / 1e6:,.1f} MB, {first.threads} thread(s)"
    table = Table(
        title=f"{escape(first.file)}: {size}",
        caption=summary(rows),
        box=box.SIMPLE_HEAD,
    )
    table.add_column("")
    headings = ["bytes", "ratio", "bits per\nelement", "encode\nMB/s", "decode\nMB/s"]
    for heading in headings + ["encode\npeak MB", "decode\npeak MB"] * memory:
        table.add_column(heading, justify="right")
    for before, row in zip([None, *rows], rows, strict=False):
        if before is not None and before.kind != row.kind and {before.kind, row.kind} & {"ours", "bound"}:
            table.add_section()
        measured = [row.encode_mb_per_s, row.decode_mb_per_s]
        measured += [row.encode_peak_mb, row.decode_peak_mb] * memory
        label = f"{row.contender}  ({row.note})" if row.note else row.contender
        table.add_row(
            f"[bold]{label}[/bold]" if row.contender == OURS else label,
            f"{row.bytes:,.0f}",
            f"{row.over_safetensors:.4f}",
            f"{row.bits_per_element:.3f}",
            *("" if value is None else f"{value:,.1f}" if value < 10 else f"{value:,.0f}" for value in measured),
        )
    console.print(table)


def print_summary(console: Console, rows: list[Row]) -> None:
    """A line for each of several files."""
    by_file: dict[str, list[Row]] = {}
    for row in rows:
        by_file.setdefault(row.file, []).append(row)
    compared = {file: ratios(of_file) for file, of_file in by_file.items()}
    if len(compared) < 2 or not any(compared.values()):
        return
    columns = list(dict.fromkeys(what for found in compared.values() for what in found))
    table = Table(title=f"bytes of {OURS} over those of", box=box.SIMPLE_HEAD)
    for heading in ("", *columns):
        table.add_column(heading, justify="right" if heading else "left")
    for file, found in compared.items():
        cells = [found.get(what, ("", None)) for what in columns]
        table.add_row(
            escape(file),
            *(
                "" if ratio is None else f"{ratio:.3f}" if name == what else f"{ratio:.3f}  ({name})"
                for what, (name, ratio) in zip(columns, cells, strict=True)
            ),
        )
    console.print(table)
