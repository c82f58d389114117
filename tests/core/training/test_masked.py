"""Masked language modelling: what is hidden, what is told, and that adapters on an encoder learn a language."""

from __future__ import annotations

import pytest
import torch

from core.config.load import recipe_from
from core.config.run_folder import RunFolder
from core.errors import ConfigError, UnsupportedError
from core.inference.load import load_for_serving
from core.training.masked import corrupt
from core.training.run import train


def test_a_share_is_chosen_and_most_of_it_hidden():
    torch.manual_seed(0)
    ids = torch.randint(10, 1000, (50, 400))
    eligible = torch.ones_like(ids, dtype=torch.bool)
    eligible[:, 0] = False
    out, labels = corrupt(ids, eligible, 0.15, 3, 1000)
    chosen = labels != -100
    assert not chosen[:, 0].any() and 0.14 < chosen.float().mean() < 0.16
    assert torch.equal(labels[chosen], ids[chosen]) and torch.equal(out[~chosen], ids[~chosen])
    hidden = (out == 3) & chosen
    kept = (out == ids) & chosen
    assert 0.77 < hidden.sum() / chosen.sum() < 0.83 and 0.08 < kept.sum() / chosen.sum() < 0.12


LINES = ["the cat sits on the mat", "the dog sits on the mat", "a cat sees the dog", "a dog sees the cat"] * 8


def recipe(tmp_path, output, steps=60, method="lm.mlm", packing=False, **model):
    (tmp_path / "train.txt").write_text("\n".join(LINES))
    return recipe_from(
        {
            "app": "lm",
            "output": str(output),
            "model": {"preset": "tiny-bert", "tokenizer": "bpe:300", **model},
            "data": {
                "train": [{"reader": "text", "path": str(tmp_path / "train.txt"), "with": {"unit": "line"}}],
                "eval": [{"reader": "text", "path": str(tmp_path / "train.txt"), "with": {"unit": "line"}, "limit": 4}],
                "max_length": 32,
                "packing": packing,
            },
            "method": method,
            "train": {"max_steps": steps, "lr": 1e-2, "batch": {"size": 16}},
            "eval": {"every": 0, "metrics": ["perplexity"]},
        }
    )


@pytest.mark.parametrize("adapters", [[], [{"kind": "seq_bottleneck", "with": {"reduction_factor": 4}}]])
def test_an_encoder_learns_and_is_served(tmp_path, adapters):
    run = RunFolder.create(recipe(tmp_path, tmp_path / "run", adapters=adapters))
    result = train(run.recipe(), run)
    before, after = (result[when].value("perplexity") for when in ("before", "after"))
    assert after < (0.2 if not adapters else 0.9) * before
    served, _, _ = load_for_serving(str(run.path))
    assert "ForMaskedLM" in type(served.get_base_model() if adapters else served).__name__


def test_rows_that_all_fill_their_length_come_without_a_mask(tmp_path):
    from transformers import TrainingArguments

    from core.config.schema import ModelConfig, TrainConfig
    from core.data.collate import Collator
    from core.data.encode import Encoded
    from core.models.load import load_model
    from core.models.tokenizer import train_bpe
    from core.training.masked import masked_trainer

    tokenizer = train_bpe(LINES, 300)
    batch = Collator(0, max_length=16)([Encoded(list(range(5, 21)), list(range(5, 21)))])
    assert "attention_mask" not in batch
    trainer = masked_trainer(tokenizer)(
        model=load_model(ModelConfig(preset="tiny-bert"), tokenizer, seed=3), train_config=TrainConfig(),
        args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[]),
    )  # fmt: skip
    assert trainer.compute_loss(trainer.model, batch).isfinite()


def test_mistakes_are_told(tmp_path):
    with pytest.raises(UnsupportedError, match="share a sequence"):
        recipe(tmp_path, tmp_path / "packed", packing=True)
    run = RunFolder.create(recipe(tmp_path, tmp_path / "causal", preset="tiny"))
    with pytest.raises(ConfigError, match="cannot fill in"):
        train(run.recipe(), run)


def test_a_step_is_the_same_for_every_cut_of_its_batch(tmp_path, monkeypatch):
    """What is hidden is said by the rows themselves, not by lots, so that cuts can be compared."""
    from transformers import TrainingArguments

    from core.config.schema import ModelConfig, TrainConfig
    from core.data.collate import Collator
    from core.data.dataset import EncodedDataset
    from core.data.encode import Encoded
    from core.models.load import load_model
    from core.models.presets import PRESETS
    from core.models.tokenizer import train_bpe
    from core.training import masked
    from core.training.trainer import CountingCollator

    def every_third(ids, eligible, share, hide_with, vocabulary):
        chosen = eligible & (torch.arange(ids.shape[1]) % 3 == 1)
        return torch.where(chosen, hide_with, ids), torch.where(chosen, ids, -100)

    monkeypatch.setattr(masked, "corrupt", every_third)
    kind, shape = PRESETS["tiny-bert"]
    silent = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    monkeypatch.setitem(PRESETS, "tiny-bert", (kind, {**shape, **silent}))
    tokenizer = train_bpe(LINES, 300)
    generator = torch.Generator().manual_seed(0)
    lengths = (4, 30, 9, 17, 25, 6, 12, 20)
    ids = [torch.randint(5, 250, (length,), generator=generator).tolist() for length in lengths]
    data, found = EncodedDataset([Encoded(row, list(row)) for row in ids]), []
    for micro, accumulation in ((8, 1), (4, 2), (3, 3), (1, 8)):
        model = load_model(ModelConfig(preset="tiny-bert"), tokenizer, seed=3)
        arguments = TrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation,
            max_steps=1, learning_rate=0.1, optim="sgd", max_grad_norm=0.0, use_cpu=True, report_to=[],
            remove_unused_columns=False, disable_tqdm=True, save_strategy="no", label_names=["labels"],
        )  # fmt: skip
        trainer = masked.masked_trainer(tokenizer)(
            model=model, args=arguments, train_dataset=data, data_collator=CountingCollator(Collator(1)),
            train_config=TrainConfig(schedule="constant", warmup=0),
        )  # fmt: skip
        before = torch.cat([p.detach().flatten() for p in model.parameters()])
        trainer.train()
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]) - before)
    assert found[0].abs().max() > 1e-3
    for other in found[1:]:
        assert float((other - found[0]).abs().max() / found[0].abs().max()) < 1e-4
