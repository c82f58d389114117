"""The kernels of a gated transformer block: norm with residual, rotary phases, gated product. All reduce in fp32."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _norm_forward(
    x, added, weight, out, summed, inverse, D, eps,
    ADDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < D
    value = tl.load(x + row * D + at, mask=inside, other=0.0)
    if ADDS:
        other = tl.load(added + row * D + at, mask=inside, other=0.0)
        value = (value.to(tl.float32) + other.to(tl.float32)).to(summed.dtype.element_ty)
        tl.store(summed + row * D + at, value, mask=inside)
    exact = value.to(tl.float32)
    scale = tl.rsqrt(tl.sum(exact * exact) / D + eps)
    tl.store(inverse + row, scale)
    gain = tl.load(weight + at, mask=inside, other=0.0)
    normed = (exact * scale).to(value.dtype).to(tl.float32) * gain.to(tl.float32)
    tl.store(out + row * D + at, normed.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _norm_backward(
    grad, passed, x, weight, inverse, out, gains, rows, D,
    PASSES: tl.constexpr, GAIN: tl.constexpr, EACH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * EACH
    at = tl.arange(0, BLOCK)
    inside = at < D
    gain = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for step in range(0, EACH):
        row = first + step
        here = inside & (row < rows)
        scale = tl.load(inverse + row, mask=row < rows, other=0.0)
        unit = tl.load(x + row * D + at, mask=here, other=0.0).to(tl.float32) * scale
        dy = tl.load(grad + row * D + at, mask=here, other=0.0).to(tl.float32)
        if GAIN:
            total += dy * unit
        dy = dy * gain
        dx = scale * (dy - unit * (tl.sum(dy * unit) / D))
        if PASSES:
            dx += tl.load(passed + row * D + at, mask=here, other=0.0).to(tl.float32)
        tl.store(out + row * D + at, dx.to(out.dtype.element_ty), mask=here)
    if GAIN:
        tl.store(gains + tl.program_id(0) * D + at, total, mask=inside)


@triton.jit
def _rotate(
    x, out, cos, sin, T, H, x_b, x_t, x_h, o_t, o_h, c_b, c_t, sign,
    HALF: tl.constexpr, HEADS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    b, t = token // T, token % T
    heads = tl.arange(0, HEADS)[:, None]
    at = tl.arange(0, WIDE)[None, :]
    inside = (heads < H) & (at < HALF)
    c = tl.load(cos + b * c_b + t * c_t + at, mask=at < HALF, other=0.0).to(tl.float32)
    s = tl.load(sin + b * c_b + t * c_t + at, mask=at < HALF, other=0.0).to(tl.float32) * sign
    place = x + b * x_b + t * x_t + heads * x_h + at
    one = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    two = tl.load(place + HALF, mask=inside, other=0.0).to(tl.float32)
    to = out + token * o_t + heads * o_h + at
    tl.store(to, (one * c - two * s).to(out.dtype.element_ty), mask=inside)
    tl.store(to + HALF, (two * c + one * s).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gated(gate, up, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    g = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=inside, other=0.0)
    silu = (g * tl.sigmoid(g)).to(u.dtype)
    tl.store(out + at, (silu.to(tl.float32) * u.to(tl.float32)).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gated_backward(grad, gate, up, d_gate, d_up, out, n, KEEPS: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    dy = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=inside, other=0.0)
    bell = tl.sigmoid(g)
    silu = (g * bell).to(u.dtype)
    if KEEPS:
        tl.store(out + at, (silu.to(tl.float32) * u.to(tl.float32)).to(out.dtype.element_ty), mask=inside)
    slope = bell * (1 + g * (1 - bell))
    tl.store(d_up + at, (dy * silu.to(tl.float32)).to(d_up.dtype.element_ty), mask=inside)
    tl.store(d_gate + at, (dy * u.to(tl.float32) * slope).to(d_gate.dtype.element_ty), mask=inside)


def norm_forward(x, added, weight, eps: float, dtype: torch.dtype):
    """As `plain.norm_forward`; x (N, D) contiguous."""
    rows, width = x.shape
    summed = x if added is None else torch.empty_like(x, dtype=torch.promote_types(x.dtype, added.dtype))
    out = torch.empty_like(x, dtype=dtype)
    inverse = torch.empty(rows, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(width)
    _norm_forward[(rows,)](
        x, x if added is None else added, weight, out, summed, inverse, width, eps,
        ADDS=added is not None, BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip
    return out, summed, inverse


def norm_backward(grad, passed, x, weight, inverse, with_gain: bool):
    """As `plain.norm_backward`."""
    rows, width = x.shape
    each = max(1, rows // 2048) if with_gain else 1
    programs = -(-rows // each)
    out = torch.empty_like(x)
    gains = torch.empty((programs, width) if with_gain else (1,), dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(width)
    _norm_backward[(programs,)](
        grad, grad if passed is None else passed, x, weight, inverse, out, gains, rows, width,
        PASSES=passed is not None, GAIN=with_gain, EACH=each, BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip
    return out, gains.sum(0) if with_gain else None


def rotate(x, cos, sin, sign: float):
    """As `plain.rotate`."""
    b, t, h, d = x.shape
    out = torch.empty((b, t, h, d), dtype=x.dtype, device=x.device)
    _rotate[(b * t,)](
        x, out, cos, sin, t, h, *x.stride()[:3], out.stride(1), out.stride(2),
        cos.stride(0) if cos.shape[0] > 1 else 0, cos.stride(1), sign,
        HALF=d // 2, HEADS=triton.next_power_of_2(h), WIDE=triton.next_power_of_2(d // 2), num_warps=4,
    )  # fmt: skip
    return out


def gated(gate, up):
    """As `plain.gated`; both contiguous."""
    out, n = torch.empty_like(up), up.numel()
    _gated[(triton.cdiv(n, 2048),)](gate, up, out, n, BLOCK=2048, num_warps=8)
    return out


def gated_backward(grad, gate, up, keep: bool):
    """As `plain.gated_backward`; all contiguous."""
    d_gate, d_up, n = torch.empty_like(gate), torch.empty_like(up), up.numel()
    out = grad if keep else up
    _gated_backward[(triton.cdiv(n, 2048),)](
        grad, gate, up, d_gate, d_up, out, n, KEEPS=keep, BLOCK=2048, num_warps=8
    )  # fmt: skip
    return d_gate, d_up, out if keep else None


def _warps(block: int) -> int:
    return max(1, min(16, block // 512))
