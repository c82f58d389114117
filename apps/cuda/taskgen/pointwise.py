"""Operators without neighbours: one element in, one element out, in several precisions and ways of walking."""

from __future__ import annotations

from apps.cuda.taskgen.family import Built, answer, family, launch, reference

# name → (PyTorch over x, C over float v, words)
UNARY = {
    "relu": ("torch.relu(x)", "fmaxf(v, 0.0f)", "the rectified linear unit"),
    "sigmoid": ("torch.sigmoid(x)", "1.0f / (1.0f + expf(-v))", "the logistic function"),
    "tanh": ("torch.tanh(x)", "tanhf(v)", "the hyperbolic tangent"),
    "gelu": ("F.gelu(x)", "0.5f * v * (1.0f + erff(v * 0.70710678f))", "the Gaussian error linear unit (exact)"),
    "silu": ("F.silu(x)", "v / (1.0f + expf(-v))", "x times its logistic function"),
    "softplus": ("F.softplus(x)", "v > 20.0f ? v : log1pf(expf(v))", "log(1 + exp(x))"),
    "leaky_relu": ("F.leaky_relu(x, 0.1)", "v > 0.0f ? v : 0.1f * v", "the leaky rectifier with slope 0.1"),
    "hardswish": ("F.hardswish(x)", "v * fminf(fmaxf(v + 3.0f, 0.0f), 6.0f) / 6.0f", "the hard swish"),
    "square": ("x * x", "v * v", "the square"),
    "elu": ("F.elu(x)", "v > 0.0f ? v : expm1f(v)", "the exponential linear unit"),
}
BINARY = {
    "add": ("x + y", "a + b", "the sum"),
    "mul": ("x * y", "a * b", "the product"),
    "sub_abs": ("torch.abs(x - y)", "fabsf(a - b)", "the absolute difference"),
    "max": ("torch.maximum(x, y)", "fmaxf(a, b)", "the larger one"),
    "mse": ("(x - y) ** 2", "(a - b) * (a - b)", "the squared difference"),
}
_SIZES = {"rows": 4096, "columns": 8192}


@family("unary", {"op": tuple(UNARY), "walk": ("one", "stride", "vector"), "block": (128, 256, 512)}, ("walk", "block"))
def unary(op: str, walk: str, block: int) -> Built:
    """A function of each element: one element a thread, a grid-stride loop, or four at a time with a tail."""
    torch_form, c_form, words = UNARY[op]
    apply = f"__device__ __forceinline__ float apply(float v) {{ return {c_form}; }}\n"
    if walk == "one":
        code = apply + (
            "__global__ void map(const float* __restrict__ x, float* __restrict__ out, int n) {\n"
            "  int i = blockIdx.x * blockDim.x + threadIdx.x;\n  if (i < n) out[i] = apply(x[i]);\n}\n"
        )
        grid = f"(size(x) + {block - 1}) // {block}"
    elif walk == "stride":
        code = apply + (
            "__global__ void map(const float* __restrict__ x, float* __restrict__ out, int n) {\n"
            "  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)\n"
            "    out[i] = apply(x[i]);\n}\n"
        )
        grid = f"min(1056, (size(x) + {block - 1}) // {block})"
    else:
        code = apply + (
            "__global__ void map(const float* __restrict__ x, float* __restrict__ out, int n) {\n"
            "  int i = 4 * (blockIdx.x * blockDim.x + threadIdx.x);\n"
            "  if (i + 3 < n) {\n"
            "    float4 v = *reinterpret_cast<const float4*>(x + i);\n"
            "    v.x = apply(v.x); v.y = apply(v.y); v.z = apply(v.z); v.w = apply(v.w);\n"
            "    *reinterpret_cast<float4*>(out + i) = v;\n"
            "  } else {\n"
            "    for (; i < n; ++i) out[i] = apply(x[i]);\n"
            "  }\n}\n"
        )
        grid = f"(size(x) + {4 * block - 1}) // {4 * block}"
    return Built(
        reference(torch_form, "x", ["torch.randn(rows, columns)"], _SIZES),
        (f"{words} of every element of x", f"{words}, element by element", f"apply {words} to a matrix"),
        answer(code, [launch("map", [grid], [block], ["x", "out", "size(x)"])]),
    )


@family("binary", {"op": tuple(BINARY), "block": (128, 256), "each": (1, 2, 4)}, ("block", "each"))
def binary(op: str, block: int, each: int) -> Built:
    """A function of two elements, several a thread, a block's width apart."""
    torch_form, c_form, words = BINARY[op]
    code = (
        "__global__ void zip(const float* __restrict__ x, const float* __restrict__ y,\n"
        "                    float* __restrict__ out, int n) {\n"
        f"  int first = blockIdx.x * {block * each} + threadIdx.x;\n"
        "#pragma unroll\n"
        f"  for (int k = 0; k < {each}; ++k) {{\n"
        f"    int i = first + k * {block};\n"
        "    if (i < n) {\n"
        f"      float a = x[i], b = y[i];\n      out[i] = {c_form};\n    }}\n  }}\n}}\n"
    )
    grid = f"(size(x) + {block * each - 1}) // {block * each}"
    return Built(
        reference(torch_form, "x, y", ["torch.randn(rows, columns)", "torch.randn(rows, columns)"], _SIZES),
        (f"{words} of two matrices, element by element", f"combine x and y into {words}", f"{words} of x and y"),
        answer(code, [launch("zip", [grid], [block], ["x", "y", "out", "size(x)"])]),
    )


@family("bias", {"op": ("relu", "gelu", "silu", "sigmoid"), "block": (128, 256)}, ("block",))
def bias(op: str, block: int) -> Built:
    """A learnt vector added to every row, then an activation."""
    torch_form, c_form, words = UNARY[op]
    code = (
        "__global__ void add_bias(const float* __restrict__ x, const float* __restrict__ bias,\n"
        "                         float* __restrict__ out, int columns, int n) {\n"
        "  int i = blockIdx.x * blockDim.x + threadIdx.x;\n"
        "  if (i >= n) return;\n"
        "  float v = x[i] + bias[i % columns];\n"
        f"  out[i] = {c_form};\n}}\n"
    )
    return Built(
        reference(torch_form.replace("x", "(x + self.bias)", 1) if op != "silu" else "F.silu(x + self.bias)", "x",
                  ["torch.randn(rows, columns)"], _SIZES, init="self.bias = nn.Parameter(torch.randn(width))",
                  init_arguments="width", given="columns"),
        (f"add a bias vector to every row, then {words}", f"{words} of x plus a bias", f"bias, then {words}"),
        answer(code, [launch("add_bias", [f"(size(x) + {block - 1}) // {block}"], [block],
                             ["x", "bias", "out", "x[1]", "size(x)"])]),
    )  # fmt: skip


@family("cast", {"dtype": ("float16", "bfloat16"), "block": (128, 256), "pairs": (False, True)}, ("block", "pairs"))
def cast(dtype: str, block: int, pairs: bool) -> Built:
    """A scaled sum in 16 bits, accumulated in float, one or two elements a thread."""
    kind, pair = ("__half", "__half2") if dtype == "float16" else ("__nv_bfloat16", "__nv_bfloat162")
    header = "#include <cuda_fp16.h>\n" if dtype == "float16" else "#include <cuda_bf16.h>\n"
    load = "__half2float" if dtype == "float16" else "__bfloat162float"
    store = "__float2half" if dtype == "float16" else "__float2bfloat16"
    one = f"out[i] = {store}(1.5f * {load}(x[i]) + {load}(y[i]));"
    if pairs:
        body = (
            "  int i = 2 * (blockIdx.x * blockDim.x + threadIdx.x);\n"
            "  if (i + 1 < n) {\n"
            f"    {pair} a = *reinterpret_cast<const {pair}*>(x + i), b = *reinterpret_cast<const {pair}*>(y + i);\n"
            f"    {pair} r;\n"
            f"    r.x = {store}(1.5f * {load}(a.x) + {load}(b.x));\n"
            f"    r.y = {store}(1.5f * {load}(a.y) + {load}(b.y));\n"
            f"    *reinterpret_cast<{pair}*>(out + i) = r;\n"
            f"  }} else if (i < n) {{\n    {one}\n  }}\n"
        )
        grid = f"(size(x) + {2 * block - 1}) // {2 * block}"
    else:
        body = f"  int i = blockIdx.x * blockDim.x + threadIdx.x;\n  if (i < n) {one}\n"
        grid = f"(size(x) + {block - 1}) // {block}"
    code = header + f"__global__ void axpy(const {kind}* x, const {kind}* y, {kind}* out, int n) {{\n{body}}}\n"
    make = f"torch.randn(rows, columns).to(torch.{dtype})"
    return Built(
        reference("1.5 * x + y", "x, y", [make, make], _SIZES),
        (f"1.5 x + y in {dtype}", f"a scaled sum of two {dtype} matrices", f"multiply x by 1.5 and add y, in {dtype}"),
        answer(code, [launch("axpy", [grid], [block], ["x", "y", "out", "size(x)"])]),
    )


@family("masked", {"fill": ("0.0", "-1.0"), "block": (128, 256)}, ("block",))
def masked(fill: str, block: int) -> Built:
    """A boolean mask chooses between an element and a constant."""
    code = (
        "__global__ void choose(const float* x, const bool* mask, float* out, int n) {\n"
        "  int i = blockIdx.x * blockDim.x + threadIdx.x;\n"
        f"  if (i < n) out[i] = mask[i] ? {fill}f : x[i];\n}}\n"
    )
    return Built(
        reference(f"x.masked_fill(mask, {fill})", "x, mask",
                  ["torch.randn(rows, columns)", "torch.rand(rows, columns) > 0.5"], _SIZES),
        (f"put {fill} where the mask is true", f"x with {fill} in the masked places", f"masked fill with {fill}"),
        answer(code, [launch("choose", [f"(size(x) + {block - 1}) // {block}"], [block],
                             ["x", "mask", "out", "size(x)"])]),
    )  # fmt: skip
