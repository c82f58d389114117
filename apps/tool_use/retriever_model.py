"""The dense half of a retriever: a model of sentence-transformers, opened, built from a base, or begun from nothing.

What is saved is a folder that sentence-transformers opens by itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from apps.tool_use.options import BiEncoderOptions
from core.config.parts import edit_options
from core.config.schema import ModelConfig
from core.errors import CheckpointError, ConfigError

POOLINGS = {"mean": "mean", "last": "lasttoken", "cls": "cls"}


class BiEncoder(SentenceTransformer):
    """A `SentenceTransformer` as a stage trains it; `save` writes the library's folder."""

    def tie_weights(self) -> None:
        """Nothing is tied: there is no head."""

    def with_adapters(self, add: Callable[[Any], Any]) -> BiEncoder:
        """Adapters on the transformer, which it keeps frozen."""
        if not isinstance(self[0], Transformer):
            raise ConfigError("a table of word vectors takes no adapters", where="model.adapters")
        if not hasattr(self[0].model, "peft_config"):
            self[0].model = add(self[0].model)
        return self

    def save_pretrained(self, path: str | Path, **kwargs: Any) -> None:  # type: ignore[override]
        """All weights under their own names, for a stage that goes on from here."""
        from safetensors.torch import save_file

        Path(path).mkdir(parents=True, exist_ok=True)
        state = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        save_file(state, Path(path) / "model.safetensors", metadata={"format": "pt"})

    def write(self, folder: Path) -> None:
        """The folder of the library, adapters folded in."""
        import copy

        if isinstance(self[0], Transformer) and hasattr(self[0].model, "merge_and_unload"):
            inner = self[0].model
            self[0].model = copy.deepcopy(inner).merge_and_unload()
            try:
                self.save(str(folder), create_model_card=False)
            finally:
                self[0].model = inner
            return
        self.save(str(folder), create_model_card=False)


def build_model(config: ModelConfig, tokenizer: Any, *, device: str, seed: int = 0, texts: Any = ()) -> BiEncoder:
    """The bi-encoder that a recipe's `model:` describes.

    A folder of sentence-transformers stays what it is; another base gets the pooling of its `bi_encoder` edit, the mean
    by default; `encoder: subwords` begins a `SubwordEmbedding` from nothing.

    Raises:
        ConfigError: an edit that is not for retrievers. CheckpointError: no model there.
    """
    options = BiEncoderOptions()
    for edit in config.edits:
        if edit.get("kind") != "bi_encoder":
            raise ConfigError(f"the edit '{edit.get('kind')}' is not for retrievers", where="model.edits")
        options = edit_options(edit)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        if options.encoder == "subwords":
            from apps.tool_use.retriever_subwords import SubwordEmbedding

            table = SubwordEmbedding(options.width, options.rows).weigh(texts)
            return BiEncoder(modules=[table, Normalize()], device=device)
        folder = library_folder(config.path) if config.path else None
        if folder is not None:
            return opened(folder, device)
        return BiEncoder(modules=_around(config, tokenizer, seed, options), device=device)


def edit(model: Any, options: BiEncoderOptions, context: Any) -> Any:
    """A language model as it is built for other methods has no place for this edit."""
    raise ConfigError("bi_encoder makes a retriever", where="model.edits", hint="method: tool_use.retriever")


def _around(config: ModelConfig, tokenizer: Any, seed: int, options: BiEncoderOptions) -> list[Any]:
    """A transformer of a base model without its head, pooling and normalisation."""
    import copy

    from core.models.load import resolve_path
    from core.quantization.load import load_base

    plain = copy.copy(config)
    plain.edits, plain.adapters = [], []
    with tempfile.TemporaryDirectory() as made:
        place = resolve_path(config.path) if config.path else made
        if config.path is None or not _is_encoder(place):
            plain.dtype = "fp32" if plain.dtype == "auto" else plain.dtype
            load_base(plain, tokenizer, device="cpu", seed=seed).base_model.save_pretrained(made)
            tokenizer.save_pretrained(made)
            place = made
        first = Transformer(place)
    pooling = Pooling(first.get_embedding_dimension(), pooling_mode=POOLINGS[options.pooling])
    return [first, pooling, Normalize()]


def _is_encoder(folder: str) -> bool:
    from core.config.files import read_json

    place = Path(folder) / "config.json"
    name = (read_json(place).get("architectures") or [""])[0] if place.is_file() else ""
    return bool(name) and "CausalLM" not in name and "LMHead" not in name


def library_folder(path: str) -> Path | None:
    """The folder of sentence-transformers that `path` (a folder, a run, package:NAME) holds; None when it is none."""
    from core.models.load import PACKAGE, resolve_path

    place = Path(resolve_path(path)) if path.startswith(PACKAGE) else Path(path).expanduser()
    return next((p for p in (place, place / "model") if (p / "modules.json").is_file()), None)


def opened(folder: str | Path, device: str) -> BiEncoder:
    """The model in a folder of sentence-transformers; code that comes with a model is not run."""
    from core.config.files import read_json

    try:
        if read_json(Path(folder) / "modules.json")[0]["type"].endswith(".SubwordEmbedding"):
            from apps.tool_use.retriever_subwords import SubwordEmbedding

            # The library opens a module that is not its own only when it may run any code.
            return BiEncoder(modules=[SubwordEmbedding.load(str(folder)), Normalize()], device=device)
        return BiEncoder(str(folder), device=device, local_files_only=True, model_kwargs={"dtype": torch.float32})
    except (OSError, ValueError, ImportError, KeyError, IndexError) as error:
        raise CheckpointError(f"the retriever cannot be opened: {error}", where=str(folder)) from error


def encoded(model: Any, texts: list[str], batch: int = 64) -> Any:
    """(n, d) float32 unit vectors."""
    return model.encode(texts, batch_size=batch, normalize_embeddings=True, show_progress_bar=False)
