"""Load or build the base model and its tokenizer; nothing is laid on it here.

A model is named by a hub id, a local folder, a run folder, the word `embedded` (the small model that ships), or a
preset to build from random weights. Nothing is downloaded unless the user named it, and code that comes with a model
is run only when asked. Loading a folder that is itself an adapter is left to `core.training.build`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from core.config.schema import ModelConfig
from core.errors import CheckpointError, ConfigError, UnsupportedError

EMBEDDED = Path(__file__).parent / "embedded"
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def resolve_path(path: str) -> str:
    """A folder that holds a model, or the hub id unchanged.

    Raises:
        CheckpointError: a local folder without a model in it.
    """
    if path == "embedded":
        folder = EMBEDDED
    else:
        folder = Path(path).expanduser()
        if not folder.exists():
            if path.count("/") > 1 or path.startswith((".", "~", "/")):
                raise CheckpointError("model folder not found", where=path)
            return path
    if not folder.is_dir():
        raise CheckpointError("not a folder", where=str(folder), hint="give the folder that holds config.json")
    for candidate in (folder, folder / "model"):
        if (candidate / "config.json").is_file() or (candidate / "adapter_config.json").is_file():
            return str(candidate)
    raise CheckpointError("the folder holds no model (no config.json)", where=str(folder))


def load_tokenizer(config: ModelConfig, texts: Iterable[str] | None = None):
    """The tokenizer named by `model.tokenizer`, else the model's own; "bpe:N" trains one on `texts`.

    A tokenizer without a padding token gets one that differs from its end of text where the vocabulary has such a
    token; labels never depend on it.
    """
    from core.models.tokenizer import train_bpe

    name = config.tokenizer
    if name and name.startswith("bpe:"):
        size = name.removeprefix("bpe:")
        if not size.isdigit():
            raise ConfigError("a trained tokenizer is written bpe:SIZE", where="model.tokenizer", hint="e.g. bpe:8192")
        if texts is None:
            raise ConfigError("this tokenizer is trained on the training text", where="model.tokenizer")
        return train_bpe(texts, int(size))
    source = name or config.path
    if source is None:
        raise ConfigError("no tokenizer", where="model.tokenizer", hint="set model.tokenizer, e.g. bpe:8192")
    from transformers import AutoTokenizer

    place = resolve_path(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            place, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(_first_line(error), where=place, hint=_offline_hint(place)) from error
    if tokenizer.eos_token_id is None:
        raise CheckpointError("the tokenizer has no end-of-text token", where=place)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(config: ModelConfig, tokenizer, *, device: str = "cpu", dtype: str | None = None, seed: int = 0):
    """The base as a transformers model on `device`.

    Args:
        dtype: "fp32", "bf16" or "fp16"; default `config.dtype`, where auto is fp32 on CPU, the checkpoint's elsewhere.
        seed: of the random weights of a preset.

    Raises:
        CheckpointError: folder missing, unreadable or torn. UnsupportedError: a number format that is not there.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if config.quantization != "none":
        raise UnsupportedError(
            f"quantization '{config.quantization}' is not available", where="model.quantization", hint="known: none"
        )
    if config.edits:
        raise UnsupportedError("no structural edit is available", where="model.edits")
    attention = None if config.attention == "auto" else config.attention
    wanted = dtype or config.dtype
    if wanted == "auto":
        wanted = "fp32" if device == "cpu" or config.preset else "auto"
    torch_dtype = wanted if wanted == "auto" else getattr(torch, DTYPES[wanted])
    if config.preset:
        return _from_preset(config.preset, tokenizer, attention, torch_dtype, seed).to(device)
    place = resolve_path(config.path)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            place,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
            dtype=torch_dtype,
            attn_implementation=attention,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(_first_line(error), where=place, hint=_offline_hint(place)) from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise CheckpointError(f"the weights are torn: {error}", where=place, hint="copy the folder again") from error
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ConfigError(
            f"the tokenizer has {len(tokenizer)} tokens, the model {rows} rows",
            where="model.tokenizer",
            hint="use the tokenizer the model was trained with",
        )
    return model.to(device)


def _from_preset(preset: str, tokenizer, attention: str | None, dtype, seed: int):
    """Random weights, equal for equal seeds; the caller's random state is left as it was."""
    import torch
    from transformers import AutoModelForCausalLM

    from core.models.presets import build_config

    config = build_config(
        preset, len(tokenizer), bos=tokenizer.bos_token_id, eos=tokenizer.eos_token_id, pad=tokenizer.pad_token_id
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        keywords = {} if attention is None else {"attn_implementation": attention}
        return AutoModelForCausalLM.from_config(config, dtype=dtype, **keywords)


def _first_line(error: Exception) -> str:
    return (
        f"the model cannot be loaded: {str(error).strip().splitlines()[0][:200]}" if str(error).strip() else repr(error)
    )


def _offline_hint(place: str) -> str | None:
    if Path(place).exists():
        return None
    return f"'{place}' is taken as a hub id; to use a local model give a folder that exists and holds config.json"
