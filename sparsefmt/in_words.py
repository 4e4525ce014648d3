"""Numbers and names as people read them, in tables of the terminal and on pages."""

from __future__ import annotations

import re


def printable(text: str) -> str:
    """One line without control characters. Those in a name or a path are spelled out."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def size(nbytes: int) -> str:
    """Bytes in decimal units, three digits: "1.23 GB"."""
    if nbytes < 1000:
        return f"{nbytes} B"
    value = float(nbytes)
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if value < 999.5 or unit == "TB":
            break
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"


def ratio(before: int, after: int) -> str:
    """How many times smaller `after` is: "2.50x"."""
    return f"{before / after:.2f}x" if after else "-"


def percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "-"


def share(part: int, whole: int) -> str:
    """A percentage that says all or nothing only if it is that. "" of nothing at all."""
    if part in (0, whole) or not whole:
        return "" if not whole else "100%" if part else "0%"
    rounded = round(100 * part / whole, 1)
    return "<0.1%" if rounded <= 0 else ">99.9%" if rounded >= 100 else f"{rounded:.1f}%"


def shape(sizes: tuple[int, ...], row_dims: int = 1) -> str:
    """ "4096x1024"; "8x(14336x4096)" for a stack of matrices, and "scalar" for no dimensions."""
    if row_dims > 1:
        return f"{shape(sizes[: row_dims - 1])}x({shape(sizes[row_dims - 1 :])})"
    return "x".join(map(str, sizes)) if sizes else "scalar"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def pattern(name: str) -> str:
    """The name with numbers replaced by *. Tensors with the same role in different layers share it."""
    return re.sub(r"\d+", "*", name)
