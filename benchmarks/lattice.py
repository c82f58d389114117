"""The lattice: one optimizer step of every registered loss, over every way to cut, pack, recompute and spread a batch.

The rows have very different lengths and shares of trained tokens, one of them none at all. What a step does to the
weights must be the same in every cell; a reference written out by hand (one row at a time, one division at the end)
says what it is. Run as a module on two processes it computes the cells that need them.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.bar import ROOT

RATE, LONGEST = 0.5, 40
# below the norm of the gradient, and so large that the change is far above the spacing of the weights
CLIP = {"lora": 0.15, "full": 1.0}


@dataclass(frozen=True)
class Cell:
    """One way to take the same step.

    Args:
        micro, accumulation: rows of a micro-batch on each process, and micro-batches. packed: rows share sequences.
        ranks: processes. clip: largest norm of the whole gradient, 0 for none. backend: keys of `backend:`.
    """

    loss: str
    model: str = "lora"
    micro: int = 8
    accumulation: int = 1
    packed: bool = False
    ranks: int = 1
    clip: float = 0.0
    backend: tuple[tuple[str, Any], ...] = field(default=())

    def __str__(self) -> str:
        keys = " ".join(f"{name}={value}" for name, value in self.backend)
        more = (" packed" if self.packed else "") + (" clipped" if self.clip else "")
        return f"{self.loss} {self.model} {self.micro}x{self.accumulation}x{self.ranks}{more} {keys}".strip()


CUTS = [(8, 1), (4, 2), (3, 3), (1, 8)]
SWITCHES: list[tuple[tuple[str, Any], ...]] = [
    (),
    (("activation_checkpoint", "full"),),
    (("activation_checkpoint", "selective"),),
    (("kernels", "fused"),),
    (("kernels", "fused"), ("lora", "plain")),
    (("kernels", "fused"), ("activation_checkpoint", "full")),
    (("activation_checkpoint", "full"), ("offload", "host")),
    (("activation_checkpoint", "selective"), ("offload", "host"), ("kernels", "fused")),
    (("optimizer_step", "plain"),),
]
PACKED = [(("packed_attention", "mask"),), (("packed_attention", "varlen"),)]


def cells(loss: str, *, full: bool) -> Iterator[Cell]:
    """Cells of a loss on one process: all combinations when `full`, else each cut, and the switches for one loss."""
    models = models_of(loss) if full or loss == "cross_entropy" else models_of(loss)[:1]
    for model in models:
        yield Cell(loss, model)
        yield Cell(loss, model, 4, 2, clip=CLIP[model])
        for micro, accumulation in CUTS[1:]:
            yield Cell(loss, model, micro, accumulation)
        for attention in PACKED:
            yield Cell(loss, model, 64, 1, packed=True, backend=attention)
            yield Cell(loss, model, 1, 8, packed=True, backend=attention)
        for switches in SWITCHES[1:] if full or loss == "cross_entropy" else SWITCHES[1:2]:
            yield Cell(loss, model, 4, 2, backend=switches)
        if full:
            for (micro, accumulation), switches in itertools.product(CUTS, SWITCHES[1:]):
                yield Cell(loss, model, micro, accumulation, backend=switches)
            for attention, switches in itertools.product(PACKED, SWITCHES[1:]):
                yield Cell(loss, model, 2, 4, packed=True, backend=attention + switches)


def models_of(loss: str) -> list[str]:
    """What can be trained by a loss: a teacher made by switching adapters off needs adapters."""
    return ["lora"] if loss.startswith("distillation") else ["lora", "full"]


def rows() -> list[Any]:
    """Rows of 4 to 40 tokens, of which few, many or none are trained."""
    import torch

    from core.data.encode import IGNORE, Encoded

    generator = torch.Generator().manual_seed(0)
    made = []
    for length, given in zip((4, 40, 9, 17, 33, 6, 25, 12), (3, 2, 8, 0, 30, 6, 5, 1)):
        ids = torch.randint(5, 250, (length,), generator=generator).tolist()
        made.append(Encoded(ids, [IGNORE] * given + ids[given:]))
    return made


def model_for(kind: str) -> Any:
    """A tiny model, in full or with adapters whose second factors are not zero."""
    import torch

    from core.config.schema import AdapterConfig, ModelConfig
    from core.models.load import load_model
    from core.training.build import add_adapters

    model = load_model(ModelConfig(preset="tiny"), range(300), seed=3)
    if kind == "lora":
        model = add_adapters(model, [AdapterConfig(r=4)])
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.05, generator=generator)
    return model


def step(cell: Cell, folder: Path) -> Any:
    """The change (P,) that one plain gradient step makes to the trained weights."""
    import torch
    from transformers import TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    from core.config.schema import BackendConfig, OffloadConfig, TrainConfig
    from core.data.collate import Collator
    from core.data.dataset import EncodedDataset
    from core.objectives.losses import LOSSES
    from core.training.trainer import CountingCollator, SupervisedTrainer

    model = model_for(cell.model)
    before = _trained(model)
    keys = dict(cell.backend)
    backend = BackendConfig(**{**keys, "offload": OffloadConfig(keys.pop("offload", "none"))})
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=cell.micro, gradient_accumulation_steps=cell.accumulation,
        max_steps=1, learning_rate=RATE, optim="sgd", max_grad_norm=cell.clip, use_cpu=True, report_to=[],
        remove_unused_columns=False, disable_tqdm=True, save_strategy="no", label_names=["labels"],
        gradient_checkpointing=backend.activation_checkpoint == "full",
        gradient_checkpointing_kwargs={"use_reentrant": False}, ddp_find_unused_parameters=False,
        average_tokens_across_devices=True,
    )  # fmt: skip
    trainer = SupervisedTrainer(
        model=model,
        args=arguments,
        train_dataset=EncodedDataset(rows(), LONGEST if cell.packed else None),
        data_collator=CountingCollator(Collator(1)),
        train_config=TrainConfig(schedule="constant", warmup=0),
        backend=backend,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.loss = LOSSES.get(cell.loss)()
    trainer.train()
    return torch.cat([a - b for a, b in zip(_trained(trainer.accelerator.unwrap_model(trainer.model)), before)])


def _trained(model: Any) -> list[Any]:
    return [p.detach().clone().flatten() for _, p in sorted(model.named_parameters()) if p.requires_grad]


def by_hand(loss: str, kind: str, clip: float = 0.0) -> Any:
    """The change (P,) of the same step, each row alone without padding, and one division at the end."""
    import torch

    from core.data.collate import Collator
    from core.objectives.losses import LOSSES

    model, call = model_for(kind).train(), LOSSES.get(loss)()
    total, count = 0.0, 0
    for row in rows():
        batch = Collator(1, multiple=1)([row])
        labels = batch.pop("labels")
        summed, number = call(model, batch, labels)
        total, count = total + summed, count + int(number)
    parameters = [p for _, p in sorted(model.named_parameters()) if p.requires_grad]
    gradients = torch.autograd.grad(total / count, parameters, allow_unused=True)
    whole = torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, gradients)])
    return -RATE * whole * (min(1.0, clip / float(whole.norm())) if clip else 1.0)


def difference(found: Any, wanted: Any) -> float:
    """Largest deviation, relative to the largest change of a weight."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def on_two_processes(losses: list[str], folder: Path) -> dict[str, float]:
    """Loss → deviation of the step on two processes, whose shares of trained tokens are very unequal."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, "-m", "benchmarks.lattice", str(folder), *losses]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    import torch

    found = torch.load(folder / "two.pt")
    return {" ".join(map(str, cell)): difference(change, by_hand(*cell)) for cell, change in found.items()}


def main() -> None:
    import torch

    folder, losses = Path(sys.argv[1]), sys.argv[2:]
    found = {}
    for loss in losses:
        for model in models_of(loss):
            for clip in (0.0, CLIP[model]):
                found[(loss, model, clip)] = step(Cell(loss, model, 2, 2, ranks=2, clip=clip), folder)
    if torch.distributed.get_rank() == 0:
        torch.save(found, folder / "two.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
