"""Several runs on one GPU, each in a process of its own: small ones mostly wait for the host."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks.kept import Kept

Jobs = Mapping[str, tuple[Callable[..., Any], tuple[Any, ...]]]


def together(jobs: Jobs, most: int | None = None, work: Path | None = None) -> dict[str, Any]:
    """Name → function and arguments → name → result: `most` or all at once on a GPU, one by one without one.

    With a bar's folder `work`, results (JSON values) are kept there, and those that are kept are not run again.
    """
    import torch

    kept = Kept(work) if work is not None else None
    found = {name: kept.find([name, arguments]) if kept else None for name, (_, arguments) in jobs.items()}

    def done(name: str, result: Any) -> None:
        found[name] = result
        if kept:
            kept.keep([name, jobs[name][1]], name, result)

    left = {name: job for name, job in jobs.items() if found[name] is None}
    if left and torch.cuda.is_available():
        with sharing(min(most or len(left), len(left))) as pool:
            waiting = {pool.submit(function, *arguments): name for name, (function, arguments) in left.items()}
            for future in as_completed(waiting):
                done(waiting[future], future.result())
    else:
        for name, (function, arguments) in left.items():
            done(name, function(*arguments))
    return found


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
