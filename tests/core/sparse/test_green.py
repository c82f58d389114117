"""GreenTrainer: the knapsack against all subsets, planned FLOPs against counted ones, nothing left behind, resume."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
import transformers as tr
from torch.utils.flop_counter import FlopCounterMode

from core.config.sparse import GreenOptions
from core.errors import BudgetError, ConfigError, UnsupportedError
from core.sparse import green_training
from core.sparse.green import in_scope, tensor_flops
from core.sparse.green_counted import counted_costs
from core.sparse.green_training import GreenTrainerMixin, importance, set_free
from core.statistics.allocate import Stage, prefix_knapsack, threshold_bisect


def llama(**more):
    torch.manual_seed(0)
    config = {
        "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64,
        "attn_implementation": "eager",
    }  # fmt: skip
    return tr.LlamaForCausalLM(tr.LlamaConfig(**config | more))


def gpt2():
    torch.manual_seed(0)
    config = tr.GPT2Config(
        vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=64, attn_implementation="eager", resid_pdrop=0.0
    )
    return tr.GPT2LMHeadModel(config)


def brute_force(stages, budget):
    items = [(s, i) for s, stage in enumerate(stages) for i in range(len(stage.costs))]
    best = 0.0
    for size in range(1, len(items) + 1):
        for chosen in itertools.combinations(items, size):
            cost = sum(stage.passage for stage in stages[: max(s for s, _ in chosen)])
            cost += sum(stages[s].costs[i] for s, i in chosen)
            if cost <= budget:
                best = max(best, sum(stages[s].values[i] for s, i in chosen))
    return best


def test_the_knapsack_is_the_best_of_all_subsets():
    dice = random.Random(0)
    deep = 0
    for _ in range(120):
        stages = []
        while sum(len(stage.costs) for stage in stages) < 8:
            count = dice.randint(0, 3)
            costs = [dice.randint(0, 9) for _ in range(count)]
            stages.append(Stage(dice.randint(0, 6), costs, [dice.uniform(-1, 1) for _ in range(count)]))
        budget = dice.randint(9, 40)
        found = prefix_knapsack(stages, budget, budget)
        assert found.value == pytest.approx(brute_force(stages, budget))
        assert found.cost <= budget
        deep += bool(found.items) and found.items[-1][0] > 1
    assert deep > 30


def test_more_budget_is_never_worse_and_rounding_never_exceeds_it():
    dice = random.Random(1)
    stages = [
        Stage(dice.random(), [dice.random() for _ in range(4)], [dice.random() for _ in range(4)]) for _ in range(9)
    ]
    values = []
    for budget in (2.0, 3.0, 4.5, 7.0, 11.0, 30.0):
        found = prefix_knapsack(stages, budget, 1000)
        assert found.cost <= budget
        values.append(found.value)
    assert values == sorted(values) and values[-1] == pytest.approx(sum(sum(stage.values) for stage in stages))
    with pytest.raises(BudgetError) as error:
        prefix_knapsack([Stage(1.0), Stage(1.0, [3.0], [1.0])], 2.0)
    assert error.value.best_achievable == 4.0


def test_bisection_finds_the_last_threshold_below_the_share():
    points = [0.1, 0.35, 0.36, 0.9]
    found = threshold_bisect(lambda t: sum(p < t for p in points) / 4, 0.5)
    assert sum(p < found for p in points) == 2
    with pytest.raises(BudgetError):
        threshold_bisect(lambda t: 0.1 * t, 0.5)


IDS = torch.randint(0, 60, (2, 24), generator=torch.Generator().manual_seed(0))


def loss_of(model):
    return model(input_ids=IDS, labels=IDS, use_cache=False).loss


def counted(model, chosen):
    set_free(model, set(chosen))
    with FlopCounterMode(display=False) as forward:
        loss = loss_of(model)
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("flops", ["analytic", "measured"])
@pytest.mark.parametrize("make", [llama, lambda: llama(tie_word_embeddings=True), gpt2])
def test_planned_flops_are_the_counted_ones(make, flops):
    model, dice = make(), random.Random(0)
    costs = tensor_flops(model, 2, 24)
    names = sorted(name for place in costs.places for name in place.dw)
    assert names == sorted(name for name, _ in model.named_parameters(remove_duplicate=False))
    if flops == "measured":
        costs = counted_costs(model, costs, lambda: loss_of(model))
    for trial in range(16):
        chosen = set(names) if not trial else set(dice.sample(names, dice.randint(1, 5)))
        forward, backward = counted(make(), chosen)
        assert costs.forward == pytest.approx(forward, rel=0.02)
        assert costs.backward(chosen) == pytest.approx(backward, rel=0.02)


TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def test_a_tied_table_trains_as_the_head_alone_or_in_both_of_its_roles():
    tied, apart = llama(tie_word_embeddings=True), llama()
    apart.load_state_dict(tied.state_dict())
    costs = tensor_flops(tied, 2, 24)
    product = 2 * 48 * 32 * 60
    assert costs.backward({HEAD}) == product == counted(tied, {HEAD})[1]
    loss_of(apart).backward()
    torch.testing.assert_close(tied.lm_head.weight.grad, apart.lm_head.weight.grad)
    tied.zero_grad()
    assert costs.backward({HEAD, TABLE}) == costs.backward({TABLE}) == counted(tied, {TABLE})[1] > 5 * product
    both = apart.lm_head.weight.grad + apart.model.embed_tokens.weight.grad
    torch.testing.assert_close(tied.lm_head.weight.grad, both)
    assert costs.full == costs.forward + counted(tied, costs.names())[1]


def test_what_a_tied_table_is_worth_as_the_head_is_the_share_of_that_roles_gradient():
    tied, apart = llama(tie_word_embeddings=True), llama()
    optimizer = torch.optim.SGD(tied.parameters(), lr=0.1)
    start = tied.lm_head.weight.detach().clone()
    found = importance(tied, optimizer, {HEAD, TABLE}, lambda: loss_of(tied))
    set_free(tied, {TABLE})
    loss_of(tied).backward()
    step = -0.1 * tied.lm_head.weight.grad
    assert torch.equal(tied.lm_head.weight, start)
    apart.load_state_dict(tied.state_dict())
    for part in (apart.lm_head, apart.model.embed_tokens):
        part.weight.data += step
    loss_of(apart).backward()
    head, looked_up = (-(p.weight.grad * step).sum().item() for p in (apart.lm_head, apart.model.embed_tokens))
    assert found[TABLE] == 1 and found[HEAD] == pytest.approx(head / (head + looked_up), rel=1e-4)
    assert importance(tied, optimizer, {HEAD}, lambda: loss_of(tied)) == {HEAD: 1.0}


def test_of_a_tied_tables_two_names_the_better_is_chosen():
    costs, dice = tensor_flops(llama(tie_word_embeddings=True), 2, 24), random.Random(0)
    seen = set()
    for _ in range(30):
        worth = {name: dice.random() for name in costs.names()}
        worth[TABLE] = worth[HEAD] + dice.choice([0.0, 40.0])
        rho = dice.choice([0.5, 0.75, 0.9])
        chosen = costs.select(worth, rho)
        assert costs.share(chosen) <= rho and not {TABLE, HEAD} <= chosen
        ways = [costs.within(costs.names() - {name}).select(worth, rho) for name in (HEAD, TABLE)]
        best = max(sum(worth[name] for name in way) for way in ways)
        assert sum(worth[name] for name in chosen) == pytest.approx(best, rel=0.01)
        seen |= chosen & {TABLE, HEAD}
    assert seen == {TABLE, HEAD}
    assert costs.select(dict.fromkeys(costs.names(), 1.0) | {TABLE: 2.0}, 1.0) == costs.names() - {HEAD}
    assert costs.within({TABLE}).select({TABLE: 1.0}, 0.9) == {TABLE}


def test_a_kernel_that_costs_something_else_is_planned_only_by_counting():
    """Attention in one fused operation on a CPU: the counter sees no products in it."""
    model, dice = llama(attn_implementation="sdpa"), random.Random(0)
    shapes = tensor_flops(model, 2, 24)
    costs = counted_costs(model, shapes, lambda: loss_of(model))
    far = 0
    for _ in range(16):
        chosen = set(dice.sample(sorted(costs.names()), 3))
        backward = counted(model, chosen)[1]
        assert costs.backward(chosen) == pytest.approx(backward, rel=0.02)
        far += abs(shapes.backward(chosen) / backward - 1) > 0.02
    assert far > 8


def test_counting_leaves_no_trace():
    model = llama()
    model.train()
    frozen, kept = model.lm_head.weight.requires_grad_(False), model.model.norm.weight
    kept.grad = torch.ones_like(kept)
    counted_costs(model, tensor_flops(model, 2, 24), lambda: loss_of(model))
    assert not frozen.requires_grad and model.training and bool((kept.grad == 1).all())
    assert all(p.grad is None and (p is frozen or p.requires_grad) for p in model.parameters() if p is not kept)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_a_scope_names_the_tensors_that_may_be_chosen():
    model = llama()
    names = {name for name, _ in model.named_parameters()}
    outside = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert in_scope(model, "all") == names and in_scope(model, "blocks") == names - outside
    assert in_scope(model, ["layers.1", "q_proj"]) == {n for n in names if "layers.1." in n or "q_proj" in n}
    assert in_scope(model, "layers.[02].mlp") == {n for n in names if "mlp" in n and "layers.1" not in n}
    costs = tensor_flops(model, 2, 24)
    part = costs.within(in_scope(model, "mlp"))
    assert part.full == costs.full and part.names() == {n for n in names if "mlp" in n}
    assert part.reachable(0.6) == costs.reachable(0.6) & part.names()
    chosen = part.select(dict.fromkeys(names, 1.0), 0.6)
    assert chosen and chosen <= part.names() and part.share(chosen) == costs.share(chosen) <= 0.6
    for pattern, close in (("qproj", "q_proj"), ("layers.1.mpl", "model.layers.1.mlp"), ("block", "blocks")):
        with pytest.raises(ConfigError, match=pattern) as error:
            in_scope(model, [pattern])
        assert f"'{close}'" in error.value.hint


def test_the_deepest_tensor_passes_nothing_on():
    model = llama()
    costs = tensor_flops(model, 2, 24)
    down = "model.layers.2.mlp.down_proj.weight"
    assert costs.backward({down}) == 2 * 48 * 32 * 60 + 2 * 48 * 32 * 48 == counted(model, {down})[1]


def test_asking_leaves_no_trace():
    model = llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = torch.randint(0, 60, (2, 24), generator=torch.Generator().manual_seed(0))

    def loss():
        return model(input_ids=ids, labels=ids).loss

    loss().backward()
    optimizer.step()
    optimizer.zero_grad()
    weights = {n: p.clone() for n, p in model.named_parameters()}
    states = {n: {k: v.clone() for k, v in optimizer.state[p].items()} for n, p in model.named_parameters()}
    reachable = tensor_flops(model, 2, 24).reachable(0.6)
    found = importance(model, optimizer, reachable, loss)
    assert set(found) == reachable < set(weights) and max(abs(v) for v in found.values()) == 1.0
    for name, p in model.named_parameters():
        assert torch.equal(p, weights[name]) and p.grad is None
        assert all(torch.equal(value, states[name][key]) for key, value in optimizer.state[p].items())
    assert optimizer.param_groups[0]["lr"] == 1e-2


def test_importance_is_how_much_each_tensors_change_lowers_a_quadratic():
    model = torch.nn.Linear(1, 2, bias=True)
    with torch.no_grad():
        model.weight.fill_(1.0)
        model.bias.fill_(3.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = importance(
        model, optimizer, {"weight", "bias"}, lambda: model.weight.square().sum() + model.bias.square().sum()
    )
    # Δw = -0.2 w, g' = 1.6 w, so I = 0.32 w² a tensor: 1 to 9
    assert found == {"weight": pytest.approx(1 / 9), "bias": pytest.approx(1.0)}


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, i):
        ids = torch.randint(3, 60, (24,), generator=torch.Generator().manual_seed(i))
        return {"input_ids": ids, "labels": ids}


class GreenTrainer(GreenTrainerMixin, tr.Trainer):
    green = GreenOptions(rho=0.6, interval=4)


class Measured(GreenTrainerMixin, tr.Trainer):
    green = GreenOptions(rho=0.6, interval=4, flops="measured", scope="blocks")


def train(folder, mode="whole", steps=10, cls=GreenTrainer, model=llama):
    args = tr.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=2, max_steps=steps, use_cpu=True, report_to=[],
        disable_tqdm=True, save_steps=6, learning_rate=1e-3, label_names=["labels"], logging_steps=5, warmup_steps=2,
    )  # fmt: skip
    trainer = cls(model=model(), args=args, train_dataset=Rows())
    frees = []

    class Watch(tr.TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **_):
            frees.append([n for n, p in model.named_parameters() if p.requires_grad])
            control.should_training_stop |= mode == "stop" and state.global_step >= 6

    trainer.add_callback(Watch())
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-6") if mode == "go" else None)
    return trainer, frees


@pytest.mark.parametrize("cls", [GreenTrainer, Measured])
def test_it_trains_within_its_budget_and_a_resumed_run_selects_the_same(cls, tmp_path):
    start = {n: p.clone() for n, p in llama().named_parameters()}
    whole, frees = train(tmp_path / "a", cls=cls)
    costs = tensor_flops(whole.model, 2, 24)
    for chosen in frees:
        assert chosen and costs.share(set(chosen)) <= 0.6 and set(chosen) <= in_scope(whole.model, cls.green.scope)
    for row in (row for row in whole.state.log_history if "loss" in row):
        assert row["green/flops_counted"] == pytest.approx(row["green/flops"], rel=0.02) and row["green/flops"] <= 0.6
    touched = set().union(*frees)
    for name, p in whole.model.named_parameters():
        assert torch.equal(p, start[name]) == (name not in touched)
        assert p.requires_grad
    train(tmp_path / "b", "stop", cls=cls)
    parts, rest = train(tmp_path / "b", "go", cls=cls)
    assert rest == frees[6:]
    assert all(torch.equal(p, q) for p, q in zip(whole.model.parameters(), parts.model.parameters()))


@pytest.mark.parametrize("flops", ["analytic", "measured"])
def test_a_tied_head_trains_alone_within_the_budget_and_afterwards_learns_everything_again(flops, tmp_path):
    class HeadFirst(GreenTrainer):
        green = GreenOptions(rho=0.5, interval=4, flops=flops)

        def importance_of(self, model, inputs, names):
            assert TABLE not in names
            return super().importance_of(model, inputs, names) | {HEAD: 10.0}

    def tied():
        return llama(tie_word_embeddings=True)

    start = {n: p.clone() for n, p in tied().named_parameters()}
    trainer, _ = train(tmp_path / "a", cls=HeadFirst, model=tied)
    assert HEAD in trainer.selection.selected and not torch.equal(trainer.model.lm_head.weight, start[TABLE])
    for row in (row for row in trainer.state.log_history if "loss" in row):
        assert row["green/flops_counted"] == pytest.approx(row["green/flops"], rel=0.02) and row["green/flops"] <= 0.5
    assert trainer.model.model.embed_tokens(IDS).requires_grad and not trainer.model.model.embed_tokens._forward_hooks
    train(tmp_path / "b", "stop", cls=HeadFirst, model=tied)
    resumed, _ = train(tmp_path / "b", "go", cls=HeadFirst, model=tied)
    assert all(torch.equal(p, q) for p, q in zip(trainer.model.parameters(), resumed.model.parameters()))


@pytest.mark.parametrize("worth", [-1.0, float("nan")])
def test_where_no_change_lowers_the_loss_training_goes_on(worth, tmp_path):
    """At a rate that is far too high nothing is worth its cost; the step still has something to train."""

    class Late(GreenTrainer):
        def importance_of(self, model, inputs, names):
            found = super().importance_of(model, inputs, names)
            return found if self.state.global_step == 4 else dict.fromkeys(found, worth)

    trainer, frees = train(tmp_path, cls=Late)
    first, chosen, kept = frees[0], frees[4], frees[8]
    assert first and first != chosen and kept == chosen
    costs = tensor_flops(llama(), 2, 24)
    assert all(costs.share(set(names)) <= trainer.green.rho for names in frees)


def test_processes_whose_batches_differ_in_shape_train_the_same_tensors(tmp_path, monkeypatch):
    """Two processes in turn: the second one's longer rows would let it choose otherwise."""
    said, found = [], []
    for rank, length in ((0, 24), (1, 4000)):
        heard = iter(list(said))

        def broadcast(held, source, rank=rank, heard=heard):
            if rank:
                held[0] = next(heard)
            else:
                said.append(held[0])

        monkeypatch.setattr(green_training, "_several", lambda: True)
        monkeypatch.setattr(green_training.dist, "broadcast_object_list", broadcast)
        args = tr.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[], label_names=["labels"])
        trainer = GreenTrainer(model=llama(), args=args, train_dataset=Rows())
        trainer.create_optimizer()
        ids = torch.randint(3, 60, (1, length), generator=torch.Generator().manual_seed(rank))
        monkeypatch.setattr(trainer, "importance_of", lambda model, inputs, names: dict.fromkeys(names, 1.0))
        trainer._select({"input_ids": ids, "labels": ids})
        found.append((trainer.selection.selected, trainer._costs.select(dict.fromkeys(said[0], 1.0), 0.6)))
    assert len(said) == 2 and found[0][0] == found[1][0] == sorted(said[1])
    assert found[0][1] != found[1][1], "alone they would differ"


def test_impossible_budgets_and_frozen_models_are_refused_when_the_trainer_is_built(tmp_path):
    import peft

    class Small(GreenTrainerMixin, tr.Trainer):
        green = GreenOptions(rho=0.3)

    args = tr.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    with pytest.raises(BudgetError) as error:
        Small(model=llama(), args=args, train_dataset=Rows())
    assert 0.3 < error.value.best_achievable < 0.5
    with pytest.raises(UnsupportedError, match="frozen"):
        adapted = peft.get_peft_model(llama(), peft.LoraConfig(target_modules=["q_proj"]))
        GreenTrainer(model=adapted, args=args, train_dataset=Rows())
    neox = tr.GPTNeoXForCausalLM(
        tr.GPTNeoXConfig(
            vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48
        )
    )
    with pytest.raises(UnsupportedError, match="order"):
        tensor_flops(neox, 1, 8)
