"""A matrix product with four knobs, every setting of them, and a judge that remembers what each setting gave.

Some settings are no kernel at all (too many threads, too much shared memory): a search has to find its way around them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from apps.cuda.example import CudaExample
from apps.cuda.search import turned
from apps.cuda.source import candidate
from apps.cuda.taskgen.family import reference
from apps.cuda.verdict import CudaVerdict

SPACE: dict[str, tuple[int, ...]] = {"BM": (16, 32, 64), "BN": (16, 32, 64), "BK": (8, 16, 32), "TM": (1, 2, 4)}
SMALL: dict[str, tuple[int, ...]] = {"BM": (16, 32), "BN": (16, 32), "BK": (8, 16), "TM": (1, 2, 4)}
_CODE = """#define BM 16
#define BN 16
#define BK 8
#define TM 1
__global__ void matmul(const float* __restrict__ A, const float* __restrict__ B, float* __restrict__ out,
                       int m, int k, int n) {
  __shared__ float a[BM][BK + 1], b[BK][BN + 1];
  const int threads = BM / TM * BN;
  int t = threadIdx.x, tx = t % BN, ty = t / BN, row = blockIdx.y * BM, col = blockIdx.x * BN;
  float sum[TM];
  for (int j = 0; j < TM; ++j) sum[j] = 0.0f;
  for (int start = 0; start < k; start += BK) {
    for (int i = t; i < BM * BK; i += threads) {
      int y = row + i / BK, x = start + i % BK;
      a[i / BK][i % BK] = y < m && x < k ? A[(long long)y * k + x] : 0.0f;
    }
    for (int i = t; i < BK * BN; i += threads) {
      int y = start + i / BN, x = col + i % BN;
      b[i / BN][i % BN] = y < k && x < n ? B[(long long)y * n + x] : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < BK; ++i) {
      float v = b[i][tx];
#pragma unroll
      for (int j = 0; j < TM; ++j) sum[j] += a[j * (BM / TM) + ty][i] * v;
    }
    __syncthreads();
  }
  for (int j = 0; j < TM; ++j) {
    int y = row + j * (BM / TM) + ty, x = col + tx;
    if (y < m && x < n) out[(long long)y * n + x] = sum[j];
  }
}
"""
_PLAN = """{"sizes": {"BM": "16", "BN": "16", "BK": "8", "TM": "1"},
 "launches": [{"kernel": "matmul", "grid": ["(B[1] + BN - 1) // BN", "(A[0] + BM - 1) // BM"],
               "block": ["BM // TM * BN"], "args": ["A", "B", "out", "A[0]", "A[1]", "B[1]"]}]}"""
FIRST = candidate(_CODE, _PLAN)


def problem(size: int) -> CudaExample:
    """The product of two square matrices."""
    source = reference("A @ B", "A, B", ["torch.randn(m, k)", "torch.randn(k, n)"], {"m": size, "k": size, "n": size})
    return CudaExample(source, id=f"matmul {size}")


def settings(space: Mapping[str, tuple[int, ...]]) -> Iterator[dict[str, int]]:
    """Every setting of the knobs."""
    for values in itertools.product(*space.values()):
        yield dict(zip(space, values))


class Remembered:
    """A harness that measures each setting once, so that many searches cost one sweep."""

    def __init__(self, harness: Any, task: CudaExample, space: Mapping[str, tuple[int, ...]]) -> None:
        self.archs, self._device = harness.archs, harness._device
        texts = [turned(FIRST, setting).strip() for setting in settings(space)]
        self.known: dict[str, CudaVerdict] = dict(zip(texts, harness.verify_many((task, text) for text in texts)))

    def verify(self, task: CudaExample, text: str) -> CudaVerdict:
        return self.known[text.strip()]

    @property
    def best(self) -> CudaVerdict:
        """The fastest right setting."""
        right = [v for v in self.known.values() if v.passed and v.timing is not None]
        if not right:
            raise RuntimeError(f"no setting is right and timed; the first: {next(iter(self.known.values()))}")
        return min(right, key=lambda v: v.timing.median if v.timing else float("inf"))
