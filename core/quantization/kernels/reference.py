"""The kernel that every form has: decode, then multiply; with rounded activations an exact integer product.

It is the definition that faster kernels are tested against, and the backward of all of them: the gradient of the input
is grad · W with W decoded again, so no dequantized matrix is kept between the passes. Rounding of activations is
straight-through in the backward.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

import torch

from core.quantization import activations, grids, scales
from core.quantization.kernels.cpu import decode as native
from core.quantization.kernels.triton import decode as fast
from core.quantization.packing import unpack
from core.quantization.spec import QuantSpec

STATE = (
    "planes", "scale", "scale2", "scale_offset", "zero", "levels", "selector", "sparse_crow", "sparse_col", "sparse_val"
)  # fmt: skip


class Form:
    """What the tensors of a state mean: the spec, the number of inputs, which tensors there are.

    `text` is the form as a string, which is what an operator can take.
    """

    def __init__(self, spec: QuantSpec, inputs: int, names: Sequence[str], high_blocks: int = 0) -> None:
        self.spec, self.inputs, self.names, self.high_blocks = spec, inputs, tuple(names), high_blocks
        self.text = json.dumps([spec.to_dict(), inputs, self.names, high_blocks])

    @staticmethod
    @functools.lru_cache(maxsize=4096)
    def of(text: str) -> Form:
        """The inverse of `text`."""
        spec, inputs, names, high_blocks = json.loads(text)
        return Form(QuantSpec.from_dict(spec), inputs, names, high_blocks)

    def named(self, state: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        return dict(zip(self.names, state))


def decode(state: Sequence[torch.Tensor], form: Form, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The matrix (N, K) that a state stands for, values beside it included; fp32 unless `dtype` says otherwise."""
    tensors = form.named(state)
    if tensors["planes"].is_cuda and "sparse_val" not in tensors and fast.available():
        return fast.decode(tensors, form.spec, form.inputs, dtype or torch.float32)
    if tensors["planes"].device.type == "cpu" and "sparse_val" not in tensors and native.available():
        weight = native.decode(tensors, form.spec, form.inputs)
        return weight if dtype is None else weight.to(dtype)
    return decode_in_steps(tensors, form, dtype)


def decode_in_steps(tensors: dict[str, torch.Tensor], form: Form, dtype: torch.dtype | None = None) -> torch.Tensor:
    """`decode` by tensor operations alone, which run on any device and define the values."""
    codes = unpack(tensors["planes"], form.inputs)
    params = {name: tensors[name] for name in ("zero", "selector", "levels") if name in tensors}
    if form.spec.grid != "learned":
        params["scale"] = scales.load(tensors, form.spec)
    weight = grids.decode(codes, params, form.spec)
    if "sparse_val" in tensors:
        weight = weight + sparse_matrix(tensors, weight.shape).to_dense()
    return weight if dtype is None else weight.to(dtype)


def sparse_matrix(tensors: dict[str, torch.Tensor], shape: Any) -> torch.Tensor:
    """The values beside the matrix as a CSR tensor in fp32."""
    return torch.sparse_csr_tensor(
        tensors["sparse_crow"], tensors["sparse_col"], tensors["sparse_val"].float(), tuple(shape),
        check_invariants=False,
    )  # fmt: skip


def integer_weight(tensors: dict[str, torch.Tensor], form: Form) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers (N, K) and fp32 scales (N or 1, G or 1) with W = integers · scales, exactly.

    Two-level scales with a zero point leave one scale for a row, the group's integer multiplied in: QoQ's int8 weights.
    """
    spec = form.spec
    codes = unpack(tensors["planes"], form.inputs).to(torch.int32)
    if "zero" in tensors:
        zero = grids.spread(tensors["zero"].to(torch.int32), form.inputs)
    else:
        zero = int(2 * grids.fixed_zero(spec))
        # a half-integer zero is doubled, and the scale halved
        if zero % 2:
            return (2 * codes - zero).to(torch.int16), scales.load(tensors, spec) / 2
        zero //= 2
    integers = codes - zero
    if spec.scale == "int8":
        return (integers * grids.spread(tensors["scale"].to(torch.int32), form.inputs)).to(torch.int8), tensors[
            "scale2"
        ]
    return integers.to(torch.int8 if spec.bits <= 8 and "zero" not in tensors else torch.int16), scales.load(
        tensors, spec
    )


def integer_linear(x: torch.Tensor, state: Sequence[torch.Tensor], form: Form) -> torch.Tensor:
    """x (M, K) rounded as the spec says, times the integer weight, exact up to the final scaling. fp32 (M, N)."""
    tensors, spec = form.named(state), form.spec
    weight, weight_scale = integer_weight(tensors, form)
    if spec.act == "split":
        codes, scale, columns = activations.split(x)
        y = activations.integer_matmul(codes, weight).float() * scale * weight_scale.view(1, -1)
        kept = columns.nonzero()[:, 0]
        if kept.numel():
            # these columns are multiplied in the input's own precision
            dense = (weight[:, kept].float() * weight_scale.view(-1, 1)).to(x.dtype)
            y = y + (x[:, kept] @ dense.t()).float()
        return y
    if spec.act == "mixed4":
        codes, scale = activations.mixed(x, form.high_blocks)
        step = activations.MIXED_BLOCK
    else:
        rounders = {"int8": (activations.per_token, 8), "int4": (activations.per_token, 4)}
        rounder, bits = rounders.get(spec.act, (activations.bipolar, 8))
        codes, scale = rounder(x, bits)
        step = form.inputs
    group = form.inputs if weight_scale.shape[1] == 1 else form.inputs // weight_scale.shape[1]
    step = min(step, group)
    if step == form.inputs:
        return activations.integer_matmul(codes, weight).float() * scale * weight_scale.view(1, -1)
    y = torch.zeros(x.shape[0], weight.shape[0], device=x.device)
    for start in range(0, form.inputs, step):
        part = activations.integer_matmul(codes[:, start : start + step], weight[:, start : start + step]).float()
        block = min(start // activations.MIXED_BLOCK, scale.shape[1] - 1) if scale.shape[1] > 1 else 0
        column = start // group if weight_scale.shape[1] > 1 else 0
        y += part * scale[:, block, None] * weight_scale[:, column].view(1, -1)
    return y


@torch.library.custom_op("graft::quantized_linear", mutates_args=())
def quantized_linear(x: torch.Tensor, state: Sequence[torch.Tensor], form: str) -> torch.Tensor:
    """x (…, K) times the matrix of `state`, transposed: (…, N) in x's dtype."""
    meaning = Form.of(form)
    rows = x.reshape(-1, meaning.inputs)
    if meaning.spec.act == "none":
        y = rows @ decode(state, meaning, x.dtype).t()
    else:
        y = integer_linear(rows, state, meaning)
        tensors = meaning.named(state)
        if "sparse_val" in tensors:
            y = y + (sparse_matrix(tensors, (y.shape[1], meaning.inputs)) @ rows.float().t()).t()
    return y.to(x.dtype).reshape(*x.shape[:-1], state[0].shape[0])


@quantized_linear.register_fake
def _(x, state, form):
    return x.new_empty(*x.shape[:-1], state[0].shape[0])


@torch.library.custom_op("graft::quantized_linear_backward", mutates_args=())
def quantized_linear_backward(grad: torch.Tensor, state: Sequence[torch.Tensor], form: str) -> torch.Tensor:
    """grad (…, N) times the matrix: (…, K)."""
    meaning = Form.of(form)
    flat = grad.reshape(-1, grad.shape[-1])
    return (flat @ decode(state, meaning, grad.dtype)).reshape(*grad.shape[:-1], meaning.inputs)


@quantized_linear_backward.register_fake
def _(grad, state, form):
    return grad.new_empty(*grad.shape[:-1], Form.of(form).inputs)


def _keep_state(ctx, inputs, output):
    _, state, ctx.form = inputs
    ctx.count = len(state)
    ctx.save_for_backward(*state)


def _input_gradient(ctx, grad):
    return quantized_linear_backward(grad, list(ctx.saved_tensors), ctx.form), [None] * ctx.count, None


quantized_linear.register_autograd(_input_gradient, setup_context=_keep_state)
