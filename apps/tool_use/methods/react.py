"""One chain: ReAct (Yao et al. 2023), thoughts and calls that each see what came back before; and its shortest form."""

from __future__ import annotations

from collections.abc import Generator

from apps.tool_use.session import Outcome, Session
from apps.tool_use.trace import ToolEvent


def react(session: Session) -> Generator[ToolEvent, None, Outcome]:
    """Step after step until an answer, a give-up or a limit. The generator returns the `Outcome`."""
    node = session.root
    for order in range(session.max_calls + 1):
        node.order = order
        why = session.ended(node)
        if why is not None or order == session.max_calls:
            node.pruned = why not in (None, "answer")
            for step in node.path() if node.terminal else ():
                step.finished = True
            return Outcome(why or "budget", node)
        node = yield from session.step(node)
    raise AssertionError("unreachable")


def single(session: Session) -> Generator[ToolEvent, None, Outcome]:
    """One turn of calls, made at once, then an answer in words. The generator returns the `Outcome`."""
    node = yield from session.step(session.root)
    if node.kind == "Action Input" and session.asked < session.max_calls:
        said = session.say(node.messages).rest.strip()
        node = node.add("Thought", said, messages=(*node.messages, {"role": "assistant", "content": said}))
    node.terminal = node.kind == "Thought"
    for step in node.path() if node.terminal else ():
        step.finished = True
    return Outcome("answer" if node.terminal else "budget", node)
