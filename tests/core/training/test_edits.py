"""Structural edits in a whole run: they train, resume, are served with their cache, and fold back."""

from __future__ import annotations

import json

import pytest
import torch

from core.config.load import recipe_from
from core.config.run_folder import RunFolder
from core.errors import BudgetError, ConfigError
from core.inference.load import load_for_serving
from core.models.surgery import ops_of
from core.training.merge import logits_of, merge
from core.training.run import train

PROBE = torch.arange(5, 40).unsqueeze(0)


def recipe(output, edits, steps=4, preset="tiny", **train_keys):
    return recipe_from(
        {
            "app": "translation",
            "output": str(output),
            "model": {"preset": preset, "tokenizer": "bpe:300", "edits": edits},
            "data": {
                "train": [{"reader": "embedded", "split": "train", "limit": 12, "with": {"src": "de", "tgt": "en"}}],
                "max_length": 128,
            },
            "method": "translation.parallel",
            "train": {"max_steps": steps, "lr": 1e-2, "batch": {"size": 4}, **train_keys},
            "eval": {"every": 0},
            "checkpoint": {"every": 2},
        }
    )


CONTROL = {"kind": "control", "num_expand": 1, "merge": "dlerp"}


@pytest.mark.parametrize(
    "edit",
    [
        CONTROL,
        {"kind": "control", "num_expand": 0.5, "expansion": "stack"},
        {"kind": "ladder", "layers": 1},
        {"kind": "skip_ffn", "threshold": 0.9, "cold_start": 0, "cold_end": 2},
    ],
    ids=lambda e: e["kind"] + e.get("expansion", ""),
)
def test_a_run(tmp_path, edit):
    run = RunFolder.create(recipe(tmp_path / "run", [edit]))
    result = train(run.recipe(), run)
    stage = result["stages"][0]
    assert (stage["trainable"] < stage["parameters"]) == (edit["kind"] == "control")
    config = json.loads((run.model_dir / "config.json").read_text())
    assert config["model_type"] == "graft" and config["graft"]["ops"]
    served, tokenizer, _ = load_for_serving(str(run.path))
    out = served.generate(PROBE[:, :5], max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert out.shape == (1, 9) and ops_of(served)
    if edit == CONTROL:
        logged = [row for row in run.read_metrics() if "loss" in row]
        assert logged[-1]["alignment"] > 0


def test_a_killed_control_run_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    whole = RunFolder.create(recipe(tmp_path / "whole", [CONTROL], steps=6))
    train(whole.recipe(), whole)
    broken = RunFolder.create(recipe(tmp_path / "broken", [CONTROL], steps=6))
    from core.training.trainer import SupervisedTrainer

    original, calls = SupervisedTrainer.compute_loss, []

    def fails(self, *args, **kwargs):
        calls.append(1)
        if len(calls) > 4:
            raise RuntimeError("killed")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(SupervisedTrainer, "compute_loss", fails)
    with pytest.raises(RuntimeError, match="killed"):
        train(broken.recipe(), broken)
    monkeypatch.setattr(SupervisedTrainer, "compute_loss", original)
    train(broken.recipe(), broken, resume=True)
    a, b = (load_for_serving(str(run.path))[0] for run in (whole, broken))
    assert torch.equal(logits_of(a, PROBE), logits_of(b, PROBE))


def test_branches_fold_into_a_plain_model(tmp_path):
    run = RunFolder.create(recipe(tmp_path / "run", [{"kind": "control", "num_expand": 1}], steps=2))
    train(run.recipe(), run)
    drift = merge(run.path, tmp_path / "plain")
    assert json.loads((tmp_path / "plain" / "config.json").read_text())["model_type"] == "llama"
    plain, _, _ = load_for_serving(str(tmp_path / "plain"))
    branched, _, _ = load_for_serving(str(run.path))
    found = float((logits_of(plain, PROBE) - logits_of(branched, PROBE)).abs().max())
    assert 0 < found < 2 and drift["merge_max"] > 0


def test_two_blocks_are_trained_and_a_model_of_another_depth_starts_from_them(tmp_path):
    run = RunFolder.create(recipe(tmp_path / "gene", [{"kind": "learngene", "depth": 5}]))
    train(run.recipe(), run)
    gene, _, _ = load_for_serving(str(run.path))
    raw = recipe(tmp_path / "child", [{"kind": "descend", "depth": 3}]).source.raw
    raw["model"] = {"path": str(run.path), "edits": raw["model"]["edits"]}
    child = RunFolder.create(recipe_from(raw))
    train(child.recipe(), child)
    assert json.loads((child.model_dir / "config.json").read_text())["model_type"] == "llama"
    served, _, _ = load_for_serving(str(child.path))
    assert len(served.model.layers) == 3 and len(gene.model.layers) == 5 and not ops_of(served)
    fitted = RunFolder.create(recipe(tmp_path / "fit", [{"kind": "learngene", "depth": 4, "start": "fit"}]))
    assert train(fitted.recipe(), fitted)["status"] == "done"


def test_mistakes_are_told_before_training(tmp_path):
    with pytest.raises(ConfigError, match="unknown key 'num_expnd'"):
        recipe(tmp_path, [{"kind": "control", "num_expnd": 1}])
    run = RunFolder.create(recipe(tmp_path / "three", [{"kind": "control", "num_expand": 3}]))
    with pytest.raises(ConfigError, match="3 copies for 2 blocks"):
        train(run.recipe(), run)
    run = RunFolder.create(recipe(tmp_path / "skip", [{"kind": "skip_ffn", "target_ratio": 0.9}]))
    with pytest.raises((BudgetError, ConfigError)):
        train(run.recipe(), run)
