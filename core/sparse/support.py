"""Which entries of a matrix are tuned: drawing positions, finding large ones by tiles, replacing some of them.

A support is a sorted vector of flat positions into a matrix (out, in). Everything here is arithmetic on such vectors;
no function holds a second matrix of the weight's size, and none knows of models or optimizers.
"""

from __future__ import annotations

import math

import torch

TILE_BYTES = 64 * 2**20


def index_dtype(numel: int) -> torch.dtype:
    """int32 while it can hold every position."""
    return torch.int32 if numel < 2**31 else torch.int64


def draw_positions(numel: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """`count` distinct positions below `numel`, uniformly, sorted; memory grows with `count`."""
    if count * 4 >= numel:
        chosen = torch.randperm(numel, generator=generator)[:count]
    else:
        chosen = torch.empty(0, dtype=torch.long)
        while len(chosen) < count:
            missing = count - len(chosen)
            more = torch.randint(numel, (missing + missing // 8 + 8,), generator=generator)
            chosen = torch.cat([chosen, more]).unique()
        keep = torch.randperm(len(chosen), generator=generator)[:count]
        chosen = chosen[keep]
    return chosen.sort().values.to(index_dtype(numel))


def shares(sizes: dict[str, int], total: int) -> dict[str, int]:
    """`total` split over matrices in proportion to their sizes, by largest remainders, at least one each."""
    whole = sum(sizes.values())
    exact = {name: total * size / whole for name, size in sizes.items()}
    counts = {name: max(1, min(sizes[name], math.floor(share))) for name, share in exact.items()}
    rest = total - sum(counts.values())
    for name in sorted(exact, key=lambda n: counts[n] - exact[n]):
        if rest <= 0:
            break
        if counts[name] < sizes[name]:
            counts[name] += 1
            rest -= 1
    return counts


def tiles(rows: int, columns: int, item_bytes: int, limit: int | None = None) -> list[tuple[int, int]]:
    """Ranges of rows whose slice of a (rows, columns) matrix stays below `limit` bytes, TILE_BYTES by default."""
    height = max(1, (limit or TILE_BYTES) // (columns * item_bytes))
    return [(start, min(start + height, rows)) for start in range(0, rows, height)]


def bounds(positions: torch.Tensor, ranges: list[tuple[int, int]], columns: int) -> list[int]:
    """Where in the sorted `positions` each range of rows begins, and where the last one ends."""
    if len(ranges) == 1:
        return [0, len(positions)]
    edges = torch.tensor([start * columns for start, _ in ranges] + [ranges[-1][1] * columns])
    return torch.searchsorted(positions.long(), edges.to(positions.device)).tolist()


def sampled_product(dy: torch.Tensor, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Entries (k,) of dyᵀ x at flat `positions`, in fp32: a sampled product of dense matrices (SDDMM).

    Both factors are gathered over all tokens, at most TILE_BYTES at a time; no row of the product is made.

    Args:
        dy: (N, out). x: (N, in).
    """
    found = torch.empty(len(positions), device=x.device)
    count = max(1, TILE_BYTES // (3 * 4 * max(1, len(x))))
    for start in range(0, len(positions), count):
        part = positions[start : start + count].long()
        factors = dy[:, part // x.shape[1]].float(), x[:, part % x.shape[1]].float()
        found[start : start + count] = (factors[0] * factors[1]).sum(0)
    return found


class TopK:
    """The `count` largest scores of a stream of (scores, positions), merged piece by piece."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.scores: torch.Tensor | None = None
        self.positions: torch.Tensor | None = None

    def add(self, scores: torch.Tensor, positions: torch.Tensor | None = None, start: int = 0) -> None:
        """Take in scores (n,); their positions are given, or are `start`, `start` + 1, …"""
        best = scores.topk(min(self.count, len(scores)))
        found = best.indices + start if positions is None else positions[best.indices]
        values = best.values
        if self.scores is not None and self.positions is not None:
            values, found = torch.cat([self.scores, values]), torch.cat([self.positions, found])
            best = values.topk(min(self.count, len(values)))
            values, found = best.values, found[best.indices]
        self.scores, self.positions = values, found

    @property
    def threshold(self) -> float:
        """A score that a newcomer has to exceed; -inf while there is room."""
        full = self.scores is not None and len(self.scores) == self.count
        return float(self.scores[-1]) if full and self.scores is not None else -math.inf


def top_outer(
    rows: torch.Tensor, columns: torch.Tensor, count: int, taken: torch.Tensor, block: int = 2**22
) -> torch.Tensor:
    """The `count` positions with the largest rows[i] · columns[j] that are not in `taken`, sorted.

    Rows are visited from the largest on, a block at a time, until no later one can hold a better product.

    Args:
        rows: (out,) ≥ 0. columns: (in,) ≥ 0. taken: sorted positions. block: products that exist at one time.
    """
    width, largest = len(columns), float(columns.max())
    order = rows.argsort(descending=True, stable=True)
    best, height = TopK(count), max(1, block // width)
    for start in range(0, len(order), height):
        chosen = order[start : start + height]
        if float(rows[chosen[0]]) * largest <= best.threshold:
            break
        scores = rows[chosen, None] * columns
        places = chosen[:, None] * width + torch.arange(width, device=rows.device)
        free = ~is_in(places.flatten(), taken)
        best.add(scores.flatten()[free], places.flatten()[free])
    found = best.positions if best.positions is not None else order[:0]
    return found.sort().values


def is_in(positions: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
    """For each position whether the sorted `members` hold it."""
    if not len(members):
        return torch.zeros(len(positions), dtype=torch.bool, device=positions.device)
    members = members.long()
    places = torch.searchsorted(members, positions.long()).clamp(max=len(members) - 1)
    return members[places] == positions.long()


def replacement(
    active: torch.Tensor, magnitude: torch.Tensor, candidates: torch.Tensor, scores: torch.Tensor, rate: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which slots of `active` change hands, and which candidates take them.

    The ⌊rate · k⌋ smallest magnitudes are up for replacement by the candidates with the largest scores that are not
    kept. A position on both lists stays as it is, so both results have one length.

    Args:
        active: (k,) sorted positions. magnitude: (k,) of their values. candidates: (c,) positions. scores: (c,).

    Returns:
        Slots into `active`, and indices into `candidates`.
    """
    count = int(rate * len(active) + 1e-9)
    smallest = magnitude.argsort(stable=True)[:count]
    dropped = torch.zeros(len(active), dtype=torch.bool, device=active.device)
    dropped[smallest] = True
    eligible = (~is_in(candidates, active[~dropped])).nonzero().flatten()
    best = eligible[scores[eligible].argsort(descending=True, stable=True)[:count]]
    regrown = candidates[best].sort().values
    slots = smallest[~is_in(active[smallest], regrown)]
    grown = best[~is_in(candidates[best], active[smallest].sort().values)]
    return slots[: len(grown)], grown
