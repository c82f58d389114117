"""`graft chat`: questions in, answers streamed, the conversation kept from one to the next."""

from __future__ import annotations

import io

import pytest

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


def test_a_missing_model_is_an_error_not_a_trace(tmp_path, capsys):
    assert main(["chat", str(tmp_path / "none")]) == 2
    assert "graft chat:" in capsys.readouterr().err
