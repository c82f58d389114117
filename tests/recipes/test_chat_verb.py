"""`graft chat`: questions in, answers streamed, the conversation kept from one to the next."""

from __future__ import annotations

import io

import pytest

from core.errors import AppInputError
from core.inference.request import Event
from recipes.cli import main


class Recorded:
    """A pipeline that keeps what it was asked."""

    asked: list = []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def stream(self, given, **settings):
        self.asked.append((list(given["messages"]), settings))
        for part in ("yes", ", ", given["messages"][-1]["content"]):
            yield Event("text", part)
        yield Event("done", "")


@pytest.fixture
def recorded(monkeypatch):
    from apps.chat import ChatPipeline

    Recorded.asked = []
    opened = []

    def open_(path, **config):
        opened.append((path, config))
        return Recorded()

    monkeypatch.setattr(ChatPipeline, "from_pretrained", open_)
    return opened


def test_piped_questions_are_one_conversation(recorded, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\n/new\nthree\n"))
    assert main(["chat", "runs/x", "--system", "Be brief.", "--temperature", "0.5"]) == 0
    assert capsys.readouterr().out.splitlines() == ["yes, one", "yes, two", "yes, three"]
    assert recorded == [("runs/x", {"device": "auto", "system": "Be brief."})]
    turns, settings = Recorded.asked[1]
    assert [t["content"] for t in turns] == ["one", "yes, one", "two"] and settings["temperature"] == 0.5
    assert [t["content"] for t in Recorded.asked[2][0]] == ["three"]


def test_a_question_too_long_ends_no_conversation_in_a_terminal(recorded, monkeypatch, capsys):
    lines = iter(["one", "long", "two", ""])
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    answer = Recorded.stream

    def stream(self, given, **settings):
        if given["messages"][-1]["content"] == "long":
            raise AppInputError("the prompt has 9 tokens and the model's context is 8")
        yield from answer(self, given, **settings)

    monkeypatch.setattr(Recorded, "stream", stream)
    assert main(["chat", "runs/x"]) == 0
    assert "the model's context is 8; ask something shorter, or start over with /new" in capsys.readouterr().out
    assert [t["content"] for t in Recorded.asked[1][0]] == ["one", "yes, one", "two"]
    monkeypatch.setattr("sys.stdin", io.StringIO("long\n"))
    assert main(["chat", "runs/x"]) == 2


def test_bytes_that_are_no_text(recorded, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    assert main(["chat", "runs/x"]) == 2
    assert "not UTF-8 (byte 3)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "given",
    [
        ["chat", "runs/x", "--temperature", "-1"],
        ["chat", "runs/x", "--max-new-tokens", "0"],
        ["merge", "runs/x", "--max-drift", "-1"],
        ["plan", "chat/sft", "--gpus", "0"],
        ["train", "chat/sft", "--gpus", "-2"],
        ["runs", "resume", "runs/x", "--gpus", "x"],
    ],
)
def test_numbers_that_cannot_be_meant(given, capsys):
    with pytest.raises(SystemExit) as stop:
        main(given)
    assert stop.value.code == 2 and f"argument {given[-2]}: expected a" in capsys.readouterr().err


def test_a_missing_model_is_an_error_not_a_trace(tmp_path, capsys):
    assert main(["chat", str(tmp_path / "none")]) == 2
    assert "graft chat:" in capsys.readouterr().err
