"""A run as a picture: its events as cards, its tree as SVG. Everything that tools and models wrote is escaped."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence

from apps.tool_use.executors.observation import WORDS
from apps.tool_use.methods.latm import Attempt
from apps.tool_use.trace import Node, ToolEvent

GOOD, BAD, THOUGHT, GIVEN_UP, ANSWERED, CALL = "#2f7d4f", "#b3261e", "#64748b", "#b7791f", "#0d9488", "#3b6ea8"
SHOWN = 2000
"""Characters of arguments that a card shows."""
WIDE, TALL, GAP_X, GAP_Y = 176, 40, 28, 12


def colour(node: Node) -> str:
    """By what came of a step."""
    if node.kind == "Thought":
        return THOUGHT
    if node.terminal:
        return ANSWERED
    return {0: GOOD, 4: GIVEN_UP}.get(node.status or 0, BAD)


def cards(events: Sequence[ToolEvent]) -> str:
    """One card an event: thoughts, calls as JSON, observations with status and time, the answer."""
    made = []
    for event in events:
        if event.kind == "thought" and event.text:
            made.append(_card("thought", event.t_ms, THOUGHT, html.escape(event.text)))
        elif event.kind == "call" and event.call is not None:
            text = json.dumps(dict(event.call.arguments), ensure_ascii=False)
            cut = f" <i>… {len(text) - SHOWN} characters cut</i>" if len(text) > SHOWN else ""
            shown = f"{html.escape(text[:SHOWN])}{cut}"
            made.append(_card("call", event.t_ms, CALL, f"<b>{html.escape(event.call.name)}</b> <code>{shown}</code>"))
        elif event.kind == "observation" and event.observation is not None:
            seen = event.observation
            good = {0: GOOD, 3: ANSWERED, 4: GIVEN_UP}.get(seen.status, BAD)
            cut = f" <i>… {seen.cut} characters cut</i>" if seen.cut else ""
            label = f"observation · {WORDS[seen.status]} · {seen.seconds * 1e3:.0f} ms"
            made.append(_card(label, event.t_ms, good, f"{html.escape(seen.text)}{cut}"))
        elif event.kind == "answer":
            made.append(_card("answer", event.t_ms, ANSWERED, f"<b>{html.escape(event.text) or 'No answer.'}</b>"))
    return f'<div class="graft-trace">{"".join(made)}</div>'


def _card(label: str, t_ms: float, tint: str, body: str) -> str:
    return (
        f'<div style="border-left:4px solid {tint};padding:6px 12px;margin:0 0 8px;background:'
        f'var(--background-fill-secondary);border-radius:6px;overflow-wrap:anywhere;font-size:13.5px">'
        f'<div style="display:flex;justify-content:space-between;font-size:11.5px;color:{tint};font-weight:600">'
        f"<span>{html.escape(label)}</span><span>{t_ms:.0f} ms</span></div>{body}</div>"
    )


def tree(root: Node) -> str:
    """The steps as boxes from left to right; the winning path is drawn bold, and each box tells all on hover."""
    boxes: list[tuple[Node, int, float]] = []
    row = 0.0

    def place(node: Node, level: int) -> float:
        """Put the node and what is below it; the row of its middle."""
        nonlocal row
        steps = _below(node)
        if not steps:
            here = row
            row += 1
        else:
            rows = [place(step, level + 1) for step in steps]
            here = (rows[0] + rows[-1]) / 2
        boxes.append((node, level, here))
        return here

    place(root, 0)
    at = {id(node): (12 + level * (WIDE + GAP_X), 12 + here * (TALL + GAP_Y)) for node, level, here in boxes}
    width = max(x for x, _ in at.values()) + WIDE + 12
    height = max(y for _, y in at.values()) + TALL + 12
    parts = []
    for node, _, _ in boxes:
        x, y = at[id(node)]
        for step in _below(node):
            to_x, to_y = at[id(step)]
            bold = step.finished
            middle = (x + WIDE + to_x) / 2
            parts.append(
                f'<path d="M{x + WIDE} {y + TALL / 2} C{middle} {y + TALL / 2} {middle} {to_y + TALL / 2} {to_x} '
                f'{to_y + TALL / 2}" fill="none" stroke="{ANSWERED if bold else "#94a3b8"}" '
                f'stroke-width="{3.5 if bold else 1.2}"/>'
            )
    parts += [_box(node, *at[id(node)]) for node, _, _ in boxes]
    return (
        f'<div style="overflow:auto"><svg role="img" aria-label="tree of steps" width="{width:.0f}" '
        f'height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}">{"".join(parts)}</svg></div>'
    )


def _below(node: Node) -> list[Node]:
    """The next boxes: a call is one box, its thought and its Action are told in that of its Action Input."""
    found = []
    for child in node.children:
        spoken = child.kind == "Thought" and len(child.children) == 1 and child.children[0].kind == "Action"
        found += _below(child) if spoken else child.children if child.kind == "Action" else [child]
    return found


def _box(node: Node, x: float, y: float) -> str:
    if node.parent is None:
        first, second, tint = "question", "", "#334155"
    elif node.kind == "Thought":
        first, second, tint = "thought", node.text, THOUGHT
    else:
        first, second, tint = node.parent.text, node.observation, colour(node)
    before = node.parent.parent if node.parent is not None else None
    thought = before.text if before is not None and before.kind == "Thought" else ""
    tip = "\n".join(filter(None, [thought, f"{first} {node.text}", node.observation]))
    edge = f'stroke="{tint}" stroke-width="{3 if node.finished else 1.2}"'
    dash = ' stroke-dasharray="5 3"' if node.pruned else ""
    return (
        f'<g><title>{html.escape(tip)}</title><rect x="{x}" y="{y}" width="{WIDE}" height="{TALL}" rx="8" '
        f'fill="{tint}22" {edge}{dash}/><text x="{x + 10}" y="{y + 16}" font-size="12" font-weight="600" '
        f'fill="{tint}">{html.escape(_cut(first, 24))}</text><text x="{x + 10}" y="{y + 31}" font-size="10.5" '
        f'fill="currentColor" opacity=".75">{html.escape(_cut(second, 30))}</text></g>'
    )


def _cut(text: str, size: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= size else f"{line[: size - 1]}…"


def bars(values: dict[str, tuple[float, int]]) -> str:
    """Percent and count by category as bars."""
    rows = "".join(
        f'<div style="display:flex;gap:.7em;align-items:center;margin:4px 0;font-size:13px">'
        f'<span style="width:12em;text-align:right">{html.escape(name)}</span><span style="flex:1;background:'
        f'var(--background-fill-secondary);border-radius:4px"><span style="display:block;background:{ANSWERED};'
        f'height:16px;border-radius:4px;width:{share:.1f}%"></span></span>'
        f'<span style="width:9em">{share:.1f} % of {count}</span></div>'
        for name, (share, count) in values.items()
    )
    return f'<div role="img" aria-label="accuracy by category">{rows}</div>'


def prompts(exchanges: Sequence[tuple[str, str]]) -> str:
    """The prompts as they were sent, the answers marked; all but the last folded away."""
    parts = []
    for number, (prompt, text) in enumerate(exchanges, 1):
        opened = " open" if number == len(exchanges) else ""
        shown = f"{html.escape(prompt)} <mark>{html.escape(text)}</mark>"
        parts.append(
            f'<details{opened}><summary>model call {number}</summary><pre class="graft-prompt">{shown}</pre></details>'
        )
    return "".join(parts)


def legend() -> str:
    """What the colours mean."""
    words: tuple[tuple[str, str], ...] = (
        ("worked", GOOD), ("failed", BAD), ("gave up", GIVEN_UP), ("answered", ANSWERED), ("thought", THOUGHT),
    )  # fmt: skip
    dots = "".join(
        f'<span style="margin-right:14px"><span style="color:{tint}">●</span> {word}</span>' for word, tint in words
    )
    return f'<div class="graft-label">{dots}<span>bold: the winning path · dashed: turned back here</span></div>'


def attempt(made: Attempt, questions: Sequence[str]) -> str:
    """A try of a tool maker: its text, and what was tested, green or red."""
    lines = "".join(
        f'<div style="color:{BAD if error else GOOD};font-size:13px">{"✗" if error else "✓"} {html.escape(question)}'
        f"{' — ' + html.escape(error) if error else ''}</div>"
        for question, error in tested(made, questions)
    )
    return (
        f"<details open><summary>{made.stage}, try {made.number}</summary>{lines}"
        f'<pre class="graft-prompt">{html.escape(made.text)}</pre></details>'
    )


def tested(made: Attempt, questions: Sequence[str]) -> list[tuple[str, str]]:
    """What a try was tested on, each with what went wrong or ""."""
    if made.stage == "make":
        return [("the function runs", error) for error in made.errors or ("",)]
    if made.errors and not made.errors[0].startswith("question "):
        return [("a call for each question", error) for error in made.errors]
    wrong = {int(e.split(":")[0].removeprefix("question ")): e.partition(": ")[2] for e in made.errors}
    return [(question, wrong.get(number, "")) for number, question in enumerate(questions, 1)]
