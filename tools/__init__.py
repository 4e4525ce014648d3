"""Programs of this project. Run them from its root, such as `python -m tools.bench.kernels --help`."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The folder of the project."""
