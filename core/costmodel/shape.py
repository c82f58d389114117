"""The architecture of a causal language model as numbers, read from its `config.json`.

It counts parameters exactly and lists the linear maps of a block with their sizes. Weights are never looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.config.files import read_json
from core.errors import CheckpointError, UnsupportedModelError, nearest


@dataclass(frozen=True)
class Linear:
    """y (…, out) = x (…, in) Wᵀ (+ b)."""

    inside: int
    outside: int
    bias: bool = False

    @property
    def parameters(self) -> int:
        return self.inside * self.outside + self.outside * self.bias


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model; `linears` are those of one block, by the last part of their module's name.

    Args:
        hidden, layers, ffn, vocabulary: widths and counts. heads, kv_heads, head_dim: of attention.
        gated: SwiGLU-like (down(act(gate) · up)) instead of down(act(up)).
        rms: RMSNorm instead of LayerNorm. head_norms: q and k are normed a head (Qwen3).
        norm_parameters: of one block's norms. other_parameters: outside blocks, embedding and head.
        positions: learned position vectors. tied: head and embedding are one matrix. dtype: the checkpoint's.
    """

    family: str
    hidden: int
    layers: int
    ffn: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool
    linears: Mapping[str, Linear] = field(repr=False)
    gated: bool = True
    rms: bool = True
    head_norms: bool = False
    norm_parameters: int = 0
    other_parameters: int = 0
    positions: int = 0
    dropout: bool = False
    dtype: str | None = None

    @property
    def query(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        """Width of all key heads together."""
        return self.kv_heads * self.head_dim

    @property
    def block_parameters(self) -> int:
        return sum(linear.parameters for linear in self.linears.values()) + self.norm_parameters

    @property
    def linear_weights(self) -> int:
        """Entries of all blocks' weight matrices, which is what a quantizer holds."""
        return self.layers * sum(linear.inside * linear.outside for linear in self.linears.values())

    @property
    def embedding_parameters(self) -> int:
        return (self.vocabulary + self.positions) * self.hidden

    @property
    def head_parameters(self) -> int:
        return 0 if self.tied else self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        return (
            self.layers * self.block_parameters
            + self.embedding_parameters
            + self.head_parameters
            + self.other_parameters
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any], vocabulary: int | None = None) -> ModelShape:
        """The shape behind a `config.json`.

        Args:
            vocabulary: rows of the embedding, where the tokenizer decides and not the config.

        Raises:
            UnsupportedModelError: a family that is not known here.
        """
        family = str(config.get("model_type"))
        if family not in FAMILIES:
            hint = " ".join(filter(None, [nearest(family, FAMILIES), f"known: {', '.join(FAMILIES)}"]))
            raise UnsupportedModelError(f"memory and time of model type '{family}' are not predicted", hint=hint)
        try:
            return FAMILIES[family](config, vocabulary or int(config.get("vocab_size", 0)))
        except KeyError as error:
            raise UnsupportedModelError(f"the config of a {family} model lacks {error}", where="config.json") from error
        except (ArithmeticError, TypeError, ValueError) as error:
            raise UnsupportedModelError(f"the config of a {family} model has sizes that cannot be: {error}",
                                        where="config.json") from error  # fmt: skip

    @classmethod
    def from_folder(cls, folder: str | Path) -> ModelShape:
        """The shape of the model in `folder`. Raises `CheckpointError` when it has no config.json."""
        path = Path(folder) / "config.json"
        if not path.is_file():
            raise CheckpointError("no config.json to read the model's sizes from", where=str(folder))
        return cls.from_config(read_json(path))


# Defaults of transformers' configs, for keys that a config.json leaves out.
_GATED: dict[str, dict[str, Any]] = {
    "llama": {"biases": ()},
    "mistral": {"biases": (), "num_key_value_heads": 8},
    "qwen2": {"biases": ("q_proj", "k_proj", "v_proj"), "num_key_value_heads": 32},
    "qwen3": {"biases": (), "num_key_value_heads": 32, "head_dim": 128},
    "gemma": {"biases": (), "num_key_value_heads": 16, "head_dim": 256, "tie_word_embeddings": True},
}


def _gated(config: Mapping[str, Any], vocabulary: int) -> ModelShape:
    family = config["model_type"]
    default = _GATED[family]
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    kv = config.get("num_key_value_heads") or default.get("num_key_value_heads", heads)
    size = config.get("head_dim") or default.get("head_dim") or hidden // heads
    ffn, q, k = config["intermediate_size"], heads * size, kv * size
    biases = set(default["biases"])
    if config.get("attention_bias"):
        biases |= {"q_proj", "k_proj", "v_proj", "o_proj"}
    if config.get("mlp_bias"):
        biases |= {"gate_proj", "up_proj", "down_proj"}
    sizes = {
        "q_proj": (hidden, q), "k_proj": (hidden, k), "v_proj": (hidden, k), "o_proj": (q, hidden),
        "gate_proj": (hidden, ffn), "up_proj": (hidden, ffn), "down_proj": (ffn, hidden),
    }  # fmt: skip
    head_norms = family == "qwen3"
    return ModelShape(
        family=family,
        hidden=hidden,
        layers=config["num_hidden_layers"],
        ffn=ffn,
        vocabulary=vocabulary,
        heads=heads,
        kv_heads=kv,
        head_dim=size,
        tied=bool(config.get("tie_word_embeddings", default.get("tie_word_embeddings", False))),
        linears={name: Linear(i, o, name in biases) for name, (i, o) in sizes.items()},
        head_norms=head_norms,
        norm_parameters=2 * hidden + 2 * size * head_norms,
        other_parameters=hidden,
        dropout=bool(config.get("attention_dropout")),
        dtype=_dtype(config),
    )


def _gpt2(config: Mapping[str, Any], vocabulary: int) -> ModelShape:
    hidden, heads = config.get("n_embd", 768), config.get("n_head", 12)
    ffn = config.get("n_inner") or 4 * hidden
    return ModelShape(
        family="gpt2",
        hidden=hidden,
        layers=config.get("n_layer", 12),
        ffn=ffn,
        vocabulary=vocabulary,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        tied=bool(config.get("tie_word_embeddings", True)),
        linears={
            "c_attn": Linear(hidden, 3 * hidden, True),
            "attn.c_proj": Linear(hidden, hidden, True),
            "c_fc": Linear(hidden, ffn, True),
            "mlp.c_proj": Linear(ffn, hidden, True),
        },
        gated=False,
        rms=False,
        norm_parameters=4 * hidden,
        other_parameters=2 * hidden,
        positions=config.get("n_positions", 1024),
        dropout=any(config.get(name, 0.1) for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")),
        dtype=_dtype(config),
    )


def _gpt_neox(config: Mapping[str, Any], vocabulary: int) -> ModelShape:
    hidden, heads, ffn = config["hidden_size"], config["num_attention_heads"], config["intermediate_size"]
    bias = bool(config.get("attention_bias", True))
    return ModelShape(
        family="gpt_neox",
        hidden=hidden,
        layers=config["num_hidden_layers"],
        ffn=ffn,
        vocabulary=vocabulary,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        tied=bool(config.get("tie_word_embeddings", False)),
        linears={
            "query_key_value": Linear(hidden, 3 * hidden, bias),
            "dense": Linear(hidden, hidden, bias),
            "dense_h_to_4h": Linear(hidden, ffn, True),
            "dense_4h_to_h": Linear(ffn, hidden, True),
        },
        gated=False,
        rms=False,
        norm_parameters=4 * hidden,
        other_parameters=2 * hidden,
        dropout=bool(config.get("hidden_dropout") or config.get("attention_dropout")),
        dtype=_dtype(config),
    )


def _dtype(config: Mapping[str, Any]) -> str | None:
    return config.get("dtype") or config.get("torch_dtype")


FAMILIES = {**dict.fromkeys(_GATED, _gated), "gpt2": _gpt2, "gpt_neox": _gpt_neox}
