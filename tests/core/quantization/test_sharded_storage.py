"""FSDP2 over two processes: codes are sharded by rows as dense weights are, and the step is that of one process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SPECS = ("rtn:4", "graft:nf4", "bitmod:3")


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
def test_codes_are_sharded_and_the_gradients_are_those_of_one_process(spec):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    common["PYTHONPATH"] = str(ROOT)
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, spec], env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, cwd=ROOT,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for process in processes:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0 and "equal" in out, out[-3000:]


def one_rank(spec: str) -> None:
    import copy

    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from core.config.schema import AdapterConfig, ModelConfig
    from core.models.tokenizer import train_bpe
    from core.quantization.linear import QuantizedLinear
    from core.training.build import add_adapters, build_base

    dist.init_process_group("gloo")
    config = ModelConfig(preset="tiny", tokenizer="bpe:300", quantization=spec)
    model = build_base(config, train_bpe(["some text to learn from"], 300), device="cpu", seed=1)
    model = add_adapters(model, [AdapterConfig(r=4)], seed=1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.01)
    ids = torch.arange(5, 37).view(2, 16)
    whole = copy.deepcopy(model)
    whole(input_ids=ids, labels=ids).loss.backward()
    mesh = init_device_mesh("cpu", (2,))
    base = model.get_base_model()
    for block in base.model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(base, mesh=mesh)
    for part in model.modules():
        if isinstance(part, QuantizedLinear):
            local = part.planes.to_local()
            assert local.dtype == torch.int32 and local.shape[0] * 2 == part.out_features
    model(input_ids=ids, labels=ids).loss.backward()
    wanted = dict(whole.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert torch.allclose(parameter.grad.full_tensor(), wanted[name].grad, atol=1e-6), name
    dist.destroy_process_group()
    print("equal", flush=True)


if __name__ == "__main__":
    one_rank(sys.argv[1])
