"""A testbench under names that nobody can guess, so that its report cannot be forged.

Modules of the testbench and of the reference, the instances, the counters and the closing lines get a nonce. A
candidate that reads the reference by a hierarchical name, instantiates it, or prints the closing line itself names
something that does not exist. Nothing of the testbench's meaning changes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from apps.rtl.example import RtlExample
from apps.rtl.source import module_names, renamed, tokens

_COUNTERS = ("stats1", "tb_match", "tb_mismatch", "good1", "top_module1", "stim1", "uut", "dut")
PASS_LINE = "Your Design Passed"
COUNT_LINE = "Mismatches: "
_PROTOCOLS = {"count": COUNT_LINE, "line": PASS_LINE}


def protocol(testbench: str) -> str | None:
    """How a testbench reports: "count" of mismatches, "line" when all is well, or None for neither."""
    texts = [token.text for token in tokens(testbench) if token.kind == "string"]
    return next((name for name, words in _PROTOCOLS.items() if any(words in text for text in texts)), None)


@dataclass(frozen=True)
class Bench:
    """Sources to compile besides the candidate: file name → text in two groups, and the name of the root."""

    before: dict[str, str]
    after: dict[str, str]
    top: str
    nonce: str


def private_bench(example: RtlExample, nonce: str) -> Bench:
    """The example's testbench and reference under private names.

    A wrapper instantiates the testbench and reports the time of the end. The candidate is compiled after the
    testbench, so that no directive or macro of its own reaches it.
    """
    testbench, reference = example.testbench or "", example.reference or ""
    needs_reference = _instantiates(testbench, example)
    own = [n for n in module_names(testbench) if n != example.top]
    if needs_reference:
        own += module_names(reference)
    names = {name: f"{name}_{nonce}" for name in (*own, *_COUNTERS) if name != example.top}
    private = renamed(testbench, names)
    private = _in_strings(private, COUNT_LINE, f"Mismatches_{nonce}: ")
    private = _in_strings(private, PASS_LINE, f"{PASS_LINE} {nonce}")
    before = {"tb.sv": private + "\n"}
    if needs_reference:
        before["ref.sv"] = renamed(reference, names) + "\n"
    before["reset.sv"] = "`resetall\n"
    top = f"graft_{nonce}"
    wrapper = (
        f"`resetall\nmodule {top};\n  {names.get(example.testbench_top, example.testbench_top)} bench ();\n"
        f'  final $display("graft_{nonce} end %0t", $realtime);\nendmodule\n'
    )
    return Bench(before, {"wrap.sv": wrapper}, top, nonce)


def renonced(bench: Bench, nonce: str) -> Bench:
    """The same bench under another nonce, without another look at its sources."""

    def changed(text: str) -> str:
        return text.replace(bench.nonce, nonce)

    before, after = ({name: changed(text) for name, text in part.items()} for part in (bench.before, bench.after))
    return Bench(before, after, changed(bench.top), nonce)


def plain_name(text: str, nonce: str) -> str:
    """`text` with the nonce taken out again, for people and for the official rules."""
    return text.replace(f"_{nonce}", "").replace(f" {nonce}", "")


def _instantiates(testbench: str, example: RtlExample) -> bool:
    """Whether the testbench compares with the reference itself, rather than with values of its own."""
    if not example.reference or example.reference_top in (*module_names(testbench), example.top):
        return False
    return any(token.text == example.reference_top for token in tokens(testbench))


def _in_strings(code: str, words: str, instead: str) -> str:
    if words not in code:
        return code
    return "".join(
        token.text.replace(words, instead) if token.kind == "string" else token.text
        for token in tokens(code, space=True)
    )


def macros(testbench: str) -> frozenset[str]:
    """The macros that a testbench defines."""
    return frozenset(re.findall(r"`define\s+(\w+)", testbench))
