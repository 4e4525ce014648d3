"""Programs that do not import sparsefmt: run by `python -m sparsefmt.transformers`, or by what torch calls."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
from helpers import ROOT, run_python

import sparsefmt.transformers.__main__ as runner
from sparsefmt.torch import SparseLinear, sparsify

PLUGIN = "import sparsefmt_plugin, torch\nsparsefmt_plugin.torch_is_imported()\n"
"""What happens by itself where the package is installed with its entry point."""

IS_REGISTERED = "from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as known; print('sparsefmt' in known)"

FIRST = [
    "from transformers import AutoModel",
    "import transformers.quantizers",
    "import transformers.models.bert.modeling_bert",
]

IN_A_CHILD = """
import os, sys
assert "transformers" not in sys.modules
def in_a_child(code):
    child = os.fork()
    if not child:
        try:
            exec(code, {})
        finally:
            sys.stdout.flush()
            os._exit(0)
    os.waitpid(child, 0)
"""

SHOWS = "import sys, {}\nprint(__name__, sys.argv, '{}' in sys.modules)"


class TestRunner:
    """The program runs in this process, whose sys.argv and sys.path come back."""

    @pytest.fixture(autouse=True)
    def _restored(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(sys, "argv", ["before"])
        monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
        monkeypatch.setenv(runner.VARIABLE, "1")
        monkeypatch.chdir(tmp_path)

    def test_a_module(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        package = tmp_path / "package_of_a_test"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(
            "import sys\nprint(__name__, sys.argv[1:], 'sparsefmt.transformers' in sys.modules)"
        )
        assert runner.main(["-m", "package_of_a_test", "--model", "hf"]) is None
        assert capsys.readouterr().out.strip() == "__main__ ['--model', 'hf'] True"

    def test_a_script(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "beside_a_script.py").write_text("name = 'found'")
        script = tmp_path / "folder" / "script.py"
        script.write_text("import sys, beside_a_script\nprint(__name__, sys.argv, beside_a_script.name)")
        assert runner.main([str(script), "-m", "other"]) is None
        assert capsys.readouterr().out.strip() == f"__main__ {[str(script), '-m', 'other']} found"

    def test_the_exit_code_is_that_of_the_program(self, tmp_path: Path) -> None:
        (tmp_path / "fails.py").write_text("import sys\nsys.exit(7)")
        with pytest.raises(SystemExit) as found:
            runner.main(["fails.py"])
        assert found.value.code == 7

    def test_processes_that_it_starts_have_the_variable(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.delenv(runner.VARIABLE)
        (tmp_path / "shows.py").write_text(f"import os\nprint(os.environ[{runner.VARIABLE!r}])")
        runner.main(["shows.py"])
        assert capsys.readouterr().out.strip() == "1"

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["-m"], "-m needs the name of a module"),
            (["-m", "no_such_module"], "there is no module 'no_such_module'"),
            (["-m", "no_such.module"], "there is no module 'no_such.module'"),
            (["lm_eval"], "there is no script 'lm_eval'; for a module, say -m lm_eval"),
            (["-x", "lm_eval"], "-x is not known"),
        ],
    )
    def test_mistakes(self, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert runner.main(arguments) == 2
        assert said in capsys.readouterr().err

    def test_help(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert runner.main(["--help"]) is None
        assert "python -m sparsefmt.transformers -m lm_eval" in capsys.readouterr().out
        assert runner.main([]) == 2

    @pytest.mark.slow
    def test_as_a_command(self, tmp_path: Path) -> None:
        script = tmp_path / "script.py"
        script.write_text(f"{IS_REGISTERED}\nimport sys; sys.exit(len(sys.argv))")
        done = subprocess.run(
            [sys.executable, "-m", "sparsefmt.transformers", script, "argument"], capture_output=True, text=True
        )
        assert (done.stdout.strip(), done.returncode) == ("True", 2), done.stderr


class TestWhatTorchCalls:
    def test_the_variable_has_one_name(self) -> None:
        import sparsefmt_plugin

        assert sparsefmt_plugin.VARIABLE == runner.VARIABLE

    def test_it_is_an_entry_point(self) -> None:
        found = [point for point in entry_points(group="torch.backends") if point.name == "sparsefmt"]
        if not found:
            pytest.skip("sparsefmt was installed here before it had an entry point: install it again")
        assert {point.value for point in found} == {"sparsefmt_plugin:torch_is_imported"}

    @pytest.mark.slow
    def test_without_the_variable_nothing_is_imported(self) -> None:
        code = f"{PLUGIN}import sys\nprint([name for name in sys.modules if name.split('.')[0] == 'sparsefmt'])"
        assert run_python(code, **{runner.VARIABLE: "0"}) == "[]"

    @pytest.mark.thorough
    @pytest.mark.slow
    def test_with_the_variable_the_method_is_registered(self) -> None:
        """Whatever is imported first: each in a child of one process, which has imported torch for all of them."""
        codes = [f"{first}; import transformers.modeling_utils; {IS_REGISTERED}" for first in FIRST]
        each = "".join(f"in_a_child({code!r})\n" for code in codes)
        assert run_python(f"{PLUGIN}{IN_A_CHILD}{each}", **{runner.VARIABLE: "1"}).split() == ["True"] * len(FIRST)

    @pytest.mark.thorough
    @pytest.mark.slow
    def test_exported_programs_find_their_operators(self, tmp_path: Path) -> None:
        model = torch.nn.Sequential(torch.nn.Linear(32, 64))
        with torch.no_grad():
            model[0].weight *= torch.rand(64, 32) < 0.2
        sparsify(model, min_size=0)
        assert isinstance(model[0], SparseLinear)
        x = torch.ones(2, 32)
        torch.export.save(torch.export.export(model, (x,)), tmp_path / "program.pt2")
        torch.save(model(x), tmp_path / "y.pt")
        load = (
            f"program = torch.export.load({str(tmp_path / 'program.pt2')!r}).module()\n"
            f"print(program(torch.ones(2, 32)).equal(torch.load({str(tmp_path / 'y.pt')!r})))"
        )
        assert run_python(PLUGIN + load) == "True"
        # where it is not installed, the error names it
        environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
        code = f"import sys, torch\nsys.modules['sparsefmt'] = None\n{load}"
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode
        assert "torch.ops.sparsefmt.linear" in done.stderr
