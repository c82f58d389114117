"""Rewrites leave the function as it is on every architecture; solvers beat what they are meant to beat."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from core.errors import CheckpointError, ConfigError, DataError, UnsupportedError
from core.models.topology import ModelTopology
from core.quantization import graft_cache, parse, quantize_model, transforms
from core.quantization.graph import readers_of
from core.quantization.grids import encode, tables
from core.quantization.quantize import Stats
from core.quantization.solvers import dkm, gptq, rtn, typesearch
from core.quantization.trained import make_trainable, pack
from core.statistics.calibration import BlockCalibration

SIZE = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
GPT2 = {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZE, intermediate_size=128, num_key_value_heads=2)),
    "qwen3": lambda: Qwen3ForCausalLM(
        Qwen3Config(**SIZE, intermediate_size=128, num_key_value_heads=2, head_dim=16, tie_word_embeddings=False)
    ),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**SIZE, intermediate_size=128, num_key_value_heads=2, head_dim=16, pad_token_id=0)
    ),
    "phi3": lambda: Phi3ForCausalLM(
        Phi3Config(**SIZE, intermediate_size=128, num_key_value_heads=2, pad_token_id=0, eos_token_id=1)
    ),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZE, intermediate_size=128)),
    "opt": lambda: OPTForCausalLM(OPTConfig(**SIZE, ffn_dim=128, word_embed_proj_dim=64, pad_token_id=0)),
    "bloom": lambda: BloomForCausalLM(BloomConfig(vocab_size=96, hidden_size=64, n_layer=2, n_head=4)),
}


def build(family="llama", seed=0):
    torch.manual_seed(seed)
    model = MODELS[family]().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name:
                parameter.add_(0.3 * torch.rand_like(parameter))
            else:
                parameter.mul_(3.0)
    return model


def ids(rows=2, length=12):
    return torch.randint(0, 96, (rows, length), generator=torch.Generator().manual_seed(1))


def logits(model):
    with torch.no_grad():
        return model(ids()).logits


def calibration(count=3):
    return [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(s)) for s in range(count)]


def groups_of(model):
    names = {id(part): name for name, part in model.named_modules()}
    return [group for ref in ModelTopology.of(model).blocks for group in readers_of(ref, names)]


@pytest.mark.parametrize("family", MODELS)
def test_folded_scales_leave_the_function(family):
    model = build(family)
    before = logits(model)
    absorbed = 0
    for group in groups_of(model):
        torch.manual_seed(len(group.names))
        scale = group.shareable(torch.rand(group.inputs) * 3 + 0.3)
        with torch.no_grad():
            left = group.fold(scale)
        absorbed += left is None
        if left is not None:
            assert torch.allclose(left, 1 / scale) and group.role in ("output", "down")
    assert absorbed >= (4 if family in ("gpt_neox", "bloom", "phi3") else 6)
    assert (logits(model) - before).abs().max() < 1e-4 * before.abs().max()


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_gains_of_16_bits_stay_so_and_others_take_the_scale_as_it_is(family):
    model = build(family)
    group = groups_of(model)[0]
    weight, asked = group.producer.weight, torch.rand(group.inputs) * 3 + 0.3
    offset = 1.0 if family == "gemma3" else 0.0
    with torch.no_grad():
        weight.copy_((torch.rand_like(weight) + 0.5 - offset).bfloat16())
        before = logits(model)
        group.fold(asked)
        assert torch.equal(weight.bfloat16().float(), weight)
        assert (logits(model) - before).abs().max() < 1e-4 * before.abs().max()
        weight.copy_(torch.rand_like(weight) + 0.5)
        wanted = (weight + offset) / asked - offset
        group.fold(asked)
    assert torch.equal(weight, wanted)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_rotation_and_scaled_attention_leave_the_function(family):
    model = build(family)
    before = logits(model)
    with torch.no_grad():
        transforms.rotate(model)
    turned = logits(model)
    assert (turned - before).abs().max() < 1e-4 * before.abs().max()
    for ref in ModelTopology.of(model).blocks:
        with torch.no_grad():
            assert transforms.smooth_attention(ref, torch.rand(ref.n_kv_heads * ref.head_dim_qk) * 9 + 0.1)
    assert (logits(model) - turned).abs().max() < 1e-4 * before.abs().max()


def test_scaled_attention_behind_norms_that_add_one():
    model = build("gemma3")
    before = logits(model)
    for ref in ModelTopology.of(model).blocks:
        with torch.no_grad():
            assert transforms.smooth_attention(ref, torch.rand(ref.n_kv_heads * ref.head_dim_qk) * 9 + 0.1)
    assert (logits(model) - before).abs().max() < 1e-4 * before.abs().max()
    with pytest.raises(UnsupportedError, match="gemma3_text"):
        transforms.rotate(model)


def test_rotation_is_orthogonal_and_refuses_other_norms():
    for size in (64, 96, 384):
        turn = transforms.rotation(size)
        assert torch.allclose(turn @ turn.t(), torch.eye(size, dtype=torch.float64), atol=1e-12)
        assert turn.abs().max() < 3 / size**0.5
    with pytest.raises(UnsupportedError, match="cannot be rotated"):
        transforms.rotate(build("gpt2"))


def test_outlier_channels_fill_the_fewest_blocks():
    absmax = torch.ones(512)
    absmax[[5, 300, 511]] = 50
    order, blocks = transforms.outlier_order(absmax)
    assert blocks == 1 and set(order[:3].tolist()) == {5, 300, 511} and order.sort().values.tolist() == list(range(512))


def test_calibration_sees_what_the_model_sees():
    model, batches = build(), calibration()
    seen = {}
    hooks = [
        part.register_forward_pre_hook(lambda m, a, n=name: seen.setdefault(n, []).append(a[0].flatten(0, 1)))
        for name, part in model.named_modules()
        if name.endswith(("q_proj", "down_proj"))
    ]
    with torch.no_grad():
        for batch in batches:
            model(batch)
    for hook in hooks:
        hook.remove()
    for run in BlockCalibration(model, batches).blocks():
        stats = run.collect(("absmean", "absmax", "hessian", "sample"))
        for name in (f"{run.name}.self_attn.q_proj", f"{run.name}.mlp.down_proj"):
            x = torch.cat(seen[name])
            assert torch.allclose(stats[name].hessian, x.t() @ x, rtol=1e-3, atol=1e-3)
            assert torch.allclose(stats[name].absmax, x.abs().amax(0), atol=1e-4)
            assert torch.allclose(stats[name].absmean, x.abs().mean(0), atol=1e-4)
        assert stats[f"{run.name}.self_attn.q_proj"] is stats[f"{run.name}.self_attn.v_proj"]


def test_gptq_and_clipping_beat_rounding_where_they_look():
    torch.manual_seed(0)
    x = torch.randn(512, 128) @ torch.randn(128, 128) * torch.rand(128) ** 3
    weight, hessian = torch.randn(32, 128), x.t() @ x
    for text in ("rtn:3", "rtn:2:g32", "rtn:3:row", "rtn:4:int8-scale"):
        spec = parse(text)

        def lost(values):
            return float(((values - weight) @ hessian * (values - weight)).sum())

        plain = lost(rtn.solve(weight, spec).values(spec))
        assert lost(gptq.solve(weight, spec, Stats(hessian=hessian)).values(spec)) < 0.95 * plain, text
        clip = transforms.clip_search(weight, x, spec)
        assert lost(rtn.solve(weight, spec, Stats(clip=clip)).values(spec)) <= 1.001 * plain


def test_awq_never_loses_to_rounding_on_what_it_minimises():
    model = build()
    reports = quantize_model(model, "awq:3:g32", calib=calibration())
    notes = [row.notes["awq"] for row in reports.rows]
    assert all(n["error"] <= n["rounding error"] for n in notes) and any(n["ratio"] > 0 for n in notes)


def test_smoothquant_plus_has_no_smoothing_among_its_candidates():
    model = build()
    found = quantize_model(model, "smoothquant_plus:3", calib=calibration(), alpha_step=0.25).notes["smoothing"]
    assert found["logit error"] <= found["logit error without"]


def test_block_reconstruction_lowers_its_loss():
    rows = quantize_model(build(), "abq:3", calib=calibration(), epochs=8).rows
    losses = next(row.notes["block loss"] for row in rows if "block loss" in row.notes)
    assert min(losses[1:]) < losses[0]
    balanced = parse("abq:2")
    assert balanced.grid == "balanced" and balanced.bits == 3


def test_bitmod_takes_the_best_table_of_each_group():
    torch.manual_seed(0)
    weight, spec = torch.randn(8, 128), parse("bitmod:3:fp32")
    best = (typesearch.solve(weight, spec).values(spec) - weight).square().sum(1)
    for number in range(4):
        found = typesearch.solve(weight, spec)
        top = tables(spec)[number].abs().max()
        found.params = {
            "scale": weight.abs().amax(1, keepdim=True) / top,
            "selector": torch.full((8, 1), number, dtype=torch.uint8),
        }
        found.codes = encode(weight, found.params, spec)
        assert (best <= (found.values(spec) - weight).square().sum(1) + 1e-5).all()


def test_soft_kmeans_on_a_table_is_the_full_computation():
    torch.manual_seed(0)
    weight = torch.randn(20, 30).to(torch.bfloat16).double()
    weight[0] = weight[1]
    levels, gradient = torch.linspace(-2, 2, 8).double(), torch.randn(20, 30).double()
    table, full = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    out, _ = dkm.SoftKMeans.apply(table, levels, 0.1)
    out.backward(gradient)
    final = dkm.soft_levels(full.flatten(), torch.ones(600).double(), levels, 0.1)
    wanted = (dkm.assignments(full.flatten(), final, 0.1) @ final).view(20, 30)
    wanted.backward(gradient)
    assert torch.allclose(out, wanted, atol=1e-12) and torch.allclose(table.grad, full.grad, atol=1e-10)


@pytest.mark.parametrize("preset", ["trilm", "bitlinear", "edkm"])
def test_trained_forms_learn_and_pack_to_the_same_function(preset):
    model = make_trainable(build(), preset)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(8):
        loss = model(ids(), labels=ids()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    model.eval()
    soft = logits(model)
    pack(model)
    # ternary rounding is the same function; soft assignments become hard ones
    assert (logits(model) - soft).abs().max() < (0.5 if preset == "edkm" else 5e-3) * soft.abs().max()


@pytest.mark.parametrize(("kind", "limit"), [("kv8", 0.02), ("kv4", 0.3)])
def test_a_low_bit_cache_rounds_each_token_once(kind, limit):
    model = build()
    cache = graft_cache(model, kind)
    plain = logits(model)
    with torch.no_grad():
        first = model(ids()[:, :8], past_key_values=cache).logits
        held = [tuple(t.clone() for t in part) for part in cache.layers[0].held]
        rest = model(ids()[:, 8:], past_key_values=cache).logits
    assert (torch.cat([first, rest], 1) - plain).norm() / plain.norm() < limit
    for part, before in zip(cache.layers[0].held, held):
        assert all(torch.equal(now[..., :8, :], was) for now, was in zip(part, before))
    assert cache.get_seq_length() == 12
    cache.layers[0].crop(-2)
    assert cache.layers[0].get_seq_length() == 10
    dense = 2 * 2 * 2 * 12 * 16 * 4
    assert cache.layers[1].storage_bytes() < dense / (2.5 if kind == "kv8" else 4)
    with pytest.raises(ConfigError, match="kv8 or kv4"):
        graft_cache(model, "kv3")
    for group in (0, -2, 3):
        with pytest.raises(ConfigError, match=f"groups of {group}"):
            graft_cache(model, "kv4", group)


@pytest.mark.parametrize("spec", ["rtn:4:g32", "nf4", "bitmod:int8-scale:g32"])
def test_a_folder_opens_in_the_dtype_that_is_asked_for(spec, tmp_path):
    """What stays dense follows it; scales keep their own."""
    from transformers import AutoModelForCausalLM

    model = build().bfloat16()
    quantize_model(model, spec)
    model.save_pretrained(tmp_path)
    state = model.state_dict()
    for dtype in (torch.bfloat16, torch.float32):
        again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
        assert {p.dtype for p in again.parameters() if p.is_floating_point()} == {dtype}
        for name, tensor in again.state_dict().items():
            own = any(part in name for part in (".planes", ".scale", ".zero", ".selector"))
            assert tensor.dtype == (state[name].dtype if own else dtype), name
            assert torch.equal(tensor, state[name].to(tensor.dtype)), name


def test_a_folder_that_lacks_codes_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    model = build()
    quantize_model(model, "rtn:4:g32")
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    lost = "model.layers.1.mlp.up_proj.scale"
    save_file({key: value for key, value in tensors.items() if key != lost}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"lacks '{lost}'"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_bits_of_a_report_are_those_of_all_weights():
    model = build()
    report = quantize_model(model, "rtn:4:row")
    layers = [part for part in model.modules() if hasattr(part, "canonical_planes")]
    assert len({layer.in_features for layer in layers}) > 1
    held = sum(8 * layer.storage_bytes() for layer in layers)
    weights = sum(layer.in_features * layer.out_features for layer in layers)
    assert report.bits_per_weight == pytest.approx(held / weights, abs=1e-4)


def test_bad_calibration_is_named_before_work():
    model = build()
    with pytest.raises(ConfigError, match="'awq' needs calibration data"):
        quantize_model(model, "awq")
    with pytest.raises(DataError, match="empty"):
        quantize_model(model, "gptq", calib=[])
    with pytest.raises(DataError, match="not token ids"):
        quantize_model(model, "gptq", calib=[torch.full((1, 4), 96)])
    with pytest.raises(ConfigError, match="made by training"):
        quantize_model(model, "trilm")
    with pytest.raises(ConfigError, match=r"(?s)'gptq' has no setting 'epochs'.*its search has none"):
        quantize_model(model, "gptq", calib=calibration(1), epochs=3)
    with pytest.raises(ConfigError, match="'alpha_step' cannot be 2"):
        quantize_model(model, "smoothquant_plus", calib=calibration(1), alpha_step=2)
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(DataError, match=r"layers\.0\.mlp\.down_proj"):
        quantize_model(model, "gptq:g32", calib=calibration(1))
