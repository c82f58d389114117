"""Comparisons: who is missing decides nothing, other losses void a row, and rows and start are the same for all."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import runner
from benchmarks.bar import Setting, Unavailable
from benchmarks.bars import training_j1
from benchmarks.peers import compare, run_trl
from benchmarks.peers.job import COMPARED, JOBS, Clock, report, rows, same_start


def result(rate, peak, losses=(2.0, 1.9, 1.8)):
    return {"tokens_per_s": rate, "peak_gib": peak, "losses": list(losses), "compared": list(losses)}


def judged(**results):
    return compare.judged(results, speed={"peer": 1.0}, memory={"peer": 1.05})


def test_verdicts():
    assert judged(graft=result(110, 10), peer=result(100, 10)).passed is True
    assert judged(graft=result(90, 10), peer=result(100, 10)).passed is False
    assert judged(graft=result(110, 11), peer=result(100, 10)).passed is False
    missing = judged(graft=result(110, 10), peer={"unavailable": "no module"})
    assert missing.passed is None and missing.baseline == {"peer": "no module"}


def test_a_peer_whose_losses_are_not_ours_counts_neither_way():
    late = (2.0, 1.9, 1.82)
    for rate in (110, 90):
        found = judged(graft=result(rate, 10), peer=result(100, 10, late))
        assert found.passed is None and found.details["void, for losses that are not ours"] == ["peer"]
    assert judged(graft=result(110, 10), peer=result(100, 10, (2.0, 1.9, float("nan")))).passed is None


def fakes(monkeypatch, seconds=0.0, missing="trl"):
    """Trainers that answer at once; the clock says that each takes `seconds`."""
    asked, clock = [], [0.0]

    def fake(name, job, work, *more):
        asked.append((name, job, *more))
        clock[0] += seconds
        if name == missing:
            raise Unavailable("not here")
        return result(200 - len(asked), len(asked))

    monkeypatch.setattr(compare, "run_peer", fake)
    monkeypatch.setattr(compare.time, "monotonic", lambda: clock[0])
    return asked


def test_turns_are_interleaved_after_the_twin_and_a_peer_that_fails_is_asked_once(monkeypatch, tmp_path):
    asked = fakes(monkeypatch)
    found = compare.in_turns(["graft", "trl", "unsloth"], "J1", Setting(False, tmp_path))
    twins = [("graft", "J1-losses"), ("trl", "J1-losses"), ("unsloth", "J1-losses")]
    assert asked == twins + [("graft", "J1"), ("unsloth", "J1")] * 3
    assert found["trl"] == {"unavailable": "not here"}
    assert found["graft"]["repeats"] == [196, 194, 192] and found["graft"]["tokens_per_s"] == 194
    assert found["graft"]["peak_gib"] == 6 and found["graft"]["compared"] == [2.0, 1.9, 1.8]


def test_a_repeat_that_would_end_too_late_is_not_begun(monkeypatch, tmp_path):
    asked = fakes(monkeypatch, seconds=60, missing="")
    found = compare.in_turns(["graft", "unsloth"], "J1", Setting(False, tmp_path), seconds=400)
    assert len(found["graft"]["repeats"]) == 2 and len(asked) == 6  # 120 s of twins and 120 s a repeat
    asked.clear()
    found = compare.in_turns(["graft", "unsloth"], "J1", Setting(False, tmp_path, repeats=1), seconds=1)
    assert len(found["graft"]["repeats"]) == 1, "one there always is"


def test_the_quick_form_is_one_repeat_of_six_steps(monkeypatch, tmp_path):
    asked = fakes(monkeypatch)
    compare.in_turns(["graft", "unsloth"], "J3", Setting(True, tmp_path), jobs={"unsloth": "J3-padded"})
    assert asked == [("graft", "J3", "--steps", "6"), ("unsloth", "J3-padded", "--steps", "6")]


def test_our_own_failure_is_no_missing_peer(monkeypatch, tmp_path):
    fakes(monkeypatch, missing="graft")
    with pytest.raises(RuntimeError, match="not here"):
        compare.in_turns(["graft"], "J1", Setting(False, tmp_path))


def test_peers_measured_by_other_commands_join_the_verdict(monkeypatch, tmp_path):
    monkeypatch.setattr(runner, "WORK", tmp_path / "work")
    monkeypatch.setattr(runner, "RESULTS", tmp_path)
    monkeypatch.setattr(runner, "has_gpu", lambda: True)
    fakes(monkeypatch, missing="")

    def run(peers):
        return runner.run_bar(training_j1.BAR, results=tmp_path, peers=peers)

    assert run(None)["pass"] is None, "TRL is not measured yet"
    assert run(("trl + liger-kernel",))["details"]["verdicts"]["unsloth"] is None
    stored = tmp_path / "training.J1.trl-liger-kernel.json"
    other = json.loads(stored.read_text())
    monkeypatch.setattr(runner, "has_gpu", lambda: False)
    whole = runner.run_bar(training_j1.BAR, results=tmp_path)
    assert "--peers 'trl + liger-kernel'" in other["command"] and other["command"] in whole["details"]["other commands"]
    for verdict in (True, False):
        other["details"]["verdicts"] = {"unsloth": None, "trl + liger-kernel": verdict}
        stored.write_text(json.dumps(other))
        mine = {**whole, "details": {**whole["details"], "verdicts": {"unsloth": True, "trl + liger-kernel": None}}}
        assert compare.with_other_commands(mine)["pass"] is verdict


def test_a_bar_of_two_comparisons_takes_from_each_what_the_other_lacks(monkeypatch, tmp_path):
    monkeypatch.setattr(runner, "RESULTS", tmp_path)

    def stored(command, value, lora, full):
        part = {"speed against": {"trl": value}, "memory against": {}}
        details = {"LoRA": {**part, "verdicts": {"trl": lora}}, "full": {**part, "verdicts": {"trl": full}}}
        return {
            "id": "training.J7", "command": command, "device": "d", "value": value, "baseline": {}, "details": details,
        }  # fmt: skip

    for full in (True, False):
        (tmp_path / "training.J7.trl.json").write_text(json.dumps(stored("--peers trl", 1.4, True, full)))
        whole = compare.with_other_commands(stored("all", None, None, None))
        assert whole["pass"] is full and whole["value"] == 1.4
        assert whole["details"]["other commands"]["--peers trl"]["LoRA speed against"] == {"trl": 1.4}


def test_a_peer_without_its_packages_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(compare.PEERS, "broken", ["-c", "import a_package_that_is_not_here"])
    with pytest.raises(Unavailable, match="a_package_that_is_not_here"):
        compare.run_peer("broken", "tiny", tmp_path)
    with pytest.raises(Unavailable, match="no peer called axolotol; known: graft, trl"):
        compare.chosen(Setting(False, tmp_path, peers=("axolotol",)), [])


def test_a_peer_runs_in_its_own_environment(tmp_path, monkeypatch):
    python = tmp_path / "peers" / "mine" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "RESULT {{\\"own\\": 1}}"\nexec {sys.executable} -c ""\n')
    os.chmod(python, 0o755)
    monkeypatch.setenv("GRAFT_PEERS", str(tmp_path / "peers"))
    monkeypatch.setitem(compare.PEERS, "mine", [])
    assert compare.run_peer("mine", "tiny", tmp_path) == {"own": 1}


def test_rows_are_the_same_for_everybody_and_lengths_are_as_said():
    job = JOBS["tiny"]
    assert rows(job) == rows(job) and {len(row) for row in rows(job)} == {job.length}
    mixed = [len(row) for row in rows(JOBS["tiny3"])]
    assert max(mixed) <= JOBS["tiny3"].length and len(set(mixed)) > 10
    twin = JOBS["J2c-losses"]
    assert twin.four_bit and twin.checkpoint and twin.steps == COMPARED
    walks = rows(twin)
    assert len(walks) == COMPARED * twin.micro * twin.accumulation and len({len(walk) for walk in walks}) > 50
    assert {(b - a) % 64 for walk in walks for a, b in zip(walk, walk[1:])} == {1, 2, 3}


def test_a_clock_waits_for_the_device_at_both_ends_of_a_step():
    clock, waited = Clock(), []
    clock.gpu, clock.torch = True, SimpleNamespace(cuda=SimpleNamespace(synchronize=lambda: waited.append(1)))
    timing = clock.callback()
    timing.on_step_begin()
    assert len(waited) == 1 and not clock.seconds
    timing.on_step_end()
    assert len(waited) == 2 and len(clock.seconds) == 1


def test_a_rate_leaves_warm_up_out_and_is_refused_without_one(capsys):
    clock = Clock()
    clock.seconds = [100.0] * 5 + [2.0, 1.0, 4.0, 2.0, 1.0, 4.0, 2.0, 2.0]
    report("me", JOBS["tiny"], clock, [8] * 13, [{"loss": 1.0}])
    said = json.loads(capsys.readouterr().out.removeprefix("RESULT "))
    assert said["tokens_per_s"] == 4.0 and said["range"] == [2.0, 8.0]
    clock.seconds = [1.0]
    with pytest.raises(ValueError, match="no measurement"):
        report("me", JOBS["tiny"], clock, [8], [])


def test_tokens_are_counted_without_padding():
    job = JOBS["J1-losses"]
    each = job.micro * job.accumulation
    walks = rows(job)
    assert run_trl._tokens(walks, job)[0] == sum(map(len, walks[:each])) < each * max(map(len, walks[:each]))


def test_adapters_start_the_same_whatever_was_drawn_before():
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    def first(seed):
        torch.manual_seed(seed)
        shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(**shape, num_key_value_heads=2, vocab_size=64))
        model = same_start(get_peft_model(model, LoraConfig(target_modules=["q_proj", "up_proj"])))
        return [p for name, p in model.named_parameters() if "lora_A" in name]

    one, two = first(0), first(1)
    assert all(torch.equal(a, b) for a, b in zip(one, two)) and not torch.equal(one[0], one[2])


@pytest.mark.slow
@pytest.mark.parametrize(("peer", "job"), [("trl", "J1"), ("trl", "J3"), ("trl", "J1c")])
def test_ours_and_trl_learn_the_same_in_twenty_steps(tmp_path, peer, job):
    pytest.importorskip("trl")
    found = {name: compare.run_peer(name, f"{job}-losses", tmp_path) for name in ("graft", peer)}
    results = {name: {**run, "compared": run["losses"]} for name, run in found.items()}
    assert len(found["graft"]["losses"]) == COMPARED
    assert found["graft"]["losses"][-1] < 0.6 * found["graft"]["losses"][0], "losses that do not fall say nothing"
    assert compare.losses_apart(results)[peer] < 5e-3


@pytest.mark.slow
def test_ours_and_llamafactory_learn_the_same(tmp_path):
    if not (Path(os.environ.get("GRAFT_PEERS", "/nowhere")) / "llamafactory" / "bin" / "python").is_file():
        pytest.skip("no environment of LLaMA-Factory in GRAFT_PEERS")
    found = {name: compare.run_peer(name, "J1-losses", tmp_path) for name in ("graft", "llamafactory")}
    results = {name: {**run, "compared": run["losses"]} for name, run in found.items()}
    assert compare.losses_apart(results)["llamafactory"] < 5e-3


@pytest.mark.slow
def test_packing_by_trl_runs(tmp_path):
    pytest.importorskip("trl")
    assert compare.run_peer("trl packing", "tiny3", tmp_path)["tokens_per_s"] > 0
