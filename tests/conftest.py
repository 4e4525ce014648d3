"""Before anything is imported: no test asks a server for a model, and threads that wait sleep. Examples are the same in
every run. Whether thorough tests run, and, with `-n`, which process runs which file."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

# The same examples every time: a run does not fail by chance. `--hypothesis-profile default` draws others.
settings.register_profile("same every time", derandomize=True)
settings.load_profile("same every time")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# a thread of PyTorch that waits for work sleeps, and does not take the time of the other process
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# a process that a test starts need not compile the whole package again
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

SLOW_FILES = [
    *("kernels", "viewer_page", "conformance", "report_page", "cluster", "js_reader", "c_reader", "spec_reader"),
    *("scaled", "real_weights", "report", "simd", "concurrency", "terminal", "adapters_sparse_libraries"),
    *("bench", "bench_model", "jit_cache", "rans", "spec", "quantized_models", "without_import", "commands"),
    *("compressed_tensors_library", "placing", "experts", "compute_in_float32", "pretrained_experts", "one_byte"),
    *("api", "strangers", "bench_overhead", "mutants", "stored_signs", "budget", "adapters_torch", "golden"),
    *("memory_of_saving", "warmup", "entries", "loading", "far_ends", "store_machine", "hostile_names", "docs"),
    *("twins_numpy", "staging", "bench_memory", "safe_open", "scaled_pretrained", "quantizer", "onnx_export"),
    *("replace_layers", "compiling", "permuted_in_blocks", "permuted_by_gather", "wide_masks"),
]
"""Those that take seconds. The slowest come first, so that in the end no process waits long for another. Those that
compile most have others between them: what two processes need at the same time, both compile."""


@pytest.hookimpl(hookwrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported stays, torch and transformers among it, and the garbage collector need not look at it again. Nor
    so often at what numba makes while it compiles, of which most stays, too."""
    gc.disable()
    yield
    gc.enable()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n`, and no other `--dist`, each file is run by one process.

    What a module has made once is then made once, and a kernel that two files need is mostly in the cache of compiled
    code by the time that the second one needs it.
    """
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False  # by the number of tests
    return LoadFileScheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Thorough tests are left out, unless they are asked for. In a process of several, the slow files first."""
    if not os.environ.get("SPARSEFMT_THOROUGH"):
        left_out = [item for item in items if item.get_closest_marker("thorough")]
        if left_out:
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if not item.get_closest_marker("thorough")]
    if hasattr(config, "workerinput"):
        ranks = {f"test_{name}.py": rank for rank, name in enumerate(SLOW_FILES)}
        items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


@pytest.fixture(scope="module")
def small_layers() -> Iterator[None]:
    """Layers of any size become sparse by default, so that tests can have models of tiny ones."""
    from sparsefmt.torch import selection

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "MIN_SIZE", 0)
        yield


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    """What a test gives to `set_num_threads` holds for that test alone, in whatever order tests run."""
    from sparsefmt import threads

    before = threads._num_threads
    yield
    threads._num_threads = before
