"""pass@k against exact rational arithmetic and against counting."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations
from math import comb

import pytest

from core.errors import ConfigError, DataError
from core.evaluation.passk import best_at_k, mean_pass_at_k, pass_at_k, pass_hat_k, samples_of, sizes_of


@pytest.mark.parametrize("n", [1, 2, 5, 11, 60])
def test_it_equals_the_binomials(n):
    for c in range(n + 1):
        for k in range(1, n + 1):
            exact = 1 - Fraction(comb(n - c, k), comb(n, k))
            assert abs(pass_at_k(n, c, k) - float(exact)) < 1e-12
            assert abs(pass_hat_k(n, c, k) - float(Fraction(comb(c, k), comb(n, k)))) < 1e-12


def test_it_equals_counting_all_draws():
    passed = [1, 0, 0, 1, 0, 0]
    for k in range(1, 7):
        draws = list(combinations(passed, k))
        assert pass_at_k(6, 2, k) == pytest.approx(sum(any(d) for d in draws) / len(draws))
        assert pass_hat_k(6, 2, k) == pytest.approx(sum(all(d) for d in draws) / len(draws))


def test_best_at_k_is_the_mean_of_the_best():
    scores = [0.3, 0.9, 0.1, 0.5, 0.5]
    for k in range(1, 6):
        draws = list(combinations(scores, k))
        assert best_at_k(scores, k) == pytest.approx(sum(map(max, draws)) / len(draws))
    assert best_at_k([0.0, 0.0, 1.0], 2) == pytest.approx(pass_at_k(3, 1, 2))


def test_too_few_samples_are_an_error_and_never_certain():
    for n, c, k in ((3, 3, 4), (0, 0, 1), (3, 4, 1), (3, -1, 1), (3, 1, 0)):
        with pytest.raises(DataError):
            pass_at_k(n, c, k)
    with pytest.raises(DataError, match="problem 1 has 2 samples"):
        mean_pass_at_k([(5, 1), (2, 2)], 3)
    with pytest.raises(DataError, match="no problems"):
        mean_pass_at_k([], 1)


def test_the_mean_is_over_problems_and_has_an_interval():
    found = mean_pass_at_k([(6, 6), (6, 0), (6, 3), (6, 3)], 1)
    assert found.value == pytest.approx(0.5) and found.per_problem == pytest.approx((1.0, 0.0, 0.5, 0.5))
    assert found.ci95[0] < 0.5 < found.ci95[1]
    assert mean_pass_at_k([(6, 3)], 1, every=True).value == pytest.approx(0.5)
    # six samples of one problem, three right, as in the sample file that VerilogEval ships
    assert mean_pass_at_k([(6, 3)], 1).value == pytest.approx(0.5, abs=1e-12)


def test_predictions_are_texts_or_lists_of_them():
    assert samples_of(["a", ["b", "c"], ("d",)]) == [["a"], ["b", "c"], ["d"]]
    for wrong, words in ((None, "wrong"), (3, "wrong"), ({"a": 1}, "wrong"), ([1], "wrong"), ([], "no samples")):
        with pytest.raises(DataError, match=f"problem 1 has .*{words}"):
            samples_of(["a", wrong])


def test_k_is_a_number_or_several():
    assert sizes_of(5) == (5,) and sizes_of([1, 5]) == (1, 5)
    for wrong in (0, "1", [], [1, 0], True, None):
        with pytest.raises(ConfigError, match="k is"):
            sizes_of(wrong)
