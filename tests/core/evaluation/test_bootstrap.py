"""Intervals and paired tests against the textbook and against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest

from core.errors import DataError
from core.evaluation import bootstrap
from core.evaluation.bootstrap import bootstrap_ci, paired_bootstrap


def ratio(total):
    return total[0] / total[1]


def test_the_interval_of_a_mean_is_the_textbook_one():
    values = np.random.default_rng(0).normal(10, 2, 400)
    low, high = bootstrap_ci(np.stack([values, np.ones(400)], 1), ratio, n=4000)
    error = values.std(ddof=1) / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.03)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.03)


def test_a_corpus_metric_is_computed_on_the_sums_of_each_resample():
    stats = np.random.default_rng(1).integers(1, 30, (50, 2)).astype(float)
    draws = np.random.default_rng(12345).multinomial(50, np.full(50, 1 / 50), size=200)
    expected = [ratio(sum(count * row for count, row in zip(draw, stats))) for draw in draws]
    assert bootstrap_ci(stats, ratio, n=200) == pytest.approx(tuple(np.quantile(expected, [0.025, 0.975])))


def test_drawing_in_parts_changes_nothing():
    stats = np.random.default_rng(2).random((40, 3))
    whole = bootstrap._totals(stats, 101, 5)
    assert np.allclose(bootstrap._totals(stats, 101, 5, cells=400), whole)
    assert whole.shape == (101, 3)


def test_a_seed_repeats_and_one_number_a_row_will_do():
    values = [1.0, 2.0, 3.0, 10.0]
    assert bootstrap_ci(values, lambda t: t[0] / 4) == bootstrap_ci(np.array(values), lambda t: t[0] / 4)
    assert bootstrap_ci(values, lambda t: t[0] / 4, seed=1) != bootstrap_ci(values, lambda t: t[0] / 4, seed=2)


def test_a_real_difference_is_found_and_noise_is_not():
    generator = np.random.default_rng(3)
    easy = generator.normal(50, 20, 300)
    better, same = easy + generator.normal(2, 5, 300), easy + generator.normal(0, 5, 300)
    found = paired_bootstrap(easy, better, lambda t: t[0] / 300)
    assert found.p < 0.01 and found.ci95[0] > 0
    assert found.difference == pytest.approx(better.mean() - easy.mean())
    assert paired_bootstrap(easy, same, lambda t: t[0] / 300).p > 0.05
    assert paired_bootstrap(easy, easy, lambda t: t[0] / 300).p == 1.0


def test_pairing_gives_a_narrower_interval_than_two_separate_ones():
    generator = np.random.default_rng(4)
    first = generator.normal(50, 20, 200)
    second = first + 1
    low, high = paired_bootstrap(first, second, lambda t: t[0] / 200).ci95
    wide = bootstrap_ci(first, lambda t: t[0] / 200)
    assert high - low < 0.1 * (wide[1] - wide[0])


def test_bad_input_is_named():
    with pytest.raises(DataError, match="no rows"):
        bootstrap_ci([], ratio)
    with pytest.raises(DataError, match="no rows"):
        paired_bootstrap([], [], ratio)
    with pytest.raises(DataError, match="shape"):
        paired_bootstrap([1.0], [1.0, 2.0], ratio)
