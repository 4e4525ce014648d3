"""Readers that are broken in every way that the source of the reader tells: the list of those that no vector catches is
kept true, and a sample of the others is caught. `python -m tools.vectors.mutants` runs all."""

from __future__ import annotations

import pytest

from tools.vectors import mutants

EVERY = 300
"""One in so many. CI runs all of them."""


def test_the_list_names_mutants():
    """Each is still there, and has a reason. Of a reader that was edited, the tool says which are not caught."""
    names = {mutant.name for mutant in mutants.mutants()}
    assert len(names) > 1500
    accepted = mutants.accepted()
    assert [name for name in accepted if name not in names] == []
    assert all(accepted.values())
    assert len(accepted) < 0.1 * len(names)


@pytest.mark.slow
def test_a_sample_is_caught():
    accepted = mutants.accepted()
    sample = [mutant for mutant in mutants.mutants() if mutant.name not in accepted][::EVERY]
    assert [mutant.name for mutant, vector in mutants.Run(2).caught(sample) if mutant and vector is None] == []


def test_a_mutant_meets_the_vectors_that_come_to_it():
    """One that is refused at its first bytes, and a good one, which has no codec."""
    (refused, *_) = (vector for vector in mutants.manifest() if vector.startswith("bad/not-sparsefmt/"))
    both = [refused, "good/edges-dense-raw.sparsefmt"]
    run = mutants.Run(1, both, mutants.vectors_that_come_to_statements(2, both))

    def met(function: str) -> set[tuple[str, ...]]:
        return {tuple(run._vectors_for(mutant)) for mutant in mutants.mutants() if mutant.function == function}

    assert met("rans.read_classes") == {()}
    assert met("layouts.check_dense") == met("container.read_kind") == {tuple(both[1:])}
    assert met("container.check_preamble") == {tuple(both), tuple(both[1:])}
    # constants are set when the reader is imported
    assert met("faults") == {tuple(both)}


@pytest.mark.slow
def test_a_mutant_that_no_vector_catches_is_told():
    """Whatever its message is, an error is the same. Files without a fault have none."""
    (mutant,) = [mutant for mutant in mutants.mutants() if mutant.function == "faults.Fault.__init__"]
    bad = [vector for vector in mutants.manifest() if vector.startswith("bad/")]
    assert len(bad) > 250
    assert [vector for _, vector in mutants.Run(1, bad).caught([mutant])] == [None]
