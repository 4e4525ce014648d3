"""What a reader and a writer of files from strangers have to do, line by line, and the tests that show it.

Lines that are about how the project works name its tools, too.
"""

from __future__ import annotations

import ast
from pathlib import Path

from helpers import ROOT

CHECKLIST: dict[int, tuple[str, list[str]]] = {
    1: (
        "magic, version and feature bits come first, and what this version does not know is refused by name",
        [
            "tests/container/test_container.py::test_envelope_fault",
            "tests/container/test_container.py::test_other_files_are_named",
            "tests/spec/test_spec.py::test_preamble_and_trailer",
        ],
    ),
    2: (
        "every byte belongs to something, and padding is zero",
        [
            "tests/container/test_container.py::test_every_changed_byte_is_refused",
            "tests/container/test_container.py::test_appended_and_zeroed_bytes_are_refused",
            "tests/container/test_container.py::test_index_fault",
            "tests/spec/test_spec_reader.py::test_fault",
        ],
    ),
    3: (
        "one content has one encoding, of the index and of each tile",
        [
            "tests/container/test_container.py::test_index_encoding_is_canonical_msgpack",
            "tests/container/test_index_bytes.py::test_values",
            "tests/layouts/test_layouts.py::test_check_refuses",
            "tests/cli/test_commands.py::test_strict_finds_what_checks_might_overlook",
            "tests/cli/test_commands.py::test_strict_accepts_what_is_in_its_only_form",
            "tests/test_api.py::test_save_is_deterministic_and_threads_do_not_matter",
        ],
    ),
    4: (
        "the index takes a part of msgpack that is given byte by byte",
        [
            "tests/container/test_index_bytes.py::test_values",
            "tests/container/test_index_bytes.py::test_every_first_byte_is_in_one_of_the_lists",
            "tests/container/test_container.py::test_index_bytes",
        ],
    ),
    5: (
        "limits are numbers in SPEC.md, and files beyond each are tried",
        [
            "tests/test_writer_refuses.py::test_limits_of_a_file",
            "tests/spec/test_spec.py::test_limits",
            "tests/container/test_container.py::test_index_fault",
            "tests/spec/test_spec_reader.py::test_fault",
            "tests/spec/test_conformance.py::test_readers_in_python",
            "tests/spec/test_conformance.py::test_large_files",
        ],
    ),
    6: (
        "memory goes with what is there, not with what is claimed",
        [
            "tests/container/test_index_bytes.py::test_lies_take_no_memory",
            "tests/container/test_index_bytes.py::test_numbers_at_the_ends_are_refused_by_their_code",
            "tests/container/test_index_bytes.py::test_an_index_takes_memory_in_proportion_to_its_size",
            "tests/container/test_container.py::test_a_claimed_terabyte_is_refused_before_it_is_allocated",
            "tests/layouts/test_memory.py::test_a_claim_reserves_no_more_than_a_region",
        ],
    ),
    7: (
        "numbers at the ends of 31, 32, 53 and 63 bits are read right, and addresses beyond 32 bits are right",
        [
            "tests/container/test_index_bytes.py::test_numbers_at_the_ends_are_refused_by_their_code",
            "tests/container/test_index_bytes.py::test_empty_tensors_of_any_size_are_read",
            "tests/test_far_ends.py::test_more_positions_than_32_bits_can_number",
            "tests/test_far_ends.py::test_other_layouts_of_it",
            "tests/test_far_ends.py::test_the_widest_row",
            "tests/test_far_ends.py::test_more_elements_than_32_bits_can_number",
            "tests/test_far_ends.py::test_more_values_than_31_bits_can_number",
            "tests/test_far_ends.py::test_through_a_file",
        ],
    ),
    8: (
        "indices stay in the matrix, counts agree with masks, unused bits are zero, and no switch turns that off",
        [
            "tests/layouts/test_layouts.py::test_check_refuses",
            "tests/layouts/test_layouts.py::test_bool_and_packed_padding",
            "tests/spec/test_spec_reader.py::test_fault",
            "tests/checkpoints/test_verification.py::test_forged_totals_are_found_by_verifying",
            "tests/tools/test_attack_files.py::test_nothing_is_multiplied_that_was_not_checked",
            "tests/test_strangers.py::test_no_argument_turns_checks_off",
        ],
    ),
    9: (
        "what is decoded has a budget, compared before memory is taken; to be dense has to be asked for",
        [
            "tests/container/test_budget.py::test_default",
            "tests/container/test_budget.py::test_a_loaded_tensor_remembers_it",
            "tests/container/test_budget.py::test_raised_and_lowered",
            "tests/container/test_budget.py::test_together",
            "tests/container/test_budget.py::test_rows_for_other_formats",
        ],
    ),
    10: (
        "tables of the entropy decoder are checked, streams end exactly, and nothing is written beside the output",
        [
            "tests/codecs/test_rans.py::TestFrequencies::test_any_bits_make_a_table_or_an_error",
            "tests/codecs/test_rans.py::TestFrequencies::test_sum_and_cover",
            "tests/codecs/test_rans.py::TestBits::test_unused_bits_must_be_zero",
            "tests/codecs/test_rans.py::TestDamage::test_any_changed_byte_is_refused_or_decodes_within_its_size",
            "tests/codecs/test_rans.py::TestDamage::test_any_bytes",
            "tests/spec/test_spec_reader.py::test_mutations_of_rans",
            "tests/codecs/test_codecs.py::test_zstd_refuses",
            "tests/codecs/test_codecs.py::test_any_changed_byte_is_refused_or_decodes_within_its_size",
        ],
    ),
    11: (
        "kernels see tensors that were checked, and nobody can change them afterwards",
        [
            "tests/test_api.py::TestSparseTensor::test_immutable",
            "tests/test_api.py::TestSparseTensor::test_copies_and_pickles",
            "tests/tools/test_attack_files.py::test_nothing_is_multiplied_that_was_not_checked",
            "tests/test_strangers.py::test_forged_pickles_are_checked",
            "tests/tools/test_hammer_threads.py::test_a_short_run",
        ],
    ),
    12: (
        "decoding and products are those of a slow reference, and nothing that is given is changed",
        [
            "tests/spec/test_conformance.py::test_readers_in_python",
            "tests/kernels/test_kernels.py::test_equal_to_the_naive_order",
            "tests/kernels/test_kernels.py::TestFrontEnd::test_x_is_not_changed",
            "tests/test_strangers.py::test_what_is_saved_is_not_changed",
        ],
    ),
    13: (
        "index and tensors have checksums, which every way of reading verifies",
        [
            "tests/test_strangers.py::test_every_way_of_reading_verifies",
            "tests/container/test_container.py::test_envelope_fault",
            "tests/cli/test_commands.py::test_damage_names_the_tensor",
        ],
    ),
    14: (
        "every flipped bit is noticed, and with checksums that fit nothing crashes",
        [
            "tests/tools/test_attack_files.py::test_a_sample",
            "tests/container/test_container.py::test_every_changed_byte_is_refused",
            "tests/container/test_container.py::test_mutations_with_mended_checksums_give_tensors_or_an_error",
            "tools/fuzz/attack_files.py",
        ],
    ),
    15: (
        "a file that is cut off anywhere, or ends in zeros, is refused",
        [
            "tests/tools/test_attack_files.py::test_a_sample",
            "tests/container/test_container.py::test_every_truncation_is_refused",
            "tests/container/test_container.py::test_appended_and_zeroed_bytes_are_refused",
        ],
    ),
    16: (
        "a save is a file of its own, synced and renamed: the old file or the new one, whatever happens",
        [
            "tests/tools/test_crash_saves.py::test_a_short_run",
            "tests/container/test_atomic.py::TestDisks::test_full",
            "tests/container/test_atomic_destinations.py::TestPermissions::test_an_old_files_are_kept",
            "tests/container/test_atomic_destinations.py::TestPermissions::test_a_new_file_has_the_umasks",
            "tests/container/test_atomic.py::TestOrderOfSystemCalls::test_of_save_file",
            "tests/test_concurrency.py::TestFilesThatChange::test_readers_keep_the_file_that_they_have_opened",
            "tests/test_api.py::test_a_loaded_tensor_saved_over_its_own_file",
            "tests/test_store_machine.py::test_any_order_of_steps",
            "tools/fuzz/crash_saves.py",
        ],
    ),
    17: (
        "the writer refuses what a reader would refuse",
        [
            "tests/test_writer_refuses.py::test_what_is_accepted_can_be_read",
            "tests/test_writer_refuses.py::test_names_and_metadata",
            "tests/test_writer_refuses.py::test_shapes_without_elements",
            "tests/test_writer_refuses.py::test_old_files_stay",
            "tests/test_api.py::TestBadInput::test_tensors",
        ],
    ),
    18: (
        "readers are fuzzed, beside each other, also in CI",
        [
            "tests/spec/test_c_reader.py::test_mutated_files_are_read_or_refused_alike",
            "tests/spec/test_spec_reader.py::test_mutations",
            "tests/spec/test_spec_reader.py::test_mutations_of_rans",
            "tests/tools/test_fuzz_reader.py::test_a_short_run",
            "tools/fuzz/c_reader.py",
            "tools/fuzz/reader.py",
        ],
    ),
    19: (
        "there is a file for each fault, named after it, with the code that a reader gives",
        [
            "tests/spec/test_spec_reader.py::test_every_code_of_section_7_is_here",
            "tests/spec/test_golden.py::test_every_file_is_in_the_manifest",
            "tests/spec/test_conformance.py::test_readers_in_python",
            "tools/vectors/make.py",
            "tools/vectors/conformance.py",
        ],
    ),
    20: (
        "SECURITY.md says against what, what is promised, what is not, and how that is tested",
        ["tests/test_strangers.py::test_what_security_names_is_there"],
    ),
    21: (
        "nothing in a file is evaluated, imported or looked up",
        [
            "tests/test_strangers.py::test_no_code_comes_from_data",
            "tests/test_strangers.py::test_reading_runs_nothing",
        ],
    ),
    22: (
        "opening takes time in proportion to tensors and chunks",
        [
            "tests/test_strangers.py::test_a_hundred_thousand_tensors_take_twice_the_steps_of_fifty_thousand",
            "tests/tools/test_attack_index.py::test_large_indices_take_memory_in_proportion",
        ],
    ),
}


def proofs_in(path: Path) -> dict[str, ast.FunctionDef]:
    """Tests of a file: functions, and methods of classes as Class::method."""
    found = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{inner.name}": inner for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return {name: node for name, node in found.items() if name.split("::")[-1].startswith("test_")}


CHECKS = ("raises", "check", "assert", "refuse", "outcome", "expect", "load")
"""What a call that can fail begins with, in its last part; `load` in tests of which any error but ours is a fault."""


def can_fail(test: ast.FunctionDef) -> bool:
    """Whether a test asserts something, expects an error, or calls a check that does."""
    nodes = list(ast.walk(test))
    calls = [ast.unparse(node.func).split(".")[-1] for node in nodes if isinstance(node, ast.Call)]
    return any(isinstance(node, ast.Assert) for node in nodes) or any(name.startswith(CHECKS) for name in calls)


def test_every_line_names_tests_that_exist():
    assert list(CHECKLIST) == list(range(1, 23))
    for number, (words, proofs) in CHECKLIST.items():
        assert words
        assert any(proof.startswith("tests/") for proof in proofs), number
        for proof in proofs:
            path, _, test = proof.partition("::")
            assert (ROOT / path).is_file(), proof
            if test:
                assert test in proofs_in(ROOT / path), proof
                assert can_fail(proofs_in(ROOT / path)[test]), f"{proof} asserts nothing"
