"""The policies: everything of the list of cheats that tokens or trees can tell, and nothing of what is honest."""

from __future__ import annotations

import pytest

from apps.cuda import policy, python_policy
from apps.cuda.harness import CudaHarness
from apps.cuda.source import extract
from benchmarks.kernels import CHEATING_MODULES, CHEATS, HONEST_MODULES, honest

RUN = {"reuses memory", "zeroes its output"}
"""Modules whose wrongness only a run shows."""


def test_no_generated_kernel_is_refused():
    rows = list(honest(2))
    assert len(rows) >= 30
    for name, _, answer in rows:
        assert policy.violations(extract(answer)[0]) == [], name


@pytest.mark.parametrize("name", HONEST_MODULES)
def test_no_honest_module_is_refused(name):
    assert python_policy.violations(HONEST_MODULES[name]) == []


@pytest.mark.parametrize("name", sorted(set(CHEATING_MODULES) - RUN))
def test_cheating_modules_are_refused_or_remarked(name):
    code = CHEATING_MODULES[name]
    assert python_policy.violations(code) or python_policy.flags(code)


def test_the_line_and_the_way_out_are_named():
    code = extract(CHEATS["counts launches"][1])[0]
    (found,) = policy.violations(code)
    assert found.line == 7 and "scratch buffer" in found.message
    (clock,) = policy.violations(extract(CHEATS["reads the clock"][1])[0])
    assert clock.line == 6 and "clock64" in clock.message
    (written,) = policy.violations(extract(CHEATS["reads the clock by assembly"][1])[0])
    assert "'%clock'" in written.message
    split = 'asm("mov.u64 %0, %%global"\n    "timer;" : "=l"(t));'
    (hidden,) = policy.violations(f"__global__ void k(float* x) {{ long long t; {split} x[0] = t; }}")
    assert hidden.line == 1 and "'%globaltimer'" in hidden.message
    assert policy.violations('__global__ void k(float* x) { asm volatile("// %laneid"); x[0] = 1; }') == []


@pytest.mark.parametrize(
    "code",
    [
        "__constant__ float w[3] = {1, 2, 3};", "constexpr int N = 4;", "typedef float real;", "using real = float;",
        "struct P { float x; __device__ float f() const { return x; } };", "enum Way { A, B };",
        "template <int N> __device__ float f(float a) { return a * N; }",
        "#define MAX(a, b) ((a) > (b) ? (a) : (b))",
        "#ifndef BLOCK\n#define BLOCK 32\n#endif", "#pragma unroll",
        "namespace mine { __device__ int f() { return 1; } }",
        "__device__ float f(float);",
        "__device__ __forceinline__ float g(float a) { static const float k = 2; return a * k; }",
    ],
)  # fmt: skip
def test_ordinary_device_code_is_allowed(code):
    assert policy.violations(code + "\n__global__ void k(float* x) { x[0] = 1; }") == []


@pytest.mark.parametrize(
    "code",
    ["int counter = 0;", "__device__ int c;", "float helper(float a) { return a; }", "extern int errno;",
     "#include <stdio.h>", "#if __CUDA_ARCH__ > 800\n#endif", "#line 3", "#define __global__", "#define if while",
     "__managed__ int m;", "int main() { return 0; }", "auto x = [] { return 1; }();", "// \ud800"],
)  # fmt: skip
def test_what_lives_on_the_host_or_lives_on_is_refused(code):
    assert policy.violations(code + "\n__global__ void k(float* x) { x[0] = 1; }")


def test_lower_precision_is_a_remark_and_assembly_is_for_gpus():
    code = "__global__ void k(float* x) { __half h = __float2half(x[0]); x[0] = __half2float(h); }"
    assert policy.flags(code, {"float32"}) == ("precision_downgrade",) and policy.flags(code, {"float16"}) == ()
    assert policy.unsupported('__global__ void k() { asm volatile("bar.sync 0;"); }') == "inline PTX"
    assert policy.unsupported("__global__ void k() {}") is None


def test_what_needs_no_tool_is_judged_without_one():
    harness = CudaHarness.__new__(CudaHarness)
    assert harness.static("").status == "empty" and harness.static("hello").status == "empty"
    assert harness.static(CHEATS["has no plan"][1]).status == "plan"
    assert harness.static(CHEATS["is very long"][1]).status == "policy"
    assert harness.static(CHEATS["writes zeros"][1]) is None
