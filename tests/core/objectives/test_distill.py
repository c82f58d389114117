"""Distillation in closed form, and through the Trainer: same gradient whole, in pieces and accumulated."""

from __future__ import annotations

import math

import pytest
import torch
import transformers as tr
from torch.utils.data import Dataset

from core.errors import ConfigError
from core.objectives import distill
from core.objectives.distill import BF16_EPSILON, IGNORE, DistillLoss, DistillMixin, distillation


def llama(seed=0, layers=2, width=16):
    torch.manual_seed(seed)
    config = tr.LlamaConfig(
        vocab_size=30, hidden_size=width, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32,
    )  # fmt: skip
    return tr.LlamaForCausalLM(config)


def identity(x):
    return x


def kl_of(student, teacher, temperature):
    loss = DistillLoss(ce=0, kl=1, temperature=temperature)
    return loss.logit_terms(student, identity, teacher, identity, torch.zeros(len(student), dtype=torch.long))[1]


def test_divergence_of_two_tokens_is_the_bernoulli_one():
    a, b = 0.7, -1.2
    for temperature in (1.0, 3.0):
        q, p = torch.tensor([[a, 0.0]]), torch.tensor([[b, 0.0]])
        pt, qt = (1 / (1 + math.exp(-x / temperature)) for x in (b, a))
        expected = temperature**2 * (pt * math.log(pt / qt) + (1 - pt) * math.log((1 - pt) / (1 - qt)))
        torch.testing.assert_close(kl_of(q, p, temperature), torch.tensor(expected), atol=1e-6, rtol=1e-5)


def test_for_small_logits_the_temperature_cancels():
    torch.manual_seed(0)
    q, p = (3e-2 * torch.randn(4, 9) for _ in range(2))
    values = [kl_of(q, p, t).item() for t in (1.0, 2.0, 8.0)]
    assert max(values) / min(values) < 1.02


@pytest.mark.parametrize("kind", ["squarehead", "mse", "cosine"])
def test_a_model_is_its_own_perfect_teacher(kind):
    model = llama()
    ids = torch.randint(0, 30, (2, 9))
    terms = distillation(DistillLoss(kl=1, hidden=1, hidden_kind=kind), model, llama(), {"input_ids": ids}, ids)
    assert terms["kl"].abs() < 1e-5 and terms["hidden"].abs() < 1e-6 and terms["count"] == 16
    other = distillation(DistillLoss(kl=1, hidden=1, hidden_kind=kind), model, llama(1), {"input_ids": ids}, ids)
    assert other["kl"] > 1e-3 and other["hidden"] > 1e-3


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_hidden_states_are_those_of_transformers_the_last_behind_the_final_norm(family):
    torch.manual_seed(0)
    small = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    model = {
        "llama": llama,
        "gpt2": lambda: tr.GPT2LMHeadModel(tr.GPT2Config(vocab_size=30, n_embd=16, n_layer=3, n_head=2)),
        "bert": lambda: tr.BertForMaskedLM(tr.BertConfig(**small, intermediate_size=24)),
    }[family]().eval()
    with distill.states_of(model, blocks=True) as found:
        told = model(torch.randint(0, 30, (2, 9)), output_hidden_states=True).hidden_states[1:]
    assert len(found["blocks"]) == len(told) > 1
    assert all(torch.equal(own, other) for own, other in zip(found["blocks"], told))


def test_a_silent_student_costs_one_for_each_layer():
    teacher = [torch.randn(2, 5, 8) for _ in range(3)]
    found = DistillLoss().hidden_term([torch.zeros(2, 5, 8)] * 3, teacher, None)
    expected = sum(float(t.square().mean() / (t.square().mean() + BF16_EPSILON)) for t in teacher)
    assert abs(float(found) - expected) < 1e-6 and 2.9 < expected < 3
    mask = torch.ones(2, 5).long()
    mask[0, 2:] = 0
    padded = [torch.where(mask[..., None].bool(), t, torch.full_like(t, 1e4)) for t in teacher]
    clean = DistillLoss().hidden_term([torch.zeros(2, 5, 8)] * 3, padded, mask)
    assert abs(float(clean) - float(DistillLoss().hidden_term([torch.zeros(2, 5, 8)] * 3, teacher, mask))) < 1e-6


def test_pieces_and_labels_give_the_same_gradient_as_whole_logits():
    model, teacher = llama(), llama(1)
    ids = torch.randint(0, 30, (3, 8))
    labels = ids.clone()
    labels[0, :4] = IGNORE
    mixed = DistillLoss(ce=0.3, kl=0.7, temperature=2.0, chunk=5)
    terms = distillation(mixed, model, teacher, {"input_ids": ids}, labels)
    (0.3 * terms["ce"] + 0.7 * terms["kl"]).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    own, wise = model(ids).logits[:, :-1], teacher(ids).logits[:, :-1].detach()
    kept = labels[:, 1:] != IGNORE
    ce = torch.nn.functional.cross_entropy(own[kept], labels[:, 1:][kept], reduction="sum")
    p, q = (wise[kept] / 2).softmax(-1), (own[kept] / 2).log_softmax(-1)
    kl = 4 * (p * (p.log() - q)).sum()
    torch.testing.assert_close(terms["ce"], ce)
    torch.testing.assert_close(terms["kl"], kl)
    (0.3 * ce + 0.7 * kl).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-5, rtol=1e-4)


def test_the_cross_entropy_is_smoothed_and_its_normaliser_held_as_the_recipe_says(tmp_path):
    model, ids = llama(), torch.randint(0, 30, (2, 9))
    shaped = DistillLoss(smoothing=0.2, z_loss=0.3)
    found = distillation(shaped, model, None, {"input_ids": ids}, ids)["ce"]
    logits = model(ids).logits[:, :-1].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="sum", label_smoothing=0.2)
    torch.testing.assert_close(found, expected + 0.3 * logits.logsumexp(-1).square().sum())

    from core.config.schema import TrainConfig
    from core.training.trainer import SupervisedTrainer

    args = tr.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    made = distill.distilling(SupervisedTrainer, DistillLoss(ce=0.5, kl=0.5), llama(1))
    trainer = made(model=model, args=args, train_config=TrainConfig(label_smoothing=0.2, z_loss=0.3))
    assert (trainer.distill.smoothing, trainer.distill.z_loss, trainer.distill.ce) == (0.2, 0.3, 0.5)


@pytest.mark.parametrize("form", ["auto", "fused", "whole"])
def test_all_logits_are_made_at_one_time_where_the_recipe_says_so(tmp_path, form):
    """Whole logits come from one call of each head and stay; pieces are made again on the way back. Same gradient."""
    from core.config.schema import BackendConfig, TrainConfig
    from core.training.trainer import SupervisedTrainer

    args = tr.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    teacher, ids = llama(1), torch.randint(0, 30, (3, 9), generator=torch.Generator().manual_seed(0))

    def gradient(form):
        made = distill.distilling(SupervisedTrainer, DistillLoss(ce=0.3, kl=0.7, hidden=0.1, chunk=7), teacher)
        model = llama()
        trainer = made(model=model, args=args, train_config=TrainConfig(), backend=BackendConfig(cross_entropy=form))
        calls = []
        model.lm_head.register_forward_hook(lambda module, given, made: calls.append(given[0].flatten(0, -2).shape[0]))
        trainer.compute_loss(model, {"input_ids": ids, "labels": ids}).backward()
        return trainer.distill, calls, [p.grad for p in model.parameters()]

    distilled, calls, found = gradient(form)
    # the model's own call makes the last position of every row
    assert calls == ([3, 24] if form == "whole" else [3, 7, 7, 7, 3, 3, 7, 7, 7])
    assert distilled.form == ("whole" if form == "whole" else "fused") and distilled.hidden == 0.1
    for own, other in zip(found, gradient("fused")[2]):
        torch.testing.assert_close(own, other)


class Rows(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        ids = torch.randint(0, 30, (8,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids, "attention_mask": torch.ones(8, dtype=torch.long)}


def test_padding_of_a_packed_row_adds_no_distance():
    ids = torch.randint(0, 30, (1, 8), generator=torch.Generator().manual_seed(4))
    padded, labels = torch.cat([ids, torch.zeros(1, 5, dtype=torch.long)], 1), torch.full((1, 13), -100)
    labels[:, :8] = ids
    plain, packed = (
        distillation(DistillLoss(hidden=1), llama(), llama(1), {"input_ids": i}, y)["hidden"]
        for i, y in ((ids, ids), (padded, labels))
    )
    assert abs(float(packed - plain)) < 1e-6


def trained(tmp_path, *, micro=8, accumulation=1, checkpointing=False, peft=False, hidden=0.5):
    model = llama()
    if peft:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    args = tr.TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation,
        max_steps=2, learning_rate=0.1, optim="sgd", lr_scheduler_type="constant", use_cpu=True, report_to=[],
        disable_tqdm=True, save_strategy="no", max_grad_norm=0.0, gradient_checkpointing=checkpointing, logging_steps=1,
        gradient_checkpointing_kwargs={"use_reentrant": False}, seed=1,
    )  # fmt: skip
    trainer = distill.DistillTrainer(
        model=model, args=args, train_dataset=Rows(), teacher=None if peft else llama(1),
        distill=DistillLoss(ce=0.5, kl=0.5, hidden=hidden, temperature=2.0),
    )  # fmt: skip
    trainer.train()
    return trainer, {name: p.detach().clone() for name, p in model.named_parameters()}


def test_the_trainer_takes_the_same_step_whole_accumulated_and_checkpointed(tmp_path):
    trainer, whole = trained(tmp_path)
    assert isinstance(trainer, DistillMixin) and {"ce", "kl", "hidden"} <= set(trainer.state.log_history[0])
    _, recomputed = trained(tmp_path, checkpointing=True)
    _, logits = trained(tmp_path, hidden=0.0)
    _, accumulated = trained(tmp_path, hidden=0.0, micro=4, accumulation=2)
    for one, other in ((whole, recomputed), (logits, accumulated)):
        assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-6
    assert max(float((whole[name] - logits[name]).abs().max()) for name in whole) > 1e-3
    assert max(float((logits[name] - p).abs().max()) for name, p in llama().named_parameters()) > 1e-3


def test_adapters_learn_from_the_model_without_them(tmp_path):
    before = dict(llama().named_parameters())
    trainer, after = trained(tmp_path, peft=True)
    assert trainer.teacher is None and trainer.state.log_history[0]["kl"] > 0
    base = {
        n.replace("base_model.model.", "").replace("base_layer.", ""): p for n, p in after.items() if "lora" not in n
    }
    assert all(torch.equal(base[name], before[name]) for name in before)


def test_mistakes_are_told(tmp_path):
    with pytest.raises(ConfigError, match="temperature"):
        DistillLoss(temperature=0)
    with pytest.raises(ConfigError, match="2 blocks learn from 3"):
        DistillLoss().hidden_term([torch.zeros(1, 1, 1)] * 2, [torch.zeros(1, 1, 1)] * 3, None)
    with pytest.raises(ConfigError, match="student block 0, teacher block 1|hidden states"):
        DistillLoss(layer_map={0: 1}).hidden_term([torch.zeros(1, 1, 4)], [torch.zeros(1, 1, 8)] * 2, None)
    with pytest.raises(ConfigError, match="no pair 5"):
        DistillLoss(layer_map={5: 0}).pairs(2, 2)
    args = tr.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    with pytest.raises(ConfigError, match="no teacher"):
        distill.DistillTrainer(model=llama(), args=args, distill=DistillLoss(kl=1))
