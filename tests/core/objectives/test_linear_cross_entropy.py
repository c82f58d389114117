"""The fused loss has the value and the gradients of the loss of whole logits, and its kernel those of its twin."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from core.config.schema import AdapterConfig, ModelConfig
from core.models.fused.backend import has_triton
from core.models.load import load_model
from core.models.tokenizer import train_bpe
from core.objectives.head import plain_head
from core.objectives.linear_cross_entropy import HeadShape, linear_cross_entropy
from core.objectives.losses import CrossEntropy

ROOT = Path(__file__).parents[3]
SHAPES = [
    HeadShape(),
    HeadShape(softcap=5.0),
    HeadShape(scale=0.25, smoothing=0.1),
    HeadShape(2.0, 3.0, 0.2),
    HeadShape(z_loss=0.1),
    HeadShape(2.0, 3.0, 0.2, 0.05),
]


def inputs(dtype=torch.float64, n=37, d=16, v=53):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, d, generator=generator, dtype=torch.float64)
    weight = torch.randn(v, d, generator=generator, dtype=torch.float64)
    bias = torch.randn(v, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, v, (n,), generator=generator)
    targets[5:19] = -100
    return [t.to(dtype).requires_grad_() for t in (hidden, weight, bias)], targets


def reference(leaves, targets, shape):
    """Whole logits in fp64."""
    hidden, weight, bias = (t.detach().double().requires_grad_() for t in leaves)
    z = shape.of(F.linear(hidden, weight, bias))
    loss = F.cross_entropy(z, targets, reduction="sum", ignore_index=-100, label_smoothing=shape.smoothing)
    loss = loss + shape.z_loss * z[targets >= 0].logsumexp(-1).square().sum()
    return loss, torch.autograd.grad(loss * 0.7, (hidden, weight, bias))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("piece", [7, 64])
def test_value_and_gradients(shape, piece):
    leaves, targets = inputs(torch.float32)
    loss = linear_cross_entropy(leaves[0], leaves[1], targets, leaves[2], shape, piece)
    found = torch.autograd.grad(loss * 0.7, leaves)
    expected, gradients = reference(leaves, targets, shape)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(found, gradients):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)


def test_bf16_states_are_reduced_in_fp32():
    leaves, targets = inputs(torch.bfloat16, n=512)
    loss = linear_cross_entropy(leaves[0], leaves[1], targets, leaves[2], piece=16)
    found = torch.autograd.grad(loss * 0.7, leaves)
    expected, gradients = reference(leaves, targets, HeadShape())
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected.item(), rel=2e-3)
    for ours, theirs in zip(found, gradients):
        assert (ours.double() - theirs).norm() / theirs.norm() < 1e-2


def test_autocast_multiplies_fp32_states_in_its_dtype():
    leaves, targets = inputs(torch.float32)
    rounded = [leaf.detach().bfloat16().requires_grad_() for leaf in leaves]
    expected = linear_cross_entropy(rounded[0], rounded[1], targets, rounded[2], piece=8)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(leaves[0], leaves[1], targets, leaves[2], piece=8)
    assert loss.item() == expected.item()
    for ours, theirs in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, rounded)):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-2, atol=1e-2)


def test_nothing_trained_is_zero_and_still_connected():
    leaves, targets = inputs(torch.float32)
    for chosen in (torch.full_like(targets, -100), targets[:0]):
        hidden = leaves[0][: len(chosen)]
        loss = linear_cross_entropy(hidden, leaves[1], chosen, piece=8)
        gradients = torch.autograd.grad(loss, leaves[:2])
        assert loss.item() == 0 and all(not g.any() for g in gradients)


def test_a_frozen_head_gets_no_gradient():
    leaves, targets = inputs(torch.float32)
    weight = leaves[1].detach()
    gradient = torch.autograd.grad(linear_cross_entropy(leaves[0], weight, targets, piece=8), leaves[0])[0]
    whole = F.cross_entropy(leaves[0] @ weight.T, targets, reduction="sum", ignore_index=-100)
    torch.testing.assert_close(gradient, torch.autograd.grad(whole, leaves[0])[0], rtol=1e-4, atol=1e-5)


# ---- on models -------------------------------------------------------------------------------------------------------


def batch():
    ids = torch.randint(5, 200, (3, 12), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, :4] = -100
    return {"input_ids": ids}, labels


def gradients_of(model, form):
    given, labels = batch()
    total, count = CrossEntropy(form)(model, given, labels)
    model.zero_grad()
    total.backward()
    return total.item(), int(count), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def both_forms_agree(model):
    whole, count, expected = gradients_of(model, "whole")
    fused, fused_count, found = gradients_of(model, "fused")
    assert fused == pytest.approx(whole, rel=1e-5) and count == fused_count and found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["ab"], 260)


@pytest.mark.parametrize("preset", ["tiny", "tiny-gpt2"])
def test_tied_and_untied_heads(preset, tokenizer):
    both_forms_agree(load_model(ModelConfig(preset=preset), tokenizer, seed=1).eval())


@pytest.mark.parametrize("adapted", [False, True])
def test_the_head_is_multiplied_as_the_model_multiplies_it(adapted, tokenizer, monkeypatch):
    """accelerate puts autocast around the model's forward and not around the loss."""
    model = load_model(ModelConfig(preset="tiny"), tokenizer, seed=1).float().eval()
    if adapted:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"]))
    plain = model.forward

    def forward(*given, **named):
        with torch.autocast("cpu", torch.bfloat16):
            return plain(*given, **named)

    monkeypatch.setattr(model, "forward", forward)
    multiplied = []
    linear = F.linear
    monkeypatch.setattr(F, "linear", lambda x, w, b=None: multiplied.append((x.dtype, w.shape[0])) or linear(x, w, b))
    fused, _, found = gradients_of(model, "fused")
    head = [dtype for dtype, rows in multiplied if rows == model.config.vocab_size]
    whole, _, expected = gradients_of(model, "whole")
    assert fused == pytest.approx(whole, rel=1e-3) and found.keys() == expected.keys()
    assert adapted or head[-1] == torch.bfloat16
    for name, gradient in expected.items():
        assert found[name].dtype == torch.float32 and (found[name] - gradient).norm() <= 0.02 * gradient.norm() + 1e-4


def test_capped_and_scaled_heads():
    from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM

    sizes = {
        "vocab_size": 260, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
    }  # fmt: skip
    torch.manual_seed(0)
    for model in (
        Gemma2ForCausalLM(Gemma2Config(**sizes, final_logit_softcapping=0.5)),
        CohereForCausalLM(CohereConfig(**sizes, logit_scale=0.3)),
    ):
        assert plain_head(model).shape != HeadShape()
        both_forms_agree(model.eval())


def test_a_head_that_does_more_than_is_known_is_not_guessed(tokenizer):
    """Logits changed behind the head: the last position tells, and what is unknown is still reproduced or refused."""
    model = load_model(ModelConfig(preset="tiny"), tokenizer, seed=1).eval()
    loss = CrossEntropy()
    loss(model, *batch())
    assert loss._plain is True
    model.lm_head.register_forward_hook(lambda _m, _i, out: out * 0.5)
    loss = CrossEntropy()
    loss(model, *batch())
    assert loss._plain is False
    both_forms_agree(model)


@pytest.mark.parametrize("targets,saved", [(["lm_head", "q_proj"], []), (["q_proj"], ["lm_head"])])
def test_adapted_and_trained_heads(targets, saved, tokenizer):
    from core.training.build import add_adapters

    model = load_model(ModelConfig(preset="tiny"), tokenizer, seed=1)
    model = add_adapters(model, [AdapterConfig(r=4, targets=targets, modules_to_save=saved)]).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    assert (plain_head(model) is None) == ("lm_head" in targets)
    both_forms_agree(model)


KERNEL = """
import sys, torch
sys.path.insert(0, {root!r})
from core.models.fused.triton_cross_entropy import softmax_loss_
from core.objectives.linear_cross_entropy import HeadShape, plain_softmax_loss_
raw = torch.randn(9, 77, generator=torch.Generator().manual_seed(0)) * 3
targets = torch.randint(0, 77, (9,), generator=torch.Generator().manual_seed(1)); targets[4] = -100
for shape in (HeadShape(), HeadShape(softcap=5.0), HeadShape(0.25, None, 0.1), HeadShape(2.0, 3.0, 0.2)):
    one, two = raw.clone(), raw.clone()
    a, b = softmax_loss_(one, targets, shape, True), plain_softmax_loss_(two, targets, shape, True)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
print("equal")
"""


@pytest.mark.skipif(not has_triton(), reason="Triton is not installed")
def test_the_kernel_equals_its_twin():
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    script = KERNEL.format(root=str(ROOT))
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "equal", done.stderr[-2000:]


def test_z_loss_pulls_the_normaliser_to_one():
    """With equal logits c of V words log Z is c + ln V: the loss and its slope in c are known."""
    c, words, weight = 1.5, 50, 0.1
    hidden = torch.tensor([[c]], requires_grad=True)
    loss = linear_cross_entropy(hidden, torch.ones(words, 1), torch.tensor([3]), shape=HeadShape(z_loss=weight))
    log_z = c + math.log(words)
    assert loss.item() == pytest.approx(math.log(words) + weight * log_z**2, rel=1e-6)
    loss.backward()
    assert hidden.grad.item() == pytest.approx(2 * weight * log_z, rel=1e-5)
