"""Two branches in the place of one block: what the base knew, and what it learns (Wei et al. 2025, Control LLM).

Both branches read the same input; their outputs are merged. The first branch is the block as it was, the second
starts as its copy, so every linear merge is the identity at the start. Each branch has its own attention and its own
cache slot. While an `Alignment` is open, every sidecar adds the distance between its branches to it; otherwise nothing
is computed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from core.errors import ConfigError, UnsupportedError, nearest
from core.models.blocks.compound import Compound
from core.models.surgery import layer_index
from core.models.topology import ModelTopology

MERGES = ("lerp", "dlerp", "dlerpin", "slerp", "proj", "prog", "moe", "plain")
SCALAR = ("lerp", "slerp", "proj", "prog")
ALIGNMENTS = ("none", "mse", "cosine", "dot", "attention")
COSINE_MARGIN = 0.0
SMALL_ANGLE = 1e-4

_open: list[Alignment] = []


class Alignment:
    """Collects the alignment terms of one forward pass.

    Args:
        mask: (B, T), 1 for tokens that count; None counts all.

    It is a context manager and not an attribute of the modules, so that recomputation under activation checkpointing
    and compiled blocks add nothing twice.
    """

    def __init__(self, mask: torch.Tensor | None = None) -> None:
        self.mask, self.terms = mask, list[torch.Tensor]()

    def __enter__(self) -> Alignment:
        _open.append(self)
        return self

    def __exit__(self, *_: Any) -> None:
        _open.pop()

    def add(self, distance_BT: torch.Tensor, routed_BT: torch.Tensor | None = None) -> None:
        """One sidecar's distance of every token; `routed` restricts it to the tokens that used the new branch."""
        kept = torch.ones_like(distance_BT) if self.mask is None else self.mask.to(distance_BT)
        if routed_BT is not None:
            kept = kept * routed_BT
        self.terms.append((distance_BT * kept).sum() / kept.sum().clamp(min=1))

    def loss(self) -> torch.Tensor:
        """Mean over the sidecars; 0 when there was none."""
        return torch.stack(self.terms).mean() if self.terms else torch.zeros(())


class Merge(nn.Module):
    """How h_pre and h_exp (B, T, d) become one output; computed in fp32.

    w = σ(a) is the weight of the new branch, ½ at the start; a stays frozen unless asked otherwise.

    Args:
        kind: lerp (1-w) h_pre + w h_exp; dlerp with w of each token from [h_pre; h_exp]; dlerpin with w from the
            block's input; slerp along the arc between the two directions; proj is lerp whose alignment target is
            A h_pre; prog is (1-w) A h_pre + w h_exp, with A starting at I + 0.01 N(0, 1); moe sends each token through
            one branch by a gate on the input; plain is h_exp alone.
        exact: start prog and proj at A = I.
    """

    def __init__(self, kind: str, size: int, exact: bool = False, **factory: Any) -> None:
        super().__init__()
        self.kind, self.exact = kind, exact
        if kind not in ("moe", "plain"):
            self.a = nn.Parameter(torch.empty((), **factory))
        if kind in ("dlerp", "dlerpin"):
            self.f = nn.Linear(2 * size if kind == "dlerp" else size, 1, bias=False, **factory)
        if kind in ("proj", "prog"):
            self.A = nn.Linear(size, size, bias=False, **factory)
        if kind == "moe":
            self.gate = nn.Linear(size, 2, **factory)

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None = None) -> None:
        """The values a sidecar starts from."""
        if hasattr(self, "a"):
            self.a.zero_()
        if hasattr(self, "f"):
            self.f.weight.zero_()
        if hasattr(self, "A"):
            size = self.A.weight.shape[0]
            noise = torch.zeros(size, size) if self.exact else 0.01 * torch.randn(size, size, generator=generator)
            self.A.weight.copy_(torch.eye(size) + noise)
        if hasattr(self, "gate"):
            self.gate.weight.copy_(0.02 * torch.randn(self.gate.weight.shape, generator=generator))
            self.gate.bias.zero_()

    def weight(self, pre: torch.Tensor, exp: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """w, one value or one for each token (B, T, 1)."""
        if self.kind == "plain":
            return torch.ones((), device=pre.device)
        a = self.a.float()
        if self.kind == "dlerp":
            return torch.sigmoid(F.linear(torch.cat([pre, exp], -1).float(), self.f.weight.float()) + a)
        if self.kind == "dlerpin":
            return torch.sigmoid(F.linear(x.float(), self.f.weight.float()) + a)
        return torch.sigmoid(a)

    def forward(self, pre: torch.Tensor, exp: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The merged state in the branches' dtype, the alignment target, w, and which tokens took the new branch."""
        if self.kind == "moe":
            gate = F.linear(x.float(), self.gate.weight.float(), self.gate.bias.float()).softmax(-1)
            chosen = gate[..., 1:] > gate[..., :1]
            # the straight-through factor is 1 and passes the gate its gradient
            factor = torch.where(chosen, gate[..., 1:], gate[..., :1])
            factor = factor / factor.detach()
            out = torch.where(chosen, exp.float(), pre.float()) * factor
            return out.to(pre.dtype), pre, chosen.float(), chosen[..., 0]
        w = self.weight(pre, exp, x)
        a, b = pre.float(), exp.float()
        target = pre
        if self.kind in ("proj", "prog"):
            target = F.linear(a, self.A.weight.float())
        if self.kind == "slerp":
            out = slerp(a, b, w)
        elif self.kind == "prog":
            out = (1 - w) * target + w * b
        elif self.kind == "plain":
            out = b
        else:
            out = a + w * (b - a)
        return out.to(pre.dtype), target, w, None

    def extra_repr(self) -> str:
        return self.kind


def slerp(a: torch.Tensor, b: torch.Tensor, w: torch.Tensor | float) -> torch.Tensor:
    """Spherical interpolation of each vector along the last axis; where the angle is tiny, linear interpolation.

    sin((1-w)θ)/sin θ · a + sin(wθ)/sin θ · b, with θ the angle between a and b (Shoemake 1985).
    """
    u, v = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    # an arc cosine would not tell angles below 3e-4 from zero in fp32
    angle = 2 * torch.atan2((u - v).norm(dim=-1, keepdim=True), (u + v).norm(dim=-1, keepdim=True))
    small = angle < SMALL_ANGLE
    angle = torch.where(small, torch.ones_like(angle), angle)
    arc = (torch.sin((1 - w) * angle) * a + torch.sin(w * angle) * b) / torch.sin(angle)
    return torch.where(small, a + w * (b - a), arc)


def distance(kind: str, exp: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """How far h_exp is from its target, one value a token (B, T), in fp32.

    mse: mean of squared differences over the width. cosine: smooth L1 of relu(1 - margin - cos). dot: half the cosine
    term and half the squared difference of the norms.
    """
    exp, target = exp.float(), target.float()
    if kind == "mse":
        return (exp - target).square().mean(-1)
    gap = F.relu(1 - COSINE_MARGIN - F.cosine_similarity(exp, target, dim=-1))
    cosine = F.smooth_l1_loss(gap, torch.zeros_like(gap), reduction="none")
    if kind == "cosine":
        return cosine
    return 0.5 * cosine + 0.5 * (target.norm(dim=-1) - exp.norm(dim=-1)).square()


def attention_distance(exp: torch.Tensor, pre: torch.Tensor) -> torch.Tensor:
    """KL(exp ‖ pre) of attention maps (B, H, T, S), mean over heads: (B, T)."""
    log = (exp.float().clamp(min=1e-9)).log() - (pre.float().clamp(min=1e-9)).log()
    return (exp.float() * log).sum(-1).mean(1)


class Sidecar(Compound):
    """A block and its learning copy.

    Args:
        alpha: weight of the alignment term; None takes w of the merge, detached.
        detach: do not move the old branch's output towards the new one's.

    Norms of the copy that `relax` was told of let some of their input through: n(x) + s (x - n(x)), with s = 2w - 1
    between 0 and 1. At w = ½ they are plain norms, at w = 1 they pass everything.
    """

    def __init__(
        self, pre: nn.Module, exp: nn.Module, merge: Merge, align: str, alpha: float | None, detach: bool
    ) -> None:
        super().__init__()
        self.pre, self.exp, self.merge = pre, exp, merge
        self.align, self.alpha, self.detach = align, alpha, detach

    def relax(self, norms: Sequence[nn.Module]) -> None:
        """Let these norms of the copy pass their input as the new branch gains weight."""
        for norm in norms:
            norm.register_forward_hook(self._relaxed)

    @property
    def slack(self) -> torch.Tensor:
        """s, the share of its input that a relaxed norm passes."""
        return (2 * torch.sigmoid(self.merge.a.float()) - 1).clamp(0, 1)

    def _relaxed(self, norm: nn.Module, given: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
        return out + (self.slack * (given[0] - out).float()).to(out.dtype)

    def branches(self) -> Iterator[tuple[str, nn.Module]]:
        """The old block and its copy."""
        yield "pre", self.pre
        yield "exp", self.exp

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        collector = _open[-1] if _open and self.align != "none" else None
        maps: list[torch.Tensor] = []
        hooks = []
        if collector is not None and self.align == "attention":
            hooks = [
                _attention_of(branch).register_forward_hook(lambda _m, _i, out: maps.append(out[1]))
                for branch in (self.pre, self.exp)
            ]
        before, after = self.pre(hidden_states, *args, **kwargs), self.exp(hidden_states, *args, **kwargs)
        for hook in hooks:
            hook.remove()
        pre, exp = (out[0] if isinstance(out, tuple) else out for out in (before, after))
        merged, target, w, routed = self.merge(pre, exp, hidden_states)
        if collector is not None:
            self._collect(collector, exp, self._target(pre, target), w, routed, maps)
        return (merged, *before[1:]) if isinstance(before, tuple) else merged

    def _collect(self, collector: Alignment, exp: Any, target: Any, w: Any, routed: Any, maps: list[Any]) -> None:
        if self.align == "attention":
            far = attention_distance(maps[1], maps[0].detach() if self.detach else maps[0])
        else:
            far = distance(self.align, exp, target)
        alpha = w.detach().reshape(-1, 1) if w.dim() == 0 else w.detach()[..., 0]
        collector.add(far * (alpha if self.alpha is None else self.alpha), routed)

    def _target(self, pre: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """What the new branch is held to: fixed, except that a learnt projection of the old branch still learns."""
        if not self.detach:
            return target
        if self.merge.kind in ("proj", "prog"):
            return F.linear(pre.detach().float(), self.merge.A.weight.float())
        return target.detach()


def _attention_of(block: nn.Module) -> nn.Module:
    """The attention of a block, which returns its map beside its output."""
    return next(module for module in block.modules() if hasattr(module, "layer_idx"))


def sidecar(
    model: Any,
    layer: int,
    merge: str = "lerp",
    align: str = "mse",
    alpha: float | None = 1.0,
    detach: bool = True,
    exact: bool = False,
    relax: bool = False,
) -> None:
    """Give block `layer` a learning copy beside it. The copy holds the block's values, the merge holds none."""
    for name, value, known in (("merge", merge, MERGES), ("alignment", align, ALIGNMENTS)):
        if value not in known:
            hint = " ".join(filter(None, [nearest(value, known), f"known: {', '.join(known)}"]))
            raise ConfigError(f"unknown {name} '{value}'", where="sidecar", hint=hint)
    if align == "attention" and model.config._attn_implementation != "eager":
        raise UnsupportedError(
            "attention maps are only there with eager attention", where="sidecar", hint="set model.attention: eager"
        )
    if relax and merge not in SCALAR:
        raise ConfigError(
            f"norms relax with one weight a branch, {merge} has none", where="sidecar", hint=f"one of {SCALAR}"
        )
    topology = ModelTopology.of(model)
    old = topology.stack[layer_index(model, layer, "sidecar")]
    if hasattr(old, "branches"):
        raise ConfigError(f"block {layer} is edited already ({type(old).__name__})", where="sidecar")
    weight = topology.blocks[0].norms[0].weight
    size = model.config.hidden_size
    made = Merge(merge, size, exact, device=weight.device, dtype=torch.float32)
    pair = topology.stack[layer] = Sidecar(old, copy.deepcopy(old), made, align, alpha, detach)
    if relax:
        pair.relax(next(block.norms for block in ModelTopology.of(model).blocks if block.module is pair.exp))
