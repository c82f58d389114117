"""Half of all ranks removed: where WeLore takes them against as many everywhere, and training of what is low-rank.

One shot: `small-22m` with half of all ranks gone, by one threshold on scaled singular values (the maps that keep more
than half stay dense), the same with those maps cut too, and with half of each map's ranks, which is the baseline; this
also at WeLore's own number of stored weights, which is harder and stands beside it. Then the compressed model is
trained on a part of the text that it knew, its factors alone or everything; the recovered gap G is the former's drop of
the loss over the latter's.
"""

from __future__ import annotations

import math
from typing import Any

from benchmarks.arms import Arm, Scale, compare, evaluation, gain, loss, sizes, summary, verdict
from benchmarks.bar import Bar, Measured, Setting
from benchmarks.domains import known

RATES = (3e-4, 1e-3, 3e-3, 1e-2)
STEPS, ERR = 500, 0.5
MOST_PERPLEXITY, LEAST_GAP = 0.9, 0.95


def one_shot(path: str, scale: Scale, device: str) -> dict[str, dict[str, float]]:
    """Perplexity on held-out text and stored weights of every way to remove ranks."""
    import torch

    from core.config.schema import ModelConfig
    from core.config.sparse import WeLoreOptions
    from core.models.linear import dense_weight, features
    from core.models.linear_form import LowRankLinear
    from core.models.load import load_model, load_tokenizer
    from core.models.surgery import replace_linear
    from core.models.topology import ModelTopology
    from core.sparse.welore import reduced_ranks, spectra, welore

    config = ModelConfig(path=path)
    tokenizer = load_tokenizer(config)
    rows = evaluation(known().held_out, tokenizer, scale)

    def fresh() -> Any:
        return load_model(config, tokenizer, device=device, dtype="fp32")

    def cut(ranks: dict[str, int]) -> Any:
        model = fresh()
        for name, rank in ranks.items():
            part = model.get_submodule(name)
            replace_linear(model, name, LowRankLinear.from_dense(dense_weight(part).detach(), part.bias, rank=rank))
        return model

    base = fresh()
    topology, found = ModelTopology.of(base), spectra(base)
    named = {topology.name_of(part): part for block in topology.blocks for part in block.linears().values()}
    shapes = {name: features(part) for name, part in named.items()}
    chosen = fresh()
    report = welore(chosen, WeLoreOptions(err=ERR), found)
    share = report.after / report.before
    equal = {name: max(1, int(share * math.prod(shape) / sum(shape))) for name, shape in shapes.items()}
    models = {
        "untouched": base,
        "welore": chosen,
        "welore, all cut": cut(reduced_ranks(found, ERR)[1]),
        "uniform": cut({name: round((1 - ERR) * min(shape)) for name, shape in shapes.items()}),
        "uniform, as many weights": cut(equal),
    }
    with torch.no_grad():
        return {
            name: {"perplexity": math.exp(loss(model, rows, device)), "weights": stored(model)}
            for name, model in models.items()
        }


def stored(model: Any) -> int:
    """Parameters of all blocks."""
    from core.models.topology import ModelTopology

    return sum(p.numel() for block in ModelTopology.of(model).stack for p in block.parameters())


def arms(rates: tuple[float, ...] = RATES) -> list[Arm]:
    """The compressed model, its factors trained or all of it."""
    edit = {"kind": "welore", "err": ERR}
    return [Arm("factors", rates, edits=(edit,)), Arm("full", rates, edits=({**edit, "train": "all"},))]


def measure(setting: Setting) -> Measured:
    import torch

    size = sizes(setting.quick, STEPS, 10)
    shot = one_shot(size["model"], size["scale"], "cuda" if torch.cuda.is_available() else "cpu")
    found = compare(
        arms((1e-4,)) if setting.quick else arms(),
        setting.work,
        **size,
        part="known",
        start=({"kind": "welore", "err": ERR},),
    )
    return judged(shot, found)


def judged(shot: dict[str, dict[str, float]], found: dict[str, Any]) -> Measured:
    """WeLore's perplexity over uniform ranks', which needs no seed, and the recovered gap, which needs three."""
    evenly = ("uniform", "uniform, as many weights")
    ratio, equally = (shot["welore"]["perplexity"] / shot[name]["perplexity"] for name in evenly)
    gap = gain(found, "factors") / gain(found, "full")
    return Measured(
        round(ratio, 4),
        verdict(found, ratio <= MOST_PERPLEXITY, gap >= LEAST_GAP),
        baseline={name: round(shot[name]["perplexity"], 2) for name in evenly},
        chance="1, ranks taken evenly",
        details={
            "one shot": {name: {key: round(value, 2) for key, value in row.items()} for name, row in shot.items()},
            "of the perplexity of as many weights": round(equally, 4),
            "recovered gap, factors over all": round(gap, 4),
            "text": known().sizes(),
            **summary(found),
        },
    )


BAR = Bar(
    "methods.welore",
    "half of all ranks removed where the spectra allow it",
    "of the perplexity at uniform ranks, one shot",
    "≤ 0.9, and ≥ 0.95 of full training's gain by the factors alone",
    "gpu",
    4,
    measure,
    small=30,
)
