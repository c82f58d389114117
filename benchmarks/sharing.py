"""Several runs on one GPU, each in a process of its own: small ones mostly wait for the host."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any


def together(jobs: Mapping[str, tuple[Callable[..., Any], tuple[Any, ...]]], most: int | None = None) -> dict[str, Any]:
    """Name → function and arguments → name → result: `most` or all at once on a GPU, one by one without one."""
    import torch

    if not torch.cuda.is_available():
        return {name: function(*arguments) for name, (function, arguments) in jobs.items()}
    with sharing(min(most or len(jobs), len(jobs))) as pool:
        waiting = {name: pool.submit(function, *arguments) for name, (function, arguments) in jobs.items()}
        return {name: future.result() for name, future in waiting.items()}


def sharing(count: int) -> ProcessPoolExecutor:
    """`count` processes that share the GPU and the cores evenly; each keeps within its part of the memory.

    GRAFT_GPU_SHARE=0.5 in the environment says that another bar has the other half of the GPU.
    """
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_share, initargs=(count,))


def _share(count: int) -> None:
    cores = max(1, len(os.sched_getaffinity(0)) // count)
    os.environ["RAYON_NUM_THREADS"] = str(cores)  # read by tokenizers when it first works
    import torch

    torch.set_num_threads(cores)
    if torch.cuda.is_available():
        # A tenth is left for what the driver keeps for each process.
        torch.cuda.set_per_process_memory_fraction(0.9 * float(os.environ.get("GRAFT_GPU_SHARE", 1)) / count)
