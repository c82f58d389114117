"""The two simulators: which commands compile and run a design, and what their messages mean.

Icarus Verilog is quick and reads most testbenches; Verilator reads some that it cannot. They treat unknown values
differently, so a problem is judged by one of them, always the same. All runs go through the sandbox.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from apps.rtl.syntax import Diagnostic
from core.execution import ExecCache, ExecResult, Policy, Sandbox, Step, tool

Engine = Literal["iverilog", "verilator"]
ENGINES: tuple[Engine, ...] = ("iverilog", "verilator")
WAVE = "wave.vcd"


@dataclass(frozen=True)
class Limits:
    """Seconds for compiling and for simulating."""

    compile_s: float = 20.0
    simulate_s: float = 30.0


def policy(engine: Engine, limits: Limits, level: str = "strict") -> Policy:
    """What a simulation may use."""
    base = Policy(
        wall_s=limits.simulate_s, cpu_s=limits.simulate_s + limits.compile_s, mem_mb=768, tmp_mb=48, fsize_mb=24,
        max_procs=24, max_output_kb=512, max_artifact_mb=24, level=level,  # type: ignore[arg-type]
    )  # fmt: skip
    if engine == "verilator":
        return replace(base, mem_mb=2048, tmp_mb=192, fsize_mb=96, cpu_s=120, max_inodes=8192)
    return base


def versions(engine: Engine) -> dict[str, str]:
    """Name → version of the programs that an engine's verdicts depend on."""
    names = ("iverilog", "vvp") if engine == "iverilog" else ("verilator", "g++")
    return {name: f"{tool(name).version} ({tool(name).digest})" for name in names}


def steps(engine: Engine, top: str, files: list[str], limits: Limits, wave: bool = False) -> list[Step]:
    """Compile `files` with `top` as the only root, then simulate."""
    if engine == "iverilog":
        return [
            Step(["iverilog", "-Wall", "-Winfloop", "-Wno-timescale", "-g2012", "-s", top, "-o", "sim.vvp", *files],
                 wall_s=limits.compile_s),
            Step(["vvp", "-n", "sim.vvp"], wall_s=limits.simulate_s, only_if=0),
        ]  # fmt: skip
    return [
        Step(["verilator", "--binary", "--timing", *(["--trace"] if wave else []), "-Wno-fatal", "-O3", "--top-module",
              top, "-Mdir", "obj", "-o", "sim", "-CFLAGS", "-O0", *files], wall_s=max(limits.compile_s, 90)),
        Step(["obj/sim"], wall_s=limits.simulate_s, only_if=0),
    ]  # fmt: skip


def simulate(
    box: Sandbox,
    engine: Engine,
    top: str,
    sources: Mapping[str, str],
    data: Mapping[str, str] | None = None,
    *,
    limits: Limits | None = None,
    wave: bool = False,
    cache: ExecCache | None = None,
) -> ExecResult:
    """Compile and run `sources` (file name → text, compiled in this order) beside the files in `data`.

    Args:
        wave: also bring back `wave.vcd`.
    """
    commands = steps(engine, top, list(sources), limits or Limits(), wave)
    files: dict[str, str | bytes] = {**(data or {}), **sources}
    if engine == "verilator":
        files |= _runtime(box, wave)
    collect = [WAVE] if wave else []
    return cache.run(box, commands, files, collect) if cache is not None else box.run(commands, files, collect)


_RUNTIME: dict[tuple[str, bool], dict[str, bytes]] = {}
_LOCK = threading.Lock()
_SMALLEST = "module smallest; initial begin #1 $finish; end endmodule\n"


def _runtime(box: Sandbox, wave: bool) -> dict[str, str | bytes]:
    """Verilator's own runtime as object files, compiled once: most of the cost of a small design."""
    with _LOCK:
        if (box.backend, wave) not in _RUNTIME:
            names = [f"obj/verilated{part}.o" for part in ("", "_timing", "_threads", *(["_vcd_c"] if wave else []))]
            commands = steps("verilator", "smallest", ["s.sv"], Limits(compile_s=180), wave)[:1]
            made = box.run(commands, {"s.sv": _SMALLEST}, names)
            _RUNTIME[box.backend, wave] = made.artifacts if made.ok else {}
        return dict(_RUNTIME[box.backend, wave])


_ICARUS = re.compile(r"^(?P<file>[\w.]+):(?P<line>\d+): *(?P<message>.*)$")
_VERILATOR = re.compile(r"^%(?P<kind>Error|Warning)[-\w]*: (?P<file>[\w./]+):(?P<line>\d+):\d+: (?P<message>.*)$")


def diagnostics(engine: Engine, text: str, file: str) -> list[Diagnostic]:
    """The compiler's messages about `file`."""
    found = []
    for line in text.splitlines():
        match = (_ICARUS if engine == "iverilog" else _VERILATOR).match(line)
        if match is None or match["file"].rpartition("/")[2] != file:
            continue
        warning = "warning" in match["message"] or (engine == "verilator" and match["kind"] == "Warning")
        message = re.sub(r"^(error|warning|sorry): *", "", match["message"]).strip()
        found.append(Diagnostic(int(match["line"]), message, not warning))
    return found
