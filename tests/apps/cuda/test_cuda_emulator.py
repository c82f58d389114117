"""The emulator: blocks, barriers, warps, atomics and rounding are exact; what misbehaves is named with its line."""

from __future__ import annotations

import numpy as np
import pytest

from apps.cuda.emulator import Emulator, Job
from apps.cuda.plan import Signature, Spec, parse_plan, resolve
from apps.cuda.source import kernels
from core.execution.tools import has

pytestmark = pytest.mark.skipif(not has("g++"), reason="g++ is absent (Debian package: g++)")


@pytest.fixture(scope="module")
def emulator():
    return Emulator(seconds=5)


def run(
    emulator, code, x, shape, *, grid=1, block=64, shared=0, zero=(), dtype="float32", reverse=(False, True), out=None
):
    import json

    found = kernels(code)
    name = next(iter(found))
    launch = {"kernel": name, "grid": [grid], "block": [block], "shared": shared, "args": ["x", "out", "size(x)"]}
    plan = parse_plan(json.dumps({"zero": list(zero), "launches": [launch]}))
    spec = Spec(dtype, x.shape)
    signature = Signature({"x": spec}, {"out": Spec(out or dtype, shape)})
    resolved = resolve(plan, found, signature)
    return emulator.run(code, found, [Job(resolved, signature, [x.tobytes()], r) for r in reverse])


def values(done, dtype=np.float32, job=0):
    assert done.status == "ok", done.detail
    return np.frombuffer(done.outputs[job]["out"], dtype)


X = np.random.default_rng(0).standard_normal(64).astype(np.float32)
HEAD = "__global__ void k(const float* x, float* out, int n) {\n  int t = threadIdx.x;\n"


def test_places_and_counts_of_a_copy(emulator):
    code = "__global__ void k(const float* x, float* out, int n) {\n  int i = blockIdx.x * blockDim.x + threadIdx.x;\n"
    code += "  if (i < n) out[i] = x[i];\n}\n"
    done = run(emulator, code, X, (64,), grid=3, block=32)
    assert (values(done) == X).all() and done.unwritten == ({"out": 0}, {"out": 0})
    counts = done.counts
    assert (counts["loads"], counts["stores"], counts["threads"], counts["load_bytes"]) == (64, 64, 96, 256)
    assert counts["sectors"] / counts["requests"] == 4, "32 neighbouring floats are four sectors"


def test_a_barrier_orders_neighbours_in_either_order_of_threads(emulator):
    code = HEAD + "  __shared__ float s[64];\n  s[t] = x[t];\n  __syncthreads();\n  out[t] = s[63 - t];\n}\n"
    done = run(emulator, code, X, (64,))
    assert (values(done) == X[::-1]).all() and (values(done, job=1) == X[::-1]).all()


def test_warp_operations(emulator):
    code = HEAD + (
        "  float v = x[t], s = v;\n  for (int o = 16; o > 0; o >>= 1) s += __shfl_xor_sync(0xffffffffu, s, o);\n"
        "  float up = __shfl_up_sync(0xffffffffu, v, 1), down;\n"
        "  down = __shfl_down_sync(0xffffffffu, v, 1, 8);\n"
        "  unsigned b = __ballot_sync(0xffffffffu, v > 0.0f);\n"
        "  float any = __any_sync(0xffffffffu, v > 9.0f) ? 100.0f : 0.0f;\n"
        "  out[t] = t < 32 ? up + down : __popc(b) + any + 0.0f * s;\n}\n"
    )
    got = values(run(emulator, code, X, (64,)))
    low = X[:32]
    up = np.concatenate([low[:1], low[:-1]])
    down = np.array([low[i + 1] if i % 8 != 7 else low[i] for i in range(32)])
    assert (got[:32] == up + down).all() and (got[32:] == (X[32:] > 0).sum()).all()


def test_atomics_and_votes_of_a_block(emulator):
    code = HEAD + (
        "  atomicAdd(&out[0], 1.0f);\n  int c = __syncthreads_count(x[t] > 0.0f);\n  if (t == 0) out[1] = c;\n"
        "  atomicMax((int*)&out[2], __float_as_int(fabsf(x[t])));\n}\n"
    )
    got = values(run(emulator, code, X, (3,), zero=["out"]))
    assert list(got) == [64, (X > 0).sum(), np.abs(X).max()]


def test_the_last_block_may_read_what_others_fenced(emulator):
    code = (
        "__global__ void k(const float* x, float* out, int n) {\n  __shared__ bool last;\n"
        "  if (threadIdx.x == 0) {\n    out[blockIdx.x] = x[blockIdx.x];\n    __threadfence();\n"
        "    last = atomicAdd((int*)&out[8], 1) == gridDim.x - 1;\n  }\n  __syncthreads();\n"
        "  if (last && threadIdx.x == 0) { float s = 0.0f; for (int i = 0; i < 4; ++i) s += out[i]; out[9] = s; }\n}\n"
    )
    got = values(run(emulator, code, X, (10,), grid=4, block=32, zero=["out"]))
    assert got[9] == pytest.approx(X[:4].sum(), rel=1e-6)
    racy = run(emulator, code.replace("    __threadfence();\n", ""), X, (10,), grid=4, block=32, zero=["out"])
    assert racy.status == "fault" and "race" in racy.detail


@pytest.mark.parametrize(("kind", "load"), [("float16", "__half"), ("bfloat16", "__nv_bfloat16")])
def test_small_floats_round_as_torch_does(emulator, kind, load):
    import torch

    given = torch.randn(64).to(getattr(torch, kind))
    code = f"__global__ void k(const {load}* x, {load}* out, int n) {{\n  int t = threadIdx.x;\n"
    code += "  out[t] = x[t] * x[t] + x[63 - t];\n}\n"
    bits = given.view(torch.int16).numpy()
    done = run(emulator, code, bits, (64,), dtype=kind)
    want = given * given + given.flip(0)
    assert (values(done, np.int16) == want.view(torch.int16).numpy()).all()


SHARED = "  __shared__ float s[64];\n"
DYNAMIC = "  extern __shared__ float s[];\n  s[t] = x[t];\n  out[t] = s[t];\n}\n"
BARRIERS = "  if (t < 3) __syncthreads();\n  else {\n    __syncthreads();\n  }\n  out[t] = x[t];\n}\n"
HOLE = "  if (t > 0) s[t] = 0.0f;\n  __syncthreads();\n  out[t] = s[t];\n}\n"
RACE = "  s[t] = x[t];\n  __syncthreads();\n  out[t] = s[t];\n  s[63 - t] = 0.0f;\n}\n"
HALF_WARP = (
    "  float v = x[t];\n  if (t < 16) v = __shfl_sync(0xffffffffu, v, 0);\n  __syncthreads();\n  out[t] = v;\n}\n"
)
FAULTS = {
    "bounds: thread (63,0,0)": (HEAD + "  out[t] = x[t + 1];\n}\n", 3, {}),
    "writes 4 bytes at byte 256 of output": (HEAD + "  out[t + 1] = x[t];\n}\n", 3, {}),
    "indexes outside an array": (HEAD + "  __shared__ float s[32];\n  s[t] = 0.0f;\n  out[t] = s[t];\n}\n", 4, {}),
    "of shared -1, which has 128": (HEAD + DYNAMIC, 4, {"shared": 128}),
    "the plan gives none": (HEAD + DYNAMIC, None, {}),
    "which nothing wrote": (HEAD + SHARED + HOLE, 6, {}),
    "race": (HEAD + SHARED + RACE, 6, {}),
    "writes into input": (HEAD + "  ((float*)x)[t] = 0.0f;\n  out[t] = 0.0f;\n}\n", 3, {}),
    "different barriers": (HEAD + BARRIERS, None, {}),
    "already returned": (
        HEAD + "  if (t % 32 == 5) return;\n  out[t] = __shfl_sync(0xffffffffu, x[t], 5);\n}\n",
        4,
        {},
    ),
    "lacks the calling lane": (HEAD + "  out[t] = __shfl_sync(0x0000ffffu, x[t], 0);\n}\n", 3, {}),
    "that other lanes never reach": (HEAD + HALF_WARP, 4, {}),
    "divides an integer by zero": (HEAD + "  out[t] = n / (t - t * n / n);\n}\n", 3, {}),
    "an assertion does not hold": (HEAD + "  assert(x[t] > 100.0f);\n  out[t] = 0.0f;\n}\n", 3, {}),
    "misaligned": (HEAD + "  float2 v = *(const float2*)(x + 1);\n  out[t] = v.x;\n}\n", 3, {}),
}


@pytest.mark.parametrize("said", FAULTS)
def test_what_misbehaves_is_named(emulator, said):
    code, line, more = FAULTS[said]
    done = run(emulator, code, X, (64,), **more)
    assert done.status == "fault" and said in done.detail, done
    if line:
        assert done.diagnostics[0].line == line


def test_what_does_not_end_is_a_timeout_and_what_is_not_known_is_no_pass(emulator):
    endless = run(
        Emulator(seconds=1), HEAD + "  volatile int go = 1;\n  while (go) { }\n  out[t] = 0.0f;\n}\n", X, (64,)
    )
    assert endless.status == "timeout"
    unknown = run(emulator, HEAD + "  out[t] = __some_new_intrinsic(x[t]);\n}\n", X, (64,))
    assert unknown.status == "unsupported" and "line 3" in unknown.detail
    tensor = run(emulator, HEAD + '  asm volatile("");\n  out[t] = x[t];\n}\n', X, (64,))
    assert tensor.status == "unsupported" and "PTX" in tensor.detail
