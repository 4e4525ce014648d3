"""`python -m sparsefmt.transformers`: run a program that does not know sparsefmt, with its models loadable.

    python -m sparsefmt.transformers -m lm_eval --model hf --model_args pretrained=llama-pruned-sparsefmt
    python -m sparsefmt.transformers evaluate.py llama-pruned-sparsefmt
    python -m sparsefmt.transformers $(which lm_eval) --model hf

It imports sparsefmt.transformers, and then runs the module or the script as `python -m MODULE` or `python SCRIPT`
would, with the arguments that follow. Processes that the program starts load such models too (see `sparsefmt_plugin`).
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
from collections.abc import Sequence

import sparsefmt.transformers  # noqa: F401

VARIABLE = "SPARSEFMT_TRANSFORMERS"
"""Environment variable by which `sparsefmt_plugin` registers the method in programs that torch is imported by."""


def main(arguments: Sequence[str]) -> int | None:
    """Run what the arguments say.

    Returns:
        an exit code, where nothing was run.

    Raises:
        whatever the program raises, SystemExit among it.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return None if arguments else 2
    os.environ.setdefault(VARIABLE, "1")
    if arguments[0] == "-m":
        return _run_module(arguments[1:])
    if arguments[0].startswith("-"):
        return _refuse(f"{arguments[0]} is not known: -m MODULE or a script comes first, and what is for it behind")
    if not os.path.exists(arguments[0]):
        return _refuse(f"there is no script {arguments[0]!r}; for a module, say -m {arguments[0]}")
    sys.argv = list(arguments)
    sys.path[0] = os.path.dirname(os.path.abspath(arguments[0]))
    runpy.run_path(arguments[0], run_name="__main__")
    return None


def _run_module(arguments: Sequence[str]) -> int | None:
    if not arguments:
        return _refuse("-m needs the name of a module")
    module, *others = arguments
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        # a package that it would be in
        found = None
    if found is None:
        return _refuse(f"there is no module {module!r}")
    sys.argv = [module, *others]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return None


def _refuse(message: str) -> int:
    print(f"python -m sparsefmt.transformers: error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
