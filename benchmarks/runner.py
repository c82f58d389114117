"""Measure a bar and say how it went.

A GPU bar's result is kept in `results/`; on a machine without a GPU that stored result is what `run` prints, marked as
such. A bar that cannot be measured here is "unavailable" with the reason, which is neither met nor missed.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.bar import ROOT, Bar, Setting, Unavailable
from benchmarks.kept import Kept
from core.config.files import read_json, write_json
from core.config.run_folder import versions

RESULTS = ROOT / "benchmarks" / "results"
WORK = ROOT / "runs" / "benchmarks"


def run_bar(
    bar: Bar,
    *,
    quick: bool = False,
    save: bool = False,
    results: Path = RESULTS,
    repeats: int | None = None,
    peers: tuple[str, ...] | None = None,
    small: bool = False,
    go_on: bool = False,
) -> dict[str, Any]:
    """Measure `bar`, or fetch its stored result when it needs a GPU that is not here.

    A comparison with `peers` of the caller's choice is stored under their names, beside the bar's own.

    Args:
        small: measure a GPU bar without one, in the form for a CPU; stored as the bar's `.cpu`.
        go_on: after a measurement that was killed: runs that it had finished are not made again, and their seconds are
            not counted.

    Returns:
        {id, value, unit, target, pass, baseline, chance, device, versions, command, seconds, status, …}; status is
        measured, stored or unavailable.
    """
    small = small and bar.needs == "gpu" and not has_gpu()
    if small and bar.small is None:
        return _result(bar, status="unavailable", reason="it has no form for a CPU", quick=quick)
    if bar.needs == "gpu" and not has_gpu() and not small:
        return stored(bar, results)
    work = WORK / bar.id
    if not go_on:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    try:
        found = bar.measure(Setting(quick, work, repeats, peers))
    except Unavailable as reason:
        return _result(bar, status="unavailable", reason=str(reason), quick=quick)
    result = _result(
        bar,
        value=found.value,
        passed=found.passed,
        baseline=found.baseline,
        chance=found.chance,
        seconds=round(time.perf_counter() - start, 1),
        status="measured",
        command=_command(bar, quick, repeats, peers, small, go_on),
        quick=quick,
        details=found.details,
    )
    if bar.judge is not None:
        result = bar.judge(result)
    if not quick and (save or bar.needs == "gpu"):
        write_json(results / f"{stored_as(bar, peers, small)}.json", result)
    Kept(work).forget()
    return result


def stored_as(bar: Bar, peers: tuple[str, ...] | None = None, small: bool = False) -> str:
    """Name of a result's file, without its ending: the id, and the peers where they are not the bar's own."""
    return ".".join([bar.id, *("-".join(re.findall(r"\w+", peer)) for peer in peers or ()), *["cpu"] * small])


def _command(
    bar: Bar, quick: bool, repeats: int | None, peers: tuple[str, ...] | None, small: bool, go_on: bool
) -> str:
    given = ["--quick"] * quick + ["--small"] * small + ["--go-on"] * go_on
    given += [f"--repeats {repeats}"] if repeats else []
    given += [f"--peers {shlex.quote(','.join(peers))}"] if peers else []
    return " ".join([f"python -m benchmarks run {bar.id}", *given])


def stored(bar: Bar, results: Path = RESULTS) -> dict[str, Any]:
    """The result in `results/`, a GPU's before a CPU's, marked as stored; unavailable when none is there."""
    path = results / f"{bar.id}.json"
    if not path.is_file():
        path = results / f"{stored_as(bar, small=True)}.json"
    if not path.is_file():
        return _result(bar, status="unavailable", reason="needs a GPU, there is none here and no result is stored")
    result = read_json(path)
    if bar.judge is not None:
        result = bar.judge(result)
    return {**result, "status": "stored"}


def _result(bar: Bar, *, passed: bool | None = None, **found: Any) -> dict[str, Any]:
    empty = {"value": None, "baseline": None, "chance": None, "seconds": None}
    return {
        "id": bar.id,
        "unit": bar.unit,
        "target": bar.target,
        "pass": passed,
        "device": device(),
        "versions": versions(),
        "command": f"python -m benchmarks run {bar.id}",
        **empty,
        **found,
    }


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def device() -> str:
    """What measured: the GPU's name, else the processor and the cores this process may use."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return f"CPU {platform.machine()}, {len(os.sched_getaffinity(0))} cores"


def show(result: dict[str, Any]) -> str:
    """One result for people."""
    verdict = {True: "met", False: "NOT MET", None: "undecided"}[result["pass"]]
    if result["status"] == "unavailable":
        return f"{result['id']}: unavailable: {result['reason']}"
    value = "-" if result["value"] is None else f"{result['value']:.4g}"
    lines = [f"{result['id']}: {value} {result['unit']} ({verdict}; target {result['target']})"]
    if result["status"] == "stored":
        lines[0] += f"  [stored result, measured on {result['device']}: this machine has no GPU]"
    lines += [f"  {key}: {result[key]}" for key in ("baseline", "chance") if result[key] is not None]
    lines += [f"  {key}: {value}" for key, value in (result.get("details") or {}).items()]
    if result["seconds"] is not None:
        lines.append(f"  {result['seconds']} s on {result['device']}")
    return "\n".join(lines)


def to_json(result: dict[str, Any]) -> str:
    return json.dumps(result, ensure_ascii=False, default=str)


def exit_code(results: Iterable[dict[str, Any]]) -> int:
    """1 when a bar is not met."""
    return int(any(result["pass"] is False for result in results))
