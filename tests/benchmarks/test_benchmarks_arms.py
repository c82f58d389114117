"""How arms are judged: rates are chosen by their rule, seeds are counted, a bar can be missed."""

from __future__ import annotations

import copy

import pytest

from benchmarks import domains
from benchmarks.arms import forgetting, gain, least_loss, seeds_run
from benchmarks.bars import methods_adapters_quality, methods_control_retention


@pytest.fixture(autouse=True)
def no_data(monkeypatch):
    for module in (methods_adapters_quality, methods_control_retention):
        monkeypatch.setattr(module, "known", lambda: domains.Domain([], ["a"]))
        monkeypatch.setattr(module, "new", lambda: domains.Domain(["a"], ["b"]))


def arm(a, b, trainable=100, seeds=3):
    run = {"A": a, "B": b}
    return {"rate": 1e-3, "trainable": trainable, "search": {1e-3: run}, "runs": [run] * seeds}


def found(**arms):
    return {"base": {"A": 4.0, "B": 6.0}, "arms": arms}


def test_gain_and_forgetting_are_means_over_seeds():
    both = found(full=arm(5.0, 2.0))
    both["arms"]["full"]["runs"] = [{"A": 5.0, "B": 2.0}, {"A": 7.0, "B": 3.0}]
    assert gain(both, "full") == 3.5 and forgetting(both, "full") == 2.0 and seeds_run(both) == 2


def test_control_takes_the_rate_that_forgets_least_and_gains_enough():
    full = found(full=arm(8.0, 2.0))
    tried = {1e-4: {"A": 4.1, "B": 3.5}, 1e-3: {"A": 4.6, "B": 2.7}, 3e-3: {"A": 5.5, "B": 2.4}}
    assert methods_control_retention.choose("control", tried, full) == 1e-3
    assert methods_control_retention.choose("full", tried, full) == 3e-3 == least_loss("full", tried, full)
    weak = {1e-4: {"A": 4.1, "B": 5.0}, 1e-3: {"A": 4.2, "B": 4.0}}
    assert methods_control_retention.choose("control", weak, full) == 1e-3


def test_retention_is_met_missed_or_undecided():
    good = found(full=arm(8.0, 2.0), lora=arm(5.0, 3.0), control=arm(4.8, 2.7))
    assert methods_control_retention.judged(good).passed is True
    assert methods_control_retention.judged(good).value == pytest.approx(0.2)
    for change in ({"control": arm(5.5, 2.7)}, {"control": arm(4.8, 3.0)}):
        assert methods_control_retention.judged(found(**{**good["arms"], **change})).passed is False
    once = copy.deepcopy(good)
    once["arms"]["lora"]["runs"] = once["arms"]["lora"]["runs"][:1]
    assert methods_control_retention.judged(once).passed is None


def test_adapters_must_be_of_equal_size_and_forget_no_more():
    good = {name: arm(5.0, 2.8) for name in ("lora", "parallel", "series", "prefix")}
    judged = methods_adapters_quality.judged
    assert judged(found(full=arm(8.0, 2.0), **good)).passed is True
    for change in (
        {"series": arm(5.0, 3.2)},
        {"prefix": arm(5.0, 5.5)},
        {"lora": arm(9.0, 2.8)},
        {"lora": arm(5, 2.8, 103)},
    ):
        assert judged(found(full=arm(8.0, 2.0), **{**good, **change})).passed is False
