"""Readers: every layout, and for every kind of damage the place and the reason."""

from __future__ import annotations

import gzip
import json

import pytest

from apps.translation.data import READERS, load_data, to_jsonl
from apps.translation.example import TranslationExample
from core.data.rows import BadRows
from core.errors import ConfigError, DataError, LanguageError

GERMAN = ["Guten Tag.", "Das Wetter ist schön.", "Ich komme morgen."]
ENGLISH = ["Good day.", "The weather is nice.", "I will come tomorrow."]


def write(path, rows, end="\n"):
    path.write_text(end.join(rows) + end, encoding="utf-8")
    return path


@pytest.fixture
def moses_pair(tmp_path):
    write(tmp_path / "train.de", GERMAN)
    write(tmp_path / "train.en", ENGLISH)
    return tmp_path


def test_moses_takes_a_prefix_or_a_folder_and_either_direction(moses_pair):
    forward = load_data(moses_pair / "train", "moses", src="de", tgt="en")
    assert [(e.src, e.tgt) for e in forward] == list(zip(GERMAN, ENGLISH))
    assert forward == load_data(moses_pair, "moses", split="train", src="de", tgt="en")
    assert [e.reversed() for e in forward] == load_data(moses_pair, "moses", src="en", tgt="de")


def test_moses_reads_gz_crlf_bom_and_unicode_line_separators_inside_a_line(tmp_path):
    with gzip.open(tmp_path / "x.de.gz", "wt", encoding="utf-8") as handle:
        handle.write("Eins\u2028zwei.\nDrei.\n")
    (tmp_path / "x.en").write_bytes("\ufeffOne two.\r\nThree.".encode())
    rows = load_data(tmp_path / "x", "moses", src="de", tgt="en")
    assert [(e.src, e.tgt) for e in rows] == [("Eins\u2028zwei.", "One two."), ("Drei.", "Three.")]


def test_moses_finds_files_that_name_their_direction(tmp_path):
    write(tmp_path / "train.de-en.de", GERMAN)
    write(tmp_path / "train.de-en.en", ENGLISH)
    assert load_data(tmp_path, "moses", src="en", tgt="de")[0].src == "Good day."


def test_a_line_count_mismatch_names_both_counts(moses_pair):
    write(moses_pair / "train.en", ENGLISH[:2])
    with pytest.raises(DataError, match=r"train\.de has 3 lines, train\.en has 2") as caught:
        load_data(moses_pair / "train", "moses", src="de", tgt="en")
    assert str(moses_pair) in str(caught.value)


def test_a_mismatch_is_never_skipped(moses_pair):
    write(moses_pair / "train.en", ENGLISH[:2])
    with pytest.raises(DataError, match="differ in length"):
        load_data(moses_pair / "train", "moses", src="de", tgt="en", on_bad=BadRows("skip"))


def test_alma_reads_a_list_and_lines_and_serves_both_directions(tmp_path):
    rows = [{"translation": {"de": de, "en": en}} for de, en in zip(GERMAN, ENGLISH)]
    folder = tmp_path / "deen"
    folder.mkdir()
    (folder / "train.de-en.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "lines.json").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    listed = load_data(tmp_path, "alma", src="de", tgt="en")
    assert listed == load_data(tmp_path / "lines.json", "alma", src="de", tgt="en")
    assert [e.src for e in load_data(tmp_path, "alma", src="en", tgt="de")] == ENGLISH


def test_alma_prefers_the_file_of_the_wanted_direction(tmp_path):
    for name, text in (("de-en", "Eins."), ("en-de", "Zwei.")):
        rows = [{"translation": {"de": text, "en": "One."}}]
        (tmp_path / f"test.{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    assert load_data(tmp_path, "alma", split="test", src="en", tgt="de")[0].tgt == "Zwei."
    assert load_data(tmp_path, "alma", split="test", src="de", tgt="en")[0].src == "Eins."


def test_tsv_ntrex_and_mono(tmp_path):
    write(tmp_path / "x.tsv", ["id\tde\ten", *(f"{i}\t{a}\t{b}" for i, (a, b) in enumerate(zip(GERMAN, ENGLISH)))])
    rows = load_data(tmp_path / "x.tsv", "tsv", src="de", tgt="en", columns=[1, 2], header=True)
    assert [(e.src, e.tgt) for e in rows] == list(zip(GERMAN, ENGLISH))
    write(tmp_path / "newstest2019-src.eng.txt", ENGLISH)
    write(tmp_path / "newstest2019-ref.swa.txt", ["Habari.", "Nzuri.", "Kesho."])
    assert load_data(tmp_path, "ntrex", src="en", tgt="sw")[2].tgt == "Kesho."
    write(tmp_path / "m.jsonl", [json.dumps({"text": "Ein Text."}), "", json.dumps({"text": "Noch einer."})])
    texts = load_data(tmp_path / "m.jsonl", "mono", lang="de")
    assert [e.src for e in texts] == ["Ein Text.", "Noch einer."] and all(e.monolingual for e in texts)


def test_jsonl_round_trip_keeps_everything(tmp_path):
    rows = [
        TranslationExample("Die Welle.", "The shaft.", "de", "en", (("Welle", "shaft"),), "tech", "7"),
        TranslationExample("Nur Quelle.", None, "de", "en"),
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text(to_jsonl(rows), encoding="utf-8")
    assert load_data(path) == rows


def test_embedded_gives_pairs_in_the_wanted_direction():
    german = load_data(reader="embedded", split="test", src="de", tgt="en", limit=5)
    english = load_data(reader="embedded", split="test", src="en", tgt="de", limit=5)
    assert [e.reversed() for e in german] == english and german[0].src_lang == "de"
    assert load_data(reader="embedded_mono", lang="de", limit=3)[0].src_lang == "de"


GOOD = '{"src": "Guten Tag.", "tgt": "Good day.", "src_lang": "de", "tgt_lang": "en"}'
BAD_JSONL = [
    ("{oops", None, "not valid JSON"),
    ("[1]", None, "not an object"),
    ('{"tgt": "x", "src_lang": "de", "tgt_lang": "en"}', "src", "expected a string"),
    ('{"src": 3, "src_lang": "de", "tgt_lang": "en"}', "src", "got 3"),
    ('{"src": "a", "tgt": ["b"], "src_lang": "de", "tgt_lang": "en"}', "tgt", "expected a string or absent"),
    ('{"src": "a", "src_lang": "xq", "tgt_lang": "en"}', "src_lang", "unknown language 'xq'"),
    ('{"src": "a", "src_lang": "de"}', "tgt_lang", "no target language"),
    ('{"src": "a", "src_lang": "de", "tgt_lang": "de"}', "src_lang", "both German"),
    ('{"src": "a", "src_lang": "de", "tgt_lang": "en", "terms": [["x"]]}', "terms", "target term"),
    ('{"source": "a", "src_lang": "de", "tgt_lang": "en"}', "source", "unknown field"),
]


@pytest.mark.parametrize("line, field, words", BAD_JSONL)
def test_a_bad_row_is_named_by_file_line_and_field_or_counted(tmp_path, line, field, words):
    path = write(tmp_path / "rows.jsonl", [GOOD, line, GOOD])
    with pytest.raises(DataError) as caught:
        load_data(path)
    assert words in str(caught.value) and f"{path}:2" in str(caught.value)
    assert caught.value.line == 2 and caught.value.field == field
    bad = BadRows("skip", tmp_path / "rejects.jsonl")
    assert len(load_data(path, on_bad=bad)) == 2 and bad.count == 1


BAD_ALMA = [
    ({"de": "a", "en": "b"}, "translation", "not an ALMA row"),
    ({"translation": {"de": "a", "fr": "b"}}, "translation.en", "no 'en' text"),
    ({"translation": {"de": "", "en": "b"}}, "src", "empty text"),
    ({"translation": {"de": "a", "en": 5}}, "tgt", "got 5"),
    ("text", "translation", "not an ALMA row"),
]


@pytest.mark.parametrize("row, field, words", BAD_ALMA)
def test_bad_alma_rows(tmp_path, row, field, words):
    good = {"translation": {"de": "Guten Tag.", "en": "Good day."}}
    path = tmp_path / "x.json"
    path.write_text(json.dumps([good, row]), encoding="utf-8")
    with pytest.raises(DataError, match=words) as caught:
        load_data(path, "alma", src="de", tgt="en")
    assert (caught.value.line, caught.value.field) == (2, field)
    assert len(load_data(path, "alma", src="de", tgt="en", on_bad=BadRows("skip"))) == 1


def test_bad_text_rows(tmp_path, moses_pair):
    write(moses_pair / "train.en", ["Good day.", "  ", "I will come."])
    with pytest.raises(DataError, match="empty text") as caught:
        load_data(moses_pair / "train", "moses", src="de", tgt="en")
    assert caught.value.line == 2 and "train.en:2" in str(caught.value)
    path = write(tmp_path / "x.tsv", ["Guten Tag.\tGood day.", "only one column"])
    with pytest.raises(DataError, match="too few columns.*got 1, expected at least 2"):
        load_data(path, "tsv", src="de", tgt="en")
    path = tmp_path / "latin.txt"
    path.write_bytes("Gut.\nSchön.\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8") as caught:
        load_data(path, "mono", lang="de")
    assert caught.value.line == 2


def test_missing_files_say_what_is_there(tmp_path):
    write(tmp_path / "train.de", GERMAN)
    with pytest.raises(DataError, match=r"no parallel files train\.de and train\.fr") as caught:
        load_data(tmp_path, "moses", src="de", tgt="fr")
    assert "train.de" in caught.value.hint
    with pytest.raises(DataError, match="file not found"):
        load_data(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="no such folder|no parallel files"):
        load_data(tmp_path / "no" / "where", "moses", src="de", tgt="en")
    with pytest.raises(ConfigError, match="did you mean 'moses'"):
        load_data(tmp_path, "mosess")


def test_languages_are_checked_before_any_file_is_opened(tmp_path):
    with pytest.raises(LanguageError, match="both German"):
        load_data(tmp_path, "moses", src="de", tgt="deu")
    with pytest.raises(LanguageError, match="unknown language"):
        load_data(tmp_path, "alma", src="de", tgt="qqq")


@pytest.mark.parametrize(
    "texts, word",
    [
        ([f"das ist satz nummer {i}." for i in "abcdefghij"], "lowercased"),
        ([f"Das ist , sagt er , Satz {i} ." for i in "ABCDEFGHIJ"], "tokenised"),
        ([f"Er sagt &apos;ja&apos; zu {i}" for i in "ABCDEFGHIJ"], "tokenised"),
        ([f"Das ist ein Un@@ sinn {i}" for i in "ABCDEFGHIJ"], "tokenised"),
    ],
)
def test_tokenised_and_lowercased_text_is_refused_unless_allowed(tmp_path, texts, word):
    write(tmp_path / "x.de", texts)
    write(tmp_path / "x.en", [f"This is sentence {i}." for i in "ABCDEFGHIJ"])
    with pytest.raises(DataError, match=f"the source text looks {word}") as caught:
        load_data(tmp_path / "x", "moses", src="de", tgt="en")
    assert "allow_tokenised" in caught.value.hint
    assert len(load_data(tmp_path / "x", "moses", src="de", tgt="en", allow_tokenised=True)) == 10


@pytest.mark.parametrize(
    "lang, texts",
    [
        ("fr", [f"Est-ce vrai ? Oui ! Voilà : {i}" for i in "ABCDEFGHIJ"]),
        ("zh", ["你好。"] * 10),
        ("ka", ["გამარჯობა, როგორ ხარ?"] * 10),
        ("en", [f"He paid 3.50 for {i}, e.g. .5 more" for i in "ABCDEFGHIJ"]),
    ],
)
def test_natural_text_is_not_refused(tmp_path, lang, texts):
    path = write(tmp_path / "x.txt", texts)
    assert len(load_data(path, "mono", lang=lang)) == 10


def test_every_reader_is_lazy_about_rows(moses_pair):
    rows = READERS.get("moses")(moses_pair / "train", src="de", tgt="en")
    assert next(iter(rows)).src == "Guten Tag."


def test_the_development_sets_are_read_whole(shared_data):
    folder = shared_data / "translation"
    assert len(load_data(folder / "multi30k" / "train", "moses", src="en", tgt="de")) == 29_000
    assert len(load_data(folder / "ntrex", "ntrex", src="en", tgt="de")) == 1_997
    assert len(load_data(folder / "wmt_human_written", "alma", split="test", src="de", tgt="en")) == 1_984
    assert len(load_data(folder / "wmt_human_written" / "isen", "moses", src="is", tgt="en")) == 2_009
