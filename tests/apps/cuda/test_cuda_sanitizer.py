"""compute-sanitizer: its reports read, a stand-in for it in the sandbox, and what becomes of a verdict."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from apps.cuda.device import job_row
from apps.cuda.emulator import Job
from apps.cuda.harness import CudaHarness
from apps.cuda.inside import sanitized
from apps.cuda.inside.sanitized import APART
from apps.cuda.plan import Signature, Spec, parse_plan, resolve
from apps.cuda.sanitizer import Sanitized, Sanitizer, report
from apps.cuda.source import extract, kernels
from benchmarks.kernels import relu
from core.execution import Answer, ExecPool
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
CUDA_12 = """========= COMPUTE-SANITIZER
input of 25600 bytes at 0x7f2d55e00000
========= Invalid __global__ write of size 4 bytes
=========     at 0xb0 in kernel.cu:4:k
=========     by thread (255,0,0) in block (24,0,0)
=========     Address 0x7f2d55e06400 is out of bounds
=========     and is 1 bytes after the nearest allocation at 0x7f2d55e00000 of size 25600 bytes
=========
========= ERROR SUMMARY: 157 errors
========= ERROR SUMMARY: 57 errors were not printed. Use --print-limit option to adjust the number of printed errors
"""
CUDA_13 = """========= COMPUTE-SANITIZER
output of 1048576 bytes at 0x710fdc800000
========= Invalid __global__ read of size 4 bytes
=========     at k+0xb0 in kernel.cu:4
=========     by thread (0,0,0) in block (0,0,0)
=========     Address 0x87654320 is out of bounds
=========     and is 124,310,666,263,776 bytes before the nearest allocation at 0x710fdc800000 of size 1,048,576 bytes
=========         Device Frame: k+0x30 in kernel.cu:9
=========
========= Target application returned an error
========= ERROR SUMMARY: 1,024 errors
"""
SHARED = """========= COMPUTE-SANITIZER
========= Invalid __shared__ read of size 4 bytes
=========     at k+0x90 in kernel.cu:5
=========     by thread (64,0,0) in block (0,0,0)
=========     Address 0x100 is out of bounds
=========
========= ERROR SUMMARY: 1 error
"""
TWO_RACES = """========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at k+0xb0 in kernel.cu:4
=========     and Read access at k+0xe0 in kernel.cu:6 [25,600 hazards]
=========
========= Warning: Race reported between Write access at k+0xb0 in kernel.cu:4
=========     and Read access at k+0x120 in kernel.cu:8 [4 hazards]
=========
done
========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)
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


def test_reports_of_several_versions_are_read():
    old = report("memcheck", CUDA_12)
    assert old.status == "fault" and old.diagnostics[0].line == 4 and len(old.diagnostics) == 1
    assert old.detail.startswith("memcheck: Invalid __global__ write of size 4 bytes, line 4 by thread (255,0,0)")
    new = report("memcheck", CUDA_13)
    assert new.status == "fault" and new.diagnostics[0].line == 4
    assert new.detail.startswith("memcheck: Invalid __global__ read of size 4 bytes at k, line 4 by thread (0,0,0)")
    assert new.detail.endswith("bytes before the nearest allocation of size 1,048,576 bytes")
    shared = report("memcheck", SHARED)
    assert shared.detail.startswith("memcheck: Invalid __shared__ read") and shared.diagnostics[0].line == 5
    races = report("racecheck", TWO_RACES)
    assert races.status == "fault" and [d.line for d in races.diagnostics] == [4], "a warning is no finding"
    assert races.detail == "racecheck: Race reported between Write access at k, line 4 and Read access at k, line 6"


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
        start = 'echo "options $*" >&2; while [ "${1#/}" = "$1" ]; do shift; done; "$@"'
        script.write_text(f'#!/bin/sh\n{version}case "$2" in\n{cases}*) {start};;\nesac\n')
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
    clean = stand_in(**done).run(b"", [small()], racy=True)
    assert clean.status == "clean"
    assert all(f"{name}:\n{said.strip()}" in clean.said for name, said in done.items())
    assert stand_in(**done).described == "Version 0.1"
    both = stand_in(memcheck=BEYOND, racecheck=RACE).run(b"", [small()], racy=True)
    assert both.detail.startswith("memcheck: Invalid") and "nearest allocation" in both.said
    raced = stand_in(memcheck=done["memcheck"], racecheck=RACE)
    assert raced.run(b"", [small()], racy=True).status == "fault"
    assert raced.run(b"", [small()], racy=False).status == "clean"
    unfinished = stand_in(**CLEAN)
    assert unfinished.run(b"", [small()], racy=False).status == "failed"
    crashed = stand_in(memcheck="========= Error: no connection to the target\n")
    assert crashed.run(b"", [small()], racy=True).detail == "memcheck: Error: no connection to the target"
    assert crashed.described == "Version 0.1; it failed: memcheck: Error: no connection to the target"
    half = stand_in(memcheck="========= Error: no connection to the target\n", racecheck=RACE)
    assert half.run(b"", [small()], racy=True).status == "fault", "what racecheck finds stands without memcheck"


def test_the_candidate_is_started_by_the_driver_alone(stand_in):
    found = stand_in().run(b"no cubin", [small()], racy=True)
    assert found.status == "failed" and ("libcuda.so.1" in found.detail or "cuModuleLoadData" in found.detail)
    memcheck, racecheck = re.findall(r"options (.*)", found.said)
    assert f"--padding {APART} " in memcheck and "--padding" not in racecheck


DRIVER = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#define MOST 20000
static struct { uint64_t at, size; } living[MOST];
static int count;
static uint64_t step(uint64_t size) { return (size + 511) / 512 * 512; }
int cuMemAlloc_v2(uint64_t* place, size_t size) {  /* first fit, back to back */
  uint64_t at = 0x7f0000000000;
  for (int i = 0; i <= count; ++i) {
    if (i == count || living[i].at >= at + step(size)) {
      for (int j = count++; j > i; --j) living[j] = living[j - 1];
      living[i].at = *place = at;
      living[i].size = size;
      return 0;
    }
    at = living[i].at + step(living[i].size);
  }
  return 2;
}
int cuMemFree_v2(uint64_t at) {
  for (int i = 0; i < count; ++i)
    if (living[i].at == at) {
      for (--count; i < count; ++i) living[i] = living[i + 1];
      return 0;
    }
  return 1;
}
int cuLaunchKernel(void* f, unsigned a, unsigned b, unsigned c, unsigned d, unsigned e, unsigned g, unsigned shared,
                   void* stream, void** args, void** extra) {
  printf("launch %u of %u with %llx", a, d, (unsigned long long)*(uint64_t*)args[0]);
  for (int i = 0; i < count; ++i)
    printf(" %llx:%llu", (unsigned long long)living[i].at, (unsigned long long)living[i].size);
  printf("\n");
  fflush(stdout);
  return 0;
}
int cuInit(unsigned f) { return 0; }
int cuDeviceGet(int* d, int n) { return *d = 0; }
int cuDevicePrimaryCtxRetain(void** c, int d) { return 0; }
int cuCtxSetCurrent(void* c) { return 0; }
int cuModuleLoadData(void** m, const void* data) { return 0; }
int cuModuleGetFunction(void** f, void* m, const char* name) { return 0; }
int cuMemcpyHtoD_v2(uint64_t at, const void* data, size_t size) { return 0; }
int cuMemsetD8_v2(uint64_t at, unsigned char value, size_t size) { return 0; }
int cuCtxSynchronize(void) { return 0; }
int cuGetErrorString(int code, const char** said) { *said = "no memory"; return 0; }
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed (Debian package: gcc)")
def test_no_buffer_lies_near_another_whatever_the_driver_offers(tmp_path):
    (tmp_path / "cuda.c").write_text(DRIVER)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", "libcuda.so.1", "cuda.c"], cwd=tmp_path, check=True)
    code, plan = extract(RIGHT)
    sizes = [(64, 100), (63, 99), (1, 1)]  # 25,600 bytes are 50 steps of the driver, so that the next begins at its end
    jobs = []
    for shape in sizes:
        signature = Signature({"x": Spec("float32", shape)}, {"out": Spec("float32", shape)}, {})
        number = 4 * shape[0] * shape[1]
        jobs.append(job_row(Job(resolve(parse_plan(plan), kernels(code), signature), signature, [bytes(number)])))
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    (tmp_path / "kernel.cubin").write_bytes(b"")
    done = subprocess.run(
        [sys.executable, "-I", "-S", sanitized.__file__, "jobs.json", "kernel.cubin"], cwd=tmp_path, text=True,
        env={"LD_LIBRARY_PATH": str(tmp_path)}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stderr
    assert "input of 25600 bytes at 0x7f0000000000" in done.stdout
    launches = re.findall(r"^launch (\d+) of 256 with (\w+) (.*)$", done.stdout, re.M)
    assert [int(grid) for grid, _, _ in launches] == [25, 25, 1]
    for number, (_, first, rows) in enumerate(launches):
        places = [(int(at, 16), int(size)) for at, size in (row.split(":") for row in rows.split())]
        assert sorted(size for _, size in places) == sorted(4 * m * n for m, n in 2 * sizes[: number + 1])
        assert all(b - a - size >= APART for (a, size), (b, _) in itertools.pairwise(places))
        assert int(first, 16) in dict(places), "the kernel gets one of them"


class EmulatedDevice:
    """The emulator in the place of a GPU."""

    name, arch, described = "a GPU", "sm_90", "a GPU, emulated"

    def __init__(self, harness: CudaHarness | None = None) -> None:
        self.harness = harness

    def run(self, cubin, jobs):
        code, _ = extract(RIGHT)
        return self.harness.emulator.run(code, kernels(code), jobs)

    def beside(self):
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
    verdict = harness.verify(relu(), RIGHT)
    assert verdict.passed and verdict.looks["emulator"] == "clean"
    assert verdict.meaning == "passes; compute-sanitizer did not look: absent (PyPI: nvidia-cuda-sanitizer-api)"
    harness.sanitizer = stand_in(memcheck=BEYOND)
    verdict = harness.verify(relu(), RIGHT)
    assert verdict.status == "fault" and verdict.diagnostics[0].line == 6 and "nearest allocation" in verdict.meaning
    assert "0x7f6510c00190" in verdict.log, "the tool's own words"
    harness.sanitizer = stand_in(memcheck="========= Error: no connection\n")
    verdict = harness.verify(relu(), RIGHT)
    assert (
        verdict.passed and verdict.meaning == "passes; compute-sanitizer did not look: memcheck: Error: no connection"
    )
    assert "========= Error: no connection" in verdict.log and verdict.to_dict()["looks"] == verdict.looks
    assert "it failed" in harness.versions()["compute-sanitizer"]
    harness.sanitizer = stand_in(memcheck="done\n" + CLEAN["memcheck"])
    verdict = harness.verify(relu(), RIGHT)
    assert verdict.passed and verdict.meaning == "passes"
    assert verdict.looks == {"emulator": "clean", "compute-sanitizer": "clean"}
    harness.close()


@needs_emulation
@needs_nvcc
def test_a_gpu_compiles_what_it_runs_and_an_emulator_that_cannot_look_is_told(stand_in, monkeypatch):
    from apps.cuda import device
    from apps.cuda.timing import TimingOptions

    made = EmulatedDevice()
    monkeypatch.setattr(device.Device, "find", lambda *a, **k: made)
    harness = CudaHarness(archs=(), trials=3, timing=TimingOptions(enabled=False))
    made.harness = harness
    assert harness.archs == ("sm_90",) and CudaHarness(archs=("sm_90a",)).archs == ("sm_90a",)
    assert CudaHarness(archs=("sm_80",)).archs == ("sm_80", "sm_90")
    assert harness.verify(relu(), RIGHT.replace("fmaxf", "fmaxg")).status == "compile"
    harness.sanitizer = stand_in(memcheck="done\n" + CLEAN["memcheck"])
    verdict = harness.verify(relu(), RIGHT.replace("  int i", '  asm volatile("");\n  int i'))
    assert verdict.passed and verdict.looks == {
        "emulator": "inline PTX cannot be run here", "compute-sanitizer": "clean",
    }  # fmt: skip
    assert verdict.meaning == "passes; emulator did not look: inline PTX cannot be run here"
    seen = []
    harness.sanitizer.run = lambda cubin, jobs, racy: seen.append((cubin[:4], jobs)) or Sanitized("clean")
    harness.verify(relu(), RIGHT)
    ((cubin, jobs),) = seen
    assert cubin == b"\x7fELF" and [j.signature.inputs["x"].shape for j in jobs] == [(64, 100), (63, 99)]
    harness.close()


def test_programs_beside_the_device_are_few_and_never_while_somebody_has_a_turn(monkeypatch):
    from apps.cuda import device

    class Idle:
        def call(self, function, *arguments):
            return Answer("ok", {"name": "none"})

    monkeypatch.setattr(device, "gpu_worker", lambda level, seconds: Idle())
    made = device.Device("weak", 1.0)
    running, most, together = [], [], []

    def look(number):
        with made.beside():
            running.append(number)
            most.append(len(running))
            time.sleep(0.02)
            running.remove(number)

    def alone(number):
        with made.turn():
            together.extend(running)
            time.sleep(0.005)
            together.extend(running)

    with ExecPool(12) as pool:
        list(pool.imap(lambda n: (alone if n % 3 == 0 else look)(n), range(36)))
    assert max(most) in (2, 3, device.MOST_BESIDE) and together == []


def test_a_reference_over_which_the_process_ended_is_prepared_again(monkeypatch):
    from apps.cuda import device

    answers = [
        Answer("ok", {"name": "none"}),
        Answer("crashed", None, "gone"),
        Answer("ok", {"error": "no", "where": "x"}),
    ]

    class Failing:
        def call(self, function, *arguments):
            return answers.pop(0)

        def close(self):
            pass

    monkeypatch.setattr(device, "gpu_worker", lambda level, seconds: Failing())
    made = device.Device("weak", 1.0)
    assert made.prepare(relu(), 1, 10) == "crashed: gone"
    assert made.prepare(relu(), 1, 10) == "x of the reference: no" == made.prepare(relu(), 1, 10)
