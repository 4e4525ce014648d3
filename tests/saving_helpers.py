"""Models to be saved, mappings that fail on the way, and other processes that save."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from helpers import same_bits, weights

import sparsefmt

SMALL = {"w": weights(np.random.default_rng(1), (40, 60), np.float32, 0.7)}
LARGE = {"w": weights(np.random.default_rng(2), (2000, 400), np.float32, 0.5), "z": np.float32(1)}
DEAD = ".w.sparsefmt.0123456789abcdef.sparsefmt-tmp"


def holds(path: Any, *models: Mapping[str, np.ndarray]) -> bool:
    """Whether a file is whole and has the bits of one of the models."""
    loaded = sparsefmt.load_file(path, layout="dense")
    return any(same_model(loaded, model) for model in models)


def same_model(loaded: Mapping[str, Any], model: Mapping[str, np.ndarray]) -> bool:
    return loaded.keys() == model.keys() and all(same_bits(loaded[name], np.asarray(model[name])) for name in model)


class Lazy(Mapping[str, Any]):
    """A mapping that makes its values when they are asked for, by calling what stands for them."""

    def __init__(self, values: dict[str, Callable[[], Any]]) -> None:
        self._values = values

    def __getitem__(self, name: str) -> Any:
        return self._values[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def raising(error: BaseException) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


def in_child(work: Callable[[], object], user: int | None = None) -> str:
    """What work() gives, or the error that it raises, as a text, in a forked process, of another user if given."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(60)
        try:
            if user is not None:
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
            answer = repr(work())
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answers:
        answer = answers.read()
    assert os.waitpid(child, 0)[1] == 0
    return answer
