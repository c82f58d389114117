"""The official rules are followed: logs and letters worked by hand in `fixtures/r4.jsonl`.

Each row holds a log as the official scripts see it, the candidate's code where it matters, and the letter (version 2)
or wording (version 1) that the published rules give. The peer is the rule read backwards: how often the strict letter
of the same log would agree, which shows that the rows differ.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.bar import Bar, Measured, Setting

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "r4.jsonl"


def measure(setting: Setting) -> Measured:
    """Share of rows that agree, in percent."""
    from apps.rtl.verdict import letter_v2, passed_v1

    rows = [json.loads(line) for line in FIXTURES.read_text(encoding="utf-8").splitlines()]
    wrong = []
    for row in rows:
        if row["rules"] == "v2":
            found = letter_v2(row["log"], row.get("code", ""))[0]
        else:
            found = passed_v1(row["out"], row["err"])[1]
        if found != row["expected"]:
            wrong.append([row, found])
    letters = [row["expected"] for row in rows]
    most = max(map(letters.count, set(letters)))
    return Measured(
        100 * (1 - len(wrong) / len(rows)),
        not wrong,
        chance=f"always the most frequent answer: {100 * most / len(rows):.0f} %",
        details={"rows": len(rows), "wrong": wrong},
    )


BAR = Bar("rtl.R4", "verdicts agree with the official rules", "% of rows", "100 %", "cpu", 0.1, measure)
