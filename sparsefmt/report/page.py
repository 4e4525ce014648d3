"""Makes the page: one HTML file that asks for nothing from elsewhere. Whatever comes from a model is text in it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from importlib import resources
from math import floor
from types import SimpleNamespace
from typing import Any

import numpy as np

from sparsefmt import __version__
from sparsefmt.in_words import percent, plural, printable, ratio, shape, size
from sparsefmt.patterns import Change, Pattern
from sparsefmt.report import charts, pictures
from sparsefmt.report.contents import Contents
from sparsefmt.report.figures import CLOSE_UP, Figures, Picture
from sparsefmt.report.layers import layers_of
from sparsefmt.report.tensors import Group, Tensor

MOST_CARDS = 60
"""The most groups that have charts."""

MOST_TENSORS = 8000
"""The most tensors that are listed one by one. If there are more, these are the largest."""

MOST_FINE = 24
"""The most pictures of masks with all of their boxes; others have half as many in each direction. One of noise takes
14 to 42 kB."""

LONGEST_NAME = 160
"""Characters of a name or a text that are shown."""

PRUNED_FROM = 0.01
"""Share of zeros from which on a matrix counts as pruned: a few zeros are chance."""

SMALL_PART = 0.005
"""Share of all bytes below which groups of vectors are one row."""

MOST_NAMED = 20
"""The most sentences on tensors that cannot be compared."""

NOTHING, TIMES = "\u2013", "\u00d7"

Progress = Callable[[int], object]
"""Called with 1 for each group that is drawn."""


def page_of(contents: Contents, progress: Progress | None = None) -> str:
    """The page as HTML.

    Raises:
        ImportError: jinja2 or matplotlib is missing.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("sparsefmt.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "breakable": breakable,
        "depth": _depth,
        "exact_percent": exact_percent,
        "name": name_in_page,
        "number": number,
        "percent": percent,
        "plural": plural,
        "shape": shape,
        "share": _share,
        "size": size,
        "thousands": "{:,}".format,
        "whole_percent": lambda share: exact_percent(share, 0).removesuffix("%"),
    }
    style = (resources.files("sparsefmt.report") / "page.css").read_text()
    template = environment.get_template("page.html.jinja")
    return template.render(contents=contents, page=_Page(contents, progress), version=__version__, css=Markup(style))


def name_in_page(text: str) -> str:
    """A name as it is shown: of one that is too long, both ends; characters that cannot be seen are spelled out."""
    if len(text) <= LONGEST_NAME:
        return printable(text)
    ends = printable(text[: LONGEST_NAME * 2 // 3]), printable(text[-LONGEST_NAME // 4 :])
    return f"{ends[0]} … {ends[1]} ({len(text):,} characters)"


def breakable(text: str) -> Any:
    """A name as it is shown, which may be broken after dots and underscores."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([._])(?=.)", r"\1<wbr>", str(escape(name_in_page(text)))))


def number(value: float) -> str:
    """Three digits. Lines are not broken within it."""
    return f"{value:.3g}".replace("e-", "e\N{NON-BREAKING HYPHEN}")


def exact_percent(share: float, digits: int = 2) -> str:
    """In percent; less than all is never rounded to 100 %, nor more than nothing to 0."""
    found = floor(share * 100 * 10**digits + 0.5) / 10**digits
    least = 10.0**-digits
    if share < 1:
        found = min(found, 100 - least)
    if share > 0:
        found = max(found, least)
    return f"{found:.{digits}f}%" if found not in (0, 100) else f"{found:.0f}%"


def _share(part: int, whole: int) -> float:
    """For the width of a bar, in percent."""
    return round(100 * part / whole, 2) if whole else 0.0


def _depth(share: float) -> str:
    """How dark a cell is: which text can be read on it depends on that (page.css)."""
    return "deep" if share >= 0.64 else "middle" if share >= 0.48 else "shallow"


def _finding(text: str, is_warning: bool = False) -> SimpleNamespace:
    return SimpleNamespace(text=text, is_warning=is_warning)


class _Page:
    """What the template shows, in the order in which it does."""

    def __init__(self, contents: Contents, progress: Progress | None) -> None:
        self._contents = contents
        tensors = contents.tensors
        groups = sorted(contents.groups, key=lambda group: -group.dense_nbytes)
        elements = sum(tensor.elements for tensor in tensors)
        self.summary = (
            f"{contents.kind}: {plural(len(tensors), 'tensor')} in {plural(len(contents.files), 'file')}, "
            f"{plural(elements, 'element')}"
        )
        self.totals = _totals(contents)
        self.findings = [*_findings(contents), *map(_finding, contents.special)]
        if contents.refused:
            self.findings.append(_finding(f"It cannot be stored as .sparsefmt: {contents.refused}.", True))
        self.most = max((group.dense_nbytes for group in groups), default=0)
        ids = {id(group): f"group-{place}" for place, group in enumerate(_with_charts(groups), 1)}
        self.groups = [_row_of(group, ids.get(id(group), "")) for group in _in_table(groups)]
        self.layers = layers_of(sorted(tensors, key=lambda tensor: tensor.name))
        painter = charts.Painter() if ids else None
        self.cards = []
        drawn = 0
        for group in _with_charts(groups):
            assert painter is not None
            self.cards.append(_card_of(group, ids[id(group)], painter, MOST_FINE - drawn))
            drawn += len(self.cards[-1].pictures)
            if progress:
                progress(1)
        self.reasons = _reasons(tensors)
        self.speed = _speed_of(contents)
        self.comparison = _comparison_of(contents, groups)
        listed = sorted(tensors, key=lambda tensor: -tensor.dense_nbytes)[:MOST_TENSORS]
        self.tensors = sorted(listed, key=lambda tensor: tensor.name)
        self.tensors_left_out = len(tensors) - len(listed)


def _in_table(groups: list[Group]) -> list[Group]:
    """The groups that have a row in the table of bytes. Small ones of vectors, if there are several, share the last."""
    least = SMALL_PART * sum(group.dense_nbytes for group in groups)
    small = [
        group
        for group in groups
        if group.dense_nbytes < least and all(len(tensor.shape) < 2 for tensor in group.tensors)
    ]
    if len(small) < 2:
        return groups
    tensors = [tensor for group in small for tensor in group.tensors]
    others = [group for group in groups if group not in small]
    return [*others, Group(f"{len(small):,} small groups of vectors", tensors)]


def cards_in(contents: Contents) -> int:
    """How many groups will be drawn."""
    return len(_with_charts(contents.groups))


def _with_charts(groups: list[Group]) -> list[Group]:
    return [group for group in groups if group.figures is not None][:MOST_CARDS]


def _totals(contents: Contents) -> list[SimpleNamespace]:
    tensors = contents.tensors
    dense = sum(tensor.dense_nbytes for tensor in tensors)
    memory = sum(tensor.stored.memory_nbytes for tensor in tensors if tensor.stored)
    readable = sum(tensor.elements for tensor in tensors if tensor.is_readable)
    zeros = sum(tensor.zeros for tensor in tensors)
    pruned = [tensor for tensor in tensors if len(tensor.shape) > 1 and _is_pruned(tensor)]
    inside = percent(sum(t.zeros for t in pruned), sum(t.elements for t in pruned))
    made = [
        SimpleNamespace(
            what="this file" if contents.is_ours else "as .sparsefmt",
            number=size(contents.made_nbytes),
            more=f"{ratio(dense, contents.made_nbytes)} smaller",
        ),
        SimpleNamespace(what="in memory", number=size(memory), more=f"{ratio(dense, memory)} smaller"),
    ]
    found = [
        SimpleNamespace(what="dense", number=size(dense), more=""),
        *([] if contents.refused else made),
        SimpleNamespace(
            what="zeros",
            number=percent(zeros, readable),
            more=f"{inside} of {plural(len(pruned), 'pruned tensor')}" if pruned else "",
        ),
    ]
    if contents.tied:
        found.append(SimpleNamespace(what="second names", number=f"{contents.tied:,}", more="of tensors listed here"))
    return found


def _findings(contents: Contents) -> list[SimpleNamespace]:
    """Sentences on all matrices: what was pruned, and whether it is faster."""
    matrices = [tensor for tensor in contents.tensors if tensor.pattern and len(tensor.shape) > 1 and tensor.elements]
    if not matrices:
        return []
    pruned = [tensor for tensor in matrices if _is_pruned(tensor)]
    kinds = Counter(tensor.pattern.label for tensor in pruned if tensor.pattern)
    found = []
    if pruned:
        parts = [f"{label} ({count:,})" for label, count in kinds.most_common(6)]
        others = len(pruned) - sum(count for _, count in kinds.most_common(6))
        parts += [f"others ({others:,})"] if others else []
        found.append(
            _finding(
                f"{len(pruned):,} of {len(matrices):,} {'matrix is' if len(matrices) == 1 else 'matrices are'} pruned: "
                f"{', '.join(parts)}."
            )
        )
    if few := sum(tensor.zeros > 0 and not _is_pruned(tensor) for tensor in matrices):
        found.append(_finding(f"{few:,} {'has' if few == 1 else 'have'} zeros, but less than {PRUNED_FROM:.0%}."))
    if whole := sum(not tensor.zeros for tensor in matrices):
        found.append(_finding(f"{whole:,} {'has' if whole == 1 else 'have'} no zeros at all."))
    partial = [tensor for tensor in matrices if tensor.pattern and tensor.pattern.share < 1]
    if partial:
        worst = min(partial, key=lambda tensor: tensor.pattern.share if tensor.pattern else 1.0)
        found.append(
            _finding(
                f"{plural(len(partial), 'pattern')} {'does' if len(partial) == 1 else 'do'} not hold for every "
                f"element; the furthest from it is {name_in_page(worst.name)}: {worst.pattern}.",
                True,
            )
        )
    if contents.speed is not None:
        timed = [tensor for tensor in contents.tensors if tensor.times]
        slower = [tensor for tensor in timed if any(times.is_slower for times in tensor.times)]
        if slower:
            found.append(_finding(f"{len(slower):,} of {plural(len(timed), 'layer')} are slower than dense.", True))
        elif timed:
            found.append(_finding(f"None of {plural(len(timed), 'layer')} is slower than dense."))
    return found


def _is_pruned(tensor: Tensor) -> bool:
    return tensor.elements > 0 and tensor.zeros >= PRUNED_FROM * tensor.elements


def _label_of(pattern: Pattern) -> str:
    """The label, but for chance zeros."""
    few = pattern.kind == "unstructured" and pattern.sparsity < PRUNED_FROM
    return "few zeros" if few else pattern.label


def _patterns_of(group: Group) -> str:
    """The patterns of the tensors, the most frequent first; of one that all have, with the least share."""
    patterns = [tensor.pattern for tensor in group.tensors if tensor.pattern]
    labels = Counter(_label_of(found) for found in patterns)
    if not labels:
        return NOTHING
    if len(labels) == 1:
        [label] = labels
        worst = min(patterns, key=lambda found: found.share)
        return label if worst.share == 1 else str(worst)
    parts = [f"{label} ({count:,})" for label, count in labels.most_common(3)]
    return "; ".join([*parts, *(["others"] if len(labels) > 3 else [])])


def _what(group: Group) -> str:
    """Shape and dtype of a group, and how many tensors it has."""
    first = group.tensors[0]
    if not group.is_alike:
        return f"{plural(len(group.tensors), 'tensor')} of several shapes"
    kind = f"{shape(first.shape, first.row_dims)} {first.dtype.name}"
    return f"{len(group.tensors):,} {TIMES} {kind}" if len(group.tensors) > 1 else kind


def _row_of(group: Group, element_id: str) -> SimpleNamespace:
    stored = [tensor.stored for tensor in group.tensors if tensor.stored]
    layouts = Counter(found.memory_layout for found in stored)
    return SimpleNamespace(
        id=element_id,
        label=group.label,
        what=_what(group),
        dense=group.dense_nbytes,
        stored=sum(found.file_nbytes for found in stored),
        memory=sum(found.memory_nbytes for found in stored),
        zeros=group.zeros,
        elements=group.readable_elements,
        pattern=_patterns_of(group),
        layout="; ".join(
            layout if count == len(stored) else f"{layout} ({count:,})" for layout, count in layouts.most_common(3)
        ),
    )


def _card_of(group: Group, element_id: str, painter: charts.Painter, fine: int) -> SimpleNamespace:
    """fine: how many pictures may have all of their boxes."""
    figures = group.figures
    assert figures is not None
    row = _row_of(group, element_id)
    row.verdict = f"{percent(group.zeros, group.elements)} zeros. {size(row.dense)} dense"
    if row.layout:
        row.verdict += f", {size(row.stored)} in a file, {size(row.memory)} in memory ({row.layout})"
    row.verdict += "."
    reasons = Counter(tensor.stored.reason for tensor in group.tensors if tensor.stored and tensor.stored.reason)
    for reason, count in reasons.most_common(2):
        some = f"{count:,} of them stay{'s' if count == 1 else ''}"
        row.verdict += f" {'Stays' if count == len(group.tensors) else some} dense: {reason}."
    masks = [mask for mask in figures.pictures.values() if mask.label != "dense"] if _has_charts(group) else []
    row.pictures = [_picture(mask if place < fine else mask.coarser()) for place, mask in enumerate(masks)]
    row.charts = _charts_of(group, figures, painter)
    return row


def _has_charts(group: Group) -> bool:
    """Whether a picture of its masks shows anything."""
    return any(map(_is_pruned, group.tensors))


def _picture(picture: Picture) -> SimpleNamespace:
    down, across = picture.density.shape
    tall, wide = picture.corner.shape
    return SimpleNamespace(
        name=picture.name,
        label=picture.label,
        density=pictures.density_png(picture),
        is_fine=across > CLOSE_UP,
        density_alt=f"Where the tensor is not zero, in {down} x {across} boxes: the darker, the fuller",
        corner=pictures.corner_png(picture),
        corner_alt=f"Which of the first {tall} x {wide} elements are not zero",
        corner_size=f"{tall} x {wide}",
        height=_height(picture.density, DENSITY_WIDTH),
        corner_height=_height(picture.corner, CORNER_WIDTH),
    )


DENSITY_WIDTH, CORNER_WIDTH = 256, 160
"""Pixels of pictures, where there is space for them."""


def _height(boxes: np.ndarray, width: int) -> int:
    return max(round(width * min(boxes.shape[0] / boxes.shape[1], 2)), 8)


def _charts_of(group: Group, figures: Figures, painter: charts.Painter) -> list[SimpleNamespace]:
    found = []
    for what, counts in (("row", figures.row_counts), ("column", figures.column_counts)):
        if not _has_charts(group):
            continue  # nearly all are full
        title, caption = f"Nonzeros per {what}.", _counts_in_words(counts, what)
        svg = painter.draw(charts.shares(counts, f"% of a {what} that is not zero"), f"{title} {caption}")
        found.append((title, caption, svg))
    counted = figures.magnitudes
    if counted is not None and counted.largest:
        title, caption = "Magnitudes.", _magnitudes_in_words(group, figures)
        thresholds = figures.thresholds if _has_charts(group) else []
        svg = painter.draw(charts.magnitudes(counted, thresholds), f"{title} {caption}")
        found.append((title, caption, svg))
    from markupsafe import Markup

    return [SimpleNamespace(title=title, caption=caption, svg=Markup(svg)) for title, caption, svg in found]


def _counts_in_words(counts: np.ndarray, what: str) -> str:
    """counts: how many rows or columns have so many nonzeros."""
    length, total = counts.size - 1, int(counts.sum())
    present = np.flatnonzero(counts)
    low, high = int(present[0]), int(present[-1])
    if low == high:
        return f"All {plural(total, what)} have {low:,} of {length:,}."
    mean = float((counts * np.arange(counts.size)).sum() / total)
    empty = f"; {plural(int(counts[0]), what)} of {total:,} have none" if counts[0] else ""
    return f"From {low:,} to {high:,} of {length:,}, {mean:,.1f} in the mean of {plural(total, what)}{empty}."


def _magnitudes_in_words(group: Group, figures: Figures) -> str:
    counted, thresholds = figures.magnitudes, figures.thresholds
    assert counted is not None
    ends = f"Nonzeros have {number(counted.smallest)} to {number(counted.largest)}"
    if not thresholds or not _has_charts(group):
        return f"{ends}."
    low, high = number(min(thresholds)), number(max(thresholds))
    if low == high:
        return f"{ends}. The line is the smallest that was kept."
    return f"{ends}. The line and the band are the smallest that was kept, {low} to {high} by tensor."


def _reasons(tensors: list[Tensor]) -> list[SimpleNamespace]:
    dense: dict[str, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.stored and tensor.stored.reason:
            dense.setdefault(tensor.stored.reason, []).append(tensor)
    found = [
        SimpleNamespace(
            why=why,
            count=len(those),
            nbytes=sum(tensor.dense_nbytes for tensor in those),
            name=max(those, key=lambda tensor: tensor.dense_nbytes).name,
        )
        for why, those in dense.items()
    ]
    return sorted(found, key=lambda reason: -reason.nbytes)


def _speed_of(contents: Contents) -> SimpleNamespace | None:
    speed = contents.speed
    if speed is None:
        return None
    rows = []
    for group in contents.groups:
        timed = [tensor for tensor in group.tensors if tensor.times]
        for place in range(len(timed[0].times) if timed else 0):
            every = [tensor.times[place] for tensor in timed]
            slow = max(every, key=lambda times: times.seconds / times.dense_seconds)
            rows.append(
                SimpleNamespace(
                    label=group.label,
                    batch=slow.batch,
                    seconds=milliseconds(slow.seconds),
                    dense_seconds=milliseconds(slow.dense_seconds),
                    dense=slow.dense,
                    speed=f"{number(slow.dense_seconds / slow.seconds)}x",
                    is_slower=slow.is_slower,
                )
            )
    left_out = ""
    if speed.left_out:
        left_out = f" Not timed, as they stay dense or are stacks: {plural(speed.left_out, 'tensor')}."
    how = (
        f"Products of a layer, {plural(speed.threads, 'thread')} of {speed.machine}, beside the fastest dense product "
        f"({', '.join(speed.dense) or 'none'}); of several layers of a group, the slowest beside its own.{left_out}"
    )
    return SimpleNamespace(how=how, rows=rows)


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"


def _comparison_of(contents: Contents, groups: list[Group]) -> SimpleNamespace | None:
    comparison = contents.comparison
    if comparison is None:
        return None
    rows, all_of_it = [], Change()
    different = 0
    for group in groups:
        changes = [tensor.change for tensor in group.tensors if tensor.change]
        if not changes:
            continue
        total = sum(changes, Change())
        all_of_it += total
        changed = sum(change.equal < change.elements for change in changes)
        different += changed
        if not changed:
            continue
        rows.append(
            SimpleNamespace(
                label=group.label,
                changed=f"{changed:,} of {len(changes):,}",
                equal=exact_percent(total.equal / total.elements) if total.elements else NOTHING,
                overlap=exact_percent(total.overlap),
                regrown=f"{total.regrown:,}",
                largest=number(total.largest),
                mean=number(total.mean),
            )
        )
    compared = len(comparison.compared)
    findings = []
    if compared and not different:
        findings.append(_finding(f"The numbers of all {plural(compared, 'tensor')} of both are equal."))
    elif compared:
        are = "is" if all_of_it.pruned == 1 else "are"
        findings.append(
            _finding(
                f"{different:,} of {plural(compared, 'tensor')} of both have changed: "
                f"{exact_percent(all_of_it.equal / all_of_it.elements)} of the elements are equal, the others differ "
                f"by {number(all_of_it.largest)} at most; the mean of all is {number(all_of_it.mean)}."
            )
        )
        findings.append(
            _finding(
                f"Overlap of the masks, intersection over union: {exact_percent(all_of_it.overlap)}."
                + (f" {plural(all_of_it.pruned, 'more element')} {are} zero there." if all_of_it.pruned else "")
            )
        )
        lost = all_of_it.regrown
        findings.append(
            _finding(f"{plural(lost, 'zero')} of this model {'is' if lost == 1 else 'are'} not zero there.", lost > 0)
            if lost
            else _finding("All zeros of this model are zero there, too.")
        )
        if all_of_it.not_finite:
            findings.append(
                _finding(f"{plural(all_of_it.not_finite, 'element')} differ by what is no finite number.", True)
            )
    findings += [_finding(sentence, True) for sentence in comparison.sentences[:MOST_NAMED]]
    if len(comparison.sentences) > MOST_NAMED:
        findings.append(_finding(f"And {len(comparison.sentences) - MOST_NAMED:,} more such tensors.", True))
    same = sum(any(tensor.change for tensor in group.tensors) for group in groups) - len(rows)
    return SimpleNamespace(other=comparison.path, findings=findings, rows=rows, same=same)
