"""Every app keeps the shared contract."""

from __future__ import annotations

import math

from core.errors import AppInputError, GraftError, LanguageError
from tests.apps.contract import PipelineContract


class TestTranslation(PipelineContract):
    app = "translation"
    inputs = ("Guten Tag.", "Der Hund schläft im Garten hinter dem alten Haus.", "Ja!", "Wie geht es dir heute?")
    fields = {"src": "de", "tgt": "en"}
    row = {"src": "Guten Tag.", "tgt": "Good day.", "src_lang": "de", "tgt_lang": "en"}
    bad = (
        ("Hallo", {"src": "de", "tgt": "xx"}, LanguageError, "xx"),
        ("Hallo", {"src": "de", "tgt": "de"}, LanguageError, "de"),
        ("Hallo", {"src": "de"}, GraftError, "language"),
        ("Hallo", {"src": "de", "tgt": "en", "tgtt": "en"}, AppInputError, "tgt"),
        ({"sorce": "Hallo"}, {"src": "de", "tgt": "en"}, GraftError, "src"),
        ({"src": 3, "src_lang": "de", "tgt_lang": "en"}, {}, GraftError, "src"),
        ("Wort " * 600, {"src": "de", "tgt": "en"}, AppInputError, "too long"),
    )
    golden = (
        ["the dog sleeps in the garden", "good day to you all"],
        [
            {"src": "Der Hund schläft.", "tgt": "the dog sleeps in the garden", "src_lang": "de", "tgt_lang": "en"},
            {"src": "Guten Tag.", "tgt": "good day to you all", "src_lang": "de", "tgt_lang": "en"},
        ],
        {"bleu": 100.0, "chrf": 100.0, "ter": 0.0, "empty": 0.0, "length_ratio": 1.0},
    )


class TestLm(PipelineContract):
    app = "lm"
    inputs = ("Once upon a time", "The", "There was a small house at the edge of the wood, and")
    row = {"text": "Once upon"}
    bad = (
        ("", {}, AppInputError, "nothing to continue"),
        ({"txt": "Once"}, {}, GraftError, "text"),
        ("many words " * 300, {}, GraftError, "context"),
    )
    golden = (
        [
            {"logprob": -8 * math.log(2), "tokens": 2, "bytes": 4},
            {"logprob": -4 * math.log(2), "tokens": 2, "bytes": 4},
        ],
        [{"text": "abcd"}, {"text": "abab"}],
        {"bits_per_byte": 1.5, "perplexity": 8.0},
    )


class TestChat(PipelineContract):
    app = "chat"
    inputs = ("Hello.", "What is the sum of two and forty, and why?", "Yes!")
    row = {"messages": [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi."},
                        {"role": "user", "content": "Who are you?"}], "answer": "A model."}  # fmt: skip
    bad = (
        ("", {}, AppInputError, "no question"),
        ({"messages": [{"role": "assistant", "content": "Hi."}]}, {}, AppInputError, "no question"),
        ({"messages": [{"role": "alien", "content": "Hi."}]}, {}, AppInputError, "turn 1"),
        ({"mesages": []}, {}, AppInputError, "messages"),
        ("many words " * 300, {}, GraftError, "context"),
    )
    golden = (
        ["two plus two is four", ""],
        [
            {"messages": [{"role": "user", "content": "2 + 2?"}], "answer": "Two plus two is four."},
            {"messages": [{"role": "user", "content": "x"}], "answer": "y"},
        ],
        {"rouge_l": 50.0, "exact": 50.0, "empty": 50.0},
    )


WEATHER = {
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


class TestToolUse(PipelineContract):
    app = "tool_use"
    inputs = ("Weather in Rome?", "How is the weather in the old town of Oslo today?", "Rain?")
    fields = {"tools": [WEATHER]}
    row = {"query": "Weather in Rome?", "tools": [WEATHER]}
    sampling = {"max_new_tokens": 60}
    bad = (
        ("Weather?", {}, AppInputError, "no tools"),
        ("Weather?", {"tools": [WEATHER, WEATHER]}, GraftError, "two tools"),
        ("", {"tools": [WEATHER]}, AppInputError, "empty"),
        ({"query": "x", "tool": []}, {}, AppInputError, "tool"),
        ("x " * 600, {"tools": [WEATHER]}, AppInputError, "retriever"),
    )
    golden = (
        ['[{"name": "get_weather", "arguments": {"city": "rome"}}]', "no idea"],
        [
            {"query": "Rome?", "tools": [WEATHER], "calls": [{"name": "get_weather", "arguments": {"city": "Rome"}}]},
            {"query": "Oslo?", "tools": [WEATHER], "calls": [{"name": "get_weather", "arguments": {"city": "Oslo"}}]},
        ],
        {"ast_accuracy": 50.0, "readable": 50.0, "schema_valid": 50.0},
    )

    def test_a_call_leaves_the_configuration_alone(self, pipeline):
        before = pipeline.config
        pipeline(self.inputs[0], max_new_tokens=55, **self.fields)
        assert pipeline.config is before
