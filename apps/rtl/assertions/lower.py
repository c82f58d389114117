"""A concurrent assertion as a monitor: history registers, and one wire that is 1 when the assertion fails.

The subset: `assert property (@(posedge clk) [disable iff (e)] sequence [|-> or |=> sequence])`, where a sequence is
Boolean expressions joined by `##n` or `##[m:n]`, with `$past`, `$rose`, `$fell`, `$stable`, `$changed`, `$onehot` and
`$onehot0`. A range stands for its alternatives: every match of the left side must be followed by some match of the
right. Anything else is refused with its name, never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from core.errors import BackendUnavailable, DataError

LONGEST = 32
_SAMPLED = {"$past", "$rose", "$fell", "$stable", "$changed"}
_COUNTED = {"$onehot", "$onehot0"}

Alternative = tuple[tuple[int, str], ...]
"""(cycle, expression) pairs of one way to match a sequence, from its start."""


@dataclass
class Monitor:
    """A lowered assertion.

    Args:
        clock: its clock's name. lines: Verilog to stand inside the module. fail, seen: wires that are 1 in the cycle in
            which a failure is certain, and in which the left side matched. depth: cycles until both mean anything.
    """

    clock: str
    lines: list[str]
    fail: str
    seen: str
    depth: int


@dataclass
class _Builder:
    """Names and histories of one monitor."""

    prefix: str
    lines: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    depths: dict[str, int] = field(default_factory=dict)
    past: int = 0

    def delayed(self, expression: str, cycles: int, wide: bool = False) -> str:
        """The value of an expression `cycles` ago."""
        key = expression + ("#" if wide else "")
        if key not in self.names:
            name = f"{self.prefix}_e{len(self.names)}"
            self.names[key], self.depths[key] = name, 0
            size = f"[$bits({expression})-1:0] " if wide else ""
            value = expression if wide else f"(({expression}) != 0)"
            self.lines.append(f"wire {size}{name} = {value};")
        name = self.names[key]
        while self.depths[key] < cycles:
            at = self.depths[key] + 1
            size = f"[$bits({expression})-1:0] " if wide else ""
            before = name if at == 1 else f"{name}_{at - 1}"
            self.lines.append(f"reg {size}{name}_{at} = 0; always @(posedge CLOCK) {name}_{at} <= {before};")
            self.depths[key] = at
        return name if cycles == 0 else f"{name}_{cycles}"


def lower(text: str, prefix: str = "sva0") -> Monitor:
    """The monitor of one assertion.

    Raises:
        DataError: it does not parse, or it uses something outside of the subset, which is named.
        BackendUnavailable: pyslang is not installed.
    """
    # the nodes belong to the tree, which must live as long as they are looked at
    tree, spec = _parsed(text)
    clock = _clock(spec)
    builder = _Builder(prefix)
    disable = "1'b0" if spec.disable is None else _expression(spec.disable.expr, builder)
    left, right, shift = _sides(spec.expr)
    before = _alternatives(left, builder) if left is not None else [((0, "1'b1"),)]
    after = _alternatives(right, builder)
    ends = [max(offset for offset, _ in way) for way in before]
    last = max(end + shift + offset for end in ends for way in after for offset, _ in way)
    if last + builder.past > LONGEST:
        raise DataError(f"the assertion looks {last + builder.past} cycles back", hint=f"the limit is {LONGEST}")

    def way(steps: Alternative, start: int) -> str:
        return " && ".join(builder.delayed(e, last - start - offset) for offset, e in steps)

    matched, broken = [], []
    for steps, end in zip(before, ends):
        matched.append(f"({way(steps, 0)})")
        followed = " || ".join(f"({way(other, end + shift)})" for other in after)
        broken.append(f"(({way(steps, 0)}) && !({followed}))")
    off = " || ".join(builder.delayed(disable, age) for age in range(last + 1))
    depth = last + builder.past
    size = max(1, (depth + 1).bit_length())
    ready, fail, seen = f"{prefix}_ready", f"{prefix}_fail", f"{prefix}_seen"
    builder.lines += [
        f"reg [{size - 1}:0] {prefix}_age = 0; always @(posedge CLOCK) if ({prefix}_age < {depth + 1}) "
        f"{prefix}_age <= {prefix}_age + 1'b1;",
        f"wire {ready} = ({prefix}_age >= {depth}) && !({off});",
        f"wire {seen} = {ready} && ({' || '.join(matched)});",
        f"wire {fail} = {ready} && ({' || '.join(broken)});",
    ]
    return Monitor(clock, [line.replace("CLOCK", clock) for line in builder.lines], fail, seen, depth)


def _parsed(text: str) -> tuple[Any, Any]:
    try:
        from pyslang import DiagnosticEngine, syntax
    except ModuleNotFoundError as error:
        raise BackendUnavailable("pyslang is not installed", hint="pip install 'graft[rtl]'") from error
    body = text.strip().rstrip(";") + ";"
    tree = syntax.SyntaxTree.fromText(f"module m;\n{body}\nendmodule\n")
    errors = [d for d in tree.diagnostics if d.isError()]
    if errors:
        message = DiagnosticEngine.reportAll(tree.sourceManager, errors[:1]).split("error: ")[-1].split("\n")[0]
        raise DataError(f"not an assertion: {message}", got=text)
    root: Any = tree.root
    members = list(root.members)
    if len(members) != 1 or _kind(members[0]) != "ConcurrentAssertionMember":
        raise DataError("not one concurrent assertion", got=text, expected="assert property (…);")
    statement = members[0].statement
    if _kind(statement) != "AssertPropertyStatement":
        raise DataError(f"{_kind(statement)} is not supported", got=text, expected="assert property (…);")
    return tree, statement.propertySpec


def _kind(node: Any) -> str:
    return str(node.kind).rpartition(".")[2]


def _clock(spec: Any) -> str:
    words = str(spec.clocking or "").replace("@", " ").replace("(", " ").replace(")", " ").split()
    if len(words) != 2 or words[0] != "posedge":
        raise DataError("the assertion needs a clock of the form @(posedge name)", got=str(spec.clocking or ""))
    return words[1]


def _sides(node: Any) -> tuple[Any, Any, int]:
    """Left and right side of an implication, and whether the right one starts a cycle later."""
    node = _inner(node)
    if _kind(node) in ("ImplicationPropertyExpr",):
        return node.left, node.right, int(str(node.op).strip() == "|=>")
    return None, node, 0


def _inner(node: Any) -> Any:
    """Past wrappers that mean nothing: simple properties and sequences, and parentheses around them."""
    while True:
        kind = _kind(node)
        if kind in (
            "SimplePropertyExpr",
            "SimpleSequenceExpr",
            "ParenthesizedPropertyExpr",
            "ParenthesizedSequenceExpr",
        ):
            if getattr(node, "repetition", None) is not None:
                raise DataError("repetition is not supported", got=str(node).strip())
            node = node.expr
        else:
            return node


def _alternatives(node: Any, builder: _Builder) -> list[Alternative]:
    """Every way to match a sequence."""
    node = _inner(node)
    if _kind(node) == "DelayedSequenceExpr":
        ways: list[Alternative] = [()]
        if node.first is not None:
            ways = _alternatives(node.first, builder)
        for element in node.elements:
            low, high = _delay(element)
            rest = _alternatives(element.expr, builder)
            ways = [
                (*way, *((_end(way) + wait + offset, e) for offset, e in other))
                for way in ways
                for wait in range(low, high + 1)
                for other in rest
            ]
            if len(ways) > 256:
                raise DataError("the sequence has too many ways to match", got=str(node).strip())
        return ways
    if _kind(node).endswith(("SequenceExpr", "PropertyExpr")):
        raise DataError(f"{_kind(node)} is not supported", got=str(node).strip())
    return [((0, _expression(node, builder)),)]


def _end(way: Alternative) -> int:
    return max((offset for offset, _ in way), default=0)


def _delay(element: Any) -> tuple[int, int]:
    if element.range is not None:
        words = str(element.range.selector if hasattr(element.range, "selector") else element.range)
        low, _, high = words.strip().strip("[]").partition(":")
    else:
        low = high = str(element.delayVal)
    try:
        found = int(low), int(high)
    except ValueError:
        raise DataError("a delay is a number or a range of numbers", got=str(element).strip()[:60]) from None
    if not 0 <= found[0] <= found[1] <= LONGEST:
        raise DataError(f"the delay {found} is not within 0 to {LONGEST}", got=str(element).strip()[:60])
    return found


def _expression(node: Any, builder: _Builder) -> str:
    """An expression's text, with its sampled-value functions replaced by history."""
    node = _inner(node)
    if _kind(node) == "InvocationExpression":
        name = str(node.left).strip()
        arguments = [str(a).strip() for a in node.arguments.parameters if str(a).strip() not in ("", ",")]
        return _function(name, arguments, node, builder)
    try:
        count = len(node)
    except TypeError:
        return str(node)
    parts = []
    for index in range(count):
        child = node[index]
        if child is None:
            continue
        token = str(child.kind).startswith("TokenKind")
        parts.append(str(child) if token else _expression(child, builder))
    return "".join(parts)


def _function(name: str, arguments: list[str], node: Any, builder: _Builder) -> str:
    if name in _SAMPLED:
        if any("$" in a for a in arguments):
            raise DataError("nested sampled-value functions are not supported", got=str(node).strip())
        cycles = int(arguments[1]) if name == "$past" and len(arguments) > 1 and arguments[1].isdigit() else 1
        builder.past = max(builder.past, cycles)
        before = builder.delayed(arguments[0], cycles, wide=True)
        now = builder.delayed(arguments[0], 0, wide=True)
        return {
            "$past": before, "$rose": f"({now}[0] & ~{before}[0])", "$fell": f"(~{now}[0] & {before}[0])",
            "$stable": f"({now} == {before})", "$changed": f"({now} != {before})",
        }[name]  # fmt: skip
    if name in _COUNTED:
        value = arguments[0]
        most = f"((({value}) & (({value}) - 1)) == 0)"
        return most if name == "$onehot0" else f"(({value}) != 0 && {most})"
    raise DataError(f"the function {name} is not supported", got=str(node).strip())
