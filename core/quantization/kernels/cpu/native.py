"""Compile and open the C++ file beside this one.

It has a plain C interface and no headers of torch, so it compiles in about two seconds, at first use, into the user's
cache; the name of the library carries a hash of source, compiler and flags. Without a compiler there is no library, and
callers take their slower path, after one warning.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fno-math-errno")


def compiler() -> str | None:
    """The C++ compiler: $CXX, g++ or clang++."""
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        if name and shutil.which(name):
            return shutil.which(name)
    return None


def cache_folder() -> Path:
    """Where compiled files are kept: $GRAFT_CACHE, or graft/ in the user's cache."""
    given = os.environ.get("GRAFT_CACHE")
    root = Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "graft"
    return root / "kernels"


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they cannot be built; says why once."""
    found = compiler()
    if found is None:
        warnings.warn("no C++ compiler: CPU kernels are off, the reference kernels compute the same", stacklevel=2)
        return None
    try:
        return ctypes.CDLL(str(_built(found)))
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", b"") or str(error).encode()
        line = detail.decode(errors="replace").strip().splitlines()[:1]
        warnings.warn(f"CPU kernels are off, the reference computes the same: {line}", stacklevel=2)
        return None


def _built(found: str) -> Path:
    version = subprocess.run([found, "--version"], capture_output=True, timeout=30, check=True).stdout
    cpu = Path("/proc/cpuinfo")
    # compiled for this very processor: another one on a shared home builds its own
    model = (
        next((line for line in cpu.read_text().splitlines() if line.startswith("flags")), "") if cpu.exists() else ""
    )
    key = hashlib.sha256(b"\0".join([SOURCE.read_bytes(), version, repr(FLAGS).encode(), model.encode()])).hexdigest()
    target = cache_folder() / f"kernels-{key[:16]}.so"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, suffix=".so")
        os.close(handle)
        try:
            command = [found, *FLAGS, str(SOURCE), "-o", temporary]
            # a compiler without OpenMP still makes a library of one thread
            if subprocess.run([*command, "-fopenmp"], capture_output=True, timeout=120).returncode:
                subprocess.run(command, capture_output=True, timeout=120, check=True)
            os.replace(temporary, target)
        finally:
            Path(temporary).unlink(missing_ok=True)
    return target


def pointer(tensor: torch.Tensor) -> Any:
    """The address of a contiguous CPU tensor."""
    assert tensor.is_contiguous() and tensor.device.type == "cpu"
    return ctypes.c_void_p(tensor.data_ptr())


def cluster(lib: ctypes.CDLL, values: torch.Tensor, weights: torch.Tensor, k: int) -> torch.Tensor:
    """Exact weighted k-means of each row; see `solvers.kmeans.cluster`."""
    values, order = values.double().sort(1)
    weights = weights.double().gather(1, order).contiguous()
    center = values.mean(1, keepdim=True)
    shifted = (values - center).contiguous()
    rows, n = values.shape
    levels = torch.empty(rows, min(k, n), dtype=torch.float64)
    size = max(1, -(-rows // max(1, torch.get_num_threads())))

    def part(start: int) -> None:
        count = min(size, rows - start)
        lib.graft_kmeans(
            *(pointer(t[start : start + count]) for t in (shifted, weights, levels)),
            *map(ctypes.c_int64, (count, n, min(k, n))),
        )

    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        list(pool.map(part, range(0, rows, size)))
    return (levels + center).float()
