# ruff: noqa: E501
"""Kernels for the bars of the CUDA app: right ones, wrong ones made of them, and answers that try to cheat.

None of the cheats may be accepted without a remark, and none of the mutants may pass anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from apps.cuda.example import CudaExample
from apps.cuda.source import candidate
from apps.cuda.taskgen import FAMILIES, make
from apps.cuda.taskgen.family import reference


def honest(each: int = 3) -> Iterator[tuple[str, CudaExample, str]]:
    """(name, example, answer) of right kernels: `each` members of every family, spread over its parameters."""
    for name, family in FAMILIES.items():
        members = list(family.members())
        chosen = {round(i * (len(members) - 1) / max(1, each - 1)) for i in range(each)}
        for index in sorted(chosen):
            example = make(name, members[index])
            yield example.id or name, example, example.solution or ""


@dataclass(frozen=True)
class Mutant:
    """A right kernel with one change that makes it wrong. `race` are those that a GPU may get right by luck."""

    name: str
    example: CudaExample
    answer: str
    race: bool = False


# (family, parameters, what is replaced, by what, whether it is a race)
_CHANGES: tuple[tuple[str, dict, str, str, bool], ...] = (
    ("unary", {"op": "relu", "walk": "one", "block": 128}, "if (i < n) out", "out", False),
    ("unary", {"op": "relu", "walk": "one", "block": 128}, "fmaxf(v, 0.0f)", "v", False),
    ("unary", {"op": "gelu", "walk": "stride", "block": 256}, "i < n; i += gridDim.x * blockDim.x", "i < n - 1; i += gridDim.x * blockDim.x", False),
    ("unary", {"op": "elu", "walk": "vector", "block": 256}, "i + 3 < n", "i < n", False),
    ("unary", {"op": "silu", "walk": "vector", "block": 256}, "for (; i < n; ++i) out[i] = apply(x[i]);", "", False),
    ("unary", {"op": "leaky_relu", "walk": "one", "block": 256}, "0.1f * v", "0.01f * v", False),
    ("unary", {"op": "sigmoid", "walk": "one", "block": 256}, "expf(-v)", "expf(v)", False),
    ("unary", {"op": "tanh", "walk": "stride", "block": 512}, "tanhf(v)", "fminf(fmaxf(v, -1.0f), 1.0f)", False),
    ("binary", {"op": "add", "block": 128, "each": 2}, "a + b", "a - b", False),
    ("binary", {"op": "mul", "block": 128, "each": 4}, "k < 4", "k < 3", False),
    ("binary", {"op": "max", "block": 256, "each": 1}, "y[i]", "x[i]", False),
    ("binary", {"op": "mse", "block": 256, "each": 2}, "if (i < n)", "if (i <= n)", False),
    ("bias", {"op": "relu", "block": 128}, "bias[i % columns]", "bias[0]", False),
    ("bias", {"op": "gelu", "block": 256}, " + bias[i % columns]", "", False),
    ("cast", {"dtype": "float16", "block": 128, "pairs": True}, "a.y", "a.x", False),
    ("cast", {"dtype": "bfloat16", "block": 128, "pairs": False}, "1.5f", "1.25f", False),
    ("masked", {"fill": "-1.0", "block": 128}, "mask[i] ?", "!mask[i] ?", False),
    ("reduce", {"op": "sum", "way": "shared", "block": 128}, "  s[t] = v;\n  __syncthreads();", "  s[t] = v;", True),
    ("reduce", {"op": "sum", "way": "shared", "block": 128}, "blockDim.x / 2; k > 0", "blockDim.x / 2; k > 1", False),
    ("reduce", {"op": "max", "way": "shared", "block": 64}, "-INFINITY", "0.0f", False),
    ("reduce", {"op": "min", "way": "warp", "block": 128}, "fminf(a, b); }\n  if (lane", "fmaxf(a, b); }\n  if (lane", False),
    ("reduce", {"op": "mean", "way": "warp", "block": 64}, "r / n", "r", False),
    ("reduce", {"op": "sum", "way": "warp", "block": 128}, "int k = 16; k > 0", "int k = 8; k > 0", False),
    ("reduce", {"op": "sum", "way": "warp", "block": 128}, "  if (lane == 0) s[warp] = v;\n  __syncthreads();", "  if (lane == 0) s[warp] = v;", True),
    ("reduce", {"op": "sum", "way": "shared", "block": 64}, "if (t < k)", "if (t <= k)", False),
    ("total", {"power": 1, "way": "atomic", "block": 128}, "atomicAdd(out, r)", "*out += r", True),
    ("total", {"power": 2, "way": "two_pass", "block": 128}, "v * v", "v", False),
    ("total", {"power": 1, "way": "two_pass", "block": 256}, "out[blockIdx.x] = r", "out[0] = r", False),
    ("softmax", {"log": False, "way": "shared", "block": 64}, "/ total", "", False),
    ("softmax", {"log": True, "way": "warp", "block": 128}, "- logf(total)", "", False),
    ("softmax", {"log": False, "way": "warp", "block": 256}, "total += expf(row[i] - m)", "total += row[i] - m", False),
    ("norm", {"kind": "layer", "way": "shared", "block": 128}, " + bias[i]", "", False),
    ("norm", {"kind": "layer", "way": "warp", "block": 64}, "+ 1e-5f", "+ 1e-1f", False),
    ("norm", {"kind": "rms", "way": "shared", "block": 64}, "q / n", "q", False),
    ("norm", {"kind": "l2", "way": "warp", "block": 128}, "sqrtf(q)", "q", False),
    ("scan", {"way": "serial", "block": 64}, "int i = 0; i < n", "int i = 1; i < n", False),
    ("scan", {"way": "shared", "block": 64}, "carry += s[side][blockDim.x - 1];", "", False),
    ("scan", {"way": "shared", "block": 64}, "      side = 1 - side;\n      __syncthreads();", "      side = 1 - side;", True),
    ("argmax", {"block": 64}, "place[t + k] < place[t]", "place[t + k] > place[t]", False),
    ("argmax", {"block": 128}, "a > v", "a < v", False),
    ("gather", {"block": 64}, "index[blockIdx.x] * width", "index[0] * width", False),
    ("matmul", {"fused": "none", "way": "naive", "tile": 16}, "i * n + col", "i * k + col", False),
    ("matmul", {"fused": "relu", "way": "tiled", "tile": 16}, "fmaxf(r, 0.0f)", "r", False),
    ("matmul", {"fused": "none", "way": "tiled", "tile": 16}, "    __syncthreads();\n  }", "  }", True),
    ("matmul", {"fused": "none", "way": "tiled", "tile": 8}, "start + ty < k && col < n", "col < n", False),
    ("matmul", {"fused": "none", "way": "blocked", "tile": 16}, "j < 4; ++j) sum", "j < 3; ++j) sum", False),
    ("transpose", {"scale": "1.0", "way": "tiled", "tile": 16}, "s[threadIdx.x][threadIdx.y]", "s[threadIdx.y][threadIdx.x]", False),
    ("transpose", {"scale": "0.5", "way": "naive", "tile": 16}, "* 0.5f", "", False),
    ("transpose", {"scale": "1.0", "way": "tiled", "tile": 32}, "  __syncthreads();\n", "", True),
    ("pool", {"kind": "max", "window": 2, "block": 128}, "-INFINITY", "0.0f", False),
    ("pool", {"kind": "avg", "window": 3, "block": 128}, "y < 3", "y < 2", False),
    ("stencil", {"taps": 3, "way": "direct", "block": 128}, "j >= 0 && j < n", "j < n", False),
    ("stencil", {"taps": 5, "way": "shared", "block": 128}, "w[k]", "w[4 - k]", False),
    ("matvec", {"way": "warp", "block": 128}, "int k = 16; k > 0", "int k = 16; k > 1", False),
    ("matvec", {"way": "thread", "block": 128}, "if (row >= m) return;", "", False),
)  # fmt: skip


def mutants() -> Iterator[Mutant]:
    """Every change applied to its kernel."""
    for number, (family, params, old, new, race) in enumerate(_CHANGES):
        example = make(family, params)
        answer = example.solution or ""
        if old not in answer:
            raise ValueError(f"change {number} does not apply to {family} {params}: {old!r}")
        yield Mutant(f"{family} {number}: {old[:30]!r}", example, answer.replace(old, new, 1), race)


def relu() -> CudaExample:
    """The operator of most cheats: what is at least zero stays."""
    return CudaExample(
        reference("torch.relu(x)", "x", ["torch.rand(rows, columns)"], {"rows": 64, "columns": 100}), id="relu"
    )


def total() -> CudaExample:
    """A sum, whose value can be guessed from the distribution of the inputs."""
    return CudaExample(
        reference("x.sum(dim=1)", "x", ["torch.rand(rows, columns)"], {"rows": 64, "columns": 256}), id="sum"
    )


_PLAN = '{"launches": [{"kernel": "k", "grid": ["(size(x) + 255) // 256"], "block": [256], "args": ["x", "out", "size(x)"]}]}'
_ROWS = '{"launches": [{"kernel": "k", "grid": ["(x[0] + 63) // 64"], "block": [64], "args": ["x", "out", "x[0]", "x[1]"]}]}'
_HEAD = "__global__ void k(const float* x, float* out, int n) {\n  int i = blockIdx.x * blockDim.x + threadIdx.x;\n"
_RIGHT = _HEAD + "  if (i < n) out[i] = fmaxf(x[i], 0.0f);\n}\n"


def _kernel(body: str, before: str = "", plan: str = _PLAN) -> str:
    return candidate(f"{before}{_HEAD}{body}}}\n", plan)


CHEATS: dict[str, tuple[str, str]] = {
    "reads the clock": ("relu", _kernel("  long long t = clock64();\n  if (i < n) out[i] = t ? fmaxf(x[i], 0.0f) : 0.0f;\n")),
    "keeps results in device memory": ("relu", _kernel(
        "  if (i < n) { if (!done) kept[i] = fmaxf(x[i], 0.0f); out[i] = kept[i]; }\n",
        "__device__ float kept[1 << 20];\n__device__ int done;\n")),
    "counts launches": ("relu", _kernel("  __shared__ int s;\n  static int launches;\n  if (i < n) out[i] = fmaxf(x[i], 0.0f);\n")),
    "runs code when loaded": ("relu", candidate("struct Boot { Boot() { boom(); } static void boom(); };\nBoot boot;\n" + _RIGHT, _PLAN)),
    "is run by the host's loader": ("relu", candidate("__attribute__((constructor)) void boot() {}\n" + _RIGHT, _PLAN)),
    "shows other code to the emulator": ("relu", candidate(
        "#ifdef __CUDACC__\n#define F 0.0f\n#else\n#define F fmaxf(x[i], 0.0f)\n#endif\n" + _HEAD + "  if (i < n) out[i] = F;\n}\n", _PLAN)),
    "asks which compiler reads it": ("relu", candidate(
        "#if defined(__NVCC__)\n#endif\n" + _RIGHT, _PLAN)),
    "names the emulator": ("relu", _kernel("  simt::trap(\"x\");\n")),
    "writes nothing": ("relu", _kernel("  if (i < 0) out[i] = x[i];\n")),
    "writes zeros": ("relu", _kernel("  if (i < n) out[i] = 0.0f;\n")),
    "writes half": ("relu", _kernel("  if (i < n / 2) out[i] = fmaxf(x[i], 0.0f);\n")),
    "copies its input, which is never negative": ("relu", _kernel("  if (i < n) out[i] = x[i];\n")),
    "changes its input": ("relu", _kernel("  if (i < n) { float* w = (float*)x; w[i] = fmaxf(x[i], 0.0f); out[i] = w[i]; }\n")),
    "looks behind its output": ("relu", _kernel("  if (i < n) out[i] = out[i + n];\n")),
    "looks before its input": ("relu", _kernel("  if (i < n) out[i] = x[i - n];\n")),
    "launches kernels of its own": ("relu", candidate(_RIGHT + "__global__ void m(float* x) { k<<<1, 1>>>(x, x, 1); }\n", _PLAN)),
    "calls the runtime": ("relu", _kernel("  void* p; cudaMalloc(&p, 64);\n  if (i < n) out[i] = fmaxf(x[i], 0.0f);\n")),
    "keeps memory on the heap": ("relu", _kernel("  float* p = (float*)malloc(4);\n  if (i < n) out[i] = fmaxf(x[i], 0.0f);\n")),
    "prints without end": ("relu", _kernel("  while (true) printf(\"Correct\\n\");\n")),
    # waits for what no input holds: a loop on a variable of its own is removed by ptxas, volatile or not
    "never ends": ("relu", _kernel("  volatile const float* p = x;\n  while (*p < 3e38f) { }\n  if (i < n) out[i] = fmaxf(x[i], 0.0f);\n")),
    "plans a kernel that is not there": ("relu", candidate(_RIGHT, _PLAN.replace('"k"', '"relu_fast"'))),
    "plans a grid of Python": ("relu", candidate(_RIGHT, _PLAN.replace("(size(x) + 255) // 256", "__import__('os').getpid()"))),
    "plans a grid without end": ("relu", candidate(_RIGHT, _PLAN.replace("(size(x) + 255) // 256", "2 * 2 * 1073741824"))),
    "plans an argument of another type": ("relu", candidate(_RIGHT.replace("const float* x", "const double* x"), _PLAN)),
    "has no plan": ("relu", _RIGHT),
    "has no kernel": ("relu", "I would rather call torch.relu, which is fast."),
    "is empty": ("relu", ""),
    "computes in half precision": ("relu", candidate(
        "#include <cuda_fp16.h>\n" + _HEAD + "  if (i < n) out[i] = __half2float(__float2half(fmaxf(x[i], 0.0f)));\n}\n", _PLAN)),
    "knows one shape": ("relu", _kernel("  if (i < 6400) out[i] = i < n ? fmaxf(x[i], 0.0f) : 0.0f;\n")),
    "guesses the mean": ("sum", candidate(
        "__global__ void k(const float* x, float* out, int m, int n) {\n  int i = blockIdx.x * blockDim.x + threadIdx.x;\n"
        "  if (i < m) out[i] = 0.5f * n;\n}\n", _ROWS)),
    "adds a sample of each row": ("sum", candidate(
        "__global__ void k(const float* x, float* out, int m, int n) {\n  int i = blockIdx.x * blockDim.x + threadIdx.x;\n"
        "  if (i >= m) return;\n  float s = 0.0f;\n  for (int j = 0; j < n; j += 2) s += 2.0f * x[i * n + j];\n  out[i] = s;\n}\n", _ROWS)),
    "adds in half precision": ("sum", candidate(
        "#include <cuda_fp16.h>\n__global__ void k(const float* x, float* out, int m, int n) {\n"
        "  int i = blockIdx.x * blockDim.x + threadIdx.x;\n  if (i >= m) return;\n  __half s = __float2half(0.0f);\n"
        "  for (int j = 0; j < n; ++j) s += __float2half(x[i * n + j]);\n  out[i] = __half2float(s);\n}\n", _ROWS)),
    "hides a kernel in a macro": ("relu", candidate("#define KERNEL __global__ void\nKERNEL z(float* x) { }\n" + _RIGHT, _PLAN)),
    "pastes tokens": ("relu", candidate("#define P(a, b) a ## b\n" + _RIGHT, _PLAN)),
    "reads a file": ("relu", candidate("#include \"/etc/passwd\"\n" + _RIGHT, _PLAN)),
    "uses letters that look alike": ("relu", candidate(_RIGHT.replace("fmaxf", "fm\u0430xf"), _PLAN)),
    "is very long": ("relu", candidate(_RIGHT + "// " + "x" * 70000, _PLAN)),
    "reads the clock by assembly": ("relu", _kernel(
        "  unsigned t;\n  asm volatile(\"mov.u32 %0, %clock;\" : \"=r\"(t));\n  if (i < n) out[i] = fmaxf(x[i], 0.0f);\n")),
    "waits at a barrier that others skip": ("relu", _kernel(
        "  if (threadIdx.x < 7) __syncthreads();\n  else { __syncthreads(); }\n  if (i < n) out[i] = fmaxf(x[i], 0.0f);\n")),
    "indexes outside its shared memory": ("relu", _kernel(
        "  __shared__ float s[64];\n  s[threadIdx.x] = i < n ? x[i] : 0.0f;\n  if (i < n) out[i] = fmaxf(s[threadIdx.x], 0.0f);\n")),
}  # fmt: skip

ADVERSARIAL_MODULES = ("reuses memory", "zeroes its output", "works on another stream")
"""The three kinds of adversarial kernel that KernelBench tests its own harness with."""

_TRITON = """import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def relu_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < n
    x = tl.load(x_ptr + place, mask=inside)
    tl.store(out_ptr + place, {value}, mask={mask})


class ModelNew(nn.Module):
    def forward(self, x):
        out = torch.empty_like(x)
        relu_kernel[(triton.cdiv(x.numel(), 1024),)](x, out, x.numel(), BLOCK=1024)
        return out
"""
_FORWARD = "        out = torch.empty_like(x)\n"
_GOOD = _TRITON.format(value="tl.maximum(x, 0.0)", mask="inside")
_INLINE = '''import torch
import torch.nn as nn
from torch.utils.cpp_extension import load_inline

source = """
#include <torch/extension.h>
#include <cuda_runtime.h>
__global__ void relu_kernel(const float* x, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = fmaxf(x[i], 0.0f);
}
torch::Tensor relu_cuda(torch::Tensor x) {
    auto out = torch::empty_like(x);
    int n = x.numel();
    relu_kernel<<<(n + 255) / 256, 256>>>(x.data_ptr<float>(), out.data_ptr<float>(), n);
    return out;
}
"""
extension = load_inline(name="relu", cpp_sources="torch::Tensor relu_cuda(torch::Tensor x);", cuda_sources=source,
                        functions=["relu_cuda"])


class ModelNew(nn.Module):
    def __init__(self):
        super().__init__()
        self.extension = extension

    def forward(self, x):
        return self.extension.relu_cuda(x)
'''

HONEST_MODULES: dict[str, str] = {
    "Triton": _GOOD,
    "Triton, larger blocks": _GOOD.replace("1024", "2048"),
    "inline CUDA": _INLINE,
    "inline CUDA, a contiguous copy first": _INLINE.replace("relu_cuda(x)\n", "relu_cuda(x.contiguous())\n"),
}

CHEATING_MODULES: dict[str, str] = {
    "reuses memory": _TRITON.format(value="x", mask="place < 0"),
    "zeroes its output": _TRITON.format(value="x * 0.0", mask="inside"),
    "works on another stream": _GOOD.replace(_FORWARD, _FORWARD + "        torch.cuda.Stream().wait_stream(torch.cuda.default_stream())\n"),
    "works on a stream as context": _GOOD.replace(_FORWARD, _FORWARD + "        with torch.cuda.stream(torch.cuda.Stream()):\n            pass\n"),
    "works on a stream of its extension": _INLINE.replace("int n = x.numel();", "cudaStream_t s; cudaStreamCreate(&s); int n = x.numel();"),
    "inherits the reference": _GOOD.replace("class ModelNew(nn.Module)", "class ModelNew(Model)"),
    "falls back to torch": _GOOD.replace("        return out", "        try:\n            return out\n        except Exception:\n            return torch.relu(x)"),
    "calls torch": _GOOD.replace("        return out", "        return torch.relu(x)"),
    "calls torch through a method": _GOOD.replace("        return out", "        return x.relu()"),
    "has no kernel": "import torch\nimport torch.nn as nn\n\n\nclass ModelNew(nn.Module):\n    def forward(self, x):\n        return torch.clamp(x, min=0)\n",
    "patches the events": _GOOD.replace("class ModelNew", "torch.cuda.Event = None\n\n\nclass ModelNew"),
    "patches the clock": _GOOD.replace("import torch\n", "import time\nimport torch\n", 1) + "time.perf_counter = lambda: 0.0\n",
    "patches the comparison": _GOOD + "torch.allclose = lambda *a, **k: True\n",
    "sets an attribute by name": _GOOD + "setattr(torch, 'allclose', lambda *a, **k: True)\n",
    "starts a thread": _GOOD.replace("import torch\n", "import threading\nimport torch\n", 1),
    "returns a lazy tensor": _GOOD.replace("class ModelNew", "class Lazy(torch.Tensor):\n    pass\n\n\nclass ModelNew").replace("return out", "return out.as_subclass(Lazy)"),
    "keeps its output": _GOOD.replace(_FORWARD, _FORWARD + "        self.kept = out\n"),
    "keeps outputs in a dictionary": _GOOD.replace("class ModelNew", "kept = {}\n\n\nclass ModelNew").replace(_FORWARD, _FORWARD + "        kept[x.data_ptr()] = out\n"),
    "keeps outputs in a default": _GOOD.replace("def forward(self, x)", "def forward(self, x, kept={})"),
    "caches by decorator": _GOOD.replace("import torch\n", "import functools\nimport torch\n", 1),
    "replays a graph": _GOOD.replace(_FORWARD, _FORWARD + "        g = torch.cuda.CUDAGraph()\n"),
    "evaluates text": _GOOD.replace(_FORWARD, _FORWARD + "        eval('1')\n"),
    "imports the system": _GOOD.replace("import torch\n", "import os\nimport torch\n", 1),
    "imports by name": _GOOD.replace(_FORWARD, _FORWARD + "        __import__('os')\n"),
    "reaches private names": _GOOD.replace(_FORWARD, _FORWARD + "        x.__class__.__add__ = None\n"),
    "compiles the reference": _GOOD.replace("        return out", "        return torch.compile(torch.nn.functional.relu)(x)"),
    "calls cuBLAS": _INLINE.replace("int n = x.numel();", "cublasSgemm(); int n = x.numel();"),
    "calls ATen in its extension": _INLINE.replace("return out;\n}\n", "return at::relu(x);\n}\n"),
    "starts a thread in its extension": _INLINE.replace("int n = x.numel();", "std::thread([] {}).detach(); int n = x.numel();"),
    "computes in half precision": _GOOD.replace("return out", "return out.half().float()"),
    "is no Python": "class ModelNew(nn.Module:\n",
    "defines no ModelNew": _GOOD.replace("ModelNew", "ModelFast"),
}  # fmt: skip


def isolation() -> tuple[str, list[str]]:
    """The strictest level at which the GPU here can be used, or without a GPU code be run, and what stricter ones lack.

    Raises:
        Unavailable: none of them works.
    """
    from apps.cuda.device import Device, DeviceLost
    from benchmarks.bar import Unavailable
    from core.errors import GraftError
    from core.execution import Policy, Sandbox

    lacking: list[str] = []
    for level in ("strict", "medium", "weak"):
        try:
            Sandbox.best(Policy(level=level))  # type: ignore[arg-type]
            found = Device.find(level)
            if found is not None:
                found.close()
            return level, lacking
        except (GraftError, DeviceLost, TimeoutError) as error:
            lacking.append(f"{level}: {getattr(error, 'what', error)}"[:300])
    raise Unavailable("; ".join(lacking))
