"""SpIEL: exact gradients, peft's fixed sparse adapter as a reference, moments by hand, sound supports, resume."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import peft
import pytest
import torch
import transformers as tr
from torch import nn

from core.errors import ConfigError, UnsupportedError
from core.sparse import SpielConfig
from core.sparse import support as sup
from core.sparse.spiel import SpielLayer, spiel_layers
from core.sparse.spiel_optim import SpielAdamW, SpielSM3
from core.sparse.spiel_training import SpielCallback, SpielTrainerMixin
from core.sparse.window import Window

IDS = torch.arange(3, 15).view(1, -1)


def llama(**more):
    torch.manual_seed(0)
    config = {
        "vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 36, "max_position_embeddings": 64, "num_key_value_heads": 2, "mlp_bias": True,
    }  # fmt: skip
    return tr.LlamaForCausalLM(tr.LlamaConfig(**config | more)).eval()


def gpt2():
    torch.manual_seed(0)
    return tr.GPT2LMHeadModel(tr.GPT2Config(vocab_size=40, n_embd=24, n_layer=2, n_head=4, n_positions=64)).eval()


def wake(model, scale=0.1):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "spiel_values" in name:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def layer_of(weight, count, **options):
    base = nn.Linear(weight.shape[1], weight.shape[0], bias=True)
    base.weight.data = weight.clone()
    base.requires_grad_(False)
    return SpielLayer(base, "default", SpielConfig(**options), count, 0)


@pytest.mark.parametrize("apply", ["add", "separate"])
@pytest.mark.parametrize("limit", [sup.TILE_BYTES, 4 * 8 * 3])
@pytest.mark.parametrize("grad_mode", ["tiles", "sddmm"])
def test_gradients_are_the_dense_ones_gathered(apply, limit, grad_mode, monkeypatch):
    monkeypatch.setattr(sup, "TILE_BYTES", limit)
    torch.manual_seed(0)
    layer = layer_of(torch.randn(10, 8), 23, apply=apply, grad_mode=grad_mode)
    layer.spiel_values["default"].data.normal_()
    x, up = torch.randn(2, 5, 8, requires_grad=True), torch.randn(2, 5, 10)
    (layer(x) * up).sum().backward()
    dense = layer.base_layer.weight.clone()
    positions = layer.spiel_indices["default"].long()
    dense.view(-1)[positions] += layer.spiel_values["default"].detach()
    dense.requires_grad_(True)
    other = x.detach().clone().requires_grad_(True)
    y = nn.functional.linear(other, dense, layer.base_layer.bias)
    torch.testing.assert_close(layer(x), y)
    (y * up).sum().backward()
    torch.testing.assert_close(layer.spiel_values["default"].grad, dense.grad.view(-1)[positions])
    torch.testing.assert_close(x.grad, other.grad)


def test_with_a_fixed_support_it_is_pefts_shira():
    mine = peft.get_peft_model(llama(), SpielConfig(density=0.02, target_modules=["q_proj", "down_proj"]))
    layers = spiel_layers(mine)
    config = peft.ShiraConfig(r=1, target_modules=["q_proj", "down_proj"])
    theirs = peft.get_peft_model(llama(), config)
    for name, module in theirs.named_modules():
        if name in layers:
            positions = layers[name].spiel_indices["default"].long()
            columns = layers[name].in_features
            module.shira_indices["default"] = torch.stack([positions // columns, positions % columns]).int()
            module.shira_weight["default"] = nn.Parameter(torch.zeros(len(positions)))
    results = []
    for model, optimizer_cls in ((mine, SpielAdamW), (theirs, torch.optim.AdamW)):
        model.eval()
        learning = [p for p in model.parameters() if p.requires_grad]
        optimizer = optimizer_cls(learning, lr=1e-2, eps=1e-6, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(input_ids=IDS, labels=IDS).loss.backward()
            grads = [p.grad.clone() for p in learning]
            optimizer.step()
        results.append((logits(model), grads, [p.detach() for p in learning]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("base", [llama, gpt2])
def test_it_lives_in_peft(base, tmp_path):
    model = base()
    before = logits(model)
    adapted = peft.get_peft_model(model, SpielConfig(density=0.05)).eval()
    assert torch.equal(logits(adapted), before)
    numel = sum(
        p.numel()
        for n, p in base().named_parameters()
        if p.dim() == 2 and not any(part in n for part in ("embed", "lm_head", "wte", "wpe"))
    )
    trained = adapted.get_nb_trainable_parameters()[0]
    assert trained == round(0.05 * numel)
    wake(adapted)
    after = logits(adapted)
    assert not torch.allclose(after, before)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), before)
    adapted.save_pretrained(tmp_path)
    for lazy in (False, True):
        again = peft.PeftModel.from_pretrained(base(), tmp_path, low_cpu_mem_usage=lazy).eval()
        assert torch.equal(logits(again), after)
    weights = {n: p.clone() for n, p in adapted.named_parameters() if "base_layer" in n}
    adapted.merge_adapter()
    torch.testing.assert_close(logits(adapted), after, rtol=1e-5, atol=1e-5)
    adapted.unmerge_adapter()
    assert all(torch.equal(p, weights[n]) for n, p in adapted.named_parameters() if n in weights)
    assert torch.equal(logits(adapted), after)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(logits(merged), after, rtol=1e-5, atol=1e-5)
    assert not any("spiel" in name for name in merged.state_dict())


def test_adapters_merged_one_by_one_are_undone_together():
    model = peft.get_peft_model(llama(), SpielConfig(density=0.3), adapter_name="a")
    model.add_adapter("b", SpielConfig(density=0.3, seed=7))
    model.base_model.set_adapter(["a", "b"])
    wake(model).eval()
    both = logits(model)
    model.merge_adapter(["a"])
    model.merge_adapter(["b"])
    torch.testing.assert_close(logits(model), both, rtol=1e-5, atol=1e-5)
    model.unmerge_adapter()
    assert torch.equal(logits(model), both)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(llama()))


def test_one_reselection_by_hand():
    """2 × 2, two entries at 0 and 3; the window saw g = (1, -4, 2, 0.5) and (1, -2, 2, 0.5)."""
    layer = layer_of(torch.zeros(2, 2), 2)
    values = layer.spiel_values["default"]
    layer.spiel_indices["default"] = torch.tensor([0, 3], dtype=torch.int32)
    values.data = torch.tensor([0.3, -0.1])
    optimizer = SpielAdamW([values], lr=0.1, betas=(0.9, 0.99), eps=0.0)
    optimizer.state[values] = {
        "exp_avg": torch.tensor([1.0, 2.0]), "exp_avg_sq": torch.tensor([3.0, 4.0]), "age": torch.tensor([7.0, 9.0]),
    }  # fmt: skip
    window = Window(2, torch.int32)
    layer.windows["default"] = window
    for gradient in (torch.tensor([1.0, -4.0, 2.0, 0.5]), torch.tensor([1.0, -2.0, 2.0, 0.5])):
        if window.positions is None:
            window.choose([(gradient, 0)])
        window.add(gradient, 0, slice(0, 2))
        window.end_step()
    assert window.positions.tolist() == [1, 2]
    callback = SpielCallback(SpielConfig(rate_policy="constant", initial_rate=0.5))
    callback._layers, callback.selections = {"layer": layer}, 1
    callback.close(None, optimizer, 25, 100)
    assert layer.spiel_indices["default"].tolist() == [0, 1]
    torch.testing.assert_close(values.detach(), torch.tensor([0.3, 0.0]))
    state = optimizer.state[values]
    torch.testing.assert_close(state["exp_avg"], torch.tensor([1.0, -3.0 * (1 - 0.9**2)]))
    torch.testing.assert_close(state["exp_avg_sq"], torch.tensor([3.0, 10.0 * (1 - 0.99**2)]))
    torch.testing.assert_close(state["age"], torch.tensor([7.0, 2.0]))


def test_bias_correction_counts_each_entrys_own_steps():
    value = nn.Parameter(torch.zeros(2))
    optimizer = SpielAdamW([value], lr=1.0, eps=0.0)
    value.grad = torch.tensor([2.0, -5.0])
    optimizer.step()
    torch.testing.assert_close(value.detach(), torch.tensor([-1.0, 1.0]))
    optimizer.replace(value, torch.tensor([1]), torch.tensor([3.0]), torch.tensor([9.0]), 4.0, torch.tensor([0, 1]))
    value.data.zero_()
    value.grad = torch.tensor([2.0, 3.0])
    optimizer.step()
    # a constant gradient, seen by the optimizer or by the window, gives a step of exactly lr
    torch.testing.assert_close(value.detach(), torch.tensor([-1.0, -1.0]), rtol=1e-5, atol=1e-6)


def test_sm3_by_hand():
    layer = layer_of(torch.zeros(2, 3), 3)
    values = layer.spiel_values["default"]
    layer.spiel_indices["default"] = torch.tensor([0, 2, 4], dtype=torch.int32)  # (0,0) (0,2) (1,1)
    optimizer = SpielSM3([values], {values: (layer, "default")}, lr=1.0, eps=0.0)
    values.grad = torch.tensor([1.0, 2.0, 3.0])
    optimizer.step()
    rows, columns = optimizer.accumulators(values)
    assert rows.tolist() == [4.0, 9.0] and columns.tolist() == [1.0, 9.0, 4.0]
    values.grad = torch.tensor([1.0, 0.0, 1.0])
    values.data.zero_()
    optimizer.step()
    # u = min(4, 1) + 1, min(4, 4) + 0, min(9, 9) + 1
    torch.testing.assert_close(values.detach(), torch.tensor([-(2.0**-0.5), 0.0, -(10.0**-0.5)]))


def test_the_largest_products_are_found_without_the_outer_product():
    generator = torch.Generator().manual_seed(0)
    for trial in range(20):
        rows, columns = torch.rand(13, generator=generator), torch.rand(9, generator=generator)
        taken = sup.draw_positions(117, 30, generator)
        found = sup.top_outer(rows, columns, 12, taken, block=9 * (1 + trial % 4))
        dense = torch.outer(rows, columns).flatten()
        dense[taken.long()] = -1
        assert found.tolist() == dense.topk(12).indices.sort().values.tolist()


def test_supports_stay_sorted_and_unique_and_leave_the_rest_alone():
    generator = torch.Generator().manual_seed(0)
    layer = layer_of(torch.zeros(12, 10), 31)
    values = layer.spiel_values["default"]
    optimizer = SpielAdamW([values], lr=0.1)
    callback = SpielCallback(SpielConfig(rate_policy="constant", initial_rate=0.4))
    callback._layers = {"layer": layer}
    for _ in range(100):
        values.grad = torch.randn(31, generator=generator)
        optimizer.step()
        positions = layer.spiel_indices["default"].clone()
        before = {
            int(p): (values[i].item(), optimizer.state[values]["exp_avg"][i].item()) for i, p in enumerate(positions)
        }
        callback.open(None, 0, 0)
        window = layer.windows["default"]
        gradient = torch.randn(120, generator=generator)
        window.choose([(gradient[:60], 0), (gradient[60:], 60)])
        window.step += gradient[window.positions.long()]
        window.end_step()
        callback.close(None, optimizer, 1, 10)
        callback.selections += 1
        after = layer.spiel_indices["default"]
        assert torch.equal(after, after.unique()) and after.min() >= 0 and after.max() < 120
        kept = [(i, int(p)) for i, p in enumerate(after) if int(p) in before]
        for i, p in kept:
            assert (values[i].item(), optimizer.state[values]["exp_avg"][i].item()) == before[p]
        assert len(kept) >= (0 if callback.selections == 1 else 31 - 12)


def test_positions_are_drawn_uniformly_without_repetition():
    generator = torch.Generator().manual_seed(0)
    for numel, count in ((1000, 3), (1000, 240), (1000, 900), (7, 7)):
        found = sup.draw_positions(numel, count, generator)
        assert len(found.unique()) == count and bool((found[1:] > found[:-1]).all()) and found.max() < numel
    hits = torch.zeros(50)
    for _ in range(2000):
        hits[sup.draw_positions(50, 5, generator).long()] += 1
    assert float((hits / 200 - 1).abs().max()) < 0.3


def test_in_half_precision_a_sum_is_rounded_once_as_that_of_the_merged_weight():
    torch.manual_seed(0)
    layer = layer_of(torch.randn(16, 12), 90)
    values = layer.spiel_values["default"]
    values.data.normal_()
    half = layer.tuned_weight(["default"], [values], torch.bfloat16)
    twice = layer.base_layer.weight.bfloat16().float().view(-1)[layer.spiel_indices["default"].long()] + values
    layer.merge()
    assert torch.equal(half, layer.base_layer.weight.bfloat16())
    assert not torch.equal(half.view(-1)[layer.spiel_indices["default"].long()], twice.bfloat16())


def test_a_window_takes_the_gradients_that_the_optimizer_took():
    window, gradient = Window(2, torch.int32), torch.tensor([512.0, -1024.0])
    window.choose([(gradient, 0)])
    for scale in (1 / 1024, float("nan"), 1 / 512):
        window.add(gradient, 0, slice(0, 2))
        window.end_step(scale)
    assert window.steps == 2 and window.total.tolist() == [1.5, -3.0] and window.squares.tolist() == [1.25, 5.0]
    assert not window.step.any()


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, i):
        ids = torch.randint(3, 40, (12,), generator=torch.Generator().manual_seed(i))
        return {"input_ids": ids, "labels": ids}


class SpielTrainer(SpielTrainerMixin, tr.Trainer):
    pass


def train(folder, selection, resume=None, steps=14, grad_mode="tiles", **more):
    config = SpielConfig(
        density=0.05, selection=selection, reselection_steps=4, accumulation_steps=2, initial_rate=0.5,
        grad_mode=grad_mode,
    )  # fmt: skip
    model = peft.get_peft_model(llama(), config)
    args = tr.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=2, max_steps=steps, use_cpu=True, report_to=[],
        disable_tqdm=True, save_steps=9, learning_rate=1e-2, label_names=["labels"], logging_steps=100, **more,
    )  # fmt: skip
    trainer = SpielTrainer(model=model, args=args, train_dataset=Rows())
    if resume == "stop":

        class Stop(tr.TrainerCallback):
            def on_step_end(self, args, state, control, **_):
                control.should_training_stop = state.global_step >= 9

        trainer.add_callback(Stop())
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-9") if resume == "go" else None)
    return model, trainer


@pytest.mark.parametrize("selection", ["ag", "ma", "random", "grad_once"])
def test_the_blind_first_support_goes_after_the_first_steps(selection, tmp_path):
    moved = {"ag": [2, 6, 10], "ma": [2, 6, 10], "random": [], "grad_once": [2]}
    found, rates = [], []

    class Watch(tr.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if len(found) < mine.selections:
                found.append(state.global_step)
                rates.append(mine.replaced)

    _, trainer = train(tmp_path, selection, steps=0)
    mine = next(c for c in trainer.callback_handler.callbacks if isinstance(c, SpielCallback))
    trainer.args.max_steps = 12
    trainer.add_callback(Watch())
    trainer.train()
    assert found == moved[selection]
    if len(rates) > 1:
        assert rates[0] > 0.5 >= max(rates[1:]) > 0


def test_clipped_gradients_are_summed_as_they_were_clipped(tmp_path):
    """With every entry tuned, the window watches exactly what the optimizer takes."""
    model = peft.get_peft_model(llama(), SpielConfig(density=1.0, reselection_steps=6, accumulation_steps=4))
    args = tr.TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=6,
        use_cpu=True, report_to=[], disable_tqdm=True, learning_rate=1e-2, label_names=["labels"], max_grad_norm=0.05,
    )  # fmt: skip
    trainer, taken, compared = SpielTrainer(model=model, args=args, train_dataset=Rows()), {}, []

    class Watch(tr.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **_):
            for name, layer in spiel_layers(model).items():
                taken[name] = taken.get(name, 0) + layer.spiel_values["default"].grad

        def on_step_end(self, args, state, control, **_):
            for name, layer in spiel_layers(model).items():
                if "default" in layer.windows:
                    torch.testing.assert_close(layer.windows["default"].total, taken[name])
                    compared.append(float(taken[name].norm()))

    trainer.add_callback(Watch())
    trainer.train()
    assert len(compared) >= 3 and min(compared) > 0
    mine = next(c for c in trainer.callback_handler.callbacks if isinstance(c, SpielCallback))
    mine.open(model, 0, 1)
    trainer.accelerator.scaler = SimpleNamespace(get_scale=lambda: 1024.0)
    trainer._get_grad_norm(model, torch.tensor(0.2))
    assert mine.scale == pytest.approx(0.25 / 1024, rel=1e-4)


@pytest.mark.parametrize("selection", ["ag", "ma", "random", "grad_once"])
def test_a_resumed_run_selects_what_an_uninterrupted_one_does(selection, tmp_path):
    """The checkpoint of step 9 lies inside the window that opened after step 8."""
    whole, trainer = train(tmp_path / "a", selection)
    start = spiel_layers(peft.get_peft_model(llama(), SpielConfig(density=0.05)))
    train(tmp_path / "b", selection, "stop")
    parts, _ = train(tmp_path / "b", selection, "go")
    moved = False
    for name, layer in spiel_layers(whole).items():
        other = spiel_layers(parts)[name]
        assert torch.equal(layer.spiel_indices["default"], other.spiel_indices["default"])
        assert torch.equal(layer.spiel_values["default"], other.spiel_values["default"])
        moved |= not torch.equal(layer.spiel_indices["default"], start[name].spiel_indices["default"])
    assert moved == (selection != "random")


@pytest.mark.parametrize("selection", ["ag", "ma", "grad_once"])
def test_an_adapter_that_has_learnt_is_not_exchanged_as_a_whole(selection, tmp_path):
    config = SpielConfig(
        density=0.05, selection=selection, reselection_steps=4, accumulation_steps=2, initial_rate=0.25
    )
    model = wake(peft.get_peft_model(llama(), config))
    before = {name: layer.spiel_indices["default"].clone() for name, layer in spiel_layers(model).items()}
    args = tr.TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=2, max_steps=4, use_cpu=True, report_to=[],
        disable_tqdm=True, learning_rate=1e-3, label_names=["labels"], save_strategy="no",
    )  # fmt: skip
    SpielTrainer(model=model, args=args, train_dataset=Rows()).train()
    for name, layer in spiel_layers(model).items():
        kept = float(torch.isin(before[name], layer.spiel_indices["default"]).float().mean())
        assert kept == 1 if selection == "grad_once" else 0.75 <= kept < 1


def test_entry_by_entry_a_run_selects_what_it_selects_by_tiles(tmp_path):
    tiled, _ = train(tmp_path / "a", "ag", steps=12)
    sampled, _ = train(tmp_path / "b", "ag", steps=12, grad_mode="sddmm")
    for name, layer in spiel_layers(tiled).items():
        other = spiel_layers(sampled)[name]
        assert torch.equal(layer.spiel_indices["default"], other.spiel_indices["default"])
        torch.testing.assert_close(layer.spiel_values["default"], other.spiel_values["default"])


def test_recomputed_activations_and_accumulation_change_nothing(tmp_path):
    plain, _ = train(tmp_path / "a", "ag", steps=8)
    again, _ = train(
        tmp_path / "b",
        "ag",
        steps=8,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )
    for name, layer in spiel_layers(plain).items():
        other = spiel_layers(again)[name]
        assert torch.equal(layer.spiel_indices["default"], other.spiel_indices["default"])
        torch.testing.assert_close(layer.spiel_values["default"], other.spiel_values["default"])


def test_nothing_as_large_as_the_weights_is_kept_between_the_passes():
    layer = layer_of(torch.randn(64, 64), 40)
    x = torch.randn(3, 64, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        y = layer(x)
    assert max(kept) <= x.numel()
    y.sum().backward()
    assert layer.base_layer.weight.grad is None


def test_of_a_block_and_its_learning_copy_only_the_copy_is_tuned():
    from core.control.expand import expand
    from core.control.options import ControlConfig

    model = peft.get_peft_model(expand(llama(), ControlConfig(num_expand=1)), SpielConfig(density=0.05))
    names = list(spiel_layers(model))
    assert len(names) == 7 and all(".exp." in name for name in names)


def test_bad_options_are_refused_before_the_model_is_touched():
    for options, words in (
        ({"density": 0.0}, "density"), ({"density": 1.5}, "density"), ({"selection": "agg"}, "ag"),
        ({"grad_mode": "sdmm"}, "sddmm"),
        ({"reselection_steps": 5, "accumulation_steps": 5}, "window"), ({"num_tunable_weights": 0}, "tunable"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            SpielConfig(**options)
    for options, words in (
        ({"num_tunable_weights": 10**7}, "entries"), ({"target_modules": ["qproj"]}, "qproj"),
        ({"target_modules": ["embed_tokens"]}, "not a linear map"),
    ):  # fmt: skip
        model = llama()
        with pytest.raises(ConfigError, match=words) as error:
            peft.get_peft_model(model, SpielConfig(**options))
        assert not spiel_layers(model)
    with pytest.raises(ConfigError) as error:
        peft.get_peft_model(llama(), SpielConfig(target_modules=["qproj"]))
    assert "q_proj" in error.value.hint


def test_an_optimizer_without_state_for_entries_is_refused(tmp_path):
    model = peft.get_peft_model(llama(), SpielConfig(density=0.05))
    args = tr.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    adam = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    with pytest.raises(UnsupportedError, match="AdamW"):
        SpielTrainer(model=model, args=args, train_dataset=Rows(), optimizers=(adam, None))
    with pytest.raises(ConfigError, match="no SpIEL"):
        SpielTrainer(model=llama(), args=args, train_dataset=Rows())
    with pytest.raises(UnsupportedError, match="fp32"):
        backend = SimpleNamespace(precision=SimpleNamespace(params="bf16"))
        SpielTrainer(model=copy.deepcopy(model), args=args, train_dataset=Rows(), backend=backend)


def test_a_family_that_nobody_described_is_tuned_in_every_map_of_its_blocks():
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    base = tr.Olmo2ForCausalLM(tr.Olmo2Config(**sizes, intermediate_size=36, pad_token_id=0)).eval()
    before = logits(base)
    model = peft.get_peft_model(base, SpielConfig(num_tunable_weights=300))
    layers = spiel_layers(model)
    assert len(layers) == 14 and not any("lm_head" in name for name in layers)
    assert torch.equal(logits(model), before) and not torch.equal(logits(wake(model)), before)
