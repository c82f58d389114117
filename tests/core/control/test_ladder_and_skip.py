"""Ladder blocks against a literal transcription; skipping: its threshold, what is left out and what stays whole."""

from __future__ import annotations

import pytest
import torch
import transformers as tr

from core.control.ladder import ladder
from core.control.options import SkipOptions
from core.control.skip import calibrate_skip, skipped, threshold_for
from core.errors import BudgetError, ConfigError, UnsupportedError
from core.models.blocks.skip import skip_state
from core.models.surgery import ops_of

IDS = torch.arange(3, 19).view(2, 8)


def llama(layers=4):
    torch.manual_seed(0)
    config = tr.LlamaConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32,
    )  # fmt: skip
    model = tr.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.dim() > 1 else 1)
    return model


@torch.no_grad()
def logits(model, ids=IDS):
    return model(input_ids=ids, use_cache=False).logits


@torch.no_grad()
def transcribed(model, ladders):
    """x[i+1] = x[i] + f_i(x[i-1]) over sub-layers, with f_i reading x[i] in the other blocks."""
    ids = IDS
    x = [model.model.embed_tokens(ids)]
    positions = torch.arange(ids.shape[1]).unsqueeze(0)
    phases = model.model.rotary_emb(x[0], position_ids=positions)
    mask = torch.full((1, 1, ids.shape[1], ids.shape[1]), -torch.inf).triu(1)
    for number, block in enumerate(model.model.layers):
        for sublayer in ("attn", "mlp"):
            seen = x[max(0, len(x) - 2)] if number in ladders else x[-1]
            if sublayer == "attn":
                out = block.self_attn(block.input_layernorm(seen), attention_mask=mask, position_embeddings=phases)[0]
            else:
                out = block.mlp(block.post_attention_layernorm(seen))
            x.append(x[-1] + out)
    return model.lm_head(model.model.norm(x[-1]))


@pytest.mark.parametrize("ladders", [[0, 1, 2, 3], [2, 3], [1], [0, 3], [3]])
def test_a_ladder_reads_one_step_before(ladders):
    expected = transcribed(llama(), ladders)
    model = ladder(llama(), ladders)
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)
    assert (expected - transcribed(llama(), [])).abs().max() > 1e-2
    torch.testing.assert_close(transcribed(llama(), []), logits(llama()), atol=1e-5, rtol=1e-5)


def test_the_last_n_blocks_and_gradients_under_checkpointing():
    model = ladder(llama(), 2)
    assert ops_of(model)[-1]["layers"] == [2, 3]
    model.train()
    grads = []
    for on in (False, True):
        model.zero_grad()
        if on:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        grads.append({n: p.grad.clone() for n, p in model.named_parameters()})
    assert all(torch.allclose(grads[0][n], grads[1][n], atol=1e-6) for n in grads[0])
    assert all(g.abs().max() > 0 for g in grads[0].values())


def test_ladder_mistakes():
    with pytest.raises(ConfigError, match="last 9 blocks of 4"):
        ladder(llama(), 9)
    config = tr.GPTNeoXConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    with pytest.raises(UnsupportedError, match="gpt_neox"):
        ladder(tr.GPTNeoXForCausalLM(config), [0])


# ---- skipping --------------------------------------------------------------------------------------------------------


def generate(model, ids=IDS, n=6):
    return model.generate(ids, max_new_tokens=n, do_sample=False, eos_token_id=None, pad_token_id=0)


def test_a_threshold_above_one_is_the_base_bit_for_bit():
    model = calibrate_skip(llama(), [], SkipOptions(threshold=1.5))
    assert torch.equal(logits(model), logits(llama())) and torch.equal(generate(model), generate(llama()))
    assert skip_state(model).skip_ratio == 0 and skip_state(model).offered > 0


def test_everything_behind_the_first_block_is_skipped_below_all():
    model = calibrate_skip(llama(6), [], SkipOptions(threshold=-1.0, cold_start=1, cold_end=5, warmup=0))
    calls = {"attn": 0, "mlp": 0}
    for block in model.model.layers:
        block.block.self_attn.register_forward_hook(lambda *_: calls.update(attn=calls["attn"] + 1))
        block.block.mlp.register_forward_hook(lambda *_: calls.update(mlp=calls["mlp"] + 1))
    generate(model, n=4)
    # one prefill of six blocks, then three decoded tokens in which 5 - 1 - 1 parts are left out
    assert calls == {"attn": 6 * 4, "mlp": 6 + 3 * (6 - 3)}
    assert skip_state(model).skip_ratio == pytest.approx(3 / 6)


def test_warm_up_and_the_most_that_a_token_leaves_out():
    model = calibrate_skip(llama(6), [], SkipOptions(threshold=-1.0, cold_start=0, cold_end=6, warmup=2, max_skip=2))
    generate(model, n=6)
    state = skip_state(model)
    # five decoded tokens of two rows, the first two run whole and are not offered anything
    assert state.offered == 3 * 2 * 6 and int(state.skipped) == 3 * 2 * 2


def test_the_cache_before_the_first_skip_is_the_bases():
    model = calibrate_skip(llama(), [], SkipOptions(threshold=-1.0, cold_start=1, cold_end=4, warmup=0))
    caches = []
    for each in (model, llama()):
        cache = tr.DynamicCache(config=each.config)
        with torch.no_grad():
            each(input_ids=IDS, past_key_values=cache, use_cache=True)
            each(input_ids=IDS[:, :1], past_key_values=cache, use_cache=True)
        caches.append(cache)
    same = [torch.equal(a.keys, b.keys) for a, b in zip(caches[0].layers, caches[1].layers)]
    assert same == [True, True, True, False] and all(c.layers[3].keys.shape[2] == 9 for c in caches)


def test_the_threshold_meets_the_ratio_on_its_text():
    torch.manual_seed(0)
    batches = [{"input_ids": torch.randint(0, 30, (2, 16))} for _ in range(4)]
    model = calibrate_skip(llama(6), batches, SkipOptions(target_ratio=0.25, cold_start=1, cold_end=6))
    state = skip_state(model)
    assert -1 < state.threshold < 1 and ops_of(model)[-1]["threshold"] == state.threshold and state.probe is None
    cosines = torch.rand(500, 8)
    for wanted in (0.5, 2.0, 6.5):
        assert skipped(cosines, threshold_for(cosines, wanted), 8) == pytest.approx(wanted, abs=0.05)
    assert skipped(cosines, -1.0, 3) == 3 and skipped(cosines, 1.5, 8) == 0


def test_skip_mistakes():
    with pytest.raises(BudgetError, match="0.250 of the parts") as error:
        calibrate_skip(llama(), [{"input_ids": IDS}], SkipOptions(target_ratio=0.9, cold_start=1, cold_end=3))
    assert error.value.best_achievable == 0.25
    for options in (SkipOptions(), SkipOptions(target_ratio=0.2, threshold=0.9)):
        with pytest.raises(ConfigError, match="not both"):
            calibrate_skip(llama(), [], options)
    with pytest.raises(ConfigError, match="no text"):
        calibrate_skip(llama(), [], SkipOptions(target_ratio=0.2, cold_start=0, cold_end=4))
    with pytest.raises(ConfigError, match="cold_start"):
        calibrate_skip(llama(), [], SkipOptions(threshold=0.5, cold_start=3, cold_end=2))
    with pytest.raises(ConfigError, match="skips nothing"):
        skip_state(llama())


def test_a_failed_calibration_leaves_the_model_as_it_was():
    model = llama()
    names, before = list(model.state_dict()), type(model)
    with pytest.raises(IndexError):
        calibrate_skip(model, [{"input_ids": torch.tensor([[10**6]])}], SkipOptions(target_ratio=0.1))
    assert list(model.state_dict()) == names and type(model) is before and not hasattr(model.config, "graft")
