"""SqueezeLLM: free levels for each row, by weighted k-means in one dimension, solved exactly (Kim et al. 2023).

The objective is Σ F (w − level)² with the Fisher diagonal F. In one dimension optimal clusters are intervals of the
sorted values, and the best last cut moves to the right with the number of values, so a dynamic program with
divide and conquer finds the optimum in O(k n log n) (Wu 1991; Grønlund et al. 2017). Before it, values that are large
for their matrix and those with the largest F leave the dense matrix and are kept beside it.
"""

from __future__ import annotations

from typing import Any

import torch

from core.errors import ConfigError
from core.quantization.grids import decode, encode
from core.quantization.solvers.encoded import Encoded
from core.quantization.spec import TENSOR, QuantSpec


def solve(weight: torch.Tensor, spec: QuantSpec, stats: Any = None) -> Encoded:
    """Codes and levels of `weight` (N, K), with `stats.fisher` (N, K) where there is one.

    Raises:
        ConfigError: a Fisher diagonal of another shape.
    """
    weight = weight.float()
    fisher = torch.ones_like(weight) if stats is None or stats.fisher is None else stats.fisher.to(weight)
    if fisher.shape != weight.shape:
        raise ConfigError(f"a Fisher diagonal of shape {tuple(fisher.shape)} for a weight {tuple(weight.shape)}")
    kept = beside(weight, fisher, spec)
    inside = fisher.masked_fill(kept, 0.0)
    # a row whose weights all vanish counts its values alike
    empty = inside.sum(1, keepdim=True) <= 0
    inside = torch.where(empty & ~kept, torch.ones_like(inside), inside)
    flat = (weight.reshape(1, -1), inside.reshape(1, -1)) if spec.group == TENSOR else (weight, inside)
    levels = cluster(*flat, 2**spec.bits).to(torch.float16).float()
    params = {"levels": levels}
    codes = encode(weight.masked_fill(kept, 0.0), params, spec)
    encoded = Encoded(codes, {"levels": levels.to(torch.float16)})
    if bool(kept.any()):
        rest = weight - decode(codes, params, spec)
        encoded.sparse = torch.where(kept, rest, torch.zeros_like(rest)).to(torch.float16).float()
    encoded.notes = {"beside": int(kept.sum())}
    return encoded


def beside(weight: torch.Tensor, fisher: torch.Tensor, spec: QuantSpec) -> torch.Tensor:
    """Mask (N, K) of what is kept out: the largest magnitudes and the most sensitive, in the spec's shares.

    The threshold on size is symmetric around zero and lies where the share of this matrix comes out.
    """
    mask = torch.zeros_like(weight, dtype=torch.bool)
    for values, share in ((weight.abs(), spec.outliers), (fisher, spec.sensitive)):
        count = round(share * weight.numel())
        if count:
            mask.view(-1)[values.flatten().topk(count).indices] = True
    return mask


def cluster(values: torch.Tensor, weights: torch.Tensor, k: int) -> torch.Tensor:
    """The k levels (N, k), ascending, that minimise Σ weights (value − nearest level)² in each row of (N, n).

    Rows with fewer than k distinct values repeat a level.
    """
    from core.quantization.kernels.cpu import native

    library = native.library()
    if library is not None:
        return native.cluster(library, values.cpu(), weights.cpu(), k).to(values.device)
    return torch.cat([_cluster(v, w, k) for v, w in zip(values.split(256), weights.split(256))])


def _cluster(values: torch.Tensor, weights: torch.Tensor, k: int) -> torch.Tensor:
    """`cluster` by torch alone, all rows and all nodes of one depth of the recursion together."""
    values, order = values.double().sort(1)
    weights = weights.double().gather(1, order)
    # sums are taken around the row's mean, or large values would lose the small differences
    center = values.mean(1, keepdim=True)
    shifted = values - center
    rows, n = values.shape
    k = min(k, n)
    zero = torch.zeros(rows, 1, dtype=torch.float64, device=values.device)
    s0, s1, s2 = (torch.cat([zero, (weights * shifted**p).cumsum(1)], 1) for p in range(3))

    def cost(row: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Of values left … right − 1 in one cluster."""
        mass = s0[row, right] - s0[row, left]
        first, second = s1[row, right] - s1[row, left], s2[row, right] - s2[row, left]
        return torch.where(mass > 0, second - first**2 / mass.clamp_min(1e-300), torch.zeros_like(mass)).clamp_min(0)

    every = torch.arange(rows, device=values.device)
    ends = torch.arange(n + 1, device=values.device)
    grid_rows = every[:, None].expand(rows, n + 1)
    best = cost(grid_rows, torch.zeros_like(grid_rows), ends.expand(rows, n + 1))
    cuts = torch.zeros(k, rows, n + 1, dtype=torch.long, device=values.device)
    for number in range(1, k):
        following = torch.full_like(best, torch.inf)
        cut = cuts[number]
        # nodes (low, high) over ends, with the range of cuts that their neighbours leave
        nodes = [(0, n)]
        bounds_low = torch.zeros(rows, 1, dtype=torch.long, device=values.device)
        bounds_high = torch.full((rows, 1), n, dtype=torch.long, device=values.device)
        while nodes:
            middle = torch.tensor([(a + b) // 2 for a, b in nodes], device=values.device)
            low, high = bounds_low, torch.minimum(bounds_high, middle.expand_as(bounds_high))
            length = (high - low + 1).clamp_min(1)
            flat_length = length.flatten()
            owner = torch.repeat_interleave(torch.arange(flat_length.numel(), device=values.device), flat_length)
            offset = torch.arange(owner.numel(), device=values.device)
            offset = offset - torch.repeat_interleave(flat_length.cumsum(0) - flat_length, flat_length)
            row, node = owner // len(nodes), owner % len(nodes)
            place = low.flatten()[owner] + offset
            trial = best[row, place] + cost(row, place, middle[node])
            least = torch.full((flat_length.numel(),), torch.inf, dtype=torch.float64, device=values.device)
            least = least.scatter_reduce(0, owner, trial, "amin")
            candidate = torch.where(trial == least[owner], place, torch.full_like(place, n + 1))
            first = torch.full_like(flat_length, n + 1).scatter_reduce(0, owner, candidate, "amin")
            least, first = least.view(rows, -1), first.view(rows, -1)
            following[:, middle], cut[:, middle] = least, first
            children, lows, highs = [], [], []
            for index, (a, b) in enumerate(nodes):
                m = (a + b) // 2
                if a <= m - 1:
                    children.append((a, m - 1))
                    lows.append(bounds_low[:, index])
                    highs.append(first[:, index])
                if m + 1 <= b:
                    children.append((m + 1, b))
                    lows.append(first[:, index])
                    highs.append(bounds_high[:, index])
            nodes = children
            if nodes:
                bounds_low, bounds_high = torch.stack(lows, 1), torch.stack(highs, 1)
        best = following
    right = torch.full((rows,), n, dtype=torch.long, device=values.device)
    levels = []
    for number in range(k - 1, -1, -1):
        left = cuts[number][every, right] if number else torch.zeros_like(right)
        mass = s0[every, right] - s0[every, left]
        total = s1[every, right] - s1[every, left]
        middle = values[every, ((left + right) // 2).clamp_max(n - 1)]
        levels.append(torch.where(mass > 0, center[:, 0] + total / mass.clamp_min(1e-300), middle))
        right = left
    found = torch.stack(levels[::-1], 1).float()
    return found
