"""Verdicts of the leaderboard's own multi-turn checker (package bfcl-eval), for rows that come in as JSON lines.

A row is {"entry": the leaderboard's row, "gold": turns of calls as text, "calls": turns of steps of calls as text}. It
runs in a process of its own with the package's folder first on the path.
"""

from __future__ import annotations

import json
import sys


def main(folder: str) -> None:
    sys.path.insert(0, folder)
    from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_checker as checker

    for number, line in enumerate(sys.stdin):
        row = json.loads(line)
        try:
            # a fresh name of the model for each row, because worlds are kept by that name
            found = checker.multi_turn_irrelevance_checker(row["calls"], row["gold"])
            if found["valid"]:
                found = checker.multi_turn_checker(
                    row["calls"], row["gold"], row["entry"], row["entry"]["id"].rsplit("_", 1)[0], f"m{number}"
                )
            verdict = [found["valid"], None if found["valid"] else found.get("error_type")]
        except Exception as error:
            verdict = ["raised", type(error).__name__]
        print(json.dumps(verdict))


if __name__ == "__main__":
    main(sys.argv[1])
