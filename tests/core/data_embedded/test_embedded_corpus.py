"""The embedded corpus: morphology against hand-checked forms, and splits that share nothing but words."""

from __future__ import annotations

import random

import pytest

from core.data.embedded import SIZES, denoising, handwritten, held_out_text, monolingual, pairs, split_of
from core.data.embedded.grammar import (
    RULES,
    Clause,
    Phrase,
    _en_past,
    _en_present,
    _main,
    _perfect,
    _verb_last,
    english_present,
    noun_phrase,
    present,
    sentence,
)
from core.data.embedded.lexicon import MOTION, NOUNS, VERBS
from core.data.embedded.noise import REACH, noisy
from core.errors import DataError

NOUN = {n.de: n for n in NOUNS}
VERB = {v.infinitive: v for v in [*VERBS, *MOTION]}


@pytest.mark.parametrize(
    "noun, determiner, plural, adj, forms",
    [
        ("Hund", "der", False, "schwarz", ("der schwarze Hund", "den schwarzen Hund", "dem schwarzen Hund")),
        ("Hund", "ein", False, "schwarz", ("ein schwarzer Hund", "einen schwarzen Hund", "einem schwarzen Hund")),
        ("Kuh", "mein", False, "weiß", ("meine weiße Kuh", "meine weiße Kuh", "meiner weißen Kuh")),
        ("Pferd", "ein", False, "schnell", ("ein schnelles Pferd", "ein schnelles Pferd", "einem schnellen Pferd")),
        ("Haus", "dies", False, "dunkel", ("dieses dunkle Haus", "dieses dunkle Haus", "diesem dunklen Haus")),
        ("Buch", "ein", True, "neu", ("neue Bücher", "neue Bücher", "neuen Büchern")),
        ("Frau", "der", True, "müde", ("die müden Frauen", "die müden Frauen", "den müden Frauen")),
        ("Kind", "mein", True, None, ("meine Kinder", "meine Kinder", "meinen Kindern")),
        ("Junge", "der", False, None, ("der Junge", "den Jungen", "dem Jungen")),
        (
            "Student",
            "kein",
            False,
            "klug",
            ("kein kluger Student", "keinen klugen Studenten", "keinem klugen Studenten"),
        ),
        ("Park", "der", True, None, ("die Parks", "die Parks", "den Parks")),
        ("Küche", "der", False, "groß", ("die große Küche", "die große Küche", "der großen Küche")),
    ],
)
def test_noun_phrases(noun, determiner, plural, adj, forms):
    phrase = noun_phrase(NOUN[noun], determiner, plural, (adj, "x") if adj else None)
    assert tuple(phrase.de[case] for case in ("nom", "acc", "dat")) == forms


@pytest.mark.parametrize(
    "verb, forms",
    [
        ("sehen", "sehe siehst sieht sehen seht sehen"),
        ("essen", "esse isst isst essen esst essen"),
        ("arbeiten", "arbeite arbeitest arbeitet arbeiten arbeitet arbeiten"),
        ("finden", "finde findest findet finden findet finden"),
        ("reparieren", "repariere reparierst repariert reparieren repariert reparieren"),
        ("füttern", "füttere fütterst füttert füttern füttert füttern"),
        ("streicheln", "streichle streichelst streichelt streicheln streichelt streicheln"),
        ("zeichnen", "zeichne zeichnest zeichnet zeichnen zeichnet zeichnen"),
        ("einladen", "lade lädst lädt laden ladet laden"),
        ("laufen", "laufe läufst läuft laufen lauft laufen"),
        ("vergessen", "vergesse vergisst vergisst vergessen vergesst vergessen"),
        ("mitnehmen", "nehme nimmst nimmt nehmen nehmt nehmen"),
    ],
)
def test_conjugation(verb, forms):
    assert [present(VERB[verb], person) for person in range(6)] == forms.split()


@pytest.mark.parametrize(
    "verb, form", [("gehen", "goes"), ("mitnehmen", "takes along"), ("suchen", "looks for"), ("tragen", "carries")]
)
def test_english_third_person(verb, form):
    assert english_present(VERB[verb], 2) == form


def clause(subject, verb, obj):
    """A clause of "ich" or a (noun, determiner, plural, adjective) subject and such an object in the accusative."""
    given = Phrase({"nom": "ich"}, "I", 0) if subject == "ich" else phrase(*subject)
    found = phrase(*obj)
    return Clause(given, VERB[verb], found.de["acc"], found.en, [])


def phrase(noun, determiner, plural=False, adj=None):
    return noun_phrase(NOUN[noun], determiner, plural, adj)


KLUG, SCHWER = ("klug", "clever"), ("schwer", "heavy")


@pytest.mark.parametrize(
    "words, make, german, english",
    [
        (
            (("Frau", "der"), "mitnehmen", ("Tasche", "ein", False, SCHWER)),
            lambda c: (_main(c), _en_present(c)),
            "die Frau nimmt eine schwere Tasche mit",
            "the woman takes a heavy bag along",
        ),
        (
            (("Frau", "mein"), "einladen", ("Student", "ein", False, KLUG)),
            lambda c: (_main(c, "heute"), _en_present(c)),
            "heute lädt meine Frau einen klugen Studenten ein",
            "my wife invites a clever student",
        ),
        (
            ("ich", "vergessen", ("Schlüssel", "der", True)),
            lambda c: (_perfect(c, "gestern"), _en_past(c)),
            "gestern habe ich die Schlüssel vergessen",
            "I forgot the keys",
        ),
        (
            (("Junge", "dies", True), "abholen", ("Tante", "der")),
            lambda c: (_verb_last(c), _en_present(c)),
            "diese Jungen die Tante abholen",
            "these boys pick the aunt up",
        ),
        (
            (("Kind", "der"), "tragen", ("Mantel", "mein")),
            lambda c: (_main(c, negated=True), _en_present(c)),
            "das Kind trägt meinen Mantel nicht",
            "the child carries my coat",
        ),
        (
            (("Ärztin", "ein"), "suchen", ("Apfel", "ein")),
            lambda c: (_perfect(c), _en_present(c)),
            "eine Ärztin hat einen Apfel gesucht",
            "a doctor looks for an apple",
        ),
    ],
)
def test_word_order(words, make, german, english):
    assert make(clause(*words)) == (german, english)


def test_prepositions_take_their_case():
    """mit and in (where) with dative, für and in (where to) with accusative, in sentences of the grammar."""
    rng = random.Random(5)
    texts = [rule(rng).de for rule in RULES for _ in range(400)]
    articles = {"mit": set(), "für": set()}
    for text in texts:
        words = text.split()
        for word, after in zip(words, words[1:]):
            if word in articles and after.startswith(("d", "ein", "mein")):
                articles[word].add(after)
    assert articles["mit"] & {"dem", "der", "den"} and not articles["mit"] & {"das", "die", "ein", "einen", "meine"}
    assert articles["für"] & {"den", "die", "das"} and not articles["für"] & {"dem", "der", "einem", "einer", "meinem"}
    motion = [t for t in texts if t.endswith(" gegangen.")]
    assert motion and not any(f" {word} " in t for t in motion for word in ("im", "dem", "einem", "einer"))


def test_animals_do_what_animals_do():
    rng = random.Random(8)
    animals = {n.de for n in NOUNS if n.kind == "animal"}
    for _ in range(3000):
        words = sentence(rng).de.strip(".?").split()
        if words[-1] in ("repariert", "gekocht", "verkauft"):
            assert words[1] not in animals, words


def test_splits_are_disjoint_deterministic_and_of_known_words():
    parts = {split: pairs(split) for split in SIZES}
    assert {split: len(rows) for split, rows in parts.items()} == SIZES
    words = lambda rows: {w.strip(".,?!").lower() for row in rows for text in row for w in text.split()}  # noqa: E731
    known = words(parts["train"])
    for split in ("dev", "test"):
        assert not {de for de, _ in parts[split]} & {de for de, _ in parts["train"]}
        assert not {en for _, en in parts[split]} & {en for _, en in parts["train"]}
        assert words(parts[split]) <= known
    assert parts["test"] == pairs("test", seed=0) != pairs("test", seed=1)
    assert len(handwritten()) >= 150 and set(handwritten()) <= set(parts["train"])


def test_test_sentences_are_new_combinations():
    """Each holds a word combination of no training sentence, and no combination held out for dev."""
    from core.data.embedded import _generate

    train = {tuple(p) for s, _ in zip(_generate("train", "train", 0), range(3000)) for p in s.pairs}
    test = [s for s, _ in zip(_generate("test", "test", 0), range(300))]
    assert all(set(s.pairs) - train for s in test)
    assert all(split_of(s) == "test" for s in test)


def test_monolingual_text_holds_no_test_sentence():
    test = {text for row in pairs("test") for text in row}
    assert not test & set(monolingual("de", 3000)) and not test & set(monolingual("en", 3000))
    assert not set(held_out_text(50)) & {text for row in pairs("train") for text in row}


def test_sentences_start_with_a_capital_and_have_no_double_space():
    rng = random.Random(3)
    for _ in range(2000):
        made = sentence(rng)
        for text in (made.de, made.en):
            assert text[0].isupper() and "  " not in text and text[-1] in ".?" and "_" not in text, text


def test_an_unknown_split_says_so():
    with pytest.raises(DataError, match="unknown split"):
        pairs("validation")


def test_denoising_is_monolingual_and_near_its_sentence():
    sentences, documents = list(monolingual("de", 500)), list(denoising("de", 500))
    assert documents == list(denoising("de", 500))
    changed = 0
    for original, document in zip(sentences, documents):
        worse, clean = document.split("\n")
        assert clean == f"[de] {original}" and worse.startswith("[de] ")
        assert set(worse[5:].split()) <= set(original.split()) and worse[5:]
        changed += worse[5:] != original
    assert 0.6 < changed / 500 < 1
    german = {word for text in sentences for word in text.split()}
    assert not {"weil", "Der"} - german and not german & {"because", "The"}


def test_noise_moves_words_only_a_little():
    rng = random.Random(0)
    words = [f"w{i}" for i in range(40)]
    moved: list[int] = []
    for _ in range(200):
        found = list(dict.fromkeys(noisy(" ".join(words), rng).split()))
        present = [word for word in words if word in found]
        moved += [abs(found.index(word) - present.index(word)) for word in found]
    assert max(moved) <= 2 * REACH and sum(moved) / len(moved) > 0.3
