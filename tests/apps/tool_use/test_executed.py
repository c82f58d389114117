"""Calls judged by the world they leave behind: worked by hand, and hostile calls that reach nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from apps.tool_use.calls import Call
from apps.tool_use.data import load_data
from apps.tool_use.evaluator import StateEvaluator, ToolUseEvaluator
from apps.tool_use.executed import Episode, World, as_data, play
from apps.tool_use.pipeline import FunctionCallPipeline
from core.errors import BackendUnavailable, ConfigError, DataError
from core.inference.engines.script import ScriptEngine

SHOP = """
class Shop:
    def __init__(self):
        self.cart, self._log = [], []
    def _load_scenario(self, config):
        self.stock = dict(config["stock"])
    def add(self, item, count=1):
        if self.stock.get(item, 0) < count:
            raise ValueError(f"no {item}")
        self.stock[item] -= count
        self.cart.append([item, count])
        self._log.append(item)
        return {"left": self.stock[item]}
    def price(self, item):
        return {"pen": 2, "ink": 5}[item]
"""
CONFIG = {"Shop": {"stock": {"pen": 3, "ink": 1}}}
GOLD = (("add('pen', 2)", "price(item='pen')"), (), ("add(item='ink')",))


def episode(expected=GOLD, **fields):
    return Episode(tuple((("user", "?"),) for _ in expected), expected, ("Shop",), CONFIG, **fields)


@pytest.fixture(scope="module")
def world():
    with World(SHOP) as made:
        yield made


def call(name, **arguments):
    return Call(name, arguments)


PEN, PRICE, INK = call("add", item="pen", count=2), call("price", item="pen"), call("add", item="ink")


@pytest.mark.parametrize(
    ("turns", "error", "turn"),
    [
        ([[[PEN], [PRICE]], [], [[INK]]], None, None),
        ([[[PEN, PRICE]], [], [[INK]]], None, None),
        ([[[PRICE], [PEN], [PRICE]], [], [[INK]]], None, None),
        ([[[PEN]], [], [[INK]]], "execution_response_mismatch", 0),
        ([[[call("add", item="pen")], [call("add", item="pen")], [PRICE]], [], [[INK]]], "instance_state_mismatch", 0),
        ([[], [], [[INK]]], "empty_turn_model_response", 0),
        ([[[PEN], [PRICE]], [[PRICE]], [[INK]]], "irrelevance_error:decoder_success", 1),
        ([[[PEN], [PRICE], [INK]], [], [[PRICE]]], "instance_state_mismatch", 0),
        ([[[PEN], [PRICE]], [], [[call("add", item="gold")]]], "instance_state_mismatch", 2),
        ([[[PEN], [PRICE]], [], [[call("fly")], [INK]]], None, None),
    ],
)
def test_verdicts_by_hand(world, turns, error, turn):
    verdict = world.judge(episode(), turns)
    assert verdict.error == (error and f"multi_turn:{error}") and verdict.turn == turn
    assert verdict.valid == (error is None)


def test_a_result_of_an_earlier_turn_counts_later(world):
    expected = (("add('pen')",), ("price('pen')",))
    assert world.judge(episode(expected), [[[call("add", item="pen")], [PRICE]], [[call("price", item="ink")]]]).valid


def test_calls_are_data_and_never_code(world):
    assert as_data("shop.add('pen', count=2)") == ["add", ["pen"], {"count": 2}]
    assert as_data(call("add", a=1)) == as_data({"name": "add", "arguments": {"a": 1}}) == ["add", [], {"a": 1}]
    for text in ("add(__import__('os'))", "add", "1 + 1", "add("):
        with pytest.raises(DataError, match="not a call with literal arguments"):
            as_data(text)
    for name in ("_load_scenario", "__init__", "__class__", "begin", "cart"):
        verdict = world.judge(episode((("price('pen')",),)), [[[PRICE], [call(name)]]])
        assert verdict.valid, "it reached nothing"


def test_a_report_by_kind_of_error(world):
    right, wrong = [[[PEN], [PRICE]], [], [[INK]]], [[], [], []]
    report = StateEvaluator(world=world).score([right, wrong], [episode(), episode()])
    assert report.value() == 50.0 and report.signature["errors"] == {"multi_turn:empty_turn_model_response": 1}
    again = ToolUseEvaluator(world=world).score([right, wrong], [episode(), episode()])
    assert again.value() == 50.0 and again.name == "tool_use_state"


def test_what_cannot_be_judged_says_why(world, monkeypatch):
    with pytest.raises(DataError, match="1 turns of calls for 3 turns"):
        world.judge(episode(), [[]])
    with pytest.raises(BackendUnavailable, match="the world failed: KeyError"):
        world.judge(Episode((), (), ("Absent",)), [])
    monkeypatch.delenv("BFCL_EVAL", raising=False)
    with pytest.raises(BackendUnavailable, match="BFCL_EVAL"):
        World.bfcl()
    with pytest.raises(ConfigError, match="/tmp is its own"):
        World(packages=["/tmp/somewhere"])


def test_multi_turn_files_are_read(tmp_path):
    (tmp_path / "possible_answer").mkdir()
    (tmp_path / "multi_turn_func_doc").mkdir()
    row = {"id": "1", "question": [[{"role": "user", "content": "a"}]], "initial_config": {}}
    row |= {"excluded_function": ["g"], "involved_classes": ["TicketAPI"]}
    (tmp_path / "multi_turn_base.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "possible_answer/multi_turn_base.jsonl").write_text(json.dumps({"id": "1", "ground_truth": [["f()"]]}))
    documents = [{"name": name, "parameters": {"type": "dict", "properties": {}}} for name in "fg"]
    (tmp_path / "multi_turn_func_doc/ticket_api.jsonl").write_text("\n".join(map(json.dumps, documents)))
    (found,) = load_data(tmp_path, "bfcl_multi_turn")
    assert found.expected == (("f()",),) and [tool.name for tool in found.tools] == ["f"] and found.query == "a"
    with pytest.raises(DataError, match="unknown multi-turn category"):
        load_data(tmp_path, "bfcl_multi_turn", split="bas")
    (tmp_path / "multi_turn_base.jsonl").write_text('{"id": "1"}\n')
    with pytest.raises(DataError, match="not a multi-turn row"):
        load_data(tmp_path, "bfcl_multi_turn")


@pytest.mark.skipif(not os.environ.get("BFCL_EVAL"), reason="BFCL_EVAL names no folder with bfcl_eval/")
def test_gold_calls_are_right_in_the_leaderboards_worlds():
    root = Path(os.environ.get("GRAFT_DATA", "/nowhere")) / "data/tool_use/bfcl"
    episodes = load_data(root, "bfcl_multi_turn", limit=20)
    report = ToolUseEvaluator().score([[[list(turn)] for turn in e.expected] for e in episodes], episodes)
    assert report.value() == 100.0


def test_a_model_plays_an_episode_turn_by_turn(world):
    seen = []
    script = iter([[PEN], [PRICE], [], [], [INK], []])

    def ask(tools, messages):
        seen.append([m["content"] for m in messages if m["role"] == "tool"])
        return "so", next(script)

    turns = play(ask, episode(), world)
    assert turns == [[[PEN.to_dict()], [PRICE.to_dict()]], [], [[INK.to_dict()]]]
    assert seen[1] == ['{"left": 1}'] and seen[-1] == ['{"left": 1}', "2", '{"left": 0}']
    assert world.judge(episode(), turns).valid
    endless = play(lambda tools, messages: ("", [PRICE]), episode(), world, most=3)
    assert [len(turn) for turn in endless] == [3, 3, 3]


def test_a_pipeline_predicts_episodes(world, monkeypatch):
    texts = iter(['[{"name": "add", "arguments": {"item": "pen"}}]', "It is done."])
    prompts = []

    def answer(prompt):
        prompts.append(prompt)
        return next(texts)

    monkeypatch.setattr(World, "bfcl", classmethod(lambda cls: World(SHOP)))
    expected = (("add('pen')",),)
    (turns,) = FunctionCallPipeline(ScriptEngine(answer), None).predict([episode(expected)])
    assert world.judge(episode(expected), turns).valid
    assert "answer in words" in prompts[0] and prompts[1].endswith('Tool: {"left": 2}\nAssistant:')
