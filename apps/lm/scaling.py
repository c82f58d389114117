"""What a larger run will reach, from a few small ones.

Held-out loss falls as a power of model size and of data (Kaplan et al. 2020; Hoffmann et al. 2022):

    L(N, D) = E + A · N^−α + B · D^−β

with N parameters without embeddings and D training tokens. Runs that read the same number of tokens give the first two
terms alone. For given exponents the law is linear in E, A and B, so the exponents are searched and the rest is solved
for, in relative error; nothing depends on a start.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.config.files import read_json
from core.config.run_folder import RunFolder
from core.errors import ConfigError, DataError

EQUAL_TOKENS = 1.05
EXPONENTS = (0.02, 1.5)


@dataclass(frozen=True)
class Point:
    """A finished run: N parameters without embeddings, D tokens read, the held-out loss in any unit."""

    parameters: float
    tokens: float
    loss: float
    name: str = ""


@dataclass(frozen=True)
class Law:
    """A fitted law; `b` is 0 where all runs read the same number of tokens. `error` is the largest relative misfit."""

    e: float
    a: float
    alpha: float
    b: float = 0.0
    beta: float = 0.0
    error: float = 0.0

    def __call__(self, parameters: float, tokens: float) -> float:
        """The loss of a model with so many parameters after so many tokens."""
        found = self.e + self.a * parameters**-self.alpha
        return found + self.b * tokens**-self.beta if self.b else found

    def describe(self) -> str:
        text = f"{self.e:.3f} + {self.a:.3g} · N^-{self.alpha:.3f}"
        return text + (f" + {self.b:.3g} · D^-{self.beta:.3f}" if self.b else "")


def fit(points: Sequence[Point]) -> Law:
    """The law through the points: exact for three sizes at equal tokens, least relative squares for more.

    Raises:
        DataError: too few runs for the terms they need, or loss that does not fall with size.
    """
    tokens = [point.tokens for point in points]
    if len({point.parameters for point in points}) < 3:
        raise DataError(f"{len(points)} runs of fewer than three sizes fix no law", hint="train three sizes or more")
    several = max(tokens) > EQUAL_TOKENS * min(tokens)
    if several and len(points) < 5:
        raise DataError(
            f"{len(points)} runs that read between {min(tokens):,.0f} and {max(tokens):,.0f} tokens fix no law",
            hint="give five runs or more, or runs with equal numbers of tokens",
        )
    law = _search(points, several)
    if law.a <= 0:
        raise DataError("the loss of these runs does not fall with size", got=[p.loss for p in points])
    return law


def _search(points: Sequence[Point], several: bool) -> Law:
    """The best exponents on a grid that closes in around the best of the last one."""
    low, high = EXPONENTS
    ranges = [(low, high)] * (2 if several else 1)
    best: tuple[float, tuple[float, ...], np.ndarray] | None = None
    for _ in range(24):
        grids = [np.geomspace(first, last, 25) for first, last in ranges]
        for exponents in itertools.product(*grids):
            error, solved = _solve(points, exponents)
            if best is None or error < best[0]:
                best = (error, exponents, solved)
        assert best is not None
        ratios = [(last / first) ** (1 / 12) for first, last in ranges]
        ranges = [(max(low, e / r), min(high, e * r)) for e, r in zip(best[1], ratios)]
    assert best is not None
    _, exponents, (e, a, *b) = best
    scale_n, scale_d = _scales(points)
    law = Law(
        float(e), float(a * scale_n ** exponents[0]), float(exponents[0]),
        *([float(b[0] * scale_d ** exponents[1]), float(exponents[1])] if several else []),
    )  # fmt: skip
    misfit = max(abs(law(p.parameters, p.tokens) / p.loss - 1) for p in points)
    return Law(law.e, law.a, law.alpha, law.b, law.beta, misfit)


def _scales(points: Sequence[Point]) -> tuple[float, float]:
    return min(p.parameters for p in points), min(p.tokens for p in points)


def _solve(points: Sequence[Point], exponents: tuple[float, ...]) -> tuple[float, np.ndarray]:
    """(summed squared relative error, E, A and B none of which is negative) for given exponents."""
    scale_n, scale_d = _scales(points)
    loss = np.array([p.loss for p in points])
    columns = [np.ones(len(points)), *[np.array([(p.parameters / scale_n) ** -exponents[0] for p in points])]]
    if len(exponents) == 2:
        columns.append(np.array([(p.tokens / scale_d) ** -exponents[1] for p in points]))
    design = np.stack(columns, 1) / loss[:, None]
    best = (np.inf, np.zeros(len(columns)))
    for kept in _subsets(len(columns)):
        solved = np.zeros(len(columns))
        solved[list(kept)] = np.linalg.lstsq(design[:, list(kept)], np.ones(len(points)), rcond=None)[0]
        error = float(((design @ solved - 1) ** 2).sum())
        if (solved >= 0).all() and error < best[0]:
            best = (error, solved)
    return best


def _subsets(count: int) -> list[tuple[int, ...]]:
    return [kept for size in range(1, count + 1) for kept in itertools.combinations(range(count), size)]


def point_of(run: str | Path) -> Point:
    """A finished run of `lm.pretrain` as a point, in bits per byte. Raises `ConfigError` when it is none."""
    folder = RunFolder.open(run)
    report = folder.eval_dir("after") / "report.json"
    stages = sorted(folder.path.glob("stages/*/stage.json"))
    if not report.is_file() or not stages:
        raise ConfigError("the run is not finished, or was not evaluated", where=str(run), hint="give it data.eval")
    stage, found = read_json(stages[-1]), read_json(report)["metrics"]
    if "bits_per_byte" not in found:
        raise ConfigError("the run measured no bits per byte", where=str(report))
    size = read_json(folder.model_dir / "config.json")
    parameters = stage["parameters"] - embedding_size(size)
    return Point(parameters, stage["tokens_seen"], found["bits_per_byte"]["value"], folder.path.name)


def embedding_size(config: dict) -> int:
    """Entries of embedding and untied head in a config.json, tied weights counted once as `parameters` does."""
    width = config.get("hidden_size") or config["n_embd"]
    tables = 1 if config.get("tie_word_embeddings", True) else 2
    return tables * config["vocab_size"] * width + config.get("n_positions", 0) * width


def forecast(runs: Sequence[str], parameters: float, tokens: float) -> tuple[float, Law, list[Point]]:
    """Bits per byte of a run to come, the law it is read off, and the runs behind it."""
    points = [point_of(run) for run in runs]
    law = fit(points)
    return law(parameters, tokens), law, points
