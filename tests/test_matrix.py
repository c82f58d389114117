"""Every method × number format of the base × data parallelism, recomputed activations, compilation, at tiny scale.

A cell either trains (finite loss, a gradient in everything that should learn, none elsewhere, the same gradients as
without the switch) or is refused when it is built, with the reason. New methods add a row.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
FORMATS = {
    "full": "none",
    "8 bit": "rtn:8",
    "4 bit": "rtn:4",
    "8 bit, bitsandbytes": "int8",
    "4 bit, bitsandbytes": "nf4",
}


@dataclass(frozen=True)
class Row:
    """A `model:` block. `refused` holds, for cells that cannot be, the words of the reason.

    A cell is a number format, "quantized" for all but the full one, or a switch.
    """

    model: dict[str, Any] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def adapter(kind: str, **options: Any) -> dict[str, Any]:
    return {"adapters": [{"kind": kind, "with": options}]}


def edit(kind: str, **options: Any) -> dict[str, Any]:
    return {"edits": [{"kind": kind, **options}]}


FROZEN = {"quantized": "quantized weights are frozen"}
ROWS = {
    "full fine-tuning": Row(refused=FROZEN),
    "lora": Row({"adapters": [{"kind": "lora", "r": 4}]}),
    "series": Row(adapter("series", r=4)),
    "parallel": Row(adapter("parallel", r=4)),
    "bottleneck": Row(adapter("bottleneck", r=4, scaling="learned", init="bert")),
    "prefix": Row(adapter("prefix", tokens=3), {"checkpointing": "recomputed"}),
    "sequential": Row(adapter("seq_bottleneck", reduction_factor=8)),
    "invertible": Row(adapter("seq_bottleneck", reduction_factor=8, invertible="nice")),
    "control": Row(edit("control", num_expand=1)),
    "control, dynamic": Row(edit("control", num_expand=1, merge="dlerp")),
    "control, stack": Row(edit("control", num_expand=1, expansion="stack")),
    "ladder": Row(edit("ladder", layers=1), FROZEN),
    "spiel": Row(adapter("spiel", density=0.05)),
    "spiel, momentum": Row(adapter("spiel", density=0.05, selection="ma", apply="separate")),
    "green": Row(edit("green", rho=0.9), FROZEN),
    "pruned": Row(edit("prune", method="magnitude", pattern="2:4", kl=1.0), FROZEN),
    "adaptive masks": Row(edit("ast", slorb_k=4), FROZEN),
    "welore": Row(edit("welore", err=0.4, lrc_rule="breakeven")),
    "welore, all of it": Row(edit("welore", err=0.4, lrc_rule="breakeven", train="all"), FROZEN),
    "learngene": Row(edit("learngene", depth=3), FROZEN),
    "learngene, taught": Row(edit("learngene", depth=3, teacher="base"), FROZEN),
    "descendant": Row(edit("descend", depth=3), FROZEN),
    "deepnorm": Row(edit("deepnorm"), FROZEN),
    "skipping": Row(edit("skip_ffn", threshold=0.9, cold_start=0, cold_end=2), FROZEN),
}


def build(row: Row, quantization: str, checkpointing: bool = False) -> tuple[Any, Any]:
    """Model and trainer as a stage would make them."""
    import torch
    from transformers import TrainingArguments

    from core.config.parts import check_parts
    from core.config.schema import ModelConfig, TrainConfig
    from core.config.typed import Places
    from core.config.typed import build as typed
    from core.data.collate import Collator
    from core.models.tokenizer import train_bpe
    from core.training.build import add_adapters, build_base, training_hooks
    from core.training.trainer import SupervisedTrainer

    torch.manual_seed(0)
    block = {"preset": "tiny", "tokenizer": "bpe:300", "quantization": quantization, **row.model}
    config = typed(ModelConfig, block)
    check_parts(config, Places(), ("model",))
    model = build_base(config, train_bpe(["some text to learn from"], 300), device="cpu", seed=1)
    model = add_adapters(model, config.adapters, seed=1)
    cls, callbacks = training_hooks(config, model, SupervisedTrainer)
    args = TrainingArguments(
        output_dir="unused", per_device_train_batch_size=2, max_steps=1, use_cpu=True, report_to=[], disable_tqdm=True,
        remove_unused_columns=False, label_names=["labels"], gradient_checkpointing=checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )  # fmt: skip
    trainer = cls(
        model=model, args=args, data_collator=Collator(1), callbacks=callbacks, train_config=TrainConfig(),
        train_dataset=[0],
    )  # fmt: skip
    return model, trainer


def batch(seed: int = 0) -> dict[str, Any]:
    import torch

    ids = torch.randint(5, 250, (2, 12), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones_like(ids)}


def gradients(model: Any, trainer: Any, called: Any = None, seed: int = 0) -> dict[str, Any]:
    """Gradients of one loss, by the name of the parameter; `called` is the model's wrapper, if it has one."""
    import torch

    model.zero_grad()
    model.train()
    loss = trainer.compute_loss(called or model, batch(seed))
    assert torch.isfinite(loss)
    loss.backward()
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert learning
    unused = [name for name, p in learning.items() if p.grad is None]
    assert not unused, unused
    assert any(p.grad.abs().max() > 0 for p in learning.values())
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    return {name: p.grad.clone() for name, p in learning.items()}


def refused(row: Row, cell: str, make: Any) -> bool:
    """True when the row refuses the cell, and then `make` must do so with that reason."""
    from core.errors import GraftError

    if cell not in row.refused:
        return False
    with pytest.raises(GraftError, match=row.refused[cell]):
        make()
    return True


def same(first: dict[str, Any], second: dict[str, Any], tolerance: float) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        scale = max(1e-3, float(value.abs().max()))
        assert float((value - second[name]).abs().max()) <= tolerance * scale, name


def available(quantization: str) -> bool:
    from core.config.registry import QUANTIZERS

    name = quantization.partition(":")[0]
    return name == "none" or (name in QUANTIZERS and not QUANTIZERS.get(name).missing)


def cells() -> list[Any]:
    """Every row with every number format; beyond the full and our 4-bit one, only in the slow suite."""
    return [
        pytest.param(name, kind, id=f"{name}-{kind}", marks=() if kind in ("full", "4 bit") else pytest.mark.slow)
        for name in ROWS
        for kind in FORMATS
    ]


def skip_unless_available(kind: str) -> str:
    if not available(FORMATS[kind]):
        pytest.skip(f"the number format {FORMATS[kind]} is not available")
    return FORMATS[kind]


@pytest.mark.parametrize(("name", "kind"), cells())
def test_trains_and_recomputes(name, kind):
    row, quantization = ROWS[name], skip_unless_available(kind)
    if kind != "full" and refused(row, "quantized", lambda: build(row, quantization)):
        return
    plain = gradients(*build(row, quantization))
    if refused(row, "checkpointing", lambda: build(row, quantization, checkpointing=True)):
        return
    model, trainer = build(row, quantization, checkpointing=True)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    # LLM.int8 chooses its outlier columns anew in the recomputation
    same(plain, gradients(model, trainer), 5e-2 if quantization == "int8" else 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "4 bit"])
@pytest.mark.parametrize("name", ROWS)
def test_compiles(name, kind):
    import torch

    from core.models.topology import ModelTopology

    row, quantization = ROWS[name], skip_unless_available(kind)
    if "quantized" in row.refused and kind != "full":
        pytest.skip("refused, as another test says")
    torch._dynamo.reset()
    plain = gradients(*build(row, quantization))
    model, trainer = build(row, quantization)
    for block in ModelTopology.of(model).stack:
        block.compile(backend="aot_eager")
    same(plain, gradients(model, trainer), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "4 bit"])
def test_two_processes_have_the_mean_of_their_gradients(kind):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    common["PYTHONPATH"] = str(ROOT)
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, kind],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
        for rank in range(2)
    ]
    for process in processes:
        out, _ = process.communicate(timeout=280)
        assert process.returncode == 0, out[-3000:]
        assert out.count("equal") == len(rows_of(kind))


def rows_of(kind: str) -> dict[str, Row]:
    """The rows that take a number format."""
    return {name: row for name, row in ROWS.items() if kind == "full" or "quantized" not in row.refused}


def two_processes(kind: str) -> None:
    """One rank of the test above: every method under DDP against the mean of two single passes."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo")
    quantization = FORMATS[kind]
    for name, row in rows_of(kind).items():
        single = [gradients(*build(row, quantization), seed=seed) for seed in (0, 1)]
        model, trainer = build(row, quantization)
        wrapped = DistributedDataParallel(model)
        found = gradients(model, trainer, wrapped, seed=rank)
        mean = {key: (single[0][key] + single[1][key]) / 2 for key in single[0]}
        same(mean, found, 1e-4)
        print(name, "equal", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    two_processes(sys.argv[1])
