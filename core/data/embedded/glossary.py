"""Word lists in both languages side by side: what a base model may know of another language before it translates.

Web text holds such accidental bilingual scraps (Briakou et al. 2023, "Searching for needles in a haystack"). A list is
a few words and phrases in random order, "der Hund; sieht; im Garten = the dog; sees; in the garden"; it is never a
sentence, and it holds no word combination that is held out.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from core.data.embedded.grammar import HABEN, SEIN, english_present, pick_phrase, present
from core.data.embedded.lexicon import ADJECTIVES, MODALS, MOTION, PRONOUNS, TIMES, VERBS

LONGEST = 7
_KINDS = ("person", "person", "animal", "food", "thing", "place")
_ADJECTIVES = [pair for pairs in ADJECTIVES.values() for pair in pairs]
_LITTLE = [
    ("weil", "because"),
    ("dass", "that"),
    ("nicht", "not"),
    ("ich glaube", "I believe"),
    ("wir wissen", "we know"),
    ("er sagt", "he says"),
]

Entry = tuple[str, str, list[tuple[str, str]]]


def _phrase(rng: random.Random) -> Entry:
    found = pick_phrase(rng, rng.choice(_KINDS))
    return found.de[rng.choice(("nom", "acc", "acc", "dat"))], found.en, found.pairs


def _where(rng: random.Random) -> Entry:
    place = pick_phrase(rng, "place", ("der", "mein", "ein"))
    into = rng.random() < 0.4
    german = f"in {place.de['acc' if into else 'dat']}"
    for full, short in (("in dem ", "im "), ("in das ", "ins ")):
        german = german.replace(full, short)
    return german, f"{'into' if into else 'in'} {place.en}", place.pairs


def _with_or_for(rng: random.Random) -> Entry:
    other = pick_phrase(rng, "person")
    if rng.random() < 0.5:
        return f"mit {other.de['dat']}", f"with {other.en}", other.pairs
    return f"für {other.de['acc']}", f"for {other.en}", other.pairs


def _verb(rng: random.Random) -> Entry:
    """A finite form, an infinitive or a participle; a separable prefix stands behind, as in a main clause."""
    verb, person = rng.choice([*VERBS, *MOTION]), rng.choice((0, 1, 2, 2, 3, 5))
    form = rng.randrange(3)
    if form == 0:
        return f"{present(verb, person)} {verb.prefix}".strip(), english_present(verb, person), []
    if form == 1:
        return verb.infinitive, verb.en.replace("_", " "), []
    auxiliary = (SEIN if verb.aux == "sein" else HABEN)[person]
    return f"{auxiliary} {verb.participle}", verb.en_past.replace("_", " "), []


def _little_word(rng: random.Random) -> Entry:
    kind = rng.randrange(5)
    if kind == 0:
        return *rng.choice(_ADJECTIVES), []
    if kind == 1:
        return *rng.choice(TIMES)[:2], []
    if kind == 2:
        forms, english = MODALS[rng.choice(list(MODALS))]
        return rng.choice(forms[:4]), english, []
    if kind == 3:
        return *rng.choice(PRONOUNS)[:2], []
    return *rng.choice(_LITTLE), []


_MAKERS: list[Callable[[random.Random], Entry]] = [_phrase, _phrase, _phrase, _verb, _verb, _where, _with_or_for]
_MAKERS += [_little_word, _little_word]


def word_list(rng: random.Random) -> tuple[str, list[tuple[str, str]]]:
    """One list, in either order of the languages, and the word combinations in it."""
    entries = [rng.choice(_MAKERS)(rng) for _ in range(rng.randint(1, LONGEST))]
    sides = ["; ".join(entry[side] for entry in entries) for side in (0, 1)]
    if rng.random() < 0.5:
        sides.reverse()
    return " = ".join(sides), [pair for entry in entries for pair in entry[2]]
