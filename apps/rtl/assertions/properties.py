"""Assertions that hold of generated designs, written from their parameters: what a model can learn to assert.

Each is a sentence about the ports alone, as an engineer would take it from the specification; none repeats the code.
"""

from __future__ import annotations

from collections.abc import Callable

from apps.rtl.taskgen.family import Params, Reset, mask

Properties = Callable[[Params, Reset], list[str]]
PROPERTIES: dict[str, Properties] = {}


def properties(family: str, params: Params) -> list[str]:
    """Assertions about a member of a family; empty where none are known."""
    if family not in PROPERTIES:
        return []
    reset = Reset(params["reset"])
    return [f"assert property (@(posedge clk) {text});" for text in PROPERTIES[family](params, reset)]


def _of(family: str) -> Callable[[Properties], Properties]:
    def add(function: Properties) -> Properties:
        PROPERTIES[family] = function
        return function

    return add


def _after_reset(reset: Reset, output: str, value: str) -> str:
    return f"{reset.when} |=> {output} == {value}"


def _off(reset: Reset) -> str:
    return f"disable iff ({reset.when})"


@_of("counter")
def _counter(p: Params, r: Reset) -> list[str]:
    w, last = p["width"], (p["modulo"] or 1 << p["width"]) - 1
    top, zero, one = f"{w}'d{last}", f"{w}'d0", f"{w}'d1"
    step, start, end = ("-", top, zero) if p["down"] else ("+", zero, top)
    go = "en && " if p["enable"] else ""
    found = [
        _after_reset(r, "q", zero),
        f"{_off(r)} {go}q == {end} |=> q == {start}",
        f"{_off(r)} {go}q != {end} |=> q == $past(q) {step} {one}",
    ]
    return found + ([f"{_off(r)} !en |=> $stable(q)"] if p["enable"] else [])


@_of("register")
def _register(p: Params, r: Reset) -> list[str]:
    value = f"{p['width']}'d{mask(p['width']) if p['value'] == 'ones' else 0}"
    if not p["enable"]:
        return [_after_reset(r, "q", value), f"{_off(r)} 1'b1 |=> q == $past(d)"]
    return [
        _after_reset(r, "q", value), f"{_off(r)} en |=> q == $past(d)", f"{_off(r)} !en |=> $stable(q)",
    ]  # fmt: skip


@_of("shift_register")
def _shift_register(p: Params, r: Reset) -> list[str]:
    w = p["width"]
    go = "!load" if p["load"] else "1'b1"
    high, low = f"q[{w - 1}:1]", f"q[{w - 2}:0]"
    into, kept, moved = (0, high, low) if p["left"] else (w - 1, low, high)
    found = [
        _after_reset(r, "q", f"{w}'d0"),
        f"{_off(r)} {go} |=> q[{into}] == $past(si)",
        f"{_off(r)} {go} |=> {kept} == $past({moved})",
    ]
    return found + ([f"{_off(r)} load |=> q == $past(d)"] if p["load"] else [])


@_of("lfsr")
def _lfsr(p: Params, r: Reset) -> list[str]:
    w = p["width"]
    return [
        _after_reset(r, "q", f"{w}'d{0 if p['inverted'] else 1}"),
        f"{_off(r)} 1'b1 |=> q[{w - 1}:1] == $past(q[{w - 2}:0])",
    ]


@_of("edge_detector")
def _edge_detector(p: Params, r: Reset) -> list[str]:
    w = p["width"]
    still = {"rising": f"d == {w}'d0", "falling": f"d == {w}'d{mask(w)}"}
    found = [_after_reset(r, "q", f"{w}'d0")]
    if p["edge"] in still:
        return [*found, f"{_off(r)} {still[p['edge']]} |=> q == {w}'d0"]
    return [*found, f"{_off(r)} 1'b1 ##1 $stable(d) |=> q == {w}'d0"]


@_of("divider")
def _divider(p: Params, r: Reset) -> list[str]:
    half = p["by"] // 2
    found = [_after_reset(r, "q", f"1'b{p['first']}")]
    if half == 1:
        return [*found, f"{_off(r)} 1'b1 |=> q != $past(q)"]
    return [*found, f"{_off(r)} $changed(q) |=> $stable(q)"]


@_of("arbiter")
def _arbiter(p: Params, r: Reset) -> list[str]:
    """Not of the round robin: the remainders in its reference take yosys a minute to prove anything about."""
    if p["kind"] == "round_robin":
        return []
    n, zero = p["size"], f"{p['size']}'d0"
    first = 0 if p["kind"] == "lowest" else n - 1
    return [
        _after_reset(r, "grant", zero),
        f"{_off(r)} 1'b1 |=> $onehot0(grant)",
        f"{_off(r)} req == {zero} |=> grant == {zero}",
        f"{_off(r)} req != {zero} |=> (grant & ~$past(req)) == {zero}",
        f"{_off(r)} req[{first}] |=> grant[{first}]",
    ]


@_of("fifo")
def _fifo(p: Params, r: Reset) -> list[str]:
    return [
        f"{r.when} |=> empty && !full",
        f"{_off(r)} empty && wr |=> !empty",
        f"{_off(r)} full && rd && !wr |=> !full",
        f"{_off(r)} empty && !wr |=> empty",
    ]


@_of("accumulator")
def _accumulator(p: Params, r: Reset) -> list[str]:
    w = p["width"]
    found = [_after_reset(r, "q", f"{w}'d0")]
    if p["clear"]:
        found.append(f"{_off(r)} clear |=> q == {w}'d0")
    hold = "!clear && " if p["clear"] else ""
    return [*found, f"{_off(r)} {hold}d == {w}'d0 |=> $stable(q)"]


@_of("crc")
def _crc(p: Params, r: Reset) -> list[str]:
    w = p["width"]
    return [
        _after_reset(r, "crc", f"{w}'d{mask(w) if p['ones'] else 0}"),
        f"{_off(r)} crc[{w - 1}] == d |=> crc == ($past(crc) << 1)",
    ]
