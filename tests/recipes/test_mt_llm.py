"""MT-LLM as a recipe: three stages that train, resume, are opened by a pipeline, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tr

from apps.lm import StackPipeline
from apps.lm.stacked.data import READERS, StackExample, topic
from apps.lm.stacked.evaluator import StackEvaluator
from apps.lm.stacked.model import Reader, build_model
from apps.lm.stacked.options import EncoderOptions
from core.config.load import load_recipe, recipe_from, smoke
from core.config.run_folder import RunFolder
from core.config.schema import ModelConfig
from core.data.rows import BadRows
from core.errors import (
    AppInputError,
    CheckpointError,
    ConfigError,
    DataError,
    GraftError,
    LanguageError,
    UnsupportedError,
)
from core.models.tokenizer import train_bpe
from core.training.evaluate import evaluate
from core.training.run import plan, train
from recipes.catalogue import find
from recipes.cli import main

ROOT = Path(__file__).parents[2]
WORDS = {"animal": ("dog", "cat", "Hund", "Katze"), "food": ("apple", "cake", "Apfel", "Kuchen")}
STAGES = ("lm.stack", "lm.stack_tune", "lm.stack_task")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for number in range(24):
        label = ("animal", "food")[number % 2]
        own = WORDS[label][number // 2 % 2]
        rows.append({"text": f"I see the {own} number {number}.", "label": label})
    other = [
        {"text": f"Ich sehe {WORDS[label][2]} {n}.", "lang": "de", "label": label,
         "english": f"I see the {WORDS[label][0]} number {n}."} for n, label in enumerate(("animal", "food", "animal"))
    ]  # fmt: skip
    for name, part in (("train", rows), ("dev", [*rows[:4], *other])):
        (folder / f"texts.{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """The folder of a small sequence-to-sequence model with a tokenizer of its own."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    tokenizer = train_bpe(["Ich sehe den Hund und die Katze. I see the dog and the cat."] * 4, 300)
    config = tr.M2M100Config(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=128, dropout=0.0,
    )  # fmt: skip
    tr.M2M100ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def raw(output, texts, encoder, stages=STAGES, steps=3, **more):
    adapter = {"kind": "lora", "r": 4, "alpha": 8}
    model = {"preset": "tiny", "tokenizer": "bpe:300", "edits": [{"kind": "mt_encoder", "path": str(encoder)}],
             "adapters": [adapter]}  # fmt: skip
    sources = {name: [{"reader": "jsonl", "path": str(texts / "texts.jsonl"), "split": split}]
               for name, split in (("train", "train"), ("eval", "dev"))}  # fmt: skip
    made = {
        "app": "lm",
        "output": str(output),
        "model": model | more.pop("model", {}),
        "data": {**sources, "max_length": 64, **more.pop("data", {})},
        "stages": [{"method": stage} if isinstance(stage, str) else stage for stage in stages],
        "train": {"max_steps": steps, "lr": 1e-2, "batch": {"size": 8}, **more.pop("train", {})},
        "eval": {"every": 0},
        "checkpoint": {"every": 1, "mode": "sync"},
    }
    return {**made, **more}


def trained(*args, **kwargs):
    run = RunFolder.create(recipe_from(raw(*args, **kwargs)))
    return run, train(run.recipe(), run)


def test_the_chain_learns_and_opens_as_it_was(tmp_path, data, encoder):
    run, result = trained(tmp_path / "run", data, encoder, steps=40)
    losses = {}
    for row in run.read_metrics():
        if "loss" in row:
            losses.setdefault(row["stage"], []).append(row)
    for stage in ("stack", "stack_tune", "stack_task"):
        assert losses[stage][-1]["loss"] < losses[stage][0]["loss"], stage
    assert "unexplained" in losses["stack"][-1]
    before, after = result["before"].metrics, result["after"].metrics
    assert after["unexplained/en"].value < before["unexplained/en"].value
    assert before["accuracy"].value is None and after["accuracy_direct/en"].value == 1.0
    assert {"found/de", "found_direct/de", "accuracy/de"} <= after.keys()
    with StackPipeline.from_pretrained(run.path) as read:
        vectors = read(["Ich sehe Hund 0.", "Ich sehe Apfel 1."], lang="de")
        assert vectors.shape == (2, 64) and vectors.dtype == np.float32
        np.testing.assert_allclose(read("Ich sehe Apfel 1.", lang="de"), vectors[1], atol=1e-5)
        ((label, share),) = read.classify(["I see the dog number 1."])
        assert label in ("animal", "food") and 0.5 <= share <= 1
        assert read.direct("I see the dog number 1.").shape == (64,)
        read.save_pretrained(tmp_path / "again")
        with StackPipeline.from_pretrained(tmp_path / "again") as other:
            np.testing.assert_array_equal(other(["Ich sehe Hund 0.", "Ich sehe Apfel 1."], lang="de"), vectors)
    scored = evaluate(run.path)
    assert scored.metrics["accuracy_direct"].value == after["accuracy_direct"].value
    names = {p.relative_to(run.model_dir).parts[0] for p in run.model_dir.rglob("*.safetensors")}
    assert names == {"projection.safetensors", "adapter", "task", "llm"}, "the encoder stays where it is"
    sizes = [p.stat().st_size for p in (run.path / "stages").rglob("*.safetensors")]
    assert max(sizes) < 200_000, "no checkpoint holds a base"


@pytest.mark.parametrize("after", [2, 5, 8])
def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path, data, encoder, monkeypatch, after):
    from core.training.trainer import SupervisedTrainer

    whole, _ = trained(tmp_path / "whole", data, encoder)
    original, calls = SupervisedTrainer.training_step, []

    def fails(self, *args, **kwargs):
        calls.append(1)
        if len(calls) > after:
            raise RuntimeError("killed")
        return original(self, *args, **kwargs)

    broken = RunFolder.create(recipe_from(raw(tmp_path / "broken", data, encoder)))
    monkeypatch.setattr(SupervisedTrainer, "training_step", fails)
    with pytest.raises(RuntimeError, match="killed"):
        train(broken.recipe(), broken)
    monkeypatch.setattr(SupervisedTrainer, "training_step", original)
    train(broken.recipe(), broken, resume=True)
    texts = ["I see the cake.", "I see the dog number 3."]
    found = []
    for run in (whole, broken):
        with StackPipeline.from_pretrained(run.path) as read:
            found.append((read(texts), read.direct(texts), read.classify(texts)))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])
    assert found[0][2] == found[1][2]


@pytest.mark.parametrize("stages", [STAGES[:1], STAGES])
def test_a_step_does_not_depend_on_how_it_is_cut(tmp_path, data, encoder, stages):
    found = []
    for micro, accumulation in ((8, 1), (4, 2)):
        batch = {"size": 8, "micro": micro}
        run, _ = trained(tmp_path / str(micro), data, encoder, stages, train={"batch": batch})
        assert json.loads((run.path / "plan.json").read_text())["accumulation"] == accumulation
        with StackPipeline.from_pretrained(run.path) as read:
            found.append(read(["I see the cake."]))
    np.testing.assert_allclose(found[0], found[1], atol=2e-4)


@pytest.mark.parametrize("base", [{"path": "embedded", "preset": None, "tokenizer": None}, {}], ids=["path", "preset"])
def test_a_quantized_base_with_recomputed_activations(tmp_path, data, encoder, base):
    model = {**base, "quantization": "graft:nf4"}
    backend = {"activation_checkpoint": "full"}
    run, result = trained(tmp_path / "run", data, encoder, model=model, backend=backend)
    assert result["status"] == "done"
    after = result["after"].metrics["unexplained"].value
    assert evaluate(run.path).metrics["unexplained"].value == pytest.approx(after, rel=1e-3)
    assert (run.model_dir / "llm").is_dir() == (not base)


def test_measuring_on_the_way_changes_nothing(tmp_path, data, encoder):
    found = []
    for name, config in (("plain", {"every": 0}), ("measured", {"every": 1, "select": "found", "max_seconds": 60})):
        run, _ = trained(tmp_path / name, data, encoder, eval=config)
        assert any(run.path.rglob("checkpoints/best")) == (name == "measured")
        state = run.stage_dir(0, "stack") / "checkpoints" / "checkpoint-3"
        found.append((state / "adapter" / "adapter_model.safetensors").read_bytes())
    assert found[0] == found[1]


def test_the_loss_of_held_out_texts_is_that_of_their_english(tmp_path, data, encoder):
    rows = [json.loads(line) for line in (data / "texts.dev.jsonl").read_text().splitlines()]
    foreign = data / "foreign.jsonl"
    foreign.write_text("".join(json.dumps(row) + "\n" for row in rows if row.get("lang") == "de"))
    source = {"eval": [{"reader": "jsonl", "path": str(foreign)}]}
    run, _ = trained(tmp_path / "run", data, encoder, data=source, eval={"every": 1})
    assert {p.parent.parent.name for p in run.path.rglob("checkpoints/best")} == {
        "00-stack", "01-stack_tune", "02-stack_task",
    }  # fmt: skip


TWO = """
import sys
sys.path.insert(0, {root!r})
from core.config.run_folder import RunFolder
from core.training.run import train

run = RunFolder({run!r})
train(run.recipe(), run)
"""


def test_two_processes_learn_what_one_learns(tmp_path, data, encoder):
    def new(name):
        batch = {"size": 8, "micro": 4 if name == "two" else 8}
        more = {"train": {"batch": batch}, "backend": {"strategy": "auto", "device": "cpu"}}
        return RunFolder.create(recipe_from(raw(tmp_path / name, data, encoder, **more)))

    alone, two = new("alone"), new("two")
    train(alone.recipe(), alone)
    script = tmp_path / "two.py"
    script.write_text(TWO.format(root=str(ROOT), run=str(two.path)))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, str(script)], env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    found = []
    for run in (alone, two):
        with StackPipeline.from_pretrained(run.path) as read:
            found.append(read(["I see the cake.", "I see the dog number 3."]))
    np.testing.assert_allclose(found[0], found[1], atol=1e-3)


def test_a_run_goes_on_from_a_stack_that_was_saved(tmp_path, data, encoder):
    first, _ = trained(tmp_path / "first", data, encoder, STAGES[:1])
    model = {"preset": None, "tokenizer": None, "path": str(first.path)}
    second, result = trained(tmp_path / "second", data, encoder, STAGES[1:], model=model)
    assert result["status"] == "done"
    with StackPipeline.from_pretrained(second.path) as read:
        assert read.classify("I see the dog.")[0] in ("animal", "food")


def test_the_shipped_recipe_is_checked_and_planned(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["check", "methods/mt_llm"]) == 0 and "3 stage(s)" in capsys.readouterr().out
    assert main(["plan", "methods/mt_llm"]) == 2 and "edited model is not predicted" in capsys.readouterr().err
    small = smoke(load_recipe(find("methods/mt_llm")))
    stages = plan(small)["stages"]
    assert [row["method"] for row in stages] == list(STAGES) and all(row["tokens"] for row in stages)


ADAPTER = {"kind": "lora", "r": 4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"edits": []}}, "no encoder stands under"),
        ({"model": {"adapters": []}}, "its own teacher"),
        ({"model": {"adapters": [{"kind": "prefix"}]}}, "no stacked model was tried"),
        ({"model": {"adapters": [ADAPTER, ADAPTER]}}, "stands alone"),
        ({"model": {"adapters": [{**ADAPTER, "path": "runs/x"}]}}, "stands alone"),
        ({"stages": [{"method": "lm.stack", "data": {"packing": True}}]}, "data.packing"),
        ({"data": {"streaming": True}}, "data.streaming"),
        ({"train": {"label_smoothing": 0.1}}, "label_smoothing"),
        ({"train": {"batch": {"size": 64, "unit": "tokens"}}}, "unit"),
        ({"backend": {"compile": "blocks"}}, "compile"),
        ({"stages": [{"method": "lm.stack", "with": {"englisch": "en"}}]}, "unknown key 'englisch'"),
        ({"model": {"edits": [{"kind": "mt_encoder", "template": "{txt}"}]}}, "fields are {text} and {lang}"),
        ({"model": {"edits": [{"kind": "mt_encoder", "template": "[{lang}]"}]}}, "no place for the text"),
        ({"model": {"edits": [{"kind": "mt_encoder", "codes": {"en": 3}}]}}, "the code of 'en' is 3"),
        ({"model": {"edits": [{"kind": "mt_encoder", "path": ""}]}}, "the encoder has no path"),
        ({"model": {"edits": [{"kind": "mt_encoder", "pth": "x"}]}}, "unknown key 'pth'"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_when_it_is_read(tmp_path, data, encoder, change, message):
    with pytest.raises(GraftError) as caught:
        recipe_from(raw(tmp_path, data, encoder, **change))
    assert message in str(caught.value) and caught.value.where and caught.value.hint


def test_mistakes_are_told_before_training(tmp_path, data, encoder):
    def fails(error, match, name, *args, **more):
        with pytest.raises(error, match=match):
            trained(tmp_path / name, data, encoder, *args, **more)

    fails(ConfigError, "tuned for no task", "early", STAGES[2:])
    french = [{"method": "lm.stack", "with": {"english": "fr"}}]
    fails(DataError, "none of 24 texts is in 'fr'", "fr", french)
    gone = {"edits": [{"kind": "mt_encoder", "path": str(tmp_path / "nothing")}]}
    fails(CheckpointError, "model folder not found", "gone", model=gone)
    two = {"edits": [{"kind": "mt_encoder", "path": str(encoder)}, {"kind": "ladder", "layers": 1}]}
    fails(ConfigError, "'ladder' is not for stacked models", "two", model=two)
    one_class = data / "one.jsonl"
    one_class.write_text('{"text": "I see the dog.", "label": "animal"}\n')
    source = {"train": [{"reader": "jsonl", "path": str(one_class)}], "eval": []}
    fails(DataError, "the texts have 1 classes", "one", STAGES[1:2], data=source)
    lone = raw(tmp_path / "lone", data, encoder)
    lone |= {"stages": [], "method": "lm.pretrain", "data": {"train": [{"reader": "embedded", "limit": 20}]}}
    run = RunFolder.create(recipe_from(lone))
    with pytest.raises(ConfigError, match="makes a stacked model"):
        train(run.recipe(), run)


def test_other_pipelines_and_merging_say_what_it_is(tmp_path, data, encoder):
    from apps.lm import LmPipeline
    from core.errors import MergeError
    from core.training.merge import merge

    run, _ = trained(tmp_path / "run", data, encoder, STAGES[:1], steps=1)
    with pytest.raises(CheckpointError, match="continues no text") as caught:
        LmPipeline.from_pretrained(run.path)
    assert "StackPipeline" in caught.value.hint
    with pytest.raises(MergeError, match="beside its two bases"):
        merge(run.path, tmp_path / "merged")


def test_a_pipeline_refuses_what_it_cannot_read(tmp_path, data, encoder):
    run, _ = trained(tmp_path / "run", data, encoder, STAGES[:1], steps=1)
    read = StackPipeline.from_pretrained(run.path)
    with pytest.raises(UnsupportedError, match="no task"):
        read.classify("I see the dog.")
    for given in (["a", " "], 3, [None]):
        with pytest.raises(AppInputError):
            read(given)
    with pytest.raises(ConfigError, match="batsch"):
        StackPipeline.from_pretrained(run.path, batsch=3)
    read.close()
    with pytest.raises(GraftError, match="closed"):
        read("a")
    with pytest.raises(CheckpointError, match="no stacked model"):
        StackPipeline.from_pretrained("embedded")


class Nllb:
    """A tokenizer that has to be told the language."""

    all_special_tokens = ("<s>", "eng_Latn", "deu_Latn")
    src_lang = "eng_Latn"

    def get_vocab(self):
        return {"eng_Latn": 0, "deu_Latn": 1, "a": 2}

    def __call__(self, text, truncation=False, max_length=None):
        ids = [self.get_vocab()[self.src_lang], *(2 for _ in text)]
        return {"input_ids": ids[:max_length] if truncation else ids}


def test_the_encoder_is_told_the_language():
    reader = Reader(EncoderOptions(codes={"en": "eng_Latn", "de": "deu_Latn"}), Nllb())
    assert reader.ids("aa", "de", 10) == ([1, 2, 2], 0) and reader.ids("aaaa", "en", 3) == ([0, 2, 2], 2)
    with pytest.raises(LanguageError, match="no language 'fr'"):
        reader.ids("a", "fr", 10)


@pytest.mark.parametrize("preset", ["tiny", "tiny-gpt2"])
@pytest.mark.parametrize("attention", ["auto", "eager"])
def test_attention_in_both_directions_is_tried_out(preset, attention):
    tokenizer = train_bpe(["I see the dog."] * 4, 280)
    config = ModelConfig(preset=preset, attention=attention, edits=[{"kind": "mt_encoder"}])
    try:
        model = build_model(config, tokenizer, device="cpu")
    except UnsupportedError as error:
        assert "both directions" in str(error)
        return
    ids, other = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[5, 6, 7, 9]])
    part, mask = torch.tensor([[1, 1, 1, 0]]), torch.ones(1, 4, dtype=torch.long)
    assert torch.allclose(model.teacher(ids, part), model.teacher(other, part), atol=1e-5)
    assert not torch.allclose(model.teacher(ids, mask), model.teacher(other, mask), atol=1e-5)


def predictions(vectors, english, direct=None):
    direct = vectors if direct is None else direct
    return [{"vector": v, "english": e, "direct": d} for v, e, d in zip(vectors, english, direct)]


def test_figures_of_known_vectors():
    english = [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]
    texts = [StackExample(str(i), lang="de", english=str(i)) for i in range(4)]
    same = StackEvaluator().score(predictions(english, english, english[1:] + english[:1]), texts).metrics
    assert same["found"].value == 1 and same["found_direct"].value == 0 and same["unexplained"].value == 0
    mean = StackEvaluator(["unexplained"]).score(predictions([[0.0, 0.0]] * 4, english), texts).metrics
    assert mean["unexplained"].value == pytest.approx(1.0) and not mean["unexplained"].higher_is_better
    # rows without their English count for nothing
    more = [*predictions(english, english), {"vector": [9.0, 9.0], "english": None, "direct": [9.0, 9.0]}]
    found = StackEvaluator(["found"]).score(more, [*texts, StackExample("x", lang="fr")]).metrics
    assert found["found"].n == 4 and found["found"].value == 1
    skipped = StackEvaluator().score(more[-1:], [StackExample("x")]).metrics
    assert skipped["found"].value is None and "English" in skipped["found"].skipped
    with pytest.raises(DataError, match="vectors of one length"):
        StackEvaluator().score(predictions([[1.0], [1.0, 2.0], [1.0], [1.0]], english), texts)
    labelled = [StackExample("a", english="a", label="x"), StackExample("b", english="b")]
    rows = [{**row, "label": "x", "direct_label": "y"} for row in predictions(english[:2], english[:2])]
    tasks = StackEvaluator().score(rows, labelled).metrics
    assert (tasks["accuracy"].value, tasks["accuracy"].n, tasks["accuracy_direct"].value) == (1.0, 1, 0.0)


def rows_of(reader, path=None, on_bad="raise", **more):
    bad = BadRows(on_bad)
    return list(READERS.get(reader)(None if path is None else str(path), on_bad=bad, **more)), bad.count


def test_readers(tmp_path):
    (tmp_path / "a.txt").write_text("The dog.\n\nThe cat.\n")
    assert [e.english for e in rows_of("text", tmp_path / "a.txt")[0]] == ["The dog.", "The cat."]
    assert rows_of("text", tmp_path / "a.txt", lang="de")[0][0].english == ""
    (tmp_path / "val.de").write_text("Der Hund.\n\n")
    (tmp_path / "val.en").write_text("The dog.\nThe cat.\n")
    (only,), count = rows_of("parallel", tmp_path / "val", on_bad="skip", lang="de")
    assert (only.text, only.lang, only.english, count) == ("Der Hund.", "de", "The dog.", 1)
    (tmp_path / "val.fr").write_text("Le chien.\n")
    with pytest.raises(DataError, match="1 lines beside 2"):
        rows_of("parallel", tmp_path / "val", lang="fr")
    for lang, text in (("english", "good"), ("javanese", "apik")):
        (tmp_path / lang).mkdir()
        (tmp_path / lang / "train.csv").write_text(f"id,text,label\n7,{text},positive\n8,,neutral\n")
    (row,), count = rows_of("nusax", tmp_path, on_bad="skip", lang="javanese")
    assert (row.text, row.lang, row.english, row.label, count) == ("apik", "javanese", "good", "positive", 1)
    assert rows_of("nusax", tmp_path, on_bad="skip")[0][0].lang == "en"
    (tmp_path / "javanese" / "train.csv").write_text("a,b\n1,2\n")
    for reader, path, more in (
        ("nusax", tmp_path, {"lang": "javanese"}),
        ("nusax", tmp_path, {"lang": "dutch"}),
        ("text", tmp_path / "nothing.txt", {}),
        ("embedded", None, {"split": "validation"}),
    ):
        with pytest.raises(DataError):
            rows_of(reader, path, **more)
    (tmp_path / "bad.jsonl").write_text('{"text": " "}\n{"text": "a", "lang": 3}\n{"text": "b"}\n')
    (row,), count = rows_of("jsonl", tmp_path / "bad.jsonl", on_bad="skip")
    assert (row.english, count) == ("b", 2)
    pairs = rows_of("embedded", split="dev")[0]
    assert {e.lang for e in pairs} == {"de", "en"} and pairs[0].english == pairs[1].text
    assert {e.label for e in pairs} >= {"animal", "food", "thing", "place", "person"}


@pytest.mark.parametrize(
    ("sentence", "about"),
    [("The dog sleeps.", "animal"), ("I eat the apples in the garden.", ""), ("A man meets my aunt.", "person"),
     ("I sleep.", ""), ("A man bakes the cake.", "food")],
)  # fmt: skip
def test_topics(sentence, about):
    assert topic(sentence) == about
