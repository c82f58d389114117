"""A ladder split over two processes computes what it does on one, and waits for a sum only after the next sub-layer."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers as tr

from core.control.ladder import ladder
from core.control.ladder_tp import LadderTP, Pending
from core.errors import ConfigError, UnsupportedError
from core.models.blocks.ladder import LadderRun
from core.models.topology import ModelTopology

ROOT = Path(__file__).resolve().parents[3]
IDS = torch.arange(3, 15).view(2, 6)


def model(layers=(1, 2), biased=True):
    torch.manual_seed(0)
    config = tr.LlamaConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=24, max_position_embeddings=32, attention_bias=biased, mlp_bias=biased,
    )  # fmt: skip
    made = tr.LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
    return ladder(made, list(layers)).eval()


def gradients(made):
    made.zero_grad()
    loss = made(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    return {name: p.grad for name, p in made.named_parameters()}


def decoded(made):
    """Logits of one token after the other, through the cache."""
    found, cache = [], None
    with torch.no_grad():
        for position in range(IDS.shape[1]):
            out = made(input_ids=IDS[:, position : position + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            found.append(out.logits)
    return torch.cat(found, 1)


@pytest.mark.parametrize("layers", [(), (1, 2), (0, 1, 2, 3)])
def test_one_process_is_the_architecture_alone(layers):
    plain, split = model(layers), LadderTP().apply(model(layers))
    with torch.no_grad():
        torch.testing.assert_close(split(IDS).logits, plain(IDS).logits, atol=1e-6, rtol=1e-5)
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(gradients(split)[name], gradient, atol=1e-6, rtol=1e-4)


def test_a_sum_is_waited_for_after_the_next_sub_layer_ran():
    made, log = model((0, 1, 2, 3)), []

    class Told(Pending):
        def wait(self):
            log.append("wait")
            return super().wait()

    for run in (part for part in ModelTopology.of(made).stack if isinstance(part, LadderRun)):
        run.start = lambda partial: (log.append("start"), Told(partial, None))[1]
        for block in run.blocks:
            block.self_attn.register_forward_hook(lambda *_: log.append("attention"))
            block.mlp.register_forward_hook(lambda *_: log.append("feed-forward"))
    made(IDS)
    first = ["attention", "start", "feed-forward", "start"]
    later = ["wait", "attention", "start", "wait", "feed-forward", "start"]
    assert log == first + later * 3 + ["wait", "wait"]


def test_what_cannot_be_split_is_told():
    tp = LadderTP()
    tp.size = 3
    with pytest.raises(ConfigError, match="2 key-value heads for 3 processes"):
        tp.apply(model())
    with pytest.raises(UnsupportedError, match="not split"):
        LadderTP().apply(tr.GPT2LMHeadModel(tr.GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=2)))
    made = LadderTP().apply(model())
    made.gradient_checkpointing_enable()
    with pytest.raises(UnsupportedError, match="recomputed"):
        made.train()(IDS)


def one_rank() -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    for layers in ((1, 2), (0, 1, 2, 3)):
        plain, split = model(layers), LadderTP().apply(model(layers))
        with torch.no_grad():
            wanted = plain(IDS).logits
            torch.testing.assert_close(split(IDS).logits, wanted, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(decoded(split), wanted, atol=1e-4, rtol=1e-4)
        whole, mine = gradients(plain), gradients(split)
        assert sum(name.endswith("down_proj.bias") for name in mine) == (4 if rank == 0 else 0)
        for name, gradient in mine.items():
            expected = whole[name]
            if gradient.shape != expected.shape:
                axis = 0 if gradient.shape[0] != expected.shape[0] else 1
                expected = expected.chunk(2, axis)[rank]
            torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    print("equal", flush=True)
    dist.destroy_process_group()


def test_two_processes_compute_what_one_does():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__],
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
        assert process.returncode == 0 and "equal" in out, out[-3000:]


if __name__ == "__main__":
    one_rank()
