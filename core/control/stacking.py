"""Give a language model the languages of a translation encoder (Schmidt et al. 2024, MT-LLM).

The encoder's states go through one learnt projection into the language model's body, which reads them in both
directions, and are pooled to one vector. It is taught by itself: the same model, with its adapters off, reads the same
English text through its own tokenizer, and the student must give the same vector. Only the projection and the adapters
learn, on English alone; other languages come from the encoder. In the second stage the student imitates a model that
was tuned for a task.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from core.config.files import read_json, write_json
from core.errors import CheckpointError, ConfigError, DataError

FILE, NOTE = "projection.safetensors", "stacked.json"


def mean_pool(states_BTd: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Mean over tokens that count, in fp32: (B, d). Where padding stands, and what it holds, does not matter."""
    kept = mask_BT[..., None].float()
    states = torch.where(
        mask_BT[..., None].bool(), states_BTd.float(), torch.zeros_like(states_BTd, dtype=torch.float32)
    )
    return (states * kept).sum(1) / kept.sum(1).clamp(min=1)


def span_pool(states_BTd: torch.Tensor, spans_BCT: torch.Tensor) -> torch.Tensor:
    """Mean over the tokens of each span, in fp32: (B, C, d). For a choice among C texts that share a sequence."""
    inside = spans_BCT.bool().any(1)[..., None]
    states = torch.where(inside, states_BTd.float(), torch.zeros_like(states_BTd, dtype=torch.float32))
    spans = spans_BCT.float()
    return spans @ states / spans.sum(-1, keepdim=True).clamp(min=1)


def both_ways(mask_BT: torch.Tensor) -> torch.Tensor:
    """A boolean attention mask (B, 1, T, T) that lets every token see every token that counts."""
    return mask_BT.bool()[:, None, None, :].expand(-1, 1, mask_BT.shape[1], -1)


class StackedEncoderLM(nn.Module):
    """Encoder → projection → body of a language model, read in both directions.

    Args:
        encoder: frozen; called with input_ids and attention_mask, gives last_hidden_state (B, T, d_mt).
        llm: a causal language model of transformers, plain or under peft. Its adapters, if any, are the student's.
        head: maps the pooled vector to classes; None gives the vector itself.
    """

    def __init__(self, encoder: nn.Module, llm: nn.Module, head: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder, self.llm, self.head = encoder.requires_grad_(False).eval(), llm, head
        self.projection = nn.Linear(_width(encoder), _width(llm))
        self.projection.to(next(llm.parameters()).device)

    @classmethod
    def from_pretrained(cls, mt: str, llm: str, lora: Any = None) -> StackedEncoderLM:
        """The encoder of a translation model and a language model from folders or hub ids.

        Args:
            lora: a peft config for the language model; None gives rank 16, alpha 32 on all linear maps.
        """
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModel, AutoModelForCausalLM

        whole = AutoModel.from_pretrained(mt)
        encoder = whole.get_encoder() if whole.config.is_encoder_decoder else whole
        config = lora or LoraConfig(
            r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        return cls(encoder, get_peft_model(AutoModelForCausalLM.from_pretrained(llm), config))

    @property
    def body(self) -> nn.Module:
        """The language model without its head."""
        bare = self.llm.get_base_model() if hasattr(self.llm, "get_base_model") else self.llm
        return bare.base_model

    def train(self, mode: bool = True) -> StackedEncoderLM:
        super().train(mode)
        self.encoder.eval()
        return self

    def student(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, spans: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The pooled vector (B, d) of text in the encoder's tokens, or those of its `spans` (B, C, T): (B, C, d).

        Raises:
            DataError: a row or span without a token.
        """
        _no_empty_rows(attention_mask)
        with torch.no_grad():
            states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        projected = self.projection(states.to(self.projection.weight.dtype))
        return self._pooled({"inputs_embeds": projected.to(self.body.dtype)}, attention_mask, spans)

    def teacher(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, spans: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The same of text in the language model's own tokens, adapters off, without gradients."""
        import contextlib

        _no_empty_rows(attention_mask)
        switch = self.llm.disable_adapter() if hasattr(self.llm, "disable_adapter") else contextlib.nullcontext()
        training = self.llm.training
        self.llm.eval()
        try:
            with torch.no_grad(), switch:
                return self._pooled({"input_ids": input_ids}, attention_mask, spans)
        finally:
            self.llm.train(training)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, spans: torch.Tensor | None = None,
        vectors: bool = False, **_: Any,
    ) -> torch.Tensor:  # fmt: skip
        """The head's answer, or the vector where there is none or `vectors` asks for it; with spans, one for each."""
        pooled = self.student(input_ids, attention_mask, spans)
        return pooled if self.head is None or vectors else self.head(pooled)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Any = None, **_: Any) -> None:
        """Recompute the language model's activations in the backward pass; the encoder keeps none."""
        self.llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs or {"use_reentrant": False})

    def _pooled(
        self, given: dict[str, torch.Tensor], mask: torch.Tensor, spans: torch.Tensor | None = None
    ) -> torch.Tensor:
        if spans is not None:
            _no_empty_rows((spans.bool() & mask.bool()[:, None]).flatten(0, 1), "spans")
        positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
        states = self.body(
            **given, attention_mask=both_ways(mask), position_ids=positions, use_cache=False
        ).last_hidden_state
        return mean_pool(states, mask) if spans is None else span_pool(states, spans.bool() & mask.bool()[:, None])

    def save_pretrained(self, folder: str | Path) -> None:
        """The projection, the head, the adapter and the names of both bases; not the bases."""
        from safetensors.torch import save_file

        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        tensors = {f"projection.{n}": t for n, t in self.projection.state_dict().items()}
        tensors |= {f"head.{n}": t for n, t in self.head.state_dict().items()} if self.head is not None else {}
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, place / FILE)
        bare = self.llm.get_base_model() if hasattr(self.llm, "get_base_model") else self.llm
        names = {"encoder": self.encoder.config._name_or_path, "llm": bare.config._name_or_path}
        write_json(place / NOTE, {**names, "widths": [_width(self.encoder), _width(self.llm)]})
        if hasattr(self.llm, "peft_config"):
            self.llm.save_pretrained(place / "adapter", save_embedding_layers=False)

    def load(self, folder: str | Path) -> StackedEncoderLM:
        """Take over what `save_pretrained` wrote, onto these bases.

        Raises:
            CheckpointError: nothing there, or of bases of other widths.
        """
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        place = Path(folder)
        if not (place / FILE).is_file():
            raise CheckpointError("no stacked model here", where=str(place))
        widths = read_json(place / NOTE)["widths"]
        if widths != [_width(self.encoder), _width(self.llm)]:
            raise CheckpointError(
                f"saved for states of widths {widths}, these are {[_width(self.encoder), _width(self.llm)]}",
                where=str(place),
            )
        tensors = load_file(place / FILE)
        for name, part in (("projection", self.projection), ("head", self.head)):
            own = {n.partition(".")[2]: t for n, t in tensors.items() if n.startswith(name + ".")}
            if part is not None and own:
                part.load_state_dict(own)
        if (place / "adapter" / "adapter_model.safetensors").is_file():
            set_peft_model_state_dict(self.llm, load_file(place / "adapter" / "adapter_model.safetensors"))
        return self


def unexplained(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Fraction of the teacher's variance that the student leaves unexplained: MSE / Var, over the rows (N, d)."""
    return F.mse_loss(student, teacher) / teacher.var(0, unbiased=False).mean().clamp(min=1e-12)


@torch.no_grad()
def precompute_embeddings(model: StackedEncoderLM, batches: Sequence[dict[str, torch.Tensor]]) -> torch.Tensor:
    """The vectors (N, d), or (N, C, d) of spans, that the language model as it is gives for texts in its own tokens.

    For the second stage: tune the language model on a task, keep its vectors of the training set, and let the student
    learn them.
    """
    training = model.training
    model.eval()
    found = [model._pooled({"input_ids": b["input_ids"]}, b["attention_mask"], b.get("spans")).cpu() for b in batches]
    model.train(training)
    return torch.cat(found)


class SelfDistillMixin:
    """A Trainer whose loss is the squared distance of the student's pooled vectors from the teacher's.

    A batch holds `input_ids` and `attention_mask` in the encoder's tokens, and either `teacher_ids` and `teacher_mask`
    in the language model's (stage 1) or `target` (B, d), vectors that were computed before (stage 2). For a choice
    among texts, `spans` (B, C, T) and `teacher_spans` mark the tokens of each, and `target` is (B, C, d).
    """

    stage = 1

    def __init__(self, *args: Any, stage: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stage = stage or type(self).stage
        if self.stage not in (1, 2):
            raise ConfigError(f"stage {self.stage}", where="self-distillation", hint="1 or 2")
        # the second stage leaves the general projection as it is and moves the adapters alone
        self.model.projection.requires_grad_(self.stage == 1)
        self.model_accepts_loss_kwargs = False
        self.unexplained = 0.0

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        bare = model.module if hasattr(model, "module") else model
        if self.stage == 1:
            wanted = bare.teacher(inputs["teacher_ids"], inputs["teacher_mask"], inputs.get("teacher_spans"))
        else:
            wanted = inputs["target"].float()
        # through the wrapper, which averages the gradients of several processes
        found = model(inputs["input_ids"], inputs["attention_mask"], inputs.get("spans"), vectors=True)
        loss = F.mse_loss(found, wanted)
        if len(wanted) > 1:
            self.unexplained = unexplained(found.detach().flatten(0, -2), wanted.flatten(0, -2))
        return (loss, found) if return_outputs else loss

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """A checkpoint holds what the model saves, and so no base."""
        if self.args.should_save:
            self.accelerator.unwrap_model(self.model).save_pretrained(output_dir or self.args.output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.accelerator.unwrap_model(model or self.model).load(resume_from_checkpoint)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        super().log({**logs, "unexplained": float(self.unexplained)} if "loss" in logs else logs, *args, **kwargs)


def __getattr__(name: str) -> Any:
    """`SelfDistillTrainer` over transformers' Trainer."""
    if name == "SelfDistillTrainer":
        from transformers import Trainer

        return type(name, (SelfDistillMixin, Trainer), {})
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def _width(model: Any) -> int:
    config = model.config if hasattr(model, "config") else model.get_base_model().config
    return config.hidden_size


def _no_empty_rows(mask: torch.Tensor, field: str = "attention_mask") -> None:
    empty = (mask.sum(1) == 0).nonzero().flatten().tolist()
    if empty:
        raise DataError(f"rows without a token: {empty[:5]}", field=field)
