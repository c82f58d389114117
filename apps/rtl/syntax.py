"""What the slang parser knows of a design: its ports, and diagnostics with their lines.

Parsing is not running, so it happens in this process; where pyslang is not installed ports are not compared, and the
compiler's own messages are the diagnostics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from apps.rtl.macros import expanded

LONGEST = 1 << 18
"""Tokens after the preprocessor."""


@dataclass(frozen=True)
class Port:
    """A port of a module: direction is in, out or inout; width in bits."""

    name: str
    direction: str
    width: int

    def __str__(self) -> str:
        return f"{self.direction}put {self.name}[{self.width}]" if self.direction != "inout" else f"inout {self.name}"


@dataclass(frozen=True)
class Diagnostic:
    """A message of a parser or compiler about one place of the code."""

    line: int
    message: str
    error: bool = True

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}"


def available() -> bool:
    """Whether pyslang is installed (extra `rtl`)."""
    import importlib.util

    return importlib.util.find_spec("pyslang") is not None


def ports(code: str, top: str) -> list[Port] | None:
    """The ports of the module `top`, in order; None when they cannot be known (no parser, syntax errors, no module)."""
    if not available():
        return None
    from pyslang import Bag, ast

    tree = _tree(code)
    if isinstance(tree, str) or any(d.isError() for d in tree.diagnostics):
        return None
    options = ast.CompilationOptions()
    options.topModules = {top}
    compilation = ast.Compilation(Bag([options]))
    compilation.addSyntaxTree(tree)
    for instance in compilation.getRoot().topInstances:
        if instance.name == top:
            return [Port(p.name, str(p.direction).rpartition(".")[2].lower(), _width(p))
                    for p in instance.body.portList if hasattr(p, "direction")]  # fmt: skip
    return None


def _tree(code: str) -> Any:
    """The syntax tree, or why there is none: the parser must not be made to eat the memory of this process."""
    from pyslang import syntax

    if expanded(code) > LONGEST:
        return f"its macros expand into more than {LONGEST} tokens"
    try:
        return syntax.SyntaxTree.fromText(code)
    except RuntimeError:  # the parser counts the depth of its recursion
        return "it is nested too deeply to be parsed"


def _width(port: Any) -> int:
    return int(port.type.bitWidth)


def port_differences(found: list[Port], wanted: list[Port]) -> list[str]:
    """How the ports of a module differ from those asked for, one line each; order does not matter."""
    have = {port.name: port for port in found}
    lines = []
    for port in wanted:
        other = have.pop(port.name, None)
        if other is None:
            lines.append(f"port '{port.name}' is missing")
        elif other.direction != port.direction:
            lines.append(f"port '{port.name}' is an {other.direction}put, not an {port.direction}put")
        elif other.width != port.width:
            lines.append(f"port '{port.name}' is {other.width} bits wide, not {port.width}")
    return lines + [f"port '{name}' is not asked for" for name in have]


def diagnostics(code: str, most: int = 8) -> list[Diagnostic]:
    """The parser's first errors. Empty without pyslang, and for code that it accepts."""
    if not available():
        return []
    from pyslang import DiagnosticEngine

    tree = _tree(code)
    if isinstance(tree, str):
        return [Diagnostic(1, tree)]
    manager = tree.sourceManager
    found: list[Diagnostic] = []
    for one in tree.diagnostics:
        if one.isError() and len(found) < most:
            message = DiagnosticEngine.reportAll(manager, [one]).split("error: ")[-1].split("\n")[0]
            found.append(Diagnostic(manager.getLineNumber(one.location), message))
    return found
