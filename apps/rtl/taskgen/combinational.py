"""Families without memory: gates, selectors, coders, arithmetic, comparison, shifts, codes."""

from __future__ import annotations

from functools import reduce

from apps.rtl.taskgen.family import Built, Params, Pin, Values, family, mask, stateless

_GATES = {
    "and": ("&", False), "or": ("|", False), "xor": ("^", False), "nand": ("&", True), "nor": ("|", True),
    "xnor": ("^", True),
}  # fmt: skip
_FOLD = {"&": lambda a, b: a & b, "|": lambda a, b: a | b, "^": lambda a, b: a ^ b}


@family("gate", op=tuple(_GATES), width=(1, 2, 3, 4, 5, 6, 8, 12, 16), inputs=(2, 3, 4))
def gate(p: Params) -> Built:
    sign, inverted = _GATES[p["op"]]
    names = "abcd"[: p["inputs"]]
    expression = f" {sign} ".join(names)

    def model(v: Values) -> Values:
        value = reduce(_FOLD[sign], (v[n] for n in names))
        return {"y": (~value if inverted else value) & mask(p["width"])}

    each = "bit by bit " if p["width"] > 1 else ""
    listed = ", ".join(names[:-1]) + f" and {names[-1]}"
    return Built(
        (f"computes the {p['op'].upper()} of {listed} {each}".strip(),
         f"gives on y the {each}{p['op'].upper()} of its inputs {listed}",
         f"is a {p['inputs']}-input {p['op'].upper()} gate, {p['width']} bits wide"),
        (*(Pin(n, "in", p["width"]) for n in names), Pin("y", "out", p["width"])),
        f"  assign y = {'~(' if inverted else ''}{expression}{')' if inverted else ''};\n",
        stateless(model),
    )  # fmt: skip


@family("mux", ways=(2, 4, 8), width=(1, 2, 3, 4, 6, 8, 12, 16, 24, 32))
def mux(p: Params) -> Built:
    n, w = p["ways"], p["width"]
    bits = n.bit_length() - 1
    names = [f"d{i}" for i in range(n)]
    arms = "".join(f"      {bits}'d{i}: y = {name};\n" for i, name in enumerate(names[:-1]))
    return Built(
        (f"selects one of the {n} inputs d0 to d{n - 1} by sel and gives it on y",
         f"is a {n}-to-1 multiplexer of {w}-bit words: y is the input whose number is sel",
         f"copies to y the input d0 when sel is 0, d1 when sel is 1, and so on up to d{n - 1}"),
        (*(Pin(name, "in", w) for name in names), Pin("sel", "in", bits), Pin("y", "out", w)),
        f"  always @(*)\n    case (sel)\n{arms}      default: y = {names[-1]};\n    endcase\n",
        stateless(lambda v: {"y": v[f"d{v['sel']}"]}),
        frozenset({"y"}),
    )  # fmt: skip


@family("decoder", bits=(1, 2, 3, 4), low=(False, True), enable=(False, True))
def decoder(p: Params) -> Built:
    bits, low, enable = p["bits"], p["low"], p["enable"]
    size = 1 << bits
    hot = f"({size}'d1 << sel)"
    value = f"en ? {hot} : {size}'d0" if enable else hot

    def model(v: Values) -> Values:
        made = (1 << v["sel"]) if not enable or v["en"] else 0
        return {"y": (~made if low else made) & mask(size)}

    level, other = ("low", "high") if low else ("high", "low")
    gated = "; when en is 0 no output is active" if enable else ""
    return Built(
        (f"decodes sel: output bit number sel of y is {level}, all others are {other}{gated}",
         f"is a {bits}-to-{size} decoder with active-{level} outputs{gated}",
         f"drives exactly the bit of y that sel points at to {level}{gated}"),
        (Pin("sel", "in", bits), *((Pin("en", "in"),) if enable else ()), Pin("y", "out", size)),
        f"  assign y = {'~(' if low else ''}{value}{')' if low else ''};\n",
        stateless(model),
    )  # fmt: skip


@family("encoder", size=(2, 4, 8, 16), first=("lowest", "highest"), valid_out=(False, True), inverted=(False, True))
def encoder(p: Params) -> Built:
    size, bits = p["size"], p["size"].bit_length() - 1
    source = "~d" if p["inverted"] else "d"
    order = range(size - 1, -1, -1) if p["first"] == "lowest" else range(size)
    lines = "".join(f"    if (r[{i}]) y = {bits}'d{i};\n" for i in order)

    def model(v: Values) -> Values:
        r = (~v["d"] if p["inverted"] else v["d"]) & mask(size)
        found = [i for i in range(size) if r >> i & 1]
        value = 0 if not found else (min(found) if p["first"] == "lowest" else max(found))
        return {"y": value, **({"valid": int(bool(found))} if p["valid_out"] else {})}

    bit = "0" if p["inverted"] else "1"
    also = "; valid tells whether there is one" if p["valid_out"] else ""
    return Built(
        (f"gives on y the number of the {p['first']} bit of d that is {bit}, or 0 when there is none{also}",
         f"is a priority encoder of {size} lines in which the {p['first']} line with value {bit} wins; y is 0 without"
         f" any{also}",
         f"finds the {p['first']} bit of d equal to {bit} and outputs its index y (0 if no bit is {bit}){also}"),
        (Pin("d", "in", size), Pin("y", "out", bits), *((Pin("valid", "out"),) if p["valid_out"] else ())),
        f"  wire [{size - 1}:0] r = {source};\n" + ("  assign valid = |r;\n" if p["valid_out"] else "")
        + f"  always @(*) begin\n    y = {bits}'d0;\n{lines}  end\n",
        stateless(model), frozenset({"y"}),
    )  # fmt: skip


@family("adder", width=(1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32), subtract=(False, True), carry_in=(False, True),
        carry_out=(False, True), valid=lambda p: not (p["subtract"] and p["carry_in"]))  # fmt: skip
def adder(p: Params) -> Built:
    w, sign = p["width"], "-" if p["subtract"] else "+"
    extra = " + cin" if p["carry_in"] else ""
    target = "{cout, s}" if p["carry_out"] else "s"

    def model(v: Values) -> Values:
        total = (v["a"] - v["b"] if p["subtract"] else v["a"] + v["b"]) + v.get("cin", 0)
        return {"s": total & mask(w), **({"cout": total >> w & 1} if p["carry_out"] else {})}

    what = "the difference a - b" if p["subtract"] else f"the sum a + b{' + cin' if p['carry_in'] else ''}"
    flag = "borrow" if p["subtract"] else "carry"
    also = f" and the {flag} on cout" if p["carry_out"] else f", dropping any {flag}"
    return Built(
        (f"gives {what} of two {w}-bit numbers on s{also}",
         f"is a {w}-bit {'subtractor' if p['subtract'] else 'adder'}: s is {what}{also}",
         f"computes {what} modulo 2^{w} on s{also}"),
        (Pin("a", "in", w), Pin("b", "in", w), *((Pin("cin", "in"),) if p["carry_in"] else ()), Pin("s", "out", w),
         *((Pin("cout", "out"),) if p["carry_out"] else ())),
        f"  assign {target} = a {sign} b{extra};\n",
        stateless(model),
    )  # fmt: skip


def _signed(value: int, width: int) -> int:
    return value - (1 << width) if value >> (width - 1) else value


_COMPARED = (("lt", "eq", "gt"), ("lt",), ("gt",), ("eq",), ("lt", "gt"), ("max",), ("min",))


@family(
    "comparator",
    valid=lambda p: not (p["signed"] and p["outputs"] == ("eq",)),
    width=(2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32),
    signed=(False, True),
    outputs=_COMPARED,
)
def comparator(p: Params) -> Built:
    w, signed = p["width"], p["signed"]
    a, b = ("$signed(a)", "$signed(b)") if signed else ("a", "b")
    forms = {
        "lt": f"{a} < {b}", "eq": "a == b", "gt": f"{a} > {b}", "max": f"({a} > {b}) ? a : b",
        "min": f"({a} < {b}) ? a : b",
    }  # fmt: skip

    def model(v: Values) -> Values:
        x, y = (_signed(v[n], w) if signed else v[n] for n in "ab")
        found = {"lt": int(x < y), "eq": int(x == y), "gt": int(x > y), "max": max(x, y) & mask(w),
                 "min": min(x, y) & mask(w)}  # fmt: skip
        return {n: found[n] for n in p["outputs"]}

    kind = "signed (two's complement)" if signed else "unsigned"
    words = {"lt": "lt is 1 when a is less than b", "eq": "eq is 1 when they are equal",
             "gt": "gt is 1 when a is greater than b", "max": "max is the larger of the two",
             "min": "min is the smaller of the two"}  # fmt: skip
    says = ", ".join(words[n] for n in p["outputs"])
    return Built(
        (f"compares two {kind} {w}-bit numbers a and b: {says}",
         f"takes {w}-bit {kind} numbers a and b such that {says}",
         f"is a comparator of {kind} numbers, {w} bits each, where {says}"),
        (Pin("a", "in", w), Pin("b", "in", w),
         *(Pin(n, "out", w if n in ("max", "min") else 1) for n in p["outputs"])),
        "".join(f"  assign {n} = {forms[n]};\n" for n in p["outputs"]),
        stateless(model),
    )  # fmt: skip


@family("shifter", width=(2, 4, 8, 16, 32), kind=("left", "right", "arithmetic", "rotate_left", "rotate_right"))
def shifter(p: Params) -> Built:
    w, kind = p["width"], p["kind"]
    bits = w.bit_length() - 1
    forms = {
        "left": "d << n", "right": "d >> n", "arithmetic": "$signed(d) >>> n",
        "rotate_left": f"(d << n) | (d >> ({w} - n))", "rotate_right": f"(d >> n) | (d << ({w} - n))",
    }  # fmt: skip

    def model(v: Values) -> Values:
        d, n = v["d"], v["n"]
        made = {
            "left": d << n, "right": d >> n, "arithmetic": _signed(d, w) >> n,
            "rotate_left": d << n | d >> (w - n), "rotate_right": d >> n | d << (w - n),
        }  # fmt: skip
        return {"y": made[kind] & mask(w)}

    words = {"left": "shifted left, zeros coming in", "right": "shifted right, zeros coming in",
             "arithmetic": "shifted right, copies of the sign bit coming in", "rotate_left": "rotated left",
             "rotate_right": "rotated right"}[kind]  # fmt: skip
    return Built(
        (f"gives on y the word d {words}, by n places",
         f"is a {w}-bit barrel shifter: y is d {words}, n places",
         f"outputs d {words}; the number of places is n"),
        (Pin("d", "in", w), Pin("n", "in", bits), Pin("y", "out", w)),
        f"  assign y = {forms[kind]};\n",
        stateless(model),
    )  # fmt: skip


_OPS = {
    "add": ("a + b", "a plus b", lambda a, b: a + b), "sub": ("a - b", "a minus b", lambda a, b: a - b),
    "and": ("a & b", "a AND b", lambda a, b: a & b), "or": ("a | b", "a OR b", lambda a, b: a | b),
    "xor": ("a ^ b", "a XOR b", lambda a, b: a ^ b), "not": ("~a", "NOT a", lambda a, b: ~a),
    "inc": ("a + 1'b1", "a plus one", lambda a, b: a + 1), "pass": ("b", "b unchanged", lambda a, b: b),
}  # fmt: skip
_OP_SETS = (
    ("add", "sub", "and", "or"), ("add", "sub", "xor", "not"), ("and", "or", "xor", "not"), ("sub", "add", "or", "and"),
    ("add", "inc", "pass", "xor"), ("or", "and", "sub", "add"),
    ("add", "sub", "and", "or", "xor", "not", "inc", "pass"),
    ("pass", "inc", "not", "xor", "or", "and", "sub", "add"),
)  # fmt: skip


@family("alu", width=(4, 6, 8, 12, 16, 24, 32), ops=_OP_SETS, zero=(False, True))
def alu(p: Params) -> Built:
    w, ops = p["width"], p["ops"]
    bits = len(ops).bit_length() - 1
    arms = "".join(f"      {bits}'d{i}: y = {_OPS[o][0]};\n" for i, o in enumerate(ops[:-1]))

    def model(v: Values) -> Values:
        y = _OPS[ops[v["op"]]][2](v["a"], v["b"]) & mask(w)
        return {"y": y, **({"zero": int(y == 0)} if p["zero"] else {})}

    table = ", ".join(f"{i}: {_OPS[o][1]}" for i, o in enumerate(ops))
    also = "; zero is 1 when y is 0" if p["zero"] else ""
    return Built(
        (f"is a {w}-bit ALU; op chooses what y is ({table}){also}",
         f"computes on y a function of a and b that op selects ({table}){also}",
         f"gives, depending on op, on y ({table}){also}"),
        (Pin("a", "in", w), Pin("b", "in", w), Pin("op", "in", bits), Pin("y", "out", w),
         *((Pin("zero", "out"),) if p["zero"] else ())),
        f"  always @(*)\n    case (op)\n{arms}      default: y = {_OPS[ops[-1]][0]};\n    endcase\n"
        + ("  assign zero = (y == 0);\n" if p["zero"] else ""),
        stateless(model), frozenset({"y"}),
    )  # fmt: skip


@family("gray", width=(2, 3, 4, 5, 6, 7, 8, 10, 12, 16), to=("gray", "binary"))
def gray(p: Params) -> Built:
    w = p["width"]

    def model(v: Values) -> Values:
        if p["to"] == "gray":
            return {"y": v["d"] ^ v["d"] >> 1}
        y, rest = 0, v["d"]
        while rest:
            y, rest = y ^ rest, rest >> 1
        return {"y": y}

    body = (
        "  assign y = d ^ (d >> 1);\n"
        if p["to"] == "gray"
        else (
            f"  genvar i;\n  generate\n    for (i = 0; i < {w}; i = i + 1) begin : bits\n"
            "      assign y[i] = ^(d >> i);\n    end\n  endgenerate\n"
        )
    )
    source, target = ("binary", "Gray code") if p["to"] == "gray" else ("Gray code", "binary")
    return Built(
        (f"converts the {w}-bit {source} number d to {target} on y",
         f"turns {source} into {target}, {w} bits wide",
         f"gives on y the {target} form of d, which is in {source}"),
        (Pin("d", "in", w), Pin("y", "out", w)), body, stateless(model),
    )  # fmt: skip


@family("count_bits", width=(2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32), of=("ones", "zeros", "even_parity", "odd_parity"))
def count_bits(p: Params) -> Built:
    w, of = p["width"], p["of"]
    parity = of.endswith("parity")
    size = 1 if parity else w.bit_length()

    def model(v: Values) -> Values:
        ones = bin(v["d"]).count("1")
        return {"y": {"ones": ones, "zeros": w - ones, "even_parity": ones & 1, "odd_parity": 1 - (ones & 1)}[of]}

    bit = "!d[i]" if of == "zeros" else "d[i]"
    body = {"even_parity": "  assign y = ^d;\n", "odd_parity": "  assign y = ~^d;\n"}.get(of) or (
        f"  integer i;\n  always @(*) begin\n    y = 0;\n    for (i = 0; i < {w}; i = i + 1) y = y + {bit};\n  end\n"
    )
    words = {"ones": "the number of ones in d", "zeros": "the number of zeros in d",
             "even_parity": "the bit that makes the number of ones in d and y even",
             "odd_parity": "the bit that makes the number of ones in d and y odd"}[of]  # fmt: skip
    return Built(
        (f"gives on y {words}", f"looks at the {w}-bit word d and outputs {words} as y", f"computes y, {words}"),
        (Pin("d", "in", w), Pin("y", "out", size)), body, stateless(model),
        frozenset() if parity else frozenset({"y"}),
    )  # fmt: skip
