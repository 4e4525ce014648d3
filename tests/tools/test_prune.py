"""The programs in tools/ that make pruned input: exact counts, patterns, signs of zero, and what is left alone."""

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors import safe_open
from safetensors.numpy import save_file

from tools import make_checkpoint, prune, pruning
from tools.safetensors_io import read_safetensors

PROJECTION = "layers.0.q_proj.weight"
CONVOLUTION = "layers.1.conv.weight"
DENSE_NAMES = ["embed.weight", "layers.0.LayerNorm.weight", "layers.0.q_proj.bias", "positions.weight"]


def bits(values: np.ndarray[Any, Any]) -> bytes:
    return values.tobytes()


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "model.safetensors"
    save_file(
        {
            PROJECTION: rng.standard_normal((10, 30), np.float32),
            CONVOLUTION: 2 * rng.standard_normal((6, 3, 5), np.float32),
            "embed.weight": rng.standard_normal((7, 4), np.float32),
            "layers.0.LayerNorm.weight": rng.standard_normal((10, 2), np.float32),
            "layers.0.q_proj.bias": rng.standard_normal(10, np.float32),
            "positions.weight": np.arange(12, dtype=np.int64).reshape(3, 4),
        },
        path,
        metadata={"format": "pt", "origin": "a test"},
    )
    return path


def write_raw_safetensors(path: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
    """A file of tensors given as dtype, shape and content, for dtypes that numpy does not have."""
    header, data = {}, b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    header_text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(header_text)) + header_text + data)


def run_prune(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "100"}).invoke(prune.main, [str(argument) for argument in arguments])


def pruned_arrays(model_path: Path, *arguments: object) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of the file that the program writes with those options; those not of floats as flat bytes."""
    out = model_path.with_name("pruned.safetensors")
    result = run_prune(model_path, out, *arguments)
    assert result.exit_code == 0, result.output
    return {name: tensor.values for name, tensor in read_safetensors(out)[0].items()}


def original_arrays(model_path: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {name: tensor.values for name, tensor in read_safetensors(model_path)[0].items()}


@pytest.mark.parametrize("sparsity", [0.0, 0.33, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_magnitude_prunes_exactly_the_smallest_however_many_are_equal(dtype: Any, sparsity: float) -> None:
    # Steps of 1/4: most magnitudes are equal to others in every dtype.
    weight = (np.random.default_rng(1).integers(-8, 9, (13, 17)) / 4).astype(dtype)
    order = np.argsort(np.abs(weight.astype(np.float64)).ravel(), kind="stable")
    expected = np.ones(weight.size, bool)
    expected[order[: round(sparsity * weight.size)]] = False
    np.testing.assert_array_equal(pruning.magnitude_mask(weight, sparsity), expected.reshape(weight.shape))


def test_row_scope_prunes_the_same_count_in_every_row_of_the_matrix_view() -> None:
    weight = np.random.default_rng(2).standard_normal((9, 3, 7))
    weight *= np.arange(1, 10)[:, None, None]
    mask = pruning.magnitude_mask(weight, 0.3, "row")
    assert mask.shape == weight.shape
    assert (np.count_nonzero(~mask.reshape(9, 21), axis=1) == round(0.3 * 21)).all()
    for row, row_mask in zip(np.abs(weight), mask, strict=True):
        assert row[~row_mask].max() <= row[row_mask].min()


def test_global_scope_uses_one_threshold_over_all_tensors(model_path: Path) -> None:
    pruned = pruned_arrays(model_path, "--method", "magnitude", "--scope", "global", "--sparsity", "0.61")
    original = original_arrays(model_path)
    names = (PROJECTION, CONVOLUTION)
    zero = np.concatenate([pruned[name].ravel() == 0 for name in names])
    magnitude = np.abs(np.concatenate([original[name].ravel() for name in names]))
    assert np.count_nonzero(zero) == round(0.61 * (300 + 90))
    assert magnitude[zero].max() <= magnitude[~zero].min()
    # The weights of the convolution are twice as large.
    assert (pruned[PROJECTION] == 0).mean() > 0.61 > (pruned[CONVOLUTION] == 0).mean()


def test_nan_counts_as_infinite_and_keeps_the_count_exact() -> None:
    weight = np.array([[1.0, np.nan, 3.0, np.inf, np.nan]])
    np.testing.assert_array_equal(pruning.magnitude_mask(weight, 0.4), [[0, 1, 0, 1, 1]])
    np.testing.assert_array_equal(pruning.magnitude_mask(weight, 0.8), [[0, 0, 0, 0, 1]])


def test_float64_is_compared_in_full_precision() -> None:
    np.testing.assert_array_equal(pruning.magnitude_mask(np.array([1 + 1e-12, 1.0]), 0.5), [1, 0])


def test_wanda_weighs_columns_by_their_input_norms() -> None:
    weight = np.array([[1.0, -2.0, 3.0, -4.0], [4.0, 3.0, 2.0, 1.0]], np.float32)
    norms = np.array([100.0, 1.0, 1.0, 0.1])
    np.testing.assert_array_equal(pruning.wanda_mask(weight, norms, 0.5), [[1, 0, 1, 0], [1, 1, 0, 0]])
    with pytest.raises(ValueError, match="needs"):
        pruning.wanda_mask(weight, norms[:3], 0.5)


def test_wanda_reads_norms_from_a_file_and_else_draws_them_from_the_seed(model_path: Path) -> None:
    norms_path = model_path.with_name("norms.safetensors")
    input_norms = np.where(np.arange(30) < 15, 1e-6, 1e6).astype(np.float32)
    save_file({PROJECTION: input_norms}, norms_path)
    options = ("--method", "wanda", "--sparsity", "0.5", "--include", "q_proj.weight")
    pruned = pruned_arrays(model_path, *options, "--norms", norms_path)[PROJECTION]
    np.testing.assert_array_equal(pruned == 0, np.broadcast_to(np.arange(30) < 15, (10, 30)))

    draws = [bits(pruned_arrays(model_path, *options, "--seed", seed)[PROJECTION]) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    unweighted = pruned_arrays(model_path, "--method", "magnitude", "--scope", "row", "--include", "q_proj.weight")
    assert draws[0] != bits(unweighted[PROJECTION])


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 5)])
def test_nm_keeps_the_n_largest_of_every_m_and_the_rest_of_a_row_dense(n: int, m: int) -> None:
    weight = np.random.default_rng(3).standard_normal((5, 2, 11)).astype(np.float32)
    matrix, mask = np.abs(weight.reshape(5, 22)), pruning.nm_mask(weight, n, m).reshape(5, 22)
    groups, group_masks = matrix[:, :20].reshape(-1, m), mask[:, :20].reshape(-1, m)
    assert (np.count_nonzero(group_masks, axis=1) == n).all()
    for group, group_mask in zip(groups, group_masks, strict=True):
        assert group[~group_mask].max() < group[group_mask].min()
    assert mask[:, 20:].all()
    assert pruning.nm_mask(weight.reshape(-1, 2), n, m).all()


def test_block_drops_whole_blocks_with_smaller_ones_at_the_edges() -> None:
    weight = np.ones((10, 7), np.float32)
    weight[4:8, 3:6] = weight[8:10, 0:3] = weight[0:4, 6:7] = -0.5
    expected = np.abs(weight) == 1
    # Rows 4 + 4 + 2 by columns 3 + 3 + 1: nine blocks, of which three have the smaller values.
    for norm in ("l1", "l2"):
        np.testing.assert_array_equal(pruning.block_mask(weight, (4, 3), 1 / 3, norm), expected)


def test_block_norms_rank_differently() -> None:
    weight = np.array([[3.0, 0.0, 2.0, 2.0]])
    np.testing.assert_array_equal(pruning.block_mask(weight, (1, 2), 0.5, "l1"), [[0, 0, 1, 1]])
    np.testing.assert_array_equal(pruning.block_mask(weight, (1, 2), 0.5, "l2"), [[1, 1, 0, 0]])


def test_block_larger_than_the_weight_is_one_block() -> None:
    weight = np.ones((3, 5), np.float32)
    assert pruning.block_mask(weight, (8, 8), 0.4).all()
    assert not pruning.block_mask(weight, (8, 8), 0.6).any()


@pytest.mark.parametrize("cast", [None, "f32", "bf16", "f16"])
@pytest.mark.parametrize("multiply", [False, True])
def test_only_mask_multiply_leaves_negative_zeros(model_path: Path, multiply: bool, cast: str | None) -> None:
    options = ["--method", "magnitude", "--sparsity", "0.7", *(["--cast", cast] if cast else [])]
    pruned = pruned_arrays(model_path, *options, *(["--mask-multiply"] if multiply else []))[PROJECTION]
    original = original_arrays(model_path)[PROJECTION].astype(pruned.dtype)
    zero = pruned == 0
    assert np.count_nonzero(zero) == 210
    assert bits(pruned[~zero]) == bits(original[~zero])
    expected_signs = np.signbit(original[zero]) if multiply else np.zeros(210, bool)
    np.testing.assert_array_equal(np.signbit(pruned[zero]), expected_signs)


def test_cast_comes_before_the_decision(model_path: Path) -> None:
    # Three weights that are one number in bfloat16: the earliest go, not the smallest.
    save_file({PROJECTION: np.array([[1.003, 1.002, 1.001, 2.0]], np.float32)}, model_path)
    options = ("--method", "magnitude", "--sparsity", "0.5")
    np.testing.assert_array_equal(pruned_arrays(model_path, *options)[PROJECTION] == 0, [[0, 1, 1, 0]])
    pruned = pruned_arrays(model_path, *options, "--cast", "bf16")[PROJECTION]
    assert pruned.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(pruned.astype(np.float32), [[0, 0, 1, 2]])


def test_cast_reaches_the_tensors_that_are_not_pruned_but_no_integers(model_path: Path) -> None:
    pruned = pruned_arrays(model_path, "--method", "nm", "--cast", "bf16")
    original = original_arrays(model_path)
    for name in DENSE_NAMES[:3]:
        assert bits(pruned[name]) == bits(original[name].astype(ml_dtypes.bfloat16))
    assert bits(pruned["positions.weight"]) == bits(original["positions.weight"])


def test_tensors_not_selected_pass_through_bit_for_bit(model_path: Path) -> None:
    pruned, original = pruned_arrays(model_path, "--method", "magnitude"), original_arrays(model_path)
    assert pruned.keys() == original.keys()
    assert {name for name in original if bits(pruned[name]) == bits(original[name])} == set(DENSE_NAMES)


def test_dtypes_that_numpy_does_not_know_pass_through(model_path: Path) -> None:
    stored = {
        PROJECTION: ("BF16", [2, 2], np.array([1, -2, 3, 4], ml_dtypes.bfloat16).tobytes()),
        "packed.weight": ("F4", [2, 4], b"\x12\x34\x56\x78"),
        "scales.weight": ("F8_E8M0", [2, 3], bytes(range(6))),
    }
    write_raw_safetensors(model_path, stored)
    pruned_arrays(model_path, "--method", "magnitude", "--mask-multiply")
    tensors, _ = read_safetensors(model_path.with_name("pruned.safetensors"))
    for name in ("packed.weight", "scales.weight"):
        dtype, shape, content = stored[name]
        assert (tensors[name].dtype, list(tensors[name].shape), bits(tensors[name].values)) == (dtype, shape, content)
    assert bits(tensors[PROJECTION].values) == np.array([0.0, -0.0, 3, 4], ml_dtypes.bfloat16).tobytes()


def test_metadata_is_kept_and_the_settings_added(model_path: Path) -> None:
    pruned_arrays(model_path, "--method", "block", "--block", "2x3", "--sparsity", "0.25", "--mask-multiply")
    with safe_open(model_path.with_name("pruned.safetensors"), framework="np") as file:
        metadata = file.metadata()
    settings = json.loads(metadata.pop("pruned_by"))
    assert metadata == {"format": "pt", "origin": "a test"}
    assert settings == {
        "method": "block",
        "block": [2, 3],
        "block_norm": "l1",
        "sparsity": 0.25,
        "cast": None,
        "mask_multiply": True,
        "include": prune.DEFAULT_INCLUDE,
        "exclude": None,
    }


@pytest.mark.parametrize(
    ("options", "pruned_names"),
    [
        ([], {PROJECTION, CONVOLUTION}),
        (["--exclude", r"layers\.1"], {PROJECTION}),
        (["--include", "embed|conv"], {"embed.weight", CONVOLUTION}),
        (["--include", ".", "--exclude", "embed"], {PROJECTION, CONVOLUTION, "layers.0.LayerNorm.weight"}),
    ],
)
def test_include_and_exclude_select_by_name(model_path: Path, options: list[str], pruned_names: set[str]) -> None:
    original = original_arrays(model_path)
    pruned = pruned_arrays(model_path, "--method", "magnitude", *options)
    assert {name for name in original if bits(pruned[name]) != bits(original[name])} == pruned_names


def test_table_counts_every_group(model_path: Path) -> None:
    result = run_prune(model_path, model_path.with_name("out"), "--method", "magnitude", "--sparsity", "0.8")
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.output.splitlines()]
    assert ["layers.*.q_proj.weight", "1", "300", "240", "80.000"] in cells
    assert ["total", "6", "460", "312", f"{100 * 312 / 460:.3f}"] in cells


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--method", "unknown"],
        ["--method", "magnitude", "--sparsity", "1.5"],
        ["--method", "magnitude", "--block", "4x4"],
        ["--method", "nm", "--sparsity", "0.5"],
        ["--method", "nm", "--n", "4", "--m", "4"],
        ["--method", "block", "--block", "4by4"],
        ["--method", "block", "--block", "0x4"],
        ["--method", "magnitude", "--include", "("],
    ],
)
def test_bad_usage_exits_with_2(model_path: Path, options: list[str]) -> None:
    out = model_path.with_name("out.safetensors")
    result = run_prune(model_path, out, *options)
    assert result.exit_code == 2
    assert sum(line.startswith("Error: ") for line in result.output.splitlines()) == 1
    assert not out.exists()


def test_bad_input_exits_with_1_and_one_line(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_path.parent
    (folder / "text.safetensors").write_text("not a safetensors file")
    (folder / "cut.safetensors").write_bytes(model_path.read_bytes()[:-1])
    write_raw_safetensors(
        folder / "six_bits.safetensors",
        {PROJECTION: ("F32", [1, 1], bytes(4)), "scales.weight": ("F6_E2M3", [2, 2], bytes(3))},
    )
    save_file({PROJECTION: np.ones(29, np.float32)}, folder / "short_norms.safetensors")
    (folder / "empty_package").mkdir()
    (folder / "unwilling_package").mkdir()
    (folder / "unwilling_package" / "__init__.py").write_text("raise RuntimeError('the package was run')")
    monkeypatch.syspath_prepend(folder)
    out = folder / "out.safetensors"
    magnitude: list[str | Path] = ["--method", "magnitude"]
    wanda: list[str | Path] = ["--method", "wanda", "--norms"]
    cases: list[tuple[Path | str, Path, list[str | Path]]] = [
        (folder / "missing.safetensors", out, magnitude),
        (folder, out, magnitude),
        (folder / "text.safetensors", out, magnitude),
        (folder / "cut.safetensors", out, magnitude),
        (folder / "six_bits.safetensors", out, magnitude),
        (model_path, folder / "missing" / "out.safetensors", magnitude),
        (model_path, out, [*magnitude, "--include", "no such name"]),
        (model_path, out, [*wanda, folder / "missing.safetensors"]),
        (model_path, out, [*wanda, folder / "short_norms.safetensors"]),
        ("package:no_such_package_anywhere", out, magnitude),
        ("package:empty_package", out, magnitude),
        ("package:unwilling_package.model", out, magnitude),
        ("package:", out, magnitude),
    ]
    for source, target, options in cases:
        result = run_prune(source, target, *options)
        assert (result.exit_code, len(result.output.splitlines())) == (1, 1), (source, options, result.output)
        assert result.output.startswith("Error: ")
        assert not out.exists()


def test_model_inside_a_package_is_found_without_running_the_package(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = model_path.parent / "some_packaged_model"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('the package was run')")
    model_path.rename(package / "model" / "model.safetensors")
    monkeypatch.syspath_prepend(model_path.parent)
    for name in ("some_packaged_model", "some-packaged-model"):
        result = run_prune(f"package:{name}", model_path, "--method", "magnitude")
        assert result.exit_code == 0, result.output


def run_make_checkpoint(*arguments: object) -> Result:
    return CliRunner().invoke(make_checkpoint.main, [str(argument) for argument in arguments])


@pytest.mark.parametrize(("dtype", "shards"), [("bf16", 3), ("f32", 1)])
def test_checkpoint_index_agrees_with_its_shards(tmp_path: Path, dtype: str, shards: int) -> None:
    folder = tmp_path / "checkpoint"
    result = run_make_checkpoint(
        folder, "--gigabytes", "0.002", "--shards", shards, "--dtype", dtype, "--sparsity", "0.6"
    )
    assert result.exit_code == 0, result.output
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    shard_names = [f"model-{number:05d}-of-{shards:05d}.safetensors" for number in range(1, shards + 1)]
    assert sorted(path.name for path in folder.glob("*.safetensors")) == shard_names

    tensors, weight_map = {}, {}
    for shard_name in shard_names:
        shard, metadata = read_safetensors(folder / shard_name)
        assert shard
        assert metadata == {"format": "pt"}
        tensors.update(shard)
        weight_map.update(dict.fromkeys(shard, shard_name))
    assert index["weight_map"] == weight_map
    sizes = [tensor.values.nbytes for tensor in tensors.values()]
    assert index["metadata"]["total_size"] == sum(sizes) == pytest.approx(2e6, rel=0.05)
    assert {tensor.dtype for tensor in tensors.values()} == {dtype.upper()}
    assert tensors["model.embed_tokens.weight"].shape == (config["vocab_size"], config["hidden_size"])
    assert tensors["model.layers.0.mlp.up_proj.weight"].shape == (config["intermediate_size"], config["hidden_size"])
    assert tensors["model.norm.weight"].values.astype(np.float32) == pytest.approx(1, abs=0.2)
    for name, tensor in tensors.items():
        dense = "embed" in name or "norm" in name
        share_of_zeros = np.mean(tensor.values == 0)
        assert share_of_zeros < 0.001 if dense else share_of_zeros == pytest.approx(0.6, abs=0.02), name


def test_checkpoint_values_depend_on_the_seed_and_not_on_the_shards(tmp_path: Path) -> None:
    contents = []
    for number, (shards, seed) in enumerate([(1, 5), (4, 5), (1, 6)]):
        folder = tmp_path / str(number)
        assert run_make_checkpoint(folder, "--gigabytes", 0.001, "--shards", shards, "--seed", seed).exit_code == 0
        tensors: dict[str, Any] = {}
        for path in folder.glob("*.safetensors"):
            tensors.update(read_safetensors(path)[0])
        contents.append({name: bits(tensor.values) for name, tensor in tensors.items()})
    assert contents[0] == contents[1]
    assert all(contents[0][name] != contents[2][name] for name in contents[0])


@pytest.mark.parametrize("gigabytes", [0.01, 0.1, 1, 2, 10, 100])
def test_checkpoint_sizes_scale(gigabytes: float) -> None:
    shapes = make_checkpoint.tensor_shapes(make_checkpoint.config_of_size(round(gigabytes * 1e9 / 2)))
    sizes = {name: 2 * int(np.prod(shape)) for name, shape in shapes.items()}
    assert sum(sizes.values()) == pytest.approx(gigabytes * 1e9, rel=0.02)
    assert 0.04 < max(sizes.values()) / sum(sizes.values()) < 0.1
    shard_sizes = [sum(sizes[name] for name in run) for run in make_checkpoint.split_into_shards(sizes, 4)]
    assert max(shard_sizes) < 0.5 * sum(sizes.values())
    assert make_checkpoint.split_into_shards(sizes, len(sizes)) == [[name] for name in sizes]


def test_checkpoint_refusals(tmp_path: Path) -> None:
    assert run_make_checkpoint(tmp_path, "--gigabytes", "0").exit_code == 2
    assert run_make_checkpoint(tmp_path, "--gigabytes", "0.001", "--shards", "1000").exit_code == 2
    assert run_make_checkpoint(tmp_path, "--gigabytes", "0.001").exit_code == 0
    (tmp_path / "file").touch()
    for folder in (tmp_path, tmp_path / "file"):
        result = run_make_checkpoint(folder, "--gigabytes", "0.001")
        assert (result.exit_code, len(result.output.splitlines())) == (1, 1), result.output
