"""Query-tool alignment: the order of wordings by hand, the pairs it gives, and rewriting in serving."""

import dataclasses

import pytest

from apps.tool_use import Catalogue, ToolQuery, ToolRetriever, ToolSpec
from apps.tool_use.methods.qta import (
    QtaConfig,
    RewritePipeline,
    Standing,
    aligned,
    preferences,
    row_of,
    standing,
    wordings_of,
)
from core.errors import AppInputError
from core.inference.request import Output
from core.models.tokenizer import train_bpe


def spec(name, text):
    return ToolSpec(name, text, {"type": "object", "properties": {}})


CATALOGUE = Catalogue([spec("weather", "rain and sun"), spec("money", "change coins"), spec("mail", "write letters"),
                       spec("flight", "planes"), spec("music", "songs")])  # fmt: skip


def test_the_worst_placed_right_tool_decides_then_ndcg():
    assert standing(["a", "b", "c"], ["c"]).place == 3
    assert standing(["a", "b"], ["a", "z"]).place == 3, "a missing tool stands behind the ranking"
    first, second = standing(["a", "x", "b"], ["a", "b"]), standing(["x", "a", "b"], ["a", "b"])
    assert first.place == second.place == 3 and first.ndcg > second.ndcg
    assert first.ahead_of(second, gap=1, ndcg_gap=0.05) and not second.ahead_of(first, gap=1, ndcg_gap=0.05)
    assert not first.ahead_of(second, gap=1, ndcg_gap=0.5)
    assert not Standing(2, 1.0).ahead_of(Standing(3, 0.0), gap=2, ndcg_gap=0.05), "places differ, but by too little"


def test_pairs_are_the_best_against_what_it_is_ahead_of_the_worst_first():
    standings = [Standing(5, 0.2), Standing(1, 1.0), Standing(9, 0.0), Standing(2, 0.6)]
    texts = ["five", "one", "nine", "two"]
    assert preferences(texts, standings) == [("one", "nine"), ("one", "five"), ("one", "two")]
    assert preferences(texts, standings, gap=4) == [("one", "nine"), ("one", "five")]
    assert preferences(texts, standings, most=1) == [("one", "nine")]
    assert preferences(["a", "b"], [Standing(1, 1.0)] * 2) == [] and preferences([], []) == []


def test_a_frozen_retriever_tells_better_wordings_from_worse():
    example = ToolQuery("Will I need an umbrella?", ("weather",), CATALOGUE, rewrites=(
        "will there be rain or sun", "change coins", "", "change  coins"))  # fmt: skip
    assert wordings_of(example) == ["Will I need an umbrella?", "will there be rain or sun", "change coins"]
    without = ToolQuery("x", (), CATALOGUE, rewrites=("rain",))
    rows = aligned([without, example], ToolRetriever(), QtaConfig())
    assert {(question, better) for question, better, _ in rows} == {(example.query, "will there be rain or sun")}
    worse = {worse for *_, worse in rows}
    assert worse and worse <= {example.query, "change coins"}


def test_a_pair_is_learnt_behind_the_prompt_that_is_served():
    from core.data.encode import encode_prompt
    from core.training.preference.pairs import Pair, encode_pair

    tokenizer = train_bpe(["Reword the request so that a search finds the tools", "rain"], 330)
    pair = encode_pair(Pair(row_of("umbrella?", "rain or sun"), row_of("umbrella?", "coins")), tokenizer)
    request = RewritePipeline(None, tokenizer).prepare(ToolQuery("umbrella?", (), CATALOGUE))
    assert pair.prompt_ids == request.ids == encode_prompt(row_of("umbrella?", "x"), tokenizer)
    assert tokenizer.decode(pair.chosen_ids) == " rain or sun\n" + tokenizer.eos_token


class Script:
    """Answers every prompt with the next of the texts that the test gives for it."""

    context = None

    def __init__(self, answers):
        self.answers = {question: list(texts) for question, texts in answers.items()}

    def generate(self, requests, sampling):
        found = []
        for request in requests:
            texts = next(texts for question, texts in self.answers.items() if question in request.text)
            found.append(Output([], texts.pop(0)))
        return found


def test_searching_with_wordings():
    question = "Will I need an umbrella?"
    example = ToolQuery(question, ("weather",), CATALOGUE)
    assert ToolRetriever().predict([example]) == [[]], "the question shares no word with any tool"
    tokenizer = train_bpe([question], 300)

    def pipeline(*texts, **settings):
        return RewritePipeline(Script({question: texts}), tokenizer, RewritePipeline.config_cls(**settings))

    assert pipeline("will there be rain").predict([example])[0][0] == "weather"
    assert pipeline("").predict([example]) == [[]], "where nothing is left, the question is searched for"
    joined = pipeline("coins", "rain and sun", "the rain", wordings=3).predict([example])[0]
    assert joined[0] == "weather" and "money" in joined
    found = pipeline("rain", original=True).find(question, list(CATALOGUE.tools.values()), k=1)
    assert found[0].tool.name == "weather"
    with pytest.raises(AppInputError, match="empty"):
        pipeline("x").prepare(dataclasses.replace(example, query=" "))


@pytest.mark.slow
def test_training_moves_the_model_towards_what_the_retriever_prefers(tmp_path):
    import json

    from core.config.load import load_recipe, smoke
    from core.config.run_folder import RunFolder
    from core.training.run import train
    from recipes.catalogue import find

    (tmp_path / "tools.json").write_text(json.dumps(CATALOGUE.to_rows()))
    asked = {"weather": "umbrella", "money": "pay abroad", "mail": "tell her", "flight": "get there", "music": "a tune"}
    rows = [
        {"query": f"{text} {n}?", "tools": [name], "rewrites": [CATALOGUE.tools[name].description, "nothing at all"]}
        for name, text in asked.items()
        for n in range(4)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = f"data.train=[{{reader: jsonl, path: {tmp_path / 'rows.jsonl'}}}]"
    recipe = smoke(load_recipe(find("tool_use/qta"), [source, "train.lr=5e-3", f"output={tmp_path / 'run'}"]))
    recipe.output = str(tmp_path / "run")
    run = RunFolder.create(recipe)
    result = train(recipe, run)
    assert result["status"] == "done" and result["stages"][0]["rows"] == 2 * len(rows)

    questions = [ToolQuery(row["query"], (), CATALOGUE) for row in rows]
    with RewritePipeline.from_pretrained(run.path, device="cpu") as rewrite:

        def lead():
            good, bad = (rewrite.score(questions, [row["rewrites"][i] for row in rows]) for i in (0, 1))
            return (sum(good) - sum(bad)) / len(rows)

        after = lead()
        with rewrite.engine.model.disable_adapter():
            before = lead()
    assert after > before + 0.02
