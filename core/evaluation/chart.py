"""Charts as SVG text: curves over steps, and a value with its interval on a scale.

Colours are CSS variables of the page that holds them, so a chart follows its light or dark theme; nothing is fetched
and no script runs. It knows numbers and labels, and nothing of runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]

WIDTH, HEIGHT = 960, 320
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 16, 36


@dataclass
class Series:
    """A named curve. style: "line" with smoothing over a faint raw line, or "dots" joined by a thin line."""

    name: str
    points: list[Point]
    style: str = "line"
    color: str = "var(--accent)"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers within [low, high], about `count` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A figure at the precision a reader can use."""
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 0.01:
        return f"{value:.4g}"
    return f"{value:.2g}"


def thin(points: Sequence[Point], most: int = 500) -> list[Point]:
    """At most `most` points: means of equal runs of neighbours."""
    size = math.ceil(len(points) / most) or 1
    runs = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]


def smooth(points: Sequence[Point], span: float | None = None) -> list[Point]:
    """Exponential moving averages from both ends, halved, so that the curve does not lag; span in points."""
    span = span or max(1.0, len(points) / 30)
    forward = _average([y for _, y in points], span)
    backward = _average([y for _, y in reversed(points)], span)[::-1]
    return [(x, (a + b) / 2) for (x, _), a, b in zip(points, forward, backward)]


def _average(values: Sequence[float], span: float) -> list[float]:
    keep, mean, weight, out = (1 - 1 / span if span > 1 else 0.0), 0.0, 0.0, []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        out.append(mean / weight)
    return out


def curves(
    series: Sequence[Series],
    *,
    x_label: str = "step",
    borders: Sequence[tuple[float, str]] = (),
    x_range: tuple[float, float] | None = None,
) -> str:
    """Curves on common axes. `borders`: places on the x axis where a new stage begins, with its name.

    The y range follows the smoothed curves, so that one outlier does not flatten the rest.
    """
    series = [s for s in series if s.points]
    if not series:
        return ""
    edges = [x for x, _ in borders[1:]]
    drawn = {id(s): _smooth_parts(thin(s.points), edges) if s.style == "line" else list(s.points) for s in series}
    xs = [x for s in series for x, _ in s.points] + list(x_range or ())
    ys = [y for points in drawn.values() for _, y in points]
    x0, x1 = min(xs), max(xs)
    y0, y1 = min(ys), max(ys)
    margin = 0.08 * (y1 - y0) or max(abs(y0) * 0.1, 0.1)
    y0, y1 = (max(0.0, y0 - margin) if y0 >= 0 else y0 - margin), y1 + margin
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def px(x: float) -> float:
        return LEFT + (width * (x - x0) / (x1 - x0) if x1 > x0 else width / 2)

    def py(y: float) -> float:
        return TOP + height * (1 - (min(max(y, y0), y1) - y0) / (y1 - y0))

    def path(points: Sequence[Point]) -> str:
        return "M" + "L".join(f"{px(x):.1f},{py(y):.1f}" for x, y in points)

    out = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(_summary(series))}">']
    for y in ticks(y0, y1):
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py(y):.1f}" y2="{py(y):.1f}"/>')
        out.append(f'<text class="tick" x="{LEFT - 8}" y="{py(y) + 4:.1f}" text-anchor="end">{number(y)}</text>')
    for x in ticks(x0, x1, 8):
        out.append(f'<text class="tick" x="{px(x):.1f}" y="{HEIGHT - 14}" text-anchor="middle">{number(x)}</text>')
    out.append(f'<text class="tick" x="{LEFT - 8}" y="{HEIGHT - 14}" text-anchor="end">{escape(x_label)}</text>')
    for x, name in borders:
        out.append(f'<line class="border" x1="{px(x):.1f}" x2="{px(x):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        out.append(f'<text class="stage" x="{px(x) + 6:.1f}" y="{TOP + 12}">{escape(name)}</text>')
    for s in series:
        if s.style == "line":
            out.append(f'<path class="raw" style="stroke:{s.color}" d="{path(thin(s.points))}"/>')
            out.append(f'<path class="curve" style="stroke:{s.color}" d="{path(drawn[id(s)])}"/>')
            continue
        out.append(f'<path class="join" style="stroke:{s.color}" d="{path(s.points)}"/>')
        for x, y in s.points:
            title = f"<title>{escape(s.name)} {number(y)} at {escape(x_label)} {number(x)}</title>"
            out.append(f'<circle r="4" cx="{px(x):.1f}" cy="{py(y):.1f}" style="fill:{s.color}">{title}</circle>')
    out.append("</svg>")
    keys = "".join(f'<span><i style="background:{s.color}"></i>{escape(s.name)}</span>' for s in series)
    return f'<figure>{"".join(out)}<figcaption class="legend">{keys}</figcaption></figure>'


def _smooth_parts(points: Sequence[Point], edges: Sequence[float]) -> list[Point]:
    """Each stage smoothed for itself: the jump between two stages is real."""
    parts: list[list[Point]] = [[] for _ in range(len(edges) + 1)]
    for point in points:
        parts[sum(point[0] >= edge for edge in edges)].append(point)
    return [point for part in parts for point in smooth(part)]


def _summary(series: Sequence[Series]) -> str:
    return "; ".join(f"{s.name} from {number(s.points[0][1])} to {number(s.points[-1][1])}" for s in series)


Interval = tuple[float, tuple[float, float] | None]


def intervals(before: Interval | None, after: Interval | None, *, width: int = 200, height: int = 34) -> str:
    """Two values with their intervals on one scale: hollow before, filled after."""
    present = [i for i in (before, after) if i is not None]
    if not present:
        return ""
    edges = [edge for value, ci in present for edge in (value, *(ci or ()))]
    low, high = min(edges), max(edges)
    room = (high - low) * 0.08 or 1.0
    low, high = low - room, high + room

    def px(value: float) -> float:
        return 8 + (width - 16) * (value - low) / (high - low)

    out = [f'<svg class="interval" viewBox="0 0 {width} {height}" aria-hidden="true">']
    for row, item, kind in ((10, before, "before"), (height - 10, after, "after")):
        if item is None:
            continue
        value, ci = item
        out.append(f'<line class="rail" x1="4" x2="{width - 4}" y1="{row}" y2="{row}"/>')
        if ci:
            out.append(f'<line class="ci {kind}" x1="{px(ci[0]):.1f}" x2="{px(ci[1]):.1f}" y1="{row}" y2="{row}"/>')
        out.append(f'<circle class="{kind}" r="4" cx="{px(value):.1f}" cy="{row}"/>')
    return "".join([*out, "</svg>"])
