"""A waveform as a picture: signals over time as SVG, the first difference marked.

Only what is asked for is drawn, a window of time at a time, so that a long run stays a small picture.
"""

from __future__ import annotations

from html import escape

from apps.rtl.vcd import Signal, Wave, bookkeeping, read_vcd, shown, table_signals

ROW, LABEL, WIDTH, HIGH = 26, 120, 900, 14
_COLOURS = {"_ref": "#2f7d4f", "_dut": "#b3541e"}


def picture(data: bytes, mismatch: dict | None = None, *, around: int = 12, width: int = WIDTH) -> str:
    """The dump as SVG: a dozen changes either side of the first difference, or the beginning without one.

    Args:
        mismatch: {"signal", "time"} of a verdict. around: distinct moments on each side.

    Raises:
        DataError: not a value change dump.
    """
    wave = read_vcd(data)
    signals = table_signals(wave, mismatch["signal"]) if mismatch else _interesting(wave)
    moments = sorted({t for s in signals for t in s.times} | {wave.end})
    centre = mismatch["time"] if mismatch else moments[min(around, len(moments) - 1)]
    at = min(range(len(moments)), key=lambda i: abs(moments[i] - centre))
    start, end = moments[max(0, at - around)], moments[min(len(moments) - 1, at + around)]
    return draw(signals, start, max(end, start + 1), mismatch["time"] if mismatch else None, width)


def _interesting(wave: Wave, most: int = 12) -> list[Signal]:
    return [s for s in wave.signals if not bookkeeping(s.name)][:most]


def draw(signals: list[Signal], start: int, end: int, mark: int | None = None, width: int = WIDTH) -> str:
    """Signals between two times; `mark` is a vertical line, and the span after it where `_ref` and `_dut` differ."""
    scale = (width - LABEL - 10) / (end - start)
    height = ROW * len(signals) + 34

    def x(time: int) -> float:
        return round(LABEL + (min(max(time, start), end) - start) * scale, 1)

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" class="graft-wave" role="img" '
             f'font-family="monospace" font-size="12">']  # fmt: skip
    if mark is not None and start <= mark <= end:
        until = _next_change(signals, mark, end)
        parts.append(f'<rect x="{x(mark)}" y="0" width="{max(2, x(until) - x(mark))}" height="{ROW * len(signals)}" '
                     'fill="#d33" opacity="0.15"/>')  # fmt: skip
        parts.append(f'<line x1="{x(mark)}" x2="{x(mark)}" y1="0" y2="{height - 18}" stroke="#d33"/>')
    for row, signal in enumerate(signals):
        parts += _trace(signal, row * ROW + 6, start, end, x)
    base = ROW * len(signals) + 14
    for time in _ticks(start, end):
        parts.append(f'<line x1="{x(time)}" x2="{x(time)}" y1="{base - 6}" y2="{base}" stroke="#888"/>')
        parts.append(f'<text x="{x(time)}" y="{base + 14}" text-anchor="middle" fill="#888">{time}</text>')
    return "".join(parts) + "</svg>"


def _trace(signal: Signal, top: int, start: int, end: int, x) -> list[str]:
    colour = next((c for ending, c in _COLOURS.items() if signal.name.endswith(ending)), "#3b6ea8")
    label = signal.name.replace("_ref", " expected").replace("_dut", " got")
    parts = [f'<text x="4" y="{top + HIGH - 2}" fill="currentColor">{escape(label[:16])}</text>']
    times = [start, *[t for t in signal.times if start < t < end], end]
    low, high = top + HIGH, top
    previous = None
    for begin, finish in zip(times, times[1:]):
        value = signal.at(begin)
        a, b = x(begin), x(finish)
        if signal.width == 1 and value in "01":
            y = high if value == "1" else low
            if previous is not None and previous != y:
                parts.append(f'<line x1="{a}" x2="{a}" y1="{previous}" y2="{y}" stroke="{colour}"/>')
            parts.append(f'<line x1="{a}" x2="{b}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="1.5"/>')
            previous = y
        else:
            fill = "#d9a441" if set(value) & set("xz") else "none"
            parts.append(f'<rect x="{a}" y="{high}" width="{max(1, round(b - a, 1))}" height="{HIGH}" fill="{fill}" '
                         f'fill-opacity="0.35" stroke="{colour}"/>')  # fmt: skip
            if b - a > 8 * len(shown(value)):
                parts.append(f'<text x="{(a + b) / 2}" y="{low - 3}" text-anchor="middle" fill="currentColor" '
                             f'font-size="11">{escape(shown(value))}</text>')  # fmt: skip
            previous = None
    return parts


def _next_change(signals: list[Signal], mark: int, end: int) -> int:
    later = [t for s in signals for t in s.times if t > mark]
    return min([*later, end])


def _ticks(start: int, end: int, count: int = 6) -> list[int]:
    step = max(1, (end - start) // count)
    return list(range(start, end + 1, step))
