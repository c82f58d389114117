"""Kernels in several files: one unit of them, lines of the right file, and an agent that writes them one by one."""

from __future__ import annotations

import pytest

from apps.cuda.files import KernelsEvaluator, put_together
from apps.cuda.harness import CudaHarness
from apps.cuda.source import extract
from benchmarks.kernels import relu
from core.agents import ControlUnit, FileStore, InstructionRegistry
from core.agents.models import Recorded
from core.config.load import parse_yaml
from core.errors import DataError
from recipes.catalogue import ROOT
from tests.apps.cuda.test_cuda_harness import RIGHT, needs_emulation, needs_nvcc

HEADER = "#pragma once\n__device__ float positive(float x) {\n  return fmaxf(x, 0.0f);\n}\n"
KERNEL = (
    '#include <cmath>\n#include "device/positive.cuh"\n__global__ void k(const float* x, float* out, int n) {\n'
    "  int i = blockIdx.x * blockDim.x + threadIdx.x;\n  if (i < n) out[i] = positive(x[i]);\n}\n"
)
PLAN = extract(RIGHT)[1]


@pytest.fixture(scope="module")
def evaluator():
    harness = CudaHarness(archs=(), gpu="none", trials=2)
    yield KernelsEvaluator(reference=relu().reference, harness=harness)
    harness.close()


def test_a_unit_holds_every_file_once_and_knows_its_lines():
    files = {"a.cu": KERNEL, "b.cu": KERNEL.replace(" k(", " k2("), "device/positive.cuh": HEADER, "notes.md": "```"}
    code, places, failures = put_together(files)
    assert not failures and code.count("positive(float x)") == 1 and "pragma" not in code and '"device' not in code
    lines = code.split("\n")
    for number, (path, line) in enumerate(places):
        original = files[path].split("\n")[line - 1]
        assert lines[number] == ("" if "pragma" in original or '"device' in original else original)
    assert [path for path, _ in places][:4] == ["device/positive.cuh"] * 4
    around = {"a.cuh": '#include "b.cuh"\n', "b.cuh": '#include "a.cuh"\n'}
    assert put_together(around)[0].strip() == "" and not put_together(around)[2]
    assert put_together({"a.cu": '#include "b.cuh"\n'})[2] == ["a.cu:1: there is no file 'b.cuh' yet"]
    assert put_together({"a.cu": "\n```\n"})[2] == ["a.cu:2: a fence (```) is no C++; write the file alone"]


@needs_emulation
def test_the_whole_is_judged_when_plan_and_kernels_are_there(evaluator):
    header = {"device/positive.cuh": HEADER}
    assert evaluator.evaluate({}).passed and evaluator.evaluate(header).passed
    assert evaluator.finished(header).failures == ("there is no plan.json yet",)
    early = {**header, "plan.json": PLAN}
    assert evaluator.evaluate(early).passed and evaluator.finished(early).failures == ("there is no kernel 'k' yet",)
    assert evaluator.finished({**early, "k.cu": KERNEL}).passed
    wrong = {**early, "k.cu": KERNEL, "device/positive.cuh": HEADER.replace("fmaxf", "fminf")}
    (told,) = evaluator.evaluate(wrong).failures
    assert "differs from the reference" in told
    beyond = {**early, "k.cu": "\n\n" + KERNEL.replace("x[i])", "x[i + 1])")}
    (told,) = evaluator.evaluate(beyond).failures
    assert told.startswith("k.cu:7: thread ")


@needs_emulation
def test_failures_name_the_file_and_its_line(evaluator):
    header = HEADER.replace("  return", '  printf("x");\n  return')
    (told,) = evaluator.evaluate({"k.cu": KERNEL, "device/positive.cuh": header}).failures
    assert told == "device/positive.cuh:3: 'printf' is not allowed: kernels do not print"
    (told,) = evaluator.evaluate({"plan.json": "{"}).failures
    assert told.startswith("plan.json: ")
    with pytest.raises(DataError, match="does not define"):
        KernelsEvaluator(reference="x = 1", harness=evaluator.harness)


@needs_nvcc
def test_every_step_must_compile(evaluator):
    compiling = KernelsEvaluator(reference=relu().reference, harness=CudaHarness(gpu="none"))
    files = {"device/positive.cuh": HEADER, "k.cu": KERNEL.replace("positive(x[i])", "negative(x[i])")}
    (told,) = compiling.evaluate(files).failures
    assert told.startswith("k.cu:5: ") and '"negative"' in told


@needs_emulation
@needs_nvcc
def test_a_scripted_model_builds_attention_file_by_file(tmp_path):
    place = ROOT / "cuda" / "attention"
    program, _ = parse_yaml((place / "program.yaml").read_text(encoding="utf-8"), "program.yaml")
    answers, _ = parse_yaml((place / "recorded.yaml").read_text(encoding="utf-8"), "recorded.yaml")
    harness = CudaHarness(gpu="none", trials=2)
    unit = ControlUnit(
        Recorded(answers["steps"], answers["summary"]), InstructionRegistry(program["instructions"]),
        FileStore(tmp_path), KernelsEvaluator(harness=harness, **program["with"]), task=program["task"],
    )  # fmt: skip
    told: list[str] = []
    result = unit.run(told.append)
    harness.close()
    assert result.status == "done" and list(result.files) == [
        "mix.cu", "plan.json", "reduce.cuh", "scores.cu", "softmax.cu",
    ]  # fmt: skip
    assert any("reduce.cuh:13: expected" in line for line in told)
    assert any("write plan.json: ok. Verdict: differs from the reference" in line for line in told)
