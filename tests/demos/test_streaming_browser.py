"""Pages that show work as it happens: their button rests until it is done, and Stop ends it."""

from __future__ import annotations

import importlib
import threading

import pytest

pytest.importorskip("gradio", reason="gradio is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")

pytestmark = pytest.mark.browser


@pytest.mark.parametrize(
    "app,pipeline,method,button",
    (
        ("rtl", "RtlPipeline", "write", "Write and check"),
        ("cuda", "CudaPipeline", "search", "Search"),
        ("tool_use", "ToolUsePipeline", "run", "Run"),
        ("tool_use", "ToolUsePipeline", "make", "Make the tool"),
    ),
)
def test_a_button_rests_until_its_work_is_done_or_stopped(monkeypatch, open_page, app, pipeline, method, button):
    demo = importlib.import_module(f"demos.{app}")
    true, gate, begun = getattr(demo.Page, method), threading.Event(), []

    def slow(self, *values):
        shown = true(self, *values)
        first = next(shown)
        begun.append(values)
        yield first
        while not gate.wait(0.1):
            yield first
        shown.close()

    monkeypatch.setattr(demo.Page, method, slow)
    opened = getattr(importlib.import_module(f"apps.{app}"), pipeline).from_pretrained("embedded")
    page, problems = open_page(demo.build(opened))
    try:
        if method == "make":
            page.get_by_role("tab", name="Tool maker").click()
        go = page.get_by_role("button", name=button, exact=True)
        stop = page.get_by_role("button", name="Stop", exact=True).locator("visible=true")
        for end in (stop.click, gate.set):
            go.click()
            sync_api.expect(go).to_be_disabled(timeout=30_000)
            page.get_by_text("ing …").first.wait_for()
            end()
            if end == stop.click:
                page.get_by_text("Stopped.").wait_for()
            sync_api.expect(go).to_be_enabled(timeout=30_000)
    finally:
        gate.set()  # nothing waits when the page is closed
    assert problems == [] and len(begun) == 2
