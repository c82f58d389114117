"""The loss and its gradients do not depend on how a batch is cut."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from core.config.schema import ModelConfig, TrainConfig
from core.data.collate import Collator
from core.data.dataset import EncodedDataset
from core.data.encode import IGNORE, Encoded
from core.models.load import load_model
from core.models.tokenizer import train_bpe
from core.objectives.losses import token_loss
from core.training.schedule import schedule
from core.training.trainer import SupervisedTrainer, mean_loss

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["some text to learn from"], 300)


def rows(count: int, seed: int = 0) -> list[Encoded]:
    """Rows of very different lengths; the first half of each carries no loss."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        length = int(torch.randint(4, 24, (1,), generator=generator))
        ids = torch.randint(5, 250, (length,), generator=generator).tolist()
        made.append(Encoded(ids, [IGNORE] * (length // 2) + ids[length // 2 :]))
    return made


def make_trainer(tmp_path, tokenizer, data, *, batch=2, accumulation=1, steps=1, **extra):
    from transformers import TrainingArguments

    model = extra.pop("model", None) or load_model(ModelConfig(preset="tiny"), tokenizer, seed=3)
    smoothing, max_length = extra.pop("smoothing", 0.0), extra.pop("max_length", None)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
        max_steps=steps, learning_rate=0.1, optim="sgd", max_grad_norm=0.0, use_cpu=True, report_to=[], seed=0,
        remove_unused_columns=False, disable_tqdm=True, save_strategy="no", label_names=["labels"], **extra,
    )  # fmt: skip
    config = TrainConfig(schedule="constant", warmup=0, label_smoothing=smoothing)
    return SupervisedTrainer(
        model=model, args=arguments, train_dataset=EncodedDataset(data, max_length), data_collator=Collator(1),
        train_config=config,
    )  # fmt: skip


def weights_after(trainer) -> torch.Tensor:
    trainer.train()
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_step_is_the_same_for_every_cut_of_its_batch(tmp_path, tokenizer, smoothing):
    data = rows(8)
    found = [
        weights_after(make_trainer(tmp_path, tokenizer, data, batch=b, accumulation=a, smoothing=smoothing))
        for b, a in ((8, 1), (4, 2), (1, 8))
    ]
    assert (found[0] - found[1]).abs().max() < 1e-6 and (found[0] - found[2]).abs().max() < 1e-6
    start = torch.cat(
        [p.detach().flatten() for p in load_model(ModelConfig(preset="tiny"), tokenizer, seed=3).parameters()]
    )
    assert (found[0] - start).abs().max() > 1e-4


def test_packing_changes_nothing(tmp_path, tokenizer):
    data = rows(8)
    padded = weights_after(make_trainer(tmp_path, tokenizer, data, batch=8))
    packed = make_trainer(tmp_path, tokenizer, data, batch=64, max_length=64)
    assert len(packed.train_dataset) < 8
    assert (weights_after(packed) - padded).abs().max() < 1e-6


def test_gradient_checkpointing_changes_nothing(tmp_path, tokenizer):
    data = rows(8)
    plain = weights_after(make_trainer(tmp_path, tokenizer, data, batch=8))
    again = weights_after(
        make_trainer(
            tmp_path, tokenizer, data, batch=8, gradient_checkpointing=True,
            gradient_checkpointing_kwargs={"use_reentrant": False},
        )
    )  # fmt: skip
    assert (plain - again).abs().max() < 1e-6


def test_the_last_partial_window_counts_in_full(tmp_path, tokenizer):
    """Five rows, batch 2, accumulation 2: windows of 4 and 1 rows, against a loop written out."""
    data = rows(5)
    found = weights_after(make_trainer(tmp_path, tokenizer, data, batch=2, accumulation=2, steps=2))
    model = load_model(ModelConfig(preset="tiny"), tokenizer, seed=3)
    order = list(make_trainer(tmp_path, tokenizer, data)._get_train_sampler())
    for window in (order[:4], order[4:]):
        batch = Collator(1)([data[i] for i in window])
        labels = batch.pop("labels")
        loss = token_loss(model(**batch, use_cache=False).logits, labels) / (labels[:, 1:] != IGNORE).sum()
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad
    expected = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert (found - expected).abs().max() < 1e-6


def test_loss_against_a_closed_form():
    logits = torch.zeros(1, 4, 10)
    labels = torch.tensor([[5, 3, IGNORE, 7]])
    assert torch.allclose(token_loss(logits, labels), 2 * torch.log(torch.tensor(10.0)))
    assert token_loss(logits, torch.full((1, 4), IGNORE)) == 0


def test_evaluation_twice_is_equal_and_leaves_the_mode(tokenizer):
    config = ModelConfig(preset="gpt2-14m")
    model = load_model(config, tokenizer).train()
    data = EncodedDataset(rows(6))
    first, second = (mean_loss(model, data, Collator(1)) for _ in range(2))
    assert first == second and model.training


@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "inverse_sqrt", "wsd"])
def test_schedules_warm_up_to_the_peak_and_never_exceed_it(name):
    factor = schedule(TrainConfig(schedule=name, warmup=10), 100)
    values = [factor(step) for step in range(100)]
    assert values[0] < values[5] < values[9] < 1.0 + 1e-9 and max(values) <= 1.0 + 1e-9
    assert values[-1] < 0.1 if name in ("cosine", "linear", "wsd") else values[-1] > 0.2


def test_warmup_stable_decay_by_hand():
    """Peak until 60 of 100 steps, then 1 - √t over the last 40, wherever the run's end is put."""
    factor = schedule(TrainConfig(schedule="wsd", warmup=10, decay=0.4), 100)
    assert [factor(step) for step in range(10, 61)] == [1.0] * 51
    assert factor(70) == pytest.approx(1 - 0.5) and factor(96) == pytest.approx(1 - 0.9**0.5)
    longer = schedule(TrainConfig(schedule="wsd", warmup=10, decay=0.4), 1000)
    assert [longer(step) for step in range(60)] == [factor(step) for step in range(60)]


TWO_RANKS = """
import sys, torch
sys.path[:0] = [{root!r}, {here!r}]
import torch.distributed as dist
from test_trainer_loss import make_trainer, rows
from core.data.encode import IGNORE, Encoded
from core.models.tokenizer import train_bpe
tokenizer = train_bpe(["some text to learn from"], 300)
data = rows(2)
data[{empty}] = Encoded(data[{empty}].input_ids, [IGNORE] * len(data[{empty}].labels))
trainer = make_trainer({out!r}, tokenizer, data, batch={batch}, steps=1)
trainer.train()
if trainer.is_world_process_zero():
    torch.save(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]), {out!r} + "/{name}.pt")
"""


def test_two_ranks_equal_one_also_when_one_has_no_labels(tmp_path):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name, launch, batch in (
        ("one", [], 2),
        ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"], 1),
    ):
        script = tmp_path / f"{name}.py"
        script.write_text(
            TWO_RANKS.format(
                root=str(ROOT), here=str(Path(__file__).parent), empty=1, out=str(tmp_path), batch=batch, name=name
            )
        )
        done = subprocess.run(
            [sys.executable, *launch, str(script)], env=env, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (torch.load(tmp_path / f"{name}.pt") for name in ("one", "two"))
    assert (one - two).abs().max() < 1e-6


MEMORY = """
import resource, sys, torch
sys.path[:0] = [{root!r}]
from transformers import LlamaConfig, LlamaForCausalLM
from core.data.collate import Collator
from core.data.dataset import EncodedDataset
from core.data.encode import Encoded
from core.training.trainer import mean_loss
shape = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=20000)
model = LlamaForCausalLM(LlamaConfig(**shape))
rows = [Encoded(list(range(5, 37)), list(range(5, 37)))] * {rows}
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
mean_loss(model, EncodedDataset(rows[:8]), Collator(1))
before = peak()
mean_loss(model, EncodedDataset(rows), Collator(1))
print(peak() - before)
"""


def test_the_memory_of_an_evaluation_does_not_grow_with_its_rows(tmp_path):
    """256 rows have 650 MB of logits; eight, which are looked at together, 20 MB."""
    script = tmp_path / "memory.py"
    script.write_text(MEMORY.format(root=str(ROOT), rows=256))
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) < 100
