"""Adapters travel: ours open in plain peft, peft's own open in our pipelines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch

from core.adapters import BottleneckConfig, SeqBottleneckConfig
from core.config.schema import ModelConfig
from core.inference.load import attach_adapter
from core.models.load import load_model
from core.models.tokenizer import train_bpe
from core.sparse import SpielConfig

ROOT = Path(__file__).resolve().parents[3]
LINEAR = ["q_proj", "down_proj"]
OURS = {
    "bottleneck": BottleneckConfig(r=4, task_type="CAUSAL_LM"),
    "seq_bottleneck": SeqBottleneckConfig(reduction_factor=8, task_type="CAUSAL_LM"),
    "spiel": SpielConfig(density=0.05, task_type="CAUSAL_LM"),
}
THEIRS = {
    "lora": peft.LoraConfig(r=4, target_modules=LINEAR, task_type="CAUSAL_LM"),
    "dora": peft.LoraConfig(r=4, use_dora=True, target_modules=LINEAR, task_type="CAUSAL_LM"),
    "ia3": peft.IA3Config(target_modules=LINEAR, feedforward_modules=["down_proj"], task_type="CAUSAL_LM"),
    "vera": peft.VeraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "loha": peft.LoHaConfig(r=4, target_modules=LINEAR, task_type="CAUSAL_LM"),
    "shira": peft.ShiraConfig(r=2, target_modules=LINEAR, task_type="CAUSAL_LM"),
    "prefix": peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "prompt": peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
}
IDS = torch.arange(5, 17).view(1, -1)


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["some text to learn from"], 300)


def base(tokenizer):
    return load_model(ModelConfig(preset="tiny"), tokenizer, seed=3).eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def saved(tokenizer, config, folder):
    """The adapter with weights that change something, in a folder; and what the model then says."""
    torch.manual_seed(0)
    model = peft.get_peft_model(base(tokenizer), config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    assert (logits(model)[:, -12:] - logits(base(tokenizer))).abs().max() > 1e-3
    model.save_pretrained(folder)
    return logits(model)


@pytest.mark.parametrize("name", [*THEIRS, *OURS])
def test_a_pipeline_opens_what_peft_saved(name, tokenizer, tmp_path):
    expected = saved(tokenizer, {**THEIRS, **OURS}[name], tmp_path)
    torch.testing.assert_close(logits(attach_adapter(base(tokenizer), str(tmp_path))), expected)


CODE = """
import sys, torch, transformers, peft
import {package}
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
model = peft.PeftModel.from_pretrained(model, sys.argv[2]).eval()
with torch.no_grad():
    found = model(input_ids=torch.arange(5, 17).view(1, -1), use_cache=False).logits
torch.testing.assert_close(found, torch.load(sys.argv[3]))
"""


@pytest.mark.parametrize("name", OURS)
def test_plain_peft_opens_ours_after_one_import(name, tokenizer, tmp_path):
    base(tokenizer).save_pretrained(tmp_path / "base")
    torch.save(saved(tokenizer, OURS[name], tmp_path / "adapter"), tmp_path / "logits.pt")
    code = CODE.format(package="core.sparse" if name == "spiel" else "core.adapters")
    arguments = [str(tmp_path / part) for part in ("base", "adapter", "logits.pt")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_fresh_process_opens_every_kind_of_ours(tokenizer, tmp_path):
    """Nothing but the loader is imported; it has to know the methods itself."""
    base(tokenizer).save_pretrained(tmp_path / "base")
    code = "import sys, transformers\nfrom core.inference.load import attach_adapter\n"
    for name, config in OURS.items():
        saved(tokenizer, config, tmp_path / name)
        code += f"model = transformers.AutoModelForCausalLM.from_pretrained(r'{tmp_path / 'base'}')\n"
        code += f"attach_adapter(model, r'{tmp_path / name}')\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
