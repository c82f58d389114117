"""Finding tools: figures by hand, catalogues and their readers, rankings, folders, and what training sees."""

import json
import math

import pytest

from apps.tool_use import Catalogue, RetrievalEvaluator, ToolQuery, ToolRetriever, ToolSpec, load_queries
from apps.tool_use.catalogue import READERS, document, folded, half_of
from apps.tool_use.methods.retriever import own_pairs, pairs
from apps.tool_use.options import RetrieverConfig
from apps.tool_use.retriever_score import ndcg, recall, reciprocal_rank, sufficiency, sufficiency_rank
from core.data.rows import BadRows
from core.errors import AppInputError, CheckpointError, ConfigError, DataError


def spec(name, text="", /, **parameters):
    properties = {key: {"type": "string", "description": value} for key, value in parameters.items()}
    return ToolSpec(name, text, {"type": "object", "properties": properties})


TOOLS = [
    spec("getCurrentWeather", "Weather of a place", city="where"),
    spec("convert_currency", "Change money", amount="how much", target="wanted currency"),
    spec("send_message", "Write to a person", to="who", text="what"),
    spec("book_flight", "Reserve a seat in a plane", origin="from where", destination="to where"),
]
RANKING = ["a", "b", "c", "d", "e", "f"]


# ---- figures, worked by hand ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold", "suff", "gain", "found", "first", "worst"),
    [
        (["a"], {1: 1, 3: 1}, {1: 1.0, 3: 1.0}, {1: 1.0}, 1.0, 1),
        (["b"], {1: 0, 3: 1}, {1: 0.0, 3: 1 / math.log2(3)}, {1: 0.0, 3: 1.0}, 0.5, 2),
        (["a", "c"], {1: 0, 2: 0, 3: 1}, {2: 1 / (1 + 1 / math.log2(3)), 3: 1.5 / (1 + 1 / math.log2(3))},
         {1: 0.5, 3: 1.0}, 1.0, 3),
        (["c", "z"], {3: 0, 6: 0}, {3: 0.5 / (1 + 1 / math.log2(3))}, {3: 0.5}, 1 / 3, 7),
        (["z"], {6: 0}, {6: 0.0}, {6: 0.0}, 0.0, 7),
        (["f", "e", "d"], {5: 0, 6: 1}, {5: (1 / math.log2(5) + 1 / math.log2(6)) / (1.5 + 1 / math.log2(3))},
         {5: 2 / 3}, 0.25, 6),
    ],
)  # fmt: skip
def test_figures_equal_those_worked_by_hand(gold, suff, gain, found, first, worst):
    assert {k: sufficiency(RANKING, gold, k) for k in suff} == suff
    assert {k: ndcg(RANKING, gold, k) for k in gain} == pytest.approx(gain, abs=1e-12)
    assert {k: recall(RANKING, gold, k) for k in found} == pytest.approx(found, abs=1e-12)
    assert reciprocal_rank(RANKING, gold) == pytest.approx(first, abs=1e-12)
    assert sufficiency_rank(RANKING, gold) == worst


def test_questions_without_right_tools_are_left_out_and_counted():
    catalogue = Catalogue(TOOLS)
    examples = [ToolQuery("x", ("send_message",), catalogue), ToolQuery("y", (), catalogue)]
    report = RetrievalEvaluator(["sufficiency@1", "mrr"]).score([["send_message"], ["send_message"]], examples)
    assert report.metrics["sufficiency@1"].value == 100 and report.metrics["mrr"].n == 1
    assert report.signature["questions without right tools"] == 1
    with pytest.raises(ConfigError, match="nothing to score"):
        RetrievalEvaluator().score([[]], examples[1:])
    with pytest.raises(ConfigError, match="sufficiency@5"):
        RetrievalEvaluator(["suficiency@5"])


# ---- catalogues -----------------------------------------------------------------------------------------------------


def test_equal_tools_count_once_and_equal_names_are_numbered():
    catalogue = Catalogue([*TOOLS, TOOLS[0], spec("send_message", "another")])
    assert catalogue.ids[-1] == "send_message#2" and len(catalogue) == 5
    assert catalogue.id_of(spec("send_message", "another")) == "send_message#2"
    with pytest.raises(DataError, match="send_message"):
        catalogue.checked(["send_mesage"])
    with pytest.raises(DataError, match="no tools"):
        Catalogue([])


def test_a_document_is_category_name_description_and_parameters():
    tool = ToolSpec("getX", "Finds x.", {"properties": {"key": {"description": "which"}, "n": {}}}, category="Maths")
    assert document(tool) == "Maths getX Finds x. key which n"


def test_folds_spread_every_class_evenly():
    classes = ["a"] * 10 + ["b"] * 5 + ["c"] * 3
    parts = folded(classes, 5)
    assert [parts[:10].count(fold) for fold in range(5)] == [2] * 5 and sorted(parts[10:15]) == [0, 1, 2, 3, 4]
    assert parts == folded(classes, 5)


def test_the_simple_form_and_its_errors(tmp_path):
    (tmp_path / "tools.json").write_text(json.dumps([tool.to_chat() for tool in TOOLS]))
    file = tmp_path / "train.jsonl"
    row = {"query": "Rome?", "tools": ["getCurrentWeather"], "rewrites": ["weather in Rome"]}
    file.write_text(json.dumps(row) + "\n")
    (example,) = load_queries(tmp_path)
    assert example.gold == ("getCurrentWeather",) and example.rewrites == ("weather in Rome",)
    bad_rows = {"empty": {"query": " "}, "did you": {"query": "a", "tools": ["getCurentWeather"]},
                "list of names": {"query": "a", "tools": "x"}}  # fmt: skip
    for part, bad in bad_rows.items():
        file.write_text(json.dumps(row) + "\n" + json.dumps(bad) + "\n")
        with pytest.raises(DataError, match=part) as caught:
            load_queries(tmp_path)
        assert caught.value.line == 2
    assert len(list(READERS.get("jsonl")(tmp_path, on_bad=BadRows("skip")))) == 1


def test_mtrb_is_matched_by_name_and_toolbench_by_its_pairs(tmp_path):
    (tmp_path / "tools.json").write_text(json.dumps([tool.to_chat() for tool in TOOLS]))
    (tmp_path / "rest.json").write_text(json.dumps(
        [{"query": "fly", "relevant Tools": ["book_flight"], "relevant IDs": [99]}]))  # fmt: skip
    (example,) = load_queries(tmp_path / "rest.json", "mtrb")
    assert example.gold == ("book_flight",)
    api = {"category_name": "Logistics", "tool_name": "SQUAKE", "api_name": "Projects", "api_description": "all",
           "required_parameters": [], "optional_parameters": []}  # fmt: skip
    other = {**api, "api_name": "Checkhealth"}
    rows = [{"api_list": [api, other], "query": "list them", "relevant APIs": [["SQUAKE", "Projects"]], "query_id": 3}]
    (tmp_path / "G1_query.json").write_text(json.dumps(rows))
    (example,) = load_queries(tmp_path, "toolbench")
    assert example.gold == ("projects_for_squake",) and len(example.catalogue) == 2 and example.id == "3"


def test_halves_share_no_tool(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    names = [f"tool{n}" for n in range(30)]
    (folder / "plugin_des.json").write_text(json.dumps({name: f"does {name}" for name in names}))
    lines = ["Query,Tool"] + [f"question {n} of {name},{name}" for name in names for n in range(3)]
    (folder / "single_tool_train.csv").write_text("\n".join(lines) + "\n")
    seen = {split: {q.gold[0] for q in load_queries(folder, "metatool", split=split, halves=True)} for split in
            ("train", "test")}  # fmt: skip
    assert seen["train"] and seen["test"] and not seen["train"] & seen["test"]
    assert all(half_of(name) == split for split, found in seen.items() for name in found)
    parts = [load_queries(folder, "metatool", split=split, fold=1) for split in ("train", "test")]
    assert [len(part) for part in parts] == [72, 18] and not {q.query for q in parts[0]} & {q.query for q in parts[1]}


# ---- search ---------------------------------------------------------------------------------------------------------


def test_words_find_tools_by_parts_of_their_names():
    find = ToolRetriever(TOOLS)
    assert find.search == "bm25"
    assert [found.id for found in find("the current weather, please", k=2)] == ["getCurrentWeather"]
    many = find(["send a message to Ana", "a flight"], k=1)
    assert [row[0].tool.name for row in many] == ["send_message", "book_flight"]


def test_a_word_of_a_question_counts_once():
    find = ToolRetriever([spec("a", "plane plane"), spec("b", "money seat")])
    once, often = (find(text, k=2) for text in ("plane money seat", "plane plane plane plane money seat"))
    assert [found[:2] for found in once] == [found[:2] for found in often]
    assert once[0].id == "b"


def test_bad_input_is_told():
    with pytest.raises(AppInputError, match="no tools to search"):
        ToolRetriever()("x")
    with pytest.raises(AppInputError, match=r"rows \[1\]"):
        ToolRetriever(TOOLS)(["weather", " "])
    with pytest.raises(ConfigError, match="needs a model"):
        ToolRetriever(TOOLS, config=RetrieverConfig(search="dense"))
    with pytest.raises(CheckpointError, match="no retriever here"):
        ToolRetriever.from_pretrained("/nowhere/at/all")
    with pytest.raises(ConfigError, match="search"):
        ToolRetriever.from_pretrained("x", serach="bm25")


def test_a_saved_retriever_answers_the_same(tmp_path):
    find = ToolRetriever(TOOLS)
    find.save_pretrained(tmp_path / "saved")
    again = ToolRetriever.from_pretrained(tmp_path / "saved")
    for query in ("weather in Rome", "money", "who"):
        assert again(query) == find(query)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").write_text("x")
    with pytest.raises(CheckpointError, match="taken"):
        find.save_pretrained(tmp_path / "other")


@pytest.fixture(scope="module")
def model():
    import torch
    from sentence_transformers.base.modules import Normalize

    from apps.tool_use.retriever_model import BiEncoder
    from apps.tool_use.retriever_subwords import SubwordEmbedding

    torch.manual_seed(0)
    texts = [document(tool) for tool in TOOLS]
    return BiEncoder(modules=[SubwordEmbedding(128, 4096).weigh(texts), Normalize()], device="cpu")


def test_a_dense_and_a_hybrid_ranking(model, tmp_path):
    for search in ("dense", "hybrid"):
        find = ToolRetriever(TOOLS, model, RetrieverConfig(search=search))
        assert find("weathers of places", k=1)[0].id == "getCurrentWeather", "letter groups find other forms of a word"
        find.save_pretrained(tmp_path / search)
        again = ToolRetriever.from_pretrained(tmp_path / search, device="cpu")
        assert again.search == search and again("money for a flight") == find("money for a flight")
    by_words, by_meaning = (ToolRetriever(TOOLS, model, RetrieverConfig(search=s)) for s in ("bm25", "dense"))
    both = ToolRetriever(TOOLS, model, RetrieverConfig(search="hybrid", weight=0.0))
    query = "a seat in the plane"
    assert both(query, k=1)[0].id == by_words(query, k=1)[0].id
    assert {found.id for found in by_meaning(query, k=4)} == set(Catalogue(TOOLS).ids)


def test_the_vector_of_a_text_is_the_sum_of_its_words_and_letter_groups(model):
    import torch

    table = model[0]
    assert list(table.parts("the plane")) == ["the", "plane", "<pla", "plan", "lane", "ane>"]
    assert list(table.parts("a")) == ["a"]
    made = table(table.preprocess(["the plane", "a"]))["sentence_embedding"]
    expected = table.table.weight[torch.tensor(table.ids("the plane"))].sum(0)
    assert torch.allclose(made[0], expected, atol=1e-6) and len(table.preprocess([""])["input_ids"]) == 1


def test_remembered_questions_vote_for_their_tools(model, tmp_path):
    import math

    from apps.tool_use.retriever_memory import SHARPNESS, Memory

    catalogue = Catalogue(TOOLS)
    known = [ToolQuery("umbrella today", ("getCurrentWeather",), catalogue),
             ToolQuery("umbrella tomorrow", ("getCurrentWeather", "send_message"), catalogue),
             ToolQuery("a holiday", ("book_flight",), catalogue), ToolQuery("unknown", (), catalogue)]  # fmt: skip
    memory = Memory([q.query for q in known[:3]], [q.gold for q in known[:3]])
    (hits,) = memory.votes(["umbrella tomorrow"], None, neighbours=5)
    first, second = memory.words.search(["umbrella tomorrow"], 2)[0]
    share = 1 / (1 + math.exp(SHARPNESS["words"] * (second.score - first.score)))
    assert dict(hits) == pytest.approx({"getCurrentWeather": 1.0, "send_message": share})
    for find in (ToolRetriever(catalogue), ToolRetriever(catalogue, model, RetrieverConfig(search="hybrid"))):
        assert find("umbrella", k=1) == [] or find.search == "hybrid"
        assert find.remember(known)("umbrella", k=1)[0].id == "getCurrentWeather"
        find.save_pretrained(tmp_path / find.search)
        again = ToolRetriever.from_pretrained(tmp_path / find.search, device="cpu")
        assert again("a holiday with an umbrella") == find("a holiday with an umbrella")
    with pytest.raises(DataError, match="no answered questions"):
        ToolRetriever(catalogue).remember(known[3:])
    with pytest.raises(DataError, match="no tool of the catalogue"):
        ToolRetriever(TOOLS[:1]).remember(known[2:])


# ---- training -------------------------------------------------------------------------------------------------------


def test_every_right_tool_is_a_row_and_negatives_are_wrong_tools():
    catalogue = Catalogue(TOOLS)
    examples = [ToolQuery("weather and a message", ("getCurrentWeather", "send_message"), catalogue)]
    rows = pairs(examples, negatives=2)
    assert [row.positive for row in rows] == [catalogue.texts[name] for name in examples[0].gold]
    wrong = {catalogue.texts["convert_currency"], catalogue.texts["book_flight"]}
    assert all(set(row.negatives) == wrong for row in rows)
    with pytest.raises(DataError, match="2 wrong tools"):
        pairs(examples, negatives=3)
    with pytest.raises(DataError, match="no question has a right tool"):
        pairs([ToolQuery("x", (), catalogue)])
    own = own_pairs(examples)
    assert len(own) == 8 and all(row.query not in row.positive for row in own)


def test_no_batch_holds_two_right_tools_of_one_question_or_one_tool_twice():
    from core.data.distinct import BatchOrder

    catalogue = Catalogue(TOOLS)
    names = catalogue.ids
    rows = pairs([ToolQuery(f"q{n}", (names[n % 4], names[(n + 1) % 4]), catalogue) for n in range(40)])
    order = BatchOrder(rows, 3, seed=1, distinct=True)
    made = order.batches()
    assert len(made) * 3 == len(order) >= 60
    for batch in made:
        assert len({rows[i].query for i in batch}) == len({rows[i].positive for i in batch}) == 3
    order.set_epoch(1)
    assert order.batches() != made and order.batches() == order.batches()
    with pytest.raises(DataError, match="no group of rows fills a batch of 5"):
        BatchOrder(rows, 5, seed=1, distinct=True)


def test_the_loss_is_the_one_worked_by_hand_and_a_large_batch_gives_the_same_gradient():
    import torch
    from sentence_transformers.sentence_transformer import losses

    from apps.tool_use.retriever_model import build_model
    from apps.tool_use.retriever_trainer import _columns
    from core.config.schema import ModelConfig
    from core.models.tokenizer import train_bpe

    catalogue = Catalogue(TOOLS)
    tokenizer = train_bpe(catalogue.texts.values(), 300)
    model = build_model(ModelConfig(preset="tiny"), tokenizer, device="cpu", seed=1).eval()
    rows = pairs([ToolQuery(f"about {name}", (name,), catalogue) for name in catalogue.ids])
    gradients = []
    for loss in (
        losses.MultipleNegativesRankingLoss(model, scale=20.0),
        losses.CachedMultipleNegativesRankingLoss(model, scale=20.0, mini_batch_size=2),
    ):
        model.zero_grad()
        inputs = _columns(model, rows)["columns"]
        value = loss(inputs, None)
        value.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        with torch.no_grad():
            q, d = (model(column)["sentence_embedding"] for column in _columns(model, rows)["columns"])
            expected = torch.nn.functional.cross_entropy(q @ d.T / 0.05, torch.arange(4))
        assert float(value.detach()) == pytest.approx(float(expected), abs=1e-4)
    assert torch.allclose(*gradients, atol=1e-5) and gradients[0].abs().sum() > 0


def test_columns_in_one_pass_give_the_loss_and_gradient_of_each_alone():
    import torch
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    from apps.tool_use.retriever_model import build_model
    from apps.tool_use.retriever_trainer import WORTH_A_PASS, _columns, together
    from core.config.schema import ModelConfig
    from core.models.tokenizer import train_bpe

    catalogue = Catalogue(TOOLS)
    model = build_model(ModelConfig(preset="tiny"), train_bpe(catalogue.texts.values(), 300), device="cpu").eval()
    model.tokenizer.padding_side = "right"
    rows = pairs([ToolQuery(f"about {name}", (name,), catalogue) for name in catalogue.ids], 1)
    found = []
    for way in (lambda columns: columns, lambda columns: together(model, columns)):
        model.zero_grad()
        columns = way(_columns(model, rows)["columns"])
        embedded = "sentence_embedding" in columns[0]
        value = MultipleNegativesRankingLoss(torch.nn.Identity() if embedded else model)(columns, None)
        value.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((embedded, float(value.detach()), gradient))
    assert [embedded for embedded, _, _ in found] == [False, True]
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-5)
    torch.testing.assert_close(found[0][2], found[1][2], atol=1e-5, rtol=1e-4)
    columns = _columns(model, rows)["columns"]
    model.tokenizer.padding_side = "left"
    assert together(model, columns) is columns, "padding on both sides would move the text"
    model.tokenizer.padding_side = "right"
    wide = [{"input_ids": torch.zeros(2, WORTH_A_PASS, dtype=torch.long)}] * 2
    assert together(model, wide) is wide and together(model, [{"input_ids": torch.zeros(4)}])[0]["input_ids"].ndim == 1


def test_training_from_nothing_learns_and_opens_again(tmp_path):
    from apps.tool_use import RETRIEVAL
    from core.config.load import recipe_from
    from core.config.registry import app_of
    from core.config.run_folder import RunFolder
    from core.config.typed import Places
    from core.training.run import train

    raw = {
        "version": 1, "app": "tool_use", "output": str(tmp_path / "run"),
        "model": {"preset": "tiny", "tokenizer": "bpe:400",
                  "edits": [{"kind": "bi_encoder", "encoder": "subwords", "width": 32, "rows": 4096}]},
        "data": {"train": [{"reader": "embedded", "split": "train", "limit": 200}],
                 "eval": [{"reader": "embedded", "split": "dev"}], "packing": False, "max_length": 128},
        "method": "tool_use.retriever", "with": {"documents": True},
        "train": {"epochs": 4, "lr": 3e-3, "batch": {"size": 4, "unit": "rows"}},
        "eval": {"metrics": ["sufficiency@1"], "select": "loss", "every": 0},
    }  # fmt: skip
    recipe = recipe_from(raw, Places("test"))
    assert app_of(recipe) is RETRIEVAL
    result = train(recipe, RunFolder.create(recipe))
    examples = load_queries(None, "embedded", split="dev")

    def score(**settings):
        with ToolRetriever.from_pretrained(result_folder(tmp_path), device="cpu", **settings) as again:
            report = RetrievalEvaluator(["sufficiency@1"]).score(again.predict(examples), examples)
        return report.metrics["sufficiency@1"].value

    assert score() == result["after"].metrics["sufficiency@1"].value, "what was served is what was saved"
    assert score(search="dense") > score(search="bm25") + 10


def result_folder(tmp_path):
    return next(path.parent for path in (tmp_path / "run").rglob("run.json"))


def test_a_transformer_opens_in_sentence_transformers_with_its_adapters_folded_in(tmp_path):
    import numpy as np
    import torch
    from sentence_transformers import SentenceTransformer

    from apps.tool_use.retriever_model import build_model
    from core.config.schema import AdapterConfig, ModelConfig
    from core.models.tokenizer import train_bpe
    from core.training.build import add_adapters

    tokenizer = train_bpe(Catalogue(TOOLS).texts.values(), 300)
    spec_ = ModelConfig(preset="tiny", edits=[{"kind": "bi_encoder", "pooling": "last"}])
    plain = build_model(spec_, tokenizer, device="cpu", seed=1)
    model = add_adapters(build_model(spec_, tokenizer, device="cpu", seed=1), [AdapterConfig(kind="lora", r=2)])
    assert not model[0].model.get_input_embeddings().weight.requires_grad
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    ToolRetriever(TOOLS, model).save_pretrained(tmp_path / "saved")
    texts = ["weather", "a flight to Rome"]
    found = SentenceTransformer(str(tmp_path / "saved"), device="cpu").encode(texts, normalize_embeddings=True)
    assert np.allclose(found, model.encode(texts, normalize_embeddings=True), atol=1e-5)
    assert not np.allclose(found, plain.encode(texts, normalize_embeddings=True), atol=1e-2)
    assert [type(part).__name__ for part in model] == ["Transformer", "Pooling", "Normalize"]
