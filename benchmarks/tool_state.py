"""Our state verdicts against those of the leaderboard's multi-turn checker: gold turns and changed ones."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from typing import Any

from benchmarks.bar import ROOT, Unavailable

SPLITS = ("base", "miss_func", "miss_param")
CHANGES = ("drop", "shuffle", "repeat", "argument", "other", "empty", "extra")


def compare(folder: str, root: Any, each: int) -> dict[str, Any]:
    """Verdicts on every episode's gold calls and on `each` changes of them; `equal` is how many are the same."""
    from apps.tool_use.data import load_data
    from apps.tool_use.executed import World

    rng = random.Random(0)
    cases = []
    for split in SPLITS:
        lines = (root / f"multi_turn_{split}.jsonl").read_text(encoding="utf-8").splitlines()
        for episode, entry in zip(load_data(root, "bfcl_multi_turn", split=split), map(json.loads, lines)):
            gold = [[[call] for call in turn] for turn in episode.expected]
            cases.append((episode, entry, gold))
            cases += [(episode, entry, changed(gold, rng)) for _ in range(each)]
    rows = [{"entry": entry, "gold": list(map(list, e.expected)), "calls": calls} for e, entry, calls in cases]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "peers" / "bfcl_state.py"), folder],
        input="".join(json.dumps(row) + "\n" for row in rows), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise Unavailable(f"the package's multi-turn checker did not start: {done.stderr.strip().splitlines()[-1]}")
    theirs = [json.loads(line) for line in done.stdout.splitlines()]
    with World.bfcl(folder) as world:
        ours = [world.judge(episode, calls) for episode, _, calls in cases]
    same = [found.valid == valid and found.error == error for found, (valid, error) in zip(ours, theirs)]
    differing = [
        {"id": e.id, "calls": calls, "ours": [found.valid, found.error], "theirs": verdict}
        for (e, _, calls), found, verdict, equal in zip(cases, ours, theirs, same)
        if not equal
    ]
    right = sum(valid is True for valid, _ in theirs)
    return {"compared": len(cases), "equal": sum(same), "judged right": right, "differing": differing[:3]}


def changed(gold: list[list[list[str]]], rng: random.Random) -> list[list[list[str]]]:
    """The turns with one of them changed."""
    turns = [[list(step) for step in turn] for turn in gold]
    number, how = rng.randrange(len(turns)), rng.choice(CHANGES)
    turn = turns[number]
    if how == "other":
        turn.append(list(rng.choice([step for steps in gold for step in steps])))
    elif how == "extra":
        turn.insert(0, ["ls()"])
    elif how == "empty":
        turns[number] = []
    elif how == "shuffle":
        rng.shuffle(turn)
    elif turn:
        at = rng.randrange(len(turn))
        if how == "drop":
            turn.pop(at)
        elif how == "repeat":
            turn.append(list(turn[at]))
        else:
            turn[at] = [turn[at][0].replace("'", "'x", 1)]
    return turns
