"""Control LLM: identity at the start, what trains, the alignment in closed form, merging back."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
import transformers as tr

from core.control.expand import branch_weights, expand, expanded_blocks, merge_back, sidecars
from core.control.ladder import ladder
from core.control.learngene import Learngene
from core.control.options import ControlConfig
from core.control.trainer import ControlTrainerMixin, hook
from core.errors import ConfigError, MergeError, UnsupportedError
from core.models.blocks.sidecar import ALIGNMENTS, MERGES, Alignment, Merge, Sidecar, distance, slerp
from core.models.surgery import ops_of

IDS = torch.arange(3, 15).view(2, 6)


def llama(attention="sdpa", layers=4):
    torch.manual_seed(0)
    config = tr.LlamaConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32, attn_implementation=attention,
    )  # fmt: skip
    return tr.LlamaForCausalLM(config).eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def moved(model, scale=0.2):
    """The learning branches away from where they started."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for block in sidecars(model).values():
            for parameter in block.exp.parameters():
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("merge", [m for m in MERGES if m not in ("proj", "prog")])
@pytest.mark.parametrize("expansion", ["concat", "stack", "hybrid"])
def test_an_expanded_model_starts_as_its_base(merge, expansion):
    model = llama()
    before, count = logits(model), sum(p.numel() for p in model.parameters())
    block = sum(p.numel() for p in model.model.layers[0].parameters())
    expand(model, ControlConfig(num_expand=2, expansion=expansion, merge=merge), seed=1)
    torch.testing.assert_close(logits(model), before, atol=1e-6, rtol=1e-5)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained >= 2 * block and sum(p.numel() for p in model.parameters()) - count - trained in (0, 1, 2)
    with pytest.raises(ConfigError):
        expand(llama(), ControlConfig(num_expand=3))


def test_progressive_merges_start_there_when_asked():
    for merge in ("proj", "prog"):
        exact = expand(llama(), ControlConfig(num_expand=2, merge=merge, exact_init=True))
        torch.testing.assert_close(logits(exact), logits(llama()), atol=1e-6, rtol=1e-5)
    near = expand(llama(), ControlConfig(num_expand=2, merge="prog"))
    assert (logits(near) - logits(llama())).abs().max() > 1e-4


def test_which_blocks():
    assert expanded_blocks(32, 8) == [3, 7, 11, 15, 19, 23, 27, 31] and expanded_blocks(4, 4) == [
        0,
        1,
        2,
        3,
    ] == expanded_blocks(4, 0.99)
    assert expanded_blocks(4, 0.5) == [1, 3]
    assert sorted(sidecars(expand(llama(), ControlConfig(num_expand=2)))) == [1, 3]


def test_only_the_new_branches_have_gradients():
    model = moved(expand(llama(), ControlConfig(num_expand=2, merge="dlerp", train_factor=True))).train()
    model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    for name, parameter in model.named_parameters():
        new = ".exp." in name or ".merge." in name
        assert parameter.requires_grad == new == (parameter.grad is not None), name
        assert not new or parameter.grad.abs().max() > 0, name
    frozen = expand(llama(), ControlConfig(num_expand=2))
    assert not any(p.requires_grad for n, p in frozen.named_parameters() if n.endswith("merge.a"))


# ---- merging of states -----------------------------------------------------------------------------------------------


def merge_of(kind, w=0.5, size=4):
    made = Merge(kind, size)
    made.reset(torch.Generator().manual_seed(0))
    if hasattr(made, "a"):
        with torch.no_grad():
            made.a.fill_(math.log(w / (1 - w)) if 0 < w < 1 else (40.0 if w == 1 else -40.0))
    return made


def test_linear_merges_by_hand():
    torch.manual_seed(0)
    a, b, x = torch.randn(3, 2, 5, 4)
    torch.testing.assert_close(merge_of("lerp", 0.3)(a, b, x)[0], 0.7 * a + 0.3 * b)
    torch.testing.assert_close(merge_of("plain")(a, b, x)[0], b)
    dynamic = merge_of("dlerp")
    torch.nn.init.normal_(dynamic.f.weight)
    w = torch.sigmoid(torch.cat([a, b], -1) @ dynamic.f.weight.T)
    torch.testing.assert_close(dynamic(a, b, x)[0], (1 - w) * a + w * b)
    from_input = merge_of("dlerpin")
    torch.nn.init.normal_(from_input.f.weight)
    w = torch.sigmoid(x @ from_input.f.weight.T)
    torch.testing.assert_close(from_input(a, b, x)[0], (1 - w) * a + w * b)
    for kind in ("proj", "prog"):
        made = merge_of(kind, 0.25)
        out, target, w, _ = made(a, b, x)
        torch.testing.assert_close(target, a @ made.A.weight.T)
        first = target if kind == "prog" else a
        torch.testing.assert_close(out, 0.75 * first + 0.25 * b)


def test_each_token_goes_through_one_branch():
    torch.manual_seed(0)
    a, b, x = torch.randn(3, 2, 5, 4)
    made = merge_of("moe")
    torch.nn.init.normal_(made.gate.weight)
    out, _, _, routed = made(a, b, x)
    assert 0 < routed.sum() < routed.numel()
    torch.testing.assert_close(out, torch.where(routed[..., None], b, a))
    out.sum().backward()
    assert made.gate.weight.grad.abs().max() > 0


def test_slerp():
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    torch.testing.assert_close(slerp(a, b, 0.5), (a + b) / math.sqrt(2))
    torch.manual_seed(0)
    u, v = torch.randn(2, 6, 8)
    torch.testing.assert_close(slerp(u, v, 0.0), u)
    torch.testing.assert_close(slerp(u, v, 1.0), v)
    norms = slerp(F.normalize(u, dim=-1), F.normalize(v, dim=-1), 0.3).norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones(6))
    # one token with equal directions does not change what happens to the others
    mixed = torch.stack([u[0], v[0]])
    together = slerp(torch.stack([u[0], u[0]]), mixed, 0.5)
    torch.testing.assert_close(together[1], slerp(u[:1], v[:1], 0.5)[0])
    torch.testing.assert_close(together[0], u[0])
    close = u + 1e-6 * v
    close.requires_grad_()
    slerp(u, close, 0.5).sum().backward()
    assert torch.isfinite(close.grad).all()


# ---- alignment -------------------------------------------------------------------------------------------------------


def test_distances_in_closed_form():
    exp, pre = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[5.0, 0.0]]])
    assert distance("mse", exp, pre).item() == pytest.approx((4 + 16) / 2)
    gap = 1 - 0.6
    assert distance("cosine", exp, pre).item() == pytest.approx(0.5 * gap**2)
    assert distance("dot", exp, pre).item() == pytest.approx(0.25 * gap**2)
    longer = torch.tensor([[[6.0, 8.0]]])
    assert distance("dot", longer, pre).item() == pytest.approx(0.25 * gap**2 + 0.5 * 25)


def test_the_loss_counts_what_is_no_padding():
    model = moved(expand(llama(), ControlConfig(num_expand=2)))
    found = {}
    for layer, block in sidecars(model).items():
        block.pre.register_forward_hook(lambda m, i, o, layer=layer: found.update({("pre", layer): o}))
        block.exp.register_forward_hook(lambda m, i, o, layer=layer: found.update({("exp", layer): o}))
    mask = torch.ones_like(IDS)
    mask[0, 4:] = 0
    with Alignment(mask) as terms:
        logits(model)
    kept = mask.bool()
    expected = torch.stack([(found["exp", i] - found["pre", i])[kept].square().mean() for i in sidecars(model)]).mean()
    torch.testing.assert_close(terms.loss(), expected)
    with Alignment() as everything:
        logits(model)
    assert (everything.loss() - expected).abs() > 1e-4
    half = copy.deepcopy(model)
    for block in sidecars(half).values():
        block.alpha = None
    with Alignment(mask) as weighted:
        logits(half)
    torch.testing.assert_close(weighted.loss(), 0.5 * expected)
    assert not Alignment().terms and len(terms.terms) == 2


@pytest.mark.parametrize("align", [a for a in ALIGNMENTS if a != "none"])
def test_every_distance_moves_the_new_branch_and_not_the_old(align):
    model = moved(expand(llama("eager"), ControlConfig(num_expand=2, align=align))).train()
    with Alignment() as terms:
        model(input_ids=IDS, use_cache=False)
    assert terms.loss() > 0
    terms.loss().backward()
    assert all(p.grad is None for n, p in model.named_parameters() if ".exp." not in n)
    assert any(p.grad is not None and p.grad.abs().max() > 0 for n, p in model.named_parameters() if ".exp." in n)


@pytest.mark.parametrize("merge", ["lerp", "proj", "prog"])
def test_the_distance_of_a_branch_does_not_move_the_stream_before_it_through_its_target(merge):
    """A constant branch has no gradient of its own, so what reaches its input came through the target."""
    pre, exp = torch.nn.Identity(), torch.nn.Identity()
    exp.forward = lambda x, *_, **__: torch.zeros_like(x)
    pair = Sidecar(pre, exp, merge_of(merge), "mse", 1.0, True)
    x = torch.randn(2, 3, 4, requires_grad=True)
    with Alignment() as terms:
        pair(x)
    if merge == "lerp":
        assert not terms.loss().requires_grad
        return
    terms.loss().backward()
    assert x.grad is None and pair.merge.A.weight.grad.abs().max() > 0


def test_checkpointing_adds_nothing_twice():
    model = moved(expand(llama(), ControlConfig(num_expand=2))).train()
    with Alignment() as plain:
        model(input_ids=IDS, use_cache=False)
    plain.loss().backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with Alignment() as recomputed:
        model(input_ids=IDS, use_cache=False)
    recomputed.loss().backward()
    assert len(recomputed.terms) == 2 and torch.equal(recomputed.loss(), plain.loss())
    assert all(torch.equal(p.grad, grads[n]) for n, p in model.named_parameters() if n in grads)


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        ids = torch.randint(0, 30, (6,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids, "attention_mask": torch.ones(6, dtype=torch.long)}


def test_the_trainer_adds_and_logs_it(tmp_path):
    found = {}
    for micro, accumulation in ((8, 1), (4, 2)):
        model = moved(expand(llama(), ControlConfig(num_expand=2, train_factor=True)), 0.1)
        cls, callbacks = hook(tr.Trainer, model, ControlConfig())
        assert issubclass(cls, ControlTrainerMixin) and callbacks == []
        args = tr.TrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation,
            max_steps=2, learning_rate=0.1, optim="sgd", lr_scheduler_type="constant", use_cpu=True, report_to=[],
            disable_tqdm=True, save_strategy="no", max_grad_norm=0.0, logging_steps=1, seed=1,
        )  # fmt: skip
        trainer = cls(model=model, args=args, train_dataset=Rows())
        trainer.train()
        log = trainer.state.log_history[0]
        assert log["alignment"] > 0 and log["branch_weight/1"] != 0.5
        found[micro] = {n: p.detach().clone() for n, p in model.named_parameters()}
    assert max(float((found[8][n] - found[4][n]).abs().max()) for n in found[8]) < 1e-6


class Padded(Rows):
    """Rows of 2 to 6 tokens behind which padding stands."""

    def __getitem__(self, index):
        row, length = super().__getitem__(index), 2 + index % 5
        row["attention_mask"][length:] = 0
        return row | {"labels": row["labels"].masked_fill(row["attention_mask"] == 0, -100)}


def test_the_distance_is_a_mean_over_the_tokens_of_a_step_however_it_is_cut(tmp_path):
    found = {}
    for micro, accumulation in ((8, 1), (2, 4), (1, 8)):
        model = moved(expand(llama(), ControlConfig(num_expand=2)), 0.5)
        args = tr.TrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation,
            max_steps=1, learning_rate=0.1, optim="sgd", lr_scheduler_type="constant", use_cpu=True, report_to=[],
            disable_tqdm=True, save_strategy="no", max_grad_norm=0.0, seed=1,
        )  # fmt: skip
        hook(tr.Trainer, model, ControlConfig())[0](model=model, args=args, train_dataset=Padded()).train()
        found[micro] = {n: p.detach().clone() for n, p in model.named_parameters()}
    for micro in (2, 1):
        assert max(float((found[8][n] - found[micro][n]).abs().max()) for n in found[8]) < 1e-6


# ---- back to a plain model -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lerp", "slerp"])
def test_merging_back_untrained_branches_changes_nothing(method, tmp_path):
    model = expand(llama(), ControlConfig(num_expand=2))
    merged = merge_back(model, method)
    assert type(merged) is tr.LlamaForCausalLM and not ops_of(merged)
    torch.testing.assert_close(logits(merged), logits(llama()), atol=1e-6, rtol=1e-5)
    assert all(p.requires_grad for p in merged.parameters())
    merged.save_pretrained(tmp_path)
    assert torch.equal(logits(tr.AutoModelForCausalLM.from_pretrained(tmp_path)), logits(merged))


def test_the_merged_weight_is_the_mean_by_w():
    model = moved(expand(llama(), ControlConfig(num_expand=2)))
    block = sidecars(model)[1]
    with torch.no_grad():
        block.merge.a.fill_(1.0)
    w = branch_weights(model)[1]
    assert w == pytest.approx(1 / (1 + math.exp(-1)))
    name = "mlp.up_proj.weight"
    old, new = (dict(b.named_parameters())[name].clone() for b in (block.pre, block.exp))
    merged = merge_back(model)
    torch.testing.assert_close(dict(merged.model.layers[1].named_parameters())[name], (1 - w) * old + w * new)


def test_inserted_blocks_stay_and_a_token_dependent_weight_is_measured():
    deeper = merge_back(expand(llama(), ControlConfig(num_expand=2, expansion="hybrid")))
    assert len(deeper.model.layers) == 5 == deeper.config.num_hidden_layers
    torch.testing.assert_close(logits(deeper), logits(llama()), atol=1e-6, rtol=1e-5)
    model = expand(llama(), ControlConfig(num_expand=2, merge="dlerp"))
    with pytest.raises(MergeError, match="give batches"):
        merge_back(model)
    with torch.no_grad():
        for block in sidecars(model).values():
            block.merge.a.fill_(2.0)
    weights = branch_weights(model, [{"input_ids": IDS}, {"input_ids": IDS}])
    assert weights == pytest.approx({1: 1 / (1 + math.exp(-2)), 3: 1 / (1 + math.exp(-2))}, abs=1e-6)
    with torch.no_grad():
        for block in sidecars(model).values():
            block.merge.f.weight.normal_(generator=torch.Generator().manual_seed(0)).mul_(20)
    mask = torch.ones_like(IDS)
    mask[1, 2:] = 0
    padded = branch_weights(model, [{"input_ids": IDS, "attention_mask": mask}])
    cut = branch_weights(model, [{"input_ids": IDS[:1]}, {"input_ids": IDS[1:, :2]}])
    assert padded == pytest.approx(cut, abs=1e-6) and len({round(w, 3) for w in padded.values()}) == 2
    assert padded != pytest.approx(branch_weights(model, [{"input_ids": IDS}]), abs=1e-4)
    assert type(merge_back(model, batches=[{"input_ids": IDS}])) is tr.LlamaForCausalLM


def test_what_cannot_be_folded_says_why():
    for merge in ("moe", "proj", "prog"):
        with pytest.raises(MergeError, match=merge):
            merge_back(expand(llama(), ControlConfig(num_expand=2, merge=merge)))
    with pytest.raises(MergeError, match="no branches"):
        merge_back(llama())
    with pytest.raises(ConfigError, match="unknown way"):
        merge_back(expand(llama(), ControlConfig(num_expand=2)), "ties")


def coded(block):
    """A block one of whose weights is made of codes."""
    codes = torch.zeros(24, 8, dtype=torch.uint8)
    block.mlp.up_proj.weight = torch.nn.Parameter(codes, requires_grad=False)


def test_a_refused_expansion_leaves_everything():
    model = llama()
    for config, error in (
        (ControlConfig(num_expand=3), ConfigError),
        (ControlConfig(num_expand=1, expansion="hybrid"), ConfigError),
        (ControlConfig(num_expand=2, align="attention"), UnsupportedError),
    ):
        with pytest.raises(error):
            expand(model, config)
    assert all(p.requires_grad for p in model.parameters()) and type(model) is tr.LlamaForCausalLM
    for expansion in ("concat", "stack"):
        # blocks 0 and 1 became one
        model = ladder(llama(), [1])
        before, ops = {n: p.clone() for n, p in model.state_dict().items()}, ops_of(model)
        with pytest.raises(ConfigError, match="block 0 is edited already"):
            expand(model, ControlConfig(num_expand=3, expansion=expansion))
        assert ops_of(model) == ops and all(p.requires_grad for p in model.parameters())
        assert before.keys() == model.state_dict().keys()
    model = llama()
    coded(model.model.layers[3])
    with pytest.raises(UnsupportedError, match="block 3 could not learn"):
        expand(model, ControlConfig(num_expand=2))
    assert not ops_of(model) and all(p.requires_grad for p in model.model.layers[1].parameters())
    with pytest.raises(UnsupportedError, match="quantized"):
        Learngene.fit_from(model)
    model = expand(llama(), ControlConfig(num_expand=2))
    coded(sidecars(model)[1].pre)
    with pytest.raises(MergeError, match="block 1 is quantized"):
        merge_back(model)
    assert len(sidecars(model)) == 2
    config = tr.BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    with pytest.raises(UnsupportedError, match="norm comes last"):
        expand(tr.BertForMaskedLM(config), ControlConfig(num_expand=2, expansion="stack"))


def test_relaxed_norms_are_plain_at_one_half_and_pass_everything_at_one(tmp_path):
    model = expand(llama(), ControlConfig(num_expand=2, norm_relax=True))
    torch.testing.assert_close(logits(model), logits(llama()), atol=1e-6, rtol=1e-5)
    block = sidecars(model)[1]
    x, norm = torch.randn(1, 3, 16), block.exp.input_layernorm
    plain = copy.deepcopy(block.pre.input_layernorm)(x)
    with torch.no_grad():
        for a, slack in ((-2.0, 0.0), (math.log(3.0), 0.5), (50.0, 1.0)):
            block.merge.a.fill_(a)
            torch.testing.assert_close(norm(x), plain + slack * (x - plain))
            torch.testing.assert_close(block.pre.input_layernorm(x), plain)
        block.merge.a.fill_(math.log(3.0))
    before = logits(model)
    model.save_pretrained(tmp_path)
    from core.models.surgery import register

    register()
    torch.testing.assert_close(logits(tr.AutoModelForCausalLM.from_pretrained(tmp_path).eval()), before)
    torch.testing.assert_close(logits(copy.deepcopy(model)), before)
    with pytest.raises(MergeError, match="pass their input"):
        merge_back(model)
    with pytest.raises(ConfigError, match="relax"):
        expand(llama(), ControlConfig(num_expand=2, norm_relax=True, merge="dlerp"))
