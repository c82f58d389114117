"""Operators on matrices and neighbourhoods: products in tiles, transposes, pooling and stencils."""

from __future__ import annotations

from apps.cuda.taskgen.family import Built, answer, family, launch, reference

_SIZES = {"m": 2048, "k": 1024, "n": 2048}


@family("matmul", {"fused": ("none", "relu"), "way": ("naive", "tiled", "blocked"), "tile": (8, 16, 32)},
        ("way", "tile"),
        allowed=lambda p: not (p["way"] == "blocked" and p["tile"] == 32))  # fmt: skip
def matmul(fused: str, way: str, tile: int) -> Built:
    """A product of matrices: one thread an element, tiles in shared memory, or tiles with four results a thread."""
    store = "r" if fused == "none" else "fmaxf(r, 0.0f)"
    head = "__global__ void matmul(const float* __restrict__ A, const float* __restrict__ B, float* __restrict__ out,\n"
    head += "                       int m, int k, int n) {\n"
    if way == "naive":
        code = head + (
            "  int row = blockIdx.y * blockDim.y + threadIdx.y, col = blockIdx.x * blockDim.x + threadIdx.x;\n"
            "  if (row >= m || col >= n) return;\n  float r = 0.0f;\n"
            "  for (int i = 0; i < k; ++i) r += A[(long long)row * k + i] * B[(long long)i * n + col];\n"
            f"  out[(long long)row * n + col] = {store};\n}}\n"
        )
        grid, block = [f"(B[1] + {tile - 1}) // {tile}", f"(A[0] + {tile - 1}) // {tile}"], [tile, tile]
    elif way == "tiled":
        code = (
            f"#define T {tile}\n"
            + head
            + (
                "  __shared__ float a[T][T + 1], b[T][T + 1];\n"
                "  int ty = threadIdx.y, tx = threadIdx.x, row = blockIdx.y * T + ty, col = blockIdx.x * T + tx;\n"
                "  float r = 0.0f;\n  for (int start = 0; start < k; start += T) {\n"
                "    a[ty][tx] = row < m && start + tx < k ? A[(long long)row * k + start + tx] : 0.0f;\n"
                "    b[ty][tx] = start + ty < k && col < n ? B[(long long)(start + ty) * n + col] : 0.0f;\n"
                "    __syncthreads();\n#pragma unroll\n    for (int i = 0; i < T; ++i) r += a[ty][i] * b[i][tx];\n"
                "    __syncthreads();\n  }\n"
                f"  if (row < m && col < n) out[(long long)row * n + col] = {store};\n}}\n"
            )
        )
        grid, block = [f"(B[1] + {tile - 1}) // {tile}", f"(A[0] + {tile - 1}) // {tile}"], [tile, tile]
    else:
        code = (
            f"#define T {tile}\n"
            + head
            + (
                "  __shared__ float a[4 * T][T + 1], b[T][T + 1];\n"
                "  int ty = threadIdx.y, tx = threadIdx.x, row = blockIdx.y * 4 * T, col = blockIdx.x * T + tx;\n"
                "  float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};\n  for (int start = 0; start < k; start += T) {\n"
                "    for (int j = 0; j < 4; ++j) {\n      int y = row + j * T + ty;\n"
                "      a[j * T + ty][tx] = y < m && start + tx < k ? A[(long long)y * k + start + tx] : 0.0f;\n    }\n"
                "    b[ty][tx] = start + ty < k && col < n ? B[(long long)(start + ty) * n + col] : 0.0f;\n"
                "    __syncthreads();\n    for (int i = 0; i < T; ++i) {\n      float v = b[i][tx];\n#pragma unroll\n"
                "      for (int j = 0; j < 4; ++j) sum[j] += a[j * T + ty][i] * v;\n    }\n    __syncthreads();\n  }\n"
                "  for (int j = 0; j < 4; ++j) {\n    int y = row + j * T + ty;\n    float r = sum[j];\n"
                f"    if (y < m && col < n) out[(long long)y * n + col] = {store};\n  }}\n}}\n"
            )
        )
        grid, block = [f"(B[1] + {tile - 1}) // {tile}", f"(A[0] + {4 * tile - 1}) // {4 * tile}"], [tile, tile]
    form = "A @ B" if fused == "none" else "torch.relu(A @ B)"
    tail = "" if fused == "none" else ", rectified"
    return Built(
        reference(form, "A, B", ["torch.randn(m, k)", "torch.randn(k, n)"], _SIZES),
        (f"the product of two matrices{tail}", f"multiply A by B{tail}", f"matrix multiplication{tail}"),
        answer(code, [launch("matmul", grid, block, ["A", "B", "out", "A[0]", "A[1]", "B[1]"])]),
    )


@family("transpose", {"scale": ("1.0", "0.5"), "way": ("naive", "tiled"), "tile": (8, 16, 32)}, ("way", "tile"))
def transpose(scale: str, way: str, tile: int) -> Built:
    """Rows to columns, directly or through a tile of shared memory."""
    factor = "" if scale == "1.0" else f" * {scale}f"
    if way == "naive":
        code = (
            "__global__ void transpose(const float* x, float* out, int rows, int columns) {\n"
            "  int c = blockIdx.x * blockDim.x + threadIdx.x;\n"
            "  int r = blockIdx.y * blockDim.y + threadIdx.y;\n"
            "  if (r >= rows || c >= columns) return;\n"
            f"  out[(long long)c * rows + r] = x[(long long)r * columns + c]{factor};\n}}\n"
        )
    else:
        code = f"#define T {tile}\n" + (
            "__global__ void transpose(const float* x, float* out, int rows, int columns) {\n"
            "  __shared__ float s[T][T + 1];\n"
            "  int c = blockIdx.x * T + threadIdx.x, r = blockIdx.y * T + threadIdx.y;\n"
            "  if (r < rows && c < columns) s[threadIdx.y][threadIdx.x] = x[(long long)r * columns + c];\n"
            "  __syncthreads();\n  c = blockIdx.x * T + threadIdx.y;\n  r = blockIdx.y * T + threadIdx.x;\n"
            f"  if (r < rows && c < columns) out[(long long)c * rows + r] = s[threadIdx.x][threadIdx.y]{factor};\n}}\n"
        )
    grid = [f"(x[1] + {tile - 1}) // {tile}", f"(x[0] + {tile - 1}) // {tile}"]
    form = "x.t().contiguous()" if scale == "1.0" else f"(x.t() * {scale}).contiguous()"
    words = "the transpose of a matrix" if scale == "1.0" else f"the transpose of a matrix times {scale}"
    return Built(
        reference(form, "x", ["torch.randn(rows, columns)"], {"rows": 4096, "columns": 8192}),
        (words, f"{words}, written out", f"rows become columns: {words}"),
        answer(code, [launch("transpose", grid, [tile, tile], ["x", "out", "x[0]", "x[1]"])]),
    )


@family("pool", {"kind": ("max", "avg"), "window": (2, 3), "block": (128, 256)}, ("block",))
def pool(kind: str, window: int, block: int) -> Built:
    """Pooling over square windows that do not overlap."""
    first, combine, result = (
        ("-INFINITY", "fmaxf(v, a)", "v") if kind == "max" else ("0.0f", "v + a", f"v / {window * window}.0f")
    )
    code = (
        "__global__ void pool(const float* x, float* out, int height, int width, int oh, int ow, int n) {\n"
        "  int i = blockIdx.x * blockDim.x + threadIdx.x;\n  if (i >= n) return;\n"
        "  int c = i % ow, r = i / ow % oh, plane = i / (ow * oh);\n"
        f"  float v = {first};\n  for (int y = 0; y < {window}; ++y)\n    for (int z = 0; z < {window}; ++z) {{\n"
        f"      float a = x[((long long)plane * height + r * {window} + y) * width + c * {window} + z];\n"
        f"      v = {combine};\n    }}\n"
        f"  out[i] = {result};\n}}\n"
    )
    return Built(
        reference(f"F.{kind}_pool2d(x, {window})", "x", ["torch.randn(images, channels, height, width)"],
                  {"images": 32, "channels": 32, "height": 128, "width": 128}),
        (f"{kind} pooling over {window} x {window} windows", f"{kind}-pool images by {window}",
         f"shrink images by {window} with {kind} pooling"),
        answer(code, [launch("pool", [f"(size(out) + {block - 1}) // {block}"], [block],
                             ["x", "out", "x[2]", "x[3]", "out[2]", "out[3]", "size(out)"])]),
    )  # fmt: skip


@family("stencil", {"taps": (3, 5), "way": ("direct", "shared"), "block": (128, 256)}, ("way", "block"))
def stencil(taps: int, way: str, block: int) -> Built:
    """A convolution of rows with one learnt filter, zeros outside."""
    half = taps // 2
    if way == "direct":
        code = (
            "__global__ void stencil(const float* x, const float* w, float* out, int n) {\n"
            "  int i = blockIdx.x * blockDim.x + threadIdx.x;\n  if (i >= n) return;\n"
            "  const float* row = x + (long long)blockIdx.y * n;\n  float v = 0.0f;\n#pragma unroll\n"
            f"  for (int k = 0; k < {taps}; ++k) {{\n    int j = i + k - {half};\n"
            f"    if (j >= 0 && j < n) v += row[j] * w[k];\n  }}\n"
            "  out[(long long)blockIdx.y * n + i] = v;\n}\n"
        )
    else:
        code = (
            "__global__ void stencil(const float* x, const float* w, float* out, int n) {\n"
            f"  __shared__ float s[{block + 2 * half}];\n"
            "  int start = blockIdx.x * blockDim.x, i = start + threadIdx.x;\n"
            "  const float* row = x + (long long)blockIdx.y * n;\n"
            f"  for (int t = threadIdx.x; t < {block + 2 * half}; t += blockDim.x) {{\n"
            f"    int j = start + t - {half};\n    s[t] = j >= 0 && j < n ? row[j] : 0.0f;\n  }}\n  __syncthreads();\n"
            f"  if (i >= n) return;\n  float v = 0.0f;\n#pragma unroll\n"
            f"  for (int k = 0; k < {taps}; ++k) v += s[threadIdx.x + k] * w[k];\n"
            "  out[(long long)blockIdx.y * n + i] = v;\n}\n"
        )
    return Built(
        reference(f"F.conv1d(x.unsqueeze(1), self.w.view(1, 1, -1), padding={half}).squeeze(1)", "x",
                  ["torch.randn(rows, columns)"], {"rows": 2048, "columns": 8192},
                  init=f"self.w = nn.Parameter(torch.randn({taps}))"),
        (f"a one-dimensional convolution of every row with {taps} learnt taps, zeros outside",
         f"filter each row with {taps} weights", f"a {taps}-tap convolution along rows"),
        answer(code, [launch("stencil", [f"(x[1] + {block - 1}) // {block}", "x[0]"], [block],
                             ["x", "w", "out", "x[1]"])]),
    )  # fmt: skip


@family("matvec", {"way": ("thread", "warp"), "block": (128, 256)}, ("way", "block"))
def matvec(way: str, block: int) -> Built:
    """A matrix times a vector: a thread a row, or a warp a row."""
    if way == "thread":
        code = (
            "__global__ void matvec(const float* A, const float* v, float* out, int m, int n) {\n"
            "  int row = blockIdx.x * blockDim.x + threadIdx.x;\n  if (row >= m) return;\n  float r = 0.0f;\n"
            "  for (int i = 0; i < n; ++i) r += A[(long long)row * n + i] * v[i];\n  out[row] = r;\n}\n"
        )
        grid = f"(A[0] + {block - 1}) // {block}"
    else:
        code = (
            "__global__ void matvec(const float* A, const float* v, float* out, int m, int n) {\n"
            "  int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;\n"
            "  if (row >= m) return;\n"
            "  float r = 0.0f;\n  for (int i = lane; i < n; i += 32) r += A[(long long)row * n + i] * v[i];\n"
            "  for (int k = 16; k > 0; k >>= 1) r += __shfl_down_sync(0xffffffffu, r, k);\n"
            "  if (lane == 0) out[row] = r;\n}\n"
        )
        grid = f"(A[0] + {block // 32 - 1}) // {block // 32}"
    return Built(
        reference("A @ v", "A, v", ["torch.randn(m, n)", "torch.randn(n)"], {"m": 8192, "n": 8192}),
        ("a matrix times a vector", "multiply A by the vector v", "matrix-vector product"),
        answer(code, [launch("matvec", [grid], [block], ["A", "v", "out", "A[0]", "A[1]"])]),
    )
