"""Languages, sentences and prompts."""

from __future__ import annotations

import pytest

from apps.translation import prompts
from apps.translation.example import TranslationExample
from apps.translation.languages import LANGUAGES, direction, language
from apps.translation.sentences import separators, split_lines, split_sentences
from core.data.encode import IGNORE, encode, encode_prompt
from core.data.segments import render
from core.errors import LanguageError, TemplateError


@pytest.mark.parametrize(
    "given, code",
    [("de", "de"), ("DE", "de"), ("deu", "de"), ("deu_Latn", "de"), ("German", "de"), ("de-AT", "de"), ("de_DE", "de"),
     ("pt-br", "pt-BR"), ("pt-PT", "pt"), ("zh-TW", "zh-Hant"), ("zho_Hans", "zh"), ("swa", "sw"), ("nep", "ne"),
     ("no", "nb"), ("sr-Latn", "sr-Latn"), ("Icelandic", "is")],
)  # fmt: skip
def test_a_language_has_many_spellings(given, code):
    assert language(given).code == code


def test_the_table_is_consistent():
    for code, item in LANGUAGES.items():
        assert language(code) is item and language(item.name) is item
        assert len(item.nllb.split("_")) == 2 and len(item.nllb) == 8
    assert len({item.name for item in LANGUAGES.values()}) == len(LANGUAGES)


def test_an_unknown_language_lists_near_matches():
    with pytest.raises(LanguageError) as caught:
        language("germn")
    assert "de (German)" in caught.value.hint


def test_directions():
    assert [item.name for item in direction("de", "en")] == ["German", "English"]
    with pytest.raises(LanguageError, match="both Chinese"):
        direction("zh", "zh-CN")
    with pytest.raises(LanguageError, match="no source language"):
        direction("", "en")
    assert direction("zh", "zh-Hant")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Am 3. Mai kam Dr. Moll z. B. nach Ulm. Er blieb.", ["Am 3. Mai kam Dr. Moll z. B. nach Ulm.", "Er blieb."]),
        ('He said "Stop!" Then left. J. R. Doe wrote it.', ['He said "Stop!"', "Then left.", "J. R. Doe wrote it."]),
        ("Version 2.0 is out. 12 people came.", ["Version 2.0 is out.", "12 people came."]),
        ("你好。我很好！真的吗？是。", ["你好。", "我很好！", "真的吗？", "是。"]),
        ("  no end  ", ["no end"]),
        ("", []),
    ],
)  # fmt: skip
def test_sentences(text, expected):
    assert split_sentences(text) == expected


@pytest.mark.parametrize("text", ["\nEins. Zwei!\n\nDrei.\n", "A.", "", "\n\n", "Eins. Zwei. Drei.\nVier."])
def test_sentences_and_separators_give_the_text_back(text):
    lines = split_lines(text)
    between = separators(lines, "en")
    parts = [sentence for line in lines for sentence in line]
    assert len(between) == len(parts) + 1
    assert between[0] + "".join(a + b for a, b in zip(parts, between[1:])) == text


def test_unspaced_scripts_are_joined_without_spaces():
    assert separators(split_lines("One. Two."), "zh") == ["", "", ""]


EXAMPLES = [
    TranslationExample("Guten Tag.", "Good day.", "de", "en", (("Tag", "day"),)),
    TranslationExample("Er sagt: English: {x} \\n", "He says: English: {y}", "de", "en"),
    TranslationExample("Two\nlines", "你好，世界。", "en", "zh"),
    TranslationExample("one", "  x  ", "en", "fr"),
]


@pytest.fixture(scope="module")
def tokenizer():
    from core.models.tokenizer import train_bpe

    texts = ["Translate this from German to English: Good day. Guten Tag.", "你好，世界。"] * 20
    return train_bpe(texts, 400)


@pytest.mark.parametrize("name", prompts.TEMPLATES)
@pytest.mark.parametrize("example", EXAMPLES, ids=["terms", "braces", "newline", "spaces"])
@pytest.mark.parametrize("mode", ["offsets", "pieces"])
def test_a_template_trains_exactly_the_target_and_the_end(name, example, mode, tokenizer):
    segments = render(prompts.get_template(name), prompts.fields(example))
    row = encode(segments, tokenizer, mode=mode)
    learnt = [label for label in row.labels if label != IGNORE]
    assert learnt[-1] == tokenizer.eos_token_id and learnt.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(learnt[:-1]).strip() == prompts.one_line(example.tgt)
    assert not row.straddled
    prompt = encode_prompt(segments, tokenizer, mode)
    assert row.input_ids[: len(prompt)] == prompt and len(prompt) + len(learnt) == len(row.input_ids)


def test_the_alma_prompt_is_the_papers():
    segments = render(prompts.get_template("alma"), prompts.fields(EXAMPLES[0]))
    assert [s.text for s in segments] == [
        "Translate this from German to English:\nGerman: Guten Tag.\nEnglish:",
        " Good day.",
    ]
    assert [s.train for s in segments] == [False, True]


def test_the_glossary_template_without_terms_is_the_alma_prompt():
    filled = prompts.fields(EXAMPLES[3])
    plain, terms = (render(prompts.get_template(name), filled) for name in ("alma", "alma_terms"))
    assert plain == terms
    with_terms = render(prompts.get_template("alma_terms"), prompts.fields(EXAMPLES[0]))
    assert "\nTag = day\nGerman:" in with_terms[0].text


def test_templates_are_many_and_misspellings_helpful():
    assert len(prompts.TEMPLATES) >= 6
    with pytest.raises(TemplateError, match="unknown template") as caught:
        prompts.get_template("almaa")
    assert "did you mean 'alma'" in caught.value.hint
