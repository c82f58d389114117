"""`graft check` as a person meets it: what is wrong with the data and the options, before anything is loaded."""

from __future__ import annotations

import json

import pytest

from core.config.schema import ModelConfig
from core.models.load import load_tokenizer
from recipes.cli import main

GOOD = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]}
OPEN = {"messages": [{"role": "user", "content": "Hello"}]}
BAD = {"messages": [{"role": "user"}]}


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """(method, rows or the file's text, block, arguments) → status and what was printed."""
    monkeypatch.chdir(tmp_path)

    def run(method, rows, block="", *arguments):
        text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "rows.jsonl").write_text(text)
        app = method.partition(".")[0]
        reader = {"chat": "auto", "embeddings": "jsonl"}[app]
        (tmp_path / "mine.yaml").write_text(
            f"app: {app}\nmodel: {{path: embedded}}\nmethod: {method}\n"
            f"data: {{train: [{{reader: {reader}, path: rows.jsonl}}]}}\n{block}\n"
        )
        status = main(["check", "mine.yaml", *arguments])
        out, err = capsys.readouterr()
        return status, out + err

    return run


def test_all_bad_rows_are_named_at_once(check):
    status, said = check("chat.sft", [GOOD, BAD, GOOD, BAD, BAD])
    assert status == 2 and "rows.jsonl:2" in said and "rows 4, 5 are bad too" in said and "--fix" in said
    status, said = check("chat.sft", [GOOD, BAD, GOOD], "", "data.on_bad=skip")
    assert status == 0 and "1 bad" in said
    for policy in ("skip", "raise"):
        status, said = check("chat.sft", [BAD, BAD], "", f"data.on_bad={policy}")
        assert status == 2 and "the turn is no text" in said and "--fix" not in said


def test_a_file_of_bad_rows_is_given_up_early(check, monkeypatch):
    from apps.chat import data

    tried, original = [], data.conversation
    monkeypatch.setattr(data, "conversation", lambda *args: tried.append(1) or original(*args))
    assert check("chat.sft", [BAD] * 5000)[0] == 2 and len(tried) == 100
    status, said = check("chat.sft", [*[BAD] * 150, GOOD], "", "data.on_bad=skip")
    assert status == 0 and "first 1 rows read, 150 bad" in said, "a hundred and more may be passed over"


def test_fix_writes_the_rows_that_can_be_used(check, tmp_path):
    rows = [*[GOOD] * 150, BAD, *[GOOD] * 3]
    assert check("chat.sft", rows)[0] == 0, "the first hundred rows are good"
    status, said = check("chat.sft", rows, "", "--fix")
    assert status == 2 and "rows.jsonl:151" in said and "set path: to it" in said
    clean = tmp_path / "rows.clean.jsonl"
    assert [json.loads(line) for line in clean.read_text().splitlines()] == [GOOD] * 153
    assert (tmp_path / "rows.jsonl").read_text().count("\n") == 154
    assert check("chat.sft", rows, "", "--fix", "data.train.0.path=rows.clean.jsonl")[0] == 0
    half = json.dumps(GOOD) + "\n" + json.dumps(GOOD)[:30]
    clean.unlink()
    status, said = check("chat.sft", half, "", "--fix")
    assert status == 2 and "the last line is cut off" in said and clean.read_text() == json.dumps(GOOD) + "\n"
    clean.unlink()
    status, said = check("chat.sft", [BAD, BAD], "", "--fix")
    assert status == 2 and "none of the 2 rows" in said and not clean.exists()


@pytest.mark.parametrize(
    ("method", "rows", "block", "what"),
    [
        ("chat.sft", [GOOD, OPEN], "", "1 of 2 conversations have no answer to learn; the first is number 2"),
        ("chat.sft", [OPEN], "data.on_bad=skip", "ends with what the assistant says"),
        ("chat.dpo", [GOOD], "", "no better and worse answer"),
        ("chat.grpo", [OPEN], "with: {rewards: [rewards.py:f]}", "file not found"),
        ("chat.grpo", [OPEN], "with: {rewards: [no_such.module:f]}", "there is no module 'no_such.module'"),
        ("chat.grpo", [OPEN], "with: {rewards: [length]}", "'length' names no function"),
        ("chat.grpo", [OPEN], "with: {group: 7}", "no whole groups of 7"),
        ("embeddings.stage1", [{"text": "a"}], "", "no example says what a text should be near to"),
        ("embeddings.stage2", [{"text": "a", "text2": "b", "score": 0.1}], "", "no example says"),
        ("embeddings.graded", [{"text": "a", "pos": "b"}], "", "pairs with a score"),
        ("embeddings.stage1", [{"text": "a", "pos": "b"}], "with: {mine: bm52}", "did you mean 'bm25'"),
        ("embeddings.stage1", [{"text": "a", "pos": "b"}], "with: {matryoshka: [0]}", "at least 1, got 0"),
    ],
)
def test_nothing_to_learn_is_told_without_a_model(check, method, rows, block, what):
    arguments = [block] if "=" in block else []
    status, said = check(method, rows, "" if arguments else block, *arguments)
    assert status == 2 and what in said, said


@pytest.mark.parametrize(
    ("method", "rows"),
    [
        ("chat.sft", [GOOD]),
        ("chat.grpo", [OPEN]),
        ("embeddings.stage1", [{"text": "a", "pos": "b"}, {"text": "x"}]),
        ("embeddings.stage2", [{"text": "a", "label": "b"}]),
        ("embeddings.graded", [{"text": "a", "text2": "b", "score": 0.1}]),
        ("embeddings.warm", [{"text": "a"}]),
    ],
)
def test_what_can_be_learnt_passes(check, method, rows):
    assert check(method, rows)[0] == 0


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (("app: chat", "app: embeddings"), "chat.sft is a method of the app chat, and the recipe is of embeddings"),
        (("path: embedded", "path: rows.jsonl"), "name the folder of a model"),
        (("path: rows.jsonl}", "path: rows.jsonl, with: {split: dev}}"), "split stands beside with:, not in it"),
        (("reader: auto", "reader: alpaca"), "it is a row of messages: use the reader messages, or auto"),
    ],
)
def test_what_stands_in_the_wrong_place(check, tmp_path, capsys, change, what):
    assert check("chat.sft", [GOOD])[0] == 0
    text = (tmp_path / "mine.yaml").read_text()
    assert change[0] in text
    (tmp_path / "mine.yaml").write_text(text.replace(*change))
    assert main(["check", "mine.yaml"]) == 2 and what in "".join(capsys.readouterr())


TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def test_a_tokenizer_without_the_chat_template_that_is_asked_for_is_told(check, tmp_path, monkeypatch):
    """In each place where a template may stand, as transformers finds it; a hub id is not asked."""
    config = "chat.sft", [GOOD], "with: {template: model}"
    status, said = check(*config)
    assert status == 2 and "the tokenizer of 'embedded' has no chat template" in said
    assert "mine.yaml:5 (with.template)" in said and "template: auto" in said
    assert check("chat.sft", [GOOD], "with: {template: auto}")[0] == 0
    own = tmp_path / "tokenizer"
    load_tokenizer(ModelConfig(path="embedded")).save_pretrained(own)
    for source in (
        f"model.tokenizer={own}",
        f"model.tokenizer={tmp_path / 'absent'}",
        "model.tokenizer=package:nothing",
    ):
        assert check(*config, source)[0] == 2
    settings = json.loads((own / "tokenizer_config.json").read_text())
    for place, text in {
        "tokenizer_config.json": json.dumps(settings | {"chat_template": TEMPLATE}),
        "chat_template.jinja": TEMPLATE,
        "additional_chat_templates/tools.jinja": TEMPLATE,
    }.items():
        file, before = own / place, json.dumps(settings)
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        assert check(*config, f"model.tokenizer={own}")[0] == 0, place
        assert load_tokenizer(ModelConfig(tokenizer=str(own))).chat_template
        file.unlink()
        (own / "tokenizer_config.json").write_text(before)
    assert check(*config, "model.path=someone/model")[0] == 0
    assert check(*config, "model.path=null", "model.preset=tiny", "model.tokenizer=bpe:300")[0] == 2


def test_the_stage_that_asks_for_a_template_is_named(check, tmp_path, capsys):
    assert check("chat.sft", [GOOD])[0] == 0
    text = (tmp_path / "mine.yaml").read_text().replace("method: chat.sft\n", "")
    text += "stages:\n  - {name: a, method: chat.sft}\n  - name: b\n    method: chat.sft\n    with: {template: model}\n"
    (tmp_path / "mine.yaml").write_text(text)
    line = text.splitlines().index("    with: {template: model}") + 1
    assert main(["check", "mine.yaml"]) == 2
    assert f"mine.yaml:{line} (stages.1.with.template)" in capsys.readouterr().err
