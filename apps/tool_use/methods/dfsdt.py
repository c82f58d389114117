"""DFSDT, depth-first search over calls (Qin et al. 2023, ToolLLM): where a chain fails, another is tried higher up.

At a node up to `width` children are made one after the other, and each is followed to its end before the next is made.
Before a sibling is made, a message lists what the earlier ones called and saw; the descendants of the new child do not
see that message. What a finished branch returns is how many levels the search climbs: an answer and a give-up two, the
depth limit or a node whose children are used up one; a caller that gets more than one passes one less up and makes no
further child. With `width` 1 this is ReAct; with `climb` 0 every failure leads back to the root, which is best-of-n.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from apps.tool_use.session import Outcome, Session
from apps.tool_use.trace import Node, ToolEvent

DIVERSITY = (
    "From this point you have already tried these calls, with what came back:\n{tried}\n"
    "Go another way now: make a call that differs from all of them."
)
COMPARE = (
    "The task: {query}\nTwo ways to go on from the same point:\nA: {a}\nB: {b}\n"
    "Which is more likely to solve the task? Answer A or B."
)


@dataclass
class Dfsdt:
    """The search.

    Args:
        width: children of a node at most. answers: the search ends when so many were found.
        climb: levels after a give-up; 0 leads back to the root after every failure.
        ranked: make all children first and follow them in the order of the model's pairwise votes, which is the plain
            depth-first search of the paper; each vote is a model call.
    """

    session: Session
    width: int = 2
    answers: int = 1
    climb: int = 2
    ranked: bool = False
    found: list[Node] = field(default_factory=list)
    given_up: list[Node] = field(default_factory=list)
    order: int = 0
    spent: bool = False

    def search(self) -> Generator[ToolEvent, None, Outcome]:
        """Run it. The generator returns the `Outcome`; a give-up stands for it only where there is no answer."""
        yield from self._expand(self.session.root)
        if self.found:
            return Outcome("answer", self.found[0])
        last = max(self.session.root.walk(), key=lambda node: node.order)
        why = "budget" if self.spent else self.session.ended(last) or "depth"
        return Outcome("gave_up" if self.given_up and not self.spent else why, (self.given_up or [last])[0])

    def _expand(self, node: Node) -> Generator[ToolEvent, None, float]:
        """Follow `node` to its end; the generator returns the levels to climb."""
        node.order, self.order = self.order, self.order + 1
        why = self.session.ended(node)
        if why == "answer":
            self.found.append(node)
            for step in node.path():
                step.finished = True
            return math.inf if self._over else 2
        if why is not None:
            node.pruned = True
            if why == "gave_up":
                self.given_up.append(node)
                return self.climb or math.inf
            return 1 if self.climb else math.inf
        return (yield from (self._ranked(node) if self.ranked else self._in_turn(node)))

    def _in_turn(self, node: Node) -> Generator[ToolEvent, None, float]:
        for _ in range(self.width):
            if not self._may_ask():
                return math.inf
            child = yield from self.session.step(node, diversity(node))
            levels = yield from self._expand(child)
            if self._stops(node, levels):
                return levels - 1
        return 1

    def _ranked(self, node: Node) -> Generator[ToolEvent, None, float]:
        children = []
        for _ in range(self.width):
            if not self._may_ask():
                break
            children.append((yield from self.session.step(node, diversity(node))))
        for child in self._voted(children):
            levels = yield from self._expand(child)
            if self._stops(node, levels):
                return levels - 1
        return math.inf if self.spent else 1

    def _stops(self, node: Node, levels: float) -> bool:
        if self._over or self.spent:
            return True
        restarts = not self.climb and node.parent is None
        return levels > 1 and not restarts

    @property
    def _over(self) -> bool:
        return len(self.found) >= self.answers

    def _may_ask(self) -> bool:
        self.spent = self.spent or self.session.asked >= self.session.max_calls
        return not self.spent

    def _voted(self, nodes: Sequence[Node]) -> list[Node]:
        """The nodes, most votes first; every pair is asked about in both orders. Equal ones stay as they were made."""
        votes = {id(node): 0 for node in nodes}
        for i, first in enumerate(nodes):
            for second in nodes[i + 1 :]:
                for a, b in ((first, second), (second, first)):
                    if not self._may_ask():
                        break
                    asked = COMPARE.format(query=self.session.query, a=_shown(a), b=_shown(b))
                    said = self.session.say([{"role": "user", "content": asked}]).rest.strip().upper()
                    votes[id(a if said.startswith("A") else b)] += 1
        return sorted(nodes, key=lambda node: -votes[id(node)])


def diversity(node: Node) -> str | None:
    """The message before a further child of `node`; None when no call was made from there yet."""
    tried = [_shown(made) for made in map(_first_call, node.children) if made is not None]
    if not tried:
        return None
    again = f"\nWhat you saw last: {node.observation}" if node.observation else ""
    return DIVERSITY.format(tried="\n".join(tried)) + again


def _first_call(node: Node) -> Node | None:
    """The first call of a branch."""
    while node.kind != "Action Input" and node.children:
        node = node.children[0]
    return node if node.kind == "Action Input" else None


def _shown(node: Node) -> str:
    if node.kind != "Action Input" or node.parent is None:
        return node.text
    made = {"name": node.parent.text, "arguments": json.loads(node.text or "{}"), "result": node.observation}
    return json.dumps(made, ensure_ascii=False)
