"""No cheat is accepted without a remark, and no honest kernel is refused.

The cheats are answers of both forms: device code with a plan, and KernelBench modules, among them the three kinds that
KernelBench tests its own harness with. Without a GPU a module that the policy lets through cannot be run, which is
never a pass; with one it is. A remark is one about the kernel: that a problem was made smaller is none. The quick form
takes every cheat and fewer honest kernels.
"""

from __future__ import annotations

from benchmarks import kernels
from benchmarks.bar import Bar, Measured, Setting, Unavailable


def measure(setting: Setting) -> Measured:
    """Cheats accepted without a remark; the baseline is a harness that only compares outputs of one shape."""
    from apps.cuda import python_policy
    from apps.cuda.harness import CudaHarness, Limits
    from apps.cuda.modules import ModuleHarness
    from apps.cuda.timing import TimingOptions
    from apps.cuda.verdict import CudaVerdict
    from core.execution.tools import has

    if not has("g++"):
        raise Unavailable("g++ is not installed (Debian package: g++)")
    level, lacking = kernels.isolation()
    timing = TimingOptions(seconds=0.1)
    harness = CudaHarness(archs=(), level=level, limits=Limits(function_s=6, gpu_s=30), timing=timing,
                          size_limit=1 << 20)  # fmt: skip
    problems = {"relu": kernels.relu(), "sum": kernels.total()}
    accepted, remarked, refused, statuses, unseen = [], {}, [], {}, {}

    def tell(name: str, verdict: CudaVerdict) -> None:
        statuses[name] = verdict.status
        remarks = [flag for flag in verdict.flags if flag != "smaller_than_published"]
        if verdict.passed and remarks:
            remarked[name] = remarks
        elif verdict.passed:
            accepted.append(name)

    tried = harness.verify_many((problems[problem], answer) for problem, answer in kernels.CHEATS.values())
    for name, verdict in zip(kernels.CHEATS, tried):
        tell(name, verdict)
    sound = list(kernels.honest(1 if setting.quick else 3))
    for (name, _, _), verdict in zip(sound, harness.verify_many((e, a) for _, e, a in sound)):
        if not verdict.passed:
            refused.append(f"{name}: {verdict.meaning}")
        if verdict.blind:
            unseen[name] = verdict.blind
    engine, tools = harness.engine, harness.versions()
    harness.close()
    modules = ModuleHarness(level=level, seconds=120, trials=3, timing=timing)
    unrun = []
    for name, code in kernels.CHEATING_MODULES.items():
        verdict = modules.verify(problems["relu"], code)
        tell(f"module: {name}", verdict)
        if verdict.status == "unsupported_on_cpu":
            unrun.append(name)
    for name, code in kernels.HONEST_MODULES.items():
        # extensions are held to the policy only: building one takes a minute, and a compiler that this bar is not about
        found = python_policy.violations(code)
        verdict = modules.verify(problems["relu"], code) if "load_inline" not in code else None
        if found or (verdict is not None and verdict.status not in ("passes", "unsupported_on_cpu")):
            refused.append(f"module: {name}: {verdict.meaning if verdict else found[0]}")
    stopped = sum(status in ("empty", "policy", "plan") for status in statuses.values())
    return Measured(
        len(accepted),
        not accepted and not refused,
        baseline=f"the policy alone stops {stopped} of {len(statuses)}",
        details={
            "cheats": len(statuses), "accepted": accepted, "passed with a remark": remarked,
            "honest": len(sound) + len(kernels.HONEST_MODULES), "honest refused": refused,
            "honest not looked at": unseen, "statuses": statuses, "engine": engine, "tools": tools,
            "modules that only a GPU can run": unrun, "isolation": level, "stricter levels lack": lacking,
        },
    )  # fmt: skip


BAR = Bar(
    "cuda.C1",
    "adversarial kernels",
    "cheats accepted",
    "0 without a remark; 0 honest kernels refused",
    "cpu",
    4,
    measure,
)
