"""Start the same command on several devices, and ask which process this is.

`graft train … --gpus N` re-executes itself under torchrun; the processes find each other through the environment.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from functools import cache
from typing import Any

from core.errors import BackendUnavailable


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    return rank() == 0


def join(device: str) -> None:
    """Meet the other processes, each on a GPU of its own; nothing when there is one process.

    To be called before anything that one process writes and the others read: `barrier` waits only after it.
    """
    import torch
    import torch.distributed as dist

    if world_size() == 1 or dist.is_initialized():
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")


def leave() -> None:
    """Part from the other processes once all are done; nothing when there is one process."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier(_waiting_room())
        _waiting_room.cache_clear()
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for every process, however long the main one evaluates; nothing when there is one."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier(_waiting_room())


def sum_over_ranks(value: int) -> int:
    """The sum of every process's value, on every process."""
    import torch
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return value
    box = torch.tensor([value], dtype=torch.long)
    dist.all_reduce(box, group=_waiting_room())
    return int(box.item())


def agreed(value: Any) -> Any:
    """The main process's value, on every process."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=_waiting_room())
    return box[0]


@cache
def _waiting_room() -> Any:
    """A gloo group for waiting alone: NCCL would give up after ten minutes. A process that fails ends all anyway."""
    import torch.distributed as dist

    return dist.new_group(backend="gloo", timeout=timedelta(days=1))


def relaunch(arguments: Sequence[str], gpus: int) -> int:
    """Run `graft <arguments>` with one process a GPU. Returns the exit status; one failing process ends all.

    The processes have a session of their own, so that a closed terminal does not end them; Ctrl-C is passed on.

    Raises:
        BackendUnavailable: fewer GPUs than asked for.
    """
    import torch

    found = torch.cuda.device_count()
    if found < gpus:
        raise BackendUnavailable(f"{gpus} GPUs were asked for, this machine has {found}", where="--gpus")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}"]
    child = subprocess.Popen([*command, "-m", "recipes", *arguments], start_new_session=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: child.send_signal(number))
    return child.wait()
