"""Every adapter kind in a whole run: it trains, is saved, is served, and stacks."""

from __future__ import annotations

import pytest
import torch

from core.config.load import recipe_from
from core.config.run_folder import RunFolder
from core.errors import ConfigError, MergeError, UnsupportedError
from core.inference.load import load_for_serving
from core.training.merge import logits_of, merge
from core.training.run import train

PROBE = torch.arange(5, 40).unsqueeze(0)


def recipe(output, adapters, preset="tiny", packing=False, **data):
    return recipe_from(
        {
            "app": "translation",
            "output": str(output),
            "model": {"preset": preset, "tokenizer": "bpe:300", "adapters": adapters},
            "data": {
                "train": [{"reader": "embedded", "split": "train", "limit": 12, "with": {"src": "de", "tgt": "en"}}],
                "max_length": 128,
                "packing": packing,
            },
            "method": "translation.parallel",
            "train": {"max_steps": 3, "lr": 1e-2, "batch": {"size": 4}},
            "eval": {"every": 0},
        }
    )


KINDS = [
    {"kind": "bottleneck", "with": {"r": 4, "act": None, "mode": "parallel"}, "targets": ["q", "down"]},
    {"kind": "series", "with": {"r": 4}},
    {"kind": "prefix", "with": {"tokens": 3}},
    {"kind": "seq_bottleneck", "with": {"reduction_factor": 8, "invertible": "nice"}},
]


@pytest.mark.parametrize("spec", KINDS, ids=lambda s: s["kind"])
@pytest.mark.parametrize("preset", ["tiny", "tiny-gpt2"])
def test_a_run(tmp_path, spec, preset):
    kept = {}
    run = RunFolder.create(recipe(tmp_path / "run", [spec], preset))
    from core.training import run as module

    original = module.save_model

    def keep(app, model, *rest):
        kept["logits"] = logits_of(model.eval(), PROBE)
        with model.disable_adapter():
            kept["base"] = logits_of(model, PROBE)
        return original(app, model, *rest)

    module.save_model = keep
    try:
        result = train(run.recipe(), run)
    finally:
        module.save_model = original
    assert 0 < result["stages"][0]["trainable"] < result["stages"][0]["parameters"]
    assert (kept["logits"] - kept["base"]).abs().max() > 1e-4
    served, _, _ = load_for_serving(str(run.path))
    assert torch.equal(logits_of(served, PROBE), kept["logits"])
    if spec["kind"] == "bottleneck":
        assert merge(run.path, tmp_path / "merged")["merge_max"] < 1e-4
    elif spec["kind"] != "prefix":
        with pytest.raises(MergeError):
            merge(run.path, tmp_path / "merged")


def test_a_saved_adapter_is_laid_on_frozen_and_comes_back_with_the_stack(tmp_path):
    first = RunFolder.create(recipe(tmp_path / "lang", [{"kind": "seq_bottleneck", "with": {"reduction_factor": 8}}]))
    train(first.recipe(), first)
    raw = recipe(tmp_path / "task", []).source.raw
    raw["model"] = {"path": str(first.model_dir / "base")}
    raw["model"]["tokenizer"] = str(first.model_dir)
    raw["model"]["adapters"] = [
        {"kind": "seq_bottleneck", "path": str(first.path)},
        {"kind": "seq_bottleneck", "with": {"reduction_factor": 16}},
    ]
    second = RunFolder.create(recipe_from(raw))
    result = train(second.recipe(), second)
    assert result["status"] == "done"
    served, _, _ = load_for_serving(str(second.path))
    assert served.base_model.active_adapters == ["below0", "default"]
    alone, _, _ = load_for_serving(str(first.path))
    lang = {n.replace("below0", "default"): p for n, p in served.named_parameters() if ".below0." in n}
    assert lang and all(torch.equal(p, dict(alone.named_parameters())[n]) for n, p in lang.items())
    with_both = logits_of(served, PROBE)
    served.base_model.set_adapter(["default"])
    assert (logits_of(served, PROBE) - with_both).abs().max() > 1e-5


def test_what_cannot_be_is_told_before_anything_is_loaded(tmp_path):
    with pytest.raises(ConfigError, match="share a sequence"):
        recipe(tmp_path, [{"kind": "prefix"}], packing=True)
    with pytest.raises(ConfigError, match="'r' here is a key of lora"):
        recipe(tmp_path, [{"kind": "series", "r": 8}])
    with pytest.raises(ConfigError, match="unknown key 'rank'"):
        recipe(tmp_path, [{"kind": "series", "with": {"rank": 8}}])
    run = RunFolder.create(recipe(tmp_path / "two", [{"kind": "series"}, {"kind": "lora"}]))
    with pytest.raises(UnsupportedError, match="2 adapters would train"):
        train(run.recipe(), run)
    run = RunFolder.create(recipe(tmp_path / "none", [{"kind": "series", "path": "x"}]))
    with pytest.raises(UnsupportedError, match="every adapter is frozen"):
        train(run.recipe(), run)
