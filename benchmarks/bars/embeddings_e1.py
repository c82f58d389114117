"""Latent-attention pooling is the formula: float64 sums, any padding, any batch, any order, instructions left out.

What must not change the embedding of a text is changed in every case: how much padding stands on which side, what it
holds, which texts share the batch and in which order. The baseline is the plain masked mean, whose distance from the
formula shows that the latents take part.
"""

from __future__ import annotations

import math

from benchmarks.bar import Bar, Measured, Setting

FORMULA, INVARIANCE = 1e-6, 1e-5


def measure(setting: Setting) -> Measured:
    import torch

    from apps.embeddings.latent import LatentAttentionPooling, masked_mean

    torch.manual_seed(0)
    formula, invariance, mean = 0.0, 0.0, 0.0
    for case in range(20 if setting.quick else 300):
        heads, width, latents = 2 ** (case % 4), 16 * (1 + case % 3), 3 + case % 60
        pooling = LatentAttentionPooling(width, latents, heads)
        for parameter in pooling.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        rows, length, prompt = 1 + case % 5, 3 + case % 9, case % 3
        states = torch.randn(rows, length, width)
        mask = torch.ones(rows, length, dtype=torch.long)
        text = mask.clone()
        text[:, :prompt] = 0
        found = pooled(pooling, states, mask, prompt)
        wanted = by_float64(pooling, states, text)
        formula = max(formula, float((found.double() - wanted).detach().abs().max()))
        mean = max(mean, float((masked_mean(states, text) - wanted).detach().abs().max()))
        for side in ("left", "right"):
            filler = torch.full((rows, 1 + case % 4, width), 50.0)
            blank = torch.zeros(filler.shape[:2], dtype=torch.long)
            parts = ([filler, states], [blank, mask]) if side == "left" else ([states, filler], [mask, blank])
            other = pooled(pooling, torch.cat(parts[0], 1), torch.cat(parts[1], 1), prompt)
            invariance = max(invariance, float((other - found).detach().abs().max()))
        alone = torch.cat([pooled(pooling, states[i : i + 1], mask[i : i + 1], prompt) for i in range(rows)])
        turned = pooled(pooling, states.flip(0), mask, prompt).flip(0)
        invariance = max(invariance, *(float((x - found).detach().abs().max()) for x in (alone, turned)))
    return Measured(
        formula,
        formula <= FORMULA and invariance <= INVARIANCE and mean > 1e-2,
        baseline={"plain mean, largest distance": round(mean, 3)},
        details={"largest change by padding, company and order": invariance},
    )


def pooled(pooling, states, mask, prompt):
    features = {"token_embeddings": states, "attention_mask": mask, "prompt_length": prompt}
    return pooling(features)["sentence_embedding"]


def by_float64(pooling, states, mask):
    """The embedding written out in float64, head by head."""
    import torch

    weights = {name: value.double() for name, value in pooling.state_dict().items()}
    x, width, size = states.double(), states.shape[-1], states.shape[-1] // pooling.heads

    def norm(value, name):
        centred = value - value.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    queries = norm(x, "norm_states") @ weights["query.weight"].T
    both = norm(weights["dictionary"], "norm_latents") @ weights["key_value.weight"].T
    found = torch.zeros_like(x)
    for head in range(pooling.heads):
        part = slice(head * size, (head + 1) * size)
        scores = torch.einsum("nld,rd->nlr", queries[..., part], both[:, :width][:, part]) / math.sqrt(size)
        share = scores.exp() / scores.exp().sum(-1, keepdim=True)
        found[..., part] = torch.einsum("nlr,rd->nld", share, both[:, width:][:, part])
    hidden = x + found @ weights["out.weight"].T
    inner = norm(hidden, "norm_hidden") @ weights["gate_up.weight"].T + weights["gate_up.bias"]
    gate, up = inner.chunk(2, -1)
    last = hidden + (0.5 * gate * (1 + torch.erf(gate / 2**0.5)) * up) @ weights["down.weight"].T + weights["down.bias"]
    return torch.stack([row[kept.bool()].mean(0) for row, kept in zip(last, mask)])


BAR = Bar(
    "embeddings.E1",
    "latent attention equals float64 arithmetic, whatever the padding, company, order and instruction",
    "largest difference",
    f"≤ {FORMULA:g}; unchanged within {INVARIANCE:g}",
    "cpu",
    0.5,
    measure,
)
