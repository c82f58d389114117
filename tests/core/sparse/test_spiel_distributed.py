"""SpIEL on two processes, replicated and with a sharded base: one selection everywhere, and a resume that changes none.

A single process that reads both halves of every batch, one after the other, is the reference: candidates come from the
first half, as they come from the first of two processes.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[3]
STEPS, BREAK = 14, 7  # a window is open from step 6 to 8, so the break falls into it


def build():
    import transformers as tr
    from peft import get_peft_model

    from core.sparse import SpielConfig

    torch.manual_seed(0)
    config = tr.LlamaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=24, max_position_embeddings=32,
    )  # fmt: skip
    options = SpielConfig(density=0.05, reselection_steps=3, accumulation_steps=2, rate_policy="constant")
    return get_peft_model(tr.LlamaForCausalLM(config), options)


class Run:
    """A training loop by hand: model, optimizer and the callback that moves the support."""

    def __init__(self, wrap) -> None:
        from core.sparse.spiel import spiel_layers
        from core.sparse.spiel_optim import SpielAdamW
        from core.sparse.spiel_training import SpielCallback

        self.model = build()
        self.layers = spiel_layers(self.model)
        self.values = [layer.spiel_values["default"] for layer in self.layers.values()]
        self.called = wrap(self.model)
        self.optimizer = SpielAdamW(self.values, lr=0.02)
        self.callback = SpielCallback(self.model.peft_config["default"])
        self.callback.take_layers(self.model)

    def train(self, first: int, last: int, half: int | None) -> None:
        for step in range(first, last):
            ids = torch.randint(40, (4, 10), generator=torch.Generator().manual_seed(step))
            for piece in ids.chunk(2) if half is None else [ids.chunk(2)[half]]:
                loss = self.called(input_ids=piece, labels=piece).loss
                (loss / 2 if half is None else loss).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            state = SimpleNamespace(global_step=step + 1, max_steps=STEPS)
            self.callback.on_step_end(None, state, None, model=self.model, optimizer=self.optimizer)

    def stored(self) -> dict:
        """What a checkpoint keeps."""
        from copy import deepcopy

        return deepcopy({
            "adapter": self.support(), "optimizer": self.optimizer.state_dict(), "callback": self.callback.state(),
            "window": self.callback.tensors(),
        })  # fmt: skip

    def restore(self, found: dict) -> None:
        with torch.no_grad():
            for name, layer in self.layers.items():
                layer.spiel_indices["default"].copy_(found["adapter"][name][0])
                layer.spiel_values["default"].copy_(found["adapter"][name][1])
        self.optimizer.load_state_dict(found["optimizer"])
        attributes = found["callback"]["attributes"]
        self.callback.opened, self.callback.selections = attributes["opened"], attributes["selections"]
        self.callback.load_plain(attributes["plain"])
        self.callback.load_tensors(found["window"])

    def support(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        return {
            name: (layer.spiel_indices["default"].clone(), layer.spiel_values["default"].detach().clone())
            for name, layer in self.layers.items()
        }


def replicated_by_ddp(model):
    from torch.nn.parallel import DistributedDataParallel

    names = [name for name, _ in model.named_buffers() if "spiel_indices" in name]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
    return DistributedDataParallel(model)


def sharded_by_fsdp(model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from core.models.topology import ModelTopology
    from core.sparse.spiel_training import replicated

    mesh, values = init_device_mesh("cpu", (2,)), replicated(model)
    for block in ModelTopology.of(model).stack:
        fully_shard(block, mesh=mesh, ignored_params=values)
    fully_shard(model, mesh=mesh, ignored_params=values)
    return model


WRAPS = {"ddp": replicated_by_ddp, "fsdp": sharded_by_fsdp}


def same(first: dict, second: dict) -> None:
    for name, (indices, values) in first.items():
        assert torch.equal(indices, second[name][0]), name
        torch.testing.assert_close(values, second[name][1], rtol=1e-3, atol=1e-5)


def one_rank(kind: str) -> None:
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo")
    alone = Run(lambda model: model)
    # a single process has no group to agree with, so the reference is computed as if there were none
    world, dist.is_initialized = dist.is_initialized, lambda: False
    alone.train(0, STEPS, None)
    dist.is_initialized = world
    whole = Run(WRAPS[kind])
    if kind == "fsdp":
        weights = [p for name, p in whole.model.named_parameters() if "base_layer.weight" in name]
        assert weights and all(type(p).__name__ == "DTensor" for p in weights)
    whole.train(0, STEPS, rank)
    assert whole.callback.selections >= 3
    same(alone.support(), whole.support())
    for indices, values in whole.support().values():
        for tensor in (indices, values):
            others = [torch.empty_like(tensor) for _ in range(2)]
            dist.all_gather(others, tensor)
            assert torch.equal(others[0], others[1])
    before, after = Run(WRAPS[kind]), Run(WRAPS[kind])
    before.train(0, BREAK, rank)
    assert before.callback.tensors()
    after.restore(before.stored())
    after.train(BREAK, STEPS, rank)
    for name, pair in whole.support().items():
        assert all(map(torch.equal, pair, after.support()[name])), name
    print("agreed", flush=True)
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_processes_agree_and_resume(kind):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, kind],
            env={**common, "PYTHONPATH": str(ROOT), "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        out, _ = process.communicate(timeout=240)
        assert process.returncode == 0 and "agreed" in out, out[-3000:]


if __name__ == "__main__":
    one_rank(sys.argv[1])
