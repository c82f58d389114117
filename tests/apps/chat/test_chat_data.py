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
        assert verdict(tmp_path / name).startswith(f"{layout} (") and "2 turns" in verdict(tmp_path / name)


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
        ({"messages": [{"role": ["user"], "content": "x"}]}, "unknown role"),
        ({"messages": [{"role": "user", "content": 5}]}, "no text .got 5, expected a string"),
        ({"messages": [{"role": "user", "content": " "}]}, "empty turn"),
        ({"text": "x"}, "the row has no 'messages' .got .'text'., expected a row of messages"),
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
    assert error.value.line == 2 and str(file) in str(error.value) and str(error.value).count("(got") <= 1
    bad = BadRows("skip", tmp_path / "rejects.jsonl")
    assert list(READERS.get("auto")(str(file), on_bad=bad)) == [HELLO] and bad.count == 1


def test_files_without_a_layout_or_with_several(tmp_path):
    file = tmp_path / "a.json"
    for content, part in (
        ([{"text": "x"}], "no layout"),
        ([{"instruction": "a", "output": "b"}, {"messages": []}], "several layouts"),
        ({"a": 1}, "no layout that is known .got 'a', expected alpaca has 'instruction'"),
        ([1, 2], "no row is a JSON object"),
        ([], "no row is a JSON object"),
    ):
        file.write_text(json.dumps(content))
        with pytest.raises(DataError, match=part):
            load_data(file)
    file.write_text(json.dumps({"data": []}, indent=1))
    with pytest.raises(DataError, match="the file holds no list"):
        load_data(file)
    for empty in ("", "\n \n"):
        file.write_text(empty)
        with pytest.raises(DataError, match="the file is empty"):
            load_data(file)
    file.write_text("[")
    with pytest.raises(DataError, match="not valid JSON"):
        load_data(file)
    with pytest.raises(DataError, match="not found"):
        load_data(tmp_path / "absent.json")
    with pytest.raises(DataError, match="needs a path"):
        load_data()
    (tmp_path / "a.parquet").write_bytes(b"PAR1\x80")
    with pytest.raises(DataError, match="this is a .parquet file") as error:
        load_data(tmp_path / "a.parquet")
    assert "to_json('rows.jsonl', orient='records', lines=True)" in error.value.hint


HELLO_ROW = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]}


def test_a_file_is_read_by_what_it_holds_and_not_by_its_name(tmp_path):
    lines, whole = json.dumps(HELLO_ROW) + "\n", json.dumps([HELLO_ROW], indent=1)
    for name, text in (("lines.json", lines), ("list.jsonl", whole), ("list.txt", "\n" + whole)):
        for encoding in ("utf-8", "utf-8-sig"):
            (tmp_path / name).write_text(text, encoding=encoding)
            assert load_data(tmp_path / name) == [HELLO]


@pytest.mark.parametrize("name", ["latin.json", "latin.jsonl"])
def test_a_file_of_another_encoding_says_so(tmp_path, name):
    text = json.dumps([{"instruction": "café", "output": "é"}], ensure_ascii=False)
    (tmp_path / name).write_bytes((text if name.endswith("json") else text[1:-1]).encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8 at byte") as error:
        load_data(tmp_path / name)
    assert "convert" in error.value.hint and "JSON" not in error.value.what


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hello", "completion": "Hi."},
        {"prompt": [{"role": "user", "content": "Hello"}], "completion": [{"role": "assistant", "content": "Hi."}]},
    ],
)
def test_a_prompt_and_its_completion(row):
    assert conversation(row, "prompt") == HELLO


def test_pairs_as_preference_sets_have_them(tmp_path):
    asked = [{"role": "user", "content": "Hello"}]
    better, worse = ([*asked, {"role": "assistant", "content": text}] for text in ("Hi.", "No"))
    pair = ChatExample((("user", "Hello"),), "Hi.", "No")
    for row, layout in (
        ({"chosen": better, "rejected": worse}, "pairs"),
        ({"prompt": "Hello", "chosen": "Hi.", "rejected": "No"}, "prompt"),
        ({"prompt": "Hello", "chosen": better, "rejected": worse}, "prompt"),
        ({"prompt": "Hello", "messages": better, "chosen": better, "rejected": worse}, "messages"),
    ):
        (tmp_path / "a.json").write_text(json.dumps([row]))
        assert sniff(tmp_path / "a.json") == layout and load_data(tmp_path / "a.json", "preferences") == [pair]
    other = [{"role": "user", "content": "Bye"}, worse[1]]
    with pytest.raises(DataError, match="another question"):
        conversation({"chosen": better, "rejected": other}, "pairs")
    (tmp_path / "a.jsonl").write_text(f"{{not\n{json.dumps({'prompt': 'Hello', 'chosen': 'No', 'rejected': 'No'})}\n")
    bad = BadRows("skip")
    assert list(READERS.get("preferences")(str(tmp_path / "a.jsonl"), on_bad=bad)) == []
    assert [(error.line, error.field) for error in bad.first] == [(1, None), (2, "rejected")]


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


def test_a_tokenizer_is_fitted_to_what_is_said(tmp_path):
    from core.training.run import texts_of

    (tmp_path / "a.json").write_text(json.dumps([{"instruction": "Hello", "output": "Hi.", "system": "Be kind."}]))
    assert texts_of(load_data(tmp_path / "a.json")[0]) == ["Be kind.\nHello\nHi."]
    assert texts_of(ChatExample((("user", "Hello"),))) == ["Hello"]
