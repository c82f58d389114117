"""When windows open and close, and that a resumed run selects what an uninterrupted one does."""

from __future__ import annotations

import math

import pytest
import torch
import transformers as tr
from torch.utils.data import Dataset

from core.errors import CheckpointError, ConfigError
from core.objectives.selection import SelectionCallback, replacement_rate


class Rows(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        ids = torch.randint(0, 30, (6,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids}


class Freeze(SelectionCallback):
    """Adds up a gradient-like figure in a window, then freezes a random half of the parameters that scored low."""

    def __init__(self, every=4, window=2, seed=3):
        super().__init__(every, window, seed)
        self.sums, self.history, self.frozen = {}, [], []

    def open(self, model, step, total):
        self.sums = {name: p.detach().clone() for name, p in model.named_parameters()}

    def close(self, model, optimizer, step, total):
        noise = torch.rand(len(self.sums), generator=self.generator)
        moved = torch.stack([(p.detach() - self.sums[n]).abs().sum() for n, p in model.named_parameters()])
        order = (moved * noise).argsort().tolist()
        self.frozen = order[: len(order) // 2]
        for number, parameter in enumerate(model.parameters()):
            parameter.requires_grad_(number not in self.frozen)
        assert isinstance(optimizer, torch.optim.SGD)
        self.history.append([step, *order])

    def tensors(self):
        return self.sums

    def load_tensors(self, found):
        self.sums = found

    def plain(self):
        return {"history": self.history, "frozen": self.frozen}

    def load_plain(self, found):
        self.history, self.frozen = found["history"], found["frozen"]

    def on_train_begin(self, args, state, control, **given):
        super().on_train_begin(args, state, control, **given)
        if self.history:
            for number, parameter in enumerate(given["model"].parameters()):
                parameter.requires_grad_(number not in self.frozen)


def run(folder, steps, resume=None, saves=5):
    torch.manual_seed(0)
    config = tr.LlamaConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        tie_word_embeddings=False,
    )  # fmt: skip
    model, callback = tr.LlamaForCausalLM(config), Freeze()
    args = tr.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=4, max_steps=18, learning_rate=0.1, optim="sgd",
        use_cpu=True, report_to=[], disable_tqdm=True, save_steps=saves, lr_scheduler_type="constant", seed=1,
    )  # fmt: skip

    class Stop(tr.TrainerCallback):
        def on_step_end(self, args, state, control, **given):
            control.should_training_stop = state.global_step >= steps

    trainer = tr.Trainer(model=model, args=args, train_dataset=Rows(), callbacks=[callback, Stop()])
    trainer.train(resume_from_checkpoint=resume)
    return callback.history, {name: p.detach().clone() for name, p in model.named_parameters()}


def test_a_resumed_run_selects_the_same(tmp_path):
    history, expected = run(tmp_path / "whole", 18)
    assert [row[0] for row in history] == [6, 10, 14]
    for at in (5, 10):
        run(tmp_path / f"cut{at}", at)
        again, found = run(tmp_path / f"cut{at}", 18, resume=str(tmp_path / f"cut{at}" / f"checkpoint-{at}"))
        assert again == history
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_window_without_its_values_is_not_continued(tmp_path):
    run(tmp_path, 5)
    (held,) = tmp_path.glob("selection-5.safetensors")
    held.unlink()
    with pytest.raises(CheckpointError, match="window whose values are gone"):
        run(tmp_path, 18, resume=str(tmp_path / "checkpoint-5"))


def test_rates():
    assert [replacement_rate("linear", 0.2, t, 10) for t in (0, 5, 10, 11)] == [0.2, 0.1, 0.0, 0.0]
    assert math.isclose(replacement_rate("cosine", 0.2, 5, 10), 0.1) and replacement_rate("cosine", 0.2, 0, 10) == 0.2
    assert replacement_rate("constant", 0.2, 7, 10) == 0.2


@pytest.mark.parametrize(("every", "window"), [(0, 0), (4, 4), (4, -1)])
def test_windows_that_overlap_are_refused(every, window):
    with pytest.raises(ConfigError, match="window"):
        SelectionCallback(every, window)
