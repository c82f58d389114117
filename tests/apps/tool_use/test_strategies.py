"""Strategies: the visits that the search's rules prescribe, its reductions, live events, and traces that run again."""

from __future__ import annotations

import dataclasses
import json

import pytest

from apps.tool_use import prompts
from apps.tool_use.calls import Call
from apps.tool_use.data import ToolExample
from apps.tool_use.executors import Local, Recording, Replay
from apps.tool_use.executors.observation import Executor
from apps.tool_use.functions import from_function
from apps.tool_use.methods.dfsdt import diversity
from apps.tool_use.pipeline import FunctionCallPipeline, ToolUseConfig, ToolUsePipeline
from apps.tool_use.session import FINISH
from apps.tool_use.trace import Node, Trace, node_from
from benchmarks.tool_scenarios import SCENARIOS, Scenario, run, say, work
from core.config.schema import ModelConfig
from core.errors import AppInputError, ConfigError, DataError, GraftError
from core.inference.engines.script import ScriptEngine
from core.models.load import load_model
from core.models.tokenizer import train_bpe


def spare() -> str:
    """Nothing runs it."""
    return ""


def scripted(texts, config, executor=None, seen=None):
    script = iter(texts)

    def answer(prompt):
        if seen is not None:
            seen.append(prompt)
        return next(script)

    executor = executor or Local([work], trusted=True)
    return ToolUsePipeline(ScriptEngine(answer), None, config, executor=executor)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_the_search_visits_what_its_rules_prescribe(scenario):
    visits, result = run(scenario)
    assert visits == scenario.visits.split()
    assert result.meta["model_calls"] == len(visits) and result.meta["finish"] == scenario.finish
    if scenario.finish in ("answer", "gave_up"):
        assert result.text == str(scenario.number)


@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if "climb" not in s.options], ids=lambda s: s.name)
def test_width_one_is_react(scenario):
    options = {k: v for k, v in scenario.options.items() if k not in ("width", "answers")}
    one = dataclasses.replace(scenario, options={**options, "width": 1})
    react = dataclasses.replace(scenario, options=options)
    (_, searched), (_, chained) = run(one), run(react, "react")
    for key in ("finish", "model_calls", "calls"):
        assert searched.meta[key] == chained.meta[key]
    assert searched.text == chained.text
    assert searched.meta["trace"]["tree"] == chained.meta["trace"]["tree"]
    assert searched.meta["trace"]["exchanges"] == chained.meta["trace"]["exchanges"]


def test_without_climbing_short_every_failure_is_a_restart():
    options = {"climb": 0, "width": 4, "max_depth": 4}
    visits, result = run(Scenario("", "oooooga", "", "", 0, options))
    assert visits == ".:1 1:2 .:3 3:4 .:5 5:6 .:7".split() and result.text == "7"
    assert all(visit.startswith(".") or int(visit[0]) + 1 == int(visit[2]) for visit in visits)


def test_only_the_sibling_sees_what_was_tried():
    seen = []
    config = ToolUseConfig(strategy="dfsdt")
    result = scripted([say(letter, n) for n, letter in enumerate("otgoa", 1)], config, seen=seen)("Go.")
    assert [("already tried" in prompt) for prompt in seen] == [False, False, False, True, False]
    assert '"name": "work", "arguments": {"n": 2}, "result": "piece 2 done"' in seen[3]
    assert "What you saw last: piece 1 done" in seen[3]
    assert "piece 2" not in seen[4] and "piece 4 done" in seen[4]
    assert [c["arguments"] for c in result.meta["calls"]] == [{"n": 1}, {"n": 4}]
    assert diversity(Node("Action Input")) is None


def test_a_tool_that_does_not_exist_is_not_named_again():
    seen = []
    result = scripted([say("h", 1), say("a", 2)], ToolUseConfig(), seen=seen)("Go.")
    assert "unknown1(" not in seen[1] and '"invalid_function_name"' in seen[1]
    assert result.meta["trace"]["tree"]["children"][0]["children"][0]["observation_code"] == 1


def test_siblings_can_be_ranked_by_votes():
    seen = []
    texts = [say("o", 1), say("o", 2), "B", "A", say("a", 5)]
    config = ToolUseConfig(strategy="dfsdt", ranked=True, max_calls=5)
    result = scripted(texts, config, seen=seen)("Go.")
    assert "A: " in seen[2] and "Answer A or B" in seen[2]
    # both votes are for the second child; the fifth call is made below it
    assert "piece 2 done" in seen[4] and "piece 1 done" not in seen[4]
    assert result.meta["model_calls"] == 5 and result.meta["finish"] in ("answer", "budget")


def test_several_calls_of_a_step_are_made_at_once_and_finish_ends_them():
    both = json.dumps([{"name": "work", "arguments": {"n": 1}}, {"name": "work", "arguments": {"n": 2}}])
    late = json.dumps([
        {"name": "Finish", "arguments": {"return_type": "give_answer", "final_answer": "x"}},
        {"name": "work", "arguments": {"n": 3}},
    ])  # fmt: skip
    result = scripted([both, late], ToolUseConfig(most=None))("Go.")
    assert [c["arguments"]["n"] for c in result.meta["calls"]] == [1, 2] and result.text == "x"
    turn = result.meta["trace"]["messages"][1]
    assert [call["id"] for call in turn["tool_calls"]] == ["call_1", "call_2"]
    single = scripted([both, "Both are done."], ToolUseConfig(strategy="single", most=None))("Go.")
    assert single.text == "Both are done." and len(single.meta["calls"]) == 2 and single.meta["model_calls"] == 2
    assert scripted(["I know it."], ToolUseConfig(strategy="single"))("Go.").text == "I know it."


def test_events_come_while_it_happens():
    seen = []

    class Watching(Executor):
        def _call(self, tool, arguments):
            seen.append([event.kind for event in events])
            return "ok"

    pipeline = scripted([say("t", 1), say("a", 2)], ToolUseConfig(), Watching([work]))
    events = []
    for event in pipeline.stream("Go."):
        events.append(event)
    assert [e.kind for e in events] == ["thought", "call", "observation", "call", "observation", "answer", "done"]
    assert seen == [["thought", "call"]], "the call is announced before it is made"
    assert events[2].observation.text == "ok" and events[1].call == Call("work", {"n": 1})
    assert [e.t_ms for e in events] == sorted(e.t_ms for e in events)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_a_trace_runs_again(scenario, tmp_path):
    _, result = run(scenario)
    Trace.from_dict(json.loads(json.dumps(result.meta["trace"]))).save(tmp_path / "t.json")
    trace = Trace.load(tmp_path / "t.json")
    *_, done = trace.replay()
    assert done.result.text == result.text and done.result.meta["trace"] == trace.to_dict()


def test_a_trace_that_no_longer_fits_says_where(tmp_path):
    _, result = run(Scenario("", "ooa", "", "", 0))
    data = json.loads(json.dumps(result.meta["trace"]))
    with pytest.raises(DataError, match="departs from its trace at model call 1"):
        list(Trace.from_dict({**data, "query": "Something else."}).replay())
    data["observations"][1]["arguments"] = {"n": 9}
    with pytest.raises(DataError, match="departs from its trace at tool call 2"):
        list(Trace.from_dict(data).replay())
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(GraftError, match="not valid JSON"):
        Trace.load(tmp_path / "x.json")
    with pytest.raises(DataError, match="not a trace"):
        Trace.from_dict({"version": 1, "what": 3})
    with pytest.raises(DataError, match="lacks a field"):
        Trace.from_dict({"version": 1})
    with pytest.raises(DataError, match="node_type"):
        node_from({"children": []})


def test_recorded_observations_stand_in_for_the_tools(tmp_path):
    texts = [say(letter, n) for n, letter in enumerate("ooa", 1)]
    recorded = Recording(Local([work], trusted=True), tmp_path / "r.jsonl")
    first = scripted(texts, ToolUseConfig(), recorded)("Go.")
    again = scripted(texts, ToolUseConfig(), Replay(tmp_path / "r.jsonl", [work]))("Go.")
    assert again.meta["calls"] == first.meta["calls"] and again.text == first.text


def test_bad_input_is_told_before_anything_runs():
    with pytest.raises(ConfigError, match="nothing that runs the calls"):
        ToolUsePipeline(ScriptEngine(str), None, tools=[work])("Go.")
    with pytest.raises(ConfigError, match="nothing runs the tool 'spare'"):
        ToolUsePipeline(ScriptEngine(str), None, tools=[spare], executor=Local([work], trusted=True))
    with pytest.raises(ConfigError, match="give the tool another name"):
        ToolUsePipeline(ScriptEngine(str), None, tools=[{"name": "Finish"}])
    with pytest.raises(AppInputError, match="the question is empty"):
        scripted([], ToolUseConfig())(" ")
    with pytest.raises(AppInputError, match="no tools were given"):
        ToolUsePipeline(ScriptEngine(str), None)("Go.")
    with pytest.raises(ConfigError, match="max_calls"):
        ToolUsePipeline.from_pretrained("any", engine="tiny", max_call=3)


def test_a_random_model_kept_to_the_form_makes_calls_that_run():
    words = f"{prompts.STEPS}{prompts.HOW['json']}{prompts.described([FINISH])}" + "".join(map(chr, range(32, 127)))
    tokenizer = train_bpe([f"{words}\n"] * 20, 600)
    model = load_model(ModelConfig(preset="tiny"), tokenizer, seed=1)
    options = {"max_calls": 4, "max_new_tokens": 90, "temperature": 1.0, "seed": 1}
    pipeline = ToolUsePipeline.from_model(model, tokenizer, executor=Local([work], trusted=True), **options)
    result = pipeline("Go.")
    assert result.meta["finish"] in ("answer", "gave_up", "budget", "context", "depth") and result.meta["exchanges"]
    tree = node_from(result.meta["trace"]["tree"])
    codes = [node.status for node in tree.walk() if node.kind == "Action Input" and node.parent]
    assert codes and all(code in (0, 2, 3, 4) for code in codes), "never unknown, never unreadable"
    too_many = [{"name": f"tool_{n}", "description": "x" * 200, "parameters": {}} for n in range(20)]
    with pytest.raises(AppInputError, match="chosen by a retriever"):
        ToolUsePipeline(pipeline.engine, pipeline.tokenizer, tools=too_many, executor=Executor(too_many))("Go.")


def test_a_model_of_another_method_opens_with_what_it_has_in_common(tmp_path):
    made = ToolUsePipeline.from_pretrained("any", engine="tiny", form="hermes", strategy="dfsdt", max_new_tokens=7)
    made.save_pretrained(tmp_path / "m")
    opened = FunctionCallPipeline.from_pretrained(tmp_path / "m", device="cpu")
    assert (opened.config.form, opened.config.max_new_tokens) == ("hermes", 7)
    again = ToolUsePipeline.from_pretrained(tmp_path / "m", device="cpu", executor=Local([work], trusted=True))
    assert again.config == made.config and again.tools[0].name == "work"


@pytest.mark.parametrize("template", prompts.TEMPLATES)
def test_a_conversation_ends_where_the_model_goes_on_and_training_says_the_same(template):
    made = {"id": "1", "name": "work", "arguments": {"n": 1}}
    turns = [
        {"role": "user", "content": "Go."},
        {"role": "assistant", "content": "First.", "tool_calls": [made]},
        {"role": "tool", "tool_call_id": "1", "content": "seen"},
    ]
    tools = [from_function(work)]
    (one,), (two,) = (prompts.conversation(tools, turns[:count], template) for count in (1, 3))
    lead, end = prompts.ENDS[template]
    learnt = f"{lead}{prompts.said(turns[1], 'json')}{end}"
    separator = "\n" if template != "llama3" else ""
    assert two.text.startswith(f"{one.text}{learnt}{separator}"), "what is learnt is what later turns show"
    assert "seen" in two.text and not two.train and ("ipython" in two.text) == (template == "llama3")
    asked = ToolExample("Go.", tuple(tools), (Call("work", {"n": 1}),))
    given, answer = prompts.segments(asked, template, answer=True)
    assert answer.train and answer.text.endswith(end) and given.text == prompts.segments(asked, template)[0].text
