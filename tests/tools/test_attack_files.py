"""A sample of the campaigns of tools/fuzz/attack_files.py, and the tool itself."""

from __future__ import annotations

from collections import Counter

import pytest

import sparsefmt
from tools.fuzz import attack_files as attack

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return attack.bases()


@pytest.mark.parametrize("name", attack.CAMPAIGNS)
def test_a_sample(name, files):
    """In the process that runs the tests: a crash of it would be seen."""
    campaign, outcomes = attack.CAMPAIGNS[name], Counter()
    originals = {base: attack.content(data) for base, data in files.items()}
    step = 1501 if "flips" in name else 101 if name not in ("zeroed blocks", "mended blocks") else 7
    for number, (base, damaged) in enumerate(campaign.cases(files)):
        if number % step == 0:
            outcomes[attack.outcome(damaged(), originals[base]).split(":")[0]] += 1
    assert sum(outcomes.values()) > 100
    assert set(outcomes) <= ({"refused"} if campaign.must_refuse else {"refused", "same", "other"})
    if not campaign.must_refuse:
        assert outcomes["refused"] > outcomes["other"] > 0


def test_a_reader_that_dies_or_fails_is_seen(files, monkeypatch):
    name, data = next(iter(files.items()))
    monkeypatch.setattr(attack.sparsefmt, "load", lambda *args, **kwargs: {}["no"])
    assert attack.outcome(data, {}) == "crash: KeyError: 'no'"
    monkeypatch.undo()
    victim = attack.Victim({name: data})
    assert victim.read((name, data)) == "same"
    victim._process.kill()
    victim._process.join()
    assert victim.read((name, data)) == "crash: the process died with -9"
    assert victim.read((name, data[:-1])) == "refused"
    victim.stop()


def test_a_file_that_should_have_been_refused_is_reported(files):
    name, data = next(iter(files.items()))
    harmless = attack.Campaign(lambda files: iter([(name, lambda: files[name]), (name, bytes)]), True)
    report = attack.attack(harmless, {name: data}, 1.0, 0, lambda: None)
    assert report.outcomes == Counter(same=1, refused=1)
    assert report.wrong == [("same", (name, data))]


def test_nothing_is_multiplied_that_was_not_checked(files):
    """The campaigns do multiply: columns out of range in a file whose checksums fit are refused before."""
    from tools.vectors.faults import FAULTS

    beyond = [fault for fault in FAULTS if fault.code == "column-range"]
    assert beyond
    for fault in beyond:
        with pytest.raises(sparsefmt.FormatError, match="column"):
            attack.content(fault.file())
