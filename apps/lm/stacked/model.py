"""The stacked model of a recipe: the language model that it names, the encoder of its edit, and how both read text."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from apps.lm.stacked.options import EncoderOptions
from core.config.files import read_json
from core.config.parts import edit_options
from core.config.schema import ModelConfig
from core.control.stacking import StackedEncoderLM, both_ways
from core.data.encode import encode_prompt
from core.data.segments import Segment
from core.errors import ConfigError, DataError, LanguageError, UnsupportedError, nearest
from core.models.load import load_tokenizer, resolve_path

KIND = "graft_stacked"
"""`model_type` of a saved folder, so that no loader takes it for one of the two bases."""


class Reader:
    """How the encoder is given a text: its tokenizer, the template, and the codes of languages.

    Args:
        options: as the recipe says. tokenizer: the encoder's; one with `src_lang` has to know every language.
    """

    def __init__(self, options: EncoderOptions, tokenizer: Any) -> None:
        self.options, self.tokenizer = options, tokenizer
        self.spoken: set[str] = set()

    def ids(self, text: str, lang: str, max_length: int) -> tuple[list[int], int]:
        """The encoder's ids, and how many more there would have been."""
        code = self.options.codes.get(lang, lang)
        if hasattr(self.tokenizer, "src_lang"):
            self._speak(lang, code)
        ids = self.tokenizer(self.options.template.format(text=text, lang=code))["input_ids"]
        if len(ids) <= max_length:
            return ids, 0
        short = self.tokenizer(
            self.options.template.format(text=text, lang=code), truncation=True, max_length=max_length
        )["input_ids"]
        return short, len(ids) - len(short)

    def _speak(self, lang: str, code: str) -> None:
        # a vocabulary of hundreds of thousands is looked through once a language, not once a text
        if code not in self.spoken:
            known = self.tokenizer.get_vocab()
            if code not in known and f"__{code}__" not in known:
                codes = [n.strip("_") for n in self.tokenizer.all_special_tokens if n.strip("_")]
                raise LanguageError(
                    f"the encoder's tokenizer has no language '{code}'",
                    where="model.edits, mt_encoder.codes",
                    hint=" ".join(filter(None, [nearest(code, codes), f"e.g. codes: {{{lang}: eng_Latn}}"])),
                )
            self.spoken.add(code)
        self.tokenizer.src_lang = code


def llm_ids(text: str, tokenizer: Any, max_length: int) -> tuple[list[int], int]:
    """The language model's ids of a text, and how many more there would have been."""
    ids = encode_prompt([Segment(text)], tokenizer)
    return ids[:max_length], max(0, len(ids) - max_length)


class StackedLm(StackedEncoderLM):
    """A stacked model that knows how its encoder reads.

    Attributes:
        reader: the encoder's. llm_source: the language model's path, "" where it has none on disk, and number format.
    """

    reader: Reader
    llm_source: dict[str, str]


def options_of(edits: Sequence[dict[str, Any]]) -> EncoderOptions:
    """The encoder that a recipe names. Raises `ConfigError` for another edit, for none and for several."""
    for edit in edits:
        if edit.get("kind") != "mt_encoder":
            raise ConfigError(f"the edit '{edit.get('kind')}' is not for stacked models", where="model.edits")
    if len(edits) != 1:
        raise ConfigError(
            f"{len(edits)} encoders", where="model.edits", hint="give one: [{kind: mt_encoder, path: /models/nllb}]"
        )
    return edit_options(edits[0])


def reader_of(config: ModelConfig) -> Reader:
    """How the encoder of a recipe reads; the tokenizer is loaded, the weights are not."""
    folder = saved(config.path)
    if folder is not None:
        return Reader(options_in(folder), load_tokenizer(ModelConfig(path=str(folder / "reader"))))
    options = options_of(config.edits)
    return Reader(options, load_tokenizer(ModelConfig(path=resolve_path(options.path))))


def saved(path: str | None) -> Path | None:
    """The folder of a stacked model that was saved, where `path` is one."""
    folder = Path(resolve_path(path)) if path else None
    if folder is None or not (folder / "config.json").is_file():
        return None
    return folder if read_json(folder / "config.json").get("model_type") == KIND else None


def options_in(folder: Path) -> EncoderOptions:
    """The encoder's options of a saved folder, its path as it is there."""
    stored = read_json(folder / "config.json")["encoder"]
    carried = folder / "encoder"
    return EncoderOptions(**{**stored, "path": str(carried) if carried.is_dir() else stored["path"]})


def build_model(config: ModelConfig, tokenizer: Any, *, device: str, seed: int = 0, texts: Any = ()) -> StackedLm:
    """The stacked model that a recipe's `model:` describes, or the one that a run saved.

    Raises:
        ConfigError: an edit that is not for it. CheckpointError: no model there. UnsupportedError: a language model
        whose attention does not follow a mask of its own.
    """
    folder = saved(config.path)
    if folder is not None:
        return opened(folder, device)
    from core.quantization.load import carries_base, load_base

    if carries_base(config.quantization):
        raise UnsupportedError(
            f"the codes of '{config.quantization}' depend on data, and a stacked model names its bases by their paths",
            where="model.quantization",
            hint="take one that does not calibrate, such as graft:nf4",
        )
    reader = reader_of(config)
    plain = copy.copy(config)
    plain.edits, plain.adapters = [], []
    if plain.dtype == "auto" and plain.quantization == "none":
        plain.dtype = "fp32"
    llm = load_base(plain, tokenizer, device=device, seed=seed, texts=texts)
    source = {"path": _absolute(config.path) if config.path else "", "quantization": config.quantization}
    return _stacked(load_encoder(reader.options.path, device), llm, reader, source, seed)


def opened(folder: Path, device: str, dtype: str = "fp32") -> StackedLm:
    """A saved stacked model with its adapters, on `device`."""
    from core.inference.load import attach_adapter
    from core.quantization.load import holds_codes, load_base

    stored, reader = read_json(folder / "config.json"), reader_of(ModelConfig(path=str(folder)))
    source = stored["llm"]
    place = source["path"] or str(folder / "llm")
    wanted = ModelConfig(path=place, quantization="none" if holds_codes(place) else source["quantization"])
    wanted.dtype = "fp32" if dtype == "auto" and wanted.quantization == "none" else dtype  # type: ignore[assignment]
    llm = load_base(wanted, None, device=device)
    if (folder / "adapter" / "adapter_config.json").is_file():
        llm = attach_adapter(llm, str(folder / "adapter"), trainable=True)
    model = _stacked(load_encoder(reader.options.path, device), llm, reader, source)
    model.load(folder)
    return model.to(device)


def _stacked(encoder: Any, llm: Any, reader: Reader, source: dict[str, str], seed: int = 0) -> StackedLm:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = StackedLm(encoder, llm)
    model.reader, model.llm_source = reader, source
    reads_both_ways(model)
    return model


def load_encoder(path: str, device: str) -> Any:
    """The encoder of a translation model; of a model without one, its transformer, adapters folded in."""
    from transformers import AutoConfig, AutoModel

    from core.inference.load import load_for_serving
    from core.models.load import _explained
    from core.training.build import merged_in_memory

    place = resolve_path(path)
    names = (
        read_json(Path(place) / "config.json").get("architectures") if (Path(place) / "config.json").is_file() else []
    )
    decoder = (Path(place) / "adapter_config.json").is_file() or any(
        "CausalLM" in n or "LMHead" in n for n in names or []
    )
    if decoder:
        model = merged_in_memory(load_for_serving(place, device=device, dtype="fp32")[0]).base_model
        model.config.use_cache = False
        return model
    try:
        config = AutoConfig.from_pretrained(place)
        model = AutoModel.from_pretrained(place, dtype=torch.float32)
    except Exception as error:
        raise _explained(error, "encoder", place) from error
    return (model.get_encoder() if config.is_encoder_decoder else model).to(device)


@torch.no_grad()
def reads_both_ways(model: StackedLm) -> None:
    """Try out that the language model's first token sees its last, and none sees padding.

    Raises:
        UnsupportedError: its attention keeps to its own mask.
    """
    body, device = model.body, model.projection.weight.device
    size = body.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(6, device=device) * 7 + 3).remainder(size)[None]
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]], device=device)
    training = body.training
    body.eval()

    def first(changed: int) -> torch.Tensor:
        other = ids.clone()
        if changed:
            other[0, changed] = (ids[0, changed] + 1) % size
        return body(input_ids=other, attention_mask=both_ways(mask), use_cache=False).last_hidden_state[:, 0].float()

    here, ahead, padded = first(0), first(3), first(5)
    body.train(training)
    scale = here.abs().max()
    if not (ahead - here).abs().max() > 1e-4 * scale or not (padded - here).abs().max() <= 1e-4 * scale:
        raise UnsupportedError(
            f"the attention of {type(body).__name__} does not follow a mask of both directions",
            where="model.attention",
            hint="set it to sdpa, or take a Llama, Mistral or Qwen model",
        )


def edit(model: Any, options: EncoderOptions, context: Any) -> Any:
    """A language model as it is built for other methods has no place for this edit."""
    raise ConfigError("mt_encoder makes a stacked model", where="model.edits", hint="method: lm.stack")


def _absolute(path: str) -> str:
    place = Path(path).expanduser()
    return str(place.resolve()) if place.is_dir() else path


def no_empty(examples: Sequence[Any]) -> None:
    """Raise `DataError` naming the rows without a text."""
    empty = [number for number, example in enumerate(examples, 1) if not example.text.strip()]
    if empty:
        raise DataError(f"rows without a text: {', '.join(map(str, empty[:5]))}", field="text")
