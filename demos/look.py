"""How every demo looks: theme, style sheet, small pieces of HTML (header, banner, facts, histogram), a report's parts,
and how a page shows what is made step by step.

Everything is drawn here and nothing is fetched: fonts are the reader's own, plots are inline SVG. Text from users and
models is escaped. Nothing here knows of an app.
"""

from __future__ import annotations

import html
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from core.errors import GraftError

_FONTS = ["ui-sans-serif", "system-ui", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif"]
_MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace"]

CSS = """
.gradio-container {max-width: 1180px !important; width: 100% !important; margin: 0 auto !important;
  padding-top: 12px !important}
.graft-head {display: flex; align-items: flex-end; justify-content: space-between; gap: 16px; flex-wrap: wrap;
  padding: 6px 2px 14px; border-bottom: 1px solid var(--border-color-primary); margin-bottom: 6px}
.graft-head h1 {font-size: 26px; font-weight: 700; letter-spacing: -.02em; margin: 0; line-height: 1.15}
.graft-head h1 span {color: var(--primary-600)}
.graft-head p {margin: 4px 0 0; color: var(--body-text-color-subdued); font-size: 14px}
.graft-chips {display: flex; gap: 6px; flex-wrap: wrap}
.graft-chip {font-size: 12px; padding: 3px 10px; border-radius: 999px; background: var(--primary-50);
  color: var(--primary-800); border: 1px solid var(--primary-200); white-space: nowrap}
.graft-chip i {display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 6px}
.dark .graft-chip {background: var(--neutral-800); color: var(--primary-200); border-color: var(--primary-800)}
.graft-banner {border-radius: 8px; padding: 10px 14px; font-size: 14px; border-left: 4px solid; line-height: 1.45;
  overflow-wrap: anywhere}
.graft-banner b {display: block}
.graft-banner.error {background: #fef2f2; color: #7f1d1d; border-color: #dc2626}
.graft-banner.note {background: #fffbeb; color: #713f12; border-color: #d97706}
.dark .graft-banner.error {background: #3a1414; color: #fecaca}
.dark .graft-banner.note {background: #33260a; color: #fde68a}
.graft-banner code {font-size: 12.5px}
input[role="combobox"] {text-overflow: ellipsis; padding-right: 28px !important}
.graft-facts {display: grid; grid-template-columns: repeat(auto-fit, minmax(92px, 1fr)); gap: 8px; margin-bottom: 10px}
.graft-fact {border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 8px 12px;
  background: var(--background-fill-secondary); overflow-wrap: anywhere}
.graft-fact .v {font-size: 18px; font-weight: 650; font-variant-numeric: tabular-nums; line-height: 1.2}
.graft-fact .k {font-size: 11px; color: var(--body-text-color-subdued); text-transform: uppercase;
  letter-spacing: .04em; margin-top: 2px}
.graft-prompt {font-family: var(--font-mono); font-size: 12.5px; line-height: 1.5; white-space: pre-wrap;
  overflow-wrap: anywhere; background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary);
  border-radius: 8px; padding: 10px 12px; margin: 0; max-height: 260px; overflow: auto}
.graft-prompt mark {background: var(--primary-100); color: var(--primary-900); border-radius: 3px; padding: 1px 2px}
.dark .graft-prompt mark {background: var(--primary-900); color: var(--primary-100)}
.graft-label {font-size: 12px; color: var(--body-text-color-subdued); margin: 2px 0 6px}
.graft-empty {border: 1px dashed var(--border-color-primary); border-radius: 8px; padding: 22px; text-align: center;
  color: var(--body-text-color-subdued); font-size: 14px}
.graft-plot svg {width: 100%; height: auto; display: block}
.graft-plot rect.bar {fill: var(--primary-500)} .graft-plot rect.bar:hover {fill: var(--primary-700)}
.graft-plot text {fill: var(--body-text-color-subdued); font-size: 11px; font-family: var(--font)}
.graft-plot line {stroke: var(--border-color-primary)} .graft-plot line.mean {stroke: #d97706; stroke-dasharray: 4 3}
.graft-plot text.mean {fill: #b45309; font-weight: 600}
.graft-swap {align-self: center; min-width: 44px !important}
.graft-file .icon-wrap {display: none !important}
.graft-file .or {display: inline !important; margin: 0 4px}
.graft-file button .wrap {font-size: 13px !important; line-height: 1.4 !important; padding-top: 16px; min-height: 0}
.graft-slot:not(:has(.graft-banner)):not(:has(.graft-plot)) {display: none !important}
.gradio-container .table-wrap * {font-family: var(--font) !important}

"""


def theme() -> gr.themes.Base:
    """Neutral greys and one accent, on the reader's own fonts."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        font=_FONTS,
        font_mono=_MONO,
    ).set(
        body_background_fill="*neutral_50",
        body_text_color_subdued="*neutral_500",
        block_label_text_color="*neutral_600",
        block_border_width="1px",
        block_shadow="0 1px 2px rgba(15, 23, 42, .05)",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_text_color="white",
    )


def serve(page: gr.Blocks, *, host: str = "127.0.0.1", port: int = 7860, block: bool = True) -> str:
    """Serve a page and return its address; `port` 0 takes the first free one from 7860.

    Raises:
        GraftError: the port is taken.
    """
    try:
        _, url, _ = page.queue().launch(
            server_name=host,
            server_port=port or None,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            theme=theme(),
            css=CSS,
            footer_links=["api"],
            show_error=True,
        )
    except OSError as error:
        raise GraftError(f"cannot serve on port {port}: {error}", hint="choose another with --port") from error
    if block:
        print(f"open {url} (Ctrl-C ends it)")
        page.block_thread()
    return url


def go_and_stop(word: str) -> tuple[gr.Button, gr.Button]:
    """The main button and one that stops it, side by side."""
    with gr.Row():
        return gr.Button(word, variant="primary", scale=3), gr.Button("Stop", scale=1, min_width=80)


def streams(
    button: gr.Button,
    stop: gr.Button,
    triggers: Sequence[Any],
    handler: Callable[..., Iterator[Any]],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    *,
    api_name: str,
) -> gr.events.Dependency:
    """Let `handler` answer the triggers step by step; `stop` ends it at its next step, and `button` rests meanwhile.

    Gradio drops, without a word, what is sent while the same event runs. A button that rests says so.
    """
    quiet: dict[str, Any] = {"api_visibility": "private", "queue": False}
    resting = gr.on(triggers, lambda: gr.Button(interactive=False), None, button, **quiet)
    running = resting.then(handler, inputs, outputs, api_name=api_name, show_progress="hidden")
    for ended in (running.then, running.failure):  # after an error only the second runs
        ended(lambda: gr.Button(interactive=True), None, button, **quiet)
    stop.click(lambda: gr.Info("Stopped."), None, None, cancels=running, api_visibility="private")
    return running


def header(title: str, text: str, chips: Sequence[str]) -> str:
    """Title, one line of text, and what is loaded."""
    marks = "".join(f'<span class="graft-chip">{html.escape(chip)}</span>' for chip in chips)
    return (
        f'<div class="graft-head"><div><h1><span>graft</span> {html.escape(title)}</h1><p>{html.escape(text)}</p></div>'
        f'<div class="graft-chips">{marks}</div></div>'
    )


def place(path: str | Path) -> str:
    """A model's folder in few letters; of a run its last two parts."""
    folder = Path(str(path))
    if folder.name in ("model", "merged"):
        folder = Path(folder.parent.parent.name, folder.parent.name)
    return str(folder) if len(folder.parts) == 2 else folder.name


def model_chips(pipeline: Any) -> list[str]:
    """Chips of the header: what is loaded, its size and where it runs."""
    chips = [place(pipeline.source.get("path", type(pipeline.engine).__name__))]
    model = getattr(pipeline.engine, "model", None)
    if model is not None:
        chips += [f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters", str(pipeline.engine.device)]
    return chips


def untaught(pipeline: Any, command: str) -> str:
    """Where the model is the base that ships: a banner that it does not know the task, and the command to teach it."""
    if Path(str(pipeline.source.get("path", ""))).name != "embedded":
        return ""
    text = "The small base model that ships was never taught to answer."
    return banner([f"{text} Teach it with `{command}`, or open a run of yours with --run."])


def archive(report: Any) -> str:
    """A report's report.json and predictions.jsonl in one file to download, named after the report."""
    folder = Path(tempfile.mkdtemp(prefix="graft-report-"))
    report.save(folder)
    bundled = folder / f"{report.name}-report.zip"
    with zipfile.ZipFile(bundled, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name in ("report.json", "predictions.jsonl"):
            bundle.write(folder / name, name)
    return str(bundled)


def report_shown(result: tuple, nothing: str = "Nothing was scored.") -> list[Any]:
    """(banner, summary, metric rows, plot, worst rows, archive) as updates of the parts that show a report.

    Tables and download appear when there is an archive. `nothing` stands where there is no summary.
    """
    problem, summary, metrics, plot, worst, bundled = result
    there = bundled is not None
    return [
        problem,
        summary or empty(nothing),
        gr.Dataframe(metrics, visible=there),
        plot,
        gr.Dataframe(worst, visible=there),
        gr.DownloadButton(value=bundled, visible=there),
    ]


def banner(problem: GraftError | Sequence[str] | None) -> str:
    """A red banner with an error's what, where and hint; an amber one for warnings; "" for nothing."""
    if not problem:
        return ""
    if isinstance(problem, GraftError):
        rest = [("where", problem.where), ("hint", problem.hint)]
        lines = "".join(f"<div>{name}: {_told(text)}</div>" for name, text in rest if text)
        return f'<div class="graft-banner error" role="alert"><b>{_told(problem.what)}</b>{lines}</div>'
    lines = "".join(f"<div>{_told(text)}</div>" for text in problem)
    return f'<div class="graft-banner note" role="status">{lines}</div>'


def _told(text: str) -> str:
    """Escaped, with uploaded files by the names that their owners know instead of the places they were copied to."""
    return html.escape(re.sub(rf"{re.escape(get_upload_folder())}/[0-9a-f]{{16,}}/", "", text))


def facts(values: Mapping[str, str]) -> str:
    """Tiles of one figure each."""
    tiles = [
        f'<div class="graft-fact"><div class="v">{html.escape(value)}</div>'
        f'<div class="k">{html.escape(name)}</div></div>'
        for name, value in values.items()
    ]
    return f'<div class="graft-facts">{"".join(tiles)}</div>'


def what_happened(meta: Mapping[str, Any], text: str, milliseconds: float) -> str:
    """Figures of a generation, and each prompt as it was sent with its answer marked (`exchanges`, else one)."""
    tokens = int(meta.get("tokens", 0))
    speed = f"{tokens / milliseconds * 1e3:.0f}" if tokens and milliseconds else "–"
    tiles = facts(
        {
            "prompt tokens": str(meta.get("prompt_tokens", 0)),
            "new tokens": str(tokens),
            "ms": f"{milliseconds:.0f}",
            "tokens/s": speed,
            "ended by": {"stop": "stop", "length": "length"}.get(meta.get("finish_reason", ""), "–"),
        }
    )
    exchanges = meta.get("exchanges") or [(meta.get("prompt", ""), text)]
    shown = "\n\n".join(
        f"{html.escape(str(prompt))} <mark>{html.escape(answer)}</mark>" for prompt, answer in exchanges if prompt
    )
    if not shown:
        return tiles
    label = "Prompt as sent" if len(exchanges) == 1 else f"{len(exchanges)} prompts as sent"
    return f'{tiles}<div class="graft-label">{label}, answer marked</div><pre class="graft-prompt">{shown}</pre>'


def empty(text: str) -> str:
    """A placeholder for a pane that has nothing to show yet."""
    return f'<div class="graft-empty">{html.escape(text)}</div>'


def histogram(values: Sequence[float], *, low: float, high: float, bins: int, title: str) -> str:
    """An SVG histogram with its mean marked; each bar tells its range and count."""
    width, height, left, right, bottom, top = 560, 220, 34, 16, 26, 18
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, max(0, int((value - low) / (high - low) * bins)))] += 1
    tallest = max(counts, default=0) or 1
    step = (width - left - right) / bins
    parts = []
    for share in (0.5, 1.0):
        y = height - bottom - share * (height - bottom - top)
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{width - right}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tallest * share:.0f}</text>')
    for index, count in enumerate(counts):
        tall = count / tallest * (height - bottom - top)
        start = low + index * (high - low) / bins
        tip = f"{start:.0f}–{start + (high - low) / bins:.0f}: {count}"
        parts.append(
            f'<rect class="bar" x="{left + index * step + 1:.1f}" y="{height - bottom - tall:.1f}" '
            f'width="{step - 2:.1f}" height="{tall:.1f}" rx="2"><title>{tip}</title></rect>'
        )
    for tick in range(0, 5):
        x = left + tick / 4 * (width - left - right)
        at = low + tick / 4 * (high - low)
        parts.append(f'<text x="{x:.1f}" y="{height - 8}" text-anchor="middle">{at:.0f}</text>')
    if values:
        mean = sum(values) / len(values)
        x = left + (mean - low) / (high - low) * (width - left - right)
        parts.append(f'<line class="mean" x1="{x:.1f}" y1="{top - 6}" x2="{x:.1f}" y2="{height - bottom}"/>')
        side = "end" if mean > (low + high) / 2 else "start"
        shift = -6 if side == "end" else 6
        parts.append(f'<text class="mean" x="{x + shift:.1f}" y="{top}" text-anchor="{side}">mean {mean:.1f}</text>')
    label = html.escape(title)
    return (
        f'<div class="graft-plot"><div class="graft-label">{label}</div>'
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg></div>'
    )
