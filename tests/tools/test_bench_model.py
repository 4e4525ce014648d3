"""The program that runs pruned models: that it runs, and that it times nothing that computes something else."""

from __future__ import annotations

import csv
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner, Result
from transformers import BertConfig, BertModel

from sparsefmt import threads
from sparsefmt.torch import SparseLinear

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_layers")]

bench_model = importlib.import_module("tools.bench.model")
cases = importlib.import_module("tools.bench.model_cases")
checks = importlib.import_module("tools.bench.model_checks")
memory = importlib.import_module("tools.bench.model_memory")
rows = importlib.import_module("tools.bench.model_rows")

SMALL = cases.LlamaSize(hidden=64, intermediate=128, layers=2, vocabulary=96, heads=4, key_value_heads=2)
PLAN = rows.Plan((1, 3), (7,), 5, 4, 3, 1.0, 2, False)
LAYERS = {"encoder": 13, "llama": 14}


@pytest.fixture(autouse=True)
def state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the program sets for the whole process is put back."""
    monkeypatch.setattr(threads, "_num_threads", None)
    before = torch.get_num_threads()
    with torch.no_grad():
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a dense model."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    BertModel(BertConfig(**{**cases.TINY, "num_hidden_layers": 2}, vocab_size=96)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return cases.encoder(str(bert), 0.8, tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return cases.llama(SMALL, 0.7, tmp_path_factory.mktemp("llama"))


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Result:
    quick = bench_model.QUICK._replace(plan=PLAN, llama=SMALL)
    monkeypatch.setattr(bench_model, "QUICK", quick)
    return CliRunner().invoke(bench_model.main, ["--quick", *map(str, arguments)])


def test_quick_run(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.csv"
    options = ("--encoder", bert, "--sparsity", 0.9, "--peers", "csr", "--csv", path)
    result = run(monkeypatch, *options)
    assert result.exit_code == 0, result.output
    for text in ("90% zeros: embeddings within 1e-04", "90% zeros: faster than dense", "weights at most 0.25"):
        assert text in result.output
    for text in ("Llama, 70% zeros: tokens per second", "all of 13 SparseLinear", "all of 14 SparseLinear"):
        assert text in result.output

    with open(path, newline="") as file:
        found = list(csv.DictReader(file))
    assert {(row["model"], row["sparsity"]) for row in found} == {(bert.name, "0.9"), ("Llama", "0.7")}
    embeddings = [row for row in found if row["measured"] == "embed"]
    assert len(embeddings) == 2 * 3  # cases, contenders
    assert {row["contender"] for row in embeddings} == {"torch float32", "sparsefmt", "torch CSR"}
    generated = [row for row in found if row["measured"] == "generate"]
    assert {row["contender"] for row in generated} == {"torch float32", "torch bfloat16", "sparsefmt"}
    times = [row for row in found if row["unit"] == "s"]
    assert {row["measured"] for row in times} == {"embed", "generate", "load", "load and run"}
    assert all(float(row["value"]) > 0 and float(row["spread"]) >= 0 for row in times)
    assert all(float(row["over_dense"]) == 1 for row in times if row["contender"] == "torch float32")
    assert {row["threads"] for row in embeddings} == {"1"}


def test_only_what_is_asked_for(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(monkeypatch, "--only", "encoder", "--encoder", bert)
    assert result.exit_code == 0, result.output
    assert "Llama" not in result.output
    result = run(monkeypatch, "--only", "encoder", "--encoder", bert.parent)
    assert result.exit_code == 1
    assert "has no model.safetensors" in result.output
    assert run(monkeypatch, "--peers", "csr,none").exit_code == 2


def test_dtypes_of_the_llama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "dtypes.csv"
    result = run(monkeypatch, "--compute-dtype", "--csv", path)
    assert result.exit_code == 0, result.output
    assert "Llama, 70% zeros: a text that is read" in result.output
    with open(path, newline="") as file:
        found = list(csv.DictReader(file))
    names = {"torch float32", "torch bfloat16", "sparsefmt float32", "sparsefmt bfloat16"}
    for measured, case in (("generate", "4 after 5"), ("read", "128 tokens")):
        rows = [row for row in found if row["measured"] == measured]
        assert {row["case"] for row in rows} == {case}
        assert {row["contender"] for row in rows} == names | {"sparsefmt bfloat16 in float32"}
    # half of what float32 weights take, and the rest twice what it takes in bfloat16
    weights = {row["contender"]: float(row["value"]) for row in found if row["measured"] == "weights"}
    assert weights["sparsefmt bfloat16 in float32"] == weights["sparsefmt bfloat16"] < weights["sparsefmt float32"]
    assert run(monkeypatch, "--compute-dtype", "--only", "encoder").exit_code == 2


@pytest.mark.parametrize("name", ["encoder", "llama"])
def test_pruned_layers_are_sparse_and_verified(name: str, request: pytest.FixtureRequest) -> None:
    subject = request.getfixturevalue(name)
    models = rows.load_all(subject)
    layers = cases.pruned_layers(models[subject.reference])
    assert len(layers) == LAYERS[name]
    found = [row for row in rows.verified(subject, models, PLAN) if row.measured == rows.SAME_BITS]
    assert [row.value for row in found] == [LAYERS[name]] * 2
    assert all(row.over_dense < 1 for row in rows.stored(subject, models) if row.contender == "sparsefmt")


def test_weights_and_tensors_are_counted_as_held(encoder: Any) -> None:
    dense, ours = encoder.load(encoder.reference), encoder.load(encoder.ours)
    layers = cases.pruned_layers(dense)
    weights, everything = cases.nbytes_of(dense, layers)
    assert weights == sum(dense.get_submodule(name).weight.nbytes for name in layers)
    rest = everything - weights
    weights, everything = cases.nbytes_of(ours, layers)
    assert everything - weights == rest
    assert weights >= sum(ours.get_submodule(name).sparse_tensor().nbytes for name in layers)


def test_another_weight_is_noticed(encoder: Any) -> None:
    dense, ours = encoder.load(encoder.reference), encoder.load(encoder.ours)
    checks.verify_layers(encoder.ours, ours, dense)
    weight = dense.encoder.layer[1].output.dense.weight
    weight[3, torch.nonzero(weight[3])[0]] += 1
    with pytest.raises(click.ClickException, match=r"encoder\.layer\.1\.output\.dense has other weights"):
        checks.verify_layers(encoder.ours, ours, dense)


def test_a_dense_layer_is_noticed(encoder: Any) -> None:
    dense, ours = encoder.load(encoder.reference), encoder.load(encoder.ours)
    ours.pooler.dense = dense.pooler.dense
    with pytest.raises(click.ClickException, match=r"layer pooler\.dense is pruned, and a Linear"):
        checks.verify_layers(encoder.ours, ours, dense)


def test_other_embeddings_are_noticed(encoder: Any) -> None:
    """A bias, which no comparison of weights sees."""
    models = rows.load_all(encoder)
    models[encoder.ours].encoder.layer[0].output.dense.bias += 0.01 * torch.arange(64)
    with pytest.raises(click.ClickException, match="sparsefmt is wrong: an embedding is off by"):
        list(rows.verified(encoder, models, PLAN))


@pytest.mark.parametrize("wrong", [0.0002, float("nan"), float("inf")])
def test_one_wrong_element_is_noticed(wrong: float) -> None:
    expected = torch.zeros(2, 5)
    assert checks.verify_embeddings("ours", expected + 0.00005, expected) == pytest.approx(0.00005)
    found = expected.clone()
    found[1, 2] = wrong
    with pytest.raises(click.ClickException, match="ours is wrong"):
        checks.verify_embeddings("ours", found, expected)


def test_other_logits_are_noticed(llama: Any) -> None:
    models = rows.load_all(llama)
    models[llama.ours].model.norm.weight *= 1.05
    with pytest.raises(click.ClickException, match="sparsefmt is wrong: a logit is off by"):
        list(rows.verified(llama, models, PLAN))


def test_logits_are_compared_with_those_that_are_rounded() -> None:
    exact = torch.tensor([-1.0, 1.0])
    assert checks.verify_logits("ours", exact + 0.3, exact + 0.2, exact) == pytest.approx((0.3 / 2**0.5, 0.2 / 2**0.5))
    for found in (exact + 0.5, exact * float("nan")):
        with pytest.raises(click.ClickException, match="ours is wrong"):
            checks.verify_logits("ours", found, exact + 0.2, exact)


def test_bits_that_depend_on_the_batch_are_noticed(encoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = encoder.load(encoder.ours)
    tokens = cases.tokens_of(model, 4, 5)
    assert checks.verify_rows("ours", model, tokens) == LAYERS["encoder"]
    forward = SparseLinear.forward

    def otherwise(self: SparseLinear, x: torch.Tensor) -> torch.Tensor:
        y = forward(self, x)
        return torch.nextafter(y, y + 1) if len(x) > 1 else y

    monkeypatch.setattr(SparseLinear, "forward", otherwise)
    with pytest.raises(click.ClickException, match="gives a text other bits in a batch than alone"):
        checks.verify_rows("ours", model, tokens)


def test_what_is_fast_is_called_twice_and_timed_the_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []
    for fast, count in ((1e9, 2), (0.0, 1)):
        monkeypatch.setattr(rows, "FAST_SECONDS", fast)
        calls.clear()
        assert 0 < rows.sample(lambda: calls.append(0)) < 1
        assert len(calls) == count


@pytest.mark.skipif(not memory.STATUS.exists(), reason="the system does not say how much memory a process has")
@pytest.mark.thorough
def test_memory_of_a_fresh_process(encoder: Any) -> None:
    growth = memory.in_fresh_process(encoder, encoder.ours, 1)
    assert growth.peak > 0
    assert growth.peak >= growth.private + growth.mapped - (1 << 20)
