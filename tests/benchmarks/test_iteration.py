"""The effect of iteration: tasks do not leak, each arm is chosen by itself, and the bar can be missed."""

from __future__ import annotations

import json

import pytest

from benchmarks import iteration
from benchmarks.bar import Setting
from benchmarks.bars import rtl_r6
from core.execution.tools import has

pytestmark = pytest.mark.skipif(not has("iverilog"), reason="iverilog is not installed (Debian package: iverilog)")


def members(path):
    return {tuple(json.loads(line)["id"].split("-")[:2]) for line in path.read_text().splitlines()}


def test_no_member_of_a_family_is_in_two_sets(tmp_path):
    iteration.write_tasks(tmp_path, prompts=200, scored=60, seeds=(0, 1), families=rtl_r6.FAMILIES)
    sets = {name: members(tmp_path / f"{name}.jsonl") for name in ("train-0", "train-1", "development", "test")}
    held = sets["development"], sets["test"]
    assert all(len(s) > 20 for s in sets.values()) and not held[0] & held[1]
    assert not (sets["train-0"] | sets["train-1"]) & (held[0] | held[1])
    assert sum(1 for _ in (tmp_path / "test.jsonl").open()) == 60


@pytest.fixture
def scripted(monkeypatch):
    """Runs the bar on made-up results: rates by (arm, choice) on development tasks, by arm and seed on test tasks."""
    seen = []

    def bar(tmp_path, development, test):
        names = list(rtl_r6.CHOICES)

        def run_jobs(jobs, at_once):
            for job in jobs:
                seen.append(job)
                arm, *choice = job["name"].split("-")
                rate = 20.0
                if arm == "control":
                    rate = 10.0
                elif job["base"]:
                    rate = development[arm, names[int(choice[0])]] if job["seed"] == 0 else test[arm][job["seed"] - 1]
                scores = {name: {"pass@1": rate, "greedy pass@1": rate} for name in job["score"]}
                yield {"name": job["name"], "model": f"/base/{job['seed']}", "iterations": [], **scores}

        monkeypatch.setattr(iteration, "run_jobs", run_jobs)
        monkeypatch.setattr(rtl_r6, "PROMPTS", 20)
        monkeypatch.setattr(rtl_r6, "SCORED", 10)
        return rtl_r6.measure(Setting(False, tmp_path)), seen

    return bar


def test_each_arm_takes_its_own_best_choice_and_the_bar_can_be_missed(scripted, tmp_path):
    development = {(arm, choice): 30.0 for arm in rtl_r6.ARMS for choice in rtl_r6.CHOICES}
    development["once", "dpo 0.1"] = development["iterated", "log 0.2"] = 40.0
    found, seen = scripted(tmp_path, development, {"once": [40, 42, 41], "iterated": [50, 47, 49]})
    assert found.passed and found.value == pytest.approx(146 / 123 - 1, abs=1e-4)
    assert found.details["chosen"] == {"iterated": "log 0.2", "once": "dpo 0.1"}
    final = [job for job in seen if job["base"] and job["seed"]]
    kinds = {(job["with"]["loss"], job["with"]["iterations"]) for job in final}
    assert kinds == {("rank_log", 3), ("dpo", 1), ("none", 1)}
    assert len({job["train"]["epochs"] for job in final}) == 1, "the same steps for all arms"
    assert len({job["name"] for job in seen}) == len(seen), "a job's folder has its name"
    assert found.baseline["as many steps on the references alone, %"] == [10.0, 10.0, 10.0]
    assert all(job["score"] == (["development"] if job["seed"] == 0 else ["test"]) for job in seen)


@pytest.mark.parametrize("iterated", [[43, 43, 43], [60, 60, 41.5]])
def test_a_small_gain_or_ranges_that_meet_miss_it(scripted, tmp_path, iterated):
    development = {(arm, choice): 30.0 for arm in rtl_r6.ARMS for choice in rtl_r6.CHOICES}
    assert scripted(tmp_path, development, {"once": [40, 42, 41], "iterated": iterated})[0].passed is False


def test_a_job_that_fails_says_why(tmp_path, monkeypatch):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho out of memory >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr(iteration.sys, "executable", str(script))
    job = {"name": "broken-1", "folder": str(tmp_path), "score": []}
    with pytest.raises(RuntimeError, match="broken-1 failed:\nout of memory"):
        list(iteration.run_jobs([job], 1))
