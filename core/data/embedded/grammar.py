"""A small grammar of German and English that says the same thing in both, with correct morphology.

German: gender, number and case on articles; weak, mixed and strong adjective endings; weak nouns; present, perfect and
modals; separable verbs; verb second after a fronted adverb, verb last after weil and dass; nicht and kein; in with
dative (where) and accusative (where to), mit with dative, für with accusative. English: articles a/an, third person
-s, do-support, the past tense. Every sentence is a pure function of a random generator, and reports the word
combinations that it is made of.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from core.data.embedded.lexicon import (
    ADJECTIVES,
    ANIMALS_DO,
    FOR_OTHERS,
    MODALS,
    MOTION,
    NOUNS,
    PRONOUNS,
    SPOUSES,
    TIMES,
    VERBS,
    WITH_OTHERS,
    Noun,
    Verb,
)

DEFINITE = {
    "nom": ("der", "die", "das", "die"),
    "acc": ("den", "die", "das", "die"),
    "dat": ("dem", "der", "dem", "den"),
}
ENDING = {"nom": ("", "e", "", "e"), "acc": ("en", "e", "", "e"), "dat": ("em", "er", "em", "en")}
DIESER = {"nom": ("er", "e", "es", "e"), "acc": ("en", "e", "es", "e"), "dat": ("em", "er", "em", "en")}
WEAK = {"nom": ("e", "e", "e", "en"), "acc": ("en", "e", "e", "en"), "dat": ("en", "en", "en", "en")}
MIXED = {"nom": ("er", "e", "es", "en"), "acc": ("en", "e", "es", "en"), "dat": ("en", "en", "en", "en")}
COLUMN = {"m": 0, "f": 1, "n": 2}
EN_DETERMINERS = {
    "der": ("the", "the"),
    "dies": ("this", "these"),
    "ein": ("a", ""),
    "mein": ("my", "my"),
    "kein": ("no", "no"),
}
HABEN = ("habe", "hast", "hat", "haben", "habt", "haben")
SEIN = ("bin", "bist", "ist", "sind", "seid", "sind")


@dataclass
class Sentence:
    """A pair, and the combinations of words in it, e.g. ("sehen", "Hund")."""

    de: str
    en: str
    pairs: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Phrase:
    """A noun phrase: German by case, English, grammatical person, and its noun's lemma ("" for a pronoun)."""

    de: dict[str, str]
    en: str
    person: int
    lemma: str = ""
    indefinite: bool = False
    pairs: list[tuple[str, str]] = field(default_factory=list)


def adjective(stem: str, ending: str) -> str:
    """ "dunkel" loses its e before an ending; "müde" does not double it."""
    if stem.endswith("el") and ending:
        stem = stem[:-2] + "l"
    return stem[:-1] + ending if stem.endswith("e") and ending else stem + ending


def noun_phrase(noun: Noun, determiner: str, plural: bool = False, adj: tuple[str, str] | None = None) -> Phrase:
    """The phrase in nominative, accusative and dative. `determiner`: der, dies, ein, mein or kein."""
    column = 3 if plural else COLUMN[noun.gender]
    forms = {}
    for case in ("nom", "acc", "dat"):
        if determiner == "der":
            article, endings = DEFINITE[case][column], WEAK
        elif determiner == "dies":
            article, endings = "dies" + DIESER[case][column], WEAK
        elif determiner == "ein" and plural:
            article, endings = "", DIESER
        else:
            article, endings = determiner + ENDING[case][column], MIXED
        word = noun.plural if plural else noun.de
        if noun.weak and not plural and case != "nom":
            word += "n" if word.endswith("e") else "en"
        if plural and case == "dat" and not word.endswith(("n", "s")):
            word += "n"
        middle = adjective(adj[0], endings[case][column]) if adj else ""
        forms[case] = " ".join(filter(None, [article, middle, word]))
    en_noun = noun.en_plural if plural else noun.en
    if determiner == "mein" and not plural:
        en_noun = SPOUSES.get(noun.de, en_noun)
    en_word = " ".join(filter(None, [adj[1] if adj else "", en_noun]))
    en_det = EN_DETERMINERS[determiner][plural]
    if en_det == "a" and en_word[0] in "aeiou":
        en_det = "an"
    combos = [(adj[0], noun.de)] if adj else []
    return Phrase(
        forms, " ".join(filter(None, [en_det, en_word])), 5 if plural else 2, noun.de, determiner == "ein", combos
    )


def present(verb: Verb, person: int) -> str:
    """The finite form without a separable prefix."""
    stem = verb.changed if person in (1, 2) else verb.stem
    if person in (3, 5):
        return verb.infinitive.removeprefix(verb.prefix)
    link = "e" if stem == verb.stem and (stem.endswith(("t", "d")) or stem.endswith("chn")) else ""
    if person == 0:
        return stem[:-2] + "le" if stem.endswith("el") else stem + "e"
    if person == 1:
        return stem + ("t" if stem.endswith(("s", "ß")) else link + "st")
    return (
        stem + (link if person == 4 or link else "") + "t" if not (stem != verb.stem and stem.endswith("t")) else stem
    )


def english_present(verb: Verb, person: int) -> str:
    """The third person adds -s, -es or -ies to the first word of the verb."""
    word, *rest = verb.en.split("_")
    if person == 2:
        if word.endswith(("s", "sh", "ch", "x", "o")):
            word += "es"
        elif word.endswith("y") and word[-2] not in "aeiou":
            word = word[:-1] + "ies"
        else:
            word += "s"
    return " ".join([word, *rest])


def english_with_object(phrase: str, obj: str) -> str:
    """The object of "take along", "warm up", "pick up" stands before the particle; of "look for" after it."""
    word, _, particle = phrase.partition(" ")
    if particle in ("along", "up"):
        return f"{word} {obj} {particle}"
    return f"{phrase} {obj}"


def english(verb_form: str, obj: str) -> str:
    return english_with_object(verb_form, obj) if obj else verb_form


def capital(text: str) -> str:
    return text[0].upper() + text[1:]


def pick_phrase(rng: random.Random, kind: str, determiners: tuple[str, ...] = ("der", "ein", "mein", "dies")) -> Phrase:
    noun = rng.choice([n for n in NOUNS if kind in (n.kind, "any") and not (kind == "any" and n.kind == "place")])
    adj = rng.choice(ADJECTIVES[noun.kind]) if rng.random() < 0.35 else None
    determiner = rng.choice(determiners)
    single = determiner == "mein" and noun.de in SPOUSES
    return noun_phrase(noun, determiner, rng.random() < 0.25 and not single, adj)


def _pick_subject(rng: random.Random, animals: bool = False) -> Phrase:
    if rng.random() < 0.25:
        de, en, person = rng.choice(PRONOUNS)
        return Phrase({"nom": de}, en, person)
    return pick_phrase(rng, "animal" if animals and rng.random() < 0.4 else "person")


@dataclass
class Clause:
    """Who does what: everything that the word orders below need."""

    subject: Phrase
    verb: Verb
    rest: str
    en_rest: str
    pairs: list[tuple[str, str]]


def _pick_clause(rng: random.Random) -> Clause:
    """Subject and verb with an object, a place, or a goal."""
    verb = rng.choice(MOTION if rng.random() < 0.15 else VERBS)
    subject = _pick_subject(rng, verb.infinitive in ANIMALS_DO)
    if verb in MOTION:
        place = pick_phrase(rng, "place", ("der", "mein", "ein"))
        rest, en_rest, lemma, extra = f"in {place.de['acc']}", f"into {place.en}", place.lemma, place.pairs
    elif verb.takes:
        obj = pick_phrase(rng, verb.takes)
        rest, en_rest, lemma, extra = obj.de["acc"], obj.en, obj.lemma, obj.pairs
    else:
        place = pick_phrase(rng, "place", ("der", "mein", "ein"))
        rest, en_rest, lemma, extra = f"in {place.de['dat']}", f"in {place.en}", place.lemma, place.pairs
    for full, short in (("in dem ", "im "), ("in das ", "ins ")):
        if rest.startswith(full):
            rest = short + rest[len(full) :]
    return Clause(subject, verb, rest, en_rest, [(verb.infinitive, lemma), *subject.pairs, *extra])


def _en_present(c: Clause) -> str:
    return f"{c.subject.en} {english(english_present(c.verb, c.subject.person), c.en_rest)}"


def _en_past(c: Clause) -> str:
    return f"{c.subject.en} {english(c.verb.en_past.replace('_', ' '), c.en_rest)}"


def _en_base(c: Clause) -> str:
    return english(c.verb.en.replace("_", " "), c.en_rest)


def _main(c: Clause, front: str = "", negated: bool = False) -> str:
    """Present tense, verb second."""
    verb, subject = present(c.verb, c.subject.person), c.subject.de["nom"]
    start = f"{front} {verb} {subject}" if front else f"{subject} {verb}"
    return " ".join(filter(None, [start, _negate(c, negated), c.verb.prefix]))


def _negate(c: Clause, negated: bool) -> str:
    """nicht stands after an object and before a place."""
    if not negated:
        return c.rest
    return f"nicht {c.rest}" if c.rest.startswith(("in ", "im ", "ins ")) else f"{c.rest} nicht"


def _auxiliary(c: Clause) -> str:
    return (SEIN if c.verb.aux == "sein" else HABEN)[c.subject.person]


def _perfect(c: Clause, front: str = "") -> str:
    """Auxiliary second, participle last."""
    start = f"{front} {_auxiliary(c)} {c.subject.de['nom']}" if front else f"{c.subject.de['nom']} {_auxiliary(c)}"
    return f"{start} {c.rest} {c.verb.participle}"


def statement(rng: random.Random) -> Sentence:
    c = _pick_clause(rng)
    return Sentence(f"{_main(c)}.", f"{_en_present(c)}.", c.pairs)


def fronted(rng: random.Random) -> Sentence:
    c = _pick_clause(rng)
    de, en, tense = rng.choice(TIMES)
    if tense == "present":
        return Sentence(f"{_main(c, de)}.", f"{en} {_en_present(c)}.", [*c.pairs, (de, c.verb.infinitive)])
    return Sentence(f"{_perfect(c, de)}.", f"{en} {_en_past(c)}.", [*c.pairs, (de, c.verb.infinitive)])


def perfect(rng: random.Random) -> Sentence:
    c = _pick_clause(rng)
    return Sentence(f"{_perfect(c)}.", f"{_en_past(c)}.", c.pairs)


def modal(rng: random.Random) -> Sentence:
    c = _pick_clause(rng)
    name = rng.choice(list(MODALS))
    forms, en = MODALS[name]
    if name == "wollen" and c.subject.person == 2:
        en = "wants to"
    german = f"{c.subject.de['nom']} {forms[c.subject.person]} {c.rest} {c.verb.infinitive}."
    return Sentence(german, f"{c.subject.en} {en} {_en_base(c)}.", [*c.pairs, (name, c.verb.infinitive)])


def negation(rng: random.Random) -> Sentence:
    c = _pick_clause(rng)
    if " ein" in f" {c.rest}" or c.rest[0].isupper() or _is_bare_plural(c):
        return statement_with_kein(rng)
    do = "does not" if c.subject.person == 2 else "do not"
    return Sentence(f"{_main(c, negated=True)}.", f"{c.subject.en} {do} {_en_base(c)}.", c.pairs)


def _is_bare_plural(c: Clause) -> bool:
    return not c.rest.startswith(("der", "die", "das", "den", "dem", "mein", "dies", "in ", "im ", "ins "))


def statement_with_kein(rng: random.Random) -> Sentence:
    """kein negates an indefinite object: "does not see a dog"."""
    verb = rng.choice([v for v in VERBS if v.takes])
    subject = _pick_subject(rng, verb.infinitive in ANIMALS_DO)
    noun = rng.choice([n for n in NOUNS if n.kind == verb.takes or (verb.takes == "any" and n.kind != "place")])
    c = Clause(subject, verb, noun_phrase(noun, "kein").de["acc"], noun_phrase(noun, "ein").en, [])
    do = "does not" if subject.person == 2 else "do not"
    return Sentence(f"{_main(c)}.", f"{subject.en} {do} {_en_base(c)}.", [(verb.infinitive, noun.de), *subject.pairs])


def question(rng: random.Random) -> Sentence:
    c = _pick_clause(rng)
    verb, prefix = present(c.verb, c.subject.person), c.verb.prefix
    german = " ".join(filter(None, [verb, c.subject.de["nom"], c.rest, prefix]))
    do = "does" if c.subject.person == 2 else "do"
    return Sentence(f"{german}?", f"{do} {c.subject.en} {_en_base(c)}?", c.pairs)


def _verb_last(c: Clause) -> str:
    return f"{c.subject.de['nom']} {c.rest} {c.verb.prefix}{present(c.verb, c.subject.person)}"


def because(rng: random.Random) -> Sentence:
    first, second = _pick_clause(rng), _pick_clause(rng)
    german = f"{_main(first)}, weil {_verb_last(second)}."
    return Sentence(german, f"{_en_present(first)} because {_en_present(second)}.", [*first.pairs, *second.pairs])


def that(rng: random.Random) -> Sentence:
    c = _pick_clause(rng)
    start, en = rng.choice([("ich glaube", "I believe"), ("wir wissen", "we know"), ("er sagt", "he says")])
    return Sentence(f"{start}, dass {_verb_last(c)}.", f"{en} that {_en_present(c)}.", c.pairs)


def predicate(rng: random.Random) -> Sentence:
    noun = rng.choice(NOUNS)
    adj = rng.choice(ADJECTIVES[noun.kind])
    plural = rng.random() < 0.3
    determiner = rng.choice(("der", "mein", "dies"))
    plural = plural and not (determiner == "mein" and noun.de in SPOUSES)
    phrase = noun_phrase(noun, determiner, plural)
    negated = rng.random() < 0.3
    german = f"{phrase.de['nom']} {SEIN[phrase.person]} {'nicht ' if negated else ''}{adj[0]}."
    en = f"{phrase.en} {'are' if plural else 'is'} {'not ' if negated else ''}{adj[1]}."
    return Sentence(german, en, [(adj[0], noun.de)])


def giving(rng: random.Random) -> Sentence:
    """geben with dative and accusative."""
    give = Verb("geben", "geb", "gib", "gegeben", "haben", "give", "gave", "thing")
    subject = _pick_subject(rng)
    receiver = pick_phrase(rng, "person", ("der", "mein", "ein"))
    obj = pick_phrase(rng, "thing")
    c = Clause(subject, give, f"{receiver.de['dat']} {obj.de['acc']}", f"{receiver.en} {obj.en}", [])
    c.pairs += [("geben", obj.lemma), ("geben an", receiver.lemma), *subject.pairs, *receiver.pairs, *obj.pairs]
    return _told(rng, c)


def with_someone(rng: random.Random) -> Sentence:
    """mit with the dative: "plays with the child"."""
    verb = rng.choice([v for v in VERBS if v.infinitive in WITH_OTHERS])
    subject, other = _pick_subject(rng), pick_phrase(rng, "person")
    pairs = [(f"{verb.infinitive} mit", other.lemma), *subject.pairs, *other.pairs]
    return _told(rng, Clause(subject, verb, f"mit {other.de['dat']}", f"with {other.en}", pairs))


def for_someone(rng: random.Random) -> Sentence:
    """für with the accusative: "buys the bread for the guest"."""
    verb = rng.choice([v for v in VERBS if v.infinitive in FOR_OTHERS])
    subject, obj, other = _pick_subject(rng), pick_phrase(rng, verb.takes), pick_phrase(rng, "person")
    pairs = [(verb.infinitive, obj.lemma), ("für", other.lemma), *subject.pairs, *obj.pairs, *other.pairs]
    rest, en_rest = f"{obj.de['acc']} für {other.de['acc']}", f"{obj.en} for {other.en}"
    return _told(rng, Clause(subject, verb, rest, en_rest, pairs))


def _told(rng: random.Random, c: Clause) -> Sentence:
    """In the present or the perfect."""
    if rng.random() < 0.5:
        return Sentence(f"{_main(c)}.", f"{_en_present(c)}.", c.pairs)
    return Sentence(f"{_perfect(c)}.", f"{_en_past(c)}.", c.pairs)


RULES = [
    statement,
    statement,
    fronted,
    fronted,
    perfect,
    modal,
    modal,
    negation,
    question,
    because,
    that,
    predicate,
    giving,
    with_someone,
    for_someone,
]


def sentence(rng: random.Random) -> Sentence:
    """One sentence of a random rule, capitalised."""
    made = rng.choice(RULES)(rng)
    return Sentence(capital(made.de), capital(made.en), made.pairs)
