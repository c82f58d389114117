"""The translation demo in a real browser, with no network: it shows, translates, scores and reports errors."""

from __future__ import annotations

import shutil

import pytest

pytest.importorskip("gradio", reason="gradio is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: the demo was not opened in a browser"),
]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]


@pytest.fixture
def opened():
    """(page, list of problems): the demo in a fresh browser; failed scripts and outside requests are problems."""
    from apps.translation import TranslationPipeline
    from core.inference.engines.script import ScriptEngine
    from demos import look, translation

    engine = ScriptEngine(lambda prompt: " " + prompt.split("\n")[-2].partition(": ")[2].upper())
    blocks = translation.build(TranslationPipeline(engine, None))
    url = look.serve(blocks, port=0, block=False)
    problems: list[str] = []
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda r: problems.append(r.url) if not r.url.startswith((url, "data:", "blob:")) else None)
        page.goto(url)
        page.get_by_role("button", name="Translate", exact=True).wait_for()
        yield page, problems
        browser.close()
    blocks.close()


def test_a_person_translates_sees_an_error_and_scores(opened, tmp_path):
    page, problems = opened
    page.get_by_label("Text", exact=True).fill("Guten Tag. Ja.")
    page.get_by_role("button", name="Translate", exact=True).click()
    page.locator(".graft-prompt").wait_for()
    assert page.locator("textarea[disabled]").first.input_value() == "GUTEN TAG. JA."
    assert "Translate this from German to English" in page.locator(".graft-prompt").inner_text()
    assert not page.locator(".graft-banner").is_visible()

    page.get_by_text("Diese Männer").first.click()
    page.wait_for_function("document.querySelector('textarea').value.startsWith('Diese Männer')")

    target = page.get_by_label("To", exact=True).first
    target.click()
    target.fill("German (de)")
    target.press("Enter")
    page.get_by_role("button", name="Translate", exact=True).click()
    page.locator(".graft-banner.error").wait_for()
    assert "source and target language are both German" in page.locator(".graft-banner.error").inner_text()

    page.get_by_role("tab", name="Evaluate").click()
    for name, lines in (("hyp", "A dog runs.\nA cat sleeps here.\n"), ("ref", "A dog runs.\nThe cat sleeps.\n")):
        (tmp_path / name).with_suffix(".txt").write_text(lines)
    for number, name in enumerate(("hyp", "ref"), 1):
        page.locator("input[type=file]").first.set_input_files(tmp_path / f"{name}.txt")
        page.wait_for_function(f"document.querySelectorAll('.file-preview').length >= {number}")
    page.get_by_role("button", name="Score", exact=True).click()
    page.locator(".graft-plot svg").wait_for()
    page.get_by_text("tok:13a").filter(visible=True).first.wait_for()
    assert (
        page.get_by_role("button", name="Download report").or_(page.get_by_text("Download report")).first.is_visible()
    )
    assert problems == []
