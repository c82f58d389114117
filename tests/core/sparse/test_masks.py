"""Patterns, SparseGPT and Wanda, pruned models that stay pruned, masks that move, their optimizer and packed form."""

from __future__ import annotations

import itertools

import pytest
import torch
import transformers as tr
from torch import nn

from core.config.registry import BuildContext
from core.config.sparse import AstOptions, PruneOptions
from core.errors import ConfigError, DataError, UnsupportedError
from core.models.linear_form import MaskedLinear
from core.models.surgery import ops_of, register
from core.sparse import ast, masks
from core.sparse.ast_linear import AdaptiveLinear
from core.statistics.importance import Pattern, magnitude, mask_of, wanda

IDS = torch.arange(3, 15).view(1, -1)


def llama(**more):
    torch.manual_seed(0)
    config = {
        "vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 36, "max_position_embeddings": 64, "num_key_value_heads": 2,
    }  # fmt: skip
    return tr.LlamaForCausalLM(tr.LlamaConfig(**config | more)).eval()


def batches():
    return list(torch.randint(3, 40, (8, 16), generator=torch.Generator().manual_seed(0)).split(4))


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_a_pattern_keeps_exactly_what_it_says():
    scores = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    grouped = mask_of(scores, Pattern.parse("2:4"))
    assert bool((grouped.unflatten(1, (-1, 4)).sum(-1) == 2).all())
    assert int((~mask_of(scores, Pattern.parse("0.75"))).sum()) == 72
    assert bool(((~mask_of(scores, Pattern.parse("0.75"), by_row=True)).sum(1) == 12).all())
    assert scores[grouped].abs().sum() > 0 and bool((scores[grouped].min() < scores[~grouped].max()).item())
    best = scores.unflatten(1, (-1, 4)).topk(2).values.sum()
    assert scores[grouped].sum() == pytest.approx(float(best))
    for text in ("4:2", "0:4", "1.5", "half", "2:0", "0"):
        with pytest.raises(ConfigError):
            Pattern.parse(text)


def test_wanda_weighs_by_the_norm_of_the_input():
    assert wanda(torch.tensor([[1.0, -3.0]]), torch.tensor([16.0, 1.0])).tolist() == [[4.0, 3.0]]


@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_sparsegpt_without_correlations_is_magnitude_pruning(pattern):
    weight = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    new, mask = masks.sparsegpt(weight, torch.eye(16), Pattern.parse(pattern))
    assert torch.equal(mask, mask_of(magnitude(weight), Pattern.parse(pattern)))
    torch.testing.assert_close(new, weight * mask)


def test_sparsegpt_makes_up_for_what_goes():
    """1 × 3, one weight goes: with the mask that it chose, its row is close to the least-squares one."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 16, generator=generator) @ torch.randn(16, 16, generator=generator)
    hessian, weight = x.T @ x, torch.randn(8, 16, generator=generator)

    def error(new):
        return float((x @ (new - weight).T).square().sum())

    for pattern in ("0.5", "2:4"):
        new, mask = masks.sparsegpt(weight, hessian, Pattern.parse(pattern))
        assert bool((new[~mask] == 0).all())
        plain = error(weight * mask_of(magnitude(weight), Pattern.parse(pattern)))
        assert error(new) < 0.8 * plain and error(new) < 0.8 * error(weight * mask)
    small, row = hessian[:3, :3], weight[:1, :3]
    new, mask = masks.sparsegpt(row, small, Pattern.parse("0.34"))

    def fit(kept):
        inner = torch.linalg.solve(small[kept][:, kept], small[kept] @ row[0])
        full = torch.zeros(3)
        full[kept] = inner
        return float((full - row[0]) @ small @ (full - row[0]))

    found = float((new[0] - row[0]) @ small @ (new[0] - row[0]))
    choices = [fit(torch.tensor(kept)) for kept in itertools.combinations(range(3), 2)]
    assert min(choices) * 0.99 <= found <= max(choices) * 1.1
    first_gone = not bool(mask[0, 0])
    if first_gone:
        assert found == pytest.approx(fit(torch.tensor([1, 2])), rel=0.1)


@pytest.mark.parametrize("method", masks.METHODS)
@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_a_pruned_model_is_saved_and_stays_pruned_in_training(method, pattern, tmp_path):
    model = masks.one_shot(llama(), batches(), method, pattern)
    assert masks.sparsity(model) == pytest.approx(0.5, abs=0.01)
    dead = {n: p.mask.clone() for n, p in model.named_modules() if isinstance(p, MaskedLinear)}
    assert len(dead) == 14
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        for name, mask in dead.items():
            assert bool((model.get_submodule(name).weight[~mask] == 0).all())
    model.save_pretrained(tmp_path)
    register()
    again = tr.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again), logits(model.eval()))
    assert masks.sparsity(again) == masks.sparsity(model)


def test_fine_tuning_learns_from_the_dense_model(tmp_path):
    dense = logits(llama())
    options = PruneOptions(method="magnitude", pattern="0.75", ce=0.0, kl=1.0)
    model = masks.build(llama(), options, BuildContext())
    cls, _ = masks.hook(tr.Trainer, model, options)
    args = tr.TrainingArguments(
        output_dir=str(tmp_path), max_steps=25, use_cpu=True, report_to=[], learning_rate=1e-3, disable_tqdm=True,
        label_names=["labels"], save_strategy="no", per_device_train_batch_size=4,
    )  # fmt: skip
    before = (logits(model) - dense).square().mean()
    rows = [{"input_ids": IDS[0], "labels": IDS[0]}] * 100
    cls(model=model, args=args, train_dataset=rows).train()
    assert (logits(model.eval()) - dense).square().mean() < before
    assert masks.sparsity(model) == pytest.approx(0.75, abs=0.01)


def test_what_cannot_be_pruned_is_refused_and_left_alone():
    model = llama(intermediate_size=34)
    before = logits(model)
    with pytest.raises(ConfigError, match="groups of 4"):
        masks.one_shot(model, batches(), "magnitude", "2:4")
    assert torch.equal(logits(model), before) and not hasattr(model.config, "graft")
    with pytest.raises(ConfigError, match="magnitud"):
        masks.one_shot(llama(), batches(), "magnitud")
    with pytest.raises(DataError, match="inputs"):
        masks.one_shot(llama(), [], "wanda")
    with pytest.warns(UserWarning, match="little of a model"):
        masks.one_shot(llama(), [], "magnitude", "0.96")


def test_sparsity_may_rise_in_steps():
    model = masks.one_shot(llama(), batches(), "sparsegpt", "0.5")
    first = {name: part.mask.clone() for name, part in model.named_modules() if isinstance(part, MaskedLinear)}
    with torch.no_grad():
        for name, part in model.named_modules():
            if name in first:
                part.weight.mul_(1.5)
    masks.one_shot(model, batches(), "sparsegpt", "0.75")
    assert abs(masks.sparsity(model) - 0.75) < 0.01
    assert all(not bool((model.get_submodule(name).mask & ~mask).any()) for name, mask in first.items())


# ---- moving masks ----------------------------------------------------------------------------------------------------


def test_all_weights_get_the_gradient_of_their_place():
    form = AdaptiveLinear.from_dense(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)))
    x, up = torch.randn(5, 8), torch.randn(5, 4)
    (form(x) * up).sum().backward()
    torch.testing.assert_close(form.weight.grad, up.T @ x)
    torch.testing.assert_close(form(x), x @ (form.weight * form.mask).T)


def test_masks_may_follow_the_inputs_too():
    weight = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    form = AdaptiveLinear.from_dense(weight, metric="wanda").train()
    assert form.mask.tolist() == [[True, True, False, False]]
    form(torch.tensor([[[1.0, 1.0, 2.5, 1.0], [1.0, 1.0, 0.0, 0.0]]]))
    # |w| ‖x‖ = 4√2, 3√2, 2 · 2.5, 1
    assert form.update() == 2 and form.mask.tolist() == [[True, False, True, False]]
    assert form.squares.tolist() == [0.0] * 4
    form.eval()(torch.ones(1, 4))
    assert form.squares.tolist() == [0.0] * 4 and form.update() == 2
    again = AdaptiveLinear.empty(4, 1, False, **form.describe())
    again.load_state_dict(form.state_dict())
    assert again.metric == "wanda"


@pytest.mark.parametrize("train_projection", [False, True])
def test_the_branch_gives_every_input_of_a_group_the_mean_of_what_went(train_projection):
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    form = AdaptiveLinear.from_dense(weight, slorb_k=4, train_projection=train_projection)
    gone = weight * ~form.mask
    means = gone.unflatten(1, (-1, 4)).mean(-1).repeat_interleave(4, 1)
    x = torch.randn(5, 8)
    torch.testing.assert_close(form(x), x @ (weight * form.mask + means).T)
    torch.testing.assert_close(form.dense_weight(), weight * form.mask + means)
    assert form.branch.S.numel() == weight.numel() / 4
    again = AdaptiveLinear.empty(8, 4, False, **form.describe())
    again.load_state_dict(form.state_dict())
    assert torch.equal(again(x), form(x))


def test_one_step_with_every_term_by_hand():
    p = nn.Parameter(torch.tensor([[2.0, -1.0, 0.5, 3.0]]))
    mask = torch.tensor([[True, False, False, True]])
    optimizer = ast.AstAdamW([p], {p: mask}, lr=0.1, betas=(0.5, 0.5), eps=0.0, weight_decay=0.2, decay=0.4, ramp=2)
    p.grad = torch.tensor([[1.0, 1.0, -2.0, 4.0]])
    optimizer.step()
    # λ = 0.4 · 1/2; m = g/2; u = m + λ ¬M w; v = u²/2; bias corrections 1/2 and 1/2
    u = torch.tensor([[0.5, 0.5 - 0.2, -1.0 + 0.1, 2.0]])
    expected = torch.tensor([[2.0, -1.0, 0.5, 3.0]]) * (1 - 0.02) - 0.1 * (u / 0.5) / u.square().sqrt()
    torch.testing.assert_close(p.detach(), expected)
    torch.testing.assert_close(optimizer.state[p]["exp_avg"], p.grad / 2)
    with pytest.raises(UnsupportedError, match="integer"):
        ast.AstAdamW([p], {p: mask.int()})


def test_without_decay_and_with_a_fixed_mask_it_is_adamw_on_the_kept_weights():
    torch.manual_seed(0)
    mine, theirs = nn.Parameter(torch.randn(3, 8)), nn.Parameter(torch.zeros(3, 8))
    theirs.data.copy_(mine.data)
    mask = mask_of(magnitude(mine.detach()), Pattern.parse("2:4"))
    own = ast.AstAdamW([mine], {mine: mask}, lr=0.01, decay=0.0, weight_decay=0.1)
    # its second moment sees the first moment, not the gradient
    reference_first, reference_second = torch.zeros(3, 8), torch.zeros(3, 8)
    plain = nn.Parameter(theirs.data.clone())
    unmasked = ast.AstAdamW([plain], {}, lr=0.01, weight_decay=0.1)
    torch_adamw = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(1, 4):
        gradient = torch.randn(3, 8)
        mine.grad, plain.grad, theirs.grad = gradient.clone(), gradient.clone(), gradient.clone()
        before = mine.detach().clone()
        for optimizer in (own, unmasked, torch_adamw):
            optimizer.step()
        reference_first = 0.9 * reference_first + 0.1 * gradient
        reference_second = 0.95 * reference_second + 0.05 * reference_first.square()
        change = reference_first / (1 - 0.9**step) / ((reference_second / (1 - 0.95**step)).sqrt() + 1e-8)
        torch.testing.assert_close(mine.detach(), before * (1 - 0.001) - 0.01 * change)
    torch.testing.assert_close(plain.detach(), theirs.detach())


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, i):
        ids = torch.randint(3, 40, (12,), generator=torch.Generator().manual_seed(i))
        return {"input_ids": ids, "labels": ids}


def train(folder, mode="whole", steps=9):
    options = AstOptions(update_every=2, decay=0.05, ramp_steps=4, slorb_k=4)
    model = ast.build(llama(), options, BuildContext())
    cls, callbacks = ast.hook(tr.Trainer, model, options)
    args = tr.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=2, max_steps=steps, use_cpu=True, report_to=[],
        disable_tqdm=True, save_steps=5, learning_rate=1e-2, label_names=["labels"], logging_steps=100,
    )  # fmt: skip
    trainer = cls(model=model, args=args, train_dataset=Rows(), callbacks=callbacks)

    class Watch(tr.TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **_):
            for part in ast.adaptive(model).values():
                assert bool((part.mask.unflatten(1, (-1, 4)).sum(-1) == 2).all())
            control.should_training_stop |= mode == "stop" and state.global_step >= 5

    trainer.add_callback(Watch())
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-5") if mode == "go" else None)
    return trainer


def test_masks_move_and_a_resumed_run_moves_them_alike(tmp_path):
    whole = train(tmp_path / "a")
    assert any(share > 0 for share in whole.selection.history) and len(whole.selection.history) == 4
    train(tmp_path / "b", "stop")
    parts = train(tmp_path / "b", "go")
    assert parts.selection.history == whole.selection.history
    state, other = whole.model.state_dict(), parts.model.state_dict()
    assert all(torch.equal(state[name], other[name]) for name in state)


@pytest.mark.parametrize("slorb", [None, 4])
def test_the_served_form_computes_the_same_and_is_saved(slorb, tmp_path):
    model = ast.sparsify(llama(), AstOptions(slorb_k=slorb))
    before = logits(model)
    model.save_pretrained(tmp_path / "moving")
    register()
    assert torch.equal(logits(tr.AutoModelForCausalLM.from_pretrained(tmp_path / "moving").eval()), before)
    ast.export_semi24(model)
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path / "packed")
    again = tr.AutoModelForCausalLM.from_pretrained(tmp_path / "packed").eval()
    torch.testing.assert_close(logits(again), before, rtol=1e-5, atol=1e-5)
    with pytest.raises(UnsupportedError, match="2:4"):
        ast.export_semi24(ast.sparsify(llama(), AstOptions(pattern="0.5")))
    model = ast.sparsify(llama(), AstOptions())
    before = len(ops_of(model))
    with pytest.raises(UnsupportedError, match="tensor cores"):
        ast.export_semi24(model, pack=True)
    assert len(ast.adaptive(model)) == 14 and len(ops_of(model)) == before
    with pytest.raises(ConfigError, match="groups of 5"):
        ast.sparsify(llama(), AstOptions(slorb_k=5))
