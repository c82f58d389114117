"""Agents over a store of files: bounded contexts, steps that must be clean, runs that go on where they were killed."""

from __future__ import annotations

import json
import random

import pytest

from core.agents import (
    CommandEvaluator,
    ControlUnit,
    FileStore,
    InstructionRegistry,
    Message,
    PythonEvaluator,
    StepReport,
    TextEvaluator,
)
from core.agents.control import parse_call
from core.errors import BudgetExceeded, ConfigError, DataError
from core.execution import Policy, Sandbox

needs_sandbox = pytest.mark.skipif(
    not any(p.available and p.level == "strict" for p in Sandbox.probe()),
    reason="no strict sandbox works here (Debian package: bubblewrap)",
)


class Clean:
    def evaluate(self, files):
        return StepReport()


def call(tool, **more):
    return json.dumps({"tool": tool, **more})


class Script:
    """Plays answers in order; asked for a summary it gives one."""

    def __init__(self, answers, after="{}"):
        self.answers, self.after, self.prompts, self.heat = list(answers), after, [], []

    def __call__(self, messages, temperature):
        self.prompts.append(messages)
        self.heat.append(temperature)
        if messages[-1].text.startswith("Sum up"):
            return "It is going well."
        return self.answers.pop(0) if self.answers else self.after


def unit(model, folder, program=("Write a.", "Write b."), evaluator=None, **more):
    return ControlUnit(
        model, InstructionRegistry(program), FileStore(folder / "store"), evaluator or Clean(), task="Two files.",
        folder=folder / "state", **more,
    )  # fmt: skip


def test_a_program_is_carried_out_with_summaries_between(tmp_path):
    model = Script([call("write", path="a.txt", content="1"), call("done"), call("list"),
                    call("write", path="b/b.txt", content="2"), call("done")])  # fmt: skip
    result = unit(model, tmp_path).run()
    assert result.status == "done" and result.files == {"a.txt": "1", "b/b.txt": "2"} and result.restarts == 0
    second = model.prompts[3]
    assert len(second) == 2 and "Instruction 2 of 2: Write b." in second[1].text
    assert "Files: a.txt" in second[1].text and "So far: It is going well." in second[1].text
    assert (tmp_path / "store" / "files" / "b" / "b.txt").read_text() == "2"


@pytest.mark.parametrize("seed", range(12))
def test_no_prompt_is_ever_longer_than_the_context(tmp_path, seed):
    draw, context, reply = random.Random(seed), 600, 150

    def count(text):
        return len(text.split()) + len(text) // 8

    def model(messages, temperature):
        assert sum(count(m.text) + 4 for m in messages) <= context - reply
        kind = draw.random()
        words = " ".join(draw.choice(["x", "module", "wire", "1"]) for _ in range(draw.choice([1, 30, 300])))
        if kind < 0.4:
            return call("write", path=f"f{draw.randrange(5)}.txt", content=words)
        return draw.choice([call("done"), call("view", path=f"f{draw.randrange(6)}.txt"), words, call("list"), "{}"])

    class Strict:
        def evaluate(self, files):
            return StepReport() if draw.random() < 0.4 else StepReport((f"bad {draw.randrange(9)} " + "word " * 90,))

    result = unit(model, tmp_path, evaluator=Strict(), context=context, reply=reply, count=count, max_turns=25).run()
    assert result.status in ("done", "failed") and result.turns > 0


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


@pytest.mark.parametrize("turn", range(1, 8))
def test_killed_at_any_turn_it_ends_with_the_same_files(tmp_path, turn):
    answers = [call("write", path="a", content="1"), "not json", call("write", path="a", content="2"), call("done"),
               call("write", path="b", content="3"), call("done")]  # fmt: skip
    whole = unit(Script(answers), tmp_path / "whole").run()
    asked = []

    def model(messages, temperature):
        asked.append(1)
        if len(asked) == turn + 1:
            raise Killed
        summaries = messages[-1].text.startswith("Sum up")
        return "Fine." if summaries else answers[unit_.state.turns - done_summaries()]

    def done_summaries():
        return 1 if unit_.state.instruction else 0

    unit_ = unit(model, tmp_path / "killed")
    with pytest.raises(Killed):
        unit_.run()
    # what a killed write leaves: the files are ahead of the state
    unit_.store.write("late", "x")
    unit_ = unit(model, tmp_path / "killed")
    assert "late" not in unit_.store.files
    again = unit_.run()
    assert again.files == whole.files and again.turns == whole.turns and again.status == "done"


@needs_sandbox
def test_done_is_granted_only_when_nothing_fails_and_old_files_are_watched(tmp_path):
    good, test = (
        "def f(): return 1\n",
        "import unittest, a\nclass T(unittest.TestCase):\n    def test_f(self):\n        self.assertEqual(a.f(), 1)\n",
    )
    model = Script([
        call("write", path="a.py", content=good), call("write", path="test_a.py", content=test), call("done"),
        call("write", path="a.py", content="def f(): return 2\n"), call("done"),
        call("write", path="a.py", content="def f(: pass\n"), call("write", path="a.py", content=good), call("done"),
    ])  # fmt: skip
    result = unit(model, tmp_path, evaluator=PythonEvaluator(Policy(wall_s=10))).run()
    assert result.status == "done" and result.files["a.py"] == good
    texts = [prompt[-1].text for prompt in model.prompts]
    assert any("AssertionError: 2 != 1" in t for t in texts)
    assert any("Not done: 1 failures as before" in t for t in texts), "a known failure is a number"
    assert any("a.py:1: invalid syntax" in t for t in texts)


@needs_sandbox
def test_a_test_that_never_ends_fails_the_step():
    files = {"test_a.py": "import unittest, time\nclass T(unittest.TestCase):\n    def test_f(self): time.sleep(1e9)\n"}
    report = PythonEvaluator(Policy(wall_s=1)).evaluate(files)
    assert not report.passed and "timeout" in report.failures[0]
    commands = CommandEvaluator([["true"], ["sh", "-c", "echo no >&2; exit 3"]], Policy(wall_s=5))
    assert commands.evaluate({}).failures == ("sh -c echo no >&2; exit 3: nonzero\n  no",)


def test_a_model_that_repeats_itself_is_made_bolder_for_a_while(tmp_path):
    model = Script([call("list"), call("list"), call("list"), call("view", path="x"), call("done"), call("done")])
    unit(model, tmp_path, temperature=0.2).run()
    assert model.heat[:5] == pytest.approx([0.2, 0.2, 0.6, 1.0, 0.9])


def test_an_overflow_begins_the_instruction_anew_and_too_many_fail_cleanly(tmp_path):
    model = Script([], after=call("view", path="big"))
    agent = unit(model, tmp_path, context=700, reply=150, max_restarts=3, max_turns=500)
    agent.store.write("big", "word " * 400)
    result = agent.run()
    assert result.status == "failed" and "begun 4 times" in result.reason and result.restarts == 4
    assert any("So far: It is going well." in p[1].text for p in model.prompts)
    endless = unit(Script([], after="?"), tmp_path / "b", max_turns=5).run()
    assert endless.status == "failed" and "took 5 turns" in endless.reason
    with pytest.raises(BudgetExceeded, match="instruction 1"):
        unit(model, tmp_path / "c", context=250, reply=200)


def test_answers_that_are_no_calls_are_told_the_parsers_words():
    assert parse_call('```json\n{"tool": "done"}\n```') == {"tool": "done"}
    for bad, part in (('{"tool": "write"', "not JSON"), ("[1]", "not an object"), ('{"path": "a"}', "not an object")):
        with pytest.raises(DataError, match=part):
            parse_call(bad)


def test_the_store_keeps_versions_and_refuses_what_leads_outside(tmp_path):
    store = FileStore(tmp_path)
    store.write("a/b.txt", "1")
    store.write("./a/b.txt", "2")
    store.delete("a/b.txt")
    assert store.versions("a/b.txt") == ["1", "2", None] and store.files == {} and len(store) == 3
    assert FileStore(tmp_path, 2).files == {"a/b.txt": "2"} and len(FileStore(tmp_path)) == 2
    for bad in ("/etc/passwd", "../x", "a/../../x", "", ".", "a\0b", "C:\\x"):
        with pytest.raises(DataError):
            store.write(bad, "x")
    with pytest.raises(DataError, match="no file"):
        store.read("none")
    with pytest.raises(DataError, match="limit"):
        FileStore(tmp_path / "small", largest=3).write("a", "long")
    store.write("c", "x")
    with pytest.raises(DataError, match="at once"):
        store.write("c/d", "x")
    with pytest.raises(DataError, match="not 99"):
        FileStore(tmp_path, 99)


def test_programs_are_fixed_once_they_start(tmp_path):
    assert len(InstructionRegistry.from_plan('Sure: ["one", "two"]')) == 2
    registry = InstructionRegistry.from_plan("1. First\n2) Second\n")
    registry.insert(1, "Between")
    registry.start()
    registry.save(tmp_path / "p.json")
    again = InstructionRegistry.load(tmp_path / "p.json")
    assert [again[i] for i in range(3)] == ["First", "Between", "Second"]
    with pytest.raises(ConfigError, match="started"):
        again.insert(0, "x")
    with pytest.raises(DataError, match="plan"):
        InstructionRegistry.from_plan("no list")
    with pytest.raises(ConfigError):
        InstructionRegistry([])


def test_long_texts_are_checked_by_length_headings_and_references():
    files = {"a.md": "# One\nsome words here [see: Two]", "b.md": "# Three\n"}
    report = TextEvaluator((3, 100), {"b.md": ["Two"]}).evaluate(files)
    assert [f.partition(":")[0] for f in report.failures] == ["a.md", "b.md", "b.md"]
    assert TextEvaluator().evaluate({"a.md": "# One\n[see: One]"}).passed
    assert Message("user", "x").role == "user"
