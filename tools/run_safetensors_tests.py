"""Run safetensors' own tests for numpy and torch against sparsefmt's twins of them.

    python -m tools.run_safetensors_tests [--source FOLDER] [--version VERSION]

It fetches the source distribution of safetensors in the version that is installed, copies its Python tests to a
temporary folder with the imports changed and nothing else, and runs them with pytest. Tests that cannot pass are in
EXPECTED with the reason of each; files that are not run are in NOT_RUN.

Exit status: 0 if all others pass and those fail; 1 if not; 2 if the source cannot be had.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import safetensors

from tools import ROOT

TESTS = Path("bindings/python/tests")

_BYTES = "compares with, or loads, the bytes of a safetensors file"
_WORDS = "compares a message word for word; the error is of the same kind, and ours has its own words"

EXPECTED = {
    "test_simple.py::TestCase::test_deserialization": _BYTES,
    "test_simple.py::TestCase::test_deserialization_metadata": _BYTES,
    "test_simple.py::TestCase::test_serialization": _BYTES,
    "test_simple.py::TestCase::test_serialization_forces_alignment": _BYTES,
    "test_simple.py::TestCase::test_serialization_metadata": _BYTES,
    "test_simple.py::TestCase::test_serialization_no_big_endian": _BYTES,
    "test_simple.py::ErrorsTestCase::test_file_not_found": _WORDS,
    "test_simple.py::ReadmeTestCase::test_exception": "tests serialize and TensorSpec, for which there is no twin",
    "test_simple.py::ReadmeTestCase::test_numpy_slice": "wants errors for lists and for ends beyond the"
    " dimension, which here mean what they mean to numpy; an index out of range is an IndexError",
    "test_pt_comparison.py::TorchTestCase::test_bogus": _WORDS,
    "test_pt_comparison.py::TorchTestCase::test_complex": _BYTES,
    "test_pt_comparison.py::TorchTestCase::test_in_memory": _BYTES,
    "test_pt_comparison.py::TorchTestCase::test_serialization": _BYTES,
    "test_pt_comparison.py::TorchTestCase::test_sparse": _WORDS,
    "test_pt_model.py::TorchModelTestCase::test_save": _BYTES,
    "test_pread_backend.py::PreadBackendTests::test_truncated_header_is_rejected": "cuts the file where safetensors has"
    " its header, which leaves one of ours whole",
}
"""Tests that cannot pass, and why."""

NOT_RUN = {
    "test_handle.py": "tests safe_open on an open file object, for which there is no twin",
    "test_threadable.py": "tests serialize_file and TensorSpec, for which there is no twin",
    "test_flax_comparison.py": "another framework",
    "test_mlx_comparison.py": "another framework",
    "test_paddle_comparison.py": "another framework",
    "test_tf_comparison.py": "another framework",
}
"""Files of tests that are not run, and why."""

_TWINS = {"safe_open": "safe_open", "SafetensorError": "SparsefmtError as SafetensorError"}


def swapped(source: str) -> str:
    """Source of a test with the imports of what has a twin changed."""

    def swap(match: re.Match[str]) -> str:
        names = [name.strip() for name in match["names"].split(",")]
        ours = [_TWINS[name] for name in names if name in _TWINS]
        theirs = [name for name in names if name not in _TWINS]
        lines = [
            f"from {module} import {', '.join(some)}"
            for module, some in (("sparsefmt", ours), ("safetensors", theirs))
            if some
        ]
        return "\n".join(match["indent"] + line for line in lines)

    source = re.sub(r"\bfrom safetensors\.(numpy|torch) import\b", r"from sparsefmt.\1 import", source)
    return re.sub(r"^(?P<indent> *)from safetensors import (?P<names>[\w, ]+)$", swap, source, flags=re.M)


def fetch(version: str, folder: Path) -> Path | None:
    """The unpacked source distribution, somewhere in `folder`; None if it cannot be had.

    Fetching ends with a step of building it, which may fail: what was unpacked stays.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-clean", "--no-deps", "--no-binary", "safetensors"]
    command += ["--dest", str(folder), f"safetensors=={version}"]
    run = subprocess.run(command, env={**os.environ, "TMPDIR": str(folder)}, capture_output=True, text=True)
    found = unpacked(folder)
    if found is None:
        print(run.stdout + run.stderr, file=sys.stderr)
    return found


def unpacked(folder: Path) -> Path | None:
    """The folder below `folder` (or itself) that has the tests."""
    return next((path.parents[len(TESTS.parts) - 1] for path in folder.glob(f"**/{TESTS}")), None)


def results(source: Path, folder: Path) -> Iterator[tuple[str, str, str]]:
    """Run the tests in `folder`: (name, "passed" or "failed" or "skipped", first line of the message) of each."""
    # tests write to these, relative to where they run
    (folder / "tests" / "data").mkdir(parents=True)
    for test in sorted((source / TESTS).glob("test_*.py")):
        if test.name not in NOT_RUN:
            (folder / "tests" / test.name).write_text(swapped(test.read_text()))
    report = folder / "report.xml"
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "--rootdir=.", f"--junitxml={report}", "tests"]
    run = subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    if not report.exists():
        raise SystemExit(run.stdout + run.stderr)
    for case in ElementTree.parse(report).iter("testcase"):
        # "tests.test_simple.TestCase" has the file and, if there is one, the class
        parts = [part for part in case.get("classname", "").split(".") if part != "tests"]
        name = "::".join([f"{parts[0]}.py", *parts[1:], case.get("name", "")]) if parts else case.get("name", "")
        bad = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        outcome = "passed" if bad is None else "skipped" if bad.tag == "skipped" else "failed"
        yield name, outcome, "" if bad is None else bad.get("message", "").partition("\n")[0]


def main() -> int:
    parser = argparse.ArgumentParser(description="Run safetensors' own tests against sparsefmt's twins.")
    parser.add_argument("--source", type=Path, help="an unpacked source distribution, instead of fetching one")
    parser.add_argument("--version", default=safetensors.__version__, help="which to fetch (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = unpacked(options.source) if options.source else fetch(options.version, folder)
        if source is None:
            remedy = "unpack one and name its folder with --source, or run this with access to the network"
            missing = f"{options.source} has no {TESTS}" if options.source else "it cannot be fetched"
            print(f"no source distribution of safetensors {options.version}: {missing}; {remedy}", file=sys.stderr)
            return 2
        found = list(results(source, folder / "swapped"))
    outcomes: dict[str, list[str]] = {"passed": [], "skipped": [], "expected": [], "unexpected": []}
    for name, outcome, message in found:
        if outcome == "failed":
            kind = "expected" if name in EXPECTED else "unexpected"
            outcomes[kind].append(f"{name}: {EXPECTED.get(name, message)}")
        elif name in EXPECTED:
            outcomes["unexpected"].append(f"{name}: {outcome}, though listed as one that cannot pass")
        else:
            outcomes[outcome].append(f"{name}: {message}" if message else name)
    seen = {name for name, _, _ in found}
    outcomes["unexpected"] += [f"{name}: listed, and not there" for name in EXPECTED if name not in seen]
    for title, key in (("Skipped", "skipped"), ("Cannot pass", "expected"), ("Unexpected", "unexpected")):
        for line in outcomes[key]:
            print(f"{title}: {line}")
    for file, reason in NOT_RUN.items():
        print(f"Not run: {file}: {reason}")
    passed, skipped, expected, unexpected = (len(lines) for lines in outcomes.values())
    print(f"{passed} passed, {expected} expected failures, {unexpected} unexpected, {skipped} skipped")
    return 1 if unexpected or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
