"""Small wrong changes of a design: does the testbench notice?

A mutant differs in one operator, constant, edge, index or negation. One that passes the strict verdict is compared with
the reference by equivalence: if it is equal it was no fault at all, and otherwise the testbench has a hole, which is
listed.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from apps.rtl.equivalence import equivalent
from apps.rtl.example import RtlExample
from apps.rtl.harness import RtlHarness, reference_as_candidate
from apps.rtl.source import Token, tokens
from core.execution import ExecPool

_SWAPS = {
    "&": "|", "|": "&", "^": "&", "&&": "||", "||": "&&", "==": "!=", "!=": "==", "<": ">=", ">": "<=", ">=": "<",
    "+": "-", "-": "+", "<<": ">>", ">>": "<<", "posedge": "negedge", "negedge": "posedge", "~": "", "!": "",
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A changed design: what was changed into what, on which line."""

    code: str
    kind: str
    line: int
    change: str


@dataclass(frozen=True)
class Survivor:
    """A mutant that the testbench accepts, and whether it is proved to be no fault."""

    problem: str
    mutant: Mutant
    proof: str


def mutants(code: str) -> Iterator[Mutant]:
    """Every mutant of `code` by one change, in order of place."""
    pieces = list(tokens(code, space=True))
    for index, token in enumerate(pieces):
        for kind, text in _changes(token, _before(pieces, index)):
            changed = "".join(p.text if i != index else text for i, p in enumerate(pieces))
            yield Mutant(changed, kind, token.line, f"{token.text} → {text or 'nothing'}")


def _before(pieces: list[Token], index: int) -> str:
    for piece in reversed(pieces[:index]):
        if piece.kind != "space":
            return piece.text
    return ""


def _changes(token: Token, before: str) -> Iterator[tuple[str, str]]:
    if token.text in ("posedge", "negedge"):
        yield "edge", _SWAPS[token.text]
    elif token.kind == "other" and token.text in _SWAPS:
        unary = token.text in "&|^~!+-" and (before in _BEFORE_UNARY or before == "")
        if token.text in ("~", "!"):
            yield "negation", ""
        elif not unary:
            yield "operator", _SWAPS[token.text]
    elif token.kind == "number" and (match := re.fullmatch(r"(\d*'[sS]?[bB])([01]+)", token.text)):
        flipped = match[2][:-1] + ("1" if match[2][-1] == "0" else "0")
        yield "constant", match[1] + flipped
    elif token.kind == "number" and token.text.isdigit():
        yield ("index" if before in ("[", ":") else "constant"), str(int(token.text) + 1)


_BEFORE_UNARY = {"(", "=", "<=", ",", "?", ":", "{", "[", "&", "|", "^", "&&", "||", "==", "!=", "+", "-", "return",
                 "assign", "begin", "~", "!"}  # fmt: skip


@dataclass
class MutationReport:
    """Counts by what became of the mutants, and the survivors."""

    counts: Counter
    survivors: list[Survivor]

    @property
    def unexplained(self) -> list[Survivor]:
        """Survivors that are not proved equal to the reference."""
        return [s for s in self.survivors if s.proof != "equal"]


def check_testbenches(
    examples: Iterable[RtlExample], harness: RtlHarness, *, each: int = 2, seed: int = 0, workers: int | None = None
) -> MutationReport:
    """Judge `each` random mutants of every example's reference.

    Returns:
        counts of killed, not compiling, invalid and surviving mutants; survivors with yosys's word on them.
    """
    jobs = []
    for example in examples:
        everything = list(mutants(reference_as_candidate(example)))
        chosen = random.Random(f"{seed} {example.id}").sample(everything, min(each, len(everything)))
        jobs += [(example, mutant) for mutant in chosen]

    def judge(job: tuple[RtlExample, Mutant]) -> tuple[str, Survivor | None]:
        example, mutant = job
        verdict = harness.verify(example, mutant.code)
        if not verdict.passed:
            return {"compile": "not compiling", "policy": "not compiling"}.get(verdict.stage, "killed") if (
                verdict.letter != "I"
            ) else "invalid", None
        proof = equivalent(reference_as_candidate(example), mutant.code, example.top, cache=harness.cache)
        return "survived", Survivor(example.id or "", mutant, proof)

    counts: Counter = Counter()
    survivors = []
    with ExecPool(workers) as pool:
        for outcome, survivor in pool.imap(judge, jobs):
            counts[outcome] += 1
            if survivor is not None:
                survivors.append(survivor)
    return MutationReport(counts, survivors)
