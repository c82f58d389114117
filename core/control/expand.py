"""Teach a model something new and keep what it knew (Wei et al. 2025, Control LLM).

Some blocks get a copy that learns while everything else is frozen. Beside its block (`concat`) the copy reads the same
input and both outputs are merged; behind it (`stack`) the copy starts as the identity. A distance between the branches
keeps them together while the copy learns. Afterwards `merge_back` folds the branches into a plain model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch

from core.config.registry import BuildContext
from core.control.options import ControlConfig
from core.errors import ConfigError, MergeError, UnsupportedError
from core.models.blocks.layers import silence
from core.models.blocks.sidecar import Sidecar, slerp
from core.models.surgery import apply, forget, number_cache_slots, ops_of
from core.models.topology import ModelTopology

DYNAMIC, UNFOLDABLE = ("dlerp", "dlerpin"), ("moe", "proj", "prog")
ROW_EPSILON = 1e-6


def expand(model: Any, config: ControlConfig, seed: int = 0) -> Any:
    """Give `model` its learning copies and freeze everything else, in place. Returns the model.

    Raises:
        ConfigError: a number that does not divide the blocks, a hybrid of an odd number, an edited block.
        UnsupportedError: a family whose inserted copies would not be silent, a block of quantized weights.
    """
    topology = ModelTopology.of(model)
    count = len(topology.stack)
    chosen = expanded_blocks(count, config.num_expand)
    kinds = {
        "concat": ["concat"] * len(chosen),
        "stack": ["stack"] * len(chosen),
        "hybrid": [("concat", "stack")[n % 2] for n in range(len(chosen))],
    }[config.expansion]
    if config.expansion == "hybrid" and len(chosen) % 2:
        raise ConfigError(f"a hybrid of {len(chosen)} copies", where="control.num_expand", hint="an even number")
    if "stack" in kinds and topology.blocks[0].residual in ("post_ln", "sandwich"):
        raise UnsupportedError(
            f"a copy behind a {topology.family} block cannot be silent: its norm comes last",
            where="control.expansion",
            hint="expansion: concat",
        )
    edited = next((layer for layer in chosen if hasattr(topology.stack[layer], "branches")), None)
    if edited is not None:
        raise ConfigError(
            f"block {edited} is edited already ({type(topology.stack[edited]).__name__})", where="control",
            hint="give plain blocks their copies first, other edits come after",
        )  # fmt: skip
    stored = next((layer for layer in chosen if in_fewer_bits(topology.stack[layer])), None)
    if stored is not None:
        raise UnsupportedError(
            f"a copy of block {stored} could not learn: its weights are quantized", where="control",
            hint="expand first and quantize then, which leaves the copies as they are",
        )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    try:
        for layer, kind in reversed(list(zip(chosen, kinds))):
            if kind == "stack":
                _insert(model, layer)
            else:
                _beside(model, layer, config, generator)
    except (ConfigError, UnsupportedError):
        for parameter in trained:
            parameter.requires_grad_(True)
        raise
    return model


def expanded_blocks(count: int, expand: float) -> list[int]:
    """Every (count / expand)-th block, the last of each group; below 1, `expand` is a share of the blocks."""
    asked, expand = expand, round(count * expand) if expand < 1 else expand
    if expand < 1 or expand != int(expand) or count % expand:
        divisors = [n for n in range(1, count + 1) if not count % n]
        raise ConfigError(f"{asked} copies for {count} blocks", where="control.num_expand", hint=f"one of {divisors}")
    group = count // int(expand)
    return [index for index in range(count) if (index + 1) % group == 0]


def in_fewer_bits(block: Any) -> bool:
    """Whether some weights of a block are codes and no numbers."""
    return any(not parameter.is_floating_point() for parameter in block.parameters())


def _beside(model: Any, layer: int, config: ControlConfig, generator: torch.Generator) -> None:
    alpha = None if config.alpha == "dynamic" else float(config.alpha)
    apply(
        model, "sidecar", layer=layer, merge=config.merge, align=config.align, alpha=alpha,
        detach=config.detach, exact=config.exact_init, relax=config.norm_relax,
    )  # fmt: skip
    made = ModelTopology.of(model).stack[layer]
    made.merge.reset(generator)
    made.exp.requires_grad_(True)
    for name, parameter in made.merge.named_parameters():
        parameter.requires_grad_(name != "a" or config.train_factor)


def _insert(model: Any, layer: int) -> None:
    apply(model, "insert_block", after=layer)
    topology = ModelTopology.of(model)
    new = topology.stack[layer + 1]
    silence(next(block for block in topology.blocks if block.module is new))
    new.requires_grad_(True)


def build(model: Any, options: ControlConfig, context: BuildContext) -> Any:
    """`expand` as an edit of a recipe."""
    return expand(model, options, context.seed)


def sidecars(model: Any) -> dict[int, Sidecar]:
    """Position and module of every pair of branches."""
    return {i: block for i, block in enumerate(ModelTopology.of(model).stack) if isinstance(block, Sidecar)}


@torch.no_grad()
def branch_weights(model: Any, batches: Iterable[dict[str, Any]] = ()) -> dict[int, float]:
    """The weight w of the new branch at each pair; where it depends on the token, its mean over `batches`.

    Args:
        batches: {"input_ids": (B, T), maybe "attention_mask"}; padding does not count.
    """
    found = sidecars(model)
    if not any(block.merge.kind in DYNAMIC for block in found.values()):
        return {i: 1.0 if b.merge.kind == "plain" else float(torch.sigmoid(b.merge.a)) for i, b in found.items()}
    sums, tokens, training = {layer: 0.0 for layer in found}, 0.0, model.training
    kept: Any = None

    def weigh(layer: int) -> Any:
        def hook(_merge: Any, _given: Any, made: Any) -> None:
            sums[layer] += float((made[2].float() * kept).sum())

        return hook

    hooks = [block.merge.register_forward_hook(weigh(layer)) for layer, block in found.items()]
    model.eval()
    try:
        for batch in batches:
            mask = batch.get("attention_mask")
            kept = (torch.ones_like(batch["input_ids"]) if mask is None else mask)[..., None].float()
            model(**{name: value for name, value in batch.items() if name != "labels"}, use_cache=False)
            tokens += float(kept.sum())
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    if not tokens:
        raise MergeError("the weight of a branch depends on the token", hint="give batches to measure its mean on")
    return {layer: total / tokens for layer, total in sums.items()}


@torch.no_grad()
def merge_back(model: Any, method: str = "lerp", batches: Iterable[dict[str, Any]] = ()) -> Any:
    """Fold every pair of branches into one block, in place; inserted blocks stay. Returns a plain model.

    The merged block is an approximation: outputs are merged while training, weights are merged here.

    Args:
        method: lerp (1-w) W_pre + w W_exp of each tensor, or slerp of each row.
        batches: for merges whose weight depends on the token.

    Raises:
        MergeError: no branches, a merge that no weight can stand for, other edits in the model, a quantized branch.
    """
    found = sidecars(model)
    others = sorted({op["kind"] for op in ops_of(model)} - {"sidecar", "insert_block"})
    if others:
        raise MergeError(f"the model also has {', '.join(others)}", hint="branches are folded before other edits")
    if method not in ("lerp", "slerp"):
        raise ConfigError(f"unknown way to merge '{method}'", hint="lerp or slerp")
    for layer, block in found.items():
        if block.merge.kind in UNFOLDABLE:
            raise MergeError(
                f"the branches of block {layer} are merged by {block.merge.kind}, which no single block can do",
                hint="serve the model with its branches",
            )
        if in_fewer_bits(block):
            raise MergeError(
                f"the old branch of block {layer} is quantized",
                hint="graft merge, or core.quantization.hf.to_dense, makes it dense first",
            )
    relaxed = {op["layer"] for op in ops_of(model) if op.get("relax")}
    open_ = [layer for layer in found if layer in relaxed and float(found[layer].slack) > 0]
    if open_:
        raise MergeError(
            f"norms of the copy of block {open_[0]} pass their input, which no plain block can do",
            hint="serve the model with its branches",
        )
    if not found and not ops_of(model):
        raise MergeError("the model has no branches")
    weights, stack = branch_weights(model, batches) if found else {}, ModelTopology.of(model).stack
    for layer, block in found.items():
        merged = copy.deepcopy(block.pre)
        new = dict(block.exp.named_parameters())
        for name, old in merged.named_parameters():
            old.copy_(_folded(old.float(), new[name].float(), weights[layer], method))
        stack[layer] = merged.requires_grad_(True)
    forget(model, ops_of(model))
    model.requires_grad_(True)
    number_cache_slots(model)
    return model


def _folded(old: torch.Tensor, new: torch.Tensor, w: float, method: str) -> torch.Tensor:
    if method == "lerp" or old.dim() < 2:
        return old + w * (new - old)
    small = (old.norm(dim=-1, keepdim=True) < ROW_EPSILON) | (new.norm(dim=-1, keepdim=True) < ROW_EPSILON)
    return torch.where(small, old + w * (new - old), slerp(old, new, w))
