"""The verdict on a piece of Verilog that one can trust.

    harness = RtlHarness()
    harness.verify(example, answer).letter

In strict mode the code is taken out of the answer, held to a policy, compiled with a testbench under private names and
believed only if the run is the reference's run: as many samples, the same end, the closing line with its nonce. The
stock rules accept modules that read the reference, instantiate it or print the closing line and leave; `mode` "v1",
"v2" and "rtllm" reproduce those rules, so that published figures stay comparable.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from apps.rtl import engines, source
from apps.rtl.engines import Engine, Limits
from apps.rtl.example import RtlExample
from apps.rtl.macros import expanded
from apps.rtl.private import Bench, macros, plain_name, private_bench, protocol, renonced
from apps.rtl.syntax import LONGEST, Diagnostic, port_differences, ports
from apps.rtl.syntax import diagnostics as parse_errors
from apps.rtl.verdict import RtlVerdict, letter_v2, passed_v1
from core.config.files import write_json
from core.errors import ConfigError, DataError
from core.execution import ExecCache, ExecPool, ExecResult, Sandbox, Step

Mode = Literal["strict", "v1", "v2", "rtllm"]
MODES: tuple[Mode, ...] = ("strict", "v1", "v2", "rtllm")
KEPT = 4096
"""Testbenches under private names that a harness remembers."""


@dataclass(frozen=True)
class GoldenFacts:
    """What the reference's own run looked like. `problem` says why there is none: the task cannot be judged.

    Some testbenches print TIMEOUT at the end of every run, the reference's too (`says_timeout`).
    """

    engine: Engine = "iverilog"
    samples: int | None = None
    passes: int = 0
    end: str = ""
    problem: str = ""
    says_timeout: bool = False


class RtlHarness:
    """Judges answers. Safe to share between threads.

    Args:
        mode: strict, or one of the official rules. engine: "auto" takes Icarus, and Verilator for problems whose
            reference Icarus cannot run; it is decided for each problem once.
        level: least isolation. limits: seconds. cache: a folder of known runs, facts and the secret of the nonces.
        workers: verifications at the same time.

    Raises:
        ConfigError: an unknown mode or engine. SandboxError: no isolation as asked. ToolMissing: no simulator.
    """

    def __init__(
        self,
        *,
        mode: Mode = "strict",
        engine: Literal["auto", "iverilog", "verilator"] = "auto",
        level: str = "strict",
        limits: Limits | None = None,
        cache: str | Path | None = None,
        workers: int | None = None,
    ) -> None:
        if mode not in MODES or engine not in ("auto", *engines.ENGINES):
            raise ConfigError(f"unknown mode '{mode}' or engine '{engine}'", hint=f"modes: {', '.join(MODES)}")
        self.mode, self.engine, self.limits, self.workers = mode, engine, limits or Limits(), workers
        first: Engine = "verilator" if engine == "verilator" else "iverilog"
        engines.versions(first)
        self._boxes = {name: Sandbox.best(engines.policy(name, self.limits, level)) for name in engines.ENGINES}
        self.folder = Path(cache) if cache is not None else None
        self.cache = ExecCache(self.folder / "runs") if self.folder is not None else None
        self._secret = _secret(self.folder)
        self._facts: dict[str, GoldenFacts] = {}
        self._benches: dict[str, Bench] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    @property
    def level(self) -> str:
        return self._boxes["iverilog"].level

    def versions(self) -> dict[str, str]:
        """Programs and versions that the verdicts rest on."""
        found = dict(engines.versions("iverilog")) if self.engine != "verilator" else {}
        if any(f.engine == "verilator" for f in self._facts.values()) or self.engine == "verilator":
            found |= engines.versions("verilator")
        return found

    # ---- verdicts ----------------------------------------------------------------------------------------------

    def verify(self, example: RtlExample, answer: str, *, wave: bool = False) -> RtlVerdict:
        """The verdict on a model's answer. A bad answer is a letter, never an exception.

        Args:
            wave: also bring back the waveform, for pictures.
        """
        start = time.perf_counter()
        found = self._verify(example, answer, wave)
        return replace(found, seconds=time.perf_counter() - start)

    def verify_many(self, pairs: Iterable[tuple[RtlExample, str]], ahead: int | None = None) -> Iterator[RtlVerdict]:
        """Verdicts in order, several at a time; at most `ahead` pairs are read before their verdicts are due."""
        with ExecPool(self.workers) as pool:
            yield from pool.imap(lambda pair: self.verify(*pair), pairs, ahead=ahead)

    def _verify(self, example: RtlExample, answer: str, wave: bool) -> RtlVerdict:
        code = source.extract(answer, example.header)
        if (reason := source.problems_of(code)) is not None:
            return RtlVerdict("S", code="" if not code.strip() else code, detail=reason)
        if self.mode != "strict":
            return self._official(example, code)
        if (refused := self._refused(example, code)) is not None:
            return refused
        if example.testbench is None:
            return self._compiles(example, code)
        facts = self.facts(example)
        if facts.problem:
            return RtlVerdict("I", code=code, engine=facts.engine, detail=facts.problem)
        bench = self._bench(example, code)
        run = self._run(example, bench, code, facts.engine, wave)
        return _judged(code, run, bench, facts)

    def _refused(self, example: RtlExample, code: str) -> RtlVerdict | None:
        """A verdict X where the policy refuses the code."""
        allow = frozenset(re.findall(r"\$u?random\b", example.spec + example.header))
        found = source.violations(code, allow, macros(example.testbench or ""))
        if found:
            marks = tuple(Diagnostic(v.line, v.what) for v in found)
            return RtlVerdict("X", code=code, diagnostics=marks, detail=found[0].what)
        if expanded(code) > LONGEST:
            return RtlVerdict("X", code=code, detail=f"its macros expand into more than {LONGEST} tokens")
        names = source.module_names(code)
        if parse_errors(code, 1):
            return None
        if example.top not in names:
            others = ", ".join(names) or "no module"
            return RtlVerdict("X", code=code, detail=f"there is no module '{example.top}'; the answer has {others}")
        if names.count(example.top) > 1:
            return RtlVerdict("X", code=code, detail=f"module '{example.top}' is defined twice")
        wanted = self._wanted_ports(example)
        have = ports(code, example.top) if wanted is not None else None
        if wanted is not None and have is not None and (wrong := port_differences(have, wanted)):
            return RtlVerdict("X", code=code, detail="; ".join(wrong[:3]))
        return None

    @staticmethod
    def _wanted_ports(example: RtlExample):
        if example.header and (found := ports(f"{example.header.rstrip()}\nendmodule\n", example.top)):
            return found
        return ports(example.reference, example.reference_top) if example.reference else None

    def _compiles(self, example: RtlExample, code: str) -> RtlVerdict:
        engine: Engine = "verilator" if self.engine == "verilator" else "iverilog"
        commands = engines.steps(engine, example.top, ["dut.sv"], self.limits)[:1]
        box = self._boxes[engine]
        run = self.cache.run(box, commands, {"dut.sv": code}) if self.cache else box.run(commands, {"dut.sv": code})
        log = run.last.out + run.last.err
        marks = tuple(engines.diagnostics(engine, log, "dut.sv"))
        if run.ok:
            return RtlVerdict(".", code=code, engine=engine, detail="it compiles; there is no testbench", log=log)
        return RtlVerdict(_compile_letter(log, code), code=code, diagnostics=marks, engine=engine, log=log)

    def _run(self, example: RtlExample, bench: Bench, code: str, engine: Engine, wave: bool) -> ExecResult:
        files = {**bench.before, "dut.sv": code, **bench.after}
        return engines.simulate(
            self._boxes[engine], engine, bench.top, files, example.files,
            limits=self.limits, wave=wave, cache=self.cache,
        )  # fmt: skip

    def elaborate(self, sources: Mapping[str, str]) -> ExecResult:
        """Icarus on several files together, all modules that nothing instantiates as roots; nothing is simulated."""
        command = ["iverilog", "-Wall", "-Wno-timescale", "-g2012", "-o", "all.vvp", *sources]
        return self._boxes["iverilog"].run([Step(command, wall_s=self.limits.compile_s)], dict(sources))

    # ---- the reference -----------------------------------------------------------------------------------------

    def facts(self, example: RtlExample) -> GoldenFacts:
        """The reference's run, made once and kept. Raises `ToolMissing` when the engine it needs is not installed."""
        with self._lock:
            lock = self._locks.setdefault(example.key, threading.Lock())
        with lock:
            if example.key not in self._facts:
                self._facts[example.key] = self._known_facts(example) or self._make_facts(example)
            return self._facts[example.key]

    def _facts_file(self, example: RtlExample) -> Path | None:
        if self.folder is None:
            return None
        tools = hashlib.sha256(json.dumps([self.engine, *engines.versions("iverilog").values()]).encode())
        return self.folder / "facts" / f"{example.key}-{tools.hexdigest()[:8]}.json"

    def _known_facts(self, example: RtlExample) -> GoldenFacts | None:
        place = self._facts_file(example)
        if place is None or not place.is_file():
            return None
        return GoldenFacts(**json.loads(place.read_text(encoding="utf-8")))

    def _make_facts(self, example: RtlExample) -> GoldenFacts:
        found = self._measure_facts(example)
        if (place := self._facts_file(example)) is not None:
            write_json(place, asdict(found))
        return found

    def _measure_facts(self, example: RtlExample) -> GoldenFacts:
        if example.reference is None:
            return GoldenFacts(problem="there is a testbench but no reference to take the facts from")
        if protocol(example.testbench or "") is None:
            return GoldenFacts(problem="the testbench reports neither 'Mismatches: …' nor 'Your Design Passed'")
        code = reference_as_candidate(example)
        reasons = []
        chosen = engines.ENGINES if self.engine == "auto" else (self.engine,)
        for engine in chosen:
            bench = self._bench(example, code)
            run = self._run(example, bench, code, engine, False)
            facts, reason = _facts_of(run, bench, engine)
            if facts is not None:
                return facts
            reasons.append(f"{engine}: {reason}")
        return GoldenFacts(problem="the reference itself fails (" + "; ".join(reasons) + ")")

    def _bench(self, example: RtlExample, code: str) -> Bench:
        """The private testbench for this code. The sources are taken apart once, under a nonce that is never shown."""
        if example.key not in self._benches:
            if len(self._benches) >= KEPT:
                self._benches.clear()
            self._benches[example.key] = private_bench(example, f"n{secrets.token_hex(8)}")
        return renonced(self._benches[example.key], self._nonce(example, code))

    def _nonce(self, example: RtlExample, code: str) -> str:
        """Unknown to whoever wrote the code, and the same when the same code comes again: so a run can be cached."""
        return "n" + hmac.new(self._secret, (example.key + code).encode(), hashlib.sha256).hexdigest()[:16]

    # ---- the official rules ------------------------------------------------------------------------------------

    def _official(self, example: RtlExample, code: str) -> RtlVerdict:
        if example.testbench is None:
            raise DataError("the official rules need a testbench", field="testbench")
        engine: Engine = "verilator" if self.engine == "verilator" else "iverilog"
        files = {"sample.sv": code, "test.sv": example.testbench}
        if example.reference_top not in source.module_names(example.testbench) and self.mode == "v2":
            files["ref.sv"] = example.reference or ""
        if self.mode == "v1":
            files = {"test.sv": f"{example.testbench}\n{code}\n"}
        run = engines.simulate(
            self._boxes[engine], engine, example.testbench_top, files, example.files, limits=self.limits,
            cache=self.cache,
        )  # fmt: skip
        out = "".join(s.out for s in run.steps)
        err = "".join(s.err for s in run.steps)
        if self.mode == "v1":
            passed, words = (False, "timed out") if run.status == "timeout" else passed_v1(out, err)
            letter = "." if passed else ("T" if run.status == "timeout" else "R")
            return RtlVerdict(letter, code=code, engine=engine, detail=words, log=err + out)
        if self.mode == "rtllm":
            letter = "." if run.steps[0].rc == 0 and "Pass" in out else ("R" if run.steps[0].rc == 0 else "C")
            return RtlVerdict(letter, code=code, engine=engine, log=err + out)
        log = "".join(s.err + s.out for s in run.steps) + ("\nTIMEOUT" if run.status == "timeout" else "")
        letter, mismatches, samples = letter_v2(log, code)
        return RtlVerdict(letter, mismatches, samples, code, engine=engine, log=log)


def reference_as_candidate(example: RtlExample) -> str:
    """The reference under the name that a candidate must have."""
    return source.renamed(example.reference or "", {example.reference_top: example.top})


def _secret(folder: Path | None) -> bytes:
    if folder is None:
        return secrets.token_bytes(32)
    place = folder / "secret"
    if not place.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        place.touch(mode=0o600)
        place.write_bytes(secrets.token_bytes(32))
    return place.read_bytes()


def _log(run: ExecResult, bench: Bench) -> str:
    return plain_name("".join(step.err + step.out for step in run.steps), bench.nonce)


def _report(run: ExecResult, nonce: str) -> tuple[int | None, int | None, int, str]:
    """Mismatches, samples, closing lines and end time, from the lines that carry the nonce and from no others."""
    out = run.last.out
    counts = re.findall(rf"^Mismatches_{nonce}: (\d+) in (\d+) samples$", out, re.MULTILINE)
    ends = re.findall(rf"^graft_{nonce} end (\S+)$", out, re.MULTILINE)
    mismatches, samples = (int(counts[0][0]), int(counts[0][1])) if len(counts) == 1 else (None, None)
    return mismatches, samples, out.count(f"Passed {nonce}"), ends[0] if len(ends) == 1 else ""


def _facts_of(run: ExecResult, bench: Bench, engine: Engine) -> tuple[GoldenFacts | None, str]:
    if run.status != "ok":
        lines = [line for line in _log(run, bench).splitlines() if "rror" in line or "sorry" in line]
        return None, f"{run.status}, {lines[0][:160]}" if lines else str(run.status)
    mismatches, samples, passes, end = _report(run, bench.nonce)
    late = "TIMEOUT" in run.last.out
    if samples is not None and mismatches == 0 and end:
        return GoldenFacts(engine, samples, passes, end, says_timeout=late), ""
    if samples is None and passes and end:
        return GoldenFacts(engine, None, passes, end, says_timeout=late), ""
    return None, f"{mismatches} mismatches in {samples} samples" if samples is not None else "it does not pass"


def _judged(code: str, run: ExecResult, bench: Bench, facts: GoldenFacts) -> RtlVerdict:
    """The letter of a strict run."""
    log = _log(run, bench)
    marks = tuple(engines.diagnostics(facts.engine, log, "dut.sv"))
    wave = run.artifacts.get(engines.WAVE)
    common: dict[str, Any] = {"code": code, "diagnostics": marks, "engine": facts.engine, "log": log}
    common["cached"] = run.cached
    if run.status in ("sandbox_error", "tool_missing"):
        return RtlVerdict("E", detail=run.why or run.last.err[:200], **common)
    if not run.steps:
        return RtlVerdict("E", detail=f"the sandbox ended before its first step: {run.status}", **common)
    if run.steps[0].status != "ok":
        if run.steps[0].status != "nonzero":
            return RtlVerdict("C", detail=f"the compiler was stopped: {run.steps[0].status}", **common)
        if not any(mark.error for mark in marks):  # the compiler blames the file that follows
            common["diagnostics"] = (*marks, *parse_errors(code, 4))
        return RtlVerdict(_compile_letter(log, code), **common)
    mismatches, samples, passes, end = _report(run, bench.nonce)
    counts: dict[str, Any] = {"mismatches": mismatches, "samples": samples, "wave": wave, **common}
    if run.status == "timeout":
        return RtlVerdict("T", detail="the simulation does not end", **counts)
    if run.status != "ok":
        return RtlVerdict("R", detail=f"the simulation was stopped: {run.status}", **counts)
    said = log if facts.engine == "iverilog" else plain_name(run.last.out, bench.nonce)
    letter, _, _ = letter_v2(said.replace("TIMEOUT", "") if facts.says_timeout else said, code)
    if facts.samples is None:
        failed = letter if letter in "nwT" else ("r" if letter == "r" else "R")
        letter = "." if passes == facts.passes and letter not in "nwT" else failed
    elif letter == "." and (mismatches != 0 or samples is None):
        letter = "R"
    if letter == "." and (samples != facts.samples or end != facts.end):
        took = f"{samples} samples until {end or 'no end'}, the reference {facts.samples} until {facts.end}"
        return RtlVerdict("R", detail=f"it is not the reference's run: {took}", **counts)
    return RtlVerdict(letter, mismatch=_first_mismatch(log), **counts)


def _compile_letter(log: str, code: str) -> str:
    letter, _, _ = letter_v2(log, code)
    return letter if letter in "Se0nwmpc" else "C"


def _first_mismatch(log: str) -> dict | None:
    """The earliest difference that the testbench's hints name."""
    found = re.findall(r"Output '(\w+)' has (\d+) mismatches\. First mismatch occurred at time (\d+)", log)
    if not found:
        return None
    signal, count, at = min(found, key=lambda hint: int(hint[2]))
    return {"signal": signal, "time": int(at), "mismatches": int(count)}
