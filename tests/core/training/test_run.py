"""A whole run: what trains, what is saved, and that a broken run goes on as if nothing had happened."""

from __future__ import annotations

import json
import os

import pytest
import torch

from core.config.load import recipe_from
from core.config.run_folder import RunFolder
from core.config.schema import AdapterConfig, ModelConfig
from core.errors import CheckpointError, ConfigError, DataError, MergeError
from core.models.load import load_model
from core.models.tokenizer import train_bpe
from core.training import checkpoint
from core.training.build import add_adapters
from core.training.merge import logits_of, merge, untie_if_needed
from core.training.run import train


def recipe(output, **over):
    raw = {
        "app": "translation",
        "output": str(output),
        "model": {"preset": "tiny-gpt2", "tokenizer": "bpe:400"},
        "data": {
            "train": [{"reader": "embedded", "split": "train", "limit": 24, "with": {"src": "de", "tgt": "en"}}],
            "eval": [{"reader": "embedded", "split": "dev", "limit": 4, "with": {"src": "de", "tgt": "en"}}],
            "max_length": 160,
        },
        "method": "translation.parallel",
        "train": {"max_steps": 8, "lr": 1e-3, "batch": {"size": 8}},
        "eval": {"every": 0, "metrics": ["bleu"], "sampling": {"max_new_tokens": 4}},
        "checkpoint": {"every": 3},
    }
    for name, value in over.items():
        raw[name] = {**raw[name], **value} if isinstance(raw.get(name), dict) else value
    return recipe_from(raw)


def weights(run):
    from safetensors.torch import load_file

    return load_file(next(run.path.glob("stages/*/weights/*.safetensors")))


def losses(run):
    return {row["step"]: row["loss"] for row in run.read_metrics() if "loss" in row}


class Killed(Exception):
    pass


@pytest.mark.parametrize("packing", [True, False])
def test_a_killed_run_resumes_bit_equal(tmp_path, monkeypatch, packing):
    whole = RunFolder.create(recipe(tmp_path / "whole", data={**recipe("x").to_dict()["data"], "packing": packing}))
    train(whole.recipe(), whole)
    broken = RunFolder.create(recipe(tmp_path / "broken", data={**recipe("x").to_dict()["data"], "packing": packing}))
    from core.training.trainer import SupervisedTrainer

    step = SupervisedTrainer.training_step

    def dying(self, *args, **kwargs):
        if self.state.global_step == 5:
            raise Killed
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SupervisedTrainer, "training_step", dying)
        with pytest.raises(Killed):
            train(broken.recipe(), broken)
    (broken.path / "stages/00-parallel/checkpoints/checkpoint-6.tmp").mkdir()
    train(broken.recipe(), broken, resume=True)
    first, second = weights(whole), weights(broken)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert losses(whole) == losses(broken) and len(losses(whole)) == 8


def test_the_trained_set_is_what_was_asked(tmp_path):
    tokenizer = train_bpe(["text"], 300)
    model = load_model(ModelConfig(preset="tiny"), tokenizer)
    adapted = add_adapters(model, [AdapterConfig(r=4, targets=["q_proj", "v_proj"])])
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 * 2 and all(
        "lora_" in name and ("q_proj" in name or "v_proj" in name) for name in trained
    )
    with pytest.raises(ConfigError) as caught:
        add_adapters(load_model(ModelConfig(preset="tiny"), tokenizer), [AdapterConfig(targets=["q_porj"])])
    assert "q_proj" in str(caught.value)


def test_lora_run_saves_an_adapter_that_merges_to_equal_logits(tmp_path):
    run = RunFolder.create(
        recipe(
            tmp_path / "run", model={"preset": "tiny", "tokenizer": "bpe:400", "adapters": [{"kind": "lora", "r": 4}]}
        )
    )
    result = train(run.recipe(), run)
    stage = result["stages"][0]
    assert 0 < stage["trainable"] < stage["parameters"] and run.info()["status"] == "done"
    assert (run.model_dir / "adapter_config.json").is_file() and (run.path / "report.html").is_file()
    drift = merge(run.path, run.merged_dir)
    assert drift["merge_max"] < 1e-4
    from core.inference.load import load_for_serving

    adapted, _, _ = load_for_serving(str(run.path))
    merged, _, _ = load_for_serving(str(run.merged_dir))
    probe = torch.arange(5, 40).unsqueeze(0)
    assert (logits_of(adapted, probe) - logits_of(merged, probe)).abs().max() < 1e-4
    with pytest.raises(MergeError, match="no adapter"):
        merge(run.merged_dir, tmp_path / "twice")


def test_a_merge_in_low_precision_keeps_small_updates(tmp_path):
    """An update below the spacing of bf16 is lost when added there; added in fp32 the sum is exact before the cast."""
    tokenizer = train_bpe(["text"], 300)
    model = add_adapters(load_model(ModelConfig(preset="tiny"), tokenizer), [AdapterConfig(r=4)])
    torch.manual_seed(0)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=1e-3)
    probe = torch.arange(5, 40).unsqueeze(0)
    adapted = logits_of(model, probe)
    merged = model.merge_and_unload()
    assert (logits_of(merged, probe) - adapted).abs().max() < 1e-5
    assert 0 < (logits_of(merged.to(torch.bfloat16), probe) - adapted).abs().max() < 0.2


def test_untied_heads_are_saved_as_untied(tmp_path):
    from transformers import AutoModelForCausalLM

    tokenizer = train_bpe(["text"], 300)
    model = load_model(ModelConfig(preset="tiny"), tokenizer)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 2)
    untie_if_needed(model)
    model.save_pretrained(tmp_path / "m")
    probe = torch.arange(5, 40).unsqueeze(0)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert torch.allclose(logits_of(again, probe), logits_of(model, probe), atol=1e-5)


def test_a_run_that_would_learn_nothing_is_refused(tmp_path):
    with pytest.raises(DataError, match="longer than max_length|carries loss|loss"):
        run = RunFolder.create(recipe(tmp_path / "run", data={**recipe("x").to_dict()["data"], "max_length": 8}))
        train(run.recipe(), run)


@pytest.mark.parametrize("preset", ["tiny-gpt2", "tiny"])
def test_rows_longer_than_the_context(tmp_path, preset, monkeypatch):
    """Places that a model learnt end with its context; turned phases go on, which is said."""
    from core.models import presets

    kind, shape = presets.PRESETS[preset]
    short = {"n_positions": 32} if preset == "tiny-gpt2" else {"max_position_embeddings": 32}
    monkeypatch.setitem(presets.PRESETS, preset, (kind, {**shape, **short}))
    made = recipe(
        tmp_path / "run",
        model={"preset": preset, "tokenizer": "bpe:400"},
        data={**recipe("x").to_dict()["data"], "eval": []},
        train={"max_steps": 2, "lr": 1e-3, "warmup": 50, "batch": {"size": 8}},
    )
    run = RunFolder.create(made)
    if preset == "tiny-gpt2":
        with pytest.raises(ConfigError, match="the model's context is 32") as caught:
            train(run.recipe(), run)
        assert caught.value.where == "data.max_length" and "at most 32" in caught.value.hint
        return
    train(run.recipe(), run)
    log = (run.path / "log.txt").read_text()
    assert "the model's context is 32: what lies beyond is new to it" in log
    assert "2 steps, all of them warm-up (train.warmup: 50)" in log


def test_a_strategy_that_is_not_what_was_started_and_settings_of_no_generation(tmp_path, monkeypatch):
    ddp = RunFolder.create(recipe(tmp_path / "ddp", backend={"strategy": "ddp"}))
    with pytest.raises(ConfigError, match="strategy ddp, and one process runs"):
        train(ddp.recipe(), ddp)
    single = RunFolder.create(recipe(tmp_path / "single", backend={"strategy": "single"}))
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        with pytest.raises(ConfigError, match="strategy single, and 2 processes run"):
            train(single.recipe(), single)
    for sampling, what in (({"beam": 4}, "did you mean 'beams'"), ({"beams": "four"}, "expected a whole number")):
        run = RunFolder.create(recipe(tmp_path / what[:3], eval={"sampling": sampling}))
        with pytest.raises(ConfigError) as caught:
            train(run.recipe(), run)
        assert what in str(caught.value) and f"eval.sampling.{next(iter(sampling))}" in str(caught.value)


def test_a_run_is_never_overwritten(tmp_path):
    RunFolder.create(recipe(tmp_path / "run"))
    with pytest.raises(Exception, match="already holds a run"):
        RunFolder.create(recipe(tmp_path / "run"))


def test_metric_during_training_chooses_the_best_checkpoint(tmp_path):
    run = RunFolder.create(
        recipe(
            tmp_path / "run",
            eval={"every": 2, "select": "loss", "metrics": ["bleu"], "sampling": {"max_new_tokens": 4}},
        )
    )
    train(run.recipe(), run)
    values = {row["step"]: row["eval"]["loss"] for row in run.read_metrics() if "eval" in row}
    assert set(values) == {2, 4, 6, 8}
    chosen = checkpoint.best(run.path / "stages/00-parallel/checkpoints")
    assert chosen is not None and values[int(chosen.name.split("-")[1])] == min(values.values())


def write_one(text):
    def write(folder):
        (folder / "weights.bin").write_text(text)

    return write


def test_checkpoints_are_whole_or_absent(tmp_path):
    for step in (1, 2, 3):
        checkpoint.commit(tmp_path, step, write_one(str(step)))
    assert checkpoint.newest(tmp_path).name == "checkpoint-3" and (tmp_path / "latest").read_text() == "checkpoint-3"
    (tmp_path / "checkpoint-3" / "weights.bin").write_text("torn off")
    assert checkpoint.newest(tmp_path).name == "checkpoint-2"

    def fails(folder):
        (folder / "weights.bin").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left"):
        checkpoint.commit(tmp_path, 4, fails)
    assert checkpoint.newest(tmp_path).name == "checkpoint-2" and not list(tmp_path.glob("*.tmp"))


def test_rotation_keeps_the_newest_and_the_best(tmp_path):
    for step in range(1, 6):
        checkpoint.commit(tmp_path, step, write_one("x"), {"best": step == 1})
    (tmp_path / "checkpoint-9.tmp").mkdir()
    checkpoint.rotate(tmp_path, 2)
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-4", "checkpoint-5"]
    assert checkpoint.best(tmp_path).name == "checkpoint-1" and not (tmp_path / "checkpoint-9.tmp").exists()


def test_ctrl_c_saves_and_says_stopped(tmp_path, monkeypatch):
    import signal

    from core.training.trainer import SupervisedTrainer

    run = RunFolder.create(recipe(tmp_path / "run"))
    step = SupervisedTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SupervisedTrainer, "training_step", interrupted)
        result = train(run.recipe(), run)
    assert result["status"] == "stopped" and json.loads((run.path / "run.json").read_text())["status"] == "stopped"
    assert checkpoint.newest(run.path / "stages/00-parallel/checkpoints").name == "checkpoint-4"
    train(run.recipe(), run, resume=True)
    assert run.info()["status"] == "done" and set(losses(run)) == set(range(1, 9))
