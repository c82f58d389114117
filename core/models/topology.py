"""Where things are inside a model family, as one table.

Methods that edit or read a model ask here for its blocks, embedding, norm and head; none matches module names itself.
A family is one row of dotted paths, so a new one is a row and not code. An edited model answers too: a block that
holds several (a sidecar) is listed as its branches in the order in which they run.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from core.errors import ConfigError, UnsupportedModelError, nearest

ROLES = ("q", "k", "v", "qkv", "o", "gate", "up", "down")


@dataclass(frozen=True)
class BlockRef:
    """One transformer block: its modules and the geometry of its attention.

    `qkv` is set for fused projections, laid out as `qkv_layout` says: "concat" is all of q, then k, then v; "heads" is
    q, k, v of one head after another. `gate` is None without gating, and where `up` holds both, gate first (Phi-3);
    `mlp` is None where the feed-forward maps stand in the block itself. `norms` stand in the order in which they run; a
    "sandwich" has one before and one behind each sub-layer (Gemma 2). `sublayer_out` is the module whose output joins
    the residual after the feed-forward part. `branch` names which part of a compound block this is, "" in a plain
    model.
    """

    module: Any
    attn: Any
    mlp: Any
    norms: tuple[Any, ...]
    o: Any
    up: Any
    down: Any
    q: Any = None
    k: Any = None
    v: Any = None
    qkv: Any = None
    gate: Any = None
    act: Any = None
    n_heads: int = 0
    n_kv_heads: int = 0
    head_dim_qk: int = 0
    head_dim_vo: int = 0
    rope: Literal["half", "interleaved"] | None = None
    residual: Literal["pre_ln", "post_ln", "parallel", "sandwich"] = "pre_ln"
    qkv_layout: Literal["concat", "heads"] | None = None
    sublayer_out: Any = None
    branch: str = ""

    def linears(self) -> dict[str, Any]:
        """Role → linear map, in the order in which they run; absent ones are left out."""
        return {role: part for role in ROLES if (part := getattr(self, role)) is not None}


@dataclass(frozen=True)
class Family:
    """Paths of one model family: `stack`, `norm` and `embeddings` from the base model, the others from a block."""

    stack: str
    attn: str
    norms: tuple[str, ...]
    o: str
    up: str
    down: str
    norm: str | None = None
    embeddings: str = "embed_tokens"
    mlp: str | None = "mlp"
    q: str | None = None
    k: str | None = None
    v: str | None = None
    qkv: str | None = None
    gate: str | None = None
    act: str = "mlp.act_fn"
    sublayer_out: str | None = "mlp"
    rope: Literal["half", "interleaved"] | None = None
    residual: Literal["pre_ln", "post_ln", "parallel", "sandwich"] = "pre_ln"
    qkv_layout: Literal["concat", "heads"] | None = None


@dataclass(frozen=True)
class ModelTopology:
    """The parts of a transformer.

    `stack` is the ModuleList that holds the blocks and `stack_name` its name; `blocks` has an entry for every branch.
    `embeddings` is the module whose output enters the first block (BERT's whole embeddings module). `head` is None for
    a model without an output embedding.
    """

    family: str
    blocks: list[BlockRef]
    embed: Any
    final_norm: Any
    head: Any
    head_tied: bool
    stack: Any = None
    stack_name: str = ""
    embeddings: Any = None
    names: dict[int, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, model: Any) -> ModelTopology:
        """The topology of a transformers model, also below peft.

        Raises:
            UnsupportedModelError: a family without an entry, or a model that lacks a part of its family.
        """
        model = model.get_base_model() if hasattr(model, "get_base_model") else model
        kind = model.config.model_type
        if kind not in FAMILIES:
            hint = " ".join(filter(None, [nearest(kind, FAMILIES), f"known: {', '.join(sorted(FAMILIES))}"]))
            raise UnsupportedModelError(f"no topology for model type '{kind}'", hint=hint)
        family = FAMILIES[kind]
        base = model.base_model
        stack = _find(base, family.stack)
        if stack is None:
            # an encoder taken out of its encoder-decoder is the base itself
            stack = _find(base, family.stack.rpartition(".")[2])
        if stack is None:
            raise UnsupportedModelError(f"a {kind} model without its blocks", where=type(model).__name__)
        names = {id(module): name for name, module in model.named_modules()}
        blocks = [
            _block(family, inner, branch, model.config)
            for outer in stack
            for branch, inner in (outer.branches() if hasattr(outer, "branches") else [("", outer)])
        ]
        embed, head = model.get_input_embeddings(), model.get_output_embeddings()
        tied = head is not None and getattr(head, "weight", None) is getattr(embed, "weight", embed)
        norm = None if family.norm is None else _find(base, family.norm) or _find(base, family.norm.rpartition(".")[2])
        embeddings = _find(base, family.embeddings) or embed
        return cls(kind, blocks, embed, norm, head, tied, stack, names[id(stack)], embeddings, names)

    def name_of(self, module: Any) -> str:
        """The dotted name of `module` in the model."""
        return self.names[id(module)]

    def targets(self, *roles: str) -> list[str]:
        """Full names of the linear maps in these roles, over all blocks; "q", "k" and "v" find a fused "qkv" too.

        Raises:
            ConfigError: a role that no family has.
        """
        for role in roles:
            if role not in ROLES:
                hint = " ".join(filter(None, [nearest(role, ROLES), f"roles: {', '.join(ROLES)}"]))
                raise ConfigError(f"no linear map is called '{role}'", hint=hint)
        wanted = {*roles, *(["qkv"] if {"q", "k", "v"} & set(roles) else [])}
        return [self.name_of(part) for block in self.blocks for role, part in block.linears().items() if role in wanted]


def block_linears(model: Any) -> list[str]:
    """Full names of every linear map of the blocks; of an unknown family, of its longest list of modules.

    Raises:
        UnsupportedModelError: an unknown family without a list of blocks.
    """
    from torch.nn import Linear, ModuleList

    try:
        topology = ModelTopology.of(model)
    except UnsupportedModelError:
        stacks = [(name, part) for name, part in model.named_modules() if isinstance(part, ModuleList) and len(part)]
        if not stacks:
            raise
        stack, blocks = max(stacks, key=lambda found: sum(p.numel() for p in found[1].parameters()))
        return [f"{stack}.{name}" for name, part in blocks.named_modules() if isinstance(part, Linear)]
    # beside a frozen block, its copy is what learns
    chosen = [block for block in topology.blocks if block.branch == "exp"] or topology.blocks
    return list(dict.fromkeys(topology.name_of(part) for block in chosen for part in block.linears().values()))


def register_topology(model_type: str, family: Family) -> None:
    """Make another model family known under its `config.model_type`."""
    FAMILIES[model_type] = family


def _find(root: Any, path: str | None) -> Any:
    """The part of `root` at a dotted path, or None. What an adapter has wrapped is looked through."""
    for name in path.split(".") if path else ():
        found = getattr(root, name, None)
        root = getattr(root.base_layer, name, None) if found is None and hasattr(root, "base_layer") else found
        if root is None:
            return None
    return root if path else None


def _block(family: Family, block: Any, branch: str, config: Any) -> BlockRef:
    residual = family.residual
    if config.model_type == "gpt_neox" and config.use_parallel_residual:
        residual = "parallel"
    if config.model_type == "opt" and not config.do_layer_norm_before:
        residual = "post_ln"
    if hasattr(block, "residual_scale"):
        residual = "post_ln"
    if config.model_type == "bloom" and config.apply_residual_connection_post_layernorm:
        raise UnsupportedModelError(
            "a BLOOM whose residual starts after the norm", where="config.apply_residual_connection_post_layernorm"
        )
    parts = {role: _find(block, getattr(family, role)) for role in ("attn", "mlp", "act", "sublayer_out", *ROLES)}
    norms = tuple(_find(block, name) for name in family.norms)
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    geometry = {
        "n_heads": heads,
        "n_kv_heads": getattr(config, "num_key_value_heads", None) or heads,
        "head_dim_qk": size,
        "head_dim_vo": size,
        **getattr(parts["attn"], "geometry", {}),
    }
    return BlockRef(
        module=block,
        norms=norms,
        rope=family.rope,
        residual=residual,
        qkv_layout=family.qkv_layout,
        branch=branch,
        **geometry,
        **parts,
    )


def _separate(attn: str, q: str, k: str, v: str, **more: Any) -> dict[str, Any]:
    return {"attn": attn, "q": f"{attn}.{q}", "k": f"{attn}.{k}", "v": f"{attn}.{v}", **more}


_LLAMA = Family(
    stack="layers",
    norm="norm",
    norms=("input_layernorm", "post_attention_layernorm"),
    gate="mlp.gate_proj",
    up="mlp.up_proj",
    down="mlp.down_proj",
    rope="half",
    **_separate("self_attn", "q_proj", "k_proj", "v_proj", o="self_attn.o_proj"),
)
_GEMMA = replace(
    _LLAMA,
    norms=("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
    sublayer_out="post_feedforward_layernorm",
    residual="sandwich",
)
_BERT = Family(
    stack="encoder.layer",
    embeddings="embeddings",
    norms=("attention.output.LayerNorm", "output.LayerNorm"),
    mlp=None,
    up="intermediate.dense",
    down="output.dense",
    act="intermediate.intermediate_act_fn",
    sublayer_out="output",
    residual="post_ln",
    **_separate("attention.self", "query", "key", "value", o="attention.output.dense"),
)
_FEED_FORWARD_IN_BLOCK = {"mlp": None, "up": "fc1", "down": "fc2", "act": "activation_fn", "sublayer_out": "fc2"}

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "phi3": Family(
        stack="layers",
        norm="norm",
        attn="self_attn",
        norms=("input_layernorm", "post_attention_layernorm"),
        qkv="self_attn.qkv_proj",
        qkv_layout="concat",
        o="self_attn.o_proj",
        up="mlp.gate_up_proj",
        down="mlp.down_proj",
        act="mlp.activation_fn",
        rope="half",
    ),
    "gpt2": Family(
        stack="h",
        norm="ln_f",
        embeddings="drop",
        attn="attn",
        norms=("ln_1", "ln_2"),
        qkv="attn.c_attn",
        qkv_layout="concat",
        o="attn.c_proj",
        up="mlp.c_fc",
        down="mlp.c_proj",
        act="mlp.act",
    ),
    "gpt_neox": Family(
        stack="layers",
        norm="final_layer_norm",
        embeddings="emb_dropout",
        attn="attention",
        norms=("input_layernorm", "post_attention_layernorm"),
        qkv="attention.query_key_value",
        qkv_layout="heads",
        o="attention.dense",
        up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
        act="mlp.act",
        rope="half",
    ),
    "opt": Family(
        stack="decoder.layers",
        norm="decoder.final_layer_norm",
        embeddings="decoder.embed_tokens",
        norms=("self_attn_layer_norm", "final_layer_norm"),
        **_FEED_FORWARD_IN_BLOCK,
        **_separate("self_attn", "q_proj", "k_proj", "v_proj", o="self_attn.out_proj"),
    ),
    "bloom": Family(
        stack="h",
        norm="ln_f",
        embeddings="word_embeddings_layernorm",
        attn="self_attention",
        norms=("input_layernorm", "post_attention_layernorm"),
        qkv="self_attention.query_key_value",
        qkv_layout="heads",
        o="self_attention.dense",
        up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
        act="mlp.gelu_impl",
    ),
    "vit": Family(
        stack="layers",
        norm="layernorm",
        embeddings="embeddings",
        norms=("layernorm_before", "layernorm_after"),
        up="mlp.fc1",
        down="mlp.fc2",
        act="mlp.activation_fn",
        **_separate("attention", "q_proj", "k_proj", "v_proj", o="attention.o_proj"),
    ),
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "m2m_100": Family(
        stack="encoder.layers",
        norm="encoder.layer_norm",
        embeddings="encoder.embed_tokens",
        norms=("self_attn_layer_norm", "final_layer_norm"),
        **_FEED_FORWARD_IN_BLOCK,
        **_separate("self_attn", "q_proj", "k_proj", "v_proj", o="self_attn.out_proj"),
    ),
}
