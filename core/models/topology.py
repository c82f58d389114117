"""Where things are inside a model family, as one table.

Methods that edit or read a model ask here for its blocks, embedding, norm and head; none matches module names itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from core.errors import UnsupportedModelError


@dataclass(frozen=True)
class BlockRef:
    """One transformer block. `qkv` is set for fused projections, else `q`, `k`, `v`; `gate` is None without gating."""

    module: Any
    attn: Any
    mlp: Any
    norms: tuple[Any, ...]
    o: Any
    up: Any
    down: Any
    q: Any = None
    k: Any = None
    v: Any = None
    qkv: Any = None
    gate: Any = None


@dataclass(frozen=True)
class ModelTopology:
    """The parts of a causal language model."""

    family: str
    blocks: list[BlockRef]
    embed: Any
    final_norm: Any
    head: Any
    head_tied: bool

    @classmethod
    def of(cls, model: Any) -> ModelTopology:
        """The topology of a transformers model. Raises `UnsupportedModelError` for a family without an entry."""
        family = model.config.model_type
        if family not in FAMILIES:
            raise UnsupportedModelError(
                f"no topology for model type '{family}'", hint=f"known: {', '.join(sorted(FAMILIES))}"
            )
        blocks, norm = FAMILIES[family](model)
        embed, head = model.get_input_embeddings(), model.get_output_embeddings()
        return cls(family, blocks, embed, norm, head, head is not None and head.weight is embed.weight)


def _llama(model: Any) -> tuple[list[BlockRef], Any]:
    return [
        BlockRef(
            module=b,
            attn=b.self_attn,
            mlp=b.mlp,
            norms=(b.input_layernorm, b.post_attention_layernorm),
            q=b.self_attn.q_proj,
            k=b.self_attn.k_proj,
            v=b.self_attn.v_proj,
            o=b.self_attn.o_proj,
            gate=b.mlp.gate_proj,
            up=b.mlp.up_proj,
            down=b.mlp.down_proj,
        )
        for b in model.model.layers
    ], model.model.norm


def _gpt2(model: Any) -> tuple[list[BlockRef], Any]:
    return [
        BlockRef(
            module=b,
            attn=b.attn,
            mlp=b.mlp,
            norms=(b.ln_1, b.ln_2),
            qkv=b.attn.c_attn,
            o=b.attn.c_proj,
            up=b.mlp.c_fc,
            down=b.mlp.c_proj,
        )
        for b in model.transformer.h
    ], model.transformer.ln_f


FAMILIES: dict[str, Callable[[Any], tuple[list[BlockRef], Any]]] = {"llama": _llama, "gpt2": _gpt2}
