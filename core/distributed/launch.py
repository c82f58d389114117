"""Start the same command on several devices, and ask which process this is.

`graft train … --gpus N` re-executes itself under torchrun; the processes find each other through the environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from core.errors import BackendUnavailable


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    """Wait for every process; nothing when there is one."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def relaunch(arguments: Sequence[str], gpus: int) -> int:
    """Run `graft <arguments>` with one process a GPU. Returns the exit status; one failing process ends all.

    Raises:
        BackendUnavailable: fewer GPUs than asked for.
    """
    import torch

    found = torch.cuda.device_count()
    if found < gpus:
        raise BackendUnavailable(f"{gpus} GPUs were asked for, this machine has {found}", where="--gpus")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}"]
    return subprocess.call([*command, "-m", "recipes", *arguments])
