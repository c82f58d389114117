"""Tools that a model makes: errors go back to it, only what passes is kept, and a small model uses it."""

from __future__ import annotations

import dataclasses
import json

import pytest

from apps.tool_use import APP
from apps.tool_use.methods.latm import NEW, Example, ToolMaker, ToolUser, Workshop, blocks, code_of, dispatch
from apps.tool_use.methods.latm_user import CodeEvaluator, LatmConfig, ToolUserPipeline
from apps.tool_use.pipeline import ToolUseConfig, ToolUsePipeline
from apps.tool_use.problems import load_problems
from apps.tool_use.tool_store import MadeTool, ToolStore, Worked, failing, same
from apps.tool_use.trace import Trace
from core.config.registry import METHODS
from core.errors import AppInputError, BudgetExceeded, CheckpointError, ConfigError, DataError
from core.inference.engines.script import ScriptEngine
from core.training.stage import StageContext

CLOSE = """
def close(sequence):
    pairs = {"(": ")", "[": "]", "{": "}", "<": ">"}
    open_ones = []
    for sign in sequence.split():
        if sign in pairs:
            open_ones.append(pairs[sign])
        else:
            open_ones.pop()
    return " ".join(reversed(open_ones))
"""
TRAIN = [Example("Input: [ [", "] ]"), Example("Input: < [", "] >"), Example("Input: ( [ ]", ")")]
TESTS = [Example("Input: {", "}"), Example("Input: { (", ") }"), Example("Input: [ < > (", ") ]")]


def fenced(*codes: str) -> str:
    return "Here:\n" + "\n".join(f"```python\n{code.strip()}\n```" for code in codes)


def calls(examples, name="close"):
    return fenced(*(f'ans = {name}("{e.question.removeprefix("Input: ")}")' for e in examples))


def making(answers, seen=None, **options):
    script = iter(answers)

    def model(prompt):
        if seen is not None:
            seen.append(prompt)
        return next(script)

    run = ToolMaker(model, "big", **options).make("close", "Close the brackets.", TRAIN, TESTS)
    attempts = []
    while True:
        try:
            attempts.append(next(run))
        except StopIteration as done:
            return attempts, done.value


def test_a_tool_is_made_and_verified_at_once():
    seen = []
    attempts, tool = making([fenced(CLOSE), calls(TESTS)], seen)
    assert [(a.stage, a.number, a.errors) for a in attempts] == [("make", 1, ()), ("verify", 1, ())]
    assert tool.tries == (1, 1) and len(tool.tests) == 3 and tool.model == "big" and failing(tool) == []
    assert "Answer 2: ] >" in seen[0] and "Input: {" not in seen[0], "validation examples are not shown to the maker"
    assert "def close(sequence)" in seen[1] and "Input: { (" in seen[1]


def test_what_goes_wrong_is_told_to_the_maker_and_the_function_stays_as_it_is():
    seen = []
    wrong = [TESTS[1], TESTS[0], TESTS[2]]
    functions = ["No idea.", fenced("def close(: pass"), fenced(CLOSE)]
    attempts, tool = making([*functions, calls(TESTS[:2]), calls(wrong), calls(TESTS)], seen)
    assert [a.stage for a in attempts] == ["make"] * 3 + ["verify"] * 3 and tool.tries == (3, 3)
    assert "no function" in attempts[0].errors[0] and "SyntaxError" in attempts[1].errors[0]
    assert "SyntaxError" in seen[2] and "2 blocks of code for 3 questions" in seen[4]
    assert "question 1: ans is ') }', the answer is '}'" in seen[5]
    assert tool.source.strip() == CLOSE.strip()


def test_making_ends_after_its_tries():
    with pytest.raises(BudgetExceeded, match="no function of 2 runs"):
        making(["x", "y"], tries=2)
    with pytest.raises(BudgetExceeded, match="does not pass its tests after 1 tries"):
        making([fenced(CLOSE), calls(TESTS[:1] * 3)], tries=1)
    with pytest.raises(AppInputError, match="training and validation"):
        next(ToolMaker(str).make("x", "x", TRAIN, []))


def test_code_that_never_ends_is_stopped_and_told():
    loop = "def close(sequence):\n    while True: pass\n"
    with pytest.raises(BudgetExceeded, match="does not pass") as error:
        making([fenced(loop), calls(TESTS)], tries=1, timeout_s=0.5)
    assert "took too long" in str(error.value)


def tool(**changes) -> MadeTool:
    worked = tuple(Worked(e.question, e.answer, c) for e, c in zip(TESTS, blocks(calls(TESTS))))
    return MadeTool(**{"name": "close", "task": "Close the brackets.", "source": CLOSE, "tests": worked, **changes})


def test_the_store_keeps_only_what_passes_and_tests_again_when_it_loads(tmp_path):
    store = ToolStore(tmp_path)
    assert store.names() == [] and store.save(tool()).version == 1 and store.save(tool(task="Newer.")).version == 2
    fresh = ToolStore(tmp_path)
    assert fresh.load("close").task == "Newer." and fresh.load("close", 1) == tool(version=1)
    card = json.loads((tmp_path / "close/2/card.json").read_text())
    assert card["passed"] == 3 and card["hash"] == tool().hash and "source" not in card
    bad = tuple(Worked(w.question, "nothing", w.code) for w in tool().tests)
    with pytest.raises(CheckpointError, match="3 of 3 tests of 'close' fail"):
        store.save(tool(tests=bad))
    with pytest.raises(CheckpointError, match="no tests"):
        store.save(tool(tests=()))
    with pytest.raises(ConfigError, match="no name of a tool"):
        store.save(tool(name="../close"))
    assert store.versions("close") == [1, 2] and sorted(p.name for p in (tmp_path / "close").iterdir()) == ["1", "2"]
    with pytest.raises(ConfigError, match="did you mean 'close'"):
        store.load("clos")
    # a changed file is refused, and so is one whose card was changed with it
    file = tmp_path / "close/2/tool.py"
    file.write_text(CLOSE.replace("reversed", "list"))
    with pytest.raises(CheckpointError, match="changed since it was verified"):
        ToolStore(tmp_path).load("close")
    card["hash"] = tool(source=file.read_text()).hash
    (tmp_path / "close/2/card.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match="2 of 3 tests of 'close' fail"):
        ToolStore(tmp_path).load("close")


def test_a_small_model_uses_the_tool_and_the_dispatcher_knows_new_tasks(tmp_path):
    store = ToolStore(tmp_path)
    seen = []

    def small(prompt):
        seen.append(prompt)
        if prompt.endswith("Tool:"):
            return "close." if "Input:" in prompt.rsplit("Question:", 1)[1] else "something else"
        return 'ans = close("( (")\n\nQuestion: and so on'

    assert dispatch(small, store, "Input: ( (") == NEW and not seen, "nothing is asked of an empty store"
    store.save(tool())
    assert dispatch(small, store, "Input: ( (") == "close" and dispatch(small, store, "2+2?") == NEW
    with ToolUser(small, store.load("close")) as user:
        code, tried = user.use("Input: ( (", ") )")
    assert tried.right and code == 'ans = close("( (")\n'
    assert "Question: Input: { (" in seen[-1] and seen[-1].endswith("Question: Input: ( (\nCode that sets `ans`:\n")


def test_examples_of_a_new_task_are_collected_until_they_make_a_tool(tmp_path):
    script = iter([fenced(CLOSE), calls(TESTS)])
    shop = Workshop(ToolMaker(lambda prompt: next(script)), lambda prompt: "close", ToolStore(tmp_path))
    assert shop.answer("Input: (")[0] == NEW
    made = [shop.teach("close", "Close the brackets.", example) for example in [*TRAIN, *TESTS]]
    assert made[:5] == [None] * 5 and made[5].version == 1 and shop.store.names() == ["close"]
    shop.small = lambda prompt: "close" if prompt.endswith("Tool:") else 'ans = close("( <")'
    name, code, tried = shop.answer("Input: ( <")
    assert (name, tried.value) == ("close", "> )")


def test_latm_is_a_strategy_with_events_and_a_trace(tmp_path):
    ToolStore(tmp_path).save(tool())
    script = iter(["close", 'ans = close("{ [")'])
    config = ToolUseConfig(strategy="latm", store=str(tmp_path))
    pipeline = ToolUsePipeline(ScriptEngine(lambda prompt: next(script)), None, config)
    events = list(pipeline.stream("Input: { ["))
    assert [e.kind for e in events] == ["thought", "call", "observation", "answer", "done"]
    result = events[-1].result
    assert result.text == "] }" and result.meta["finish"] == "answer" and result.meta["model_calls"] == 2
    *_, done = Trace.from_dict(json.loads(json.dumps(result.meta["trace"]))).replay()
    assert done.result.text == "] }"
    with pytest.raises(ConfigError, match="store: FOLDER"):
        ToolUsePipeline(ScriptEngine(str), None, ToolUseConfig(strategy="latm"))("x")


def test_answers_are_compared_as_numbers_or_as_texts():
    assert same(24, "24") and same("24.0", "24") and not same(25, "24") and same(True, "true")
    assert same(["b", "a"], "b a") and same(["]", ")"], "])") and same(" A  b ", "a b") and not same(") )", ")")
    assert code_of("```python\nans = 1\n```\nmore") == "ans = 1\n" and code_of("ans = 1\n\nQuestion: 2") == "ans = 1\n"


def test_the_small_model_learns_only_calls_that_get_their_answer(tmp_path):
    problems = load_problems(None, "embedded", limit=5)
    wrong = [
        dataclasses.replace(problems[0], answer="77"),
        dataclasses.replace(problems[1], code="ans = nothing()\n"),
        dataclasses.replace(problems[2], code=None),
    ]
    context = StageContext(None, LatmConfig(worked=1), None, [*problems, *wrong], problems[:2], APP)
    stage = METHODS.get("tool_use.latm").build(context)
    assert len(stage.rows) == 5 and len(stage.eval_rows) == 2
    given, learnt = stage.rows[0]
    pipeline = ToolUserPipeline(ScriptEngine(lambda prompt: f" {problems[0].code}\nQuestion: more"), None)
    assert pipeline.prepare(problems[0]).text == given.text and not given.train and learnt.train
    assert pipeline(problems[0]).text == learnt.text == problems[0].code.strip()
    with pytest.raises(DataError, match="no call is kept"):
        METHODS.get("tool_use.latm").build(dataclasses.replace(context, train=wrong))


def test_calls_are_scored_by_running_them():
    problems = load_problems(None, "embedded", split="test", limit=4)
    codes = [problems[0].code, 'ans = minutes("00:00", "00:00") - 1', "ans = 1 // 0", "no code at all"]
    report = CodeEvaluator().score(codes, problems)
    assert report.value("solved") == 25.0 and report.value("runs") == 50.0
    assert "ZeroDivisionError" in report.rows[2]["error"] and "SyntaxError" in report.rows[3]["error"]


def test_problems_of_a_stored_tool_are_read(tmp_path):
    ToolStore(tmp_path / "tools").save(tool())
    rows = [{"question": "Input: (", "answer": ")", "code": 'ans = close("(")'}, {"question": "x"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = {"store": str(tmp_path / "tools"), "tool": "close"}
    with pytest.raises(DataError, match="train.jsonl:2"):
        load_problems(tmp_path, **arguments)
    (first,) = load_problems(tmp_path, limit=1, **arguments)
    assert first.tool.source == CLOSE and first.code == 'ans = close("(")'
    (tmp_path / "close.json").write_text(json.dumps({"examples": [{"input": str(n), "target": n} for n in range(12)]}))
    assert [p.question for p in load_problems(tmp_path, "bbh", **arguments)] == ["10", "11"]
    with pytest.raises(DataError, match="not a task"):
        load_problems(tmp_path, "bbh", split="absent", **arguments)
    with pytest.raises(ConfigError, match="no tool 'clos'"):
        load_problems(tmp_path, store=arguments["store"], tool="clos")
