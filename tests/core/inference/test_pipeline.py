"""The pipeline's base: shapes, configuration, batching, and folders that load as they were saved."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest
import torch

from core.config.schema import ModelConfig
from core.data.segments import Segment
from core.errors import AppInputError, BackendUnavailable, CheckpointError, ConfigError, DataError
from core.inference.batching import length_buckets, padding_share
from core.inference.engines.replay import ReplayEngine
from core.inference.engines.script import ScriptEngine
from core.inference.engines.tiny import TinyEngine
from core.inference.pipeline import BasePipeline, PipelineConfig
from core.inference.request import Request, SamplingParams
from core.models.load import load_model
from core.models.tokenizer import train_bpe


@dataclasses.dataclass(frozen=True)
class Line:
    text: str
    mood: str = ""


@dataclasses.dataclass(frozen=True)
class EchoConfig(PipelineConfig):
    prefix: str = "say: "


class EchoPipeline(BasePipeline):
    app = "echo"
    example_cls = Line
    config_cls = EchoConfig

    def to_example(self, given, **fields):
        return Line(given, **fields) if isinstance(given, str) else super().to_example(given)

    def prepare(self, example):
        if not example.text:
            return Request([], meta={"answer": "nothing to say"})
        return self.request([Segment(self.config.prefix + example.text)], mood=example.mood)


@pytest.fixture(scope="module")
def model_and_tokenizer():
    tokenizer = train_bpe(["say: hello world"], 300)
    return load_model(ModelConfig(preset="tiny"), tokenizer, seed=1).eval(), tokenizer


@pytest.fixture
def pipeline(model_and_tokenizer):
    return EchoPipeline.from_model(*model_and_tokenizer, max_new_tokens=8)


def test_the_shape_of_the_output_mirrors_the_input(pipeline):
    one = pipeline("hello")
    assert pipeline(["hello"])[0].text == one.text == pipeline({"text": "hello"}).text == pipeline(Line("hello")).text
    assert pipeline([]) == []
    assert one.meta["prompt"] == "say: hello" and one.meta["tokens"] <= 8 and one.timings["ms"] > 0
    assert pipeline("", max_new_tokens=1).text == "nothing to say"


def test_fields_of_a_call_reach_the_example_and_the_sampling_and_change_nothing_else(pipeline):
    before = pipeline.config
    result = pipeline("hello", mood="glad", max_new_tokens=2)
    assert result.meta["mood"] == "glad" and result.meta["tokens"] <= 2
    assert pipeline.config is before
    with pytest.raises(dataclasses.FrozenInstanceError):
        pipeline.config.beams = 2


def test_unknown_settings_name_the_nearest(model_and_tokenizer):
    with pytest.raises(ConfigError, match="prefix"):
        EchoPipeline.from_model(*model_and_tokenizer, prefx="x")
    with pytest.raises(ConfigError, match="offsets, pieces"):
        EchoPipeline.from_model(*model_and_tokenizer, mode="offset")
    with pytest.raises(ConfigError, match="replay"):
        EchoPipeline.from_pretrained("embedded", engine="replya")
    with pytest.raises(AppInputError, match="int"):
        EchoPipeline.from_model(*model_and_tokenizer)(7)


def test_sampling_set_in_the_configuration_is_used(model_and_tokenizer):
    hot = EchoPipeline.from_model(*model_and_tokenizer, max_new_tokens=8, temperature=1.0, seed=3)
    greedy = EchoPipeline.from_model(*model_and_tokenizer, max_new_tokens=8)
    assert hot("hello").text == hot("hello").text == greedy("hello", temperature=1.0, seed=3).text
    assert hot("hello").text != greedy("hello").text
    with pytest.raises(ConfigError):
        hot("hello", beams="many")


def test_batches_keep_the_order_and_equal_single_calls(pipeline):
    rng = random.Random(0)
    inputs = ["x" * rng.randint(1, 40) + str(i) for i in range(23)]
    singly = [pipeline(text).text for text in inputs]
    assert [r.text for r in pipeline.batch(iter(inputs), max_tokens=120, max_size=4, window=10)] == singly
    loose = [r.meta["prompt"] for r in pipeline.batch(inputs, max_tokens=120, ordered=False)]
    assert sorted(loose) == sorted("say: " + text for text in inputs)


def test_batches_are_lazy(pipeline):
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield "hello"

    results = pipeline.batch(endless(), window=4)
    next(results)
    assert len(taken) == 4


def test_a_stream_ends_with_the_result_of_a_call(pipeline):
    for text in ("hello", ""):
        *events, done = pipeline.stream(text)
        assert done.kind == "done" and done.result.text == pipeline(text).text
        assert "".join(e.text for e in events).strip() == done.text


def test_scores_use_the_ids_of_training_and_do_not_depend_on_company(pipeline):
    inputs, targets = ["hello", "world", "a"], [" hello", " world wide", "b"]
    together = pipeline.score(inputs, targets)
    assert together == pytest.approx([pipeline.score([i], [t])[0] for i, t in zip(inputs, targets)], abs=1e-5)
    prompt = pipeline.prepare(Line("hello"))
    ids = pipeline.tokenizer(prompt.text + " hello")["input_ids"]
    with torch.no_grad():
        steps = pipeline.engine.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = [float(steps[t - 1, ids[t]]) for t in range(len(prompt.ids), len(ids))]
    assert together[0] == pytest.approx(sum(expected) / len(expected), abs=1e-5)
    with pytest.raises(AppInputError, match="input 1"):
        pipeline.score(["a", "b"], ["c", " "])
    with pytest.raises(AppInputError, match="2 inputs for 1"):
        pipeline.score(["a", "b"], ["c"])


def test_full_weights_load_as_they_were_saved(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "model")
    again = EchoPipeline.from_pretrained(tmp_path / "model", device="cpu")
    assert again.config == pipeline.config
    assert again("hello").text == pipeline("hello").text
    with pytest.raises(ConfigError, match="bf16"):
        EchoPipeline.from_pretrained(tmp_path / "model", device="cpu", dtype="bf61")
    half = EchoPipeline.from_pretrained(tmp_path / "model", device="cpu", dtype="bf16")
    assert {p.dtype for p in half.engine.model.parameters()} == {torch.bfloat16} and half("hello").text is not None
    assert EchoPipeline.from_pretrained(tmp_path / "model", device="cpu", prefix="> ").config.prefix == "> "
    (tmp_path / "run.json").write_text("{}")
    assert EchoPipeline.from_pretrained(tmp_path, device="cpu")("hello").text == pipeline("hello").text
    pipeline.save_pretrained(tmp_path / "model")
    assert not list(tmp_path.glob(".*.tmp"))


def test_another_apps_model_and_a_taken_place_are_refused(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "model")
    card = tmp_path / "model" / "graft_pipeline.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "app": "rtl"}))
    with pytest.raises(CheckpointError, match="'rtl'"):
        EchoPipeline.from_pretrained(tmp_path / "model", device="cpu")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("dear diary")
    with pytest.raises(CheckpointError, match="taken"):
        pipeline.save_pretrained(tmp_path / "notes")
    assert (tmp_path / "notes" / "diary.txt").exists()
    with pytest.raises(CheckpointError):
        EchoPipeline.from_pretrained(tmp_path / "nothing here", device="cpu")


def adapted(seed=1, **lora):
    from peft import LoraConfig, get_peft_model

    tokenizer = train_bpe(["say: hello world"], 300)
    model = load_model(ModelConfig(preset="tiny"), tokenizer, seed=seed)
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **lora))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_(0, 0.3)
    return EchoPipeline.from_model(model.eval(), tokenizer, max_new_tokens=12)


@pytest.mark.parametrize("lora", [{}, {"modules_to_save": ["embed_tokens"]}], ids=["lora", "with trained embeddings"])
def test_an_adapter_whose_base_is_only_in_memory_carries_it(tmp_path, monkeypatch, lora):
    def refuse(*arguments):
        raise AssertionError("saving asked the network")

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("peft.utils.other.file_exists", refuse)
    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", refuse)
    pipeline = adapted(**lora)
    pipeline.save_pretrained(tmp_path / "a")
    assert (tmp_path / "a" / "base" / "config.json").is_file()
    again = EchoPipeline.from_pretrained(tmp_path / "a", device="cpu")
    again.save_pretrained(tmp_path / "b")
    third = EchoPipeline.from_pretrained(tmp_path / "b", device="cpu")
    texts = ["hello", "a long way from home"]
    expected = [r.text for r in pipeline(texts)]
    assert [r.text for r in again(texts)] == expected == [r.text for r in third(texts)]
    with pipeline.engine.model.disable_adapter():
        plain = [r.text for r in pipeline(texts)]
    assert plain != expected, "the adapter changes nothing: the test shows nothing"


def test_an_adapter_on_a_base_on_disk_names_it(tmp_path, model_and_tokenizer):
    from peft import LoraConfig, get_peft_model

    EchoPipeline.from_model(*model_and_tokenizer).save_pretrained(tmp_path / "base")
    base = EchoPipeline.from_pretrained(tmp_path / "base", device="cpu")
    config = LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear", task_type="CAUSAL_LM")
    pipeline = EchoPipeline.from_model(get_peft_model(base.engine.model, config), base.tokenizer, max_new_tokens=6)
    pipeline.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "base").exists()
    assert EchoPipeline.from_pretrained(tmp_path / "adapter", device="cpu")("hello").text == pipeline("hello").text
    given = EchoPipeline.from_pretrained(tmp_path / "base", device="cpu", adapter=str(tmp_path / "adapter"))
    assert given("hello", max_new_tokens=6).text == pipeline("hello").text


def test_closing_ends_the_pipeline(model_and_tokenizer):
    with EchoPipeline(TinyEngine(), None) as pipeline:
        assert isinstance(pipeline, EchoPipeline)
    with pytest.raises(BackendUnavailable):
        pipeline.engine.score([([1], [2])])


def test_a_recording_answers_without_weights_and_never_invents(pipeline, tmp_path):
    file = tmp_path / "trace.jsonl"
    recording = EchoPipeline(ReplayEngine(file, recorder=pipeline.engine), pipeline.tokenizer, pipeline.config)
    live = [r.text for r in recording(["hello", "wörld"])]
    recording("hello")
    assert len(file.read_text(encoding="utf-8").splitlines()) == 2
    replayed = EchoPipeline.from_pretrained(file, engine="replay", max_new_tokens=8)
    assert [r.text for r in replayed(["hello", "wörld"])] == live
    *events, done = replayed.stream("hello")
    assert done.result.text == live[0]
    with pytest.raises(BackendUnavailable, match="no recorded answer"):
        replayed("never asked")
    with pytest.raises(BackendUnavailable, match="no recorded answer"):
        replayed("hello", temperature=0.5)
    with open(file, "a") as handle:
        handle.write('{"key": "half a li')
    assert EchoPipeline.from_pretrained(file, engine="replay", max_new_tokens=8)("hello").text == live[0]
    recording = EchoPipeline(ReplayEngine(file, recorder=pipeline.engine), pipeline.tokenizer, pipeline.config)
    recording("third")
    assert len([json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]) == 3
    file.write_text("[]\n" + file.read_text(encoding="utf-8"))
    with pytest.raises(DataError, match="trace.jsonl:1"):
        ReplayEngine(file)
    with pytest.raises(BackendUnavailable, match="does not exist"):
        ReplayEngine(tmp_path / "none.jsonl")


def test_a_function_can_play_the_model():
    pipeline = EchoPipeline(ScriptEngine(lambda prompt: prompt.upper() + "\nbye"), None)
    assert pipeline(["a", "b"])[1].text == "SAY: B\nbye"
    *events, done = pipeline.stream("a")
    assert "".join(e.text for e in events) == done.text == "SAY: A\nbye"
    with pytest.raises(ConfigError, match="construct it"):
        EchoPipeline.from_pretrained("anywhere", engine="script")


def test_buckets_hold_every_index_once_within_the_budget():
    rng = random.Random(4)
    lengths = [rng.randint(1, 60) for _ in range(500)]
    batches = length_buckets(lengths, 512, 32)
    assert sorted(i for b in batches for i in b) == list(range(500))
    assert all(len(b) <= 32 and (len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 512) for b in batches)
    assert padding_share(lengths, batches) < 0.1
    assert length_buckets([900, 3], 512, 32) == [[0], [1]]
    assert length_buckets([], 1, 1) == [] and padding_share([], []) == 0.0


def test_sampling_overrides_are_checked():
    assert SamplingParams().updated({"stop": ["\n"]}).stop == ("\n",)
    with pytest.raises(ConfigError, match="temperature"):
        SamplingParams().updated({"temprature": 1.0})


@pytest.mark.parametrize("setting", [{"temperature": -1}, {"beams": 0}, {"max_new_tokens": 0}, {"top_p": 1.5}])
def test_settings_that_cannot_be_are_refused(setting):
    with pytest.raises(ConfigError, match=f"(?s)expected a number.*{next(iter(setting))}"):
        SamplingParams().updated(setting)
