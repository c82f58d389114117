"""The evaluator's figures by hand."""

from __future__ import annotations

import pytest

from apps.chat import ChatEvaluator, ChatExample
from apps.chat.evaluator import repetition, rouge_l, word_f1


def test_rouge_l_and_word_f1_by_hand():
    # common subsequence "the cat the mat": 4 of 6 and 4 of 5 words
    assert rouge_l("The cat sat on the mat", "the cat near the mat") == pytest.approx(200 * 4 / 11)
    assert word_f1("b a", "a b") == 100 and rouge_l("b a", "a b") == pytest.approx(50)
    assert rouge_l("", "a") == word_f1("x", "") == 0


def test_repetition_by_hand():
    assert repetition("a b c d a b c d") == pytest.approx(100 * (1 - 4 / 5))
    assert repetition("a b c d e") == repetition("a b") == 0


def test_examples_without_a_reference_count_where_none_is_needed():
    examples = [ChatExample((("user", "q"),), "a b"), ChatExample((("user", "q"),))]
    report = ChatEvaluator().score(["a b", ""], examples)
    assert report.metrics["exact"].n == 1 and report.value("exact") == 100
    assert report.metrics["empty"].n == 2 and report.value("empty") == 50
    none = ChatEvaluator(["rouge_l"]).score(["x"], examples[1:])
    assert none.metrics["rouge_l"].skipped == "no example has a reference answer"
