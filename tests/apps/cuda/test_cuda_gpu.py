"""On a GPU: the same verdicts as in the emulator, times that repeat, and what only a device can show."""

from __future__ import annotations

import pytest

from apps.cuda.device import gpus
from apps.cuda.harness import CudaHarness, Limits
from apps.cuda.modules import ModuleHarness
from apps.cuda.source import candidate
from apps.cuda.taskgen import make
from apps.cuda.timing import TimingOptions
from benchmarks.kernels import _PLAN, _RIGHT, CHEATING_MODULES, CHEATS, HONEST_MODULES, isolation, relu

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(gpus() == 0, reason="no NVIDIA GPU")]


@pytest.fixture(scope="module")
def harness():
    made = CudaHarness(gpu="require", level=isolation()[0], timing=TimingOptions(seconds=0.1), limits=Limits(gpu_s=60))
    yield made
    made.close()


def test_a_right_kernel_is_right_at_full_size_and_timed_beside_eager(harness):
    example = make("softmax", {"log": False, "way": "warp", "block": 256})
    verdict = harness.verify(example, example.solution)
    assert verdict.passed, verdict.meaning
    assert verdict.timing.low <= verdict.timing.median <= verdict.timing.high and not verdict.timing.modelled
    assert verdict.timing.median >= 0.9 * verdict.timing.bound and verdict.speedup() > 0


@pytest.mark.parametrize("name", ["writes zeros", "writes half", "changes its input", "looks behind its output"])
def test_wrong_kernels_fail(harness, name):
    assert not harness.verify(relu(), CHEATS[name][1]).passed
    assert harness.verify(relu(), candidate(_RIGHT, _PLAN)).passed, "the device is usable after a fault"


def test_compute_sanitizer_sees_what_the_emulator_cannot_run(harness):
    if harness.sanitizer is None:
        pytest.skip("compute-sanitizer is absent (PyPI: nvidia-cuda-sanitizer-api)")
    ptx = '  asm volatile("");\n'
    right = candidate(_RIGHT.replace("  if (i < n)", ptx + "  if (i < n)"), _PLAN)
    assert harness.verify(relu(), right).passed
    assert "it failed" not in harness.versions()["compute-sanitizer"]
    far = ptx + "  float next = x[i + 1];\n  if (i < n) out[i] = next == 1e30f ? next : fmaxf(x[i], 0.0f);\n"
    beyond = harness.verify(relu(), candidate(_RIGHT.replace("  if (i < n) out[i] = fmaxf(x[i], 0.0f);\n", far), _PLAN))
    assert beyond.status == "fault" and beyond.detail.startswith("memcheck: Invalid __global__ read"), beyond.meaning
    assert "float next" in beyond.code.splitlines()[beyond.diagnostics[0].line - 1]
    shared = "  __shared__ float s[256];\n  s[threadIdx.x] = i < n ? x[i] : 0.0f;\n" + ptx
    shared += "  float next = s[255 - threadIdx.x];\n  if (i < n) out[i] = next == 1e30f ? next : fmaxf(x[i], 0.0f);\n"
    raced = harness.verify(
        relu(), candidate(_RIGHT.replace("  if (i < n) out[i] = fmaxf(x[i], 0.0f);\n", shared), _PLAN)
    )
    assert raced.status == "fault" and raced.detail.startswith("racecheck: Race reported"), raced.meaning


def test_modules_run_in_a_process_of_their_own():
    harness = ModuleHarness(level=isolation()[0], trials=3, timing=TimingOptions(repeats=30))
    assert harness.verify(relu(), HONEST_MODULES["Triton"]).passed
    for name in ("reuses memory", "zeroes its output"):
        assert harness.verify(relu(), CHEATING_MODULES[name]).status in ("mismatch", "fault")
