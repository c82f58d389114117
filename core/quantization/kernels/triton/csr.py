"""Add the values that lie beside a matrix (SqueezeLLM's 0.5 %) to a product, in place, on a GPU.

A program takes a block of outputs and walks along its longest row, so that the work is even where rows are about
equally long. Products of more than 64 rows go through the vendor's sparse product.
"""

from __future__ import annotations

import torch

MOST_ROWS, OUTPUTS, STEP = 64, 16, 32


def add(y: torch.Tensor, x: torch.Tensor, crow: torch.Tensor, col: torch.Tensor, val: torch.Tensor) -> None:
    """y (…, N) += x (…, K) · Sᵀ with S (N, K) in CSR: crow (N + 1,), col and val (nnz,); sums in fp32."""
    (csr_add_op if torch.compiler.is_compiling() else _add)(y, x, crow, col, val)


def _add(y: torch.Tensor, x: torch.Tensor, crow: torch.Tensor, col: torch.Tensor, val: torch.Tensor) -> None:
    out, rows = y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1]).contiguous()
    count, outputs = out.shape
    if count > MOST_ROWS:
        sparse = torch.sparse_csr_tensor(crow, col, val.float(), (outputs, rows.shape[1]), check_invariants=False)
        out += (sparse @ rows.float().t()).t().to(out.dtype)
    elif count:
        from core.quantization.kernels.triton.csr_kernel import csr_add

        csr_add[(-(-outputs // OUTPUTS), count)](
            out, rows, crow, col, val, outputs, rows.shape[1], BN=OUTPUTS, STEP=STEP, num_warps=4
        )


csr_add_op = torch.library.custom_op("graft::csr_add", _add, mutates_args={"y"}, device_types="cuda")
csr_add_op.register_fake(lambda y, x, crow, col, val: None)
