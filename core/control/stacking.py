"""Give a language model the languages of a translation encoder (Schmidt et al. 2024, MT-LLM).

The encoder's states go through one learnt projection into the language model's body, which reads them in both
directions, and are pooled to one vector. It is taught by itself: the same model, with its adapters off, reads the same
English text through its own tokenizer, and the student must give the same vector. Only the projection and the adapters
learn, on English alone; other languages come from the encoder. In the second stage the language model is tuned for a
task by itself, with an adapter of its own and a head, and the student imitates the vectors that it then gives.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from core.config.files import read_json, write_json
from core.errors import CheckpointError, ConfigError, DataError

FILE, NOTE = "projection.safetensors", "stacked.json"
STUDENT, TASK = "default", "task"
"""Names of the adapters: the student's, and that of the language model tuned by itself."""
FOLDERS = {STUDENT: "adapter"}


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

    `labels` names the classes of a task that was begun here.
    """

    def __init__(self, encoder: nn.Module, llm: nn.Module, head: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder, self.llm, self.head = encoder.requires_grad_(False).eval(), llm, head
        self.projection = nn.Linear(_width(encoder), _width(llm))
        self.projection.to(next(llm.parameters()).device)
        self.labels: list[str] = []

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

    @property
    def config(self) -> Any:
        """The language model's."""
        return self.body.config

    def train(self, mode: bool = True) -> StackedEncoderLM:
        super().train(mode)
        self.encoder.eval()
        return self

    def with_adapters(self, add: Callable[[Any], Any]) -> StackedEncoderLM:
        """Adapters on the language model, where it has none."""
        if not hasattr(self.llm, "peft_config"):
            self.llm = add(self.llm)
        return self

    def begin_task(self, labels: Sequence[str], seed: int = 0) -> None:
        """A task for the language model by itself: an adapter beside the student's, of the same kind, and a head.

        Raises:
            ConfigError: there are no adapters, or another task was begun before.
        """
        if self.labels == list(labels):
            return
        if self.labels or not hasattr(self.llm, "peft_config"):
            what = f"the task has the classes {', '.join(self.labels)}" if self.labels else "there are no adapters"
            raise ConfigError(
                f"{what}; a task with the classes {', '.join(labels)} cannot begin", where="self-distillation"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.llm.add_adapter(TASK, copy.deepcopy(self.llm.peft_config[STUDENT]))
            self.head = nn.Linear(_width(self.llm), len(labels)).to(self.projection.weight.device)
        self.labels = list(labels)
        self.llm.set_adapter(STUDENT)

    def let_learn(self, adapter: str = STUDENT, projection: bool = False, head: bool = False) -> None:
        """Make one adapter the active one, and let it and the named parts learn, and nothing else."""
        if hasattr(self.llm, "peft_config"):
            self.llm.set_adapter(adapter)
        self.projection.requires_grad_(projection)
        if self.head is not None:
            self.head.requires_grad_(head)

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
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        spans: torch.Tensor | None = None,
        adapter: str | None = None,
    ) -> torch.Tensor:
        """The same of text in the language model's own tokens, without gradients.

        Args:
            adapter: the one that is on, by name; None switches all off.
        """
        _no_empty_rows(attention_mask)
        training = self.llm.training
        self.llm.eval()
        try:
            with torch.no_grad(), self._only(adapter):
                return self._pooled({"input_ids": input_ids}, attention_mask, spans)
        finally:
            self.llm.train(training)

    @contextlib.contextmanager
    def _only(self, adapter: str | None) -> Iterator[None]:
        """One adapter on, or none; what learns is as before afterwards."""
        if not hasattr(self.llm, "peft_config"):
            yield
        elif adapter is None:
            with self.llm.disable_adapter():
                yield
        else:
            active, learns = self.llm.active_adapter, [p for p in self.llm.parameters() if p.requires_grad]
            self.llm.set_adapter(adapter)
            try:
                yield
            finally:
                self.llm.set_adapter(active)
                self.llm.requires_grad_(False)
                for parameter in learns:
                    parameter.requires_grad_(True)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, spans: torch.Tensor | None = None,
        vectors: bool = False, direct: bool = False, **_: Any,
    ) -> torch.Tensor:  # fmt: skip
        """The head's answer, or the vector where there is none or `vectors` asks for it; with spans, one for each.

        Args:
            direct: the text is in the language model's own tokens, and the encoder is passed by.
        """
        if direct:
            _no_empty_rows(attention_mask)
            pooled = self._pooled({"input_ids": input_ids}, attention_mask, spans)
        else:
            pooled = self.student(input_ids, attention_mask, spans)
        return pooled if self.head is None or vectors else self.head(pooled)

    def tie_weights(self) -> None:
        """Nothing is tied here; the language model ties its own."""

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Any = None, **_: Any) -> None:
        """Recompute the language model's activations in the backward pass; the encoder keeps none."""
        self.llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs or {"use_reentrant": False})

    def gradient_checkpointing_disable(self) -> None:
        self.llm.gradient_checkpointing_disable()

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

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """The projection, the head, the adapters and the names of both bases; not the bases."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        self.snapshot()(place)

    def snapshot(self) -> Callable[[Path], None]:
        """What writes the parts that learn, as they are now, into a folder, whatever happens to them meanwhile."""
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        tensors = {f"projection.{n}": t for n, t in self.projection.state_dict().items()}
        tensors |= {f"head.{n}": t for n, t in self.head.state_dict().items()} if self.head is not None else {}
        parts = {FILE: _copied(tensors)}
        configs = copy.deepcopy(getattr(self.llm, "peft_config", {}))
        for name in configs:
            state = get_peft_model_state_dict(self.llm, adapter_name=name, save_embedding_layers=False)
            parts[f"{FOLDERS.get(name, name)}/adapter_model.safetensors"] = _copied(state)
        bare = self.llm.get_base_model() if hasattr(self.llm, "get_base_model") else self.llm
        names = {"encoder": self.encoder.config._name_or_path, "llm": bare.config._name_or_path}
        note = {**names, "widths": [_width(self.encoder), _width(self.llm)], "labels": self.labels}

        def write(place: Path) -> None:
            for name, config in configs.items():
                config.save_pretrained(str(place / FOLDERS.get(name, name)))
            for file, state in parts.items():
                save_file(state, place / file, metadata={"format": "pt"})
            write_json(place / NOTE, note)

        return write

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
        note = read_json(place / NOTE)
        if note["widths"] != [_width(self.encoder), _width(self.llm)]:
            raise CheckpointError(
                f"saved for states of widths {note['widths']}, these are {[_width(self.encoder), _width(self.llm)]}",
                where=str(place),
            )
        if note.get("labels"):
            self.begin_task(note["labels"])
        tensors = load_file(place / FILE)
        for name, part in (("projection", self.projection), ("head", self.head)):
            own = {n.partition(".")[2]: t for n, t in tensors.items() if n.startswith(name + ".")}
            if part is not None and own:
                part.load_state_dict(own)
        for name in getattr(self.llm, "peft_config", {}):
            file = place / FOLDERS.get(name, name) / "adapter_model.safetensors"
            if file.is_file():
                set_peft_model_state_dict(self.llm, load_file(file), adapter_name=name)
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


def _copied(tensors: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _width(model: Any) -> int:
    config = model.config if hasattr(model, "config") else model.get_base_model().config
    return config.hidden_size


def _no_empty_rows(mask: torch.Tensor, field: str = "attention_mask") -> None:
    empty = (mask.sum(1) == 0).nonzero().flatten().tolist()
    if empty:
        raise DataError(f"rows without a token: {empty[:5]}", field=field)
