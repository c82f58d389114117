"""Batches that grow: every row read in order, steps and resumes exact, on one process and on two."""

from __future__ import annotations

import itertools

import pytest

from core.config.load import recipe_from
from core.config.schema import BatchConfig
from core.errors import ConfigError
from core.training.ramp import GrowingBatches, Ramp, steps_to_read
from core.training.run import train
from tests.core.training.test_resume import killed_at, losses, new_run, same_weights, weights

GROWING = {"train": {"max_steps": 10, "lr": 1e-3, "schedule": "constant", "batch": {"size": 8, "micro": 4, "ramp": 6}}}


def test_the_ramp_by_hand():
    ramp = Ramp(micro=8, length=4, start=0.25)
    assert [ramp.at(step) for step in range(6)] == [2, 4, 5, 6, 8, 8]  # 2, 3.5, 5, 6.5 and 8, rounded
    assert [ramp.read_by(step) for step in range(7)] == [0, 2, 6, 11, 17, 25, 33]
    assert Ramp.of(BatchConfig(ramp=0.1), 8, 200).length == 20 and Ramp.of(BatchConfig(ramp=7), 8, 200).length == 7
    assert min(map(Ramp(micro=2, length=100, start=0.01).at, range(100))) == 1


@pytest.mark.parametrize("ramp", [3.0, 0.3])
def test_as_many_steps_as_read_the_rows(ramp):
    batch = BatchConfig(ramp=ramp, start=0.25)
    for sequences in (1, 100, 1000, 12345):
        steps = steps_to_read(batch, 8, 4, sequences)
        read = [Ramp.of(batch, 8, n).read_by(n) * 4 for n in (steps, steps - 1)]
        assert read[0] >= sequences > read[1]


def test_every_row_comes_once_in_a_pass_and_processes_share_them():
    ramp = Ramp(micro=4, length=5, start=0.25)
    alone = list(GrowingBatches(30, 7, ramp, steps=9, accumulation=2))
    assert len(alone) == 18 and [len(b) for b in alone[::2]] == [ramp.at(step) for step in range(9)]
    rows = list(itertools.chain(*alone))
    assert sorted(rows[:30]) == list(range(30)) and rows[:30] != rows[30:60]
    halves = [list(GrowingBatches(30, 7, ramp, 9, 1, (own, 2))) for own in (0, 1)]
    both = [sorted(a + b) for a, b in zip(*halves)]
    one = [sorted(a + b) for a, b in zip(alone[::2], alone[1::2])]
    assert both == one, "two processes with one micro-batch each read what one process reads with two"


@pytest.mark.parametrize("step", [3, 8], ids=["while it grows", "after, in the second pass"])
def test_a_resume_inside_the_ramp_is_bit_equal(tmp_path, monkeypatch, step):
    whole, broken = new_run(tmp_path / "whole", **GROWING), new_run(tmp_path / "broken", **GROWING)
    train(whole.recipe(), whole)
    killed_at(monkeypatch, broken, step)
    train(broken.recipe(), broken, resume=True)
    assert same_weights(weights(whole), weights(broken))
    assert losses(whole) == losses(broken) and len(losses(whole)) == 10
    epochs = [row["epoch"] for row in broken.read_metrics() if "loss" in row]
    # 48 rows; two micro-batches of 1 (of 0.5, 0.9 … 4), 1, 2, 2, 3, 3, then 4
    ramp = Ramp(4, 6, 0.125)
    assert epochs == [round(2 * ramp.read_by(n) / 48, 4) for n in range(1, 11)]


def test_a_stream_has_batches_of_one_size():
    raw = {
        "app": "lm",
        "model": {"preset": "tiny", "tokenizer": "bpe:300"},
        "method": "lm.pretrain",
        "data": {"train": [{"reader": "embedded"}], "streaming": True},
        "train": {"max_steps": 3, "batch": {"ramp": 2}},
    }
    with pytest.raises(ConfigError, match="batches of one size"):
        recipe_from(raw)
