"""An embedding model: a transformer whose states are pooled, built from a base or opened from a folder.

The parts are modules of sentence-transformers, and a saved model is a folder that this library opens by itself. A
causal decoder becomes bidirectional by its configuration (`is_causal = False`), which transformers reads when it builds
masks; whether the installed version does is tried out on the model itself.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from apps.embeddings.latent import LatentAttentionPooling
from apps.embeddings.options import EmbeddingOptions
from core.config.parts import edit_options
from core.config.schema import ModelConfig
from core.errors import ConfigError, UnsupportedError

POOLINGS = {"mean": "mean", "last": "lasttoken", "cls": "cls"}


class EmbeddingModel(nn.Module):
    """`model(input_ids, attention_mask, pool_mask)` → embeddings (n, d) in float32.

    Args:
        encoder: a transformers model that returns `last_hidden_state`. pooling: what follows its states.
        after: more modules of sentence-transformers (a projection, say). normalize: scale to unit length.
    """

    def __init__(self, encoder: Any, pooling: Any, after: Any = (), normalize: bool = True) -> None:
        super().__init__()
        self.encoder, self.pooling, self.after = encoder, pooling, nn.ModuleList(after)
        self.normalize = normalize

    @property
    def device(self) -> torch.device:
        return self.pooling_parameter().device

    def pooling_parameter(self) -> torch.Tensor:
        return next(self.encoder.parameters())

    @property
    def states_dtype(self) -> torch.dtype:
        """Of the token states: that of the first floating-point weights."""
        return next(p.dtype for p in self.encoder.parameters() if p.is_floating_point())

    @property
    def config(self) -> Any:
        return self.encoder.config

    @property
    def dimension(self) -> int:
        parts = [*self.after, self.pooling]
        sizes = (part.get_embedding_dimension() for part in parts if hasattr(part, "get_embedding_dimension"))
        return next(sizes)

    def states(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Token states (n, l, d)."""
        cache = {"use_cache": False} if hasattr(self.config, "use_cache") else {}
        return self.encoder(input_ids=input_ids, attention_mask=attention_mask, **cache).last_hidden_state

    def pooled(self, attention_mask: torch.Tensor, pool_mask: torch.Tensor | None = None) -> torch.Tensor:
        """(n, l) the tokens that are pooled: without the instruction, unless this pooling was made to include it."""
        if pool_mask is None or getattr(self.pooling, "include_prompt", False):
            return attention_mask
        return pool_mask

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, pool_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        mask = self.pooled(attention_mask, pool_mask)
        features = {"token_embeddings": self.states(input_ids, attention_mask), "attention_mask": mask}
        for part in (self.pooling, *self.after):
            features = part(features)
        pooled = features["sentence_embedding"].float()
        return F.normalize(pooled, dim=-1) if self.normalize else pooled

    # ---- training ----------------------------------------------------------------------------------------------

    def with_adapters(self, add: Callable[[Any], Any]) -> EmbeddingModel:
        """Adapters on the transformer, which it keeps frozen; what pools its states trains in full."""
        if not hasattr(self.encoder, "peft_config"):
            self.encoder = add(self.encoder)
        return self

    def tie_weights(self) -> None:
        """Nothing is tied: there is no head."""

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:
        """All weights under the model's own names, for a stage that goes on from here."""
        from safetensors.torch import save_file

        Path(folder).mkdir(parents=True, exist_ok=True)
        state = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        save_file(state, Path(folder) / "model.safetensors", metadata={"format": "pt"})

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        self.encoder.gradient_checkpointing_enable(*args, **kwargs)

    def gradient_checkpointing_disable(self) -> None:
        self.encoder.gradient_checkpointing_disable()

    # ---- sentence-transformers ---------------------------------------------------------------------------------

    def to_sentence_transformer(
        self, tokenizer: Any, max_length: int | None = None, prompts: dict[str, str] | None = None
    ) -> Any:
        """The same model as a `SentenceTransformer` on the CPU, adapters folded in and quantized weights dense.

        A chat template stays behind: the library would make a conversation of every text.
        """
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.base.modules import Normalize, Transformer

        reader = copy.deepcopy(tokenizer)
        reader.chat_template = None
        with tempfile.TemporaryDirectory() as folder:
            plain(self.encoder).save_pretrained(folder)
            reader.save_pretrained(folder)
            first = Transformer(folder, max_seq_length=max_length)
        parts = [copy.deepcopy(part).cpu() for part in (self.pooling, *self.after)]
        ending = [Normalize()] if self.normalize else []
        return SentenceTransformer(modules=[first, *parts, *ending], device="cpu", prompts=prompts)


def plain(encoder: Any) -> Any:
    """The transformer without adapters, which are folded in, and with dense weights; itself where it is so already."""
    from core.quantization.dense import dense_state, is_quantized_linear
    from core.quantization.peft import QuantLoraLinear

    if hasattr(encoder, "merge_and_unload"):
        encoder = copy.deepcopy(encoder)
        for module in encoder.modules():
            if isinstance(module, QuantLoraLinear):
                module.merge(to="dense")
        encoder = encoder.merge_and_unload()
    if not any(map(is_quantized_linear, encoder.modules())) and not hasattr(encoder.config, "quantization_config"):
        return encoder
    config = copy.deepcopy(encoder.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    dense = type(encoder)(config).to(encoder.dtype)
    dense.load_state_dict(dense_state(encoder), strict=False)
    return dense


def build_model(config: ModelConfig, tokenizer: Any, *, device: str, seed: int = 0, texts: Any = ()) -> EmbeddingModel:
    """The embedding model that a recipe's `model:` describes, in fp32 where it trains.

    A folder of sentence-transformers keeps its pooling and its direction of attention; any other base, or one with an
    edit, gets what `edits` name, by default the mean and open attention.

    Raises:
        ConfigError: an edit that is not for embedding models. CheckpointError: no model there.
    """
    options = EmbeddingOptions()
    for edit in config.edits:
        if edit.get("kind") != "embedding":
            raise ConfigError(f"the edit '{edit.get('kind')}' is not for embedding models", where="model.edits")
        options = edit_options(edit)
    from apps.embeddings.encode import with_ending

    with_ending(tokenizer)
    kept = library_parts(config)
    if kept is None:
        encoder, parts, normalize = base_encoder(config, tokenizer, device, seed), None, options.normalize
    else:
        encoder, parts, normalize = kept
        encoder = in_fewer_bits(encoder, config.quantization, device)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        pooling = pooling_for(encoder, options, None if parts is None else parts[0])
    model = EmbeddingModel(encoder, pooling, parts[1:] if parts else (), normalize)
    opened(encoder, None if kept and not config.edits else options.bidirectional)
    return model.to(device)


def edit(model: EmbeddingModel, options: EmbeddingOptions, context: Any) -> EmbeddingModel:
    """The pooling of an embedding model replaced."""
    model.pooling = pooling_for(model.encoder, options, model.pooling).to(model.device)
    opened(model.encoder, options.bidirectional)
    model.normalize = options.normalize
    return model


def pooling_for(encoder: Any, options: EmbeddingOptions, own: Any = None) -> Any:
    """The module that `options` ask for; `own` where they leave it to the model."""
    from sentence_transformers.sentence_transformer.modules import Pooling

    width = encoder.config.hidden_size
    if options.pooling == "auto" and own is not None:
        return own
    if options.pooling == "latent":
        return LatentAttentionPooling(width, options.latents, options.heads)
    return Pooling(width, pooling_mode=POOLINGS.get(options.pooling, "mean"), include_prompt=False)


def library_parts(config: ModelConfig) -> tuple[Any, list[Any], bool] | None:
    """Encoder, the modules behind it, and whether the last one normalises; None when it is no library folder.

    Modules are those of the library and our own; code that comes with a model is not run. A pooling that was made
    without prompts (`graft_prompts` of the encoder, by name) leaves ours out.

    Raises:
        UnsupportedError: a module of another kind or in another place.
    """
    from core.config.files import read_json
    from core.models.load import DTYPES, resolve_path

    folder = Path(resolve_path(config.path)) if config.path else None
    if folder is None or not (folder / "modules.json").is_file():
        return None
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    known = {kind.__name__: kind for kind in (Transformer, Pooling, Dense, Normalize, LatentAttentionPooling)}
    entries = read_json(folder / "modules.json")
    kinds = [entry["type"].rpartition(".")[2] for entry in entries]
    ending = kinds[2:-1] if kinds[-1:] == ["Normalize"] else kinds[2:]
    pools = kinds[1:2] in (["Pooling"], ["LatentAttentionPooling"])
    if kinds[:1] != ["Transformer"] or not pools or set(ending) - {"Dense"}:
        raise UnsupportedError(
            f"the model is made of {', '.join(kinds)}",
            where=str(folder / "modules.json"),
            hint="a Transformer, Pooling or LatentAttentionPooling, any Dense, and Normalize at the end",
        )
    dtype = getattr(torch, DTYPES.get(config.dtype, "float32"))
    first = Transformer.load(
        str(folder), subfolder=entries[0]["path"], model_kwargs={"dtype": dtype}, local_files_only=True
    )
    rest = [known[kind].load(str(folder), subfolder=entry["path"], local_files_only=True)
            for kind, entry in zip(kinds[1:], entries[1:]) if kind != "Normalize"]  # fmt: skip
    encoder = first.auto_model
    encoder.graft_max_length, encoder.graft_prompts = first.max_seq_length, own_prompts(folder)
    if not any(encoder.graft_prompts.values()):
        rest[0].include_prompt = False
    return encoder, rest, kinds[-1] == "Normalize"


def own_prompts(folder: Path) -> dict[str, str]:
    """The prompts of a folder of sentence-transformers by name."""
    from core.config.files import read_json

    file = folder / "config_sentence_transformers.json"
    return (read_json(file).get("prompts") or {}) if file.is_file() else {}


def base_encoder(config: ModelConfig, tokenizer: Any, device: str, seed: int) -> Any:
    """The transformer of a base model without its head."""
    from core.config.files import read_json
    from core.models.load import DTYPES, resolve_path
    from core.quantization.load import load_base

    folder = Path(resolve_path(config.path)) if config.path else None
    if folder is not None and (folder / "config.json").is_file():
        architecture = (read_json(folder / "config.json").get("architectures") or [""])[0]
        if "CausalLM" not in architecture and "LMHead" not in architecture:
            from transformers import AutoModel

            dtype = getattr(torch, DTYPES.get(config.dtype, "float32"))
            found = AutoModel.from_pretrained(str(folder), dtype=dtype)
            return in_fewer_bits(found, config.quantization, device)
    plain = copy.copy(config)
    plain.edits, plain.adapters = [], []
    if plain.dtype == "auto" and plain.quantization == "none":
        plain.dtype = "fp32"
    model = load_base(plain, tokenizer, device=device, seed=seed)
    return model.base_model


def in_fewer_bits(encoder: Any, spec: str, device: str) -> Any:
    """A transformer that is no causal language model with its weights in the format `spec`, or as it is for "none".

    Raises:
        UnsupportedError: a format that another library makes while it reads a causal language model.
    """
    if spec == "none":
        return encoder
    from core.config.registry import QUANTIZERS

    quantizer = QUANTIZERS.get(spec.partition(":")[0])
    if quantizer.loading:
        raise UnsupportedError(
            f"the format '{spec}' is not for {type(encoder).__name__}",
            where="quantization",
            hint="take one of graft's own: graft:nf4, graft:rtn:8",
        )
    return quantizer.applied(encoder, spec, device, None)


def opened(encoder: Any, bidirectional: bool | None) -> None:
    """Make every token of a decoder see the whole text, and try it out; None keeps what its configuration says.

    Raises:
        UnsupportedError: the family or the installed transformers does not honour it.
    """
    if not is_decoder(encoder):
        return
    if bidirectional is None:
        bidirectional = getattr(encoder.config, "is_causal", None) is False or sees_ahead(encoder, padding=False)
    encoder.config.is_causal = not bidirectional
    for module in encoder.modules():
        if hasattr(module, "is_causal") and isinstance(module.is_causal, bool):
            module.is_causal = not bidirectional
    if bidirectional and not sees_ahead(encoder):
        raise UnsupportedError(
            f"{type(encoder).__name__} stays causal, or pays heed to padding",
            where="model.edits",
            hint="set bidirectional: false and pooling: last, or attention: eager",
        )


def is_decoder(encoder: Any) -> bool:
    """Whether states of a text change only with what stands before them, or its attention was made for that.

    A model that was opened by its configuration alone still has modules that say they are causal.
    """
    made = any(getattr(module, "is_causal", None) is True for module in encoder.modules())
    return made or not sees_ahead(encoder, padding=False)


@torch.no_grad()
def sees_ahead(encoder: Any, padding: bool = True) -> bool:
    """The first state moves with the last token; with `padding`, also: states do not move with padding behind.

    Less than 1e-4 of the largest value is no move: experts sum in another order when other tokens are routed.
    """
    device, training = next(encoder.parameters()).device, encoder.training
    encoder.eval()
    size = encoder.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(6, device=device) * 7 + 3).remainder(size)[None]
    other = ids.clone()
    other[0, -1] = (ids[0, -1] + 1) % size
    cache = {"use_cache": False} if hasattr(encoder.config, "use_cache") else {}
    first = encoder(input_ids=ids, attention_mask=torch.ones_like(ids), **cache).last_hidden_state
    second = encoder(input_ids=other, attention_mask=torch.ones_like(ids), **cache).last_hidden_state
    scale = first.float().abs().max()
    moves = bool((first[:, 0].float() - second[:, 0].float()).abs().max() > 1e-4 * scale)
    same = True
    if padding:
        longer, mask = F.pad(ids, (0, 3)), F.pad(torch.ones_like(ids), (0, 3))
        third = encoder(input_ids=longer, attention_mask=mask, **cache).last_hidden_state[:, :6]
        same = bool((third.float() - first.float()).abs().max() <= 2e-2 * scale)
    encoder.train(training)
    return moves and same
