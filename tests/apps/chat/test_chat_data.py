"""Conversations from every layout, and what is said of rows that are none."""

from __future__ import annotations

import json

import pytest

from apps.chat.data import READERS, ChatExample, conversation, load_data, sniff, verdict
from core.data.rows import BadRows
from core.errors import DataError

HELLO = ChatExample((("user", "Hello"),), "Hi.")


@pytest.mark.parametrize(
    "layout, row",
    [
        ("alpaca", {"instruction": "Hello", "input": "", "output": "Hi."}),
        ("sharegpt", {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi."}]}),
        ("messages", {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": " Hi."}]}),
    ],
)
def test_three_layouts_of_one_conversation(tmp_path, layout, row):
    assert conversation(row, layout) == HELLO
    (tmp_path / "list.json").write_text(json.dumps([row]))
    (tmp_path / "lines.jsonl").write_text(json.dumps(row) + "\n\n")
    for name in ("list.json", "lines.jsonl"):
        assert sniff(tmp_path / name) == layout
        assert load_data(tmp_path / name) == [HELLO]
        assert f": {layout} (" in verdict(tmp_path / name) and "2 turns" in verdict(tmp_path / name)


def test_input_system_and_history_of_alpaca():
    row = {
        "instruction": "And now?", "input": "in French", "output": "Bonjour", "system": "Translate.",
        "history": [["Hello in German", "Hallo"]],
    }  # fmt: skip
    found = conversation(row, "alpaca")
    assert found.messages == (
        ("system", "Translate."),
        ("user", "Hello in German"),
        ("assistant", "Hallo"),
        ("user", "And now?\n\nin French"),
    )
    assert found.answer == "Bonjour"


def test_preferences_beside_a_conversation():
    turns = [{"from": "human", "value": "Hello"}]
    row = {
        "conversations": turns,
        "chosen": {"from": "gpt", "value": "Hi."},
        "rejected": {"from": "gpt", "value": "No"},
    }
    assert conversation(row, "sharegpt") == ChatExample((("user", "Hello"),), "Hi.", "No")
    whole = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]
    row = {"messages": whole[:1], "chosen": whole, "rejected": "No"}
    assert conversation(row, "messages") == ChatExample((("user", "Hello"),), "Hi.", "No")


@pytest.mark.parametrize(
    "row, part",
    [
        ({"messages": []}, "a list of turns"),
        ({"messages": [{"role": "alien", "content": "x"}]}, "unknown role"),
        ({"messages": [{"role": "user", "content": " "}]}, "empty turn"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "no user turn"),
        ({"messages": [{"role": "user", "content": "x"}] * 2}, "do not alternate"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]}, "speaks twice"),
        ({"messages": [{"role": "user", "content": "x"}], "chosen": ""}, "empty answer"),
    ],
)
def test_a_row_that_is_no_conversation(tmp_path, row, part):
    with pytest.raises(DataError, match=part):
        conversation(row, "messages")
    file = tmp_path / "a.jsonl"
    good = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]}
    file.write_text(json.dumps(good) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=part) as error:
        load_data(file)
    assert error.value.line == 2 and str(file) in str(error.value)
    bad = BadRows("skip", tmp_path / "rejects.jsonl")
    assert list(READERS.get("auto")(str(file), on_bad=bad)) == [HELLO] and bad.count == 1


def test_files_without_a_layout_or_with_several(tmp_path):
    file = tmp_path / "a.json"
    for content, part in (
        ([{"text": "x"}], "no layout"),
        ([{"instruction": "a", "output": "b"}, {"messages": []}], "several layouts"),
        ({"a": 1}, "no list"),
    ):
        file.write_text(json.dumps(content))
        with pytest.raises(DataError, match=part):
            load_data(file)
    file.write_text("[")
    with pytest.raises(DataError, match="not valid JSON"):
        load_data(file)
    with pytest.raises(DataError, match="not found"):
        load_data(tmp_path / "absent.json")


def test_a_preference_row_without_its_worse_answer_is_told(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"instruction": "a", "output": "b"}]))
    with pytest.raises(DataError, match="rejected"):
        load_data(file, "preferences")


def test_shipped_questions_split_apart_and_are_exact():
    from apps.chat.arithmetic import is_right, questions

    sets = {split: questions(split) for split in ("train", "dev", "test")}
    asked = [{q for q, _, _ in rows} for rows in sets.values()]
    assert not asked[0] & asked[1] and not asked[0] & asked[2] and not asked[1] & asked[2]
    assert sets["train"] == questions("train")
    for question, right, wrong in sets["train"]:
        example = ChatExample((("user", question),), right)
        assert is_right(right, example) == 1 and is_right(wrong, example) == 0, question
    assert is_right("", ChatExample((("user", "x"),), "7")) == 0
