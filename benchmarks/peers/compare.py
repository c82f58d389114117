"""Trainers side by side on one job: each in a process of its own, in turns, the same rows in the same order.

A peer that cannot start is unavailable with its reason. Our own failure is a failure. `GRAFT_PEERS` names a folder of
packages that is put before all others for the peers only, for those that need other versions than ours.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.bar import ROOT, Measured, Unavailable

PEERS: dict[str, list[str]] = {
    "graft": ["-m", "benchmarks.peers.run_graft"],
    "trl": ["-m", "benchmarks.peers.run_trl"],
    "trl + liger-kernel": ["-m", "benchmarks.peers.run_trl", "--liger"],
    "trl packing": ["-m", "benchmarks.peers.run_trl", "--packing"],
    "unsloth": [str(ROOT / "benchmarks" / "peers" / "run_unsloth.py")],
}


def run_peer(name: str, job: str, work: Path, *more: str, timeout: float = 300) -> dict[str, Any]:
    """The line of JSON of one trainer on one job. Raises `Unavailable` with the end of its output."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "PYTHONUNBUFFERED": "1"}
    if name != "graft":
        path = [os.environ.get("GRAFT_PEERS", ""), str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment |= {"UNSLOTH_DISABLE_STATISTICS": "1", "PYTHONPATH": os.pathsep.join(filter(None, path))}
    command = [sys.executable, *PEERS[name], "--job", job, *more]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT if name == "graft" else work,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"no result within {timeout:.0f} s") from None
    (work / f"{name}-{job}.log").write_text(done.stdout + done.stderr)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        text = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise Unavailable(text[-1][:300] if text else f"ended with {done.returncode} and no output")
    return json.loads(lines[-1].removeprefix("RESULT "))


def in_turns(
    names: list[str], job: str, work: Path, repeats: int = 1, more: list[str] | None = None
) -> dict[str, dict[str, Any]]:
    """Each trainer's result, its rate the median over `repeats` interleaved runs; {"unavailable": why} for a peer."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    missing: dict[str, str] = {}
    for _ in range(repeats):
        for name in names:
            if name in missing:
                continue
            try:
                found[name].append(run_peer(name, job, work, *(more or [])))
            except Unavailable as reason:
                missing[name] = str(reason)
    if "graft" in missing:
        raise RuntimeError(f"our own run failed: {missing['graft']}")
    results: dict[str, dict[str, Any]] = {}
    for name, runs in found.items():
        if not runs:
            results[name] = {"unavailable": missing[name]}
            continue
        rates = [run["tokens_per_s"] for run in runs]
        results[name] = {**runs[-1], "tokens_per_s": statistics.median(rates), "repeats": rates}
    return results


def losses_agree(results: dict[str, dict[str, Any]], steps: int = 3) -> dict[str, float]:
    """Peer → largest relative difference of its first losses from ours; a peer far off trained on other rows."""
    ours = results["graft"]["losses"][:steps]
    return {
        name: max(abs(a - b) / abs(a) for a, b in zip(ours, found["losses"][:steps]))
        for name, found in results.items()
        if name != "graft" and "losses" in found
    }


def judged(results: dict[str, dict[str, Any]], speed: dict[str, float], memory: dict[str, float]) -> Measured:
    """Our rate over each peer's, and our peak over theirs, against what is promised.

    Args:
        speed: peer → least ratio. memory: peer → greatest ratio.
    """
    ours = results["graft"]
    ratios = {n: ours["tokens_per_s"] / f["tokens_per_s"] for n, f in results.items() if n != "graft" and "losses" in f}
    peaks = {n: ours["peak_gib"] / f["peak_gib"] for n, f in results.items() if n != "graft" and "peak_gib" in f}
    apart = losses_agree(results)
    verdicts = [ratios[n] >= least for n, least in speed.items() if n in ratios]
    verdicts += [peaks[n] <= most for n, most in memory.items() if n in peaks]
    verdicts += [value <= 0.01 for value in apart.values()]
    deciding = [name for name in {**speed, **memory} if name not in ratios]
    passed = False if not all(verdicts) else None if deciding or not verdicts else True
    details = {
        "speed against": {n: round(r, 3) for n, r in ratios.items()},
        "memory against": {n: round(r, 3) for n, r in peaks.items()},
        "first losses apart by": {n: float(f"{v:.2g}") for n, v in apart.items()},
        "runs": results,
    }
    baseline = {n: f.get("tokens_per_s", f.get("unavailable")) for n, f in results.items() if n != "graft"}
    return Measured(ours["tokens_per_s"], passed, baseline=baseline, details=details)
