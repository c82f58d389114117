"""Why two texts are near: each token's share of the cosine, the latents that fire, and texts on a plane.

Where the embedding is a mean over tokens, the cosine is a sum over tokens, and each summand is exact: nothing is
approximated by gradients. Pooling that looks at one token alone has no such sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from core.errors import UnsupportedError


@dataclass(frozen=True)
class Share:
    """A piece of the text (characters `start` to `end`) and what it adds to the cosine."""

    start: int
    end: int
    value: float


def contributions(pipeline: Any, text: str, other: str, *, task: str = "") -> list[Share]:
    """Shares of the tokens of `text` in its cosine with `other`; they sum to it, the ending's included as (n, n).

    Raises:
        UnsupportedError: a pooling that is no mean over tokens.
    """
    import torch

    from apps.embeddings import prompts
    from apps.embeddings.encode import encode_texts, padded

    model = pipeline.model
    prompt = prompts.prompt_of(pipeline.config.template, task)
    encoded = encode_texts(pipeline.tokenizer, [text], [prompt], pipeline.max_length)
    batch = {n: v.to(model.device) for n, v in padded(encoded, pipeline.tokenizer.pad_token_id or 0).items()}
    with torch.inference_mode():
        tokens = _pooled_tokens(model, model.states(batch["input_ids"], batch["attention_mask"]))[0].double()
    kept = model.pooled(batch["attention_mask"], batch["pool_mask"])[0].bool()
    mean = tokens[kept].mean(0)
    target = torch.as_tensor(pipeline(other, task=task, kind="query"), dtype=torch.double, device=tokens.device)
    values = (tokens[kept] @ (target / target.norm()) / (kept.sum() * mean.norm())).tolist()
    offsets = pipeline.tokenizer(prompt + text, return_offsets_mapping=True)["offset_mapping"]
    places = [offsets[i] for i in kept.nonzero().flatten().tolist()[:-1]]
    spans = [(max(0, a - len(prompt)), max(0, b - len(prompt))) for a, b in places]
    return [Share(a, b, v) for (a, b), v in zip([*spans, (len(text), len(text))], values)]


def _pooled_tokens(model: Any, states: Any) -> Any:
    """What the mean is taken over, (n, l, d)."""
    from apps.embeddings.latent import LatentAttentionPooling

    if len(model.after):
        raise UnsupportedError("the embedding is projected after pooling: it has no shares of tokens")
    if isinstance(model.pooling, LatentAttentionPooling):
        return model.pooling.transform(states)
    if getattr(model.pooling, "pooling_mode", None) != "mean":
        raise UnsupportedError("this pooling looks at one token: there are no shares of tokens")
    return states


def latent_usage(pipeline: Any, texts: list[str]) -> np.ndarray | None:
    """(n, r) how much attention each latent gets from each text; None for a model without latents."""
    import torch

    from apps.embeddings.encode import encode_texts, padded
    from apps.embeddings.latent import LatentAttentionPooling

    model = pipeline.model
    if not isinstance(model.pooling, LatentAttentionPooling):
        return None
    encoded = encode_texts(pipeline.tokenizer, texts, [""] * len(texts), pipeline.max_length)
    batch = {n: v.to(model.device) for n, v in padded(encoded, pipeline.tokenizer.pad_token_id or 0).items()}
    with torch.inference_mode():
        states = model.states(batch["input_ids"], batch["attention_mask"])
        return model.pooling.usage(states.float(), batch["pool_mask"]).cpu().numpy()


def plane(vectors: np.ndarray) -> tuple[np.ndarray, float]:
    """The two directions of largest variance: places (n, 2), and the share of all variance that they show.

    Signs are fixed by the largest coordinate of each direction, so that equal vectors give equal pictures.
    """
    centred = vectors - vectors.mean(0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    pair = directions[:2]
    pair = pair * np.sign(pair[np.arange(len(pair)), np.abs(pair).argmax(1)])[:, None]
    places = centred @ pair.T
    if places.shape[1] < 2:
        places = np.pad(places, ((0, 0), (0, 2 - places.shape[1])))
    total = float((sizes**2).sum())
    return places, float((sizes[:2] ** 2).sum()) / total if total else 0.0
