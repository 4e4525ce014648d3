"""save_pretrained over a folder that has a model already: one model is left, and it says how it is loaded."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from helpers import first_always
from torch_helpers import same_state
from transformers import AutoModelForCausalLM, LlamaConfig

import sparsefmt.transformers
from sparsefmt.checkpoints import cards
from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.conversion import convert_checkpoint, export_checkpoint
from sparsefmt.save_options import SaveOptions
from sparsefmt.tensor_writer import TensorWriter
from sparsefmt.torch import SparseLinear, sparsify
from sparsefmt.transformers import saving

pytestmark = pytest.mark.usefixtures("small_layers")

SMALL = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "pad_token_id": 0}
OWN = {"own.txt": b"mine", "own.safetensors": b"mine too", "notes.index.json": b"{}", "model.txt": b"x"}


def pruned(seed: int, layers: int) -> Any:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL, num_hidden_layers=layers)).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data *= torch.rand(module.weight.shape) < 0.2
    return model


@pytest.fixture(scope="module")
def dense(small_layers: None) -> list[Any]:
    """Two models of different sizes."""
    return [pruned(1, 1), pruned(2, 2)]


@pytest.fixture(scope="module")
def sparse(dense: list[Any]) -> list[Any]:
    """The same, compressed."""
    made = copy.deepcopy(dense)
    for model in made:
        assert sparsify(model).sparse
    return made


@pytest.fixture(scope="module")
def models(dense: list[Any], sparse: list[Any]) -> dict[str, list[Any]]:
    return {"dense": dense, "sparse": sparse}


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def weights_in(folder: Path) -> set[str]:
    names = names_in(folder) - OWN.keys()
    return {name for name in names if name.endswith((".safetensors", ".sparsefmt", ".index.json"))}


def is_model(folder: Path, expected: Any) -> bool:
    """Whether a folder loads as a model, which is given dense."""
    loaded, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    if info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"]:
        return False
    if any(isinstance(module, SparseLinear) for module in loaded.modules()):
        loaded = loaded.dequantize()
    return same_state(loaded, expected)


class Looker:
    """Tells which model a folder holds. Folders with equal files hold the same; names of temporary ones are random."""

    def __init__(self, old: Any, new: Any) -> None:
        self._models = {"new": new, "old": old}
        self._known: dict[frozenset[tuple[str, bytes]], str] = {}

    def __call__(self, folder: Path) -> str:
        names = {path: re.sub("[0-9a-f]{16}", "random", str(path.relative_to(folder))) for path in folder.rglob("*")}
        files = frozenset((name, path.read_bytes()) for path, name in names.items() if path.is_file())
        if files not in self._known:
            self._known[files] = self._look(folder)
        return self._known[files]

    def _look(self, folder: Path) -> str:
        try:
            return next((name for name, model in self._models.items() if is_model(folder, model)), "neither")
        except OSError:
            return "refused"


SIZES = {"whole": "50GB", "shards": "60kB", "more": "40kB"}
KINDS = [(before, after) for before in ("dense", "sparse") for after in ("dense", "sparse")]


@pytest.mark.parametrize(("before", "after"), [kinds for kinds in KINDS if kinds != ("dense", "dense")])
@pytest.mark.parametrize(
    ("first", "second"), [(a, b) for a in ("whole", "shards") for b in ("whole", "shards", "more")]
)
def test_the_folder_holds_one_model(
    before: str, after: str, first: str, second: str, models: dict[str, list[Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    models[before][0].save_pretrained(folder, max_shard_size=SIZES[first])
    for name, content in OWN.items():
        (folder / name).write_bytes(content)
    models[after][1].save_pretrained(folder, max_shard_size=SIZES[second])
    models[after][1].save_pretrained(tmp_path / "alone", max_shard_size=SIZES[second])
    assert weights_in(folder) == weights_in(tmp_path / "alone")
    assert len(weights_in(folder)) > 2 if second != "whole" else len(weights_in(folder)) == 1
    assert names_in(folder) == names_in(tmp_path / "alone") | OWN.keys()
    assert all((folder / name).read_bytes() == content for name, content in OWN.items())
    assert is_model(folder, models["dense"][1])


class Killed(BaseException):
    pass


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Has the nth change of names in a folder, and all later ones, fail, as if the process were not there any more."""
    left = [1 << 30]

    def counted(original: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return original(*arguments, **options)

        return call

    monkeypatch.setattr(os, "replace", counted(os.replace))
    monkeypatch.setattr(Path, "unlink", counted(Path.unlink))
    monkeypatch.setattr("shutil.rmtree", lambda *arguments, **options: None)
    return lambda step: left.__setitem__(0, step)


@pytest.mark.parametrize(
    "saved",
    first_always(
        [
            ("sparse", "dense", "whole", "shards"),
            ("dense", "sparse", "whole", "shards"),
            ("dense", "sparse", "shards", "whole"),
            ("sparse", "dense", "shards", "whole"),
            ("sparse", "sparse", "shards", "more"),
            ("sparse", "sparse", "whole", "shards"),
        ],
        2,
    ),
    ids=" ".join,
)
def test_killed_at_any_step_it_is_the_old_model_or_the_new_one(
    saved: tuple[str, str, str, str],
    models: dict[str, list[Any]],
    tmp_path: Path,
    kill: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # saved sooner; how tensors are coded has nothing to do with the steps
    monkeypatch.setattr(saving, "TensorWriter", partial(TensorWriter, codec="raw"))
    before, after, first, second = saved
    # stale files of an earlier time, which nobody looks at
    stale = {"dense": ("sparse", "dense"), "sparse": ("dense", "sparse")}[before]
    there = tmp_path / "there"
    models[before][0].save_pretrained(there, max_shard_size=SIZES[first])
    models[stale[0]][0].save_pretrained(tmp_path / "stale", max_shard_size=SIZES[second])
    for name in weights_in(tmp_path / "stale"):
        (there / name).write_bytes((tmp_path / "stale" / name).read_bytes())
    look = Looker(*models["dense"])
    assert look(there) == "old"
    found, step = [], 0
    while True:
        folder = tmp_path / str(step)
        shutil.copytree(there, folder)
        kill(step)
        try:
            models[after][1].save_pretrained(folder, max_shard_size=SIZES[second])
        except Killed:
            finished = False
        else:
            finished = True
        kill(1 << 30)
        found.append(look(folder))
        if finished:
            break
        # the next save finds nothing in its way
        models[after][1].save_pretrained(folder, max_shard_size=SIZES[second])
        assert look(folder) == "new"
        step += 1
    assert step > 5
    assert found == sorted(found, key=["old", "refused", "new"].index)
    assert found[0] == "old"
    assert found[-1] == "new"
    # between shards and shards there is no single step from one to the other
    assert ("refused" in found) == (before == after)


def test_variants_do_not_disturb_each_other(models: dict[str, list[Any]], tmp_path: Path) -> None:
    dense, sparse = models["dense"][0], models["sparse"][0]
    sparse.save_pretrained(tmp_path, variant="one", max_shard_size=SIZES["shards"])
    one = weights_in(tmp_path)
    assert len(one) > 2
    dense.save_pretrained(tmp_path, max_shard_size=SIZES["shards"])
    assert one < weights_in(tmp_path)
    both = weights_in(tmp_path)
    dense.save_pretrained(tmp_path, variant="one", max_shard_size=SIZES["shards"])
    assert weights_in(tmp_path) & both == both - one
    assert not [name for name in weights_in(tmp_path) if "sparsefmt" in name]
    sparse.save_pretrained(tmp_path, variant="one")
    assert {name for name in weights_in(tmp_path) if "one" in name} == {"model.one.sparsefmt"}


def test_a_converted_folder_of_other_names(models: dict[str, list[Any]], tmp_path: Path) -> None:
    """Shards are known by the index beside them, whatever they are called."""
    models["dense"][0].save_pretrained(tmp_path / "in", max_shard_size=SIZES["shards"])
    index = tmp_path / "in" / "model.safetensors.index.json"
    text = index.read_text()
    for path in (tmp_path / "in").glob("*.safetensors"):
        renamed = path.name.replace("model-", "part_")
        text = text.replace(path.name, renamed)
        path.rename(path.with_name(renamed))
    index.write_text(text)
    folder = convert(tmp_path / "in", tmp_path / "out")
    assert len(list(folder.glob("part_*.sparsefmt"))) > 1
    models["dense"][1].save_pretrained(folder)
    assert weights_in(folder) == {"model.safetensors"}
    assert is_model(folder, models["dense"][1])


def test_a_save_that_fails_changes_nothing(
    models: dict[str, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models["sparse"][0].save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(OSError, match="No space left"):
        models["dense"][1].save_pretrained(tmp_path)
    monkeypatch.setattr("sparsefmt.transformers.saving.write_all", full)
    with pytest.raises(OSError, match="No space left"):
        models["sparse"][1].save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_adapter_leaves_the_weights_that_it_needs(models: dict[str, list[Any]], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    models["sparse"][0].save_pretrained(tmp_path)
    before = weights_in(tmp_path)
    adapted = peft.get_peft_model(copy.deepcopy(models["dense"][0]), peft.LoraConfig(target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path)
    assert "adapter_model.safetensors" in names_in(tmp_path)
    assert weights_in(tmp_path) == before | {"adapter_model.safetensors"}
    # a save that writes no weights takes the place of none
    models["dense"][0].save_pretrained(tmp_path, state_dict={})
    assert weights_in(tmp_path) == before | {"adapter_model.safetensors"}


# how it is loaded


def convert(source: Path, target: Path) -> Path:
    with Checkpoint(source, ["safetensors"]) as checkpoint:
        convert_checkpoint(checkpoint, target, SaveOptions(), overwrite=True)
    return target


def run_card(folder: Path) -> Any:
    """What the lines in README.md load."""
    code = (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(code.replace("this-folder", str(folder)), names)
    return names["model"]


@pytest.mark.parametrize("how", ["convert", "save_pretrained"])
def test_folder_says_how_it_is_loaded(how: str, models: dict[str, list[Any]], tmp_path: Path) -> None:
    folder = tmp_path / "sparse"
    models["dense"][0].save_pretrained(tmp_path / "dense")
    if how == "convert":
        convert(tmp_path / "dense", folder)
    else:
        models["sparse"][0].save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "sparsefmt"
    assert "import sparsefmt.transformers" in config["how_to_load"]
    model = run_card(folder)
    assert any(isinstance(module, SparseLinear) for module in model.modules())
    assert "import sparsefmt.transformers" in str(model.config)
    # and back
    dense = model.dequantize()
    dense.save_pretrained(folder)
    assert names_in(folder) == {"config.json", "generation_config.json", "model.safetensors"}
    assert "sparsefmt" not in (folder / "config.json").read_text()
    assert is_model(folder, models["dense"][0])


def test_a_card_that_is_there_is_kept(models: dict[str, list[Any]], tmp_path: Path) -> None:
    card = b"---\nlicense: mit\n---\n# Mine\n\nWords.\n"
    source, folder = tmp_path / "dense", tmp_path / "sparse"
    models["dense"][0].save_pretrained(source)
    (source / "README.md").write_bytes(card)
    for _ in range(2):
        convert(source, folder)
        made = (folder / "README.md").read_bytes()
        assert made.startswith(b"---\nlicense: mit\n---\n# Mine\n")
        assert made.count(b"import sparsefmt.transformers") == 1
        assert cards.without_section(made) == card
    # saved over, in both ways
    models["sparse"][1].save_pretrained(folder)
    assert (folder / "README.md").read_bytes() == made
    with Checkpoint(folder, ["sparsefmt"]) as checkpoint:
        export_checkpoint(checkpoint, tmp_path / "back")
    assert (tmp_path / "back" / "README.md").read_bytes() == card
    models["dense"][1].save_pretrained(folder)
    assert (folder / "README.md").read_bytes() == card


def test_export_over_a_sparse_folder_takes_the_card_away(models: dict[str, list[Any]], tmp_path: Path) -> None:
    for name in ("one", "two"):
        models["sparse"][0].save_pretrained(tmp_path / name)
    (tmp_path / "one" / "README.md").unlink()
    with Checkpoint(tmp_path / "one", ["sparsefmt"]) as checkpoint:
        export_checkpoint(checkpoint, tmp_path / "two", overwrite=True)
    assert "README.md" not in names_in(tmp_path / "two")


@pytest.mark.parametrize("text", ["", "anything", None, ["a", "list"], {"a": 1}])
def test_the_text_of_the_config_changes_nothing(text: Any, models: dict[str, list[Any]], tmp_path: Path) -> None:
    models["sparse"][0].save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["how_to_load"] = text
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert is_model(tmp_path, models["dense"][0])
    assert (
        sparsefmt.transformers.SparsefmtConfig(how_to_load=text).to_dict()
        == sparsefmt.transformers.SparsefmtConfig().to_dict()
    )
