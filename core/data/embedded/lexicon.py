"""Words of the embedded German-English corpus, with the forms that the grammar cannot derive.

Written for this project. A noun has gender, plural and genitive-free dative plural by rule; a verb has its present
stem, the changed stem of the second and third person, its participle and its auxiliary.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Noun:
    """German singular, gender (m, f, n), plural; English singular and plural; kinds: what it can be in a sentence."""

    de: str
    gender: str
    plural: str
    en: str
    en_plural: str
    kind: str
    weak: bool = False


@dataclass(frozen=True)
class Verb:
    """Infinitive, stem, stem of du/er/sie/es, participle, auxiliary, separable prefix; English base and past form.

    `takes` is the kind of its object ("" for none).
    """

    infinitive: str
    stem: str
    changed: str
    participle: str
    aux: str
    en: str
    en_past: str
    takes: str
    prefix: str = ""


def _nouns(kind: str, rows: str) -> list[Noun]:
    found = []
    for row in rows.strip().splitlines():
        parts = row.split()
        found.append(Noun(*parts[:5], kind, weak=len(parts) > 5))
    return found


NOUNS = [
    *_nouns(
        "person",
        """
Mann m Männer man men
Frau f Frauen woman women
Kind n Kinder child children
Lehrer m Lehrer teacher teachers
Ärztin f Ärztinnen doctor doctors
Freund m Freunde friend friends
Nachbarin f Nachbarinnen neighbour neighbours
Bruder m Brüder brother brothers
Schwester f Schwestern sister sisters
Junge m Jungen boy boys weak
Mädchen n Mädchen girl girls
Gast m Gäste guest guests
Student m Studenten student students weak
Bäcker m Bäcker baker bakers
Tante f Tanten aunt aunts
""",
    ),
    *_nouns(
        "animal",
        """
Hund m Hunde dog dogs
Katze f Katzen cat cats
Pferd n Pferde horse horses
Vogel m Vögel bird birds
Kuh f Kühe cow cows
Schaf n Schafe sheep sheep
Fuchs m Füchse fox foxes
Ente f Enten duck ducks
""",
    ),
    *_nouns(
        "food",
        """
Apfel m Äpfel apple apples
Brot n Brote loaf loaves
Kuchen m Kuchen cake cakes
Suppe f Suppen soup soups
Ei n Eier egg eggs
Kartoffel f Kartoffeln potato potatoes
Birne f Birnen pear pears
Salat m Salate salad salads
""",
    ),
    *_nouns(
        "thing",
        """
Buch n Bücher book books
Brief m Briefe letter letters
Tasche f Taschen bag bags
Stuhl m Stühle chair chairs
Lampe f Lampen lamp lamps
Bild n Bilder picture pictures
Schlüssel m Schlüssel key keys
Uhr f Uhren clock clocks
Fahrrad n Fahrräder bicycle bicycles
Tisch m Tische table tables
Zeitung f Zeitungen newspaper newspapers
Geschenk n Geschenke present presents
Mantel m Mäntel coat coats
Karte f Karten map maps
""",
    ),
    *_nouns(
        "place",
        """
Garten m Gärten garden gardens
Küche f Küchen kitchen kitchens
Haus n Häuser house houses
Park m Parks park parks
Schule f Schulen school schools
Zimmer n Zimmer room rooms
Wald m Wälder forest forests
Stadt f Städte town towns
Hof m Höfe yard yards
Laden m Läden shop shops
""",
    ),
]


def _verbs(takes: str, rows: str) -> list[Verb]:
    return [Verb(*row.split()[:7], takes, *row.split()[7:]) for row in rows.strip().splitlines()]


VERBS = [
    *_verbs(
        "any",
        """
sehen seh sieh gesehen haben see saw
suchen such such gesucht haben look_for looked_for
finden find find gefunden haben find found
brauchen brauch brauch gebraucht haben need needed
zeichnen zeichn zeichn gezeichnet haben draw drew
vergessen vergess vergiss vergessen haben forget forgot
mitnehmen nehm nimm mitgenommen haben take_along took_along mit
""",
    ),
    *_verbs(
        "food",
        """
essen ess iss gegessen haben eat ate
kochen koch koch gekocht haben cook cooked
kaufen kauf kauf gekauft haben buy bought
probieren probier probier probiert haben taste tasted
aufwärmen wärm wärm aufgewärmt haben warm_up warmed_up auf
""",
    ),
    *_verbs(
        "thing",
        """
tragen trag träg getragen haben carry carried
verkaufen verkauf verkauf verkauft haben sell sold
bringen bring bring gebracht haben bring brought
reparieren reparier reparier repariert haben repair repaired
verlieren verlier verlier verloren haben lose lost
holen hol hol geholt haben fetch fetched
""",
    ),
    *_verbs(
        "person",
        """
kennen kenn kenn gekannt haben know knew
besuchen besuch besuch besucht haben visit visited
fragen frag frag gefragt haben ask asked
treffen treff triff getroffen haben meet met
anrufen ruf ruf angerufen haben call called an
einladen lad läd eingeladen haben invite invited ein
abholen hol hol abgeholt haben pick_up picked_up ab
""",
    ),
    *_verbs(
        "animal",
        """
füttern fütter fütter gefüttert haben feed fed
streicheln streichel streichel gestreichelt haben stroke stroked
""",
    ),
    *_verbs(
        "",
        """
schlafen schlaf schläf geschlafen haben sleep slept
arbeiten arbeit arbeit gearbeitet haben work worked
warten wart wart gewartet haben wait waited
spielen spiel spiel gespielt haben play played
lachen lach lach gelacht haben laugh laughed
singen sing sing gesungen haben sing sang
""",
    ),
]

MOTION = _verbs(
    "place",
    """
gehen geh geh gegangen sein go went
laufen lauf läuf gelaufen sein run ran
kommen komm komm gekommen sein come came
""",
)

ADJECTIVES = {
    "person": [("alt", "old"), ("jung", "young"), ("müde", "tired"), ("freundlich", "friendly"), ("klug", "clever")],
    "animal": [("klein", "small"), ("schwarz", "black"), ("hungrig", "hungry"), ("schnell", "fast"), ("weiß", "white")],
    "food": [("frisch", "fresh"), ("warm", "warm"), ("süß", "sweet"), ("kalt", "cold"), ("groß", "big")],
    "thing": [("neu", "new"), ("rot", "red"), ("schwer", "heavy"), ("schön", "beautiful"), ("blau", "blue")],
    "place": [("klein", "small"), ("groß", "big"), ("dunkel", "dark"), ("ruhig", "quiet"), ("schön", "beautiful")],
}

TIMES = [
    ("heute", "today", "present"), ("jeden Tag", "every day", "present"), ("am Abend", "in the evening", "present"),
    ("oft", "often", "present"), ("gestern", "yesterday", "past"), ("letzte Woche", "last week", "past"),
    ("am Montag", "on Monday", "past"),
]  # fmt: skip

MODALS = {
    "können": (("kann", "kannst", "kann", "können", "könnt", "können"), "can"),
    "müssen": (("muss", "musst", "muss", "müssen", "müsst", "müssen"), "must"),
    "wollen": (("will", "willst", "will", "wollen", "wollt", "wollen"), "want to"),
    "sollen": (("soll", "sollst", "soll", "sollen", "sollt", "sollen"), "should"),
}

# person index: 0 ich, 1 du, 2 er/sie/es, 3 wir, 4 ihr, 5 sie
PRONOUNS = [("ich", "I", 0), ("du", "you", 1), ("er", "he", 2), ("wir", "we", 3), ("sie", "they", 5)]

# a person's own Mann or Frau is a spouse
SPOUSES = {"Mann": "husband", "Frau": "wife"}
ANIMALS_DO = {
    *("sehen", "suchen", "finden", "essen", "probieren", "schlafen", "warten", "spielen", "gehen", "laufen", "kommen"),
}
WITH_OTHERS = {"arbeiten", "warten", "spielen", "lachen", "singen"}
FOR_OTHERS = {"kochen", "kaufen", "tragen", "reparieren", "holen", "bringen"}
