"""The switches of `backend:` laid on a model for the time of a training, and taken off again.

Fused layers, fused LoRA, compiled blocks and recomputed activations change time and memory and nothing that is learnt;
a model that leaves the trainer is the plain one it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from transformers import TrainerCallback

from core.config.schema import BackendConfig
from core.models.varlen import varlen_attention


@contextmanager
def made_fast(model: Any, backend: BackendConfig, device: Any) -> Iterator[bool]:
    """`model` with the switches of `backend` that are on, for the time of the context.

    Gives whether attention takes the borders of packed documents.
    """
    fused = fuse(model, backend, device)
    if backend.activation_checkpoint == "selective":
        checkpoint_every_second(model)
    compiled = compile_blocks(model) if backend.compile == "blocks" else []
    try:
        with nullcontext(False) if backend.packed_attention == "mask" else varlen_attention(model) as takes_borders:
            yield takes_borders
    finally:
        for block in compiled:
            block._compiled_call_impl = None
        if backend.activation_checkpoint == "selective":
            model.gradient_checkpointing_disable()
        if fused:
            from core.models.fused.layer import unfuse_layers

            unfuse_layers(model)


def fuse(model: Any, backend: BackendConfig, device: Any) -> int:
    """Layers on fused kernels, their LoRA written out: by default on a GPU. Returns the number of fused layers."""
    from core.models.fused.backend import has_triton

    gpu = device.type == "cuda" and has_triton() and backend.compile == "none"
    # LoRA is fused inside fused layers, so that who asks for the one has the other
    if not (backend.kernels == "fused" or (backend.kernels == "auto" and (gpu or backend.lora == "fused"))):
        return 0
    from core.models.fused.layer import Arithmetic, fuse_layers

    if backend.lora == "plain":
        return fuse_layers(model)
    from core.adapters.lora_fused import gated_project, project

    return fuse_layers(model, Arithmetic(project, gated_project))


def recomputes_from_host(backend: BackendConfig, device: Any) -> bool:
    """Whether inputs of recomputed blocks wait in host memory."""
    wanted = backend.offload.activations
    chosen = wanted == "host" or (wanted == "auto" and device.type == "cuda")
    return chosen and backend.activation_checkpoint in ("selective", "full")


class HostInputs(TrainerCallback):
    """Once the Trainer has switched checkpointing on: inputs of the blocks go to host memory."""

    def __init__(self, device: Any) -> None:
        self.device = device

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **given: Any) -> None:
        from core.training.recompute import recompute_from_host

        bare = model.module if hasattr(model, "module") and not hasattr(model, "config") else model
        recompute_from_host(bare, blocks_of(bare), self.device)


def blocks_of(model: Any) -> list[Any]:
    """The transformer blocks of a model, adapters or not."""
    from core.models.topology import ModelTopology

    return list(ModelTopology.of(model).stack)


def checkpoint_every_second(model: Any) -> None:
    """Recompute the activations of every second block: half the memory for half the time of recomputing all."""
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for block in blocks_of(model)[1::2]:
        block.gradient_checkpointing = False


def compile_blocks(model: Any) -> list[Any]:
    """Compile each block by itself: equal blocks share one compilation, so warm-up does not grow with depth."""
    import torch

    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 64)
    blocks = blocks_of(model)
    for block in blocks:
        block.compile(dynamic=None)
    return blocks
