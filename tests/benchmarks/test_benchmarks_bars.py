"""The bars can fail: a broken encoding, a wrong score and a wrong signature are seen."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.bar import Setting
from benchmarks.bars import translation_t1 as t1
from benchmarks.bars import translation_t9 as t9


@pytest.fixture(scope="module")
def tokenizers():
    from benchmarks.tokenizers import eight
    from core.data.embedded import pairs

    return eight(t9.texts(pairs("train", limit=200)))


def test_the_tokenizers_differ(tokenizers):
    assert len(tokenizers) == 8
    said = [tuple(t.convert_ids_to_tokens(t("Um 8.30 Uhr 1234")["input_ids"])) for t in tokenizers.values()]
    assert len(set(said)) >= 6
    assert tokenizers["bytes, padding is end of text"].pad_token_id == tokenizers["bytes"].eos_token_id


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda row: dataclasses.replace(row, labels=[-100] + row.labels[1:-1] + [-100]), "not the end"),
        (lambda row: dataclasses.replace(row, labels=row.input_ids), "serving"),
        (lambda row: dataclasses.replace(row, input_ids=row.input_ids[:-1], labels=row.labels[:-1]), "end of text"),
    ],
)
def test_t9_sees_a_broken_encoding(tokenizers, monkeypatch, damage, expected):
    from apps.translation.prompts import TEMPLATES
    from core.data import encode as module

    arguments = (tokenizers["bytes"], TEMPLATES["plain"], "offsets", "Guten Tag.", "Good day.")
    assert t9.check(*arguments) == (None, False)
    sound = module.encode
    monkeypatch.setattr(module, "encode", lambda *a, **k: damage(sound(*a, **k)))
    fault, _ = t9.check(*arguments)
    assert fault is not None and expected in fault


@pytest.mark.parametrize("change", [{"score": 1.0}, {"signature": "other"}])
def test_t1_sees_another_score_or_signature(tmp_path, monkeypatch, change):
    ours = {"bleu": {"score": 30.0, "signature": "s", "reason": None}}
    monkeypatch.setattr(t1, "corpora", lambda: {str(i): ("de", ["a"], ["b"]) for i in range(16)})
    monkeypatch.setattr(t1, "score", lambda *a: ours)
    monkeypatch.setattr(t1, "command_scores", lambda *a: {"bleu": {"score": 30.0, "signature": "s"}})
    assert t1.measure(Setting(True, tmp_path)).passed
    monkeypatch.setattr(t1, "command_scores", lambda *a: {"bleu": {"score": 30.0, "signature": "s", **change}})
    assert not t1.measure(Setting(True, tmp_path)).passed
