"""Narrower blocks: fewer heads, smaller heads, fewer feed-forward channels, a smaller residual stream.

For families with separate q, k and v. Blocks of one model may differ. Where heads keep their size, the family's own
attention runs on the narrower projections; where they do not, `SlicedAttention` takes its place: queries and keys may
have another width than values, the rotary pairs that were kept are stored for each key-value head, and the softmax
keeps the scale of the original head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from core.errors import ConfigError, UnsupportedError
from core.models.blocks.linears import put, resized
from core.models.linear import features
from core.models.surgery import layer_index
from core.models.topology import BlockRef, ModelTopology


class SlicedAttention(nn.Module):
    """Causal attention with its own head sizes and a subset of the rotary pairs.

    `pairs` (n_kv_heads, head_dim_qk / 2) names for each key-value head which pairs i, i + d/2 of the original head of
    size d were kept, in the order in which they stand now.
    """

    def __init__(self, old: nn.Module, n_heads: int, n_kv_heads: int, qk: int, vo: int, device: Any) -> None:
        super().__init__()
        self.config, self.layer_idx, self.is_causal = old.config, old.layer_idx, True
        self.scaling, self.attention_dropout = old.scaling, old.attention_dropout
        self.sliding_window = getattr(old, "sliding_window", None)
        self.head_dim, self.num_key_value_groups = qk, n_heads // n_kv_heads
        self.geometry = {"n_heads": n_heads, "n_kv_heads": n_kv_heads, "head_dim_qk": qk, "head_dim_vo": vo}
        self.q_proj, self.k_proj, self.v_proj = old.q_proj, old.k_proj, old.v_proj
        self.o_proj = old.o_proj
        first = torch.arange(qk // 2, device=device).expand(n_kv_heads, -1).clone()
        self.register_buffer("pairs", first)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
        from transformers.models.llama.modeling_llama import eager_attention_forward

        shape, size = hidden_states.shape[:-1], self.geometry
        q = self.q_proj(hidden_states).view(*shape, -1, size["head_dim_qk"]).transpose(1, 2)
        k = self.k_proj(hidden_states).view(*shape, -1, size["head_dim_qk"]).transpose(1, 2)
        v = self.v_proj(hidden_states).view(*shape, -1, size["head_dim_vo"]).transpose(1, 2)
        cos, sin = (self._phases(phase) for phase in position_embeddings)
        groups = self.num_key_value_groups
        q = _turn(q, cos.repeat_interleave(groups, 1), sin.repeat_interleave(groups, 1))
        k = _turn(k, cos, sin)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        out, weights = attend(self, q, k, v, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs)
        return self.o_proj(out.reshape(*shape, -1).contiguous()), weights

    def _phases(self, phase: torch.Tensor) -> torch.Tensor:
        """cos or sin (B, T, d) → (B, n_kv_heads, T, head_dim_qk) of the kept pairs."""
        half = phase[..., self.pairs].transpose(1, 2)
        return torch.cat([half, half], -1)


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def slice_block(
    model: Any,
    layer: int,
    n_heads: int | None = None,
    n_kv_heads: int | None = None,
    head_dim_qk: int | None = None,
    head_dim_vo: int | None = None,
    intermediate: int | None = None,
) -> None:
    """Give one block other sizes; None keeps a size. Resized maps hold no values."""
    block = sliceable(model, layer, "slice_block")
    heads, kv = n_heads or block.n_heads, n_kv_heads or block.n_kv_heads
    qk, vo = head_dim_qk or block.head_dim_qk, head_dim_vo or block.head_dim_vo
    width = intermediate or features(block.up)[1]
    now = (block.n_heads, block.n_kv_heads, block.head_dim_qk, block.head_dim_vo, features(block.up)[1])
    names = ("n_heads", "n_kv_heads", "head_dim_qk", "head_dim_vo", "intermediate")
    for name, wanted, most in zip(names, (heads, kv, qk, vo, width), now):
        if not 1 <= wanted <= most:
            raise ConfigError(f"{name} {wanted} of {most}", where=f"slice_block, block {layer}", hint=f"1 to {most}")
    if heads % kv:
        raise ConfigError(f"{heads} heads on {kv} key-value heads", where=f"slice_block, block {layer}")
    if qk % 2:
        raise ConfigError(
            f"head_dim_qk {qk} is odd, rotary pairs need an even size", where=f"slice_block, block {layer}"
        )
    attention, outer = block.attn, block.module
    own = isinstance(attention, SlicedAttention)
    if (qk, vo) != (block.head_dim_qk, block.head_dim_vo) and hasattr(attention, "q_norm"):
        raise UnsupportedError("heads whose queries are normalised cannot be made smaller", where=f"block {layer}")
    d = features(block.o)[1]
    for old, inside, outside in (
        (block.q, None, heads * qk),
        (block.k, None, kv * qk),
        (block.v, None, kv * vo),
        (block.o, heads * vo, d),
        (block.gate, None, width),
        (block.up, None, width),
        (block.down, width, None),
    ):
        if old is not None and features(old) != (inside or features(old)[0], outside or features(old)[1]):
            put(outer, old, resized(old, inside, outside))
    attention.num_key_value_groups = heads // kv
    if own or (qk, vo) != (block.head_dim_qk, block.head_dim_vo):
        put(outer, attention, SlicedAttention(attention, heads, kv, qk, vo, block.norms[0].weight.device))
    elif (heads, kv) != (block.n_heads, block.n_kv_heads):
        attention.geometry = {"n_heads": heads, "n_kv_heads": kv, "head_dim_qk": qk, "head_dim_vo": vo}


def take(
    model: Any,
    layer: int,
    *,
    channels: Sequence[int] | None = None,
    kv_heads: Sequence[int] | None = None,
    pairs: torch.Tensor | None = None,
) -> None:
    """Slice a block to a choice of its own weights: apply `slice_block` and fill it.

    Args:
        channels: feed-forward channels that stay. kv_heads: key-value heads that stay, with their query heads.
        pairs: (kept key-value heads, n) rotary pairs that stay in queries and keys.
    """
    from core.models.surgery import apply

    block = sliceable(model, layer, "slice_block")
    device = block.norms[0].weight.device
    d, groups = block.head_dim_qk, block.n_heads // block.n_kv_heads
    kv = torch.as_tensor(range(block.n_kv_heads) if kv_heads is None else list(kv_heads), device=device)
    heads = (kv[:, None] * groups + torch.arange(groups, device=device)).flatten()
    width = features(block.up)[1]
    keep = torch.as_tensor(range(width) if channels is None else list(channels), device=device)
    inner = (
        torch.arange(d, device=device).expand(len(kv), d) if pairs is None else torch.cat([pairs, pairs + d // 2], 1)
    )
    inner = inner.to(device)
    q_rows = (heads[:, None] * d + inner.repeat_interleave(groups, 0)).flatten()
    k_rows = (kv[:, None] * d + inner).flatten()
    v_rows, o_columns = (
        (units[:, None] * block.head_dim_vo + torch.arange(block.head_dim_vo, device=device)).flatten()
        for units in (kv, heads)
    )
    old = {role: (part.weight.detach(), part.bias) for role, part in block.linears().items()}
    old_pairs = block.attn.pairs if isinstance(block.attn, SlicedAttention) else None
    apply(
        model,
        "slice_block",
        layer=layer,
        n_heads=len(heads),
        n_kv_heads=len(kv),
        head_dim_qk=inner.shape[1],
        intermediate=len(keep),
    )
    new = sliceable(model, layer, "slice_block")
    rows = {"q": q_rows, "k": k_rows, "v": v_rows, "gate": keep, "up": keep}
    columns = {"o": o_columns, "down": keep}
    with torch.no_grad():
        for role, part in new.linears().items():
            weight, bias = old[role]
            chosen = weight[rows[role]] if role in rows else weight[:, columns[role]]
            part.weight.copy_(chosen)
            if bias is not None:
                part.bias.copy_(bias[rows[role]] if role in rows else bias)
        if isinstance(new.attn, SlicedAttention):
            chosen = torch.arange(d // 2, device=device).expand(len(kv), -1) if pairs is None else pairs.to(device)
            before = (
                torch.arange(d // 2, device=device).expand(block.n_kv_heads, -1) if old_pairs is None else old_pairs
            )
            new.attn.pairs.copy_(before[kv].gather(1, chosen))


def slice_hidden(model: Any, size: int) -> None:
    """Give the residual stream another width: embedding, head, norms and every map on the stream. No values."""
    topology = ModelTopology.of(model)
    old_size = model.config.hidden_size
    if not 1 <= size <= old_size:
        raise ConfigError(f"a residual stream of {size} of {old_size}", where="slice_hidden")
    for layer in range(len(topology.stack)):
        sliceable(model, layer, "slice_hidden")
    head_dim = topology.blocks[0].head_dim_qk
    tied, embed = topology.head_tied, topology.embed
    embed.weight = nn.Parameter(embed.weight.new_empty(embed.weight.shape[0], size))
    embed.embedding_dim = size
    if topology.head is not None:
        topology.head.in_features = size
        topology.head.weight = (
            embed.weight if tied else nn.Parameter(topology.head.weight.new_empty(topology.head.weight.shape[0], size))
        )
    for block in topology.blocks:
        for role, part in block.linears().items():
            put(
                block.module, part, resized(part, outside=size) if role in ("o", "down") else resized(part, inside=size)
            )
    for norm in [topology.final_norm, *(norm for block in topology.blocks for norm in block.norms)]:
        norm.weight = nn.Parameter(norm.weight.new_empty(size))
    # where the config derives the size of a head from the stream's width, it must now be told
    model.config.hidden_size, model.config.head_dim = size, head_dim


def take_hidden(model: Any, keep: Sequence[int]) -> None:
    """Slice the residual stream to a choice of its own channels: apply `slice_hidden` and fill it."""
    from core.models.surgery import apply

    def tensors() -> list[tuple[torch.nn.Parameter, int]]:
        topology = ModelTopology.of(model)
        found = [(topology.embed.weight, 1)]
        if topology.head is not None and not topology.head_tied:
            found.append((topology.head.weight, 1))
        norms = [topology.final_norm, *(norm for block in topology.blocks for norm in block.norms)]
        found += [(norm.weight, 0) for norm in norms]
        for block in topology.blocks:
            for role, part in block.linears().items():
                found.append((part.weight, 0 if role in ("o", "down") else 1))
        return found

    old = [(weight.detach(), axis) for weight, axis in tensors()]
    chosen = torch.as_tensor(list(keep), device=old[0][0].device)
    bias = [[None if p.bias is None else p.bias.detach() for p in b.linears().values()] for b in _blocks(model)]
    apply(model, "slice_hidden", size=len(chosen))
    with torch.no_grad():
        for (weight, axis), (new, _) in zip(old, tensors()):
            new.copy_(weight.index_select(axis, chosen))
        for block, biases in zip(_blocks(model), bias):
            for (role, part), value in zip(block.linears().items(), biases):
                if value is not None:
                    part.bias.copy_(value[chosen] if role in ("o", "down") else value)


def _blocks(model: Any) -> list[BlockRef]:
    return ModelTopology.of(model).blocks


def sliceable(model: Any, layer: int, op: str) -> BlockRef:
    """The block at `layer`, when it has separate q, k, v and norms without bias before its sub-layers."""
    topology = ModelTopology.of(model)
    outer = topology.stack[layer_index(model, layer, op)]
    for block in topology.blocks:
        if block.module is outer and block.q is not None and block.residual == "pre_ln" and block.rope == "half":
            return block
    raise UnsupportedError(f"block {layer} of this {topology.family} cannot be sliced", where=op)
