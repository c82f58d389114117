"""The examples on a run's page: the worst and the most changed, with source, reference, before and after.

A row is a dictionary of predictions.jsonl; the names of its fields differ between apps and are looked up here. Rows of
the two evaluations are joined by id, and by place where they have none.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from core.evaluation.bootstrap import paired_bootstrap
from core.evaluation.report import Report

SOURCE = ("input", "source", "src", "prompt", "question", "text")
REFERENCE = ("reference", "target", "tgt", "answer")
PREDICTION = ("prediction", "output", "hypothesis")
_NOT_SCORES = {"id", "n", "tokens", "index"}

Row = Mapping[str, Any]


def examples_section(before: Report | None, after: Report | None, worst: int = 6, improved: int = 4) -> str:
    """The section as HTML, or a note saying why there are no examples."""
    report = after or before
    head = "<section><h2>Examples</h2>"
    rows = report.rows if report else []
    if not rows:
        return f'{head}<p class="missing">no predictions.jsonl with examples in this run</p></section>'
    other = _joined(rows, before.rows) if before and after else [None] * len(rows)
    score = score_field(rows)
    if score is None:
        shown = [("First examples", list(range(min(worst, len(rows)))))]
        lead = "The rows carry no score of their own, so they are shown in order."
    else:
        assert report is not None
        known = report.metrics.get(score)
        sign = -1 if known is not None and not known.higher_is_better else 1
        order = sorted(range(len(rows)), key=lambda i: (sign * _number(rows[i].get(score)), i))
        shown = [("Worst after training" if after else "Worst", order[:worst])]
        gains = {i: sign * (rows[i][score] - o[score]) for i, o in enumerate(other) if o and _is_number(o.get(score))}
        if gains:
            best = sorted((i for i in gains if i not in order[:worst]), key=lambda i: (-gains[i], i))[:improved]
            shown.append(("Most improved", [i for i in best if gains[i] > 0]))
        lead = _sentence(score, rows, other)
    out = [head, f'<p class="lead">{lead} Words that the reference has too are marked.</p>']
    for title, indices in shown:
        if indices:
            out += [f"<h3>{title}</h3>", *(_example(rows[i], other[i], score) for i in indices)]
    return "".join([*out, "</section>"])


def score_field(rows: Sequence[Row]) -> str | None:
    """The first field that is a number in every row."""
    for name, value in rows[0].items():
        if name not in _NOT_SCORES and _is_number(value) and all(_is_number(row.get(name)) for row in rows):
            return name
    return None


def _joined(rows: Sequence[Row], earlier: Sequence[Row]) -> list[Row | None]:
    by_id = {str(row["id"]): row for row in earlier if "id" in row}
    if len(by_id) == len(earlier):
        return [by_id.get(str(row.get("id"))) for row in rows]
    return [earlier[i] if i < len(earlier) else None for i in range(len(rows))]


def _sentence(score: str, rows: Sequence[Row], other: Sequence[Row | None]) -> str:
    pairs = [(o[score], r[score]) for r, o in zip(rows, other) if o and _is_number(o.get(score))]
    name = escape(score)
    if not pairs:
        return f"Ordered by {name}."
    a, b = (np.array(values, dtype=float) for values in zip(*pairs))
    test = paired_bootstrap(a, b, lambda total: float(total[0]) / len(pairs))
    rose, fell = int((b > a).sum()), int((b < a).sum())
    return (
        f"Example by example, {name} rose in {rose:,}, fell in {fell:,} and stayed in {len(pairs) - rose - fell:,} "
        f"of {len(pairs):,}; on average {test.difference:+.2f} [{test.ci95[0]:+.2f}, {test.ci95[1]:+.2f}] "
        "(paired bootstrap, 95 %)."
    )


def _example(row: Row, earlier: Row | None, score: str | None) -> str:
    reference = _pick(row, REFERENCE)
    figures = ""
    if score is not None:
        old = f"{earlier[score]:.4g} → " if earlier and _is_number(earlier.get(score)) else ""
        figures = f"{escape(score)} {old}{row[score]:.4g}"
    label = row.get("id")
    name = "" if label is None else f"# {escape(str(label))}"
    lines = [("source", _text(_pick(row, SOURCE)), ""), ("reference", _text(reference), "")]
    made = _pick(row, PREDICTION)
    if earlier is not None and made is not None:
        lines.append(("before", _marked(_pick(earlier, PREDICTION), reference), "before"))
    lines.append(("after" if earlier is not None else "output", _marked(made, reference), "after"))
    body = "".join(f'<dt>{title}</dt><dd class="{kind}" dir="auto">{text}</dd>' for title, text, kind in lines if text)
    return f'<div class="example"><header><span>{name}</span><span>{figures}</span></header><dl>{body}</dl></div>'


def _pick(row: Row, names: Sequence[str]) -> str | None:
    for name in names:
        if row.get(name) is not None:
            return str(row[name])
    return None


def _text(text: str | None, most: int = 1200) -> str:
    if text is None:
        return ""
    if not text.strip():
        return '<span class="empty">empty</span>'
    return escape(text[:most]) + (" …" if len(text) > most else "")


def _marked(text: str | None, reference: str | None) -> str:
    """`text` escaped, with the words marked that stand in `reference` in the same order."""
    if not text or not text.strip() or reference is None or len(text) > 1200:
        return _text(text)
    words, others = re.findall(r"\w+|\W", text), re.findall(r"\w+|\W", reference)
    blocks = difflib.SequenceMatcher(None, words, others, autojunk=False).get_matching_blocks()
    out, at = [], 0
    for start, _, size in blocks:
        out.append(escape("".join(words[at:start])))
        common = "".join(words[start : start + size])
        inner = common.strip()
        left, _, right = common.partition(inner) if re.search(r"\w", inner) else (common, "", "")
        out.append(escape(left) + (f"<mark>{escape(inner)}</mark>" if left != common else "") + escape(right))
        at = start + size
    return "".join(out)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _number(value: Any) -> float:
    return float(value) if _is_number(value) else float("-inf")
