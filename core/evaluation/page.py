"""One HTML page that tells a run: what was planned, what was learnt, what it changed, and how to do it again.

The page is a single file without scripts, fonts or links, so it can be sent by mail and read in ten years. It is made
from the files of the run folder alone; a part whose file is missing or torn says so in its place. All text of the run,
which may hold anybody's data, is escaped.
"""

from __future__ import annotations

import time
from html import escape
from pathlib import Path
from typing import Any

from core.config.files import read_json, write_text
from core.config.run_folder import RunFolder
from core.errors import GraftError
from core.evaluation import chart
from core.evaluation.examples import examples_section
from core.evaluation.history import History, read_history
from core.evaluation.report import Metric, Report

Part = tuple[Any, str | None]


def write_report_page(run: RunFolder) -> Path:
    """Write report.html into the run folder and return its path. Raises `GraftError` only when it cannot be written."""
    path = run.path / "report.html"
    write_text(path, render_page(run))
    return path


def render_page(run: RunFolder) -> str:
    """The page as text."""
    info, missing_info = _json(run, "run.json")
    info = info if isinstance(info, dict) else {}
    history = read_history(run.read_metrics())
    before, after = _report(run, "before"), _report(run, "after")
    stages = _stages(run)
    sections = [
        _tiles(info, history, before[0], after[0], stages),
        "" if missing_info is None else f"<section>{_missing(missing_info)}</section>",
        _results(before, after, run),
        _curves(history, after[0]),
        examples_section(before[0], after[0]),
        _plan(run, stages),
        _recipe(run, info, after[0]),
    ]
    title = f"{info.get('recipe', run.path.name)} · {info.get('app', 'run')}"
    style = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>\n{style}</style></head>\n"
        f"<body><main>{_header(run, info)}{''.join(sections)}{_footer(run)}</main></body></html>\n"
    )


def _json(run: RunFolder, name: str) -> Part:
    """A file of the run, or why it cannot be shown."""
    try:
        return read_json(run.path / name), None
    except (GraftError, OSError) as error:
        return None, f"{name}: {getattr(error, 'what', error)}"


def _report(run: RunFolder, when: str) -> Part:
    try:
        return Report.load(run.eval_dir(when)), None
    except (GraftError, OSError, TypeError, ValueError) as error:
        return None, f"eval/{when}/report.json: {getattr(error, 'what', error)}"


def _missing(reason: str) -> str:
    return f'<p class="missing">{escape(reason)}</p>'


def _header(run: RunFolder, info: dict[str, Any]) -> str:
    status = str(info.get("status", "unknown"))
    created = info.get("created")
    facts = [
        f"run <code>{escape(str(info['id']))}</code>" if "id" in info else "",
        f"seed {escape(str(info['seed']))}" if "seed" in info else "",
        time.strftime("%Y-%m-%d %H:%M", time.localtime(created)) if isinstance(created, (int, float)) else "",
        f"<code>{escape(str(run.path))}</code>",
    ]
    failure = _missing(str(info["error"])) if info.get("error") else ""
    return (
        f'<header><div class="eyebrow">{escape(str(info.get("app", "run")))}</div>'
        f"<h1>{escape(str(info.get('recipe', run.path.name)))}</h1>"
        f'<div class="facts"><span class="badge {escape(status)}">{escape(status)}</span>'
        f"{''.join(f'<span>{fact}</span>' for fact in facts if fact)}</div>{failure}</header>"
    )


def _tiles(
    info: dict[str, Any], history: History, before: Report | None, after: Report | None, stages: list[dict[str, Any]]
) -> str:
    tiles = []
    if after is not None and (main := after.metrics.get(after.primary)) and main.value is not None:
        old = before.metrics.get(after.primary) if before else None
        was = f'<span class="was">{_figure(old)} → </span>' if old and old.value is not None else ""
        note = f"n = {main.n:,}" + (f", 95 % interval {_ci(main)}" if main.ci95 else "")
        tiles.append(_tile(after.primary, was + _figure(main), note, main=True))
    if history.train:
        first, last = history.train[0][1], chart.smooth(history.train)[-1][1]
        tiles.append(_tile("training loss", f"{last:.3f}", f"from {first:.3f}"))
    seen = sum(s["tokens_seen"] for s in stages if isinstance(s.get("tokens_seen"), (int, float)))
    if history.train:
        note = f"{_short(seen)} tokens learnt from" if seen else ""
        tiles.append(_tile("steps", f"{history.train[-1][0]:,.0f}", note))
    if "tokens_per_s" in history.last:
        note = f"{history.last['peak_gib']:.2f} GiB peak" if "peak_gib" in history.last else ""
        tiles.append(_tile("tokens a second", _short(history.last["tokens_per_s"]), note))
    if isinstance(info.get("seconds"), (int, float)):
        tiles.append(_tile("wall time", _duration(info["seconds"]), "evaluation included"))
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _tile(name: str, figure: str, note: str, main: bool = False) -> str:
    kind = "tile main" if main else "tile"
    return f'<div class="{kind}"><b>{escape(name)}</b><strong>{figure}</strong><small>{escape(note)}</small></div>'


def _results(before: Part, after: Part, run: RunFolder) -> str:
    reports = [report for report in (before[0], after[0]) if report is not None]
    notes = "".join(_missing(reason) for _, reason in (before, after) if reason)
    body = ""
    if reports:
        names = list(dict.fromkeys(name for report in reversed(reports) for name in report.metrics))
        rows = "".join(_metric_row(name, before[0], after[0]) for name in names)
        body = (
            '<div class="scroll"><table><thead><tr><th>metric</th><th class="num">before</th><th class="num">after</th>'
            '<th class="num">change</th><th><span class="legend" style="padding:0">hollow: before, filled: after</span>'
            f'</th><th class="num">n</th></tr></thead><tbody>{rows}</tbody></table></div>'
        )
    lead = "Scores on the evaluation set, with 95 % bootstrap intervals where the metric has them."
    return f'<section><h2>Before and after</h2><p class="lead">{lead}</p>{body}{notes}{_retention(run)}</section>'


def _metric_row(name: str, before: Report | None, after: Report | None) -> str:
    old, new = (report.metrics.get(name) if report else None for report in (before, after))
    shown = new or old
    assert shown is not None
    change = ""
    if old and new and old.value is not None and new.value is not None:
        delta = new.value - old.value
        better = delta == 0 or (delta > 0) == new.higher_is_better
        kind = "" if abs(delta) < 5e-3 else f' class="{"up" if better else "down"}"'
        change = f"<span{kind}>{delta:+.2f}</span>"
    is_primary = name == (after or before).primary  # type: ignore[union-attr]
    sizes = " / ".join(f"{n:,}" for n in dict.fromkeys(m.n for m in (old, new) if m))
    direction = "" if shown.higher_is_better else " <small>lower is better</small>"
    return (
        f"<tr{' class=primary' if is_primary else ''}><td>{escape(name)}{direction}</td>"
        f'<td class="num">{_cell(old)}</td><td class="num">{_cell(new)}</td><td class="num">{change}</td>'
        f'<td>{chart.intervals(_interval(old), _interval(new))}</td><td class="num">{sizes}</td></tr>'
    )


def _interval(metric: Metric | None) -> chart.Interval | None:
    return None if metric is None or metric.value is None else (metric.value, metric.ci95)


def _cell(metric: Metric | None) -> str:
    if metric is None:
        return "<small>–</small>"
    if metric.value is None:
        return f'<small class="skip">skipped: {escape(str(metric.skipped))}</small>'
    return _figure(metric) + (f"<br><small>{_ci(metric)}</small>" if metric.ci95 else "")


def _figure(metric: Metric) -> str:
    return f"{metric.value:.2f}{escape(metric.unit)}"


def _ci(metric: Metric) -> str:
    return f"[{metric.ci95[0]:.2f}, {metric.ci95[1]:.2f}]" if metric.ci95 else ""


def _retention(run: RunFolder) -> str:
    found, reason = _json(run, "eval/retention.json")
    before, after = (found.get(k) if isinstance(found, dict) else None for k in ("before", "after"))
    if not isinstance(before, (int, float)) or not isinstance(after, (int, float)):
        if isinstance(found, dict):
            reason = f"{found.get('skipped') or 'not measured to the end'}"
        return f'<h3>Retention</h3><p class="note">Not measured: {escape(str(reason))}.</p>'
    kind = "down" if after > before else "up"
    return (
        f'<h3>Retention</h3><p class="retention">Loss on held-out text of what the base knew: <b>{before:.3f}</b> → '
        f'<b>{after:.3f}</b> <span class="{kind}">{after - before:+.3f} nats a token</span></p>'
    )


def _curves(history: History, after: Report | None) -> str:
    if not history.train and not history.held_out and not history.scores:
        return f"<section><h2>Training</h2>{_missing('metrics.jsonl holds no steps')}</section>"
    borders = history.stages if len(history.stages) > 1 else []
    loss = [
        chart.Series("training loss", history.train),
        chart.Series("held-out loss", history.held_out, "dots", "var(--second)"),
    ]
    out = ["<section><h2>Training</h2>", chart.curves(loss, borders=borders)]
    if history.not_finite:
        out.append(_missing(f"{history.not_finite} values were not finite and are not drawn"))
    preferred = [after.primary] if after else []
    names = [n for n in [*preferred, *history.scores] if len(history.scores.get(n, ())) > 0]
    if names:
        steps = [x for x, _ in history.train + history.held_out] or [x for x, _ in history.scores[names[0]]]
        span = (min(steps), max(steps))
        series = chart.Series(names[0], history.scores[names[0]], "dots", "var(--third)")
        out += [f"<h3>{escape(names[0])} during training</h3>", chart.curves([series], borders=borders, x_range=span)]
    return "".join([*out, "</section>"])


def _stages(run: RunFolder) -> list[dict[str, Any]]:
    """What each stage's stage.json says, or its plan.json while it is not finished; unreadable ones are left out."""
    found = []
    for folder in sorted((run.path / "stages").glob("*")):
        for name in ("stage.json", "plan.json"):
            value, _ = _json(run, f"stages/{folder.name}/{name}")
            if isinstance(value, dict):
                found.append({"stage": folder.name, **value})
                break
    return found


def _plan(run: RunFolder, stages: list[dict[str, Any]]) -> str:
    reason = None
    if not stages:
        plan, reason = _json(run, "plan.json")
        stages = [plan] if isinstance(plan, dict) else []
    out = ["<section><h2>What was planned and done</h2>"]
    hidden = ("stage", "versions")
    keys = list(dict.fromkeys(k for s in stages for k, v in s.items() if k not in hidden and _is_plain(v)))
    if len(stages) == 1:
        cells = ((key, _value(stages[0][key])) for key in keys)
        pairs = "".join(f"<div><dt>{escape(_spaced(k))}</dt><dd>{escape(v)}</dd></div>" for k, v in cells)
        out.append(f'<dl class="plan">{pairs}</dl>')
    elif stages:
        names = "".join(f'<th class="num">{escape(str(s.get("stage", "")))}</th>' for s in stages)
        out.append(f'<div class="scroll"><table><thead><tr><th>stage</th>{names}</tr></thead><tbody>')
        for key in keys:
            cells_of_row = "".join(
                f'<td class="num">{escape(_value(s[key])) if _is_plain(s.get(key)) else ""}</td>' for s in stages
            )
            out.append(f"<tr><td>{escape(_spaced(key))}</td>{cells_of_row}</tr>")
        out.append("</tbody></table></div>")
    return "".join([*out, _missing(reason) if reason else "", "</section>"])


def _is_plain(value: Any) -> bool:
    return value is not None and not isinstance(value, (dict, list))


def _spaced(key: Any) -> str:
    return str(key).replace("_", " ")


def _recipe(run: RunFolder, info: dict[str, Any], after: Report | None) -> str:
    out = ["<section><h2>To do it again</h2>"]
    command = info.get("command")
    if command:
        text = " ".join(map(str, command)) if isinstance(command, list) else str(command)
        out.append(f"<pre>{escape(text)}</pre>")
    for name, title in (("recipe.yaml", "Recipe"), ("resolved.yaml", "Recipe with every default")):
        try:
            text = (run.path / name).read_text(encoding="utf-8", errors="replace")
            out.append(f"<details><summary>{title}</summary><pre>{escape(text)}</pre></details>")
        except OSError as error:
            out.append(_missing(f"{name}: {error.strerror}"))
    tables = [("Versions", info.get("versions")), ("How it was scored", after.signature if after else None)]
    for title, table in tables:
        if isinstance(table, dict) and table:
            rows = "".join(f"<tr><td>{escape(str(k))}</td><td>{escape(_value(v))}</td></tr>" for k, v in table.items())
            out.append(f"<details><summary>{title}</summary><table>{rows}</table></details>")
        else:
            out.append(_missing(f"{title}: not recorded"))
    return "".join([*out, "</section>"])


def _footer(run: RunFolder) -> str:
    rejects = run.rejects
    count = sum(1 for _ in open(rejects, encoding="utf-8", errors="replace")) if rejects.is_file() else 0
    note = f" {count:,} rows of the data were rejected (rejects.jsonl)." if count else ""
    return f"<footer>Made by graft from the files of the run folder; nothing on this page is fetched.{note}</footer>"


def _value(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else chart.number(value)


def _short(value: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if letter == 'k' else size):.3g}{letter}"
    return f"{value:,.0f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}" if minutes else f"{seconds:.1f} s"
