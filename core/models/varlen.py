"""Attention over packed rows document by document, instead of over whole sequences under a mask.

A mask of packed rows is dense: it costs the full square of the sequence, and no fast kernel takes it. Where a document
begins and ends is known when the batch is made, so here the GPU's variable-length kernel (Dao 2023) gets the borders,
and its twin elsewhere calls the usual attention once a document. Registered with transformers under the name `varlen`;
batches that are not packed take the usual path. It knows no collator: a batch brings its borders.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

NAME = "varlen"
_packed = False


def borders_of(position_ids_BT: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Cumulative starts (N + 1,) int32 of the documents of a batch laid out flat, and the longest one's length."""
    flat = position_ids_BT.flatten()
    starts = (flat == 0).nonzero()[:, 0]
    borders = torch.cat([starts, torch.tensor([len(flat)])]).to(torch.int32)
    return borders, int(borders.diff().max())


def takes_borders(model: Any) -> bool:
    """Whether the model hands its attention's extra arguments on, and attends causally to all of a document."""
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = getattr(bare, "config", None)
    if config is None or not getattr(type(bare), "_supports_attention_backend", False):
        return False
    plain = getattr(config, "sliding_window", None) is None and getattr(config, "attn_logit_softcapping", None) is None
    return plain and config._attn_implementation in ("sdpa", NAME) and hasattr(config, "num_key_value_heads")


@contextmanager
def varlen_attention(model: Any) -> Iterator[bool]:
    """`model` with this attention for the time of the context; gives False, and changes nothing, where it cannot."""
    if not takes_borders(model):
        yield False
        return
    _register()
    config = (model.get_base_model() if hasattr(model, "get_base_model") else model).config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield True
    finally:
        config._attn_implementation = before


@contextmanager
def packed(inputs: dict[str, Any], borders: torch.Tensor | None, longest: int | None) -> Iterator[dict[str, Any]]:
    """The arguments of a model's call on a packed batch whose borders are known; no mask is made inside."""
    global _packed
    if borders is None:
        yield inputs
        return
    _packed = True
    try:
        yield {
            **inputs,
            "cu_seq_lens_q": borders,
            "cu_seq_lens_k": borders,
            "max_length_q": longest,
            "max_length_k": longest,
        }
    finally:
        _packed = False


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)


def _mask(*positional: Any, **given: Any) -> Any:
    from transformers.masking_utils import sdpa_mask

    return None if _packed and given.get("attention_mask") is None else sdpa_mask(*positional, **given)


def _attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **given: Any) -> tuple[Any, None]:
    borders = given.get("cu_seq_lens_q")
    if borders is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, **given)
    batch, _, length, _ = query.shape
    scale, dropout = given.get("scaling"), given.get("dropout", 0.0)
    q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (query, key, value))
    if query.is_cuda and not dropout and query.dtype in (torch.bfloat16, torch.float16):
        out = _kernel(q, k, v, borders, given["max_length_q"], scale)
    else:
        out = _each_document(q, k, v, borders, scale, dropout)
    return out.view(batch, length, *out.shape[1:]), None


def _kernel(q: Any, k: Any, v: Any, borders: Any, longest: int, scale: float | None) -> Any:
    """Flash attention with borders; grouped heads are asked for since torch 2.13, and simply taken before."""
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    grouped: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
    return varlen_attn(q, k, v, borders, borders, longest, longest, scale=scale, window_size=(-1, 0), **grouped)


def _each_document(q: Any, k: Any, v: Any, borders: Any, scale: float | None, dropout: float) -> torch.Tensor:
    """The twin: q (N, H, d), k and v (N, G, d), one causal attention a document."""
    sizes = borders.diff().tolist()
    parts = zip(*(t.split(sizes) for t in (q, k, v)))
    outs = [
        torch.nn.functional.scaled_dot_product_attention(
            *(t.transpose(0, 1)[None] for t in part), dropout_p=dropout, is_causal=True, scale=scale, enable_gqa=True
        )[0].transpose(0, 1)
        for part in parts
    ]
    return torch.cat(outs)
