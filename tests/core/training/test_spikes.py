"""Going back at a spike: when, to what, and that a resumed run decides as one that was never killed."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import TrainerCallback, TrainingArguments

from core.config.schema import ModelConfig, TrainConfig
from core.data.collate import Collator
from core.data.dataset import EncodedDataset
from core.data.encode import Encoded
from core.errors import BudgetExceeded
from core.models.load import load_model
from core.models.tokenizer import train_bpe
from core.training import checkpoint
from core.training.spike_level import SpikeConfig, threshold
from core.training.spikes import guarded, load_weights
from core.training.trainer import SupervisedTrainer, mean_loss

QUICK = SpikeConfig(every=2, deviations=8, window=16, patience=2)


class Broken(TrainerCallback):
    """Ruins the weights after some steps, once each; fails at another."""

    def __init__(self, at, dies=None, nan=False):
        self.at, self.dies, self.nan = at, dies, nan

    def on_step_end(self, args, state, control, **given):
        if state.global_step == self.dies:
            raise KeyboardInterrupt
        if state.global_step in self.at:
            with torch.no_grad():
                for p in given["model"].parameters():
                    noise = torch.Generator().manual_seed(state.global_step)
                    p.copy_(torch.full_like(p, math.nan) if self.nan else torch.randn(p.shape, generator=noise) * 2)


def rows(count):
    """Rows that repeat a pattern, so that there is something to learn."""
    return [Encoded(ids, list(ids)) for ids in ([5 + (3 * k + i) % 40 for i in range(24)] for k in range(count))]


def trainer(folder, config, *, steps=60, broken=None, save=10):
    tokenizer = train_bpe(["some text to learn from"], 300)
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=4, max_steps=steps, learning_rate=3e-3, use_cpu=True,
        report_to=[], seed=0, remove_unused_columns=False, disable_tqdm=True, save_strategy="steps", save_steps=save,
        logging_strategy="no", label_names=["labels"],
    )  # fmt: skip
    made = guarded(SupervisedTrainer, config)(
        model=load_model(ModelConfig(preset="tiny"), tokenizer, seed=3), args=arguments,
        train_dataset=EncodedDataset(rows(16)), data_collator=Collator(1), callbacks=[broken] if broken else [],
        train_config=TrainConfig(schedule="constant", warmup=0), keep=10,
    )  # fmt: skip
    return made


def weights(made):
    return torch.cat([p.detach().flatten() for p in made.model.parameters()])


def test_the_threshold_by_hand():
    looks = [3.0, 3.1, 2.9, 3.0, 3.2, 2.8, 3.0, 3.0]
    assert threshold(looks[:7], 10) == math.inf
    # median 3, deviations 0, .1, .1, 0, .2, .2, 0, 0: median .05
    assert threshold(looks, 10) == pytest.approx(3.0 + 10 * 1.4826 * 0.05)
    assert threshold([3.0] * 8, 10) == pytest.approx(3.0 + 10 * 0.02 * 3.0)


def test_a_class_without_looks_is_the_class_itself():
    assert guarded(SupervisedTrainer, SpikeConfig()) is SupervisedTrainer


def test_the_weights_of_before_come_back_and_the_data_go_on(tmp_path, monkeypatch):
    made = trainer(tmp_path, QUICK, broken=Broken({34}))
    seen = []
    back = made.take_back

    def watched(place):
        rate = made.optimizer.param_groups[0]["lr"]
        back(place)
        plain = load_model(ModelConfig(preset="tiny"), train_bpe(["some text to learn from"], 300), seed=0)
        load_weights(plain, place)
        equal = torch.equal(weights(made), torch.cat([p.detach().flatten() for p in plain.parameters()]))
        moments = torch.load(place / "optimizer.pt")["state"][0]["exp_avg"]
        same = torch.equal(made.optimizer.optimizer.state_dict()["state"][0]["exp_avg"], moments)
        seen.append((place.name, made.state.global_step, equal, same, rate == made.optimizer.param_groups[0]["lr"]))

    made.take_back = watched
    made.train()
    assert seen == [("checkpoint-30", 38, True, True, True)]
    assert made.guard.rollbacks == 1 and made.state.global_step == 60
    assert checkpoint.is_whole(tmp_path / "checkpoint-38")
    unwatched = trainer(tmp_path / "other", SpikeConfig(), broken=Broken({34}))
    unwatched.train()
    data, collate = made.train_dataset, made.data_collator
    assert mean_loss(made.model, data, collate)[0] < 0.8 * mean_loss(unwatched.model, data, collate)[0]


def test_a_steady_run_is_left_alone(tmp_path):
    watched, plain = trainer(tmp_path / "a", QUICK), trainer(tmp_path / "b", SpikeConfig())
    watched.train()
    plain.train()
    assert watched.guard.rollbacks == 0 and torch.equal(weights(watched), weights(plain))


@pytest.mark.parametrize("dies", [36, 41, 52])
def test_a_killed_run_decides_as_one_that_was_not(tmp_path, dies):
    whole = trainer(tmp_path / "whole", QUICK, broken=Broken({34}), save=5)
    whole.train()
    assert whole.guard.rollbacks == 1
    first = trainer(tmp_path / "broken", QUICK, broken=Broken({34}, dies), save=5)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    again = trainer(tmp_path / "broken", QUICK, broken=Broken({34}), save=5)
    again.train(resume_from_checkpoint=str(checkpoint.newest(tmp_path / "broken")))
    assert torch.equal(weights(again), weights(whole)) and again.guard.looks == whole.guard.looks


def test_what_is_not_finite_goes_back_at_once_or_ends(tmp_path):
    made = trainer(tmp_path / "a", QUICK, broken=Broken({35}, nan=True))
    made.train()
    assert made.guard.rollbacks == 1 and torch.isfinite(weights(made)).all()
    with pytest.raises(BudgetExceeded, match="no earlier checkpoint"):
        trainer(tmp_path / "b", QUICK, broken=Broken({25}, nan=True), save=100).train()


def test_a_run_that_spikes_for_ever_is_given_up(tmp_path):
    once = SpikeConfig(every=2, deviations=8, window=16, patience=1, limit=1)
    with pytest.raises(BudgetExceeded, match="after going back 1 times"):
        trainer(tmp_path, once, broken=Broken({30, 40})).train()
