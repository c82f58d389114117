"""Planting the described HLS bugs: how many go in exactly, how many after passing over white space, which do not.

On the 2,411 descriptions of the development data. The rest has no place in its source (abbreviated text such as
"{ ... }") or was overwritten by another edit of the same bug; all are listed by design. Details also say how often the
rules name type and line of single bugs; naming the most frequent type is the chance row.
"""

from __future__ import annotations

from collections import Counter

from benchmarks.bar import Bar, Measured, Setting
from benchmarks.data import data_root

EXPECTED = {"exact": 1763, "normalised": 431, "unmatched": 217}


def measure(setting: Setting) -> Measured:
    """Bugs that could be planted."""
    from apps.rtl.hls.dataset import read_bugs
    from apps.rtl.hls.inject import find, inject, tally
    from apps.rtl.hls.rules import logic_finding, pragma_findings

    bugs = list(read_bugs(data_root() / "rtl" / "chrysalis_hls"))
    counts, missing = tally(bugs)
    overwritten = sum(all(find(i.bug.source, e) for e in i.bug.edits) for i in missing)
    total = kinds = lines = 0
    frequency: Counter = Counter()
    for bug in bugs[:: 8 if setting.quick else 1]:
        found = inject(bug)
        if found.how == "unmatched" or len(bug.edits) != 1:
            continue
        said = next(iter(pragma_findings(found.code)), None) or logic_finding(bug.source, found.code)
        total += 1
        frequency[bug.edits[0].kind] += 1
        kinds += said is not None and said.kind == bug.edits[0].kind
        lines += said is not None and abs(said.line - found.lines[0]) <= 1
    return Measured(
        counts["exact"] + counts["normalised"],
        dict(counts) == EXPECTED,
        chance=f"most frequent type: {100 * max(frequency.values()) / total:.1f} %",
        baseline=f"exact text alone: {counts['exact']}",
        details={
            "counts": dict(counts), "no place in the source": len(missing) - overwritten, "overwritten": overwritten,
            "rules name the type, % of single bugs": round(100 * kinds / total, 1),
            "rules name the line, %": round(100 * lines / total, 1),
            "unmatched": dict(Counter(f"{i.bug.suite}/{i.bug.design}" for i in missing)),
        },
    )  # fmt: skip


BAR = Bar(
    "rtl.R8", "HLS bugs planted", "bugs of 2,411", "1,763 exact and 431 normalised; 217 listed", "cpu", 0.3, measure
)
