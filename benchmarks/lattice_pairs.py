"""The lattice of losses over pairs: TRL's trainers in our frame, over every way to cut a step and every switch.

Answers have very different lengths. The reference is written out by hand: one answer at a time without padding, each
term divided once at the end, by the pairs or by the tokens of the better answers.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.bar import ROOT

RATE, PAIRS = 0.5, 8
SFT = 0.7
OPTIONS: dict[str, dict[str, Any]] = {
    "dpo": {"beta": 0.3, "max_length": None},
    "wpo": {"beta": 0.3, "max_length": None, "use_weighting": True},
    "dpo + sft": {"beta": 0.3, "max_length": None, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, SFT]},
    "cpo": {"beta": 0.1, "cpo_alpha": SFT, "max_length": 64},
}
CUTS = [(8, 1), (4, 2), (3, 3), (1, 8)]
SWITCHES: dict[str, tuple[tuple[str, Any], ...]] = {
    "fused": (("kernels", "fused"),),
    "fused, plain LoRA": (("kernels", "fused"), ("lora", "plain")),
    "recomputed": (("activation_checkpoint", "full"),),
    "every second block": (("activation_checkpoint", "selective"), ("kernels", "fused")),
    "inputs on the host": (("activation_checkpoint", "full"), ("offload", "host")),
}


@dataclass(frozen=True)
class PairCell:
    """One way to take the same step: `micro` pairs × `accumulation` on each process, under keys of `backend:`."""

    method: str
    kind: str = "lora"
    micro: int = 8
    accumulation: int = 1
    backend: tuple[tuple[str, Any], ...] = field(default=())

    def __str__(self) -> str:
        keys = " ".join(f"{name}={value}" for name, value in self.backend)
        return f"{self.method} {self.kind} {self.micro}x{self.accumulation} {keys}".strip()


def cells(method: str, *, full: bool) -> Iterator[PairCell]:
    """Every cut, and every switch; of a model with adapters alone unless `full`."""
    for kind in ("lora", "full") if full else ("lora",):
        for micro, accumulation in CUTS:
            yield PairCell(method, kind, micro, accumulation)
        for switches in SWITCHES.values() if full or method == "cpo" else ():
            yield PairCell(method, kind, 4, 2, switches)


def pairs(tokenizer: Any, count: int = PAIRS) -> Any:
    """Encoded pairs whose answers have 1 to 6 count words."""
    from core.data.segments import Segment
    from core.training.preference.pairs import Pair, encode_pairs

    answers = [("red " * (1 + 5 * i), "blue " * (1 + (7 * i) % 11)) for i in range(count)]
    rows = [Pair(*([Segment("say "), Segment(text, "assistant", True)] for text in each)) for each in answers]
    return encode_pairs(rows, tokenizer)[0]


def tokenizer_for() -> Any:
    from core.models.tokenizer import train_bpe

    return train_bpe(["say red blue green white black brown"] * 3, 300)


def model_for(kind: str, tokenizer: Any) -> Any:
    """A tiny model, in full or with fresh adapters."""
    from core.config.schema import AdapterConfig, ModelConfig
    from core.models.load import load_model
    from core.training.build import add_adapters

    model = load_model(ModelConfig(preset="tiny"), tokenizer, seed=3)
    return add_adapters(model, [AdapterConfig(r=4)]) if kind == "lora" else model


def move(model: Any, kind: str) -> Any:
    """The policy a little away from its reference, so that nothing starts at a point of symmetry."""
    import torch

    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad and (kind == "full" or "lora_B" in name):
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def backend_of(keys: tuple[tuple[str, Any], ...]) -> Any:
    from core.config.schema import BackendConfig, OffloadConfig

    given = dict(keys)
    return BackendConfig(**{**given, "offload": OffloadConfig(given.pop("offload", "none"))})


def trainer_of(
    folder: Path, cell: PairCell, *, count: int = PAIRS, steps: int = 1, lr: float = RATE, backend: Any = None
) -> Any:
    """The trainer of a cell, its policy moved off the reference."""
    from transformers import TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    from core.config.schema import TrainConfig
    from core.training.preference.cpo import CpoTrainer
    from core.training.preference.dpo import DpoTrainer

    tokenizer, backend = tokenizer_for(), backend or backend_of(cell.backend)
    model = model_for(cell.kind, tokenizer)
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=cell.micro, gradient_accumulation_steps=cell.accumulation,
        max_steps=steps, learning_rate=lr, optim="sgd", max_grad_norm=0.0, use_cpu=True, report_to=[], bf16=False,
        remove_unused_columns=False, disable_tqdm=True, save_strategy="no", logging_steps=1,
        gradient_checkpointing=backend.activation_checkpoint == "full", ddp_find_unused_parameters=False,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )  # fmt: skip
    trainer = (CpoTrainer if cell.method == "cpo" else DpoTrainer)(
        model=model, args=arguments, train_dataset=pairs(tokenizer, count), tokenizer=tokenizer,
        options=OPTIONS[cell.method], train_config=TrainConfig(schedule="constant", warmup=0), backend=backend,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    move(model, cell.kind)
    return trainer


def change(trainer: Any) -> tuple[Any, list[float]]:
    """What a training makes of the trained weights (P,), and the losses that it says it had."""
    import torch

    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    after = dict(trainer.accelerator.unwrap_model(trainer.model).named_parameters())
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return torch.cat([(after[n].detach() - p).flatten() for n, p in sorted(before.items())]), losses


def by_hand(method: str, kind: str) -> Any:
    """The change (P,) of the same step from the papers' formulas."""
    import torch
    import torch.nn.functional as F

    tokenizer = tokenizer_for()
    model = model_for(kind, tokenizer)
    reference = copy.deepcopy(model).eval()
    move(model, kind)
    beta = OPTIONS[method]["beta"]

    def told(network: Any, prompt: list[int], answer: list[int]) -> tuple[Any, Any]:
        """Log-probability of each token (T,), and the log of the distribution's Σ p² where it stands (T,)."""
        logits = network(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        return logits.gather(1, torch.tensor(answer)[:, None])[:, 0], logits.exp().square().sum(-1).log()

    compared, likelihood, tokens = 0.0, 0.0, 0
    for row in pairs(tokenizer).rows:
        sums, weight = [], 1.0
        for answer in (row.chosen_ids, row.rejected_ids):
            own, spread = told(model, row.prompt_ids, answer)
            with torch.no_grad():
                base = told(reference, row.prompt_ids, answer)[0].sum() if method != "cpo" else 0.0
                weight = weight * (own - spread).mean().exp()
            sums.append(own.sum() - base)
            if answer is row.chosen_ids:
                likelihood, tokens = likelihood - own.sum(), tokens + len(answer)
        compared = compared - F.logsigmoid(beta * (sums[0] - sums[1])) * (weight if method == "wpo" else 1.0)
    loss = compared / PAIRS + (SFT * likelihood / tokens if method in ("dpo + sft", "cpo") else 0.0)
    trained = [p for _, p in sorted(model.named_parameters()) if p.requires_grad]
    gradients = torch.autograd.grad(loss, trained, allow_unused=True)
    return -RATE * torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(trained, gradients)])


def on_two_processes(folder: Path) -> dict[str, Any]:
    """Method → the change (P,) of the step of two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, "-m", "benchmarks.lattice_pairs", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    import torch

    return torch.load(folder / "two-pairs.pt")


def main() -> None:
    import torch

    folder = Path(sys.argv[1])
    found = {method: change(trainer_of(folder, PairCell(method, "lora", 2, 2)))[0] for method in OPTIONS}
    if torch.distributed.get_rank() == 0:
        torch.save(found, folder / "two-pairs.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
