"""The emulator's verdicts: right kernels pass, wrong ones do not, and a GPU, where there is one, agrees.

At least 50 right kernels and as many with one wrong change. A false pass is a kernel that the emulator passes and that
is wrong, by construction or by the GPU. Races and the like, which a GPU may get right by luck, the emulator must refuse
all the same. The quick form takes every fifth.
"""

from __future__ import annotations

from benchmarks import kernels
from benchmarks.bar import Bar, Measured, Setting, Unavailable


def measure(setting: Setting) -> Measured:
    """False passes of the emulator."""
    from apps.cuda.device import gpus
    from apps.cuda.harness import CudaHarness, Limits
    from apps.cuda.timing import TimingOptions
    from core.execution.tools import has

    if not has("g++"):
        raise Unavailable("g++ is not installed (Debian package: g++)")
    level, lacking = kernels.isolation()
    step = 6 if setting.quick else 1
    right = [(name, example, answer, False) for name, example, answer in kernels.honest(4)][::step]
    wrong = [(m.name, m.example, m.answer, m.race) for m in kernels.mutants()][::step]
    emulator = CudaHarness(archs=(), gpu="none", level=level, model=False, limits=Limits(function_s=20))
    device = None
    if gpus():
        device = CudaHarness(archs=("sm_90",), gpu="require", level=level, timing=TimingOptions(enabled=False),
                             sanitize=False, limits=Limits(gpu_s=30))  # fmt: skip
    false_passes, refused, disagree, lucky, agreed = [], [], [], [], 0
    rows = [(True, *row) for row in right] + [(False, *row) for row in wrong]
    pairs = [(example, answer) for _, _, example, answer, _ in rows]
    seen = list(emulator.verify_many(pairs))
    measured = list(device.verify_many(pairs)) if device is not None else [None] * len(rows)
    for (sound, name, _, _, race), here, there in zip(rows, seen, measured):
        if here.passed and (not sound or (there is not None and not there.passed)):
            false_passes.append(f"{name}: {there.meaning if there else 'wrong by construction'}")
        if sound and not here.passed:
            refused.append(f"{name}: {here.meaning}")
        if there is not None:
            agreed += here.passed == there.passed
            if sound and not there.passed:
                disagree.append(f"{name}: {there.meaning}")
            if not sound and there.passed:
                (lucky if race else disagree).append(f"{name}: the GPU passes it; the emulator: {here.meaning}")
    emulator.close()
    if device is not None:
        device.close()
    return Measured(
        len(false_passes),
        not false_passes and not refused and (device is None or not [d for d in disagree if "GPU passes" not in d]),
        baseline="comparing outputs alone passes what a GPU gets right by luck",
        chance=f"a judge that always says yes: {len(wrong)} false passes",
        details={
            "right kernels": len(right), "wrong kernels": len(wrong), "false passes": false_passes,
            "right ones refused": refused, "engine beside it": device.engine if device else "no GPU here",
            "verdicts that agree": agreed if device else None, "races a GPU got right": lucky, "differences": disagree,
            "isolation": level, "stricter levels lack": lacking,
        },
    )  # fmt: skip


BAR = Bar(
    "cuda.C4", "the emulator's verdicts", "false passes",
    "0 on at least 50 right and 50 wrong kernels; a GPU agrees", "cpu", 6, measure,
)  # fmt: skip
