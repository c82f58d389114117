"""Laws of scale: found again from points that follow them, and refused where points fix none."""

from __future__ import annotations

import random

import pytest

from apps.lm.scaling import Law, Point, embedding_size, fit
from core.errors import DataError

TRUE = Law(1.69, 406.4, 0.34, 410.7, 0.28)


def points(law, sizes, tokens, noise=0.0):
    rng = random.Random(0)
    return [Point(n, d, law(n, d) * (1 + noise * rng.uniform(-1, 1))) for n in sizes for d in tokens]


def test_three_sizes_at_equal_tokens_are_met_exactly():
    law = Law(0.8, 30.0, 0.25)
    found = fit(points(law, (1e6, 3e6, 1e7), (1e8,)))
    assert (found.e, found.a, found.alpha) == pytest.approx((0.8, 30.0, 0.25), rel=1e-3)
    assert found.error < 1e-6 and found(1e9, 1e8) == pytest.approx(law(1e9, 1e8), rel=1e-4)


def test_the_published_law_of_hoffmann_is_found_from_its_points():
    found = fit(points(TRUE, (1e7, 3e7, 1e8, 3e8), (1e9, 1e10, 1e11)))
    assert (found.e, found.alpha, found.beta) == pytest.approx((1.69, 0.34, 0.28), rel=0.02)
    assert found(7e10, 1.4e12) == pytest.approx(TRUE(7e10, 1.4e12), rel=2e-3)


def test_a_forecast_from_noisy_points_stays_close():
    found = fit(points(Law(0.8, 30.0, 0.25), (1e6, 2e6, 4e6, 8e6), (1e8,), noise=0.002))
    assert found(3.2e7, 1e8) == pytest.approx(Law(0.8, 30.0, 0.25)(3.2e7, 1e8), rel=0.03)


def test_terms_are_never_negative():
    """Points on a pure power law: no floor may be invented below zero."""
    found = fit(points(Law(0.0, 12.0, 0.1), (1e6, 3e6, 1e7), (1e8,), noise=0.01))
    assert found.e >= 0 and found.a > 0


def test_too_few_runs_fix_nothing():
    with pytest.raises(DataError, match="fewer than three sizes"):
        fit(points(TRUE, (1e6, 1e7), (1e8, 1e9)))
    with pytest.raises(DataError, match="five runs"):
        fit([Point(1e6, 1e8, 3), Point(2e6, 2e8, 2.8), Point(4e6, 4e8, 2.7)])
    with pytest.raises(DataError, match="does not fall"):
        fit([Point(1e6, 1e8, 2.0), Point(2e6, 1e8, 2.0), Point(4e6, 1e8, 2.0)])


def test_parameters_without_embeddings():
    tied = {"hidden_size": 8, "vocab_size": 100, "tie_word_embeddings": True}
    assert embedding_size(tied) == 800 and embedding_size({**tied, "tie_word_embeddings": False}) == 1600
    assert embedding_size({"n_embd": 8, "vocab_size": 100, "n_positions": 16}) == 928
