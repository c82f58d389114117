"""`graft plan` against dry runs: the configurations of `training.plan`, each step run on tensors without content.

Says on any machine whether the prediction knows every tensor that a step makes; `training.plan` measures the same
configurations on a GPU, where allocator and libraries take their share too.
"""

from __future__ import annotations

from benchmarks.bar import Bar, Measured, Setting
from benchmarks.bars.training_plan import configurations, judged, workload


def measure(setting: Setting) -> Measured:
    from benchmarks.dry_run import peak_bytes
    from core.costmodel.memory import predict_memory

    rows = []
    forms = configurations(setting.work)
    for number, form in enumerate(forms[:5] if setting.quick else forms):
        names = ("method", "micro", "accumulation", "length", "rank", "checkpoint")
        measured = peak_bytes(form["config"], **{name: form[name] for name in names})
        work = workload(form, setting.work / f"{number:02d}", "cuda")
        rows.append({**form, "predicted": predict_memory(work, gpu=False).total, "measured": measured})
    return judged(rows, len(rows))


BAR = Bar(
    "training.plan_dry",
    "predicted peak memory of training against dry runs",
    "% median error",
    "median ≤ 8%, p95 ≤ 12%, never > 5% optimistic",
    "cpu",
    3,
    measure,
)
