"""The trainers' losses against the papers' formulas on log-probabilities taken from the model's own head."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from core.config.schema import AdapterConfig
from core.errors import ConfigError
from core.training.build import add_adapters
from tests.core.training.preference.conftest import log_probability


def first_loss(trainer):
    """Loss of the first four rows under the model as it is."""
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    with torch.no_grad():
        return float(trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch)))


def answers(tiny, model):
    with torch.no_grad():
        return [
            [log_probability(model, row.prompt_ids, ids) for ids in (row.chosen_ids, row.rejected_ids)]
            for row in tiny.pairs.rows[:4]
        ]


def moved(model, seed=3):
    """The model with its weights moved a little, so that policy and reference differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))


def test_dpo(tiny, build):
    from core.training.preference.dpo import DpoTrainer

    reference = copy.deepcopy(tiny.model)
    trainer = build(DpoTrainer, tiny.model, tiny.pairs, tiny.tokenizer, {"beta": 0.3, "max_length": None})
    assert first_loss(trainer) == pytest.approx(0.693147, abs=1e-5), "policy and reference are equal at first"
    moved(tiny.model)
    policy, base = answers(tiny, tiny.model), answers(tiny, reference)
    margins = torch.stack([(p[0] - b[0]) - (p[1] - b[1]) for p, b in zip(policy, base)])
    assert first_loss(trainer) == pytest.approx(float(-F.logsigmoid(0.3 * margins).mean()), rel=1e-4)


def test_wpo_weighs_each_pair_by_its_probability_under_the_policy(tiny, build):
    from core.training.preference.dpo import DpoTrainer

    reference = copy.deepcopy(tiny.model)
    options = {"beta": 0.3, "use_weighting": True, "max_length": None}
    trainer = build(DpoTrainer, tiny.model, tiny.pairs, tiny.tokenizer, options)
    moved(tiny.model)

    def weight(prompt, answer):
        with torch.no_grad():
            logits = tiny.model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        places = range(len(prompt) - 1, len(prompt) - 1 + len(answer))
        aligned = [logits[p, a] - logits[p].exp().square().sum().log() for p, a in zip(places, answer)]
        return torch.stack(aligned).mean().exp()

    policy, base = answers(tiny, tiny.model), answers(tiny, reference)
    margins = torch.stack([(p[0] - b[0]) - (p[1] - b[1]) for p, b in zip(policy, base)])
    weights = torch.stack(
        [weight(r.prompt_ids, r.chosen_ids) * weight(r.prompt_ids, r.rejected_ids) for r in tiny.pairs.rows[:4]]
    )
    assert weights.max() - weights.min() > 1e-3
    assert first_loss(trainer) == pytest.approx(float((-F.logsigmoid(0.3 * margins) * weights).mean()), rel=1e-3)


def test_cpo(tiny, build):
    from core.training.preference.cpo import CpoTrainer

    options = {"beta": 0.1, "cpo_alpha": 0.7, "max_length": 64}
    trainer = build(CpoTrainer, tiny.model, tiny.pairs, tiny.tokenizer, options)
    found = answers(tiny, tiny.model)
    compared = -F.logsigmoid(0.1 * torch.stack([better - worse for better, worse in found])).mean()
    tokens = sum(len(row.chosen_ids) for row in tiny.pairs.rows[:4])
    likelihood = -sum(better for better, _ in found) / tokens
    assert first_loss(trainer) == pytest.approx(float(compared + 0.7 * likelihood), rel=1e-4)


def test_nothing_is_reported_to_anybody(tiny, build, monkeypatch):
    import trl.trainer.base_trainer as base

    from core.training.preference.dpo import DpoTrainer

    def refuse(*arguments, **keywords):
        raise AssertionError("telemetry")

    for name in ("CI", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.delenv(name, raising=False)
    assert hasattr(base, "send_telemetry"), "the name that is guarded here is gone"
    monkeypatch.setattr(base, "send_telemetry", refuse)
    build(DpoTrainer, tiny.model, tiny.pairs, tiny.tokenizer, {"max_length": None})


def test_an_adapted_head_is_refused(tiny, build):
    from core.training.preference.dpo import DpoTrainer

    model = add_adapters(tiny.model, [AdapterConfig(r=2, modules_to_save=["lm_head"])])
    with pytest.raises(ConfigError, match="head"):
        build(DpoTrainer, model, tiny.pairs, tiny.tokenizer, {"max_length": None})
