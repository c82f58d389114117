"""Texts of the encoder's languages in, vectors of the language model or classes out.

with StackPipeline.from_pretrained("runs/mt_llm/42") as read:
    read(["Der Hund schläft."], lang="de")               # (1, d), near the vector of "The dog sleeps."
    read.classify(["Der Hund schläft."], lang="de")      # [("animal", 0.97)], after a task was learnt
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from apps.lm.stacked.data import StackExample
from apps.lm.stacked.evaluator import StackEvaluator
from core.config.files import whole_folder, write_json
from core.config.schema import key
from core.config.typed import Places, build
from core.errors import AppInputError, BackendUnavailable, CheckpointError, ConfigError, UnsupportedError
from core.inference.served import CARD, Served, read_card


@dataclasses.dataclass(frozen=True)
class StackPipelineConfig:
    """Settings of a served stacked model."""

    max_length: int = key(512, "tokens of a text that are read", least=1)
    batch: int = key(32, "texts that are read at once", least=1)


class StackPipeline(Served):
    """Give a `StackedLm` and the language model's tokenizer; or use `from_pretrained` or `from_model`."""

    app: ClassVar[str] = "lm"
    example_cls: ClassVar[type] = StackExample
    evaluator_cls: ClassVar[type] = StackEvaluator
    config_cls: ClassVar[type] = StackPipelineConfig
    predicts_together: ClassVar[bool] = True

    def __init__(self, model: Any, tokenizer: Any, config: StackPipelineConfig | None = None) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.config = config or StackPipelineConfig()

    @classmethod
    def from_model(cls, model: Any, tokenizer: Any, **config: Any) -> Self:
        """Serve a model that is already in memory."""
        return cls(model, tokenizer, build(cls.config_cls, dict(config), Places(cls.__name__)))

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, engine: str = "hf", device: str = "auto", dtype: str = "auto", **config: Any
    ) -> Self:
        """Open a run folder or the folder of a stacked model; both bases have to be where they were.

        Args:
            config: fields of `StackPipelineConfig`, laid over what was saved with the model.

        Raises:
            CheckpointError: no stacked model there, or a base is gone. ConfigError: an unknown field.
        """
        from apps.lm.stacked.model import opened, saved
        from core.config.schema import ModelConfig
        from core.inference.load import pick_device
        from core.models.load import load_tokenizer

        build(cls.config_cls, dict(config), Places(cls.__name__))
        if engine != "hf":
            raise ConfigError(f"engine '{engine}' gives no vectors", hint="use hf")
        folder = saved(str(path))
        if folder is None:
            raise CheckpointError("no stacked model here", where=str(path), hint="give the run of an lm.stack recipe")
        model = opened(folder, pick_device(device), dtype)
        card = read_card(folder)
        tokenizer = load_tokenizer(ModelConfig(path=str(folder)))
        return cls.from_model(model.eval(), tokenizer, **{**card.get("config", {}), **config})

    # ---- what it does ------------------------------------------------------------------------------------------

    def __call__(self, texts: str | Sequence[str], *, lang: str = "en") -> np.ndarray:
        """Vectors (n, d) in float32 of a list of texts, (d,) of one, read through the encoder.

        Raises:
            AppInputError: no list of texts, or empty ones. LanguageError: one that the encoder does not know.
        """
        many = self._texts(texts)
        found = self._read([StackExample(text, lang=lang) for text in many])
        return found[0] if isinstance(texts, str) else found

    def direct(self, texts: str | Sequence[str]) -> np.ndarray:
        """The same as the language model gives them by itself, tuned for the task where there is one."""
        found = self._direct(self._texts(texts))
        return found[0] if isinstance(texts, str) else found

    def classify(self, texts: str | Sequence[str], *, lang: str = "en") -> Any:
        """The most probable class of each text, with its probability. Raises `UnsupportedError` without a task."""
        if not self._live().labels:
            raise UnsupportedError(
                "the model has learnt no task",
                where=type(self).__name__,
                hint="train stages lm.stack_tune, lm.stack_task",
            )
        found = self._classes(self._read([StackExample(text, lang=lang) for text in self._texts(texts)]))
        return found[0] if isinstance(texts, str) else found

    def predict(self, examples: Sequence[Any], **_: Any) -> list[dict[str, Any]]:
        """For each example its vector, that of its English from the language model, and its own by the language model
        alone; and the classes by both ways, after a task was learnt."""
        examples = [self.to_example(example) for example in examples]
        vectors = self._read(examples)
        direct = self._direct([example.text for example in examples])
        known = [example.english or example.text for example in examples]
        english = self._direct(known)
        rows = [
            {"vector": v.tolist(), "english": e.tolist() if x.english else None, "direct": d.tolist()}
            for v, e, d, x in zip(vectors, english, direct, examples)
        ]
        if self._live().labels:
            for row, own, other in zip(rows, self._classes(vectors), self._classes(direct)):
                row |= {"label": own[0], "direct_label": other[0]}
        return rows

    def to_example(self, given: Any) -> StackExample:
        """Text, a dictionary, or an example. Raises `AppInputError` for anything else."""
        if isinstance(given, StackExample):
            return given
        if isinstance(given, str):
            return StackExample(given)
        if isinstance(given, Mapping):
            return build(StackExample, dict(given), Places("StackExample"))
        raise AppInputError(f"cannot use {type(given).__name__}", hint="give text, a dictionary or a StackExample")

    # ---- folders -----------------------------------------------------------------------------------------------

    def save_pretrained(self, path: str | Path) -> None:
        """Write what was learnt, both tokenizers and where the bases are; a base without a place is carried along.

        Raises:
            CheckpointError: the folder holds something that is no model.
        """
        from apps.lm.stacked.model import KIND, _absolute
        from core.inference.save import save_base

        model = self._live()
        options = model.reader.options
        with whole_folder(path, CARD) as folder:
            model.save_pretrained(folder)
            if not model.llm_source["path"]:
                if hasattr(model.llm, "peft_config"):
                    save_base(model.llm, folder / "llm")
                else:
                    model.llm.save_pretrained(folder / "llm")
            self.tokenizer.save_pretrained(folder)
            model.reader.tokenizer.save_pretrained(folder / "reader")
            encoder = {**dataclasses.asdict(options), "path": _absolute(options.path)}
            write_json(folder / "config.json", {"model_type": KIND, "llm": model.llm_source, "encoder": encoder})
            self._write_card(folder, dataclasses.asdict(self.config))

    def close(self) -> None:
        """Give the models' memory back."""
        import gc

        self.model = None
        gc.collect()

    # ---- inside ------------------------------------------------------------------------------------------------

    def _live(self) -> Any:
        if self.model is None:
            raise BackendUnavailable("the pipeline is closed", hint="open it again with from_pretrained")
        return self.model

    @staticmethod
    def _texts(given: Any) -> list[str]:
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
            raise AppInputError(f"cannot read {type(given).__name__}", hint="give a text or a list of texts")
        empty = [number for number, text in enumerate(texts) if not text.strip()]
        if empty:
            raise AppInputError(f"texts without a word: {', '.join(map(str, empty[:5]))}", hint="leave them out")
        return list(texts)

    def _read(self, examples: Sequence[StackExample]) -> np.ndarray:
        model = self._live()
        rows = [model.reader.ids(e.text, e.lang, self.config.max_length)[0] for e in examples]
        return self._pooled(rows, model.reader.tokenizer.pad_token_id or 0, model.student)

    def _direct(self, texts: Sequence[str]) -> np.ndarray:
        from apps.lm.stacked.model import llm_ids
        from core.control.stacking import TASK

        model = self._live()
        rows = [llm_ids(text, self.tokenizer, self.config.max_length)[0] for text in texts]
        adapter = TASK if model.labels else None
        return self._pooled(
            rows, self.tokenizer.pad_token_id or 0, lambda *given: model.teacher(*given, adapter=adapter)
        )

    def _pooled(self, rows: Sequence[list[int]], pad: int, read: Any) -> np.ndarray:
        """(n, d) in the order of the rows, which are read by length."""
        import torch

        model = self._live()
        device, training = model.projection.weight.device, model.training
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        found: list[Any] = [None] * len(rows)
        model.eval()
        with torch.inference_mode():
            for start in range(0, len(order), self.config.batch):
                part = order[start : start + self.config.batch]
                longest = max(len(rows[i]) for i in part)
                ids = torch.tensor([rows[i] + [pad] * (longest - len(rows[i])) for i in part], device=device)
                mask = torch.tensor([[1] * len(rows[i]) + [0] * (longest - len(rows[i])) for i in part], device=device)
                for i, vector in zip(part, read(ids, mask).float().cpu().numpy()):
                    found[i] = vector
        model.train(training)
        return np.stack(found) if found else np.zeros((0, model.projection.out_features), np.float32)

    def _classes(self, vectors: np.ndarray) -> list[tuple[str, float]]:
        import torch

        model = self._live()
        with torch.inference_mode():
            given = torch.from_numpy(vectors).to(model.projection.weight.device)
            shares = model.head(given).float().softmax(-1).cpu()
        return [(model.labels[int(row.argmax())], float(row.max())) for row in shares]
