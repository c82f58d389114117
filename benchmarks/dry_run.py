"""A training step on tensors that have shapes and no content: its peak memory, without a GPU and in seconds.

The model, the fused layers, the loss and autograd are the real ones; every operation's result is counted while it
lives. What runs in Triton on a GPU allocates here what its kernel allocates, and 4-bit weights are unpacked for each
use as bitsandbytes does. Left out are the allocator's rounding and what libraries keep for themselves.
"""

from __future__ import annotations

import gc
import types
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations inside have made and that still live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._live: dict[int, Any] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        self.peak = max(self.peak, self.now)
        return made

    def _count(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()
        if key not in self._live:
            self.now += size
            self._live[key] = weakref.ref(storage, lambda _: self._gone(key, size))

    def _gone(self, key: int, size: int) -> None:
        del self._live[key]
        self.now -= size


def peak_bytes(config: dict[str, Any], *, method: str, micro: int, accumulation: int, length: int, rank: int,
               checkpoint: str) -> int:  # fmt: skip
    """The most bytes that live in a step in steady state: moments exist, gradients from the second pass on.

    Args:
        config: as config.json has it. method: full, lora or qlora. micro, length: sequences and tokens of a pass.
        checkpoint: none or full.
    """
    from core.config.schema import BackendConfig
    from core.objectives.losses import CrossEntropy
    from core.training.recompute import recompute_from_host
    from core.training.speed import blocks_of, fuse

    model = _on_meta(config, method, rank)
    with as_on_gpu(), FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
        _materialise(model)
        model.train()
        fuse(model, BackendConfig(kernels="fused", lora="fused"), torch.device("cpu"))
        if checkpoint == "full":
            model.gradient_checkpointing_enable({"use_reentrant": False})
            recompute_from_host(model, blocks_of(model), torch.device("cpu"))
        trained = [p for p in model.parameters() if p.requires_grad]
        moments = [torch.empty_like(p) for p in trained for _ in range(2)]
        ids = torch.zeros(micro, length, dtype=torch.long)
        places = torch.arange(micro * length).view(micro, -1)[:, :-1].flatten()
        gc.collect()
        live.peak, loss = live.now, CrossEntropy()
        for _ in range(accumulation):
            with torch.autocast("cpu", torch.bfloat16):
                total, _count = loss(model, {"input_ids": ids}, ids, places)
            total.backward()
            del total
        del moments
        return live.peak


def _on_meta(config: dict[str, Any], method: str, rank: int) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    from core.training.masters import train_in

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.bfloat16)
        model.tie_weights()
        if method != "full":
            adapters = LoraConfig(r=rank, target_modules="all-linear")
            model = get_peft_model(model, adapters, low_cpu_mem_usage=True)
        train_in(model, "fp32")
        for module in model.modules() if method == "qlora" else ():
            if hasattr(module, "base_layer"):
                _pack(module.base_layer)
                # bitsandbytes' own adapter layers leave casting to autocast
                module._cast_input_dtype = lambda x, dtype: x
    return model


def _materialise(model: Any) -> None:
    """Parameters and buffers with storages of their own; tied ones stay one."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in made:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                made[id(parameter)] = torch.nn.Parameter(empty, requires_grad=parameter.requires_grad)
            if parameter is not None:
                module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else torch.empty(buffer.shape, dtype=buffer.dtype)


class Linear4bit(torch.nn.Linear):
    """Stands for bitsandbytes' layer of this name: packed storage, unpacked for each use, nothing kept."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            return _Unpacked.apply(x, self)


class _Unpacked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Any) -> torch.Tensor:  # type: ignore[override]
        ctx.layer = layer
        return torch.nn.functional.linear(x.to(torch.bfloat16), unpacked(layer))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        return grad @ unpacked(ctx.layer), None


def unpacked(layer: Any, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(layer.out_features, layer.in_features, dtype=dtype)


def _pack(layer: Any) -> None:
    count = layer.weight.numel()
    packed = torch.empty(count // 2 + count // 64 + count // 4096, dtype=torch.uint8, device="meta")
    layer.__class__ = Linear4bit
    layer.weight = torch.nn.Parameter(packed, requires_grad=False)


class OnHost:
    """Stands for an input that waits in host memory: nothing here until it is on its way back."""

    def __init__(self, hidden: torch.Tensor, road: Any, before: Any) -> None:
        self.shape, self.dtype, self.before, self.back = hidden.shape, hidden.dtype, before, None

    def start_back(self, device: Any) -> None:
        if self.back is None:
            self.back = torch.empty(self.shape, dtype=self.dtype)

    def take(self, device: Any) -> torch.Tensor:
        self.start_back(device)
        if self.before is not None:
            self.before.start_back(device)
        back, self.back = self.back, None
        return back


def _kernels() -> Any:
    """What Triton's kernels of `core.models.fused` allocate."""

    def norm_forward(x, added, weight, eps, dtype):
        summed = x if added is None else torch.empty_like(x, dtype=torch.promote_types(x.dtype, added.dtype))
        return torch.empty_like(x, dtype=dtype), summed, torch.empty(len(x), dtype=torch.float32)

    def norm_backward(grad, passed, x, weight, inverse, with_gain):
        out = torch.empty_like(x)
        if not with_gain:
            return out, None
        programs = -(-len(x) // max(1, len(x) // 2048))
        return out, torch.empty(programs, x.shape[1], dtype=torch.float32).sum(0)

    def gated_backward(grad, gate, up, keep):
        return torch.empty_like(gate), torch.empty_like(up), torch.empty_like(up) if keep else None

    return types.SimpleNamespace(
        norm_forward=norm_forward,
        norm_backward=norm_backward,
        rotate=lambda x, cos, sin, sign: torch.empty(x.shape, dtype=x.dtype),
        gated=lambda gate, up: torch.empty_like(up),
        gated_backward=gated_backward,
    )


@contextmanager
def as_on_gpu() -> Iterator[None]:
    """Kernels, masks and pieces as a GPU would have them."""
    from transformers.models.llama import modeling_llama
    from transformers.models.qwen2 import modeling_qwen2
    from transformers.models.qwen3 import modeling_qwen3

    from core.adapters import lora_fused
    from core.models.fused import ops
    from core.objectives import linear_cross_entropy, losses
    from core.training import recompute

    kernels, dense = _kernels(), lora_fused.dense
    changes = [(module, "create_causal_mask", lambda *args, **kwargs: None)
               for module in (modeling_llama, modeling_qwen2, modeling_qwen3)]  # fmt: skip
    changes += [(module, "kernels_for", lambda tensor: kernels) for module in (ops, lora_fused)]
    changes += [
        (linear_cross_entropy, "softmax_loss_", lambda raw, *rest: raw.new_zeros((), dtype=torch.float32)),
        (losses, "understood", lambda *given: True),
        (recompute, "Waiting", OnHost),
        (lora_fused, "dense", lambda b, t: unpacked(b, t) if type(b).__name__ == "Linear4bit" else dense(b, t)),
    ]
    with ExitStack() as stack:
        for module, name, value in changes:
            stack.enter_context(mock.patch.object(module, name, value))
        pieces = linear_cross_entropy.PIECE_BYTES
        stack.enter_context(mock.patch.dict(pieces, {"cpu": pieces["cuda"]}))
        yield
