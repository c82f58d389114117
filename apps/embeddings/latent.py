"""Latent-attention pooling (Lee et al. 2024, NV-Embed), as a module of sentence-transformers.

Every token state asks a trained dictionary: queries are the states (n, l, d), keys and values are r latents (r, d).
What comes back is added to the state and passes a gated feed-forward block; the masked mean of the outcome is the
embedding. A token looks at latents and never at other tokens, so padding needs no mask before the mean. Keys and
values are the same for all texts: they are shared by broadcasting and never copied.
"""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers.base.modules import Module
from torch import nn
from torch.nn import functional as F

from core.errors import AppInputError, ConfigError

PART = 2048
"""Tokens that pass the block at one time without gradients."""


class LatentAttentionPooling(Module):
    """`features["token_embeddings"]` (n, l, d) → `features["sentence_embedding"]` (n, d).

    Tokens of an instruction (`features["prompt_length"]`, counted from the first token that is not padding) take part
    in attention below and are left out of the mean.

    Args:
        embedding_dimension: d. latents: r. heads: they divide d.
    """

    config_keys = ["embedding_dimension", "latents", "heads", "include_prompt"]

    def __init__(
        self, embedding_dimension: int, latents: int = 512, heads: int = 8, include_prompt: bool = False
    ) -> None:
        super().__init__()
        if embedding_dimension % heads:
            raise ConfigError(
                f"{heads} heads do not divide {embedding_dimension} dimensions",
                where="model.edits",
                hint="change heads",
            )
        width = embedding_dimension
        self.embedding_dimension, self.latents, self.heads = width, latents, heads
        self.include_prompt = include_prompt
        self.dictionary = nn.Parameter(torch.randn(latents, width) * 0.02)
        self.norm_states, self.norm_latents, self.norm_hidden = (
            nn.LayerNorm(width),
            nn.LayerNorm(width),
            nn.LayerNorm(width),
        )
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate_up = nn.Linear(width, 8 * width)
        self.down = nn.Linear(4 * width, width)
        # Both branches begin at zero: an untrained pooling is the mean, and training moves away from there.
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        """(…, l, d) → (…, heads, l, d / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def _asked(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries (1, heads, n·l, d / heads); keys and values (1, heads, r, d / heads)."""
        queries = self._split(self.query(self.norm_states(states)).flatten(0, 1).unsqueeze(0))
        keys, values = self.key_value(self.norm_latents(self.dictionary)).chunk(2, dim=-1)
        return queries, self._split(keys.unsqueeze(0)), self._split(values.unsqueeze(0))

    def transform(self, states: torch.Tensor) -> torch.Tensor:
        """Token states (n, l, d) after dictionary and feed-forward block, the same shape.

        Without gradients tokens pass in parts, so that the block's eightfold width is never there for all of them.
        """
        if torch.is_grad_enabled():
            return self._transformed(states)
        parts = states.flatten(0, 1).split(PART)
        return torch.cat([self._transformed(part.unsqueeze(0))[0] for part in parts]).view_as(states)

    def _transformed(self, states: torch.Tensor) -> torch.Tensor:
        found = F.scaled_dot_product_attention(*self._asked(states))
        hidden = states + self.out(found.transpose(1, 2).flatten(2).view_as(states))
        gate, up = self.gate_up(self.norm_hidden(hidden)).chunk(2, dim=-1)
        return hidden + self.down(F.gelu(gate) * up)

    @torch.no_grad()
    def usage(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(n, r) how much of the texts' attention each latent gets; rows sum to 1."""
        queries, keys, _ = self._asked(states)
        weights = (queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5).softmax(-1).mean(1)
        weights = weights.view(*states.shape[:2], -1) * mask.unsqueeze(-1)
        return weights.sum(1) / mask.sum(1, keepdim=True)

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        states = features["token_embeddings"]
        mask = features["attention_mask"]
        if not self.include_prompt and features.get("prompt_length") is not None:
            mask = without_prompt(mask, features["prompt_length"])
        features["sentence_embedding"] = masked_mean(self.transform(states.to(self.dictionary.dtype)), mask)
        return features

    def get_embedding_dimension(self) -> int:
        return self.embedding_dimension

    get_sentence_embedding_dimension = get_embedding_dimension

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> LatentAttentionPooling:
        known = {k: v for k, v in kwargs.items() if k in ("token", "cache_folder", "revision", "local_files_only")}
        config = cls.load_config(model_name_or_path, subfolder=subfolder, **known)
        return cls.load_torch_weights(model_name_or_path, subfolder=subfolder, model=cls(**config), **known)


def without_prompt(mask: torch.Tensor, prompt_length: Any) -> torch.Tensor:
    """`mask` (n, l) without the first `prompt_length` tokens of each row that are not padding, on either side.

    Args:
        prompt_length: a number for all rows, or one a row (n,).
    """
    length = torch.as_tensor(prompt_length, device=mask.device).reshape(-1, 1)
    return mask * (mask.cumsum(1) > length)


def masked_mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of `states` (n, l, d) over the places where `mask` (n, l) is 1, in float32 or wider.

    Raises:
        AppInputError: a row without such a place (on a CPU; on a GPU looking would cost a wait, and gives NaN).
    """
    count = mask.sum(1, keepdim=True)
    if not mask.is_cuda and bool((count == 0).any()):
        rows = (count == 0).nonzero()[:, 0].tolist()
        raise AppInputError(f"nothing is left to pool in rows {rows[:5]}", hint="empty texts, or only an instruction")
    wide = states if states.dtype == torch.float64 else states.float()
    return (wide * mask.unsqueeze(-1)).sum(1) / count
