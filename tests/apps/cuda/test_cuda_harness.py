"""The verdict from end to end: the real compiler, the real reference, every status, and what is kept."""

from __future__ import annotations

import dataclasses

import pytest

from apps.cuda.compiling import KernelCompiler, parse_errors, parse_usage, toolchain
from apps.cuda.example import CudaExample
from apps.cuda.harness import CudaHarness, Limits
from apps.cuda.methods.fsr import score_of
from apps.cuda.modules import ModuleHarness
from apps.cuda.oracle import InvalidProblem, Oracle, start_worker
from apps.cuda.source import candidate
from apps.cuda.taskgen import make
from apps.cuda.verifier import CudaVerifier, feedback
from benchmarks.kernels import _PLAN, _RIGHT, CHEATING_MODULES, CHEATS, HONEST_MODULES, mutants, relu
from core.errors import ConfigError, GraftError
from core.execution import ToolMissing
from core.execution.tools import has


def cannot_emulate() -> str:
    """Why references or kernels cannot run here; nothing when they can."""
    if not has("g++"):
        return "g++ is absent (Debian package: g++)"
    try:
        start_worker().close()
    except GraftError as error:  # an environment that the sandbox's user cannot read
        return error.what
    return ""


CANNOT_EMULATE = cannot_emulate()
needs_emulation = pytest.mark.skipif(bool(CANNOT_EMULATE), reason=CANNOT_EMULATE)


def compiler_there() -> bool:
    try:
        toolchain()
    except ToolMissing:
        return False
    return True


needs_nvcc = pytest.mark.skipif(not compiler_there(), reason="no nvcc and no NVRTC (PyPI: nvidia-cuda-nvcc)")
RIGHT = candidate(_RIGHT, _PLAN)


@pytest.fixture(scope="module")
def harness():
    made = CudaHarness(archs=(), gpu="none", limits=Limits(function_s=3))
    yield made
    made.close()


@needs_emulation
def test_a_right_kernel_passes_on_all_its_shapes(harness):
    verdict = harness.verify(relu(), RIGHT)
    assert verdict.passed and verdict.score == 1 and len(verdict.trials) == 7 and verdict.engine == "emulator"
    shapes = [t.shapes for t in verdict.trials]
    assert "x [63, 99]" in shapes and "x [1, 1]" in shapes and any("1531" in s for s in shapes)
    assert verdict.timing.modelled and verdict.to_dict()["stage"] == "latency" and verdict.speedup() is None


@needs_emulation
@pytest.mark.parametrize(
    ("name", "status"),
    [("writes zeros", "mismatch"), ("writes half", "mismatch"), ("changes its input", "fault"),
     ("never ends", "timeout"),
     ("knows one shape", "fault"), ("copies its input, which is never negative", "mismatch")],
)  # fmt: skip
def test_wrong_kernels_have_their_status(harness, name, status):
    verdict = harness.verify(relu(), CHEATS[name][1])
    assert verdict.status == status and not verdict.correct and verdict.stage == "function"


@needs_emulation
def test_a_few_mutants_and_feedback(harness):
    for mutant in list(mutants())[17:20]:
        verdict = harness.verify(mutant.example, mutant.answer)
        assert not verdict.passed, mutant.name
        assert "Verdict: " in feedback(verdict)
    verifier = CudaVerifier(harness)
    right = verifier.verify(relu(), RIGHT)
    assert right.passed and 0 < right.score < 1 and "It is right." in right.feedback and "sectors" in right.feedback
    assert verifier.verify(relu(), "no kernel", partial=True).score == 0.5


@needs_nvcc
def test_machine_code_resources_and_errors_with_lines(tmp_path):
    compiler = KernelCompiler()
    code = "__global__ void k(float* x) {\n  __shared__ float s[64];\n  s[threadIdx.x] = x[0];\n"
    code += "  __syncthreads();\n  x[1] = s[3];\n}\n"
    made = compiler.compile(code)
    assert made.cubin and made.cubin[:4] == b"\x7fELF"
    (used,) = made.usage
    assert used.kernel == "k" and used.arch == "sm_90" and used.shared >= 256 and used.registers > 0
    wrong = compiler.compile(code.replace("x[0]", "y[0]"))
    assert wrong.cubin is None and wrong.diagnostics[0].line == 3 and '"y"' in wrong.diagnostics[0].message
    large = compiler.compile(code.replace("s[64]", "s[64000]"))
    assert large.cubin is None and "shared" in large.diagnostics[0].message
    with pytest.raises(ConfigError, match="sm_90"):
        compiler.compile(code, "sm_91")


def test_nvrtc_does_as_well():
    try:
        compiler = KernelCompiler(compiler="nvrtc")
    except ToolMissing as error:
        pytest.skip(error.what)
    made = compiler.compile("#include <stdint.h>\n__global__ void k(float* x, int64_t n) {\n  x[n] = -INFINITY;\n}\n")
    assert made.cubin and made.usage[0].kernel == "k"
    assert compiler.compile("__global__ void k(float* x) {\n  x[0] = y;\n}\n").diagnostics[0].line == 2


def test_logs_are_read():
    log = (
        "kernel.cu(3): error: identifier \"y\" is undefined\nptxas info    : Compiling entry function 'a' for 'sm_80'\n"
        "    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads\n"
        "ptxas info    : Used 40 registers, used 1 barriers, 1024 bytes smem, 372 bytes cmem[0]\n"
    )
    assert [str(d) for d in parse_errors(log)] == ['line 3: identifier "y" is undefined']
    (used,) = parse_usage(log)
    assert (used.registers, used.spills, used.stack, used.shared, used.constant) == (40, 12, 16, 1024, 372)


def test_a_missing_compiler_names_its_package(monkeypatch):
    toolchain.cache_clear()
    monkeypatch.setattr("apps.cuda.compiling.wheels", lambda: [])
    monkeypatch.setattr("apps.cuda.compiling.glob.glob", lambda pattern: [])
    monkeypatch.setattr("apps.cuda.compiling.shutil.which", lambda name: None)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    try:
        with pytest.raises(ToolMissing, match="nvidia-cuda-nvcc"):
            toolchain()
    finally:
        toolchain.cache_clear()


@needs_emulation
def test_compile_errors_come_before_any_run():
    if not compiler_there():
        pytest.skip("no nvcc and no NVRTC (PyPI: nvidia-cuda-nvcc)")
    harness = CudaHarness(gpu="none")
    verdict = harness.verify(relu(), RIGHT.replace("fmaxf", "fmaximum"))
    assert verdict.status == "compile" and verdict.diagnostics[0].line == 6 and "fmaximum" in feedback(verdict)
    assert not verdict.trials and not verdict.compiled


@needs_emulation
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("    return [torch.rand(rows, nowhere)]", "get_inputs of the reference, line"),
        ("    return [torch.rand(0, 3)]", "x"),
    ],
)
def test_a_reference_that_fails_is_an_invalid_problem(harness, change, said):
    source = relu().reference
    line = next(row for row in source.splitlines() if "torch.rand(" in row)
    verdict = harness.verify(CudaExample(source.replace(line, change)), RIGHT)
    if said == "x":
        assert not verdict.passed
    else:
        assert verdict.status == "invalid_problem" and said in verdict.detail


@needs_emulation
def test_non_ascii_only_in_comments(harness):
    assert harness.verify(relu(), RIGHT.replace("__global__", "// Größe\n__global__")).passed
    assert harness.verify(relu(), RIGHT.replace("fmaxf", "fmaxƒ")).status == "policy"


@needs_emulation
def test_integer_inputs_keep_their_type_and_weights_are_given(harness):
    example = make("gather", {"block": 64})
    verdict = harness.verify(example, example.solution)
    assert verdict.passed and "table_weight" in verdict.trials[0].shapes
    assert harness.verify(example, example.solution.replace("long long* index", "int* index")).status == "plan"


def test_cases_are_repeatable_varied_and_small():
    oracle = Oracle(trials=6)
    first = oracle.cases(relu())
    assert [c.shapes for c in first][:2] == ["x [64, 100]"] * 2 and first[0].inputs != first[1].inputs
    import numpy as np

    signed = np.frombuffer(first[1].inputs["x"], np.float32)
    assert signed.min() < -0.9 and np.frombuffer(first[3].inputs["x"], np.float32).max() <= 1
    assert Oracle(trials=6).cases(relu())[2].inputs == first[2].inputs
    broken = dataclasses.replace(relu(), reference=relu().reference.replace("torch.relu(x)", "torch.rleu(x)"))
    with pytest.raises(InvalidProblem, match="forward of the reference"):
        oracle.cases(broken)
    oracle.close()


def test_modules_are_judged_by_policy_and_left_to_a_gpu_where_they_must():
    harness = ModuleHarness(gpu="none", trials=3)
    assert harness.verify(relu(), HONEST_MODULES["inline CUDA"]).status == "unsupported_on_cpu"
    assert harness.verify(relu(), f"```python\n{CHEATING_MODULES['imports the system']}```").status == "policy"
    assert harness.verify(relu(), "").status == "empty"


def test_the_training_score_grows_with_the_furthest_feature(harness):
    from apps.cuda.verdict import CudaVerdict, Timing, Trial

    half = (Trial(True), Trial(False))
    rising = [
        CudaVerdict("empty"), CudaVerdict("policy"), CudaVerdict("compile"), CudaVerdict("fault"),
        CudaVerdict("mismatch", trials=half), CudaVerdict("passes", timing=Timing(4, 4, 4)),
        CudaVerdict("passes", timing=Timing(2, 2, 2)),
    ]  # fmt: skip
    own = CudaVerdict("passes", timing=Timing(2, 2, 2))
    scores = [score_of(v, own if v.passed else None) for v in rising]
    assert scores == sorted(scores) and len(set(scores)) == len(scores)
    assert scores[0] == 0 and scores[-2] == 0.8 and scores[-1] == 1
    slow = score_of(CudaVerdict("passes", timing=Timing(1e9, 1e9, 1e9)), own)
    nearly = score_of(CudaVerdict("mismatch", trials=(Trial(True),) * 99 + (Trial(False),)))
    assert slow - nearly > 0.2 and scores[3] - scores[2] > 0.2, "each feature counts at the default gap"


def test_an_unknown_setting_of_the_verifier_names_the_nearest():
    import inspect

    from apps.cuda.methods.fsr import HARNESS, Scorer
    from core.config.schema import VerifyConfig

    assert set(HARNESS) <= set(inspect.signature(CudaHarness).parameters)
    with pytest.raises(ConfigError, match="did you mean 'trials'"):
        Scorer([], VerifyConfig(with_={"trial": 3}))
    with pytest.raises(ConfigError, match="unknown verifier"):
        Scorer([], VerifyConfig(name="rtl"))


def test_what_runs_at_a_gpu_can_be_loaded_without_this_checkout():
    import subprocess
    import sys

    from apps.cuda.oracle import bundled

    source = bundled("cases", "launching", "gpu", exports="bench, facts, limits, measure, prepare, run_jobs")
    done = subprocess.run(
        [sys.executable, "-c", source + "print(run_jobs.__name__)"], cwd="/", capture_output=True, text=True
    )
    assert done.stdout == "run_jobs\n", done.stderr
