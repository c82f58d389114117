"""Operators along rows: reductions by shared memory, by warps and by atomics, normalisations, scans, gathers."""

from __future__ import annotations

from apps.cuda.taskgen.family import Built, answer, family, launch, reference

_SIZES = {"rows": 8192, "columns": 4096}
_INPUT = ["torch.randn(rows, columns)"]

# name → (PyTorch, first value, C that combines a and b, C of the result r over n columns, words)
REDUCE = {
    "sum": ("x.sum(dim=1)", "0.0f", "a + b", "r", "the sum"),
    "mean": ("x.mean(dim=1)", "0.0f", "a + b", "r / n", "the mean"),
    "max": ("x.max(dim=1).values", "-INFINITY", "fmaxf(a, b)", "r", "the largest element"),
    "min": ("x.min(dim=1).values", "INFINITY", "fminf(a, b)", "r", "the smallest element"),
}

BLOCK_REDUCE = """__device__ float block_reduce(float v, float* s) {{
  int t = threadIdx.x;
  s[t] = v;
  __syncthreads();
  for (int k = blockDim.x / 2; k > 0; k >>= 1) {{
    if (t < k) {{ float a = s[t], b = s[t + k]; s[t] = {combine}; }}
    __syncthreads();
  }}
  float r = s[0];
  __syncthreads();
  return r;
}}
"""
WARP_REDUCE = """__device__ float block_reduce(float v, float* s) {{
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  for (int k = 16; k > 0; k >>= 1) {{ float a = v, b = __shfl_xor_sync(0xffffffffu, v, k); v = {combine}; }}
  if (lane == 0) s[warp] = v;
  __syncthreads();
  v = lane < warps ? s[lane] : {first};
  for (int k = 16; k > 0; k >>= 1) {{ float a = v, b = __shfl_xor_sync(0xffffffffu, v, k); v = {combine}; }}
  __syncthreads();
  return v;
}}
"""


def _reducer(way: str, combine: str, first: str) -> str:
    return (BLOCK_REDUCE if way == "shared" else WARP_REDUCE).format(combine=combine, first=first)


@family("reduce", {"op": tuple(REDUCE), "way": ("shared", "warp"), "block": (64, 128, 256)}, ("way", "block"))
def reduce(op: str, way: str, block: int) -> Built:
    """A block a row."""
    torch_form, first, combine, result, words = REDUCE[op]
    code = _reducer(way, combine, first) + (
        "__global__ void reduce_rows(const float* __restrict__ x, float* __restrict__ out, int n) {\n"
        f"  __shared__ float s[{block}];\n"
        "  const float* row = x + (long long)blockIdx.x * n;\n"
        f"  float v = {first};\n"
        f"  for (int i = threadIdx.x; i < n; i += blockDim.x) {{ float a = v, b = row[i]; v = {combine}; }}\n"
        "  float r = block_reduce(v, s);\n"
        f"  if (threadIdx.x == 0) out[blockIdx.x] = {result};\n}}\n"
    )
    return Built(
        reference(torch_form, "x", _INPUT, _SIZES),
        (f"{words} of every row", f"reduce each row of x to {words}", f"{words} along dimension 1"),
        answer(code, [launch("reduce_rows", ["x[0]"], [block], ["x", "out", "x[1]"])]),
    )


@family("total", {"power": (1, 2), "way": ("atomic", "two_pass"), "block": (128, 256)}, ("way", "block"))
def total(power: int, way: str, block: int) -> Built:
    """One number from everything: an atomic a block, or a second launch over partial sums."""
    value = "v" if power == 1 else "v * v"
    body = (
        f"  __shared__ float s[{block}];\n  float r = 0.0f;\n"
        "  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {\n"
        f"    float v = x[i];\n    r += {{value}};\n  }}\n  r = block_reduce(r, s);\n"
    )
    code = _reducer("shared", "a + b", "0.0f")
    grid = f"min(256, (size(x) + {block - 1}) // {block})"
    words = "the sum" if power == 1 else "the sum of squares"
    if way == "atomic":
        code += (
            "__global__ void total(const float* x, float* out, int n) {\n"
            + body.replace("{value}", value)
            + ("  if (threadIdx.x == 0) atomicAdd(out, r);\n}\n")
        )
        made = answer(code, [launch("total", [grid], [block], ["x", "out", "size(x)"])], zero=["out"])
    else:
        code += (
            "__global__ void partial(const float* x, float* out, int n) {\n"
            + body.replace("{value}", value)
            + ("  if (threadIdx.x == 0) out[blockIdx.x] = r;\n}\n")
        )
        code += (
            "__global__ void finish(const float* x, float* out, int n) {\n"
            + body.replace("{value}", "v")
            + ("  if (threadIdx.x == 0) out[0] = r;\n}\n")
        )
        made = answer(
            code,
            [launch("partial", ["blocks"], [block], ["x", "part", "size(x)"]),
             launch("finish", [1], [block], ["part", "out", "blocks"])],
            sizes={"blocks": grid}, scratch={"part": {"dtype": "float32", "size": "blocks"}},
        )  # fmt: skip
    return Built(
        reference("x.sum()" if power == 1 else "(x * x).sum()", "x", ["torch.rand(rows, columns)"],
                  {"rows": 1024, "columns": 4096}),
        (f"{words} of all elements", f"reduce x to {words} of its elements", f"{words} of a whole matrix"), made,
    )  # fmt: skip


@family("softmax", {"log": (False, True), "way": ("shared", "warp"), "block": (64, 128, 256)}, ("way", "block"))
def softmax(log: bool, way: str, block: int) -> Built:
    """Largest element, sum of exponentials, division: three walks over a row."""
    largest = _reducer(way, "fmaxf(a, b)", "-INFINITY").replace("block_reduce", "block_max")
    added = _reducer(way, "a + b", "0.0f").replace("block_reduce", "block_sum")
    result = "row[i] - m - logf(total)" if log else "expf(row[i] - m) / total"
    code = (
        largest
        + added
        + (
            "__global__ void softmax(const float* __restrict__ x, float* __restrict__ out, int n) {\n"
            f"  __shared__ float s[{block}];\n"
            "  const float* row = x + (long long)blockIdx.x * n;\n  float* to = out + (long long)blockIdx.x * n;\n"
            "  float m = -INFINITY;\n"
            "  for (int i = threadIdx.x; i < n; i += blockDim.x) m = fmaxf(m, row[i]);\n"
            "  m = block_max(m, s);\n  float total = 0.0f;\n"
            "  for (int i = threadIdx.x; i < n; i += blockDim.x) total += expf(row[i] - m);\n"
            "  total = block_sum(total, s);\n"
            f"  for (int i = threadIdx.x; i < n; i += blockDim.x) to[i] = {result};\n}}\n"
        )
    )
    name = "log_softmax" if log else "softmax"
    return Built(
        reference(f"torch.{name}(x, dim=1)", "x", _INPUT, _SIZES),
        (f"the {name} of every row", f"{name} along dimension 1", f"row-wise {name} of a matrix"),
        answer(code, [launch("softmax", ["x[0]"], [block], ["x", "out", "x[1]"])]),
    )


@family("norm", {"kind": ("rms", "layer", "l2"), "way": ("shared", "warp"), "block": (64, 128, 256)}, ("way", "block"))
def norm(kind: str, way: str, block: int) -> Built:
    """Rows divided by their root mean square or length, or standardised and scaled."""
    head = (
        f"  __shared__ float s[{block}];\n"
        "  const float* row = x + (long long)blockIdx.x * n;\n  float* to = out + (long long)blockIdx.x * n;\n"
    )
    loop = "  for (int i = threadIdx.x; i < n; i += blockDim.x) "
    learnt = kind == "layer"
    weights = ", const float* weight, const float* bias" if learnt else ""
    if kind == "layer":
        body = (
            f"  float m = 0.0f, q = 0.0f;\n{loop}m += row[i];\n  m = block_reduce(m, s) / n;\n"
            f"{loop}{{ float d = row[i] - m; q += d * d; }}\n  float r = rsqrtf(block_reduce(q, s) / n + 1e-5f);\n"
            f"{loop}to[i] = (row[i] - m) * r * weight[i] + bias[i];\n"
        )
        module = reference("self.norm(x)", "x", _INPUT, _SIZES, init="self.norm = nn.LayerNorm(width)",
                           init_arguments="width", given="columns")  # fmt: skip
    else:
        scale = "rsqrtf(q / n + 1e-6f)" if kind == "rms" else "1.0f / fmaxf(sqrtf(q), 1e-12f)"
        body = (
            f"  float q = 0.0f;\n{loop}q += row[i] * row[i];\n  q = block_reduce(q, s);\n  float r = {scale};\n"
            f"{loop}to[i] = row[i] * r;\n"
        )
        form = "x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6)" if kind == "rms" else "F.normalize(x, dim=1)"
        module = reference(form, "x", _INPUT, _SIZES)
    code = _reducer(way, "a + b", "0.0f") + (
        f"__global__ void normalize(const float* x, float* out, int n{weights}) {{\n{head}{body}}}\n"
    )
    words = {
        "rms": "RMS normalisation",
        "layer": "layer normalisation with weight and bias",
        "l2": "division by the Euclidean length",
    }
    args = ["x", "out", "x[1]", *(["norm_weight", "norm_bias"] if learnt else [])]
    return Built(
        module, (f"{words[kind]} of every row", f"{words[kind]} along dimension 1", f"row-wise {words[kind]}"),
        answer(code, [launch("normalize", ["x[0]"], [block], args)]),
    )  # fmt: skip


@family("scan", {"way": ("serial", "shared"), "block": (64, 128)}, ("way", "block"))
def scan(way: str, block: int) -> Built:
    """Prefix sums of rows: a thread a row, or a block a row in tiles with a carry."""
    if way == "serial":
        code = (
            "__global__ void scan(const float* x, float* out, int rows, int n) {\n"
            "  int r = blockIdx.x * blockDim.x + threadIdx.x;\n  if (r >= rows) return;\n  float sum = 0.0f;\n"
            "  for (int i = 0; i < n; ++i) {\n    sum += x[(long long)r * n + i];\n"
            "    out[(long long)r * n + i] = sum;\n  }\n}\n"
        )
        plan = launch("scan", [f"(x[0] + {block - 1}) // {block}"], [block], ["x", "out", "x[0]", "x[1]"])
    else:
        code = (
            "__global__ void scan(const float* x, float* out, int rows, int n) {\n"
            f"  __shared__ float s[2][{block}];\n  float carry = 0.0f;\n  long long base = (long long)blockIdx.x * n;\n"
            "  for (int start = 0; start < n; start += blockDim.x) {\n"
            "    int t = threadIdx.x, i = start + t, side = 0;\n    s[0][t] = i < n ? x[base + i] : 0.0f;\n"
            "    __syncthreads();\n"
            "    for (int k = 1; k < blockDim.x; k <<= 1) {\n"
            "      s[1 - side][t] = t >= k ? s[side][t] + s[side][t - k] : s[side][t];\n      side = 1 - side;\n"
            "      __syncthreads();\n    }\n"
            "    if (i < n) out[base + i] = carry + s[side][t];\n    carry += s[side][blockDim.x - 1];\n"
            "    __syncthreads();\n"
            "  }\n}\n"
        )
        plan = launch("scan", ["x[0]"], [block], ["x", "out", "x[0]", "x[1]"])
    return Built(
        reference("torch.cumsum(x, dim=1)", "x", ["torch.randn(rows, columns)"], {"rows": 4096, "columns": 2048}),
        ("prefix sums of every row", "the cumulative sum along dimension 1", "running totals of each row"),
        answer(code, [plan]),
    )


@family("argmax", {"block": (64, 128, 256)}, ("block",))
def argmax(block: int) -> Built:
    """The place of the largest element; the first of equals."""
    code = (
        "__global__ void argmax(const float* x, long long* out, int n) {\n"
        f"  __shared__ float best[{block}];\n  __shared__ int place[{block}];\n"
        "  int t = threadIdx.x, p = 0;\n  float v = -INFINITY;\n"
        "  for (int i = t; i < n; i += blockDim.x) {\n    float a = x[(long long)blockIdx.x * n + i];\n"
        "    if (a > v || i == t) { v = a; p = i; }\n  }\n  best[t] = v;\n  place[t] = t < n ? p : n;\n"
        "  __syncthreads();\n"
        "  for (int k = blockDim.x / 2; k > 0; k >>= 1) {\n    if (t < k) {\n"
        "      bool take = best[t + k] > best[t] || (best[t + k] == best[t] && place[t + k] < place[t]);\n"
        "      if (take) { best[t] = best[t + k]; place[t] = place[t + k]; }\n    }\n    __syncthreads();\n  }\n"
        "  if (t == 0) out[blockIdx.x] = place[0];\n}\n"
    )
    return Built(
        reference("torch.argmax(x, dim=1)", "x", _INPUT, _SIZES),
        ("the index of the largest element of every row", "argmax along dimension 1", "where each row is largest"),
        answer(code, [launch("argmax", ["x[0]"], [block], ["x", "out", "x[1]"])]),
    )


@family("gather", {"block": (64, 128)}, ("block",))
def gather(block: int) -> Built:
    """Rows of a learnt table by integer index."""
    code = (
        "__global__ void gather(const float* table, const long long* index, float* out, int width) {\n"
        "  const float* from = table + index[blockIdx.x] * width;\n"
        "  for (int i = threadIdx.x; i < width; i += blockDim.x) out[(long long)blockIdx.x * width + i] = from[i];\n}\n"
    )
    return Built(
        reference("self.table(index)", "index", ["torch.randint(0, words, (tokens,))"],
                  {"words": 32768, "width": 512, "tokens": 16384},
                  init="self.table = nn.Embedding(words, width)", init_arguments="words, width", given="words, width"),
        ("look up rows of an embedding table", "an embedding: rows of the table by index", "gather rows by index"),
        answer(code, [launch("gather", ["size(index)"], [block], ["table_weight", "index", "out", "table_weight[1]"])]),
    )  # fmt: skip
