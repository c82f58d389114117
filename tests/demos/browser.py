"""What tests in a real browser share."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def upload(page: Any, file: Path, shown: int = 1) -> None:
    """Give `file` to the first empty place for one, until so many files are shown.

    A tab that was just opened draws the place before it listens there, so that a file given at once can be lost.
    """
    from playwright.sync_api import TimeoutError as Late

    for attempt in range(3):
        page.locator("input[type=file]").first.set_input_files(file)
        try:
            page.wait_for_function(f"document.querySelectorAll('.file-preview').length >= {shown}", timeout=10_000)
            return
        except Late:
            if attempt == 2:
                raise
