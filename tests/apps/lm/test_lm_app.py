"""The language-modelling app: documents read whole, figures that can be done by hand, text continued."""

from __future__ import annotations

import json
import math
from itertools import islice

import pytest

from apps.lm import LmEvaluator, LmPipeline, TextExample
from apps.lm.data import READERS
from apps.lm.methods import pretrain
from core.config.registry import get_app
from core.config.schema import Recipe, SourceConfig
from core.data.embedded import handwritten
from core.data.embedded.grammar import sentence
from core.data.rows import BadRows, Examples
from core.data.segments import Segment
from core.errors import ConfigError, DataError
from core.training.stage import StageContext


def read(reader, path, **arguments):
    return [e.text for e in READERS.get(reader)(path, on_bad=BadRows("raise"), **arguments)]


def test_text_keeps_documents_whole(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "b.txt").write_text("zwei\n\nAbsätze\n", encoding="utf-8")
    (tmp_path / "train" / "a.txt").write_text("eins", encoding="utf-8")
    (tmp_path / "other.txt").write_text("not of the split", encoding="utf-8")
    assert read("text", str(tmp_path), split="train") == ["eins", "zwei\n\nAbsätze"]
    assert read("text", str(tmp_path / "train" / "b.txt"), unit="line") == ["zwei", "Absätze"]


def test_a_text_file_that_is_not_utf8_is_one_bad_row(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    (tmp_path / "b.txt").write_text("gut", encoding="utf-8")
    bad = BadRows("skip", tmp_path / "rejects.jsonl")
    assert [e.text for e in READERS.get("text")(str(tmp_path), on_bad=bad)] == ["gut"]
    assert bad.count == 1
    with pytest.raises(DataError, match="UTF-8"):
        read("text", str(tmp_path))


def test_jsonl_names_the_line_without_text(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"text": "x"}) + "\n" + json.dumps({"body": "y"}) + "\n", encoding="utf-8")
    with pytest.raises(DataError) as error:
        read("jsonl", str(file))
    assert error.value.line == 2 and error.value.field == "text"
    assert [e.text for e in READERS.get("jsonl")(str(file), on_bad=BadRows("skip"))] == ["x"]


def test_embedded_text_has_both_languages_and_a_held_out_part():
    train, dev = read("embedded", None), read("embedded", None, split="dev")
    assert len(train) > 10_000 and len(dev) >= 200 and not set(train) & set(dev)
    assert read("embedded", None, lang="en")[:100] == train[1:200:2]
    with pytest.raises(DataError, match="unknown split"):
        read("embedded", None, split="test")


@pytest.mark.parametrize("noise", [False, True])
def test_few_rows_of_the_embedded_text_are_all_that_is_made(monkeypatch, noise):
    made = []
    monkeypatch.setattr("core.data.embedded.sentence", lambda rng: made.append(1) or sentence(rng))
    by_hand = 2 * len(handwritten())
    rows = list(islice(READERS.get("embedded")(on_bad=BadRows("raise"), noise=noise), by_hand + 20))
    assert {row.lang for row in rows[:-20]} == {row.lang for row in rows[-20:]} == {"de", "en"}
    assert len(rows) == by_hand + 20 and 20 <= len(made) < 100


def test_documents_of_a_stream_that_are_passed_over_are_not_made_into_rows(monkeypatch):
    documents, made = [TextExample(text) for text in "abcd"], []
    examples = Examples(get_app("lm"), [SourceConfig(reader="letters")], BadRows())
    monkeypatch.setitem(READERS._entries, "letters", lambda *_, **__: iter(documents))
    monkeypatch.setattr(pretrain, "Segment", lambda *args: made.append(args) or Segment(*args))
    context = StageContext(Recipe(), pretrain.PretrainConfig(), None, examples, [], get_app("lm"))
    stage = pretrain.pretrain(context)
    for _ in range(2):
        (row,) = islice(stage.rows, 3, None)
        assert not made
    assert list(row) == [Segment("d", "document", True)] and len(made) == 1


def test_bits_per_byte_and_perplexity_by_hand():
    predictions = [
        {"logprob": -4 * math.log(2), "tokens": 2, "bytes": 4},
        {"logprob": -8 * math.log(2), "tokens": 2, "bytes": 2},
    ]
    report = LmEvaluator().score(predictions, [TextExample("aabb"), TextExample("ab")])
    assert report.value() == pytest.approx(12 / 6)
    assert report.value("perplexity") == pytest.approx(2**3)
    assert report.value("byte_entropy") == pytest.approx(1.0)
    assert report.failures[0]["bits_per_byte"] == pytest.approx(4.0)
    assert not report.metrics["bits_per_byte"].higher_is_better


def test_the_evaluator_refuses_what_it_cannot_score():
    with pytest.raises(DataError, match="no partner"):
        LmEvaluator().score([], [TextExample("a")])
    with pytest.raises(ConfigError, match="unknown metric"):
        LmEvaluator(["perplexty"])


@pytest.fixture(scope="module")
def pipeline():
    return LmPipeline.from_pretrained("anywhere", engine="tiny", max_new_tokens=4)


def test_every_token_of_a_long_document_counts_once(pipeline):
    context = pipeline.engine.context
    text = "abcdefghij" * (context // 4)
    (found,) = pipeline.predict([TextExample(text)])
    assert found["tokens"] == found["bytes"] == len(text) > 2 * context
    assert -found["logprob"] / found["tokens"] == pytest.approx(math.log(260), rel=0.1)
    windows = list(pipeline._windows(text))
    assert all(len(c) + len(t) <= context for c, t in windows)
    assert all(len(c) >= context // 2 for c, _ in windows[1:])
    assert pipeline.tokenizer.decode([i for _, t in windows for i in t]) == text


def test_short_documents_score_alone_as_in_company(pipeline):
    texts = ["ab", "a longer document", "x"]
    together = pipeline.predict([TextExample(t) for t in texts])
    alone = [pipeline.predict([TextExample(t)])[0] for t in texts]
    assert [p["logprob"] for p in together] == pytest.approx([p["logprob"] for p in alone], rel=1e-4)


def test_prompt_and_continuation_join(pipeline):
    result = pipeline("ab", max_new_tokens=3)
    assert result.meta["prompt"] == "ab" and result.meta["tokens"] <= 3
    assert pipeline(["ab"], max_new_tokens=3)[0].text == result.text


def test_pretraining_learns_every_token_and_the_end():
    from apps.lm.methods.pretrain import PretrainConfig, pretrain
    from core.training.stage import StageContext

    examples = [TextExample("ein Satz"), TextExample("noch einer")]
    stage = pretrain(StageContext(None, PretrainConfig(), None, examples, examples[:1], None))
    assert stage.layout == "blocks" and len(stage.rows) == 2 and len(stage.eval_rows) == 1
    assert all(segment.train for row in stage.rows for segment in row)
