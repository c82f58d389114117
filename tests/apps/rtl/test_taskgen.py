"""Generated tasks: references agree with golden models that were written apart, splits do not leak, mistakes show."""

from __future__ import annotations

import pytest

from apps.rtl import RtlHarness
from apps.rtl.harness import reference_as_candidate
from apps.rtl.mutate import mutants
from apps.rtl.taskgen import FAMILIES, HELD_FAMILIES, make, members, tasks
from core.errors import ConfigError
from core.execution.tools import has


def test_there_are_many_families_with_three_ways_to_say_each():
    assert len(FAMILIES) >= 14
    for name, family in FAMILIES.items():
        params = members(name)
        assert len(params) >= 8, name
        built = family.build(params[0])
        assert len(set(built.does)) >= 3
        words = {make(name, params[0], frame=f, wording=w).spec for f in range(8) for w in range(3)}
        assert len(words) == 24


def test_splits_do_not_leak():
    train = list(tasks(3000))
    unseen = list(tasks(600, split="unseen_params"))
    held = {e.reference for e in unseen}
    assert not held & {e.reference for e in train}
    assert {e.family for e in unseen} <= {e.family for e in train}
    assert not {(e.spec, e.header) for e in unseen} & {(e.spec, e.header) for e in train}
    assert {e.family for e in tasks(60, split="unseen_family")} == HELD_FAMILIES
    assert not HELD_FAMILIES & {e.family for e in train}
    frames = {e.id[-2] for e in train}
    assert not frames & {e.id[-2] for e in tasks(60, split="unseen_paraphrase")}


def test_equal_seeds_give_equal_tasks_and_bad_names_are_errors():
    assert list(tasks(30, seed=3)) == list(tasks(30, seed=3)) != list(tasks(30, seed=4))
    with pytest.raises(ConfigError, match="unseen_params"):
        list(tasks(1, split="test"))
    with pytest.raises(ConfigError, match="counter"):
        list(tasks(1, families=["countr"]))


@pytest.mark.skipif(not has("iverilog"), reason="Icarus Verilog is absent (Debian package: iverilog)")
def test_a_member_of_every_family_passes_its_own_test_and_its_mutants_do_not():
    harness = RtlHarness()
    killed = total = 0
    for name in FAMILIES:
        example = make(name, members(name)[-1])
        assert harness.verify(example, reference_as_candidate(example)).passed, name
        mutant = next(iter(mutants(example.reference)), None)
        if mutant is not None:
            total += 1
            killed += not harness.verify(example, mutant.code).passed
    assert killed >= 0.8 * total and total >= 14
