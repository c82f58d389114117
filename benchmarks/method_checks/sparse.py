"""Sparse methods: gradients of SpIEL, the knapsack and its FLOPs, masks, factors, selections after a resume."""

from __future__ import annotations

import itertools
import random
from typing import Any

from benchmarks.method_checks.models import far, ids, llama, logits

ROUNDING = 1e-5


def shira() -> tuple[float, float]:
    """SpIEL with a fixed support against peft's SHiRA at the same indices: logits after three AdamW steps."""
    import torch
    from peft import ShiraConfig, get_peft_model
    from torch import nn

    from core.sparse import SpielConfig
    from core.sparse.spiel import spiel_layers
    from core.sparse.spiel_optim import SpielAdamW

    targets = ["q_proj", "down_proj"]
    mine = get_peft_model(llama(), SpielConfig(density=0.05, target_modules=targets))
    theirs = get_peft_model(llama(), ShiraConfig(r=1, target_modules=targets))
    layers = spiel_layers(mine)
    for name, module in theirs.named_modules():
        if name in layers:
            row, column = layers[name].places("default")
            module.shira_indices["default"] = torch.stack([row, column]).int()
            module.shira_weight["default"] = nn.Parameter(torch.zeros(len(row)))
    found = []
    for model, optimizer_cls in ((mine, SpielAdamW), (theirs, torch.optim.AdamW)):
        learning = [p for p in model.parameters() if p.requires_grad]
        optimizer = optimizer_cls(learning, lr=1e-2, eps=1e-6, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model.eval()(input_ids=ids(), labels=ids()).loss.backward()
            optimizer.step()
        found.append(logits(model))
    return far(*found) / float(found[1].abs().max()), ROUNDING


def gathered() -> tuple[float, float]:
    """The gradient of the values, taken by tiles of few rows, against the dense gradient."""
    import torch
    from torch import nn

    from core.sparse import SpielConfig, support
    from core.sparse.spiel import SpielLayer

    torch.manual_seed(0)
    base = nn.Linear(16, 24).requires_grad_(False)
    layer = SpielLayer(base, "default", SpielConfig(), 90, 0)
    x, up = torch.randn(9, 16), torch.randn(9, 24)
    whole = support.TILE_BYTES
    try:
        support.TILE_BYTES = 5 * 16 * 4
        (layer(x) * up).sum().backward()
    finally:
        support.TILE_BYTES = whole
    dense = (up.T @ x).flatten()[layer.spiel_indices["default"].long()]
    return far(layer.spiel_values["default"].grad, dense), ROUNDING


def knapsack() -> tuple[float, float]:
    """The prefix knapsack against all subsets of nine tensors, a hundred times."""
    from core.statistics.allocate import Stage, prefix_knapsack

    dice, worst = random.Random(2), 0.0
    for _ in range(100):
        stages: list[Stage] = []
        while sum(len(stage.costs) for stage in stages) < 8:
            count = dice.randint(0, 2)
            costs = [dice.randint(0, 9) for _ in range(count)]
            stages.append(Stage(dice.randint(0, 6), costs, [dice.uniform(-1, 1) for _ in range(count)]))
        budget, best = dice.randint(40, 60), 0.0
        items = [(s, i) for s, stage in enumerate(stages) for i in range(len(stage.costs))]
        for size in range(1, len(items) + 1):
            for chosen in itertools.combinations(items, size):
                cost = sum(stage.passage for stage in stages[: chosen[-1][0]]) + sum(
                    stages[s].costs[i] for s, i in chosen
                )
                if cost <= budget:
                    best = max(best, sum(stages[s].values[i] for s, i in chosen))
        worst = max(worst, abs(prefix_knapsack(stages, budget, budget).value - best))
    return worst, 1e-9


def planned() -> tuple[float, float]:
    """FLOPs of a backward pass planned from shapes, off those that torch counts, over random choices, relative."""
    return _planned("eager", by_count=False), 0.02


def planned_by_count() -> tuple[float, float]:
    """The same planned from a count, with attention in one operation of which the counter sees nothing on a CPU."""
    return _planned("sdpa", by_count=True), 0.02


def _planned(attention: str, by_count: bool) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    from core.sparse.green import tensor_flops
    from core.sparse.green_counted import counted_costs
    from core.sparse.green_training import set_free

    model, dice, worst = llama(attn_implementation=attention), random.Random(0), 0.0
    costs = tensor_flops(model, *ids().shape)
    if by_count:
        costs = counted_costs(model, costs, lambda: model(input_ids=ids(), labels=ids(), use_cache=False).loss)
    names = [name for name, _ in model.named_parameters()]
    for trial in range(15):
        chosen = set(names) if not trial else set(dice.sample(names, dice.randint(1, 6)))
        set_free(model, chosen)
        loss = model(input_ids=ids(), labels=ids(), use_cache=False).loss
        with FlopCounterMode(display=False) as counter:
            loss.backward()
        worst = max(worst, abs(costs.backward(chosen) / counter.get_total_flops() - 1))
    return worst


def groups() -> tuple[float, float]:
    """Groups of four with more or fewer than two weights, in a model under adaptive masks."""
    from core.config.sparse import AstOptions
    from core.sparse.ast import adaptive, sparsify

    maps = adaptive(sparsify(llama(), AstOptions())).values()
    return float(sum((part.mask.unflatten(1, (-1, 4)).sum(-1) != 2).sum() for part in maps)), 0.0


def served() -> tuple[float, float]:
    """The packed form, with and without its branch, against masked weights."""
    from core.config.sparse import AstOptions
    from core.sparse.ast import export_semi24, sparsify

    worst = 0.0
    for k in (None, 4):
        model = sparsify(llama(), AstOptions(slorb_k=k))
        before = logits(model)
        worst = max(worst, far(logits(export_semi24(model)), before) / float(before.abs().max()))
    return worst, ROUNDING


def identity_hessian() -> tuple[float, float]:
    """SparseGPT on uncorrelated inputs against magnitude pruning."""
    import torch

    from core.sparse.masks import sparsegpt
    from core.statistics.importance import Pattern, magnitude, mask_of

    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(0))
    new, _ = sparsegpt(weight, torch.eye(256), Pattern.parse("2:4"))
    return far(new, weight * mask_of(magnitude(weight), Pattern.parse("2:4"))), 1e-6


def eckart_young() -> tuple[float, float]:
    """The squared error of WeLore's factors against the singular values that it dropped, relative."""
    from core.config.sparse import WeLoreOptions
    from core.sparse.welore import spectra, welore

    model, dense = llama(), dict(llama().named_parameters())
    found = spectra(model)
    report = welore(model, WeLoreOptions(lrc_rule="breakeven"))
    worst = 0.0 if report.lowrank else 1.0
    for path in report.lowrank:
        error = (model.get_submodule(path).dense_weight() - dense[f"{path}.weight"]).square().sum()
        dropped = found[path][report.ranks[path] :].square().sum()
        worst = max(worst, abs(float(error / dropped) - 1))
    return worst, 1e-3


def resumed() -> tuple[float, float]:
    """Tensors that differ after a resume, for a support, for masks and for a choice of tensors.

    Of SpIEL the break falls into an open window.
    """
    import tempfile
    from pathlib import Path

    import torch

    differing = 0
    for method in ("spiel", "ast", "green"):
        with tempfile.TemporaryDirectory() as folder:
            whole = _trained(method, Path(folder) / "whole", None, 14)
            _trained(method, Path(folder) / "parts", None, 9)
            parts = _trained(method, Path(folder) / "parts", "checkpoint-9", 14)
        pairs = zip(whole.state_dict().items(), parts.state_dict().items())
        differing += sum(not torch.equal(a, b) for (_, a), (_, b) in pairs)
    return float(differing), 0.0


def _made(method: str) -> tuple[Any, type]:
    """A model, and the Trainer of its method over transformers' own."""
    from peft import get_peft_model
    from transformers import Trainer

    from core.config.registry import BuildContext
    from core.config.sparse import AstOptions, GreenOptions
    from core.sparse import SpielConfig, ast, green_training, spiel_training

    if method == "spiel":
        config = SpielConfig(density=0.05, reselection_steps=4, accumulation_steps=2, initial_rate=0.5)
        return (model := get_peft_model(llama(2), config)), spiel_training.hook(Trainer, model, None)[0]
    if method == "ast":
        options = AstOptions(update_every=2, decay=0.05, ramp_steps=4, slorb_k=4)
        return (model := ast.build(llama(2), options, BuildContext(0))), ast.hook(Trainer, model, options)[0]
    return (model := llama(2)), green_training.hook(Trainer, model, GreenOptions(rho=0.6, interval=3))[0]


def _trained(method: str, folder: Any, checkpoint: str | None, stop: int) -> Any:
    """A model after `stop` of 14 steps."""
    from transformers import TrainerCallback, TrainingArguments

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **given):
            control.should_training_stop |= state.global_step >= stop

    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=1, max_steps=14, use_cpu=True, report_to=[],
        disable_tqdm=True, save_steps=9, learning_rate=1e-2, label_names=["labels"], logging_steps=100,
    )  # fmt: skip
    rows = [{"input_ids": row, "labels": row} for row in ids().repeat(16, 1)]
    model, trainer_cls = _made(method)
    trainer = trainer_cls(model=model, args=arguments, train_dataset=rows, callbacks=[Stop()])
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(folder / checkpoint))
    return trainer.model


def multiplied_out() -> tuple[float, float]:
    """A model whose factors were multiplied out against the factored one."""
    from core.config.sparse import WeLoreOptions
    from core.sparse.welore import to_dense, welore

    welore(model := llama(), WeLoreOptions(err=0.5, lrc_rule="breakeven"))
    before = logits(model)
    return far(logits(to_dense(model)), before) / float(before.abs().max()), ROUNDING


CHECKS = {
    "SpIEL with a fixed support is peft's SHiRA": shira,
    "gradients by tiles are the dense ones gathered": gathered,
    "the prefix knapsack is brute force": knapsack,
    "planned FLOPs are counted FLOPs": planned,
    "FLOPs planned from a count are counted FLOPs": planned_by_count,
    "two of four everywhere": groups,
    "the served form is the masked model": served,
    "SparseGPT without correlations is magnitude pruning": identity_hessian,
    "the error of factors is what was dropped": eckart_young,
    "factors multiply out": multiplied_out,
    "a resumed run selects the same entries, masks and tensors, bitwise": resumed,
}
