"""fast_p, means, tolerances, ulp, medians and bounds against values worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from apps.cuda.compare import compare, largest_ulp
from apps.cuda.device import Device, Full
from apps.cuda.metrics import fast_p, geometric_mean_speedup
from apps.cuda.model import occupancy
from apps.cuda.plan import Signature, Spec
from apps.cuda.timing import TimingOptions, believable, faster, lower_bound, summary
from apps.cuda.verdict import Timing
from benchmarks.bar import Setting
from benchmarks.bars import cuda_c2
from core.errors import ConfigError, DataError


def test_fast_p_counts_right_kernels_over_all_problems():
    right, base, mine = [True, True, False, True], [2.0, 1.0, 9.0, 3.0], [1.0, 1.0, 1.0, 2.0]
    assert [fast_p(right, base, mine, p) for p in (0, 1, 1.5, 2)] == [0.75, 0.5, 0.25, 0.0]
    assert geometric_mean_speedup(right, base, mine) == pytest.approx(3 ** (1 / 3))
    assert fast_p([], [], [], 1) == 0.0 and geometric_mean_speedup([False], [1.0], [1.0]) == 0.0
    assert geometric_mean_speedup([True] * 400, [100.0] * 400, [1.0] * 400) == pytest.approx(100.0)


def test_impossible_figures_are_errors():
    with pytest.raises(DataError, match="not positive"):
        fast_p([True], [1.0], [0.0], 1)
    with pytest.raises(DataError, match="baseline times"):
        fast_p([True], [1.0, 2.0], [1.0], 1)


def test_c2_is_met_and_sees_another_formula(tmp_path, monkeypatch):
    assert cuda_c2.measure(Setting(True, tmp_path)).passed
    monkeypatch.setattr(
        "apps.cuda.metrics.fast_p", lambda right, base, mine, p: float(np.mean(np.divide(base, mine) > p))
    )
    assert not cuda_c2.measure(Setting(True, tmp_path)).passed


def judged(got, want, tolerance=1e-4, dtype="float32"):
    return compare({"out": np.array(got)}, {"out": np.array(want)}, {"out": dtype}, {"out": tolerance})


def test_tolerance_is_absolute_and_relative():
    assert judged([100.0099], [100.0]).passed and not judged([100.0102], [100.0]).passed
    assert judged([0.00009], [0.0]).passed and not judged([0.00011], [0.0]).passed
    found = judged([[1.0, 2.0], [3.0, 9.0]], [[1.0, 2.0], [3.0, 4.0]])
    assert not found.passed and found.worst == {"output": "out", "index": [1, 1], "expected": 4.0, "got": 9.0}
    assert found.relative == pytest.approx(5 / 30**0.5)


def test_nan_and_infinity_equal_only_themselves():
    nan, inf = float("nan"), float("inf")
    assert judged([nan, inf, -inf], [nan, inf, -inf]).passed
    for got, want in ((nan, 1.0), (1.0, nan), (inf, 1.0), (inf, -inf), (1.0, inf)):
        assert not judged([got], [want]).passed
    assert not judged([3], [4], 0.0, "int64").passed and judged([4], [4], 0.0, "int64").passed


def test_ulp():
    one = np.array([1.0])
    assert largest_ulp(one + 2.0**-23, one, "float32") == 1.0
    assert largest_ulp(one + 2.0**-9, one, "float16") == 2.0 and largest_ulp(one, one, "int64") == 0.0


def test_medians_leave_the_first_sample_out():
    found = summary([99.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.median == 3.0 and found.repeats == 5 and 1.0 <= found.low <= 3.0 <= found.high <= 5.0


def test_what_is_faster_than_physics_or_than_the_wall_is_not_believed():
    facts = {"l2_bytes": 1000, "copy_bytes_s": 1e6, "matmul_flops": {"float32": 1e6}}
    assert lower_bound(2000, 500, 0.0, facts, "float32") == 2.0
    assert lower_bound(2000, 5000, 9000.0, facts, "float32") == 9.0
    assert believable(Timing(1.7, 1.7, 1.7), 2.0, 10, 10)[0] == "impossible_time"
    assert believable(Timing(1.9, 1.9, 1.9), 2.0, 10, 10)[0] == "passes"
    assert believable(Timing(3, 3, 3), 2.0, 4, 10)[0] == "suspicious_timing"


def test_faster_means_by_more_than_the_intervals():
    old = Timing(2.0, 1.9, 2.1)
    assert faster(Timing(1.5, 1.4, 1.6), old) and not faster(Timing(1.85, 1.7, 1.95), old) and faster(old, None)


def test_occupancy_of_a_hopper_sm():
    assert occupancy(256, 32, 0).share == 1.0
    assert occupancy(256, 128, 0).share == 0.25 and occupancy(256, 128, 0).limit == "registers"
    assert occupancy(128, 32, 100 << 10).blocks == 2 and occupancy(128, 32, 100 << 10).limit == "shared memory"


@pytest.mark.parametrize("wrong", [{"baselines": ("eagr",)}, {"repeats": 1}, {"flush": 0.5}])
def test_bad_timing_options(wrong):
    with pytest.raises(ConfigError):
        TimingOptions(**wrong)


@pytest.mark.parametrize(
    ("index", "eager", "status", "bound"),
    [("float32", 4.0, "impossible_time", 4.0), ("float32", 3.5, "passes", 0.0), ("int64", 4.0, "passes", 0.008)],
)
def test_inputs_that_need_not_be_read_whole_bound_nothing(index, eager, status, bound):
    facts = {"copy_bytes_s": 1e6, "l2_bytes": 4096, "matmul_flops": {"float32": 1e9}}
    inputs = {"table": Spec("float32", (999,)), "index": Spec(index, (1,))}
    full = Full(Signature(inputs, {"out": Spec("float32", (8,))}, {}), {})
    reply = {"samples": {"candidate": [1.0] * 9, "eager": [eager] * 9}, "warm": 1.0, "event_ms": 9.0, "wall_ms": 9.0}
    found = Device._timed(reply, full, (), TimingOptions(resamples=9), facts)
    assert (found.status, round(found.timing.bound, 6)) == (status, bound)
