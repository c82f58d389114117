"""The chat demo in a real browser, with no network: a conversation, what was sent, a file that is none."""

from __future__ import annotations

import threading

import pytest

pytest.importorskip("gradio", reason="gradio is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")

pytestmark = pytest.mark.browser


@pytest.fixture
def gate():
    """The model answers only while this is set."""
    gate = threading.Event()
    gate.set()
    return gate


@pytest.fixture
def opened(gate, open_page):
    """(page, list of problems): the demo in a fresh browser; failed scripts and outside requests are problems."""
    from apps.chat import ChatPipeline
    from core.inference.engines.script import ScriptEngine
    from core.models.tokenizer import train_bpe
    from demos import chat

    def answer(prompt):
        if "break" in prompt:
            raise RuntimeError("broken")
        assert gate.wait(60)
        return f" You have asked {prompt.count('User:')} times."

    engine = ScriptEngine(answer)
    config = ChatPipeline._config({"template": "plain"})
    blocks = chat.build(ChatPipeline(engine, train_bpe(["text"], 300), config))
    page, problems = open_page(blocks)
    page.get_by_role("button", name="Send", exact=True).wait_for()
    return page, problems


def test_a_person_talks_begins_anew_and_scores_a_file_that_is_none(opened, tmp_path):
    page, problems = opened
    for number in (1, 2):
        page.get_by_label("You", exact=True).fill(f"question {number}")
        page.get_by_role("button", name="Send", exact=True).click()
        page.get_by_text(f"You have asked {number} times.").first.wait_for()
    sent = page.locator(".graft-prompt").inner_text()
    assert sent.count("User:") == 2 and "question 1" in sent and "You have asked 1 times." in sent
    page.get_by_role("button", name="New", exact=True).click()
    page.get_by_text("You have asked 1 times.").first.wait_for(state="hidden")

    file = tmp_path / "none.json"
    file.write_text('[{"text": "no conversation"}]')
    page.get_by_role("tab", name="Evaluate").click()
    page.locator("input[type=file]").first.set_input_files(str(file))
    # the name stands there in one piece only while the file is on its way; what stays is its label
    page.locator(".file-preview").get_by_label("none.json").wait_for()
    page.get_by_role("button", name="Score", exact=True).click()
    page.get_by_text("no layout").first.wait_for()
    assert not problems


def test_what_is_typed_while_an_answer_is_made_stays_and_send_rests_until_then(opened, gate):
    page, problems = opened
    box, send = page.get_by_label("You", exact=True), page.get_by_role("button", name="Send", exact=True)
    expect = sync_api.expect
    gate.clear()
    box.fill("question 1")
    send.click()
    page.get_by_text("question 1").first.wait_for()  # it stands in the conversation before there is an answer
    expect(box).to_have_value("", timeout=30_000)
    expect(send).to_be_disabled(timeout=30_000)
    box.fill("question 2")
    with page.expect_response("**/run/predict"):  # the button told again to rest; nothing is sent
        box.press("Shift+Enter")
    gate.set()
    page.get_by_text("You have asked 1 times.").first.wait_for()
    expect(send).to_be_enabled(timeout=30_000)
    expect(box).to_have_value("question 2")

    gate.clear()
    send.click()
    page.get_by_text("question 2").first.wait_for()  # there is nothing to stop before
    expect(send).to_be_disabled(timeout=30_000)
    page.get_by_role("button", name="Stop", exact=True).click()
    gate.set()  # a stop waits for the token in hand
    expect(send).to_be_enabled(timeout=30_000)

    box.fill("break")
    send.click()
    page.get_by_text("broken").first.wait_for()
    expect(send).to_be_enabled(timeout=30_000)
    assert not problems
