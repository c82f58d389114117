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
    assert verdict.passed, told(verdict)
    assert verdict.looks["emulator"] == "clean", told(verdict)
    assert verdict.timing.low <= verdict.timing.median <= verdict.timing.high and not verdict.timing.modelled
    assert verdict.timing.median >= 0.9 * verdict.timing.bound and verdict.speedup() > 0


@pytest.mark.parametrize("name", ["writes zeros", "writes half", "changes its input", "looks behind its output"])
def test_wrong_kernels_fail(harness, name):
    wrong = harness.verify(relu(), CHEATS[name][1])
    assert not wrong.passed, told(wrong)
    right = harness.verify(relu(), candidate(_RIGHT, _PLAN))
    assert right.passed, f"the device is usable after a fault: {told(right)}"


def told(verdict):
    """What a reader needs to understand a verdict that is not the expected one: its looks and what the tools said."""
    return f"{verdict.meaning}\nlooks: {verdict.looks}\nflags: {verdict.flags}\n{verdict.log}"


def changed(body):
    """The right kernel with another body, and inline PTX in it, which the emulator does not run."""
    return candidate(
        _RIGHT.replace("  if (i < n) out[i] = fmaxf(x[i], 0.0f);\n", '  asm volatile("");\n' + body), _PLAN
    )


def test_compute_sanitizer_sees_what_the_emulator_cannot_run(harness):
    if harness.sanitizer is None:
        pytest.skip("compute-sanitizer is absent (PyPI: nvidia-cuda-sanitizer-api)")
    right = harness.verify(relu(), changed("  if (i < n) out[i] = fmaxf(x[i], 0.0f);\n"))
    assert right.passed and right.looks["compute-sanitizer"] == "clean", told(right)
    assert right.looks["emulator"].startswith("inline PTX"), told(right)
    # the last row of 25,600 bytes ends where the driver may put the next buffer
    far = "  float next = x[i + 1];\n  if (i < n) out[i] = next == 1e30f ? next : fmaxf(x[i], 0.0f);\n"
    beyond = harness.verify(relu(), changed(far))
    assert beyond.status == "fault" and beyond.detail.startswith("memcheck: Invalid __global__ read"), told(beyond)
    assert "float next" in beyond.code.splitlines()[beyond.diagnostics[0].line - 1], told(beyond)
    behind = harness.verify(relu(), changed("  if (i < n) out[i] = x[i + n] == 1e30f ? 1.0f : fmaxf(x[i], 0.0f);\n"))
    assert behind.status == "fault", told(behind)
    shared = "  __shared__ float s[256];\n  s[threadIdx.x] = i < n ? x[i] : 0.0f;\n"
    sync, rest = "  __syncthreads();\n", "  float next = s[255 - threadIdx.x];\n" + far.partition("\n")[2] + "\n"
    raced = harness.verify(relu(), changed(shared + rest))
    assert raced.status == "fault" and raced.detail.startswith("racecheck: Race reported"), told(raced)
    ordered = harness.verify(relu(), changed(shared + sync + rest))
    assert ordered.passed and ordered.looks["compute-sanitizer"] == "clean", told(ordered)


def test_modules_run_in_a_process_of_their_own():
    harness = ModuleHarness(level=isolation()[0], trials=3, timing=TimingOptions(repeats=30))
    right = harness.verify(relu(), HONEST_MODULES["Triton"])
    assert right.passed, told(right)
    for name in ("reuses memory", "zeroes its output"):
        wrong = harness.verify(relu(), CHEATING_MODULES[name])
        assert wrong.status in ("mismatch", "fault"), told(wrong)
