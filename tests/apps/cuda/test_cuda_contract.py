"""The CUDA app keeps the shared contract; the search shows the model its best and its failing kernel."""

from __future__ import annotations

import pytest

from apps.cuda import CudaEvaluator, CudaPipeline
from apps.cuda.recorded import attempts, examples
from apps.cuda.search import KnobGenerator, fastest, search_loop
from apps.cuda.source import candidate
from apps.cuda.verdict import CudaVerdict, Timing
from benchmarks import kernel_space
from benchmarks.kernels import _PLAN, _RIGHT, CHEATS, relu
from core.errors import AppInputError, ConfigError, DataError, GraftError
from core.inference.refine import Candidate, Verdict
from tests.apps.contract import PipelineContract
from tests.apps.cuda.test_cuda_harness import needs_emulation, needs_nvcc

RIGHT, WRONG = candidate(_RIGHT, _PLAN), CHEATS["writes zeros"][1]
SHORT = "class Model: pass\ndef get_inputs(): return []\ndef get_init_inputs(): return []\n"


@needs_emulation
@needs_nvcc
class TestCuda(PipelineContract):
    app = "cuda"
    inputs = (SHORT, SHORT + "# a longer one\n", SHORT + "x = 3\n")
    row = {"reference": SHORT, "spec": "nothing"}
    bad = (
        ("", {}, AppInputError, "reference"),
        ("x = ", {}, AppInputError, "line 1 of the reference"),
        ("x = 1", {}, AppInputError, "does not define Model"),
        (SHORT, {"sises": {}}, AppInputError, "sizes"),
        (SHORT, {"sizes": {"N": -1}}, AppInputError, "sizes"),
        ({"refrence": SHORT}, {}, GraftError, "reference"),
        (SHORT + "# " + "many words " * 800, {}, AppInputError, "too long"),
    )
    golden = (
        [RIGHT, [WRONG, RIGHT], ""],
        [{"reference": relu().reference}] * 3,
        {"pass@1": 50.0, "compile@1": 66.67, "empty": 25.0},
    )


@needs_emulation
@needs_nvcc
def test_the_recorded_search_errs_is_corrected_and_gets_faster():
    pipeline = CudaPipeline.from_pretrained("embedded", trials=2, gpu="none")
    found = pipeline.search(examples()[1], rounds=4)
    statuses = [c.verdict.metrics["status"] for c in found.trace]
    assert statuses == ["compile", "fault", "passes", "passes"] and found.verdict.passed
    assert found.source.strip() == attempts(1)[3].strip() and found.stage == "latency" and found.isolation == "strict"
    assert found.to_dict()["trace"][2]["ms"] > found.to_dict()["trace"][3]["ms"]
    with pytest.raises(GraftError, match="not recorded"):
        pipeline.search(SHORT)


class Table:
    """A harness that knows times."""

    archs, _device = ("sm_90",), None

    def __init__(self, time):
        self.time, self.asked = time, 0

    def verify(self, task, text):
        from apps.cuda.search import knobs

        self.asked += 1
        ms = self.time(knobs(text))
        if ms is None:
            return CudaVerdict("compile", text)
        return CudaVerdict("passes", text, timing=Timing(ms, ms, ms))


def test_the_search_climbs_to_the_best_setting():
    space = {
        "BM": tuple(2**i for i in range(2, 9)),
        "BN": tuple(2**i for i in range(2, 9)),
        "BK": (4, 8, 16, 32),
        "TM": (1, 2, 4, 8),
    }

    def time(k):
        from math import log2

        if k["BM"] // k["TM"] * k["BN"] > 1024:
            return None
        return 1 + abs(log2(k["BM"]) - 6) + abs(log2(k["BN"]) - 5) + abs(log2(k["BK"]) - 3) + abs(log2(k["TM"]) - 2)

    reached = []
    for seed in range(8):
        harness = Table(time)
        loop = search_loop(KnobGenerator([kernel_space.FIRST], space, seed), harness, samples=5, rounds=10, seed=seed)
        events = list(loop.run(relu()))
        best = fastest([e.candidate for e in events if e.kind == "verified"])
        reached.append(1 / best.verdict.artifacts["verdict"].timing.median)
        assert harness.asked <= 50 and events[-1].reason == "all rounds done"
    assert sorted(reached)[4] >= 0.5, reached


def test_a_kernel_replaces_the_best_only_beyond_the_intervals():
    def made(name, low, median, high):
        verdict = CudaVerdict("passes", name, timing=Timing(median, low, high))
        return Candidate(name, Verdict("latency", True, 1.0, artifacts={"verdict": verdict}), 0, (4, 1.0))

    slow, noisy, fast = made("slow", 1.9, 2.0, 2.1), made("noisy", 1.7, 1.95, 2.0), made("fast", 1.4, 1.5, 1.6)
    assert fastest([slow, noisy]).text == "slow" and fastest([slow, noisy, fast]).text == "fast" and fastest([]) is None


@needs_emulation
def test_reports_say_what_was_not_measured():
    report = CudaEvaluator(archs=(), gpu="none", trials=2, k=(1, 2)).score(
        [[RIGHT, WRONG], [RIGHT, RIGHT]], [relu()] * 2
    )
    assert report.value("pass@1") == 75 and report.value("pass@2") == 100
    assert "no GPU timed" in report.metrics["fast_1"].skipped and report.signature["statuses"] == {
        "passes": 3,
        "mismatch": 1,
    }
    assert report.rows[0]["ms_is"] == "estimated"
    import dataclasses

    broken = dataclasses.replace(relu(), reference=relu().reference.replace("torch.relu", "torch.rleu"), id="broken")
    report = CudaEvaluator(archs=(), gpu="none", trials=2).score([RIGHT, RIGHT], [relu(), broken])
    assert report.value("pass@1") == 100 and report.metrics["pass@1"].n == 1 and report.failures[0]["id"] == "broken"


def test_without_tools_metrics_are_skipped_with_the_package_named(monkeypatch):
    def missing(*arguments, **keywords):
        from core.execution import ToolMissing

        raise ToolMissing("no CUDA compiler (PyPI packages: nvidia-cuda-nvcc)")

    monkeypatch.setattr("apps.cuda.compiling.toolchain", missing)
    report = CudaEvaluator().score([RIGHT], [relu()])
    assert "nvidia-cuda-nvcc" in report.metrics["pass@1"].skipped and report.value("empty") == 0


def test_bad_settings_are_errors():
    with pytest.raises(ConfigError, match="unknown metric"):
        CudaEvaluator(["fast_3"])
    with pytest.raises(ConfigError):
        CudaEvaluator(k=(0,))
    with pytest.raises(DataError, match="no samples"):
        CudaEvaluator().score([[]], [relu()])
    with pytest.raises(ConfigError, match="sm_90"):
        CudaPipeline.from_pretrained("embedded", archs=["sm_99"]).harness()
