"""Control blocks: identities at the start, wiring against a literal transcription, descendants of a learngene."""

from __future__ import annotations

from benchmarks.method_checks.models import decoded, far, ids, llama, logits, shake


def starts_as_its_base() -> tuple[float, float]:
    """Learning copies beside and behind blocks before their first step."""
    from core.control.expand import expand
    from core.control.options import ControlConfig

    base, worst = logits(llama()), 0.0
    for expansion in ("concat", "stack", "hybrid"):
        for merge in ("lerp", "dlerp", "dlerpin", "slerp", "moe", "plain"):
            model = expand(llama(), ControlConfig(num_expand=2, expansion=expansion, merge=merge))
            worst = max(worst, far(logits(model), base) / float(base.abs().max()))
    return worst, 1e-6


def folds_back() -> tuple[float, float]:
    """Copies that have learnt nothing, folded into their blocks."""
    from core.control.expand import expand, merge_back
    from core.control.options import ControlConfig

    return max(
        far(logits(merge_back(expand(llama(), ControlConfig(num_expand=2)), method)), logits(llama()))
        for method in ("lerp", "slerp")
    ), 1e-5


def ladder() -> tuple[float, float]:
    """x[i+1] = x[i] + f_i(x[i-1]) written out, sub-layer by sub-layer."""
    import torch

    from core.control.ladder import ladder as convert

    model, chosen = llama(), {2, 3}
    with torch.no_grad():
        x = [model.model.embed_tokens(ids())]
        phases = model.model.rotary_emb(x[0], position_ids=torch.arange(ids().shape[1]).unsqueeze(0))
        mask = torch.full((1, 1, ids().shape[1], ids().shape[1]), -torch.inf).triu(1)
        for number, block in enumerate(model.model.layers):
            seen = x[max(0, len(x) - 2)] if number in chosen else x[-1]
            given = {"attention_mask": mask, "position_embeddings": phases}
            x.append(x[-1] + block.self_attn(block.input_layernorm(seen), **given)[0])
            seen = x[max(0, len(x) - 2)] if number in chosen else x[-1]
            x.append(x[-1] + block.mlp(block.post_attention_layernorm(seen)))
        expected = model.lm_head(model.model.norm(x[-1]))
    return far(logits(convert(llama(), sorted(chosen))), expected), 1e-5


def overlapped() -> tuple[float, float]:
    """A ladder whose sums are waited for late, as under tensor parallelism, against the ladder on one device."""
    from core.control.ladder import ladder as convert
    from core.control.ladder_tp import LadderTP

    return max(
        far(logits(LadderTP().apply(convert(llama(), layers))), logits(convert(llama(), layers)))
        for layers in ([1, 2], [0, 1, 2, 3])
    ), 1e-5


def relaxes() -> tuple[float, float]:
    """Norms that may pass their input, at the start."""
    from core.control.expand import expand
    from core.control.options import ControlConfig

    return far(logits(expand(llama(), ControlConfig(num_expand=2, norm_relax=True))), logits(llama())), 1e-5


def descends() -> tuple[float, float]:
    """The auxiliary model of depth 12 and the plain model written out from the same pair."""
    import transformers

    from core.control.learngene import Learngene

    gene = Learngene.from_config(llama(1).config, transformers.LlamaForCausalLM)
    shake(auxiliary := gene.auxiliary(12))
    return far(logits(Learngene.from_auxiliary(auxiliary).descend(12)), logits(auxiliary)), 1e-5


def fits_a_line() -> tuple[float, float]:
    """The pair of a model whose blocks lie on a line."""
    import transformers

    from core.control.learngene import Learngene

    gene = Learngene.from_config(llama(1).config, transformers.LlamaForCausalLM)
    shake(auxiliary := gene.auxiliary(2))
    gene = Learngene.from_auxiliary(auxiliary)
    found = Learngene.fit_from(gene.descend(6))
    return max(far(found.a[name], gene.a[name]) for name in gene.a), 1e-5


def skips_nothing() -> tuple[float, float]:
    """A threshold that no cosine reaches."""
    from core.control.options import SkipOptions
    from core.control.skip import calibrate_skip

    return far(decoded(calibrate_skip(llama(), [], SkipOptions(threshold=1.5))), decoded(llama())), 0.0


CHECKS = {
    "an expanded model starts as its base": starts_as_its_base,
    "untrained branches fold back": folds_back,
    "a ladder is its recursion": ladder,
    "a ladder that overlaps is the ladder": overlapped,
    "relaxed norms start as norms": relaxes,
    "a descendant is the auxiliary model": descends,
    "the pair of a line is found": fits_a_line,
    "a high threshold skips nothing": skips_nothing,
}
