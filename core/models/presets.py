"""Architectures to build from scratch, by name.

A preset fixes shape and dropout; the vocabulary and the special ids come from the tokenizer. The small ones are for
learning a task from little text on one device, and for the ladder of sizes from which a larger one is forecast; up to
60m, names count parameters without embeddings. Shapes follow Llama (Touvron et al. 2023) and GPT-2 (Radford et al.
2019); only GPT-2 has dropout on embeddings and residuals, which small parallel corpora need.

GEB-1.3B (Wu et al. 2024) and MindLLM (Yang et al. 2023) publish their building blocks (rotary positions, grouped
queries and an untied head there; RMSNorm and GeGLU here) and their totals, not their widths: width and depth below are
chosen to meet the totals. MindLLM's DeepNorm is an edit on its preset (`model.edits: [{kind: deepnorm}]`).
"""

from __future__ import annotations

from typing import Any

from core.errors import ConfigError, nearest


def _llama(
    hidden: int, layers: int, heads: int, kv_heads: int, ffn: int, context: int = 512, **more: Any
) -> tuple[str, dict]:
    return "llama", {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": ffn,
        "max_position_embeddings": context,
        "tie_word_embeddings": True,
        **more,
    }


def _gpt2(hidden: int, layers: int, heads: int, dropout: float, context: int = 512) -> tuple[str, dict]:
    return "gpt2", {
        "n_embd": hidden,
        "n_layer": layers,
        "n_head": heads,
        "n_positions": context,
        "resid_pdrop": dropout,
        "embd_pdrop": dropout,
        "attn_pdrop": dropout,
    }


def _bert(hidden: int, layers: int, heads: int, ffn: int, context: int = 512) -> tuple[str, dict]:
    return "bert", {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": ffn,
        "max_position_embeddings": context,
    }


PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": _llama(64, 2, 4, 2, 128),
    "tiny-2k": _llama(64, 2, 4, 2, 128, 2048),
    "tiny-gpt2": _gpt2(64, 2, 4, 0.0),
    "tiny-bert": _bert(64, 2, 4, 128),
    "bert-5m": _bert(256, 4, 8, 1024),
    "llama-2m": _llama(160, 6, 5, 5, 448),
    "llama-3m": _llama(192, 6, 6, 6, 512),
    "llama-5m": _llama(256, 7, 8, 4, 688),
    "llama-10m": _llama(320, 8, 5, 5, 864, 1024),
    "llama-20m": _llama(384, 10, 6, 6, 1024, 1024),
    "gpt2-14m": _gpt2(384, 6, 6, 0.2),
    "gpt2-17m": _gpt2(384, 8, 6, 0.3),
    "llama-30m": _llama(448, 12, 7, 7, 1216, 1024),
    "llama-60m": _llama(576, 17, 9, 3, 1536, 2048),
    "llama-125m": _llama(768, 12, 12, 12, 2048, 2048),
    "llama-350m": _llama(1024, 24, 16, 16, 2816, 2048),
    "llama-1b": _llama(2048, 22, 32, 4, 5632, 4096),
    "llama-3b": _llama(3072, 28, 24, 8, 8192, 4096),
    "geb-1.3b": _llama(2048, 24, 16, 4, 5632, 4096, tie_word_embeddings=False),
    "mindllm-1.3b": _llama(2048, 20, 16, 16, 5632, 2048, tie_word_embeddings=False, hidden_act="gelu"),
    "mindllm-3b": _llama(2560, 35, 32, 32, 6912, 2048, tie_word_embeddings=False, hidden_act="gelu"),
}


def build_config(preset: str, vocab_size: int, tokenizer: Any = None) -> Any:
    """The transformers config of `preset` for a vocabulary.

    Args:
        tokenizer: gives the ids of beginning, end and padding; None leaves them out.

    Raises:
        ConfigError: an unknown preset, with the nearest name.
    """
    if preset not in PRESETS:
        hint = " ".join(filter(None, [nearest(preset, PRESETS), f"known: {', '.join(PRESETS)}"]))
        raise ConfigError(f"unknown preset '{preset}'", where="model.preset", hint=hint)
    from transformers import AutoConfig

    kind, shape = PRESETS[preset]
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad")}
    return AutoConfig.for_model(kind, **shape, vocab_size=vocab_size, **ids)
