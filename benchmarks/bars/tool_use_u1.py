"""Our verdicts on calls against those of the leaderboard's own checker, on its gold answers and on mutations of them.

The checker (package bfcl-eval, named by BFCL_EVAL as the folder that holds `bfcl_eval/`) runs in a process of its own.
The oracle takes the first listed value of every argument and must score what it is known to score. Verdicts on
multi-turn episodes, by the state of their worlds, are compared in the same way.
"""

from __future__ import annotations

import copy
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import tool_state
from benchmarks.bar import ROOT, Bar, Measured, Setting, Unavailable
from benchmarks.data import data_root

ORACLE = {"simple_python": 394, "multiple": 197, "parallel": 198, "parallel_multiple": 195}
MUTATIONS = 10_000


def measure(setting: Setting) -> Measured:
    from apps.tool_use.calls import Call
    from apps.tool_use.evaluator import judge

    rows = [row for category in ORACLE for row in examples(category)]
    oracle = dict.fromkeys(ORACLE, 0)
    for example, _ in rows:
        oracle[example.category] += judge(example, [Call(n, a) for n, a in first_listed(example)]).valid
    exact = oracle == ORACLE
    details: dict[str, Any] = {"oracle": oracle, "known": ORACLE}
    folder = os.environ.get("BFCL_EVAL")
    if not folder or not (Path(folder) / "bfcl_eval").is_dir():
        details["peer"] = "unavailable: BFCL_EVAL names no folder with bfcl_eval/"
        return Measured(100.0 * exact, False if not exact else None, details=details)
    count = 500 if setting.quick else MUTATIONS
    cases = [(e, raw, first_listed(e)) for e, raw in rows] + list(mutations(rows, count))
    theirs = peer(folder, cases)
    equal, compared, differing = 0, 0, []
    for (example, _, calls), (valid, error) in zip(cases, theirs):
        if valid == "raised":
            continue
        found = judge(example, [Call(n, a) for n, a in calls])
        same = found.valid == valid and (found.error == error or valid)
        equal, compared = equal + same, compared + 1
        if not same and len(differing) < 5:
            differing.append(
                {"id": example.id, "calls": calls, "ours": [found.valid, found.error], "theirs": [valid, error]}
            )
    right = sum(1 for valid, _ in theirs if valid is True)
    details |= {
        "rows": len(rows),
        "mutations": count,
        "compared": compared,
        "judged right": right,
        "differing": differing,
    }
    share = 100.0 * equal / compared
    details["multi-turn state"] = state = tool_state.compare(
        folder, data_root() / "tool_use" / "bfcl", 0 if setting.quick else 3
    )
    passed = exact and equal == compared and state["equal"] == state["compared"]
    return Measured(round(share, 3), passed, baseline="100: the package itself", details=details)


def examples(category: str) -> list[tuple[Any, list[Any]]]:
    """Examples with their function documents as they are."""
    from apps.tool_use.data import load_data

    folder = data_root() / "tool_use" / "bfcl"
    if not folder.is_dir():
        raise Unavailable("the leaderboard's files are not in the data folder")
    lines = (folder / f"{category}.jsonl").read_text(encoding="utf-8").splitlines()
    raw = {row["id"]: row["function"] for row in map(json.loads, filter(None, lines))}
    return [(example, raw[example.id]) for example in load_data(folder, "bfcl", split=category)]


def first_listed(example: Any) -> list[tuple[str, dict[str, Any]]]:
    """The first listed value of every argument; those listed first as absent are left out."""
    calls = []
    for expected in example.expected:
        ((name, arguments),) = expected.items()
        calls.append((name, {k: copy.deepcopy(v[0]) for k, v in arguments.items() if v[0] != ""}))
    return calls


def mutations(rows: list[tuple[Any, Any]], count: int, seed: int = 0) -> Iterator[tuple[Any, Any, list[Any]]]:
    """Calls near the gold ones: types flipped, arguments dropped, added and renamed, texts noised, order changed."""
    rng = random.Random(seed)
    for _ in range(count):
        example, raw = rng.choice(rows)
        calls = first_listed(example)
        for _ in range(rng.randint(1, 2)):
            calls = mutated(calls, example, rng)
        yield example, raw, calls


def mutated(calls: list[Any], example: Any, rng: random.Random) -> list[Any]:
    calls = [(name, dict(arguments)) for name, arguments in calls]
    kind = rng.choice(["value", "value", "value", "drop", "add", "order", "name", "less", "more", "other"])
    at = rng.randrange(len(calls)) if calls else 0
    if kind == "order":
        rng.shuffle(calls)
    elif not calls:
        return [(example.tools[0].name, {})]
    elif kind == "less":
        calls.pop(at)
    elif kind == "more":
        calls.append((calls[at][0], dict(calls[at][1])))
    elif kind == "name":
        calls[at] = (rng.choice([tool.name for tool in example.tools] + ["no_such_tool"]), calls[at][1])
    else:
        arguments = calls[at][1]
        key = rng.choice(list(arguments)) if arguments else "extra"
        if kind == "drop":
            arguments.pop(key, None)
        elif kind == "add":
            names = list(example.tools[0].properties)
            arguments[rng.choice([*names, "extra"])] = rng.choice([1, "x", True, [], {}])
        elif kind == "other":
            listed = next(iter(example.expected[min(at, len(example.expected) - 1)].values())).get(key)
            arguments[key] = copy.deepcopy(rng.choice(listed)) if listed else 1
        else:
            arguments[key] = changed(arguments.get(key), rng)
    return calls


def changed(value: Any, rng: random.Random) -> Any:
    """A value of the same or another type that is near."""
    if isinstance(value, bool):
        return rng.choice([not value, str(value), int(value)])
    if isinstance(value, int):
        return rng.choice([float(value), str(value), value + 1, bool(value)])
    if isinstance(value, float):
        return rng.choice([int(value), str(value), value + 0.5])
    if isinstance(value, str):
        noisy = "".join(c.upper() if rng.random() < 0.3 else c for c in value)
        return rng.choice([noisy, value.replace(" ", ""), value.replace(" ", "-") + ".", value + "x", f"'{value}'", 1])
    if isinstance(value, list):
        return rng.choice([value[::-1], value[:-1], [changed(v, rng) for v in value], [*value, *value[:1]], str(value)])
    if isinstance(value, dict):
        made = {k: changed(v[0] if isinstance(v, list) and v else v, rng) for k, v in value.items()}
        plain = {k: v[0] if isinstance(v, list) and v else v for k, v in value.items()}
        return rng.choice([made, plain, {**plain, "extra": 1}, dict(list(plain.items())[1:])])
    return rng.choice([1, "x", None])


def peer(folder: str, cases: list[tuple[Any, Any, list[Any]]]) -> list[list[Any]]:
    """The package's verdict on each case."""
    lines = []
    for example, raw, calls in cases:
        given = [{name: arguments} for name, arguments in calls]
        row = {"tools": raw, "calls": given, "expected": list(example.expected), "category": example.category}
        lines.append(json.dumps(row))
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "peers" / "bfcl_verdicts.py"), folder],
        input="\n".join(lines) + "\n", capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise Unavailable(f"the package's checker did not start: {done.stderr.strip().splitlines()[-1]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


BAR = Bar(
    "tool_use.U1",
    "verdicts on calls equal to bfcl-eval's: gold answers and 10,000 mutations",
    "% equal",
    "100, and the oracle's 394, 197, 198 and 195",
    "cpu",
    1,
    measure,
)
