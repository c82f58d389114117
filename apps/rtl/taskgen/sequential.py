"""Families with a clock: counters, registers, detectors, state machines, queues, dividers, checksums, arbiters."""

from __future__ import annotations

import random

from apps.rtl.taskgen.family import RESETS, Built, Params, Pin, Reset, Values, clocked, family, mask

_CLK = Pin("clk", "in")


def _with_reset(r: Reset, *rest: Pin) -> tuple[Pin, ...]:
    return (_CLK, r.pin, *rest)


@family("counter", width=(2, 3, 4, 5, 6, 8), modulo=(0, 3, 5, 6, 7, 10, 12, 13), down=(False, True),
        enable=(False, True), reset=RESETS, valid=lambda p: p["modulo"] < 1 << p["width"])  # fmt: skip
def counter(p: Params) -> Built:
    w, n, r = p["width"], p["modulo"] or 1 << p["width"], Reset(p["reset"])
    last = n - 1
    step = "q - 1'b1" if p["down"] else "q + 1'b1"
    if p["modulo"]:
        step = f"(q == 0) ? {w}'d{last} : q - 1'b1" if p["down"] else f"(q == {w}'d{last}) ? {w}'d0 : q + 1'b1"

    def update(q: int, v: Values) -> int:
        return q if p["enable"] and not v["en"] else (q + (-1 if p["down"] else 1)) % n

    way = "down" if p["down"] else "up"
    gated = " while en is 1" if p["enable"] else ""
    span = f"from {last} to 0" if p["down"] else f"from 0 to {last}"
    return Built(
        (f"counts {way} {span} on q, over and over, one step each clock cycle{gated}, with a {r.words} to 0",
         f"is a modulo-{n} {way} counter{gated} with a {r.words} that clears q",
         f"has a {w}-bit count q that goes {way} by one on each rising clock edge{gated} and wraps {span}; its"
         f" {r.words}"
         " sets it to 0"),
        _with_reset(r, *((Pin("en", "in"),) if p["enable"] else ()), Pin("q", "out", w)),
        r.always("q <= 0;", f"{'if (en) ' if p['enable'] else ''}q <= {step};"),
        clocked(0, update, lambda q, v: {"q": q}, r), frozenset({"q"}), (r.name, r.active),
    )  # fmt: skip


@family("register", width=(1, 2, 4, 6, 8, 12, 16, 32), enable=(False, True), value=("zeros", "ones"), reset=RESETS)
def register(p: Params) -> Built:
    w, r = p["width"], Reset(p["reset"])
    start = mask(w) if p["value"] == "ones" else 0
    zero = f"{{{w}{{1'b1}}}}" if start else "0"
    gated = " when en is 1" if p["enable"] else ""
    return Built(
        (f"stores d in q on each rising clock edge{gated}; a {r.words} sets all bits of q to {start & 1}",
         f"is a {w}-bit register: q takes d{gated}, and a {r.words} fills it with {p['value']}",
         f"keeps a {w}-bit word q, replaced by d at the clock{gated}, and set to all {p['value']} by a {r.words}"),
        _with_reset(r, *((Pin("en", "in"),) if p["enable"] else ()), Pin("d", "in", w), Pin("q", "out", w)),
        r.always(f"q <= {zero};", f"{'if (en) ' if p['enable'] else ''}q <= d;"),
        clocked(start, lambda q, v: q if p["enable"] and not v["en"] else v["d"], lambda q, v: {"q": q}, r),
        frozenset({"q"}), (r.name, r.active),
    )  # fmt: skip


@family("shift_register", width=(2, 3, 4, 5, 6, 8, 12, 16), left=(False, True), load=(False, True), reset=RESETS)
def shift_register(p: Params) -> Built:
    w, r = p["width"], Reset(p["reset"])
    moved = f"{{q[{w - 2}:0], si}}" if p["left"] else f"{{si, q[{w - 1}:1]}}"

    def update(q: int, v: Values) -> int:
        if p["load"] and v["load"]:
            return v["d"]
        return (q << 1 | v["si"]) & mask(w) if p["left"] else q >> 1 | v["si"] << (w - 1)

    way, end = ("left", "lowest") if p["left"] else ("right", "highest")
    also = "; load replaces the whole word by d instead" if p["load"] else ""
    loads = (Pin("load", "in"), Pin("d", "in", w)) if p["load"] else ()
    return Built(
        (f"shifts q one place {way} each clock cycle, si coming in at the {end} bit, with a {r.words} to 0{also}",
         f"is a {w}-bit shift register that moves {way} and takes si as its new {end} bit; a {r.words} clears it{also}",
         f"moves the bits of q {way} at every rising clock edge and puts si into the {end} one{also}; a {r.words} makes"
         " q zero"),
        _with_reset(r, Pin("si", "in"), *loads, Pin("q", "out", w)),
        r.always("q <= 0;", f"{'if (load) q <= d; else ' if p['load'] else ''}q <= {moved};"),
        clocked(0, update, lambda q, v: {"q": q}, r), frozenset({"q"}), (r.name, r.active),
    )  # fmt: skip


_TAPS = {3: (2, 1), 4: (3, 2), 5: (4, 2), 6: (5, 4), 7: (6, 5), 8: (7, 5, 4, 3), 9: (8, 4), 10: (9, 6),
         12: (11, 5, 3, 0),
         16: (15, 14, 12, 3)}  # fmt: skip


@family("lfsr", width=tuple(_TAPS), inverted=(False, True), reset=RESETS)
def lfsr(p: Params) -> Built:
    w, r = p["width"], Reset(p["reset"])
    taps = _TAPS[w]
    bits = " ^ ".join(f"q[{t}]" for t in taps)
    start = 0 if p["inverted"] else 1

    def update(q: int, v: Values) -> int:
        bit = sum(q >> t & 1 for t in taps) & 1
        return (q << 1 | (bit ^ p["inverted"])) & mask(w)

    what = ("XNOR" if p["inverted"] else "XOR") + " of the bits " + ", ".join(map(str, taps))
    return Built(
        (f"is a {w}-bit LFSR that shifts left and takes the {what} of q as its new lowest bit; a {r.words} sets q to"
         f" {start}",
         f"shifts q left every clock cycle, the {what} of q coming in; its {r.words} makes q equal to {start}",
         f"makes pseudo-random words q: a left shift whose new bit is the {what} of q, started at {start} by a"
         f" {r.words}"),
        _with_reset(r, Pin("q", "out", w)),
        r.always(f"q <= {start};", f"q <= {{q[{w - 2}:0], {'~(' if p['inverted'] else ''}{bits}"
                 f"{')' if p['inverted'] else ''}}};"),
        clocked(start, update, lambda q, v: {"q": q}, r), frozenset({"q"}), (r.name, r.active),
    )  # fmt: skip


@family("edge_detector", width=(1, 2, 3, 4, 8, 12, 16, 32), edge=("rising", "falling", "any"), reset=RESETS)
def edge_detector(p: Params) -> Built:
    w, r = p["width"], Reset(p["reset"])
    form = {"rising": "d & ~last", "falling": "~d & last", "any": "d ^ last"}[p["edge"]]

    def update(state: tuple[int, int], v: Values) -> tuple[int, int]:
        last, d = state[0], v["d"]
        return d, {"rising": d & ~last, "falling": ~d & last, "any": d ^ last}[p["edge"]] & mask(w)

    which = {"rising": "goes from 0 to 1", "falling": "goes from 1 to 0", "any": "changes"}[p["edge"]]
    bits = f"[{w - 1}:0] " if w > 1 else ""
    return Built(
        (f"sets a bit of q for one clock cycle when the same bit of d {which} between two rising clock edges, with a"
         f" {r.words} that clears q and the remembered d",
         f"detects on each bit of d when it {which}, compared with the clock edge before, and reports it on q one cycle"
         f" long; a {r.words} clears everything",
         f"has an output q whose bits are 1 in the cycle after the bit of d {which}; a {r.words} clears q and the last"
         " value"),
        _with_reset(r, Pin("d", "in", w), Pin("q", "out", w)),
        f"  reg {bits}last;\n" + r.always(
            "begin last <= 0; q <= 0; end", f"begin last <= d; q <= {form}; end"
        ),
        clocked((0, 0), update, lambda s, v: {"q": s[1]}, r), frozenset({"q"}), (r.name, r.active),
    )  # fmt: skip


def _overlaps(pattern: str) -> bool:
    """Whether the pattern's end can be the beginning of another one."""
    return any(pattern.endswith(pattern[:k]) for k in range(1, len(pattern)))


@family(
    "sequence",
    valid=lambda p: p["overlap"] or _overlaps(p["pattern"]),
    pattern=("101", "110", "011", "1011", "1101", "0110", "1001", "1110", "10110", "11011", "01110"),
    overlap=(False, True),
    reset=RESETS,
)
def sequence(p: Params) -> Built:
    """A Mealy-like detector with registered output, by its automaton of prefixes (Knuth, Morris and Pratt)."""
    pattern, r = p["pattern"], Reset(p["reset"])
    n = len(pattern)
    bits = (n - 1).bit_length()

    def follow(state: int, bit: str) -> tuple[int, int]:
        seen = pattern[:state] + bit
        hit = int(seen == pattern)
        if hit and not p["overlap"]:
            return 0, 1
        size = next(k for k in range(min(n - 1, len(seen)), -1, -1) if seen.endswith(pattern[:k]))
        return size, hit

    arms = "".join(
        f"      {bits}'d{s}: begin s <= x ? {bits}'d{follow(s, '1')[0]} : {bits}'d{follow(s, '0')[0]};"
        f" q <= {_bit(follow(s, '1')[1], follow(s, '0')[1])}; end\n"
        for s in range(n)
    )
    rule = "overlapping ones count" if p["overlap"] else "after a match it starts anew"
    return Built(
        (f"sets q for one cycle when the bits of x at the last rising clock edges were {pattern} ({rule}); a {r.words}"
         " forgets them",
         f"detects the sequence {pattern}, first bit first, on x and reports it on q in the cycle after its last bit;"
         f" {rule}; there is a {r.words}",
         f"watches x, one bit each clock cycle, for {pattern} and then makes q 1 for a cycle; {rule}; a {r.words}"
         f" restarts"),
        _with_reset(r, Pin("x", "in"), Pin("q", "out")),
        f"  reg [{bits - 1}:0] s;\n" + r.always(
            "begin s <= 0; q <= 0; end",
            f"case (s)\n{arms}      default: begin s <= 0; q <= 0; end\n    endcase",
        ),
        clocked((0, 0), lambda s, v: follow(s[0], str(v["x"])), lambda s, v: {"q": s[1]}, r),
        frozenset({"q"}), (r.name, r.active),
    )  # fmt: skip


def _bit(one: int, zero: int) -> str:
    return {(1, 0): "x", (0, 1): "~x", (0, 0): "1'b0", (1, 1): "1'b1"}[one, zero]


@family("fsm", states=(3, 4, 5, 6), table=tuple(range(12)), reset=RESETS)
def fsm(p: Params) -> Built:
    """A Moore machine with a random table that the words list in full."""
    n, r = p["states"], Reset(p["reset"])
    draw = random.Random(f"fsm {n} {p['table']}")
    follow = [[draw.randrange(n) for _ in range(2)] for _ in range(n)]
    out = [draw.randrange(2) for _ in range(n)]
    out[0], out[-1] = 0, 1
    names = "ABCDEF"[:n]
    bits = (n - 1).bit_length()
    arms = "".join(f"      {bits}'d{i}: s <= x ? {bits}'d{b} : {bits}'d{a};\n" for i, (a, b) in enumerate(follow))
    moves = ", ".join(f"{names[i]} to {names[a]} or {names[b]}" for i, (a, b) in enumerate(follow))
    ones = " and ".join(names[i] for i in range(n) if out[i])
    high = " || ".join(f"s == {bits}'d{i}" for i in range(n) if out[i])
    return Built(
        (f"is a Moore machine that goes, for x = 0 or 1, from {moves}; q is 1 in {ones}; a {r.words} leads to A",
         f"has the states {', '.join(names)} and moves at each rising clock edge by x = 0 or 1: from {moves}. Output q"
         f" is 1 exactly in {ones}; a {r.words} leads to A",
         f"steps through states by x (first target for 0, second for 1): {moves}. It shows q = 1 in {ones} and"
         f" starts in"
         f" A by a {r.words}"),
        _with_reset(r, Pin("x", "in"), Pin("q", "out")),
        f"  reg [{bits - 1}:0] s;\n" + r.always(
            "s <= 0;", f"case (s)\n{arms}      default: s <= 0;\n    endcase"
        ) + f"  assign q = {high};\n",
        clocked(0, lambda s, v: follow[s][v["x"]], lambda s, v: {"q": out[s]}, r), frozenset(), (r.name, r.active),
    )  # fmt: skip


@family("fifo", depth=(2, 4, 8), width=(1, 2, 4, 6, 8, 12, 16), reset=RESETS)
def fifo(p: Params) -> Built:
    w, depth, r = p["width"], p["depth"], Reset(p["reset"])
    bits = depth.bit_length() - 1

    def update(queue: tuple[int, ...], v: Values) -> tuple[int, ...]:
        takes, gives = v["wr"] and len(queue) < depth, v["rd"] and bool(queue)
        rest = queue[1:] if gives else queue
        return (*rest, v["din"]) if takes else rest

    def outputs(queue: tuple[int, ...], v: Values) -> Values:
        head = {"dout": queue[0]} if queue else {}
        return {**head, "full": int(len(queue) == depth), "empty": int(not queue)}

    size = f"[{w - 1}:0] " if w > 1 else ""
    body = (
        f"  reg {size}mem [0:{depth - 1}];\n  reg [{bits}:0] wp, rp;\n"
        f"  assign empty = (wp == rp);\n  assign full = (wp[{bits}] != rp[{bits}]) && "
        f"(wp[{bits - 1}:0] == rp[{bits - 1}:0]);\n  assign dout = mem[rp[{bits - 1}:0]];\n"
        + r.always(
            "begin wp <= 0; rp <= 0; end",
            f"begin\n      if (wr && !full) begin mem[wp[{bits - 1}:0]] <= din; wp <= wp + 1'b1; end\n"
            "      if (rd && !empty) rp <= rp + 1'b1;\n    end",
        )
    )
    return Built(
        (f"is a FIFO of {depth} words of {w} bits: wr stores din unless it is full, rd drops the oldest word unless"
         f" it is"
         f" empty; dout always shows the oldest word; a {r.words} empties it",
         f"queues up to {depth} {w}-bit words, written by wr with din and removed by rd in order; dout is the word"
         f" to be"
         f" removed next, full and empty tell its state; a {r.words} empties it",
         f"holds {depth} words in order of arrival, each {w} bits; wr when not full adds din, rd when not empty removes"
         f" the first, which dout shows; there is a {r.words}"),
        _with_reset(r, Pin("wr", "in"), Pin("rd", "in"), Pin("din", "in", w), Pin("dout", "out", w), Pin("full", "out"),
                    Pin("empty", "out")),
        body, clocked((), update, outputs, r), frozenset(), (r.name, r.active),
    )  # fmt: skip


@family("divider", by=(2, 4, 6, 8, 10, 12, 14, 16, 20, 24), first=(0, 1), reset=RESETS)
def divider(p: Params) -> Built:
    half, first, r = p["by"] // 2, p["first"], Reset(p["reset"])
    bits = max(1, (half - 1).bit_length())

    def update(state: tuple[int, int], v: Values) -> tuple[int, int]:
        n, q = state
        return (0, 1 - q) if n == half - 1 else (n + 1, q)

    body = f"  reg [{bits - 1}:0] n;\n" if half > 1 else ""
    count = (
        "begin q <= ~q; end"
        if half == 1
        else (f"if (n == {bits}'d{half - 1}) begin n <= 0; q <= ~q; end else n <= n + 1'b1;")
    )
    zero = f"begin {'n <= 0; ' if half > 1 else ''}q <= {first}; end"
    return Built(
        (f"divides the clock by {p['by']}: q changes every {half} cycles and is {first} after its {r.words}",
         f"makes a slower clock q with a period of {p['by']} cycles, half of them high; a {r.words} sets q to"
         f" {first} and"
         " starts a half period",
         f"toggles q after every {half} rising edges of clk, so that it runs at 1/{p['by']} of its frequency, from"
         f" {first}"
         f" on after a {r.words}"),
        _with_reset(r, Pin("q", "out")), body + r.always(zero, count),
        clocked((0, first), update, lambda s, v: {"q": s[1]}, r), frozenset({"q"}), (r.name, r.active),
    )  # fmt: skip


_POLYNOMIALS = {3: (3,), 4: (3, 9), 5: (5, 9, 21), 8: (7, 49, 29, 155), 16: (4129, 32773, 15717)}


@family("crc", width=tuple(_POLYNOMIALS), which=(0, 1, 2, 3), ones=(False, True), reset=RESETS,
        valid=lambda p: p["which"] < len(_POLYNOMIALS[p["width"]]))  # fmt: skip
def crc(p: Params) -> Built:
    w, r = p["width"], Reset(p["reset"])
    polynomial, start = _POLYNOMIALS[w][p["which"]], mask(w) if p["ones"] else 0
    digits = (w + 3) // 4
    taps = f"{w}'h{polynomial:0{digits}x}"

    def update(c: int, v: Values) -> int:
        moved = c << 1 & mask(w)
        return moved ^ polynomial if (c >> (w - 1) ^ v["d"]) & 1 else moved

    what = f"CRC of width {w} with the polynomial 0x{polynomial:0{digits}X}"
    init = "all ones" if p["ones"] else "zero"
    zero = f"{{{w}{{1'b1}}}}" if p["ones"] else "0"
    return Built(
        (f"updates the {what} by one bit d each clock cycle, highest bit first, starting from {init} by a {r.words}",
         f"computes on crc bit by bit the {what} of the stream d (shift left, then XOR where the bit shifted out"
         f" differs"
         f" from d); a {r.words} sets it to {init}",
         f"is a serial checksum: the {what}, taking d at every rising clock edge, first set to {init} by a {r.words}"),
        _with_reset(r, Pin("d", "in"), Pin("crc", "out", w)),
        r.always(f"crc <= {zero};",
                 f"crc <= {{crc[{w - 2}:0], 1'b0}} ^ ((crc[{w - 1}] ^ d) ? {taps} : {w}'d0);"),
        clocked(start, update, lambda c, v: {"crc": c}, r), frozenset({"crc"}), (r.name, r.active),
    )  # fmt: skip


@family("arbiter", size=(2, 3, 4, 5, 6, 8), kind=("lowest", "highest", "round_robin"), reset=RESETS)
def arbiter(p: Params) -> Built:
    n, kind, r = p["size"], p["kind"], Reset(p["reset"])
    bits = max(1, (n - 1).bit_length())

    def choose(last: int, req: int) -> int | None:
        order = {"lowest": range(n), "highest": range(n - 1, -1, -1),
                 "round_robin": [(last + 1 + i) % n for i in range(n)]}[kind]  # fmt: skip
        return next((i for i in order if req >> i & 1), None)

    def update(state: tuple[int, int], v: Values) -> tuple[int, int]:
        chosen = choose(state[0], v["req"])
        return (state[0], 0) if chosen is None else (chosen, 1 << chosen)

    if kind == "round_robin":
        body = (
            f"  reg [{bits - 1}:0] last;\n  reg found;\n  integer i, k;\n  always @({r.edge})\n    if ({r.when}) begin"
            f" grant <= 0; last <= {n - 1}; end\n    else begin\n      grant <= 0;\n      found = 0;\n"
            f"      for (i = 1; i <= {n}; i = i + 1) begin\n        k = (last + i) % {n};\n"
            "        if (!found && req[k]) begin found = 1; grant[k] <= 1'b1; last <= k; end\n      end\n    end\n"
        )
    else:
        # the lowest set bit, or the same of the word turned around
        if kind == "lowest":
            body = r.always("grant <= 0;", f"grant <= req & (~req + {n}'d1);")
        else:
            arms = "".join(f"    else if (req[{i}]) grant <= {n}'d{1 << i};\n" for i in range(n - 1, -1, -1))
            body = f"  always @({r.edge})\n    if ({r.when}) grant <= 0;\n{arms}    else grant <= 0;\n"
    rule = {"lowest": "the lowest number wins", "highest": "the highest number wins",
            "round_robin": "the next number after the last winner, going round, wins"}[kind]  # fmt: skip
    begins = "; after reset the search starts at 0" if kind == "round_robin" else ""
    return Built(
        (f"grants one of {n} requests req each clock cycle by one bit of grant, none without requests; {rule}{begins};"
         f" a {r.words} clears grant",
         f"is an arbiter for {n} lines req with registered one-hot grant; {rule}{begins}; it has a {r.words}",
         f"chooses at every rising clock edge among the set bits of req ({rule}{begins}) and sets that bit of grant"
         f" only;"
         f" a {r.words} makes grant 0"),
        _with_reset(r, Pin("req", "in", n), Pin("grant", "out", n)), body,
        clocked((n - 1, 0), update, lambda s, v: {"grant": s[1]}, r), frozenset({"grant"}), (r.name, r.active),
    )  # fmt: skip


@family("accumulator", width=(4, 6, 8, 12, 16), saturate=(False, True), clear=(False, True), reset=RESETS)
def accumulator(p: Params) -> Built:
    w, r = p["width"], Reset(p["reset"])
    total = "t > {0}'d{1} ? {2}'d{1} : t[{3}:0]".format(w + 1, mask(w), w, w - 1) if p["saturate"] else "q + d"

    def update(q: int, v: Values) -> int:
        if p["clear"] and v["clear"]:
            return 0
        return min(q + v["d"], mask(w)) if p["saturate"] else (q + v["d"]) & mask(w)

    full = f"stops at {mask(w)} instead of wrapping" if p["saturate"] else "wraps around"
    also = ", or becomes 0 when clear is 1" if p["clear"] else ""
    return Built(
        (f"adds d to the {w}-bit sum q each clock cycle{also}; the sum {full}; a {r.words} sets it to 0",
         f"accumulates d into q, {w} bits wide, where the sum {full}{also}; a {r.words} clears it",
         f"keeps a running sum q of the values d{also}; it {full}; there is a {r.words}"),
        _with_reset(r, *((Pin("clear", "in"),) if p["clear"] else ()), Pin("d", "in", w), Pin("q", "out", w)),
        (f"  wire [{w}:0] t = q + d;\n" if p["saturate"] else "")
        + r.always("q <= 0;", f"{'if (clear) q <= 0; else ' if p['clear'] else ''}q <= {total};"),
        clocked(0, update, lambda q, v: {"q": q}, r), frozenset({"q"}), (r.name, r.active),
    )  # fmt: skip
