"""Programs that try to get out: all of them in the quick suite where a run is short, in every backend at length."""

from __future__ import annotations

import pytest

from benchmarks import hostile
from core.execution import Sandbox

AVAILABLE = [probe.name for probe in Sandbox.probe() if probe.available]


@pytest.fixture(scope="module")
def host():
    with hostile.bait() as found:
        yield found


def _held(host, backend: str, attack: hostile.Attack) -> None:
    found = hostile.attack(host, backend, attack)
    assert not found.problems, found.problems


@pytest.mark.skipif("bwrap" not in AVAILABLE, reason="bubblewrap does not work here (Debian package: bubblewrap)")
@pytest.mark.parametrize("attack", hostile.ATTACKS, ids=lambda a: a.name)
def test_bubblewrap_holds(host, attack):
    if attack.wall_s == hostile.WALL:
        pytest.skip("runs into its time limit; the slow form does it")
    _held(host, "bwrap", attack)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["bwrap", "unshare", "landlock", "rlimit"])
def test_every_backend_holds_what_it_claims(host, backend):
    if backend not in AVAILABLE:
        pytest.skip(next(p.reason for p in Sandbox.probe() if p.name == backend))
    for attack in hostile.claimed(backend):
        _held(host, backend, attack)


@pytest.mark.skipif("rlimit" not in AVAILABLE, reason="no backend works here")
def test_the_suite_can_fail(host):
    weak = next(a for a in hostile.ATTACKS if a.name == "reads a host file")
    assert any("got out" in problem for problem in hostile.attack(host, "rlimit", weak).problems)


def test_there_are_at_least_forty_programs_with_names_of_their_own():
    assert len({a.name for a in hostile.ATTACKS}) == len(hostile.ATTACKS) >= 40
