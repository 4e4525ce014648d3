"""The files that tools/fuzz/reader.py starts from, and how it mutates them beside what tools/fuzz/mutations.py does."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import zstandard

import sparsefmt
from sparsefmt.layouts import FORMS
from tools import ROOT, forms
from tools.fuzz.mutations import NOTHING_TO_MUTATE, Mutation, damage, mutate_chunk_order
from tools.fuzz.reader_checks import dense
from tools.fuzz.small_files import CODECS, random_file, single_tensors
from tools.taken_apart import TakenApart, chunks_of, join, mended, split

VECTORS = ROOT / "spec" / "vectors"


class Sizes(NamedTuple):
    """What keeps an input quick.

    Attributes:
        file: bytes of the largest file.
        decoded: `max_decoded_bytes`.
    """

    file: int
    decoded: int


COMPILED, INTERPRETED = Sizes(1 << 13, 1 << 22), Sizes(1 << 12, 1 << 14)


# Mutations

Mutate = Callable[[bytes, int], bytes]
"""libFuzzer's mutations, which use what it saw compared: the bytes, and how many they may become."""


def mutations_guided_by(mutate: Mutate) -> list[Mutation]:
    """Mutations of parts of a file by libFuzzer."""

    def in_place(rng: np.random.Generator, part: bytes) -> bytes:
        """As long as it was, most of the time: then sizes still fit."""
        changed = mutate(part, len(part) + 8)
        return changed if rng.random() < 0.2 else changed[: len(part)].ljust(len(part), b"\0")

    def guided_bytes(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
        return mended(in_place(rng, data))

    def guided_chunk(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
        parts = TakenApart(data)
        stored, _ = parts.chunks[rng.integers(len(parts.chunks))]
        stored[:] = in_place(rng, bytes(stored))
        return bytes(parts)

    def guided_model(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
        parts = TakenApart(data)
        entries = parts.index["tensors"].values()
        models = [(entry["models"], array) for entry in entries for array in entry.get("models", ())]
        holder, array = models[rng.integers(len(models))]
        holder[array] = in_place(rng, holder[array])
        return bytes(parts)

    def guided_index(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
        before, index = split(data)
        return join(before, mutate(index, len(data)))

    return [guided_bytes, *[guided_chunk] * 6, *[guided_model] * 4, guided_index]


def mutate_zstd_content(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
    """What a zstd frame holds, in a frame that is right."""
    parts = TakenApart(data)
    frames = [stored for stored, _ in parts.chunks if stored.startswith(zstandard.FRAME_HEADER)]
    frame = frames[rng.integers(len(frames))]
    if zstandard.frame_content_size(bytes(frame)) > COMPILED.decoded:
        raise ValueError("a frame that claims more than will be read")
    content = bytearray(zstandard.decompress(bytes(frame), max_output_size=COMPILED.decoded))
    size = len(content)
    damage(rng, content)
    frame[:] = zstandard.compress(bytes(content[:size].ljust(size, b"\0")))
    return bytes(parts)


def graft(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
    """A tensor of another file, chunks and all."""
    parts, others = TakenApart(data), TakenApart(other)
    names = [name for name, entry in others.index["tensors"].items() if "shape" in entry]
    name = names[rng.integers(len(names))]
    entry = others.index["tensors"][name]
    chunks = others.chunks[chunks_of(entry)]
    grafted = parts.index["tensors"][f"{name}+"] = {key: value for key, value in entry.items() if key != "first_chunk"}
    if chunks and parts.chunks:
        grafted["first_chunk"] = len(parts.chunks)
    parts.chunks += chunks
    return bytes(parts)


def resave(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
    """Good files differ: some elements of each tensor pruned and others set, saved with any layout and codec."""
    tensors = {}
    for name, tensor in sparsefmt.load(data, threads=1, max_decoded_bytes=INTERPRETED.decoded).items():
        array = np.array(dense(tensor))
        elements = array.reshape(-1, 1).view(np.uint8)
        if elements.size:
            pruned, set_, like = rng.integers(len(elements), size=(3, 8))
            elements[pruned] = 0
            elements[set_] = elements[like]
        tensors[name] = array
    form, codec = str(rng.choice(["auto", *FORMS])), str(rng.choice(CODECS))
    if form == "auto":
        return sparsefmt.save(tensors, codec=codec, threads=1)
    return forms.save(tensors, form=form, codec=codec, threads=1)


OWN_MUTATIONS: list[Mutation] = [mutate_zstd_content, mutate_zstd_content, graft, resave]
CROSSOVERS: list[Mutation] = [graft, mutate_chunk_order]


def mutated(
    mutations: list[Mutation], rng: np.random.Generator, data: bytes, other: bytes, max_size: int
) -> bytes | None:
    """Another file than `data`; None if several mutations found nothing to change.

    A file that cannot be taken apart any more leads nowhere, most of the time: `other` is changed instead.
    """
    if rng.random() < 0.8 and not can_be_taken_apart(data):
        data = other
    for _ in range(4):
        try:
            changed = mutations[rng.integers(len(mutations))](rng, data, other)
        except NOTHING_TO_MUTATE:
            continue
        if changed != data and len(changed) <= max_size:
            return changed
    return None


def can_be_taken_apart(data: bytes) -> bool:
    try:
        bytes(TakenApart(data))
    except NOTHING_TO_MUTATE:
        return False
    return True


# Files to start from


def seeds(seed: int, most_bytes: int) -> list[bytes]:
    rng, files = np.random.default_rng(seed), []
    for path in sorted(VECTORS.rglob("*.sparsefmt")):
        data = path.read_bytes()
        files += [data] if len(data) <= most_bytes or "bad" in path.parts else list(single_tensors(data))[::3]
    files += (random_file(rng) for _ in range(60))
    return sorted({data for data in files if len(data) <= most_bytes}, key=len)
