"""What every test shares: offline libraries, one thread, and the place of the development data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parent.parent


@pytest.fixture
def shared_data() -> Path:
    """The folder with the development data sets; the test is skipped, saying so, where it is absent."""
    given = os.environ.get("GRAFT_DATA")
    for folder in filter(None, [given and Path(given) / "data", given and Path(given)]):
        if (folder / "translation").is_dir():
            return folder
    pytest.skip("development data not found: set GRAFT_DATA")
