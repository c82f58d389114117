"""Comparisons: who is missing decides nothing, other rows void the figure, and the rows are the same for all."""

from __future__ import annotations

import pytest

from benchmarks.bar import Unavailable
from benchmarks.peers import compare
from benchmarks.peers.job import JOBS, rows


def result(rate, peak, losses=(2.0, 1.9, 1.8)):
    return {"tokens_per_s": rate, "peak_gib": peak, "losses": list(losses)}


def judged(**results):
    return compare.judged(results, speed={"peer": 1.0}, memory={"peer": 1.05})


def test_verdicts():
    assert judged(graft=result(110, 10), peer=result(100, 10)).passed is True
    assert judged(graft=result(90, 10), peer=result(100, 10)).passed is False
    assert judged(graft=result(110, 11), peer=result(100, 10)).passed is False
    assert judged(graft=result(110, 10), peer=result(100, 10, (2.1, 1.9, 1.8))).passed is False
    missing = judged(graft=result(110, 10), peer={"unavailable": "no module"})
    assert missing.passed is None and missing.baseline == {"peer": "no module"}


def test_turns_are_interleaved_and_a_peer_that_fails_is_asked_once(monkeypatch, tmp_path):
    asked = []

    def fake(name, job, work, *more):
        asked.append(name)
        if name == "trl":
            raise Unavailable("not here")
        return result(100 + len(asked), 1)

    monkeypatch.setattr(compare, "run_peer", fake)
    found = compare.in_turns(["graft", "trl", "unsloth"], "J1", tmp_path, repeats=3)
    assert asked == ["graft", "trl", "unsloth", "graft", "unsloth", "graft", "unsloth"]
    assert found["trl"] == {"unavailable": "not here"} and found["graft"]["tokens_per_s"] == 104


def test_our_own_failure_is_no_missing_peer(monkeypatch, tmp_path):
    def fail(*_):
        raise Unavailable("a bug")

    monkeypatch.setattr(compare, "run_peer", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        compare.in_turns(["graft"], "J1", tmp_path)


def test_a_peer_without_its_packages_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(compare.PEERS, "broken", ["-c", "import a_package_that_is_not_here"])
    with pytest.raises(Unavailable, match="a_package_that_is_not_here"):
        compare.run_peer("broken", "tiny", tmp_path)


def test_rows_are_the_same_for_everybody_and_lengths_are_as_said():
    job = JOBS["tiny"]
    assert rows(job) == rows(job) and {len(row) for row in rows(job)} == {job.length}
    mixed = [len(row) for row in rows(JOBS["tiny3"])]
    assert max(mixed) <= JOBS["tiny3"].length and len(set(mixed)) > 10


@pytest.mark.slow
def test_ours_and_trl_lose_the_same(tmp_path):
    pytest.importorskip("trl")
    for peer, job in (("trl", "tiny"), ("trl packing", "tiny3")):
        results = compare.in_turns(["graft", peer], job, tmp_path)
        assert "losses" in results[peer], results[peer]
        assert compare.losses_agree(results, steps=4)[peer] < 1e-3
