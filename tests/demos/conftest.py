"""A demo's page in a real browser, with no network."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]


@pytest.fixture
def open_page() -> Iterator[Callable[[Any], tuple[Any, list[str]]]]:
    """Blocks → (page, list of problems): served and opened; failed scripts and outside requests are problems.

    The test is skipped, saying so, where there is no browser.
    """
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: the demo was not opened in a browser")
    from demos import look

    served = []
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)

        def opened(blocks: Any) -> tuple[Any, list[str]]:
            served.append(blocks)
            url, problems = look.serve(blocks, port=0, block=False), []
            inside = (url, "data:", "blob:")
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(30_000)
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("request", lambda r: None if r.url.startswith(inside) else problems.append(r.url))
            page.goto(url)
            return page, problems

        yield opened
        browser.close()
    for blocks in served:
        blocks.close()
