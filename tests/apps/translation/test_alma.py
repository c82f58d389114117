"""ALMA's two methods: which rows they make of which examples."""

from __future__ import annotations

from itertools import islice

import pytest

from apps.translation import TranslationExample
from apps.translation.methods import alma
from apps.translation.methods.alma import MonoConfig, ParallelConfig, keep_shares, mono, parallel
from core.config.registry import METHODS, get_app
from core.config.schema import Recipe
from core.data.segments import Segment, render
from core.errors import DataError, TemplateError
from core.training.stage import StageContext

PAIRS = [TranslationExample("Guten Tag.", "Good day.", "de", "en"), TranslationExample("Ja.", "Yes.", "de", "en")]
MONO = [TranslationExample(text, src_lang=lang) for text, lang in [("Ein Satz.", "de"), ("A line.", "en")] * 5]


class Stream:
    def __init__(self, examples):
        self.examples = examples

    def __iter__(self):
        yield from self.examples


def context(options, train, evaluation=()):
    app = get_app("translation")
    return StageContext(recipe=Recipe(), options=options, tokenizer=None, train=train, eval=list(evaluation), app=app)


def test_both_methods_are_registered():
    get_app("translation")
    assert METHODS.get("translation.mono").config is MonoConfig
    assert METHODS.get("translation.parallel").config is ParallelConfig


def test_mono_trains_every_token_in_blocks():
    stage = mono(context(MonoConfig(), MONO, PAIRS))
    assert stage.layout == "blocks" and len(stage.rows) == len(MONO)
    assert all(segment.train for row in stage.rows for segment in row)
    assert [row[0].text for row in stage.eval_rows] == ["Guten Tag.", "Good day.", "Ja.", "Yes."]
    assert len(mono(context(MonoConfig(sides="tgt"), PAIRS)).rows) == 2


def test_shares_keep_as_much_as_the_scarcest_language_allows():
    german = [TranslationExample("x" * 10, src_lang="de")] * 100
    english = [TranslationExample("y" * 10, src_lang="en")] * 30
    kept = keep_shares([*german, *english], {"de": 0.25, "en": 0.75})
    assert sum(e.src_lang == "en" for e in kept) == 30 and sum(e.src_lang == "de" for e in kept) == 10
    with pytest.raises(DataError, match="language 'fr' has no text"):
        keep_shares(german, {"de": 0.5, "fr": 0.5})
    with pytest.raises(DataError, match="language 'en' has no share"):
        keep_shares([*german, *english], {"de": 1.0})


def test_parallel_trains_targets_in_both_directions():
    stage = parallel(context(ParallelConfig(), PAIRS, PAIRS))
    assert stage.layout == "rows" and len(stage.rows) == 4 and len(stage.eval_rows) == 2
    trained = ["".join(s.text for s in row if s.train) for row in stage.rows]
    assert trained == [" Good day.", " Guten Tag.", " Yes.", " Ja."]
    assert stage.rows[1][0].text.startswith("Translate this from English to German:")
    assert len(parallel(context(ParallelConfig(directions="forward"), PAIRS)).rows) == 2


def test_a_stream_stays_a_stream_and_can_be_read_again():
    rows = parallel(context(ParallelConfig(), Stream(PAIRS))).rows
    assert not isinstance(rows, list) and len(list(rows)) == len(list(rows)) == 4


@pytest.mark.parametrize("method", [mono, parallel])
def test_rows_of_a_stream_that_are_passed_over_are_not_made(monkeypatch, method):
    """They are those of the list, and a resumed run renders none of those before its place."""
    options = {mono: MonoConfig, parallel: ParallelConfig}[method]()
    known, made = method(context(options, PAIRS)).rows, []
    for name, original in (("render", render), ("Segment", Segment)):
        monkeypatch.setattr(alma, name, lambda *args, _make=original, **more: made.append(1) or _make(*args, **more))
    rows = list(islice(method(context(options, Stream(PAIRS))).rows, 3, None))
    assert not made and len(rows) == 1
    assert list(rows[0]) == known[3] and len(made) == 1


@pytest.mark.parametrize("read", [list, Stream])
def test_rows_without_a_translation_are_left_out_on_request(read):
    given = context(ParallelConfig(directions="forward"), read([MONO[0], *PAIRS, MONO[1]]))
    given.recipe.data.on_bad = "skip"
    assert [row[-1].text for row in parallel(given).rows] == [
        row[-1].text for row in parallel(context(ParallelConfig(directions="forward"), PAIRS)).rows
    ]


def test_wrong_material_is_named():
    with pytest.raises(DataError, match="needs pairs"):
        parallel(context(ParallelConfig(), MONO))
    with pytest.raises(DataError, match="needs pairs"):
        [len(row) for row in parallel(context(ParallelConfig(), Stream(MONO))).rows]
    with pytest.raises(TemplateError, match="unknown template"):
        parallel(context(ParallelConfig(template="almaa"), PAIRS))


def test_the_recipes_check(monkeypatch):
    from core.config.load import load_recipe, resolve_stages
    from recipes.catalogue import find

    monkeypatch.setenv("GRAFT_DATA", "/data")
    stages = resolve_stages(load_recipe(find("translation/alma")))
    assert [s.method for s in stages] == ["translation.mono", "translation.parallel"]
    assert stages[0].recipe.train.schedule == "cosine" and stages[1].recipe.train.schedule == "inverse_sqrt"
    (stage,) = resolve_stages(load_recipe(find("translation/multi30k")))
    assert stage.recipe.data.train[0].path == "/data/translation/multi30k/train"
