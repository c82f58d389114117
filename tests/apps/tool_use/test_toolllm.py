"""Rows from solved tasks: what is learnt of a tree, behind the prompt that serving gives; and a longer context."""

import json

import pytest
import torch

from apps.tool_use import tasks
from apps.tool_use.methods.toolllm import StepPipeline, row_of
from apps.tool_use.session import FINISH, SENTINEL
from apps.tool_use.trajectories import READERS, Turn, turns
from core.config.registry import get_app
from core.config.schema import ModelConfig
from core.data.encode import IGNORE, encode, encode_prompt
from core.data.rows import BadRows
from core.errors import DataError, UnsupportedError
from core.models.tokenizer import train_bpe
from core.training.build import build_base

TOOL = {"name": "find", "description": "Find a thing", "parameters": {
    "type": "object", "properties": {"what": {"type": "string"}}, "required": ["what"]}}  # fmt: skip


def node(kind, text="", *children, **more):
    return {"node_type": kind, "description": text, "children": list(children), **more}


def tree(*children):
    return node("Action Input", "", *children)


def step(name, arguments, *children, seen="", **more):
    below = node("Action Input", json.dumps(arguments), *children, observation=seen, observation_code=0, **more)
    return node("Action", name, below)


ANSWER = {"return_type": "give_answer", "final_answer": "Here."}
GIVE_UP = {"return_type": "give_up_and_restart"}


def write(path, root):
    path.write_text(json.dumps({"tree": {"tree": root}, "answer_generation": {"query": "\nFind it.\n", "function": [
        TOOL, {"name": "Finish", "description": "", "parameters": {}}]}}))  # fmt: skip
    return path


def read(path, reader="toolbench"):
    return list(READERS.get(reader)(path, on_bad=BadRows("raise")))


def test_only_the_way_to_the_answer_is_learnt(tmp_path):
    failed = step("find", {"what": "a"}, step("Finish", GIVE_UP), seen="nothing")
    solved = node(
        "Thought", "Then b.", step("find", {"what": "b"}, step("Finish", ANSWER, is_terminal=True), seen="b!")
    )
    made = read(write(tmp_path / "a.json", tree(failed, solved)))
    assert [(turn.said, [call.to_dict() for call in turn.calls]) for turn in made] == [
        ("Then b.", [{"name": "find", "arguments": {"what": "b"}}]),
        ("", [{"name": "Finish", "arguments": ANSWER}]),
    ]
    assert "nothing" not in made[1].text and "b!" in made[1].text
    assert [tool.name for tool in made[0].tools] == ["find", "Finish"] and made[0].tools[1] is FINISH
    assert read(write(tmp_path / "a.json", tree(failed))) == [], "an unsolved tree teaches nothing"


def test_a_tool_that_does_not_exist_is_shown_and_not_learnt(tmp_path):
    root = tree(step("fnd", {}, step("find", {"what": "b"}, step("Finish", ANSWER))))
    made = read(write(tmp_path / "a.json", root))
    assert [turn.calls[0].name for turn in made] == ["find", "Finish"]
    assert SENTINEL in made[0].text and "fnd" not in made[0].text


def test_only_the_last_turn_of_a_row_carries_loss(tmp_path):
    root = tree(step("find", {"what": "b"}, step("Finish", ANSWER), seen="found b"))
    made = read(write(tmp_path / "a.json", root))
    tokenizer = train_bpe([turn.text for turn in made], 400)
    for template, form in (("plain", "json"), ("chatml", "hermes")):
        for turn in made:
            row = encode(row_of(turn, template, form), tokenizer)
            learnt = tokenizer.decode([i for i in row.labels if i != IGNORE])
            given = tokenizer.decode([i for i, label in zip(row.input_ids, row.labels) if label == IGNORE])
            assert learnt.count('"name"') == 1 and turn.calls[0].name in learnt
            assert "found b" not in learnt and given.count("found b") == made.index(turn)


def test_the_prompt_of_training_is_the_prompt_of_serving(tmp_path):
    made = read(None, "embedded")[:6]
    tokenizer = train_bpe([turn.text for turn in made], 500)
    pipeline = StepPipeline(None, tokenizer, StepPipeline.config_cls(constrained=False))
    for turn in made:
        row = row_of(turn)
        assert pipeline.prepare(turn).ids == encode_prompt(row, tokenizer)
        encoded = encode(row, tokenizer)
        assert encoded.input_ids[: len(pipeline.prepare(turn).ids)] == pipeline.prepare(turn).ids


def test_conversations_end_with_finish_and_bad_ones_are_told(tmp_path):
    file = tmp_path / "t.jsonl"
    call = {"id": "1", "function": {"name": "find", "arguments": '{"what": "b"}'}}
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "Find."},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "1", "content": "b"},
                {"role": "assistant", "content": "Here."}]  # fmt: skip
    entry = {"type": "function", "function": TOOL}
    file.write_text(json.dumps({"messages": messages, "tools": [entry]}) + "\n")
    first, last = read(file, "traces")
    assert first.calls[0].arguments == {"what": "b"} and first.query == "Find."
    assert last.calls[0].to_dict() == {"name": "Finish", "arguments": ANSWER} and last.said == ""
    for change, part in (
        ({"name": "fnd"}, "not among"),
        ({"arguments": "{"}, "not JSON"),
        ({"arguments": "[]"}, "no object"),
    ):
        broken = json.loads(json.dumps(messages))
        broken[2]["tool_calls"][0]["function"] |= change
        file.write_text(json.dumps({"messages": broken, "tools": [entry]}) + "\n")
        with pytest.raises(DataError, match=part) as caught:
            read(file, "traces")
        assert caught.value.line == 1 and "messages[1]/tool_calls[0]" in caught.value.field
    with pytest.raises(DataError, match="before anybody asked"):
        list(turns([], [{"role": "assistant", "content": "hi"}], "x"))
    with pytest.raises(DataError, match="no JSON files"):
        read(tmp_path / "nothing")


def test_the_small_tasks_give_two_turns_each():
    made = read(None, "embedded")
    assert len(made) == 2 * tasks.SIZES["train"] and isinstance(made[0], Turn)
    assert [turn.calls[0].name == "Finish" for turn in made[:4]] == [False, True, False, True]


def test_interpolated_positions_are_the_known_ones(tmp_path):
    get_app("tool_use")
    tokenizer = train_bpe(["a"], 261)
    edited = ModelConfig(preset="tiny", edits=[{"kind": "position_interpolation", "factor": 4}])
    plain, longer = (build_base(c, tokenizer, device="cpu", seed=1) for c in (ModelConfig(preset="tiny"), edited))
    assert longer.config.max_position_embeddings == 4 * plain.config.max_position_embeddings

    def phases(model, positions):
        (module,) = [m for m in model.modules() if hasattr(m, "rope_type")]
        return module(torch.zeros(1, 3, 8), torch.tensor([positions]))

    known, divided = phases(plain, [1, 7, 100]), phases(longer, [4, 28, 400])
    assert all(torch.equal(a, b) for a, b in zip(known, divided))
    longer.save_pretrained(tmp_path)
    from transformers import AutoModelForCausalLM

    again, ids = AutoModelForCausalLM.from_pretrained(tmp_path), torch.arange(40)[None]
    assert torch.equal(again(ids).logits, longer(ids).logits) and not torch.equal(plain(ids).logits, longer(ids).logits)
    from apps.tool_use.interpolation import interpolate
    from apps.tool_use.options import InterpolationOptions

    with pytest.raises(UnsupportedError, match="linear"):
        interpolate(longer, InterpolationOptions())
