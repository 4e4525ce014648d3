"""Puts the page of `sparsefmt view` into the package: docs/viewer/ and spec/js/, which stay where people look."""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = ("docs/viewer", "spec/js")


class BuildWithPage(build_py):
    """In an editable installation, the page is read from the repository."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for folder in FOLDERS:
            target = Path(self.build_lib) / "sparsefmt" / "cli" / "page" / folder
            target.mkdir(parents=True, exist_ok=True)
            for file in Path(folder).iterdir():
                if file.suffix in (".html", ".js", ".css"):
                    self.copy_file(str(file), str(target / file.name))


setup(cmdclass={"build_py": BuildWithPage})
