"""Adapters: what trains is what was asked, and nothing is lost between training, saving, merging and loading."""

from __future__ import annotations

import pytest
import torch

from core.config.schema import AdapterConfig, ModelConfig, TrainConfig
from core.data.collate import Collator
from core.data.dataset import EncodedDataset
from core.data.encode import Encoded
from core.inference.save import save_model
from core.models.load import load_model
from core.models.tokenizer import add_tokens, train_bpe
from core.training.build import add_adapters
from core.training.merge import logits_of, merge
from core.training.trainer import SupervisedTrainer

PROBE = torch.arange(5, 60).unsqueeze(0)
HEADS = {
    "embedding": ["embed_tokens"],
    "head": ["lm_head"],
    "both": ["embed_tokens", "lm_head"],
}


@pytest.fixture
def tokenizer():
    return train_bpe(["some text to learn from"], 300)


def data(ids=range(5, 45)) -> EncodedDataset:
    ids = list(ids)
    return EncodedDataset([Encoded(ids[i : i + 10], ids[i : i + 10]) for i in range(0, len(ids) - 10, 6)])


def trainer_of(model, folder, rows=None, steps=1, **arguments) -> SupervisedTrainer:
    from transformers import TrainingArguments

    args = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=4, max_steps=steps, learning_rate=1e-2, use_cpu=True,
        report_to=[], disable_tqdm=True, save_strategy="no", remove_unused_columns=False, label_names=["labels"],
        **arguments,
    )  # fmt: skip
    config = TrainConfig(schedule="constant", warmup=0)
    return SupervisedTrainer(
        model=model, args=args, train_dataset=rows or data(), data_collator=Collator(1), train_config=config
    )


def trainable(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def test_the_optimizer_holds_what_trains_and_nothing_else(tmp_path, tokenizer):
    model = add_adapters(load_model(ModelConfig(preset="tiny"), tokenizer), [AdapterConfig(r=4)])
    trainer = trainer_of(model, tmp_path)
    trainer.create_optimizer()
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad} and held
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    trainer.train()
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)


def test_checkpointing_with_a_frozen_embedding_still_gives_every_adapter_its_gradient(tmp_path, tokenizer):
    found = []
    for on in (False, True):
        model = add_adapters(load_model(ModelConfig(preset="tiny"), tokenizer), [AdapterConfig(r=4)])
        for name, p in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(p, 1e-2)
        before = trainable(model)
        more = {"gradient_checkpointing": on, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
        trainer_of(model, tmp_path, optim="sgd", max_grad_norm=0.0, **more).train()
        after = trainable(model)
        assert all(not torch.equal(before[name], after[name]) for name in before)
        found.append(after)
    assert all((found[0][name] - found[1][name]).abs().max() < 1e-6 for name in found[0])


def test_adapters_are_equal_for_equal_seeds_and_leave_the_random_state(tokenizer):
    def built(seed):
        return trainable(add_adapters(load_model(ModelConfig(preset="tiny"), tokenizer), [AdapterConfig(r=4)], seed))

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = built(1)
    assert torch.equal(torch.rand(3), expected)
    again, other = built(1), built(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("trained", HEADS.values(), ids=HEADS)
def test_new_tokens_and_a_trained_tied_table_survive_saving_and_merging(tmp_path, tokenizer, trained):
    """The base's embedding and head are one tensor. Training one side parts them, and the merged config must say so."""
    model = load_model(ModelConfig(preset="tiny"), tokenizer)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    new = add_tokens(model, tokenizer, [f"<new{i}>" for i in range(5)])
    model = add_adapters(model, [AdapterConfig(r=4, modules_to_save=trained)])
    model.peft_config["default"].base_model_name_or_path = "base"
    before = logits_of(model, PROBE)
    trainer_of(model, tmp_path / "t", data([*range(5, 40), *new, *range(40, 60)]), steps=3).train()
    model.eval()
    live = logits_of(model, torch.cat([PROBE, torch.tensor([new])], 1))
    assert (live[:, : PROBE.shape[1]] - before).abs().max() > 1e-2
    save_model(model, tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    merge(tmp_path / "adapter", tmp_path / "merged", "fp32")
    from core.inference.load import load_for_serving

    for folder in ("adapter", "merged"):
        again, words, _ = load_for_serving(str(tmp_path / folder), device="cpu")
        assert words.convert_tokens_to_ids("<new4>") == new[4]
        found = logits_of(again, torch.cat([PROBE, torch.tensor([new])], 1))
        assert (found - live).abs().max() < 1e-4, folder


def test_merging_over_a_bf16_base_adds_in_fp32(tmp_path, tokenizer):
    """Each cast product is half a spacing of the weight at most: the merged weight is the rounded exact sum."""
    base = load_model(ModelConfig(preset="tiny"), tokenizer).to(torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    model = load_model(ModelConfig(path=str(tmp_path / "base"), dtype="fp32"), tokenizer)
    model = add_adapters(model, [AdapterConfig(r=4)])
    torch.manual_seed(0)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=1e-3)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    exact = (layer.base_layer.weight + layer.get_delta_weight("default")).detach()
    in_bf16 = layer.base_layer.weight.bfloat16() + layer.get_delta_weight("default").bfloat16()
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    save_model(model, tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    drift = merge(tmp_path / "adapter", tmp_path / "merged")
    from safetensors.torch import load_file

    found = load_file(tmp_path / "merged" / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    assert found.dtype == torch.bfloat16 and torch.equal(found, exact.bfloat16())
    assert not torch.equal(in_bf16, exact.bfloat16())
    assert drift["merge_max"] < 1e-4 < drift["cast_max"]
