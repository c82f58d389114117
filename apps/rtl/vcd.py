"""Value change dumps: a reader for what simulators write, and the few samples around a difference.

IEEE 1364's VCD is a header of scopes and variables, then times and changes. The reader streams: it keeps every change
of the wanted signals up to a limit, and nothing else.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

from core.errors import DataError

_NONCE = re.compile(r"_n[0-9a-f]{16}\b")


@dataclass
class Signal:
    """A variable with its changes: `times` ascending, `values` as strings of 0, 1, x, z (or a real number)."""

    name: str
    scope: str
    width: int
    times: list[int] = field(default_factory=list)
    values: list[str] = field(default_factory=list)

    def at(self, time: int) -> str:
        """The value at `time`; "x" before the first change."""
        index = bisect_right(self.times, time) - 1
        return self.values[index] if index >= 0 else "x" * self.width


@dataclass
class Wave:
    """Signals of a dump, in their order, and the last time in it."""

    signals: list[Signal]
    end: int
    timescale: str = ""
    truncated: bool = False

    def find(self, name: str) -> Signal | None:
        """The first signal called `name`."""
        return next((s for s in self.signals if s.name == name), None)


def read_vcd(data: bytes, most_changes: int = 200_000) -> Wave:
    """Parse a dump; changes after `most_changes` are left out (`truncated`).

    Raises:
        DataError: not a dump.
    """
    words = _words(data)
    by_code: dict[str, list[Signal]] = {}
    signals: list[Signal] = []
    scopes: list[str] = []
    timescale = ""
    for word in words:
        if word == "$enddefinitions":
            _until_end(words)
            break
        if word in ("$scope", "$var", "$upscope", "$timescale", "$date", "$version", "$comment"):
            parts = _until_end(words)
            if word == "$scope" and len(parts) >= 2:
                scopes.append(parts[1])
            elif word == "$upscope" and scopes:
                scopes.pop()
            elif word == "$timescale":
                timescale = "".join(parts)
            elif word == "$var" and len(parts) >= 4:
                name = _NONCE.sub("", parts[3])
                signal = Signal(name, _NONCE.sub("", ".".join(scopes)), int(parts[1]))
                signals.append(signal)
                by_code.setdefault(parts[2], []).append(signal)
        elif not signals:
            raise DataError("not a value change dump", got=word)
    time = changes = 0
    for word in words:
        first = word[0]
        if first == "#":
            time = int(word[1:])
            continue
        if first == "$":
            continue
        if first in "bBrR":
            value, code = word[1:], next(words, "")
        else:
            value, code = first, word[1:]
        for signal in by_code.get(code, ()):
            if first in "bB":
                fill = value[0] if value[0] in "xzXZ" else "0"
                value = value.rjust(signal.width, fill)
            if not signal.values or signal.values[-1] != value.lower():
                signal.times.append(time)
                signal.values.append(value.lower())
        changes += 1
        if changes >= most_changes:
            return Wave(signals, time, timescale, True)
    return Wave(signals, time, timescale)


def _words(data: bytes) -> Iterator[str]:
    for line in data.decode("latin-1").split("\n"):
        yield from line.split()


def _until_end(words: Iterator[str]) -> list[str]:
    parts = []
    for word in words:
        if word == "$end":
            break
        parts.append(word)
    return parts


def shown(value: str) -> str:
    """A value for people: one bit as it is, more in hexadecimal, with x where a digit is not known."""
    if len(value) <= 1 or not set(value) <= set("01xz"):
        return value
    digits = [value[max(0, i - 4) : i] for i in range(len(value), 0, -4)][::-1]
    return "".join(f"{int(d, 2):x}" if set(d) <= {"0", "1"} else ("z" if set(d) == {"z"} else "x") for d in digits)


def mismatch_table(data: bytes, time: int, signal: str, around: int = 3) -> list[str]:
    """Lines of a small table: the inputs, what was expected and what came, a few edges around `time`."""
    try:
        wave = read_vcd(data)
    except (DataError, ValueError, IndexError):
        return []
    chosen = table_signals(wave, signal)
    if not chosen:
        return []
    moments = sorted({t for s in chosen for t in s.times})
    at = max(0, bisect_right(moments, time) - 1)
    moments = moments[max(0, at - around) : at + around + 1]
    rows = [["time", *(s.name for s in chosen)]]
    rows += [[f"{'>' if t == moments[min(around, at)] else ''}{t}", *(shown(s.at(t)) for s in chosen)] for t in moments]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows]


def bookkeeping(name: str) -> bool:
    """Whether a signal belongs to a testbench's own counting, and not to the design's interface."""
    own = ("tb_mismatch", "tb_match", "strobe", "i", "errors", "samples", "vectors")
    return name in own or name.endswith("_check") or name.startswith(("wavedrom", "errors_", "first_"))


def table_signals(wave: Wave, signal: str, most: int = 8) -> list[Signal]:
    """Inputs, then expected and got of `signal` (the testbench calls them `signal_ref` and `signal_dut`)."""
    outputs = {s.name.removesuffix(end) for s in wave.signals for end in ("_ref", "_dut") if s.name.endswith(end)}
    pair = [s for name in (f"{signal}_ref", f"{signal}_dut") if (s := wave.find(name)) is not None]
    inputs, seen = [], set()
    for one in wave.signals:
        plain = one.name.removesuffix("_ref").removesuffix("_dut")
        if plain in outputs or bookkeeping(one.name) or one.name in seen:
            continue
        seen.add(one.name)
        inputs.append(one)
    return [*inputs[: most - len(pair)], *pair]
