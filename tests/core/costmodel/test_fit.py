"""What is chosen fits, is the fastest that does, and a run that cannot fit is told what would."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from core.config.load import recipe_from, resolve_stages
from core.costmodel.fit import DoesNotFit, choose, evaluate
from core.costmodel.hardware import DEVICES, device_named
from core.costmodel.plan import plan_stages
from core.costmodel.shape import ModelShape
from core.costmodel.workload import Workload
from core.errors import ConfigError, UnsupportedModelError

H100, T4 = DEVICES["h100"], DEVICES["t4"]
SHAPE = ModelShape.from_config(
    {
        "model_type": "llama", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
        "num_attention_heads": 24, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True,
    }
)  # fmt: skip
LORA = Workload(SHAPE, 1, 2048, rank=16, targets=tuple(SHAPE.linears))


@pytest.mark.parametrize("sequences", [1, 7, 16])
def test_the_choice_fits_and_nothing_faster_does(sequences):
    choice = choose(LORA, H100, sequences)
    assert choice.memory.reserved <= H100.memory
    assert choice.work.micro * choice.work.accumulation >= sequences
    for micro in range(1, sequences + 1):
        for recompute in ("none", "selective", "full"):
            cut = LORA.with_(micro=micro, accumulation=-(-sequences // micro), checkpointing=recompute)
            other = evaluate(cut, H100)
            if other.memory.reserved <= H100.memory and micro * LORA.length <= 32768:
                assert choice.step.seconds <= other.step.seconds * 1.0001


def test_what_is_asked_for_is_kept():
    assert choose(LORA, H100, 16, micro=2, checkpoint="full").work.micro == 2
    assert choose(LORA, H100, 16, micro=2, checkpoint="full").checkpointing == "full"
    with pytest.raises(DoesNotFit):
        choose(LORA.with_(length=8192), H100, 16, micro=16, checkpoint="none")


def test_a_run_that_cannot_fit_names_changes_that_do():
    full = Workload(SHAPE, 1, 4096, stored=4, compute=2)
    with pytest.raises(DoesNotFit, match=r"needs .* GiB and h100 has 30.0") as caught:
        choose(full.with_(stored=4), DEVICES["h100"], 8, available=30 * 2**30)
    assert "lora" in caught.value.hint and caught.value.least.memory.reserved > 30 * 2**30
    with pytest.raises(DoesNotFit) as caught:
        choose(full, T4, 8, available=2**30)
    assert "no change" in caught.value.hint


def recipe(**model):
    return recipe_from(
        {
            "app": "translation",
            "model": {"preset": "llama-3b", "tokenizer": "bpe:32000", **model},
            "data": {"train": [{"reader": "embedded"}], "max_length": 1024},
            "method": "translation.parallel",
        }
    )


def test_a_recipe_is_planned_stage_by_stage():
    plan = plan_stages(resolve_stages(recipe()), H100)[0].to_dict()
    assert plan["fits"] and plan["trainable"] == plan["parameters"]
    refused = plan_stages(resolve_stages(recipe()), T4)[0]
    assert "these fit" in refused.refusal and not refused.to_dict()["fits"]
    with pytest.raises(UnsupportedModelError, match="plain LoRA"):
        plan_stages(resolve_stages(recipe(adapters=[{"kind": "lora", "dora": True}])), H100)
    with pytest.raises(ConfigError, match="did you mean 'h100'"):
        device_named("h1000")


def test_planning_imports_no_torch():
    code = (
        "import sys; from recipes.cli import main; main(['plan', 'translation/quickstart', '--device', 'h100']);"
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'peft')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "GiB" in done.stdout, done.stdout + done.stderr


def _stages(path, **model):
    raw = {
        "app": "lm",
        "model": {"path": str(path), **model},
        "data": {"train": [{"reader": "embedded"}], "max_length": 1024},
        "method": "lm.pretrain",
    }
    return resolve_stages(recipe_from(raw))


LLAMA = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "vocab_size": 300,
}  # fmt: skip


def test_a_plan_for_a_cpu_takes_the_passes_that_training_takes(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (plan,) = plan_stages(_stages(tmp_path), device_named("cpu"))
    assert plan.choice.work.micro == 4


def test_what_cannot_be_planned_is_told(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    adapters = [{"kind": "lora", "targets": ["nope_proj"]}]
    with pytest.raises(ConfigError, match="name no linear map") as caught:
        plan_stages(_stages(tmp_path, adapters=adapters), device_named("h100"))
    assert "q_proj" in caught.value.hint
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "num_attention_heads": 0}))
    with pytest.raises(UnsupportedModelError, match="sizes that cannot be"):
        plan_stages(_stages(tmp_path), device_named("h100"))
