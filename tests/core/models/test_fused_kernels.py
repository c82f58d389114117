"""Fused norm, rotary phases and gated product: gradients against fp64 autograd, kernels against their twins."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from core.models.fused.backend import has_triton
from core.models.fused.ops import add_rms_norm, gated, rotary

ROOT = Path(__file__).parents[3]


def leaf(*shape, seed=0):
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return made.float().requires_grad_()


def agree(ours, theirs, leaves):
    """Values and gradients of two functions of the same leaves, under one random upstream gradient."""
    found, wanted = ours(*leaves), theirs(*[x.detach().double().requires_grad_() for x in leaves])
    found, wanted = ((f,) if torch.is_tensor(f) else f for f in (found, wanted))
    upstream = [torch.randn(f.shape, generator=torch.Generator().manual_seed(7)) for f in found]
    doubles = [x.detach().double().requires_grad_() for x in leaves]
    again = theirs(*doubles)
    again = (again,) if torch.is_tensor(again) else again
    gradients = torch.autograd.grad(found, leaves, upstream)
    expected = torch.autograd.grad(again, doubles, [u.double() for u in upstream])
    for a, b in zip((*found, *gradients), (*wanted, *expected)):
        torch.testing.assert_close(a.double(), b.detach(), rtol=1e-5, atol=1e-5)


def reference_norm(x, weight):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight, x


def test_norm():
    agree(lambda x, w: add_rms_norm(x, None, w, 1e-6), reference_norm, [leaf(2, 3, 20), leaf(20, seed=1)])


def test_norm_of_a_sum():
    leaves = [leaf(2, 3, 20), leaf(2, 3, 20, seed=2), leaf(20, seed=1)]
    agree(lambda x, a, w: add_rms_norm(x, a, w, 1e-6), lambda x, a, w: reference_norm(x + a, w), leaves)


def test_inputs_and_gradients_in_any_layout():
    x, w = leaf(3, 2, 20), leaf(20, seed=1)
    out, stream = add_rms_norm(x.transpose(0, 1), None, w, 1e-6)
    (out.sum() + stream.sum()).backward()
    y = x.detach().clone().requires_grad_()
    normed, same = reference_norm(y.transpose(0, 1), w.detach())
    (normed.sum() + same.sum()).backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-5, atol=1e-5)


def test_gated_product():
    agree(gated, lambda g, u: F.silu(g) * u, [leaf(3, 7), leaf(3, 7, seed=1)])


def test_rotary_phases_are_those_of_transformers():
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    angles = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(3)).repeat(1, 1, 2)
    cos, sin = angles.cos(), angles.sin()

    def reference(x):
        turned, _ = apply_rotary_pos_emb(x.transpose(1, 2), x.transpose(1, 2), cos.double(), sin.double())
        return turned.transpose(1, 2)

    agree(lambda x: rotary(x, cos, sin), reference, [leaf(2, 5, 3, 8)])


def test_bf16_norm_rounds_where_transformers_rounds():
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    norm = LlamaRMSNorm(64).bfloat16()
    norm.weight.data.uniform_(0.5, 1.5)
    x = torch.randn(9, 64).bfloat16()
    ours, _ = add_rms_norm(x, None, norm.weight, norm.variance_epsilon)
    assert ours.dtype == torch.bfloat16 and torch.equal(ours, norm(x))


KERNELS = """
import sys, torch
sys.path.insert(0, {root!r})
from core.models.fused import plain, triton_layers as kernels
def rand(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
def same(a, b, dtype):
    for x, y in zip(a if isinstance(a, tuple) else (a,), b if isinstance(b, tuple) else (b,)):
        if x is None or y is None:
            assert x is y
        else:
            assert x.dtype == y.dtype
            tolerance = 1e-5 if dtype == torch.float32 else 2e-2
            torch.testing.assert_close(x.float(), y.float(), rtol=tolerance, atol=tolerance)
for dtype in (torch.float32, torch.bfloat16):
    x, a, w = rand(5, 20, dtype=dtype), rand(5, 20, seed=1, dtype=dtype), rand(20, seed=2, dtype=dtype)
    for added in (None, a):
        same(kernels.norm_forward(x, added, w, 1e-6, dtype), plain.norm_forward(x, added, w, 1e-6, dtype), dtype)
    inverse = plain.norm_forward(x, None, w, 1e-6, dtype)[2]
    for passed in (None, a):
        for gain in (False, True):
            g = rand(5, 20, seed=3, dtype=dtype)
            given = (g, passed, x, w, inverse, gain)
            same(kernels.norm_backward(*given), plain.norm_backward(*given), dtype)
    angles = rand(2, 5, 4, seed=4).repeat(1, 1, 2)
    heads = rand(2, 5, 3, 8, seed=5, dtype=dtype)
    for q in (heads, heads.transpose(1, 2).contiguous().transpose(1, 2)):
        for c in (angles, angles[:1]):
            same(kernels.rotate(q, c.cos(), c.sin(), -1.0), plain.rotate(q, c.cos(), c.sin(), -1.0), dtype)
    g, u, dy = rand(5, 7, seed=6, dtype=dtype), rand(5, 7, seed=7, dtype=dtype), rand(5, 7, seed=8, dtype=dtype)
    same(kernels.gated(g, u), plain.gated(g, u), dtype)
    for keep in (True, False):
        same(kernels.gated_backward(dy.clone(), g, u, keep), plain.gated_backward(dy, g, u, keep), dtype)
print("equal")
"""


@pytest.mark.skipif(not has_triton(), reason="Triton is not installed")
def test_the_kernels_equal_their_twins():
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    script = KERNELS.format(root=str(ROOT))
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "equal", done.stderr[-2000:]
