"""Trainers side by side on one job: each in a process of its own, in turns, the same rows in the same order.

A peer that cannot start is unavailable with its reason. Our own failure is a failure. A peer whose losses are not ours
did something else: its row is void. `GRAFT_PEERS` names a folder for the peers only: packages in it come before all
others, for peers that need other versions than ours, and a virtual environment in it under a peer's name is that
peer's own.
"""

from __future__ import annotations

import copy
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import runner
from benchmarks.bar import ROOT, Measured, Setting, Unavailable
from core.config.files import read_json

PEERS: dict[str, list[str]] = {
    "graft": ["-m", "benchmarks.peers.run_graft"],
    "trl": ["-m", "benchmarks.peers.run_trl"],
    "trl + liger-kernel": ["-m", "benchmarks.peers.run_trl", "--liger"],
    "trl packing": ["-m", "benchmarks.peers.run_trl", "--packing"],
    "unsloth": [str(ROOT / "benchmarks" / "peers" / "run_unsloth.py")],
    "llamafactory": [str(ROOT / "benchmarks" / "peers" / "run_llamafactory.py")],
    "llamafactory + liger-kernel": [str(ROOT / "benchmarks" / "peers" / "run_llamafactory.py"), "--liger"],
}
PACKS_AGAIN = ("trl packing",)  # its batches hold other rows than ours
REPEATS, SECONDS = 3, 540.0  # a command on a lent GPU ends after ten minutes
APART = 0.01


def run_peer(name: str, job: str, work: Path, *more: str, timeout: float = 300) -> dict[str, Any]:
    """The line of JSON of one trainer on one job. Raises `Unavailable` with the end of its output."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "PYTHONUNBUFFERED": "1"}
    python, packages = sys.executable, os.environ.get("GRAFT_PEERS", "")
    if name != "graft":
        own = Path(packages, re.findall(r"\w+", name)[0], "bin", "python")
        if packages and own.is_file():
            python, packages = str(own), ""
        path = [packages, str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment |= {"UNSLOTH_DISABLE_STATISTICS": "1", "PYTHONPATH": os.pathsep.join(filter(None, path))}
    try:
        done = subprocess.run(
            [python, *PEERS[name], "--job", job, *more],
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


def chosen(setting: Setting, peers: Sequence[str]) -> list[str]:
    """Ours and the peers that are wanted. Raises `Unavailable` for a name that is none."""
    wanted = list(setting.peers or peers)
    unknown = [name for name in wanted if name not in PEERS]
    if unknown:
        raise Unavailable(f"no peer called {', '.join(unknown)}; known: {', '.join(PEERS)}")
    return ["graft", *(name for name in wanted if name != "graft")]


def in_turns(
    names: list[str], job: str, setting: Setting, jobs: dict[str, str] | None = None, seconds: float = SECONDS
) -> dict[str, dict[str, Any]]:
    """Each trainer's result; {"unavailable": why} for a peer that did not start.

    First each goes twenty steps on the job's twin that can be learnt (`compared`, their losses). Then they take turns
    on the job itself; a rate and its peak are medians over the repeats, of which there are fewer when another one
    would end after `seconds`. The quick form is one repeat of six steps.

    Args:
        jobs: name → another job, for a trainer that is compared at its own best.
    """
    start = time.monotonic()
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    compared: dict[str, list[float]] = {}
    missing: dict[str, str] = {}

    def turn(name: str, job: str, *more: str) -> dict[str, Any] | None:
        if name in missing:
            return None
        try:
            return run_peer(name, job, setting.work, *more)
        except Unavailable as reason:
            missing[name] = str(reason)
            if name == "graft":
                raise RuntimeError(f"our own run failed: {reason}") from None
            return None

    for name in () if setting.quick else names:
        if name not in PACKS_AGAIN and (result := turn(name, f"{job}-losses")) is not None:
            compared[name] = result["losses"]
    longest = 0.0
    for repeat in range(1 if setting.quick else setting.repeats or REPEATS):
        began = time.monotonic()
        if repeat and began + longest > start + seconds:
            break
        for name in names:
            result = turn(name, (jobs or {}).get(name, job), *(["--steps", "6"] if setting.quick else []))
            found[name] += [result] if result is not None else []
        longest = max(longest, time.monotonic() - began)
    results = {}
    for name, runs in found.items():
        results[name] = {**_median(runs), "compared": compared.get(name)} if runs else {"unavailable": missing[name]}
    return results


def _median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    rates = [run["tokens_per_s"] for run in runs]
    peaks = [run["peak_gib"] for run in runs if "peak_gib" in run]
    middle = {"peak_gib": statistics.median(peaks)} if peaks else {}
    return {**runs[-1], "tokens_per_s": statistics.median(rates), **middle, "repeats": rates}


def losses_apart(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Peer → largest relative difference of its losses from ours, over the steps compared.

    Without a twin's run (in the quick form) the losses of the job itself are compared.
    """
    kind = "compared" if results["graft"].get("compared") else "losses"
    ours = results["graft"][kind]
    return {
        name: _apart(ours, found[kind])
        for name, found in results.items()
        if name not in ("graft", *PACKS_AGAIN) and found.get(kind)
    }


def _apart(ours: list[float], theirs: list[float]) -> float:
    """Infinite for other numbers of steps and for a loss that is no number."""
    far = [abs(a - b) / abs(a) for a, b in zip(ours, theirs)]
    return max(far) if len(ours) == len(theirs) and all(map(math.isfinite, far)) else math.inf


def judged(results: dict[str, dict[str, Any]], speed: dict[str, float], memory: dict[str, float]) -> Measured:
    """Our rate over each peer's, and our peak over theirs, against what is promised.

    Args:
        speed: peer → least ratio. memory: peer → greatest ratio.
    """
    ours, apart = results["graft"], losses_apart(results)
    void = [name for name, value in apart.items() if not value <= APART]
    ratios = {n: ours["tokens_per_s"] / f["tokens_per_s"] for n, f in results.items() if n != "graft" and "losses" in f}
    peaks = {n: ours["peak_gib"] / f["peak_gib"] for n, f in results.items() if n != "graft" and "peak_gib" in f}
    verdicts: dict[str, bool | None] = {}
    for name in {**speed, **memory}:
        counts = name in ratios and name not in void
        kept = ratios.get(name, 0) >= speed.get(name, 0) and peaks.get(name, 0) <= memory.get(name, float("inf"))
        verdicts[name] = kept if counts else None
    details = {
        "speed against": {n: round(r, 3) for n, r in ratios.items()},
        "memory against": {n: round(r, 3) for n, r in peaks.items()},
        "losses apart by": {n: float(f"{v:.2g}") if math.isfinite(v) else "no figure" for n, v in apart.items()},
        "void, for losses that are not ours": void,
        "verdicts": verdicts,
        "runs": results,
    }
    baseline = {n: f.get("tokens_per_s", f.get("unavailable")) for n, f in results.items() if n != "graft"}
    return Measured(ours["tokens_per_s"], together(verdicts.values()), baseline=baseline, details=details)


def together(verdicts: Any) -> bool | None:
    """False when one is, None when one is undecided or there is none, else True."""
    found = set(verdicts)
    return False if False in found else True if found == {True} else None


def with_other_commands(result: dict[str, Any]) -> dict[str, Any]:
    """A comparison judged again, with the verdicts on peers that other commands (`--peers`) have measured.

    A bar of several comparisons has the details of each under its name.
    """
    details = copy.deepcopy(result.get("details") or {})
    parts = _comparisons(details)
    if not parts:
        return result
    others, value = {}, result["value"]
    for path in sorted(runner.RESULTS.glob(f"{result['id']}.*.json")):
        other = read_json(path)
        if other["command"] == result["command"]:
            continue
        told = {"device": other["device"], "value": other["value"], "baseline": other["baseline"]}
        for name, part in _comparisons(other["details"]).items():
            mine = parts[name]["verdicts"]
            mine |= {peer: v for peer, v in part["verdicts"].items() if v is not None and mine.get(peer) is None}
            told |= {f"{name} {key}".strip(): part[key] for key in ("speed against", "memory against")}
        others[other["command"]] = told
        value = other["value"] if value is None else value
    details |= {"other commands": others} if others else {}
    verdicts = [verdict for part in parts.values() for verdict in part["verdicts"].values()]
    return {**result, "value": value, "pass": together(verdicts), "details": details}


def _comparisons(details: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The details of each comparison of a bar, by name; of a single one under no name."""
    if "verdicts" in details:
        return {"": details}
    return {name: part for name, part in details.items() if isinstance(part, dict) and "verdicts" in part}
