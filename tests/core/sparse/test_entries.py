"""Adding to entries and reading them: exact, and the same by the kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from core.models.fused.backend import has_triton
from core.sparse.entries import add_into, read

ROOT = Path(__file__).parents[3]
CASES = [(made, source) for made in (torch.float32, torch.bfloat16) for source in (torch.float32, torch.bfloat16)]


def given(made, source, count):
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(5000, generator=generator).to(source)
    positions = torch.randperm(5000, generator=generator)[:count].sort().values.int()
    return vector.to(made, copy=True), vector, positions, torch.randn(count, generator=generator) * 1e-3


@pytest.mark.parametrize(("made", "source"), CASES)
def test_a_sum_is_rounded_once(made, source):
    to, vector, positions, values = given(made, source, 1500)
    before = to.clone()
    add_into(to, vector, positions, values)
    at = positions.long()
    assert torch.equal(to[at], (vector[at].double() + values.double()).float().to(made))
    before[at] = to[at]
    assert torch.equal(before, to), "nothing else is written"


def test_reading_from_a_tile():
    _, vector, positions, _ = given(torch.float32, torch.float32, 1500)
    inside = positions[(positions >= 1000) & (positions < 2000)]
    out = torch.empty(len(inside), dtype=torch.float64)
    read(vector[1000:2000], inside, 1000, out)
    assert torch.equal(out, vector[inside.long()].double())
    read(vector, inside[:0], 0, out[:0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize(("made", "source"), CASES)
def test_a_gpu_gives_the_same_bits(made, source):
    to, vector, positions, values = given(made, source, 1500)
    there, out = to.cuda(), torch.empty(1500, device="cuda")
    add_into(to, vector, positions, values)
    add_into(there, vector.cuda(), positions.cuda(), values.cuda())
    assert torch.equal(there.cpu(), to)
    read(there, positions.cuda(), 0, out)
    assert torch.equal(out.cpu(), to[positions.long()].float())


SCRIPT = """
import sys, torch
sys.path[:0] = [{root!r}, {tests!r}]
from test_entries import CASES, given
from core.sparse import entries, triton_entries
entries.runs_triton = lambda tensor: False
for count in (0, 1, 1024, 1500):
    for case in CASES:
        to, vector, positions, values = given(*case, count)
        other, found, wanted = to.clone(), values.clone(), values.clone()
        entries.add_into(to, vector, positions, values)
        triton_entries.add_into(other, vector, positions, values)
        # Triton's interpreter cuts off what bf16 cannot hold, a GPU rounds
        torch.testing.assert_close(to, other, rtol=2**-7 if to.dtype == torch.bfloat16 else 0, atol=0)
        entries.read(vector, positions, 0, wanted)
        triton_entries.read(vector, positions, 0, found)
        assert torch.equal(found, wanted)
        triton_entries.read(vector[100:], positions[positions >= 100], 100, found := values[positions >= 100].clone())
        assert torch.equal(found, wanted[positions >= 100])
print("equal")
"""


@pytest.mark.skipif(not has_triton(), reason="Triton is not installed")
def test_the_kernels_equal_their_twins():
    script = SCRIPT.format(root=str(ROOT), tests=str(Path(__file__).parent))
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "equal", done.stderr[-2000:]
