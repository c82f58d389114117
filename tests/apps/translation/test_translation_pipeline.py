"""The pipeline's own part: inputs, prompts, where an answer ends, and long texts; engines are scripted or tiny."""

from __future__ import annotations

import pytest

from apps.translation import TranslationExample, TranslationPipeline
from apps.translation.pipeline import TranslationConfig
from core.data.segments import render
from core.errors import AppInputError, ConfigError, GraftError, LanguageError
from core.inference.engines.script import ScriptEngine


def shouting(prompt: str) -> str:
    """Plays a model that upper-cases the source and babbles on."""
    source = prompt.split("\n")[-2].partition(": ")[2]
    return f" {source.upper()}\nGerman: und weiter"


@pytest.fixture
def shout():
    return TranslationPipeline(ScriptEngine(shouting), None)


@pytest.fixture(scope="module")
def tiny():
    return TranslationPipeline.from_pretrained("any", engine="tiny", max_new_tokens=12)


def test_every_form_of_input_gives_the_same(shout):
    row = {"src": "Guten Tag", "src_lang": "de", "tgt_lang": "en"}
    wanted = shout("Guten Tag", src="de", tgt="en").text
    assert wanted == "GUTEN TAG"
    assert shout(row).text == shout(TranslationExample("Guten Tag", None, "de", "en")).text == wanted
    mixed = shout(["Guten Tag", row, ""], src="de", tgt="en")
    assert [r.text for r in mixed] == [wanted, wanted, ""]
    defaults = TranslationPipeline(ScriptEngine(shouting), None, TranslationConfig(src_lang="de", tgt_lang="en"))
    assert defaults("Guten Tag").text == wanted


def test_the_prompt_sent_is_the_one_trained(shout):
    from apps.translation import prompts

    example = TranslationExample("Guten Tag", "Good day", "de", "en")
    segments = render(prompts.get_template("alma"), prompts.fields(example))
    assert shout(example).meta["prompt"] == segments[0].text


def test_an_answer_ends_at_the_first_line_and_may_hold_language_names():
    engine = ScriptEngine(lambda _: " English: he said so.\n\nGerman: x")
    assert TranslationPipeline(engine, None)("a", src="de", tgt="en").text == "English: he said so."


def test_empty_text_never_reaches_the_model():
    def fail(_: str) -> str:
        raise AssertionError("the model was asked")

    pipeline = TranslationPipeline(ScriptEngine(fail), None)
    for split in ("none", "sentences"):
        result = pipeline(" \n ", src="de", tgt="en", split=split)
        assert result.text == "" and result.meta["warnings"] == ["the source text is empty"]
        events = list(pipeline.stream("", src="de", tgt="en", split=split))
        assert events[-1].kind == "done" and events[-1].result.text == ""


def test_warnings_say_what_is_odd():
    silent = TranslationPipeline(ScriptEngine(lambda _: "\n"), None)
    assert silent("a", src="de", tgt="en").meta["warnings"] == ["the model returned nothing"]
    terms = TranslationPipeline(ScriptEngine(lambda _: " A wave."), None)(
        "Welle", src="de", tgt="en", terms=[("Welle", "shaft")]
    )
    assert any("no place for terms" in w for w in terms.meta["warnings"])
    assert any("terms not used: shaft" in w for w in terms.meta["warnings"])
    told = TranslationPipeline(ScriptEngine(lambda _: " A shaft."), None, TranslationConfig(template="alma_terms"))
    result = told("Welle", src="de", tgt="en", terms=[("Welle", "shaft")])
    assert result.meta["warnings"] == [] and "Welle = shaft\n" in result.meta["prompt"]


TEXT = "\nGuten Tag. Wie geht es?\n\nGut!\n"


def test_sentences_are_translated_one_by_one_and_keep_their_lines(shout):
    result = shout(TEXT, src="de", tgt="en", split="sentences")
    assert result.text == TEXT.upper() and result.meta["sentences"] == 3
    assert [answer for _, answer in result.meta["exchanges"]] == ["GUTEN TAG.", "WIE GEHT ES?", "GUT!"]
    events = list(shout.stream(TEXT, src="de", tgt="en", split="sentences"))
    assert "".join(e.text for e in events if e.kind == "text") == events[-1].result.text == TEXT.upper()


def test_a_batch_of_split_texts_keeps_order_also_around_empty_ones(shout):
    texts = ["", "A. B.", "", "C.", "D. E. F.", " "]
    results = shout.batch(iter(texts), src="de", tgt="en", split="sentences")
    assert [r.text for r in results] == ["", "A. B.", "", "C.", "D. E. F.", ""]


def test_a_stream_joined_is_the_call(tiny):
    for split in ("none", "sentences"):
        call = tiny("Guten Tag. Ja.", src="de", tgt="en", split=split)
        events = list(tiny.stream("Guten Tag. Ja.", src="de", tgt="en", split=split))
        assert "".join(e.text for e in events if e.kind == "text") == events[-1].result.text == call.text
        assert events[-1].result.meta["tokens"] == call.meta["tokens"]


def test_a_batch_is_what_single_calls_are(tiny):
    texts = ["Ja.", "Guten Tag, wie geht es dir heute?", "Nein, danke.", ""]
    together = tiny(texts, src="de", tgt="en")
    assert [r.text for r in together] == [tiny(text, src="de", tgt="en").text for text in texts]


def test_save_and_load(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    with TranslationPipeline.from_pretrained(tmp_path, device="cpu") as again:
        assert again.config == tiny.config
        assert again("Guten Tag", src="de", tgt="en").text == tiny("Guten Tag", src="de", tgt="en").text


def test_scores_put_the_separator_before_the_target(tiny):
    with_space = tiny.score(["Guten Tag"], ["Good day"], src="de", tgt="en")[0]
    ids = tiny.prepare(tiny.to_example("Guten Tag", src="de", tgt="en")).ids
    target = tiny.tokenizer(" Good day", add_special_tokens=False)["input_ids"]
    assert with_space == pytest.approx(tiny.engine.score([(ids, target)])[0])


BAD = [
    (dict(src="de", tgt="de"), LanguageError, "both German"),
    (dict(src="de"), LanguageError, "no target language"),
    (dict(tgt="en"), LanguageError, "no source language"),
    (dict(src="ge", tgt="en"), LanguageError, "unknown language 'ge'"),
    (dict(src="de", tgt="en", beam=3), AppInputError, "did you mean 'beams'"),
    (dict(src="de", tgt="en", split="words"), AppInputError, "unknown split 'words'"),
    (dict(src="de", tgt="en", beams="many"), ConfigError, "beams"),
]


@pytest.mark.parametrize("arguments, kind, words", BAD)
def test_bad_calls(shout, arguments, kind, words):
    with pytest.raises(kind) as caught:
        shout("Guten Tag", **arguments)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "given, words", [(3, "cannot translate int"), ({"source": "x"}, "unknown field"), ({"src": 1}, "got 1")]
)
def test_bad_inputs(shout, given, words):
    with pytest.raises(GraftError) as caught:
        shout(given, src="de", tgt="en")
    assert words in str(caught.value)


def test_a_text_beyond_the_context_names_tokens_and_limit(tiny):
    text = "Das ist ein Satz. " * 40
    with pytest.raises(AppInputError, match=r"\d+ tokens.*limit is 512") as caught:
        tiny(text, src="de", tgt="en")
    assert 'split="sentences"' in caught.value.hint
    assert tiny(text, src="de", tgt="en", split="sentences", max_new_tokens=2).meta["sentences"] == 40


def test_an_unknown_setting_is_refused():
    with pytest.raises(ConfigError, match="templat"):
        TranslationPipeline.from_pretrained("any", engine="tiny", templat="alma")
    with pytest.raises(GraftError, match="unknown template"):
        TranslationPipeline(ScriptEngine(shouting), None, TranslationConfig(template="alm"))("a", src="de", tgt="en")
