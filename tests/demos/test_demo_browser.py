"""The translation demo in a real browser, with no network: it shows, translates, scores and reports errors."""

from __future__ import annotations

import pytest

pytest.importorskip("gradio", reason="gradio is not installed")

pytestmark = pytest.mark.browser


@pytest.fixture
def opened(open_page):
    """(page, list of problems): the demo in a fresh browser; failed scripts and outside requests are problems."""
    from apps.translation import TranslationPipeline
    from core.inference.engines.script import ScriptEngine
    from demos import translation

    engine = ScriptEngine(lambda prompt: " " + prompt.split("\n")[-2].partition(": ")[2].upper())
    blocks = translation.build(TranslationPipeline(engine, None))
    page, problems = open_page(blocks)
    page.get_by_role("button", name="Translate", exact=True).wait_for()
    return page, problems


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
