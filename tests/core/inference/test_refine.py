"""The refine loop: what is shown, what is verified, when it stops, and that a trace replays."""

from __future__ import annotations

import json

import pytest

from core.errors import BackendUnavailable, ConfigError, DataError
from core.inference.engines.script import ScriptEngine
from core.inference.refine import (
    Budget,
    Completions,
    EngineGenerator,
    RefineLoop,
    ReplayGenerator,
    Verdict,
)
from core.inference.request import SamplingParams


class Counting:
    """Answers "draft r i" for round r."""

    def __init__(self, texts=None):
        self.rounds, self.prompts, self.texts = 0, [], texts

    def generate(self, prompts, n, sampling):
        self.prompts += prompts
        self.rounds += 1
        made = self.texts[self.rounds - 1] if self.texts else [f"draft {self.rounds} {i}" for i in range(n)]
        return [Completions(list(made)) for _ in prompts]


class Judge:
    """Two stages: compile, then run. A text holds its stage and score: "compile 0.3", "run 0.5", "run 1.0 pass"."""

    stages = ("compile", "run")

    def __init__(self):
        self.seen = []

    def verify(self, task, text, *, partial=False):
        self.seen.append(text)
        words = text.split()
        return Verdict(words[0], words[-1] == "pass", float(words[1]), f"feedback on {text}")


def show(task, candidates):
    return f"{task}|" + ";".join(f"{c.text}<{c.verdict.feedback}>" for c in candidates)


def loop(texts, **options):
    generator, judge = Counting(texts), Judge()
    return generator, judge, RefineLoop(generator, judge, show, samples=2, rounds=len(texts), **options)


def test_a_later_stage_beats_a_higher_score_and_the_target_stops():
    generator, _, run = loop([["compile 0.9", "run 0.1"], ["run 1.0 pass", "run 0.2"], ["run 0.3", "run 0.4"]])
    events = list(run.run("t"))
    assert events[-1].kind == "finished" and events[-1].reason == "target reached" and generator.rounds == 2
    assert [e.candidate.text for e in events if e.kind == "improved"] == ["compile 0.9", "run 0.1", "run 1.0 pass"]


def test_what_the_model_is_shown_depends_on_the_strategy():
    texts = [["compile 0.5", "run 0.6"], ["run 0.2", "compile 0.1"], ["run 0.3", "run 0.4"]]
    for strategy, second, third in (
        ("repair", ["run 0.6"], ["compile 0.1"]),
        ("best_of_n", [], []),
        ("iterate_self", ["run 0.6"], ["run 0.6"]),
        ("beam", ["run 0.6", "compile 0.5"], ["run 0.6", "run 0.2"]),
    ):
        generator, _, run = loop(texts, strategy=strategy)
        list(run.run("t"))
        shown = [[part.partition("<")[0] for part in p.partition("|")[2].split(";") if part] for p in generator.prompts]
        assert shown == [[], second, third], strategy
    kept, _, run = loop([["run 1.0 pass", "run 0.6"], ["run 0.2", "compile 0.1"]], strategy="beam", target=None)
    list(run.run("t"))
    assert "run 1.0 pass<" in kept.prompts[1] and "run 0.6<" in kept.prompts[1]


def test_equal_texts_are_verified_once():
    _, judge, run = loop([["run 0.1", "run  0.1"], ["run 0.1", "run 0.2"], ["run 0.3", "run 0.4", "run 0.3"]])
    events = list(run.run("t"))
    assert judge.seen == ["run 0.1", "run 0.2", "run 0.3", "run 0.4"] and sum(e.known for e in events) == 3
    for event in events:
        if event.kind == "verified":
            assert event.candidate.verdict.score == float(event.candidate.text.split()[1])


@pytest.mark.parametrize(
    "options, reason, rounds",
    [
        ({"patience": 1}, "1 rounds without gain", 2),
        ({"budget": Budget(verifies=3)}, "verification budget", 2),
        ({"budget": Budget(tokens=2)}, "token budget", 1),
        ({"budget": Budget(wall_s=0.0)}, "time budget", 0),
        ({}, "all rounds done", 3),
    ],
)
def test_it_stops_for_a_reason(options, reason, rounds):
    generator, judge, run = loop([["run 0.5", "run 0.4"], ["run 0.3", "run 0.2"], ["run 0.1", "run 0.6"]], **options)
    last = list(run.run("t"))[-1]
    assert reason in last.reason and generator.rounds == rounds and len(judge.seen) <= 6
    if "verif" in reason:
        assert len(judge.seen) == 3


def test_a_trace_replays_to_the_same_events(tmp_path):
    texts = [["compile 0.5", "run 0.6"], ["run 0.2", "run 1.0 pass"]]
    _, _, run = loop(texts, trace=tmp_path / "trace.jsonl")
    first = [e.to_row() for e in run.run("t")]
    rows = [json.loads(line) for line in (tmp_path / "trace.jsonl").read_text().splitlines()]
    assert rows == json.loads(json.dumps(first))
    again = RefineLoop(ReplayGenerator(tmp_path / "trace.jsonl"), Judge(), show, samples=2, rounds=2)
    assert [e.to_row() for e in again.run("t")] == first
    with pytest.raises(BackendUnavailable, match="no recorded answer"):
        list(again.run("another task"))


def test_verdict_texts_are_never_templates():
    _, _, run = loop([["run 0.5 {0}", "run 0.4 %s {task}"], ["run 1.0 pass", "run 0.1"]])
    assert list(run.run("{t}"))[-1].candidate.text == "run 1.0 pass"


def test_bad_settings_and_verifiers_are_errors(tmp_path):
    with pytest.raises(ConfigError, match="beam"):
        RefineLoop(Counting(), Judge(), show, strategy="bean")
    with pytest.raises(ConfigError):
        RefineLoop(Counting(), Judge(), show, samples=0)
    _, _, run = loop([["link 0.5", "run 0.1"]])
    with pytest.raises(DataError, match="link"):
        list(run.run("t"))
    (tmp_path / "bad.jsonl").write_text("[1]\n")
    with pytest.raises(DataError, match="not a recorded"):
        ReplayGenerator(tmp_path / "bad.jsonl")


def test_an_engine_is_a_generator_with_seeds_of_its_own():
    asked = []

    class Engine(ScriptEngine):
        def generate(self, requests, sampling):
            asked.append(sampling.seed)
            return super().generate(requests, sampling)

    found = EngineGenerator(Engine(str.upper)).generate(["a", "b"], 2, SamplingParams(seed=5))
    assert [c.texts for c in found] == [["A", "A"], ["B", "B"]] and len(set(asked)) == 4
