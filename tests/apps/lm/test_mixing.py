"""The mixture of languages: shares met exactly as far as documents allow, repeated no more often than asked."""

from __future__ import annotations

from collections import Counter

import pytest

from apps.lm import LmEvaluator, TextExample
from apps.lm.data import READERS
from apps.lm.mixing import count_tokens, mix, wanted_shares
from core.data.rows import BadRows
from core.errors import ConfigError, DataError
from core.models.tokenizer import train_bpe


def documents(**counts):
    return [TextExample(f"{lang}{i:03d}", lang=lang) for lang, count in counts.items() for i in range(count)]


def test_the_scarce_language_is_repeated_up_to_the_limit():
    """300 tokens of de, 100 of en, half each: en is read three times, de once, nothing is left out."""
    docs = documents(de=30, en=10)
    made = mix(docs, [10] * 40, shares={"de": 1, "en": 1})
    counts = Counter(made.documents)
    assert all(counts[d] == (1 if d.lang == "de" else 3) for d in docs)
    de, en = made.parts
    assert (de.tokens, en.tokens, de.epochs, en.epochs, de.share) == (300, 300, 1.0, 3.0, 0.5)


def test_the_limit_makes_the_whole_smaller_and_keeps_the_shares():
    docs = documents(de=90, en=10)
    made = mix(docs, [10] * 100, shares={"de": 0.5, "en": 0.5}, max_epochs=2)
    de, en = made.parts
    assert (de.tokens, en.tokens, en.epochs) == (200, 200, 2.0)
    chosen = [d for d in made.documents if d.lang == "de"]
    assert len(set(chosen)) == 20


def test_shares_of_uneven_documents_are_met_within_half_a_document():
    sizes = [1 + (7 * i) % 23 for i in range(200)]
    docs = documents(cs=120, de=50, en=30)
    made = mix(docs, sizes, shares={"cs": 0.2, "de": 0.3, "en": 0.5}, max_epochs=4, seed=5)
    total = sum(part.tokens for part in made.parts)
    for part in made.parts:
        assert abs(part.tokens - part.wanted * total) <= 24 and part.epochs <= 4.1


def test_the_order_is_shuffled_by_the_seed():
    docs = documents(de=50, en=50)
    first, again, other = ([d.text for d in mix(docs, [5] * 100, alpha=0.5, seed=s).documents] for s in (1, 1, 2))
    assert first == again != other
    changes = sum(a[:2] != b[:2] for a, b in zip(first, first[1:]))
    assert changes > 25


def test_a_power_below_one_lifts_the_rare():
    assert wanted_shares({"de": 100, "en": 1}, {}, 0.5) == pytest.approx({"de": 10 / 11, "en": 1 / 11})
    assert wanted_shares({"de": 3, "en": 1}, {}, None) == {"de": 0.75, "en": 0.25}


def test_what_cannot_be_met_says_so():
    with pytest.raises(DataError, match="'fr' has no text"):
        mix(documents(de=1), [1], shares={"de": 0.5, "fr": 0.5})
    with pytest.raises(DataError, match="'en' has text and no share"):
        mix(documents(de=1, en=1), [1, 1], shares={"de": 1})
    with pytest.raises(ConfigError, match="not both"):
        wanted_shares({"de": 1}, {"de": 1}, 0.5)
    with pytest.raises(ConfigError, match="above 0"):
        wanted_shares({"de": 1}, {"de": 0}, None)


def test_tokens_are_counted_as_training_counts_them():
    tokenizer = train_bpe(["der Hund und the dog"], 300)
    docs = [TextExample("der Hund"), TextExample("")]
    assert count_tokens(docs, tokenizer, batch=1) == [len(tokenizer("der Hund")["input_ids"]) + 1, 1]


def test_readers_say_the_language(tmp_path):
    (tmp_path / "a.txt").write_text("eins\n\nzwei\ndrei", encoding="utf-8")
    rows = list(READERS.get("text")(str(tmp_path), on_bad=BadRows("raise"), unit="paragraph", lang="de"))
    assert [(r.text, r.lang) for r in rows] == [("eins", "de"), ("zwei\ndrei", "de")]
    (tmp_path / "b.jsonl").write_text('{"text": "x", "lang": "en"}\n{"text": "y"}\n', encoding="utf-8")
    rows = list(READERS.get("jsonl")(str(tmp_path / "b.jsonl"), on_bad=BadRows("raise"), lang="de"))
    assert [r.lang for r in rows] == ["en", "de"]
    assert {r.lang for r in READERS.get("embedded")(on_bad=BadRows("raise"))} == {"de", "en"}


def test_bits_per_byte_of_each_language():
    import math

    predictions = [{"logprob": -n * math.log(2), "tokens": 2, "bytes": 4} for n in (4, 8)]
    report = LmEvaluator().score(predictions, [TextExample("aabb", lang="de"), TextExample("aabb", lang="en")])
    assert report.value() == pytest.approx(1.5)
    assert report.value("bits_per_byte/de") == pytest.approx(1) and report.value("bits_per_byte/en") == pytest.approx(2)
