"""Function-preserving rewrites before rounding, and the searches that choose them.

Scales of inputs (AWQ, Lin et al. 2023; SmoothQuant, Xiao et al. 2023), one exponent for the whole model (SmoothQuant+,
Pan et al. 2023), clipping of ranges, the order of inputs (FMPQ, Liu et al. 2024), rotation of the residual stream and
scaling of queries against keys (QoQ, Lin et al. 2024). Clipping is the one that is no equivalence. How a tensor's
readers and maker are found is `graph`'s business, how codes are found the solvers'.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from core.errors import UnsupportedError
from core.models.linear import dense_weight
from core.models.topology import BlockRef, ModelTopology
from core.quantization.graph import Readers, gain_offset, is_norm
from core.quantization.solvers import rtn, typesearch
from core.quantization.solvers.encoded import Encoded
from core.quantization.spec import QuantSpec

GRID, SHRINK, ALPHA_STEP = 20, 0.5, 0.05
OUTLIER_RATIO = 5.0


def rounded(weight: torch.Tensor, spec: QuantSpec, clip: Any = None) -> torch.Tensor:
    """W (N, K) after rounding by the grid's own solver, fp32."""
    return encoded(weight, spec, clip).values(spec)


def encoded(weight: torch.Tensor, spec: QuantSpec, clip: Any = None) -> Encoded:
    """Codes by nearest rounding, or by type search where the grid has types."""
    from core.quantization.quantize import Stats

    solver = typesearch if spec.grid == "bitmod" else rtn
    return solver.solve(weight, spec, Stats(clip=clip))


def scale_search(
    group: Readers, absmean: torch.Tensor, spec: QuantSpec, run: Callable[[], torch.Tensor], reference: torch.Tensor
) -> tuple[torch.Tensor, dict[str, Any]]:
    """AWQ's scale s = mean|x|^r, r the best of 20, by the squared error of the inspected module's output.

    Args:
        absmean: (K,) of the inputs. run: the module's output with the weights as they stand. reference: before.

    Returns:
        s (K,) and {"ratio", "error", "rounding error"}; ratio 0 is among the candidates, so s never loses to it.
    """
    originals = [dense_weight(part).clone() for part in group.maps]
    best: tuple[float, float, torch.Tensor] | None = None
    plain = 0.0
    for step in range(GRID):
        ratio = step / GRID
        scale = absmean.float().pow(ratio).clamp_min(1e-4)
        scale = group.shareable(scale / (scale.max() * scale.min()).sqrt())
        for part, original in zip(group.maps, originals):
            dense_weight(part).copy_(rounded(original.float() * scale, spec.fitted(original.shape[1])) / scale)
        error = float((run().float() - reference.float()).square().mean())
        plain = error if step == 0 else plain
        if best is None or error < best[0]:
            best = (error, ratio, scale)
    for part, original in zip(group.maps, originals):
        dense_weight(part).copy_(original)
    assert best is not None
    return best[2], {"ratio": best[1], "error": best[0], "rounding error": plain}


def clip_search(weight: torch.Tensor, sample: torch.Tensor, spec: QuantSpec) -> torch.Tensor:
    """Shares (N or 1, G) of each group's range that minimise the squared error of the group's part of the output.

    Args:
        sample: inputs (T, K). Shares go from 1 down to one half in steps of a twentieth.
    """
    weight = weight.float()
    groups = spec.groups(weight.shape[1])
    parts = sample.float().unflatten(1, (groups, -1)).transpose(0, 1)
    moments = parts.transpose(1, 2) @ parts
    rows = 1 if spec.group == -1 else weight.shape[0]
    best = torch.full((rows, groups), torch.inf, device=weight.device)
    share = torch.ones(rows, groups, device=weight.device)
    for step in range(int(GRID * SHRINK)):
        keep = 1.0 - step / GRID
        delta = (rounded(weight, spec, torch.full_like(share, keep)) - weight).unflatten(1, (groups, -1))
        error = (torch.einsum("ngk,gkl->ngl", delta, moments) * delta).sum(-1)
        error = error.sum(0, keepdim=True) if rows == 1 else error
        better = error < best
        best, share = torch.where(better, error, best), torch.where(better, keep, share)
    return share


def smooth_scale(absmax: torch.Tensor, maps: list[Any], alpha: float, beta: float | None = None) -> torch.Tensor:
    """SmoothQuant's s (K,) = max|x|^α / max|w|^β, β = 1 − α by default, the weights' maximum over all readers."""
    columns = torch.stack([dense_weight(part).float().abs().amax(0) for part in maps]).amax(0).clamp_min(1e-5)
    beta = 1.0 - alpha if beta is None else beta
    return (absmax.float().clamp_min(1e-5) ** alpha / columns**beta).clamp_min(1e-5)


def outlier_order(absmax: torch.Tensor, block: int = 128) -> tuple[torch.Tensor, int]:
    """Order of the inputs with outlier channels first, and how many blocks of inputs those fill.

    A channel is an outlier when its largest magnitude exceeds five times the median channel's.
    """
    outlier = absmax > OUTLIER_RATIO * absmax.median()
    order = torch.argsort((~outlier).to(torch.int8), stable=True)
    return order, math.ceil(int(outlier.sum()) / block)


def smooth_attention(ref: BlockRef, keys: torch.Tensor, alpha: float = 0.5) -> bool:
    """Divide keys by λ = max|k|^α and multiply queries, in place; pairs that rotate together share λ (Lin et al. 2024).

    Args:
        keys: max|k| (kv heads · head size,) after any norm of keys, before rotation.

    Returns:
        whether the block has separate q and k that can absorb it.
    """
    if ref.q is None or ref.k is None:
        return False
    head, shared = ref.head_dim_qk, ref.n_heads // ref.n_kv_heads
    scale = keys.float().view(ref.n_kv_heads, head).clamp_min(1e-5) ** alpha
    if ref.rope == "half":
        half = torch.maximum(scale[:, : head // 2], scale[:, head // 2 :])
        scale = torch.cat([half, half], 1)
    elif ref.rope == "interleaved":
        scale = scale.unflatten(1, (-1, 2)).amax(2, keepdim=True).expand(-1, -1, 2).flatten(1)
    norm_q, norm_k = getattr(ref.attn, "q_norm", None), getattr(ref.attn, "k_norm", None)
    if norm_q is not None and norm_k is not None:
        if norm_q.weight.numel() != head:
            return False
        # the norms' gains are shared by all heads, and would undo a scale of the projections
        common = scale.amax(0)
        for norm, factor in ((norm_q, common.to(norm_q.weight)), (norm_k, 1.0 / common.to(norm_k.weight))):
            norm.weight.copy_((norm.weight + gain_offset(norm)) * factor - gain_offset(norm))
        return True
    queries = scale.repeat_interleave(shared, 0).flatten()
    for part, factor in ((ref.q, queries), (ref.k, 1.0 / scale.flatten())):
        weight = dense_weight(part)
        weight.copy_(weight.float() * factor[:, None])
        if part.bias is not None:
            part.bias.copy_(part.bias.float() * factor)
    return True


def rotation(size: int, device: Any = "cpu") -> torch.Tensor:
    """An orthogonal (size, size) whose entries are all of about the same size: Hadamard times a cosine basis."""
    power = size & -size
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while matrix.shape[0] < power:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    rest = size // power
    n = torch.arange(rest, dtype=torch.float64)
    cosine = torch.cos(math.pi / rest * (n[None] + 0.5) * n[:, None]) * math.sqrt(2.0 / rest)
    cosine[0] /= math.sqrt(2.0)
    return torch.kron(matrix / math.sqrt(power), cosine).to(device)


def rotate(model: Any) -> None:
    """Rotate the residual stream, in place: every reader and writer of it absorbs the same orthogonal matrix.

    Gains of RMS norms go into the readers first. A tied head is untied, because the last norm's gain goes into it.

    Raises:
        UnsupportedError: norms that subtract the mean or add to their weight, embeddings that are not a plain table.
    """
    topology = ModelTopology.of(model)
    plain = topology.embeddings is topology.embed and topology.final_norm is not None and topology.head is not None
    norms = [norm for ref in topology.blocks for norm in ref.norms]
    if (
        not plain
        or any("RMS" not in type(n).__name__ or gain_offset(n) for n in norms)
        or any(r.qkv is not None for r in topology.blocks)
    ):
        raise UnsupportedError(
            f"the residual stream of '{topology.family}' cannot be rotated", hint="RMS norms and plain embeddings can"
        )
    if topology.head_tied:
        topology.head.weight = torch.nn.Parameter(topology.embed.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False
        model.all_tied_weights_keys = {}
    turn = rotation(topology.embed.weight.shape[1], topology.embed.weight.device)

    def into_inputs(part: Any, norm: Any = None) -> None:
        weight = dense_weight(part)
        gain = 1.0 if norm is None else norm.weight.double()
        weight.copy_((weight.double() * gain) @ turn)

    topology.embed.weight.copy_(topology.embed.weight.double() @ turn)
    for ref in topology.blocks:
        readers = ((ref.norms[0], (ref.q, ref.k, ref.v)), (ref.norms[1], (ref.gate, ref.up)))
        for norm, parts in readers:
            for part in parts:
                if part is not None:
                    into_inputs(part, norm)
            norm.weight.fill_(1.0)
        for part in (ref.o, ref.down):
            weight = dense_weight(part)
            weight.copy_(turn.t() @ weight.double())
            if part.bias is not None:
                part.bias.copy_(part.bias.double() @ turn)
    into_inputs(topology.head, topology.final_norm)
    topology.final_norm.weight.fill_(1.0)


def global_alpha(
    model: Any,
    groups: list[Readers],
    absmax: dict[str, torch.Tensor],
    spec: QuantSpec,
    batches: list[torch.Tensor],
    step: float = ALPHA_STEP,
) -> dict[str, Any]:
    """One α for the whole model, folded in place: the best by the squared error of the quantized model's logits.

    "No smoothing" is among the candidates. Only groups behind a norm are smoothed, as the paper does.

    Args:
        absmax: of the inputs, by the name of a group's first reader.
    """
    groups = [group for group in groups if group.producer is not None and is_norm(group.producer)]
    parts = {name: part for group in groups for name, part in zip(group.names, group.maps)}
    others = {n: p for n, p in _all_targets(model).items() if n not in parts}
    originals = {name: dense_weight(part).clone() for name, part in {**parts, **others}.items()}
    references = [model(input_ids=batch, use_cache=False).logits.float() for batch in batches]
    for name, part in others.items():
        dense_weight(part).copy_(rounded(originals[name], spec.fitted(originals[name].shape[1])))
    losses: dict[float | None, float] = {}
    for alpha in [None, *[round(step * i, 4) for i in range(round(1 / step) + 1)]]:
        for group in groups:
            for name, part in zip(group.names, group.maps):
                dense_weight(part).copy_(originals[name])
            scale = torch.ones(1) if alpha is None else smooth_scale(absmax[group.names[0]], group.maps, alpha)
            scale = scale.to(originals[group.names[0]].device)
            for name, part in zip(group.names, group.maps):
                weight = originals[name].float() * scale
                dense_weight(part).copy_(rounded(weight, spec.fitted(weight.shape[1])) / scale)
        losses[alpha] = sum(
            float((model(input_ids=batch, use_cache=False).logits.float() - reference).square().mean())
            for batch, reference in zip(batches, references)
        ) / len(batches)
    best = min(losses, key=lambda alpha: losses[alpha])
    for name, part in {**parts, **others}.items():
        dense_weight(part).copy_(originals[name])
    if best is not None:
        for group in groups:
            group.fold(smooth_scale(absmax[group.names[0]], group.maps, best))
    return {"alpha": best, "logit error": losses[best], "logit error without": losses[None]}


def _all_targets(model: Any) -> dict[str, Any]:
    from core.quantization.quantize import find_targets

    return find_targets(model)
