"""STS-B from a pretrained start: MiniLM trained on graded pairs, beside itself untrained and TF-IDF.

Trains `recipes/embeddings/minilm_sts.yaml` for one epoch and scores the dev part.
"""

from __future__ import annotations

from benchmarks.bar import ROOT, Bar, Measured, Setting
from benchmarks.embedding_sets import lexical_spearman, package_model, trained

TARGET = 85.0


def measure(setting: Setting) -> Measured:
    package_model()
    overrides = ["train.max_steps=4" if setting.quick else "train.epochs=1", "eval.every=0"]
    if setting.quick:
        overrides += ["eval.limit=150"]
    from core.evaluation.report import Report

    run, _ = trained(ROOT / "recipes" / "embeddings" / "minilm_sts.yaml", overrides, setting.work / "run")
    before, after = (Report.load(run / "eval" / when).metrics["spearman"] for when in ("before", "after"))
    floor = lexical_spearman()
    return Measured(
        round(after.value or 0, 2),
        (after.value or 0) >= TARGET and (setting.quick or (after.value or 0) >= (before.value or 0)),
        baseline={"MiniLM untrained": round(before.value or 0, 2), "TF-IDF cosine": floor},
        chance=0.0,
        details={"n": after.n, "ci95": after.ci95, "weights as carried": carried_dtype()},
    )


def carried_dtype() -> str:
    """In which precision the package's weights lie on disk; the package itself ships fp32."""
    from safetensors import safe_open

    from core.models.load import resolve_path

    with safe_open(f"{resolve_path(package_model())}/model.safetensors", framework="pt") as weights:
        return str(next(weights.get_slice(name).get_dtype() for name in weights.keys()))


BAR = Bar(
    "embeddings.stsb",
    "STS-B dev after one epoch of graded pairs from MiniLM",
    "Spearman ×100",
    f"≥ {TARGET:g}, not below the start",
    "cpu",
    15,
    measure,
)
