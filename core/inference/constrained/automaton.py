"""Automata over bytes: nondeterministic ones put together from pieces, and one made deterministic while it is read.

A piece is a pair of states: where it begins and where it ends. Pieces follow one another, are alternatives, or repeat
(Thompson 1968). An impossible piece is None, and what is built on it knows that. The deterministic automaton makes a
state when it is first reached and remembers it; each state also knows the fewest bytes from it to an end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from core.errors import ConfigError

Piece = tuple[int, int] | None
DEAD = -1
FAR = 1 << 20
MOST = 500_000
"""States of a nondeterministic automaton: some seconds to build."""


class TooLargeError(ConfigError):
    """A form that needs more than `MOST` states."""


class Builder:
    """States and edges of a nondeterministic automaton; its methods give pieces.

    Raises:
        TooLargeError: the pieces need more than `MOST` states.
    """

    def __init__(self) -> None:
        self.edges: defaultdict[int, list[tuple[int, int, int]]] = defaultdict(list)
        self.jumps: defaultdict[int, list[int]] = defaultdict(list)
        self.states = 0

    def state(self) -> int:
        self.states += 1
        if self.states > MOST:
            raise TooLargeError(
                f"the form needs more than {MOST:,} states", hint="lower maxItems, maxLength and the like"
            )
        return self.states - 1

    def byte(self, low: int, high: int | None = None) -> Piece:
        """One byte of [low, high]."""
        return self.bytes_of([(low, low if high is None else high)])

    def bytes_of(self, ranges: Iterable[tuple[int, int]]) -> Piece:
        """One byte of any of the ranges."""
        start, end = self.state(), self.state()
        for low, high in ranges:
            self.edges[start].append((low, high, end))
        return start, end

    def text(self, text: str | bytes) -> Piece:
        """These bytes and no others."""
        data = text.encode("utf-8") if isinstance(text, str) else text
        start = current = self.state()
        for value in data:
            following = self.state()
            self.edges[current].append((value, value, following))
            current = following
        return start, current

    def texts(self, texts: Iterable[str | bytes]) -> Piece:
        """Any of these texts; beginnings that they share are there once. Impossible when there is none."""
        start, end = self.state(), self.state()
        following: dict[tuple[int, int], int] = {}
        empty = True
        for text in texts:
            current, empty = start, False
            for value in text.encode("utf-8") if isinstance(text, str) else text:
                target = following.get((current, value))
                if target is None:
                    target = following[current, value] = self.state()
                    self.edges[current].append((value, value, target))
                current = target
            self.jumps[current].append(end)
        return None if empty else (start, end)

    def nothing(self) -> Piece:
        """The empty text."""
        state = self.state()
        return state, state

    def sequence(self, pieces: Sequence[Piece]) -> Piece:
        """One after the other; impossible when one of them is."""
        if any(piece is None for piece in pieces):
            return None
        if not pieces:
            return self.nothing()
        for first, second in zip(pieces, pieces[1:]):
            self.jumps[first[1]].append(second[0])  # type: ignore[index]
        return pieces[0][0], pieces[-1][1]  # type: ignore[index]

    def either(self, pieces: Sequence[Piece]) -> Piece:
        """Any of the possible ones; impossible when there is none."""
        possible = [piece for piece in pieces if piece is not None]
        if not possible:
            return None
        start, end = self.state(), self.state()
        for piece in possible:
            self.jumps[start].append(piece[0])
            self.jumps[piece[1]].append(end)
        return start, end

    def optional(self, piece: Piece) -> Piece:
        return self.either([piece, self.nothing()])

    def repeat(self, piece: Piece) -> Piece:
        """Any number of times, none included."""
        if piece is None:
            return self.nothing()
        start, end = self.state(), self.state()
        self.jumps[start] += [piece[0], end]
        self.jumps[piece[1]] += [piece[0], end]
        return start, end

    def copy(self, piece: tuple[int, int]) -> tuple[int, int]:
        """The same piece on states of its own."""
        names: dict[int, int] = {}
        waiting = [piece[0], piece[1]]
        while waiting:
            state = waiting.pop()
            if state not in names:
                names[state] = self.state()
                waiting += [target for _, _, target in self.edges[state]] + self.jumps[state]
        for state, own in names.items():
            self.edges[own] = [(low, high, names[target]) for low, high, target in self.edges[state]]
            self.jumps[own] = [names[target] for target in self.jumps[state]]
        return names[piece[0]], names[piece[1]]


class Automaton:
    """The deterministic automaton of a piece, made as it is read.

    Attributes:
        start: the first state. Its states are numbers; `DEAD` is where no text can end. size: states of the builder.
    """

    def __init__(self, builder: Builder, piece: tuple[int, int]) -> None:
        self._edges, self._jumps, self._end = dict(builder.edges), dict(builder.jumps), piece[1]
        self.size = builder.states
        self._to_end = self._fewest_bytes()
        self._numbers: dict[frozenset[int], int] = {}
        self._members: list[frozenset[int]] = []
        self._closures: dict[int, frozenset[int]] = {}
        self._moves: dict[int, dict[int, int]] = {}
        self.table = np.full((64, 256), -2, dtype=np.int32)
        self.distance = np.full(64, FAR, dtype=np.int32)
        self.start = self._number(self._closed([piece[0]]))

    def row(self, state: int) -> np.ndarray:
        """The next state for each of the 256 bytes (256,)."""
        row = self.table[state]
        if row[0] == -2:
            self._fill(state)
            row = self.table[state]
        return row

    def moves(self, state: int) -> dict[int, int]:
        """The bytes that may follow, with the states that they lead to."""
        known = self._moves.get(state)
        if known is None:
            row = self.row(state)
            alive = np.flatnonzero(row >= 0)
            known = self._moves[state] = dict(zip(alive.tolist(), row[alive].tolist()))
        return known

    def step(self, state: int, data: bytes) -> int:
        """The state after these bytes."""
        for value in data:
            if state == DEAD:
                return DEAD
            state = int(self.row(state)[value])
        return state

    def accepts(self, state: int) -> bool:
        """Whether the text may end here."""
        return state != DEAD and self._end in self._members[state]

    def accepts_text(self, text: str | bytes) -> bool:
        """Whether the whole text is in the language."""
        return self.accepts(self.step(self.start, text.encode("utf-8") if isinstance(text, str) else text))

    def _fill(self, state: int) -> None:
        edges = [edge for member in self._members[state] for edge in self._edges.get(member, ())]
        borders = sorted({low for low, _, _ in edges} | {high + 1 for _, high, _ in edges} | {0})
        row = np.full(256, DEAD, dtype=np.int32)
        for low, following in zip(borders, [*borders[1:], 256]):
            targets = {target for first, last, target in edges if first <= low <= last}
            if targets and low < 256:
                row[low:following] = self._number(self._closed(targets))
        self.table[state] = row

    def _number(self, members: frozenset[int]) -> int:
        known = self._numbers.get(members)
        if known is not None:
            return known
        distance = min((self._to_end[m] for m in members), default=FAR)
        if distance >= FAR:
            self._numbers[members] = DEAD
            return DEAD
        number = len(self._members)
        if number == len(self.table):
            self.table = np.concatenate([self.table, np.full_like(self.table, -2)])
            self.distance = np.concatenate([self.distance, np.full_like(self.distance, FAR)])
        self._members.append(members)
        self._numbers[members] = number
        self.distance[number] = distance
        return number

    def _closed(self, states: Iterable[int]) -> frozenset[int]:
        """The states and all that jumps lead to, without those that only jump."""
        found: set[int] = set()
        for state in states:
            found |= self._closure(state)
        return frozenset(found)

    def _closure(self, state: int) -> frozenset[int]:
        known = self._closures.get(state)
        if known is None:
            seen, waiting = {state}, [state]
            while waiting:
                for target in self._jumps.get(waiting.pop(), ()):
                    if target not in seen:
                        seen.add(target)
                        waiting.append(target)
            known = frozenset(s for s in seen if self._edges.get(s) or s == self._end)
            self._closures[state] = known
        return known

    def _fewest_bytes(self) -> list[int]:
        """For each nondeterministic state the fewest bytes to the end, by a search from there, one byte a round."""
        jumped: defaultdict[int, list[int]] = defaultdict(list)
        stepped: defaultdict[int, list[int]] = defaultdict(list)
        for state, targets in self._jumps.items():
            for target in targets:
                jumped[target].append(state)
        for state, edges in self._edges.items():
            for _, _, target in edges:
                stepped[target].append(state)
        best = [FAR] * self.size
        best[self._end] = cost = 0
        level = [self._end]
        while level:
            following = []
            for state in level:
                if best[state] < cost:
                    continue
                for source in jumped.get(state, ()):
                    if best[source] > cost:
                        best[source] = cost
                        level.append(source)
                for source in stepped.get(state, ()):
                    if best[source] > cost + 1:
                        best[source] = cost + 1
                        following.append(source)
            level, cost = following, cost + 1
        return best
