"""compute-sanitizer: its reports read, a stand-in for it in the sandbox, and what becomes of a verdict."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from apps.cuda.emulator import Job
from apps.cuda.harness import CudaHarness
from apps.cuda.plan import Signature, Spec, parse_plan, resolve
from apps.cuda.sanitizer import Sanitizer, report
from apps.cuda.source import extract, kernels
from benchmarks.kernels import relu
from tests.apps.cuda.test_cuda_harness import RIGHT, needs_emulation, needs_nvcc

CLEAN = {"memcheck": "========= ERROR SUMMARY: 0 errors\n",
         "racecheck": "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"}  # fmt: skip
BEYOND = """========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 4 bytes
=========     at relu(const float *, float *, int)+0x90 in /box/kernel.cu:6
=========     by thread (99,0,0) in block (3,0,0)
=========     Address 0x7f6510c00190 is out of bounds
=========     and is 1 bytes after the nearest allocation at 0x7f6510c00000 of size 400 bytes
=========     Saved host backtrace up to driver entry point at kernel launch time
=========
========= Invalid __global__ read of size 4 bytes
=========     at relu(const float *, float *, int)+0x90 in /box/kernel.cu:6
=========     by thread (100,0,0) in block (3,0,0)
=========     Address 0x7f6510c00194 is out of bounds
=========
========= ERROR SUMMARY: 2 errors
"""
RACE = """========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at sum(int *)+0x90 in kernel.cu:4
=========     and Read access at sum(int *)+0x100 in kernel.cu:7 [508 hazards]
=========
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""


def test_findings_are_one_line_each_that_stays_the_same():
    found = report("memcheck", BEYOND)
    assert found.status == "fault" and [d.line for d in found.diagnostics] == [6, 6]
    assert found.detail == (
        "memcheck: Invalid __global__ read of size 4 bytes at relu, line 6 by thread (99,0,0) in block (3,0,0) Address "
        "is out of bounds and is 1 bytes after the nearest allocation of size 400 bytes"
    )
    raced = report("racecheck", RACE)
    assert raced.detail == "racecheck: Race reported between Write access at sum, line 4 and Read access at sum, line 7"
    assert raced.status == "fault" and raced.diagnostics[0].line == 4


def test_only_errors_are_findings():
    assert all(report(name, said).status == "clean" for name, said in CLEAN.items())
    warned = RACE.replace("Error:", "Warning:").replace("1 error, 0 warnings", "0 errors, 1 warning")
    assert report("racecheck", warned).status == "clean"
    lost = "========= Internal Sanitizer Error: a launch was not tracked\n========= ERROR SUMMARY: 1 error\n"
    assert report("memcheck", lost).status == "failed" and "not tracked" in report("memcheck", lost).detail
    assert report("memcheck", "========= COMPUTE-SANITIZER\nSegmentation fault\n") is None


@pytest.fixture
def stand_in(monkeypatch):
    """A `compute-sanitizer` first on PATH that prints what it is given for each tool; else it starts the candidate."""
    home = Path(tempfile.mkdtemp(dir="/tmp"))
    home.chmod(0o755)
    (home / "bin").mkdir()
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("PATH", f"{home}/bin:{os.environ['PATH']}")

    def made(**said: str) -> Sanitizer:
        cases = "".join(f"{tool}) cat <<'END'\n{text}END\n;;\n" for tool, text in said.items())
        script = home / "bin" / "compute-sanitizer"
        version = '[ "$1" = --version ] && echo "Version 0.1" && exit\n'
        script.write_text(f'#!/bin/sh\n{version}case "$2" in\n{cases}*) shift 6; "$@";;\nesac\n')
        script.chmod(0o755)
        found = Sanitizer.find(seconds=10)
        assert found is not None and found.path == str(script.resolve())
        return found

    yield made
    shutil.rmtree(home)


def small() -> Job:
    code, plan = extract(RIGHT)
    signature = Signature({"x": Spec("float32", (2, 3))}, {"out": Spec("float32", (2, 3))}, {})
    return Job(resolve(parse_plan(plan), kernels(code), signature), signature, [bytes(24)])


def test_both_tools_run_and_a_tool_that_fails_is_no_verdict(stand_in):
    done = {name: "done\n" + said for name, said in CLEAN.items()}
    assert stand_in(**done).run(b"", small(), racy=True).status == "clean"
    assert stand_in(**done).described == "Version 0.1"
    assert stand_in(memcheck=BEYOND, racecheck=RACE).run(b"", small(), racy=True).detail.startswith("memcheck: Invalid")
    raced = stand_in(memcheck=done["memcheck"], racecheck=RACE)
    assert raced.run(b"", small(), racy=True).status == "fault"
    assert raced.run(b"", small(), racy=False).status == "clean"
    unfinished = stand_in(**CLEAN)
    assert unfinished.run(b"", small(), racy=False).status == "failed"
    crashed = stand_in(memcheck="========= Error: no connection to the target\n")
    assert crashed.run(b"", small(), racy=True).detail == "memcheck: Error: no connection to the target"
    assert crashed.described == "Version 0.1; it failed: memcheck: Error: no connection to the target"


def test_the_candidate_is_started_by_the_driver_alone(stand_in):
    found = stand_in().run(b"no cubin", small(), racy=False)
    assert found.status == "failed" and ("libcuda.so.1" in found.detail or "cuModuleLoadData" in found.detail)


class EmulatedDevice:
    """The emulator in the place of a GPU."""

    name, arch, described = "a GPU", "sm_90", "a GPU, emulated"

    def __init__(self, harness: CudaHarness) -> None:
        self.harness = harness

    def run(self, cubin, jobs):
        code, _ = extract(RIGHT)
        return self.harness.emulator.run(code, kernels(code), jobs)

    def turn(self):
        import contextlib

        return contextlib.nullcontext()

    def close(self):
        pass


@needs_emulation
@needs_nvcc
def test_a_finding_is_a_fault_and_an_absent_tool_is_told(stand_in):
    from apps.cuda.timing import TimingOptions

    harness = CudaHarness(gpu="none", trials=1, timing=TimingOptions(enabled=False))
    harness._device = EmulatedDevice(harness)
    assert "absent" in harness.versions()["compute-sanitizer"]
    assert harness.verify(relu(), RIGHT).passed
    harness.sanitizer = stand_in(memcheck=BEYOND)
    verdict = harness.verify(relu(), RIGHT)
    assert verdict.status == "fault" and verdict.diagnostics[0].line == 6 and "nearest allocation" in verdict.meaning
    harness.sanitizer = stand_in(memcheck="========= Error: no connection\n")
    verdict = harness.verify(relu(), RIGHT)
    assert verdict.passed and "compute-sanitizer: memcheck: Error: no connection" in verdict.log
    assert "it failed" in harness.versions()["compute-sanitizer"]
    harness.close()
