"""Learning from a teacher: cross-entropy, divergence of the logits and distance of the hidden states, as one loss.

The divergence is Hinton et al. 2015 (T² KL(p ‖ q) at temperature T), the distance of hidden states is SquareHead
(Kurtic et al. 2023), plain mean squared error or a cosine. Logits of both models would be two fp32 tensors of
(tokens, vocabulary); here they are made from the last hidden states in pieces, and made again in the backward pass.
The mixin works over any transformers Trainer; the teacher is any model with the same tokens, frozen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from core.errors import ConfigError
from core.models.topology import ModelTopology
from core.objectives.losses import IGNORE, summed_loss
from core.objectives.padding import tokens_that_count

BF16_EPSILON = 2.0**-7


@dataclass
class DistillLoss:
    """Weights and kinds of the terms, each a mean over valid tokens.

    Args:
        ce: weight of the cross-entropy with the labels. kl: of the divergence from the teacher's logits.
        hidden: weight of the distance of hidden states, summed over the layers.
        temperature: T of both softmaxes.
        hidden_kind: squarehead ‖s-t‖² / ‖t‖² of each layer; mse; cosine 1 - cos.
        layer_map: student block → teacher block; None pairs blocks of equal number.
        form: whole makes the logits of all tokens and keeps them; fused makes them in pieces, on the way back again.
        chunk: tokens whose logits exist at one time, where they are made in pieces.
        smoothing, z_loss: of the cross-entropy, as in `CrossEntropy`.
    """

    ce: float = 1.0
    kl: float = 0.0
    hidden: float = 0.0
    temperature: float = 1.0
    hidden_kind: Literal["squarehead", "mse", "cosine"] = "squarehead"
    layer_map: dict[int, int] | None = None
    form: Literal["fused", "whole"] = "fused"
    chunk: int = 4096
    smoothing: float = 0.0
    z_loss: float = 0.0
    last: dict[str, float] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ConfigError(f"temperature {self.temperature}", where="distillation", hint="above 0")
        if self.hidden_kind not in HIDDEN:
            raise ConfigError(f"unknown distance '{self.hidden_kind}'", hint=f"known: {', '.join(HIDDEN)}")

    def logit_terms(
        self, student: torch.Tensor, head: Any, teacher: torch.Tensor | None, teacher_head: Any, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed cross-entropy and summed T² KL(teacher ‖ student) of N tokens.

        Args:
            student, teacher: last hidden states (N, d); heads turn them into logits. targets: (N,) ids.
        """
        if self.form == "whole":
            return self._piece(student, head, teacher, teacher_head, targets)
        ce = kl = student.new_zeros((), dtype=torch.float32) if len(targets) else student.float().sum()
        for start in range(0, len(targets), self.chunk):
            piece = slice(start, start + self.chunk)
            other = None if teacher is None else teacher[piece]
            terms = checkpoint(
                self._piece, student[piece], head, other, teacher_head, targets[piece], use_reentrant=False
            )
            ce, kl = ce + terms[0], kl + terms[1]
        return ce, kl

    def _piece(self, student: Any, head: Any, teacher: Any, teacher_head: Any, targets: Any) -> tuple[Any, Any]:
        logits = head(student).float()
        ce = summed_loss(logits, targets, self.smoothing, self.z_loss) if self.ce else logits.new_zeros(())
        if teacher is None or not self.kl:
            return ce, logits.new_zeros(())
        with torch.no_grad():
            wanted = (teacher_head(teacher).float() / self.temperature).log_softmax(-1)
        found = (logits / self.temperature).log_softmax(-1)
        kl = F.kl_div(found, wanted, log_target=True, reduction="sum") * self.temperature**2
        return ce, kl

    def hidden_term(
        self, student: list[torch.Tensor], teacher: list[torch.Tensor], mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Sum over the paired layers of the distance between outputs (B, T, d), over tokens where mask (B, T) is 1."""
        pairs = self.pairs(len(student), len(teacher))
        total = student[0].new_zeros((), dtype=torch.float32)
        for own, other in pairs.items():
            s, t = student[own], teacher[other]
            if s.shape != t.shape:
                raise ConfigError(
                    f"hidden states of {tuple(s.shape)} and of {tuple(t.shape)}",
                    where=f"student block {own}, teacher block {other}",
                    hint="distil the logits only, or choose a teacher of the same width",
                )
            kept = slice(None) if mask is None else mask.bool()
            total = total + HIDDEN[self.hidden_kind](s[kept].float(), t[kept].float())
        return total

    def pairs(self, student: int, teacher: int) -> dict[int, int]:
        """Student block → teacher block. Raises `ConfigError` where the numbers differ and no map is given."""
        if self.layer_map is not None:
            for own, other in self.layer_map.items():
                if not (0 <= own < student and 0 <= other < teacher):
                    raise ConfigError(
                        f"no pair {own}: {other}",
                        where="layer_map",
                        hint=f"student {student}, teacher {teacher} blocks",
                    )
            return self.layer_map
        if student != teacher:
            raise ConfigError(
                f"{student} blocks learn from {teacher}", where="distillation", hint="give layer_map {student: teacher}"
            )
        return {number: number for number in range(student)}


def _squarehead(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return (s - t).square().mean() / (t.square().mean() + BF16_EPSILON)


def _mse(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return (s - t).square().mean()


def _cosine(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return (1 - F.cosine_similarity(s, t, dim=-1)).mean()


HIDDEN = {"squarehead": _squarehead, "mse": _mse, "cosine": _cosine}


@contextlib.contextmanager
def states_of(model: Any, blocks: bool) -> Iterator[dict[str, Any]]:
    """Collects what a forward pass computes: `final` (B, T, d) before the head, and `blocks`, the blocks' outputs.

    The last block's is taken behind the final norm, as in transformers' `hidden_states`: it is what the head reads.

    The hooks only keep what passes by. Under activation checkpointing they are gone when blocks are computed again.
    """
    topology = ModelTopology.of(model)
    found: dict[str, Any] = {"final": None, "blocks": []}
    handles = []

    def keep_block(_module: Any, _given: Any, output: Any) -> None:
        found["blocks"].append(output[0] if isinstance(output, tuple) else output)

    def keep_normed(_module: Any, _given: Any, output: Any) -> None:
        found["blocks"][-1] = output

    def keep_final(_module: Any, given: Any) -> Any:
        found["final"] = given[0]
        # the logits of one position are enough for a pass whose logits are made elsewhere
        return (given[0][:, -1:], *given[1:])

    if blocks:
        handles += [block.register_forward_hook(keep_block) for block in topology.stack]
        if topology.final_norm is not None:
            handles.append(topology.final_norm.register_forward_hook(keep_normed))
    if topology.head is not None:
        handles.append(topology.head.register_forward_pre_hook(keep_final))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def distillation(
    loss: DistillLoss, model: Any, teacher: Any, inputs: dict[str, Any], labels: torch.Tensor, causal: bool = True
) -> dict[str, torch.Tensor]:
    """The terms of one batch: summed `ce` and `kl` with their `count`, and the mean `hidden`.

    Args:
        model: called as it is (a DDP wrapper included). teacher: a model, or None to switch off the model's adapters.
        labels: (B, T), `IGNORE` where nothing is learnt. causal: position t predicts label t + 1.
    """
    bare = model.module if hasattr(model, "module") and not hasattr(model, "config") else model
    needs_teacher = bool(loss.kl or loss.hidden)
    taught: dict[str, Any] = {"final": None, "blocks": []}
    if needs_teacher:
        switch = bare.disable_adapter() if teacher is None else contextlib.nullcontext()
        wise = bare if teacher is None else teacher
        training = wise.training
        wise.eval()
        with torch.no_grad(), switch, states_of(wise, bool(loss.hidden)) as taught:
            wise(**inputs, use_cache=False) if causal else wise(**inputs)
        wise.train(training)
    with states_of(bare, bool(loss.hidden)) as found:
        model(**inputs, use_cache=False) if causal else model(**inputs)
    final, other = found["final"], taught["final"]
    targets = labels
    if causal:
        final, targets = final[:, :-1], labels[:, 1:]
        other = None if other is None else other[:, :-1]
    kept = targets != IGNORE
    head = bare.get_output_embeddings()
    wise_head = None if not needs_teacher else (bare if teacher is None else teacher).get_output_embeddings()
    ce, kl = loss.logit_terms(final[kept], head, None if other is None else other[kept], wise_head, targets[kept])
    terms = {"ce": ce, "kl": kl, "count": kept.sum()}
    if loss.hidden:
        mask = tokens_that_count(inputs, labels) if causal else inputs.get("attention_mask")
        terms["hidden"] = loss.hidden_term(found["blocks"], taught["blocks"], mask)
    return terms


class DistillMixin:
    """A Trainer whose loss is a `DistillLoss`.

    Args:
        distill: the terms. teacher: a frozen model; None takes the student without its adapters.
        Other arguments are the Trainer's, whose `train_config` and `backend`, where it has them, say how the
        cross-entropy is shaped and whether all logits are made. A subclass may set both as class attributes.
    """

    distill: DistillLoss = DistillLoss()
    teacher: Any = None

    def __init__(self, *args: Any, distill: DistillLoss | None = None, teacher: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.distill = distill or type(self).distill
        given = getattr(self, "train_config", None)
        if given is not None:
            self.distill = replace(self.distill, smoothing=given.label_smoothing, z_loss=given.z_loss)
        if getattr(getattr(self, "backend", None), "cross_entropy", "auto") != "auto":
            self.distill = replace(self.distill, form=self.backend.cross_entropy)
        self.teacher = teacher if teacher is not None else type(self).teacher
        if self.teacher is None and (self.distill.kl or self.distill.hidden) and not hasattr(self.model, "peft_config"):
            raise ConfigError("no teacher", where="distillation", hint="give teacher=, or train adapters")
        if self.teacher is not None:
            self.teacher.requires_grad_(False).eval().to(self.args.device)
        # the Trainer then counts the labels of the whole accumulation window and does not divide by its length
        self.model_accepts_loss_kwargs = True

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if return_outputs:
            return super().compute_loss(model, inputs, True, num_items_in_batch)
        inputs = dict(inputs)
        labels, useful = inputs.pop("labels"), inputs.pop("useful", None)
        for name in ("places", "borders", "longest"):
            inputs.pop(name, None)
        if useful is not None and model.training:
            self._useful = self._useful + useful.sum()
        terms = distillation(self.distill, model, self.teacher, inputs, labels)
        loss, config = self._scaled(terms, num_items_in_batch), self.distill
        config.last = (
            {name: float(value.detach()) for name, value in terms.items()} if self._logs_now() else config.last
        )
        return loss

    def _scaled(self, terms: dict[str, torch.Tensor], num_items_in_batch: Any) -> torch.Tensor:
        """Sums over tokens are divided by the tokens of the whole step, layer means by its micro-batches."""
        config = self.distill
        summed = config.ce * terms["ce"] + config.kl * terms["kl"]
        count = terms["count"] if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        processes = 1 if num_items_in_batch is None else self.accelerator.num_processes
        loss = summed / count.to(summed.device).clamp(min=1) * processes
        if "hidden" in terms:
            micro = 1 if num_items_in_batch is None else getattr(self, "current_gradient_accumulation_steps", 1)
            loss = loss + config.hidden * terms["hidden"] / micro
        return loss

    def _logs_now(self) -> bool:
        every = max(1, int(self.args.logging_steps))
        return (self.state.global_step + 1) % every == 0

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        last = self.distill.last
        if "loss" in logs and last.get("count"):
            logs = {**logs, "ce": last["ce"] / last["count"], "kl": last["kl"] / last["count"]}
            logs |= {"hidden": last["hidden"]} if "hidden" in last else {}
        super().log(logs, *args, **kwargs)


def distilling(trainer_cls: type, loss: DistillLoss, teacher: Any = None) -> type:
    """`trainer_cls` with this loss and teacher, for code that makes trainers from a class."""
    return type(f"Distill{trainer_cls.__name__}", (DistillMixin, trainer_cls), {"distill": loss, "teacher": teacher})


def __getattr__(name: str) -> Any:
    """`DistillTrainer` over transformers' Trainer, `DistillSFTTrainer` over TRL's."""
    if name == "DistillTrainer":
        from transformers import Trainer

        return type(name, (DistillMixin, Trainer), {})
    if name == "DistillSFTTrainer":
        from trl import SFTTrainer

        return type(name, (DistillMixin, SFTTrainer), {})
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
